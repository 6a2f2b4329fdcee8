//! Everything that asks this machine: its programs, LVM, libvirt, its block devices, and the note of each run of vbk.

pub mod device;
pub(crate) mod holders;
pub mod libvirt;
pub(crate) mod loops;
pub mod lvm;
pub(crate) mod mounts;
pub mod program;
pub mod run;
