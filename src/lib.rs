//! Makes backups of disks, restores them, and boots them in QEMU. Does not know how backups are mounted.
//!
//! Memory of a backup, independent of the size of the disk: 64 MiB of workers' buffers (32 MiB with the default block
//! size on two processors), at most twice as much for what changed blocks are stored as differences from, 144 MiB of the
//! store's write buffers, 32 MiB of its cache. Guests that are backed up at the same time share the store; with change
//! hints each disk needs up to 12 MiB per TiB.

pub mod age;
pub mod backup;
pub mod boot;
pub mod disk;
mod error;
pub mod guest;
pub mod hints;
pub mod host;
pub mod limit;
pub mod observer;
pub mod repair;
pub mod restore;
pub mod retention;
pub mod size;
pub mod snapshot;
mod sys;
pub mod text;

pub use error::{Error, Result};
