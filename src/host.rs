//! Everything that queries this machine: its programs, LVM, libvirt, its block devices, and the records of vbk's own
//! runs.

pub mod device;
pub(crate) mod holders;
pub mod libvirt;
pub(crate) mod loops;
pub(crate) mod lvm;
pub mod memory;
pub mod program;
pub mod run;
pub mod terminal;
