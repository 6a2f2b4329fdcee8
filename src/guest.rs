//! Guests: which there are, how they are held still for a snapshot, and what describes them.

pub mod discover;
pub mod domain;
pub mod files;
pub mod freeze;
pub mod volumes;
