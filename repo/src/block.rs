//! Blocks, their names and their pages: the only file that uses BLAKE3.
//!
//! A block's id is the BLAKE3-256 hash of its plain bytes. BLAKE3 is a tree over 1 KiB chunks, so the hash of a block
//! of several pages is computed from one chaining value per 64 KiB page, and those values can be merged to the id
//! without the bytes. A reader that has merged a header's values to the id may therefore trust each value, and can
//! prove a single page. (BLAKE3 specification, section 2.1 and 5.1: <https://github.com/BLAKE3-team/BLAKE3-specs>)

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::BlockId;

/// Bytes of a page: the unit that is compressed, proved and read by itself. The last page of a block may be shorter.
pub const PAGE_BYTES: usize = 64 * 1024;

/// Hash of one page, which depends on the page's position in its block.
///
/// In a block of several pages this is a chaining value, which depends on the page's position; in a block of one page
/// it is the block's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHash(pub [u8; 32]);

/// The number of a block in its image, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockIndex(pub u64);

/// The size of a repository's blocks: a power of two from 64 KiB to 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct BlockSize(u32);

impl BlockSize {
    /// 1 MiB, the default size.
    pub const DEFAULT: Self = Self(1 << 20);
    /// 64 KiB.
    pub const MIN: Self = Self(1 << 16);
    /// 16 MiB.
    pub const MAX: Self = Self(1 << 24);

    /// Checks a size in bytes.
    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(small) if small.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&small) => Ok(Self(small)),
            _ => Err(Error::BadBlockSize {
                given: bytes,
                nearest: Self::nearest(bytes),
            }),
        }
    }

    fn nearest(bytes: u64) -> u32 {
        let inside = bytes.clamp(u64::from(Self::MIN.0), u64::from(Self::MAX.0));
        let above = inside.next_power_of_two();
        let nearest = if above - inside <= inside - above / 2 {
            above
        } else {
            above / 2
        };
        u32::try_from(nearest).unwrap_or(Self::MAX.0)
    }

    /// Returns the size as a length in memory.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Returns the number of blocks of an image of `size_bytes`.
    pub fn blocks_in(self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(u64::from(self.0))
    }

    /// Returns the offset of a block in its image. Saturates, so that an index from outside can't wrap.
    pub fn offset_of(self, index: BlockIndex) -> u64 {
        index.0.saturating_mul(u64::from(self.0))
    }

    /// Returns the plain length of a block in an image of `size_bytes`: shorter for the last one, 0 past the end.
    pub fn len_of(self, index: BlockIndex, size_bytes: u64) -> usize {
        let left = size_bytes.saturating_sub(self.offset_of(index));
        // At most 16 MiB, so the value fits.
        left.min(u64::from(self.0)) as usize
    }

    /// Returns the index of the block that holds the byte at `offset`.
    pub fn index_of(self, offset: u64) -> BlockIndex {
        BlockIndex(offset / u64::from(self.0))
    }
}

impl TryFrom<u64> for BlockSize {
    type Error = Error;
    fn try_from(bytes: u64) -> Result<Self> {
        Self::new(bytes)
    }
}

impl From<BlockSize> for u64 {
    fn from(size: BlockSize) -> Self {
        Self::from(size.0)
    }
}

/// A block's id together with the hashes of its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHashes {
    /// Name of the block.
    pub id: BlockId,
    /// Hashes of the pages, in order.
    pub pages: Vec<PageHash>,
}

/// Function that derives names from content: plain BLAKE3, or keyed BLAKE3 in an encrypted repository, so that without
/// the key it can't be tested whether a known file is in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hashing {
    /// BLAKE3-256.
    Plain,
    /// Keyed BLAKE3-256.
    Keyed([u8; 32]),
}

/// See [`Hashing::hasher`].
pub(crate) type Hasher = blake3::Hasher;

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Keyed(_) => "Keyed",
        })
    }
}

impl Hashing {
    /// Hashes a block once, and returns both its id and the hashes of its pages.
    pub fn block(&self, plain: &[u8]) -> BlockHashes {
        let count = pages_in(plain.len());
        let pages: Vec<_> = plain
            .chunks(PAGE_BYTES)
            .enumerate()
            .map(|(number, page)| self.page(page, number, count))
            .collect();
        let id = self
            .merge(&pages, plain.len())
            .unwrap_or_else(|| BlockId(self.content(plain)));
        BlockHashes { id, pages }
    }

    /// Hashes the page at `number` of a block that has `count` pages.
    pub fn page(&self, page: &[u8], number: usize, count: usize) -> PageHash {
        let mut hasher = self.hasher();
        if count == 1 {
            return PageHash(*hasher.update(page).finalize().as_bytes());
        }
        hasher.set_input_offset((number * PAGE_BYTES) as u64);
        PageHash(hasher.update(page).finalize_non_root())
    }

    /// Returns the id of the block of `len` plain bytes whose pages hash to `pages`; `None` if the number of pages does
    /// not fit.
    pub fn merge(&self, pages: &[PageHash], len: usize) -> Option<BlockId> {
        if pages.is_empty() || pages.len() != pages_in(len) {
            return None;
        }
        if let [only] = pages {
            return Some(BlockId(only.0));
        }
        let (left, right) = split(pages, len);
        let (left, right) = (self.chaining_value(left), self.chaining_value(right));
        Some(BlockId(*merge_subtrees_root(&left, &right, self.mode()).as_bytes()))
    }

    /// Returns the hash under which segments and records are stored.
    pub fn content(&self, bytes: &[u8]) -> [u8; 32] {
        *self.hasher().update(bytes).finalize().as_bytes()
    }

    fn chaining_value(&self, (pages, len): Subtree<'_>) -> [u8; 32] {
        if let [only] = pages {
            return only.0;
        }
        let (left, right) = split(pages, len);
        let (left, right) = (self.chaining_value(left), self.chaining_value(right));
        merge_subtrees_non_root(&left, &right, self.mode())
    }

    /// Returns a hasher that gives the same result as [`Hashing::content`], for content that comes in pieces.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Plain => blake3::Hasher::new(),
            Self::Keyed(key) => blake3::Hasher::new_keyed(key),
        }
    }

    fn mode(&self) -> Mode<'_> {
        match self {
            Self::Plain => Mode::Hash,
            Self::Keyed(key) => Mode::KeyedHash(key),
        }
    }
}

/// Returns the number of pages of a block of `len` plain bytes.
pub fn pages_in(len: usize) -> usize {
    len.div_ceil(PAGE_BYTES)
}

type Subtree<'a> = (&'a [PageHash], usize);

fn split(pages: &[PageHash], len: usize) -> (Subtree<'_>, Subtree<'_>) {
    // The block has more than one page, so the left subtree is a power of two of at least 64 KiB: whole pages.
    let left_len = left_subtree_len(len as u64) as usize;
    let (left, right) = pages.split_at(left_len / PAGE_BYTES);
    ((left, left_len), (right, len - left_len))
}

/// Derives a key for one purpose from another key; `context` names the purpose and is used nowhere else.
pub(crate) fn derive(context: &str, key: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(context, key)
}

/// Returns the keyed BLAKE3-256 of the pieces in sequence.
pub(crate) fn keyed_hash(key: &[u8; 32], pieces: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for piece in pieces {
        hasher.update(piece);
    }
    *hasher.finalize().as_bytes()
}

/// Returns the BLAKE3-256 of the pieces in sequence, in derive-key mode: it is no hash that is made for anything else.
pub(crate) fn purposed_hash<'a>(purpose: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    for piece in pieces {
        hasher.update(piece);
    }
    *hasher.finalize().as_bytes()
}

/// Returns whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // No early exit inside a piece, so that the compiler uses vector registers.
    bytes
        .chunks(1024)
        .all(|piece| piece.iter().fold(0, |seen, byte| seen | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn a_block_is_named_by_plain_blake3_at_every_boundary() {
        let mut lens = vec![1, 1023, 1024, 1025, 2048, 2049];
        for pages in [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 256] {
            let whole = pages * PAGE_BYTES;
            lens.extend([whole - 1024, whole - 1, whole, whole + 1, whole + 1025]);
        }
        for len in lens {
            let plain = bytes(len);
            let key = [7; 32];
            let hashed = [
                (Hashing::Plain, blake3::hash(&plain)),
                (Hashing::Keyed(key), blake3::keyed_hash(&key, &plain)),
            ];
            for (hashing, wanted) in hashed {
                let hashes = hashing.block(&plain);
                assert_eq!(hashes.id.0, *wanted.as_bytes(), "{len} bytes");
                assert_eq!(hashing.merge(&hashes.pages, len), Some(hashes.id), "{len} bytes");
            }
        }
    }

    #[test]
    fn an_empty_block_has_a_name_and_no_pages() {
        let hashes = Hashing::Plain.block(&[]);
        assert_eq!(hashes.id.0, *blake3::hash(&[]).as_bytes());
        assert_eq!(hashes.pages, []);
    }

    #[test]
    fn a_page_in_another_place_has_another_hash() {
        let page = bytes(PAGE_BYTES);
        assert_ne!(Hashing::Plain.page(&page, 0, 2), Hashing::Plain.page(&page, 1, 2));
    }

    #[test]
    fn a_wrong_number_of_pages_never_merges() {
        let hashes = Hashing::Plain.block(&bytes(3 * PAGE_BYTES));
        assert_eq!(Hashing::Plain.merge(&hashes.pages[..2], 3 * PAGE_BYTES), None);
        assert_eq!(Hashing::Plain.merge(&hashes.pages, 2 * PAGE_BYTES), None);
        assert_eq!(Hashing::Plain.merge(&[], 0), None);
    }

    #[test]
    fn a_refused_block_size_names_the_nearest_good_one() {
        let nearest = |bytes| match BlockSize::new(bytes) {
            Err(Error::BadBlockSize { nearest, .. }) => nearest,
            other => panic!("{bytes}: {other:?}"),
        };
        assert_eq!(nearest(100_000), 131_072);
        assert_eq!(nearest(0), 65_536);
        assert_eq!(nearest(u64::MAX), 16 << 20);
        assert_eq!(nearest((1 << 20) + 1), 1 << 20);
        for shift in 16..=24 {
            assert_eq!(BlockSize::new(1 << shift).expect("good").bytes(), 1 << shift);
        }
    }

    #[test]
    fn the_last_block_is_as_long_as_what_is_left() {
        let size = BlockSize::DEFAULT;
        assert_eq!(size.blocks_in(0), 0);
        assert_eq!(size.blocks_in((1 << 20) + 1), 2);
        assert_eq!(size.len_of(BlockIndex(1), (1 << 20) + 512), 512);
        assert_eq!(size.len_of(BlockIndex(2), (1 << 20) + 512), 0);
        assert_eq!(size.len_of(BlockIndex(u64::MAX), u64::MAX), 0);
    }

    #[test]
    fn one_set_bit_anywhere_is_not_zero() {
        for len in [0, 1, 1023, 1024, 5000] {
            assert!(is_zero(&vec![0; len]));
            for place in 0..len {
                let mut bytes = vec![0; len];
                bytes[place] = 1;
                assert!(!is_zero(&bytes));
            }
        }
    }
}
