//! One disk of this machine: read by a backup, written by a restore.

pub(crate) mod buffer;
pub(crate) mod qcow2;
pub mod source;
pub(crate) mod target;
