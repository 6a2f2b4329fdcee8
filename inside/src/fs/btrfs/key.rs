//! Keys: the order of all items of a tree (`struct btrfs_key` and the `BTRFS_*_KEY` of linux/btrfs_tree.h).

use crate::btrfs::chunk::KEY_BYTES;
use crate::device::le64;

pub(super) const INODE_ITEM: u8 = 1;
pub(super) const INODE_REF: u8 = 12;
pub(super) const INODE_EXTREF: u8 = 13;
pub(super) const XATTR_ITEM: u8 = 24;
pub(super) const DIR_LOG_INDEX: u8 = 72;
pub(super) const DIR_ITEM: u8 = 84;
pub(super) const DIR_INDEX: u8 = 96;
pub(super) const EXTENT_DATA: u8 = 108;
pub(super) const EXTENT_CSUM: u8 = 128;
pub(super) const ROOT_ITEM: u8 = 132;
pub(super) const ROOT_BACKREF: u8 = 144;
pub(super) const ROOT_REF: u8 = 156;
pub(super) const DEV_ITEM: u8 = 216;

/// Number of the top subvolume (`BTRFS_FS_TREE_OBJECTID`).
pub(super) const TOP_SUBVOLUME: u64 = 5;
/// Number of the tree of data checksums (`BTRFS_CSUM_TREE_OBJECTID`).
pub(super) const CSUM_TREE: u64 = 7;
/// Number of the first inode of a subvolume, which is its top directory (`BTRFS_FIRST_FREE_OBJECTID`).
pub(super) const FIRST_INODE: u64 = 256;
/// Object of all checksums (`BTRFS_EXTENT_CSUM_OBJECTID`, -10).
pub(super) const CSUM_OBJECT: u64 = u64::MAX - 9;
/// Object of the roots in the log (`BTRFS_TREE_LOG_OBJECTID`, -6).
pub(super) const LOG_OBJECT: u64 = u64::MAX - 5;

/// Key of an item. The order is that of the trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) const FIRST: Key = Key::new(0, 0, 0);
    pub(super) const LAST: Key = Key::new(u64::MAX, u8::MAX, u64::MAX);

    pub(super) const fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    /// Parses a key (`struct btrfs_disk_key`).
    pub(super) fn parse(bytes: &[u8; KEY_BYTES]) -> Self {
        Self::new(le64(bytes, 0), bytes[8], le64(bytes, 9))
    }

    /// Tests for the same object and kind.
    pub(super) fn is_beside(self, other: Key) -> bool {
        self.object == other.object && self.kind == other.kind
    }
}

/// Computes the hash of a name in the keys of directory entries and attributes (`btrfs_name_hash`, fs/btrfs/ctree.h):
/// CRC-32C that starts with -2 and is not inverted at the end.
pub(super) fn name_hash(name: &[u8]) -> u64 {
    // The crate inverts at both ends.
    u64::from(!crc32c::crc32c_append(1, name))
}
