//! Btrfs before the kernel sees it: the devices of a file system, and superblocks with another identity.
//!
//! mount(2) of btrfs uses every device that the kernel knows with the superblock's UUID, wherever it is. That includes
//! the guest's live disk, whose log it would replay. So no backup is mounted under its original UUID. The images for a
//! mount show superblocks with a new random fsid; the old one becomes the `metadata_uuid`, which every tree block bears
//! (`btrfs_validate_super`, fs/btrfs/disk-io.c; Linux 5.0 and newer). No other byte changes.
//!
//! The chunk tree names devices too. The kernel would look for those with another fsid (a seed) among all devices it
//! knows (`open_seed_devices`, fs/btrfs/volumes.c): see `chunks`.

pub(crate) mod checksum;
pub(crate) mod chunk;
mod chunks;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::device::{Device, le16, le32, le64, read_inside};
use checksum::{CHECKSUM_BYTES, Checksum};

pub use chunks::{Layout, examine};

/// Length of a superblock (`BTRFS_SUPER_INFO_SIZE`).
const SUPERBLOCK_BYTES: usize = 4096;
/// Offsets of the superblocks (`btrfs_sb_offset`). The kernel mounts by the first one alone.
pub(crate) const SUPERBLOCK_OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

// Offsets in `struct btrfs_super_block` (linux/btrfs_tree.h).
const FSID: usize = 0x20;
const INCOMPAT_FLAGS: usize = 0xbc;
const DEVICE: usize = 0xc9;
const LABEL: usize = 0x12b;
const LABEL_BYTES: usize = 256;
const METADATA_UUID: usize = 0x23b;
const SYSTEM_CHUNKS: usize = 0x32b;
const SYSTEM_CHUNKS_BYTES: usize = 2048;

/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`.
const INCOMPAT_METADATA_UUID: u64 = 1 << 10;
/// `BTRFS_SUPER_FLAG_SEEDING`.
const FLAG_SEEDING: u64 = 1 << 32;

/// Identity of a btrfs, as the kernel and udev know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fsid(pub [u8; 16]);

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Fsid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let bytes: Option<Vec<u8>> = hex
            .chunks(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
            .collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("not a UUID")
    }
}

/// A new identity for the btrfs in an image. As text: `FILE:FSID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFsid {
    /// Name of the image's file.
    pub file: String,
    /// Identity to show instead of its own.
    pub fsid: Fsid,
}

impl fmt::Display for NewFsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.fsid)
    }
}

impl FromStr for NewFsid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fields = text.rsplit_once(':').filter(|(file, _)| !file.is_empty());
        let (file, fsid) = fields.ok_or("not FILE:FSID")?;
        Ok(Self {
            file: file.to_owned(),
            fsid: fsid.parse()?,
        })
    }
}

/// A superblock whose checksum matches.
#[derive(Clone)]
pub struct Superblock {
    bytes: Box<[u8]>,
    checksum: Checksum,
}

impl Superblock {
    /// Reads the superblock that the kernel mounts by; the inner error says why it is invalid.
    pub fn read(volume: &dyn Device) -> io::Result<Result<Self, &'static str>> {
        Self::read_copy(volume, SUPERBLOCK_OFFSETS[0])
    }

    /// Reads one copy of the superblock; the inner error says why it is invalid.
    pub(crate) fn read_copy(volume: &dyn Device, offset_bytes: u64) -> io::Result<Result<Self, &'static str>> {
        let mut bytes = vec![0; SUPERBLOCK_BYTES].into_boxed_slice();
        if !read_inside(volume, offset_bytes, &mut bytes)? || bytes[0x40..0x48] != *b"_BHRfS_M" {
            return Ok(Err("it has no btrfs superblock"));
        }
        let Some(checksum) = Checksum::of_type(le16(&bytes, 0xc4)) else {
            return Ok(Err("the btrfs superblock has a checksum of an unknown kind"));
        };
        if le64(&bytes, 0x30) != offset_bytes || !checksum.holds(&bytes) {
            return Ok(Err("the btrfs superblock is damaged"));
        }
        let superblock = Self { bytes, checksum };
        let node_bytes = superblock.node_bytes();
        if !node_bytes.is_power_of_two() || !(4096..=65536).contains(&node_bytes) {
            return Ok(Err("the btrfs superblock has an invalid node size"));
        }
        Ok(Ok(superblock))
    }

    fn uuid(&self, at: usize) -> Fsid {
        Fsid(std::array::from_fn(|byte| self.bytes[at + byte]))
    }

    /// Returns the identity under which the kernel registers it.
    pub fn fsid(&self) -> Fsid {
        self.uuid(FSID)
    }

    fn has_metadata_uuid(&self) -> bool {
        self.incompat_flags() & INCOMPAT_METADATA_UUID != 0
    }

    /// Returns the identity that tree blocks and device items bear.
    pub fn metadata_uuid(&self) -> Fsid {
        if self.has_metadata_uuid() {
            self.uuid(METADATA_UUID)
        } else {
            self.fsid()
        }
    }

    /// Returns the fsid in the item of the device itself, which the kernel requires to be the metadata's.
    pub(crate) fn device_fsid(&self) -> Fsid {
        self.uuid(DEVICE + 0x52)
    }

    /// Returns the number of this device in its file system.
    pub fn devid(&self) -> u64 {
        le64(&self.bytes, DEVICE)
    }

    /// Returns the number of devices of the file system.
    pub fn device_count(&self) -> u64 {
        le64(&self.bytes, 0x88)
    }

    /// Returns the transaction in which this superblock was written.
    pub fn generation(&self) -> u64 {
        le64(&self.bytes, 0x48)
    }

    /// Tests for a log of fsyncs that was not replayed.
    pub fn has_log(&self) -> bool {
        le64(&self.bytes, 0x60) != 0
    }

    /// Tests for a seed: a file system that others are built on.
    pub fn is_seed(&self) -> bool {
        le64(&self.bytes, 0x38) & FLAG_SEEDING != 0
    }

    /// Returns address and level of the chunk tree's root.
    pub(crate) fn chunk_root(&self) -> (u64, u8) {
        (le64(&self.bytes, 0x58), self.bytes[0xc7])
    }

    /// Returns the length of a tree block: a power of two from 4 to 64 KiB.
    pub(crate) fn node_bytes(&self) -> u32 {
        le32(&self.bytes, 0x94)
    }

    /// Returns the length of the unit of data and of its checksums.
    pub(crate) fn sector_bytes(&self) -> u32 {
        le32(&self.bytes, 0x90)
    }

    /// Returns the transaction in which the chunk tree's root was written.
    pub(crate) fn chunk_root_generation(&self) -> u64 {
        le64(&self.bytes, 0xa4)
    }

    /// Returns address and level of the root of the tree of trees.
    pub(crate) fn root(&self) -> (u64, u8) {
        (le64(&self.bytes, 0x50), self.bytes[0xc6])
    }

    /// Returns address and level of the root of the log; the address is 0 if there is none.
    pub(crate) fn log_root(&self) -> (u64, u8) {
        (le64(&self.bytes, 0x60), self.bytes[0xc8])
    }

    /// Returns the directory in the tree of trees that names the default subvolume.
    pub(crate) fn root_directory(&self) -> u64 {
        le64(&self.bytes, 0x80)
    }

    /// Returns the features that a reader must know (`BTRFS_FEATURE_INCOMPAT_*`).
    pub(crate) fn incompat_flags(&self) -> u64 {
        le64(&self.bytes, INCOMPAT_FLAGS)
    }

    /// Returns the label; empty if there is none.
    pub(crate) fn label(&self) -> &[u8] {
        let label = &self.bytes[LABEL..LABEL + LABEL_BYTES];
        label.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Returns the algorithm of all checksums of the file system.
    pub(crate) fn checksum(&self) -> Checksum {
        self.checksum
    }

    fn system_chunks(&self) -> &[u8] {
        let len = (le32(&self.bytes, 0xa0) as usize).min(SYSTEM_CHUNKS_BYTES);
        &self.bytes[SYSTEM_CHUNKS..SYSTEM_CHUNKS + len]
    }

    /// Makes a copy of the superblock with the identity that it had before [`patches`] gave it another one.
    fn with_old_fsid(&self, old: Identity) -> Box<[u8]> {
        let mut bytes = self.bytes.clone();
        bytes[FSID..FSID + 16].copy_from_slice(&old.fsid.0);
        if !old.has_metadata_uuid {
            bytes[METADATA_UUID..METADATA_UUID + 16].fill(0);
            let flags = le64(&bytes, INCOMPAT_FLAGS) & !INCOMPAT_METADATA_UUID;
            bytes[INCOMPAT_FLAGS..INCOMPAT_FLAGS + 8].copy_from_slice(&flags.to_le_bytes());
        }
        let checksum = self.checksum.of_block(&bytes);
        bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        bytes
    }

    /// Makes a copy of the superblock with another identity.
    fn with_fsid(&self, fsid: Fsid) -> Box<[u8]> {
        let mut bytes = self.bytes.clone();
        if !self.has_metadata_uuid() {
            let old = self.fsid();
            bytes[METADATA_UUID..METADATA_UUID + 16].copy_from_slice(&old.0);
            let flags = le64(&bytes, INCOMPAT_FLAGS) | INCOMPAT_METADATA_UUID;
            bytes[INCOMPAT_FLAGS..INCOMPAT_FLAGS + 8].copy_from_slice(&flags.to_le_bytes());
        }
        bytes[FSID..FSID + 16].copy_from_slice(&fsid.0);
        let checksum = self.checksum.of_block(&bytes);
        bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        bytes
    }
}

impl fmt::Debug for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Superblock({}, device {})", self.fsid(), self.devid())
    }
}

/// Identity in a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    fsid: Fsid,
    has_metadata_uuid: bool,
}

/// Returns the identity of a device, for [`restore_identity`].
pub fn identity(volume: &dyn Device) -> io::Result<Option<Identity>> {
    let found = Superblock::read(volume)?.ok();
    Ok(found.map(|superblock| Identity {
        fsid: superblock.fsid(),
        has_metadata_uuid: superblock.has_metadata_uuid(),
    }))
}

/// Makes the superblocks of a device that was written under the identity `new` with the one that it had before.
pub fn restore_identity(volume: &dyn Device, new: Fsid, old: Identity) -> io::Result<Vec<Patch>> {
    let mut patches = Vec::new();
    for offset_bytes in SUPERBLOCK_OFFSETS {
        if let Ok(superblock) = Superblock::read_copy(volume, offset_bytes)?
            && superblock.fsid() == new
        {
            patches.push(Patch {
                offset_bytes,
                bytes: superblock.with_old_fsid(old),
            });
        }
    }
    Ok(patches)
}

/// Bytes that replace those of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Offset in the device.
    pub offset_bytes: u64,
    /// The bytes there.
    pub bytes: Box<[u8]>,
}

/// Makes the superblocks of a device with another identity: the first, and its copies. A copy left by another file
/// system stays unchanged.
pub fn patches(volume: &dyn Device, fsid: Fsid) -> io::Result<Vec<Patch>> {
    let mut patches = Vec::new();
    let mut old = None;
    for offset_bytes in SUPERBLOCK_OFFSETS {
        match Superblock::read_copy(volume, offset_bytes)? {
            Ok(superblock) if old.is_none_or(|old| old == superblock.fsid()) => {
                old = Some(superblock.fsid());
                patches.push(Patch {
                    offset_bytes,
                    bytes: superblock.with_fsid(fsid),
                });
            }
            Ok(_) => {}
            // Without the first superblock, nothing can be mounted safely.
            Err(why) if old.is_none() => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
            Err(_) => {}
        }
    }
    Ok(patches)
}

/// Applies patches to bytes that were read at `offset_bytes`.
pub fn apply(patches: &[Patch], offset_bytes: u64, out: &mut [u8]) {
    for patch in patches {
        let (start, end) = (patch.offset_bytes, patch.offset_bytes + patch.bytes.len() as u64);
        let (from, to) = (start.max(offset_bytes), end.min(offset_bytes + out.len() as u64));
        if from < to {
            let len = (to - from) as usize;
            let (at, of) = ((from - offset_bytes) as usize, (from - start) as usize);
            out[at..at + len].copy_from_slice(&patch.bytes[of..of + len]);
        }
    }
}
