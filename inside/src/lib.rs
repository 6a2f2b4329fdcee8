//! Reads what is inside a guest's disks: partitions, volumes, file systems, files.
//!
//! | module | content |
//! |---|---|
//! | [`device`] | bytes that can be read at any offset: a disk, a partition, a volume, a file |
//! | [`partition`], [`probe`], [`signature`] | partition tables; the content of a volume by its marks; the identities of a disk |
//! | [`btrfs`] | the devices of a btrfs, and superblocks with another identity for the kernel |
//! | [`fs`] | the files of a volume, without the kernel |
//! | [`overlay`] | writes to a disk that never changes |
//! | [`volumes`] | all volumes of a guest, whatever lies between them and the disks |
//! | [`luks`] | the plain side of a LUKS volume, without device mapper |
//! | [`guest`] | the files of a guest as it saw them, by its own `/etc/fstab` |
//! | [`mod@path`], [`walk`] | a path in a tree of files; all that is below a directory |
//! | [`copy`], [`compare`], [`search`] | copies files to this host; compares two trees; finds files by a pattern |
//!
//! Depends on no other crate of vbk, on no kernel and on no right. Disks are hostile: see [`fs`].

#![forbid(unsafe_code)]

pub mod btrfs;
pub mod compare;
pub mod copy;
pub mod device;
mod error;
pub mod fs;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
pub mod luks;
pub mod lvm;
pub mod overlay;
pub mod partition;
pub mod path;
pub mod probe;
pub mod search;
pub mod signature;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
mod testing;
pub mod volumes;
pub mod walk;

pub use error::{Error, Result};

/// Tests a checksum. A build for a fuzzer takes each for right: the fuzzer changes bytes at random, and can't compute
/// checksums of them as an attacker does.
fn proven(holds: bool) -> bool {
    holds || cfg!(fuzzing)
}
