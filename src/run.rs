//! A run of vbk that holds what must not outlive it, and how another run finds out that it is gone.
