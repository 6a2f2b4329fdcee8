//! What libvirt knows of the guests of this host. Asks `virsh`.

pub mod define;
pub mod rename;
