//! Reads what is inside a guest's disks: partitions, volumes, file systems, files.
//!
//! | module | content |
//! |---|---|
//! | [`device`] | bytes that can be read at any offset: a disk, a partition, a volume, a file |
//! | [`partition`], [`probe`] | partition tables; the content of a volume by its marks |
//! | [`btrfs`] | the devices of a btrfs, and superblocks with another identity for the kernel |
//! | [`fs`] | the files of a volume, without the kernel |
//!
//! Depends on no other crate of vbk, on no kernel and on no right. Disks are hostile: see [`fs`].

#![forbid(unsafe_code)]

pub mod btrfs;
pub mod device;
mod error;
pub mod fs;
pub mod lvm;
pub mod partition;
pub mod probe;

pub use error::{Error, Result};
