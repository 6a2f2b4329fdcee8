//! Shows backups as a file system of disk images, and mounts the file systems inside those images.
//!
//! | module | content |
//! |---|---|
//! | [`tree`] | the file system itself: names, attributes, reads. Tests need no kernel |
//! | [`contents`] | the disks of a backup as devices, and the file systems inside them |
//! | `listing` | the files of a backup: its record, its disks, their partitions, its configuration |
//! | [`file_tree`] | the files inside a backup as a tree, read in user space |
//! | `adapter`, [`session`] | translate between the trees and the kernel |
//! | [`scratch`] | the file that takes the writes of a writable mount |
//! | `drivers` | the mount options of each file system |
//! | [`volumes`], `sys` | loop devices, mounts, and their teardown |
//! | [`files`] | combines them: mounts the file systems of one backup |

mod adapter;
pub mod contents;
mod drivers;
mod error;
pub mod file_tree;
pub mod files;
mod listing;
pub mod scratch;
pub mod session;
mod sys;
pub mod tree;
pub mod volumes;

pub use drivers::Way;
pub use error::{Error, Result};
pub use listing::partition_table;
pub use vbk_inside::btrfs::{Fsid, NewFsid};
pub use vbk_inside::partition::{Partition, PartitionKind, PartitionTable, TableKind};
pub use volumes::MountError;
