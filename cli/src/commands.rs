//! The commands: each checks its arguments, lets the libraries work, and prints what came of it.

pub mod backup;
pub mod boot;
pub mod config;
pub mod diff;
pub mod forget;
pub mod guests;
pub mod init;
pub mod key;
pub mod limit;
pub mod list;
pub mod mount;
pub mod mounts;
pub mod prune;
pub mod rehearse;
pub mod repair;
pub mod restore;
pub mod show;
pub mod snapshots;
pub mod stats;
pub mod status;
pub mod trust;
pub mod umount;
pub mod verify;
