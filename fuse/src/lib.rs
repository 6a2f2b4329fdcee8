//! Shows backups: as a file system of disk images, and the file systems inside those images as directories.
//!
//! | module | what |
//! |---|---|
//! | [`tree`] | the file system as such: names, attributes, reads. Needs no kernel to be tested |
//! | `listing` | what files a backup has: its record, its disks, their partitions, its configuration |
//! | `adapter`, [`session`] | between `tree` and the kernel |
//! | `partition`, `probe`, `btrfs` | what is on a disk; trusts nothing it reads |
//! | `drivers` | how each file system is mounted |
//! | [`volumes`], `loopdev`, `mountinfo`, `sys` | loop devices, mounts, and taking them down again |
//! | [`files`] | puts them together: the file systems of one backup |
#![warn(missing_docs)]

mod adapter;
mod btrfs;
mod drivers;
mod error;
pub mod files;
mod listing;
mod loopdev;
mod mount_error;
mod mountinfo;
mod partition;
mod probe;
mod read_at;
pub mod session;
mod sys;
pub mod tree;
pub mod volumes;

pub use btrfs::{Fsid, NewFsid};
pub use error::{Error, Result};
pub use listing::partition_table;
pub use mount_error::MountError;
pub use partition::{Partition, PartitionKind, PartitionTable, TableKind};
