//! One disk of this machine: read by a backup, written by a restore.

pub(crate) mod buffer;
pub mod source;
pub(crate) mod target;
