//! Seals blocks for the store and opens them again: compresses them, and proves that the opened bytes are the sealed
//! ones.
//!
//! A sealed block is a header and its pages. The header (numbers are little-endian):
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version of this layout: 1 |
//! | 3 | zero |
//! | 4 | plain length of the block in bytes |
//! | per page 32 | the page's hash, see [`crate::block`] |
//! | per page 4 | the page's stored length; the top bit set: stored raw; all zero: the page is zeros and is not stored |
//!
//! A stored page is one zstd frame without a content checksum (the hash is the check), or the plain bytes where zstd
//! gains less than 5 %.
//!
//! A block may be stored as its difference from another one, its base: see `codec/difference.rs`. Its header is the same but
//! for the stored lengths.

mod difference;

mod sealers;

use std::cell::RefCell;

use crate::block::{BlockHashes, Hashing, PAGE_BYTES, PageHash, is_zero, pages_in};
use crate::error::{Error, Result};
use crate::id::BlockId;

pub use self::sealers::Sealers;
pub use difference::Over;
pub(crate) use difference::{make_whole, over_base};

const VERSION: u8 = 1;
const FIXED_BYTES: usize = 8;
const PER_PAGE_BYTES: usize = 36;
const RAW: u32 = 1 << 31;
/// Set in the stored length of a page that is not whole without the same page of the base.
const OVER_BASE: u32 = 1 << 30;
const LENGTH: u32 = !(RAW | OVER_BASE);

/// Compression of new blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression.
    None,
    /// zstd, level 1 (fast) to 19 (small).
    Zstd(i32),
}

impl Default for Compression {
    fn default() -> Self {
        Self::Zstd(3)
    }
}

/// A block as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The block's name.
    pub id: BlockId,
    /// Length of the block's plain bytes.
    pub plain_bytes: u32,
    /// The header, described at the top of this module.
    pub header: Vec<u8>,
    /// The stored pages in order; empty where the page is all zeros, or that of the base.
    pub pages: Vec<Vec<u8>>,
    /// The block that it is stored as a difference from, if so.
    pub base: Option<BlockId>,
}

impl Sealed {
    /// Returns the bytes that the block takes in the store, without the store's own overhead.
    pub fn stored_bytes(&self) -> u64 {
        (self.header.len() + self.pages.iter().map(Vec::len).sum::<usize>()) as u64
    }
}

/// Seals blocks, for one thread at a time: it keeps the compressor's memory. Threads that take turns share [`Sealers`].
pub struct Sealer {
    compression: Compression,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Sealer {
    /// Returns a sealer.
    pub fn new(compression: Compression) -> Result<Self> {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level).map_err(zstd)?),
        };
        Ok(Self {
            compression,
            compressor,
        })
    }

    /// Seals a block; `hashes` must be those of exactly these bytes.
    pub fn seal(&mut self, plain: &[u8], hashes: &BlockHashes) -> Result<Sealed> {
        let plain_bytes = u32::try_from(plain.len()).expect("a block has at most 16 MiB");
        let mut lengths = Vec::with_capacity(hashes.pages.len());
        let mut pages = Vec::with_capacity(hashes.pages.len());
        for page in plain.chunks(PAGE_BYTES) {
            let (stored, flag) = self.seal_page(page)?;
            lengths.push(stored.len() as u32 | flag);
            pages.push(stored);
        }
        Ok(Sealed {
            id: hashes.id,
            plain_bytes,
            header: encode_header(plain_bytes, &hashes.pages, lengths),
            pages,
            base: None,
        })
    }

    fn seal_page(&mut self, page: &[u8]) -> Result<(Vec<u8>, u32)> {
        if is_zero(page) {
            return Ok((Vec::new(), 0));
        }
        if let Some(compressor) = &mut self.compressor {
            let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(page.len()));
            compressor.compress_to_buffer(page, &mut frame).map_err(zstd)?;
            if frame.len() < page.len() - page.len() / 20 {
                // The allocator takes back the end in place: nothing is copied.
                frame.shrink_to_fit();
                return Ok((frame, 0));
            }
        }
        Ok((page.to_vec(), RAW))
    }
}

fn zstd(error: std::io::Error) -> Error {
    Error::Internal {
        doing: "compress a block",
        message: error.to_string(),
    }
}

/// Writes a header; each length has [`RAW`] set if the page is stored as it is, and [`OVER_BASE`] if it needs the base.
fn encode_header(plain_bytes: u32, hashes: &[PageHash], lengths: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let mut header = Vec::with_capacity(FIXED_BYTES + hashes.len() * PER_PAGE_BYTES);
    header.extend([VERSION, 0, 0, 0]);
    header.extend(plain_bytes.to_le_bytes());
    for (hash, length) in hashes.iter().zip(lengths) {
        header.extend(hash.0);
        header.extend(length.to_le_bytes());
    }
    header
}

/// Returns the length that a header claims for itself; `None` if it is cut off.
pub(crate) fn header_bytes(header: &[u8]) -> Option<usize> {
    let stated = header.get(4..FIXED_BYTES)?;
    let plain_bytes = u32::from_le_bytes(stated.try_into().ok()?) as usize;
    Some(full_header_bytes(plain_bytes)).filter(|length| *length <= header.len())
}

/// Returns the length of the header of a block of `plain_bytes` bytes.
pub(crate) fn full_header_bytes(plain_bytes: usize) -> usize {
    FIXED_BYTES + pages_in(plain_bytes) * PER_PAGE_BYTES
}

/// Returns the stored lengths of all pages according to a header that is not proved; `None` if it is cut off.
pub(crate) fn stored_lengths(header: &[u8]) -> Option<Vec<usize>> {
    let table = header.get(FIXED_BYTES..header_bytes(header)?)?;
    let length = |entry: &[u8]| u32::from_le_bytes([entry[32], entry[33], entry[34], entry[35]]) & LENGTH;
    Some(
        table
            .chunks_exact(PER_PAGE_BYTES)
            .map(|entry| length(entry) as usize)
            .collect(),
    )
}

/// A header that was proved against its block's id: each of its page hashes may be trusted.
#[derive(Debug, Clone)]
pub struct Header {
    hashing: Hashing,
    id: BlockId,
    plain_bytes: usize,
    pages: Vec<(PageHash, u32)>,
}

impl Header {
    /// Reads a header and proves that it belongs to the block `id` of `plain_bytes` bytes.
    pub fn prove(hashing: Hashing, id: BlockId, plain_bytes: usize, bytes: &[u8]) -> Result<Self> {
        let damaged = |what: &str| Error::BlockDamaged {
            id,
            what: what.to_owned(),
        };
        let count = pages_in(plain_bytes);
        let (fixed, table) = bytes
            .split_at_checked(FIXED_BYTES)
            .ok_or_else(|| damaged("its header is cut off"))?;
        if fixed[0] != VERSION {
            return Err(damaged("its header has an unknown version"));
        }
        let stated = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        if stated as usize != plain_bytes || table.len() != count * PER_PAGE_BYTES {
            return Err(damaged("its header gives another length"));
        }
        let (hashes, pages): (Vec<_>, Vec<_>) = table
            .chunks_exact(PER_PAGE_BYTES)
            .map(|entry| {
                let mut hash = [0; 32];
                hash.copy_from_slice(&entry[..32]);
                let stored = u32::from_le_bytes([entry[32], entry[33], entry[34], entry[35]]);
                (PageHash(hash), (PageHash(hash), stored))
            })
            .unzip();
        if hashing.merge(&hashes, plain_bytes) != Some(id) {
            return Err(damaged("its header does not match its id"));
        }
        Ok(Self {
            hashing,
            id,
            plain_bytes,
            pages,
        })
    }

    /// Proves all pages, and returns the block as a store with this hashing keeps it. The pages stay compressed as they are.
    pub fn to_sealed(&self, hashing: Hashing, pages: Vec<Vec<u8>>) -> Result<Sealed> {
        let damaged = |what: String| Error::BlockDamaged { id: self.id, what };
        if pages.len() != self.pages.len() {
            return Err(damaged(format!("it has {} of {} pages", pages.len(), self.pages.len())));
        }
        let mut plain = vec![0; PAGE_BYTES];
        let mut hashes = Vec::with_capacity(pages.len());
        for (number, stored) in pages.iter().enumerate() {
            let out = &mut plain[..self.page_len(number)];
            // No store has room for such a page, and none makes one.
            if stored.len() > out.len() {
                return Err(damaged(format!("page {number} is longer than its plain bytes")));
            }
            self.open_page(number, stored, out)?;
            hashes.push(match hashing == self.hashing {
                true => self.pages[number].0,
                false => hashing.page(out, number, pages.len()),
            });
        }
        let plain_bytes = self.plain_bytes as u32;
        let lengths = self.pages.iter().map(|(_, length)| *length);
        Ok(Sealed {
            id: hashing
                .merge(&hashes, self.plain_bytes)
                .ok_or_else(|| damaged("it has no pages".into()))?,
            plain_bytes,
            header: encode_header(plain_bytes, &hashes, lengths),
            pages,
            base: None,
        })
    }

    /// Returns the plain length of page `number`.
    pub fn page_len(&self, number: usize) -> usize {
        self.plain_bytes.saturating_sub(number * PAGE_BYTES).min(PAGE_BYTES)
    }

    /// Opens page `number` into `out`, which must have exactly the page's plain length. Either `out` then holds the
    /// page's true bytes, or an error is returned.
    pub fn open_page(&self, number: usize, stored: &[u8], out: &mut [u8]) -> Result<()> {
        let damaged = |what: String| Error::BlockDamaged {
            id: self.id,
            what: format!("page {number} {what}"),
        };
        let &(hash, length) = self.pages.get(number).ok_or_else(|| damaged("does not exist".into()))?;
        let raw = length & RAW != 0;
        if stored.len() != (length & LENGTH) as usize {
            return Err(damaged(format!(
                "has {} of {} stored bytes",
                stored.len(),
                length & LENGTH
            )));
        }
        if length & OVER_BASE != 0 {
            return Err(damaged("needs the base of its block".into()));
        }
        if length == 0 {
            out.fill(0);
        } else if raw {
            if stored.len() != out.len() {
                return Err(damaged("does not have the expected length".into()));
            }
            out.copy_from_slice(stored);
        } else {
            let len = decompress(stored, out).map_err(|error| damaged(format!("can't be decompressed ({error})")))?;
            if len != out.len() {
                return Err(damaged("is shorter than expected".into()));
            }
        }
        self.prove_page(number, out, hash)
    }

    /// The id does not cover the stored lengths in the header, only the plain bytes; so this comparison is the proof.
    fn prove_page(&self, number: usize, out: &mut [u8], hash: PageHash) -> Result<()> {
        if self.hashing.page(out, number, self.pages.len()) != hash {
            out.fill(0);
            return Err(Error::BlockDamaged {
                id: self.id,
                what: format!("page {number} does not match its hash"),
            });
        }
        Ok(())
    }
}

fn decompress(stored: &[u8], out: &mut [u8]) -> std::io::Result<usize> {
    thread_local! {
        // 150 KB of tables each; made once per thread instead of once per page.
        static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(made) => made,
            None => slot.insert(zstd::bulk::Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(stored, out)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(plain: &[u8], compression: Compression) -> Sealed {
        Sealer::new(compression)
            .and_then(|mut sealer| sealer.seal(plain, &Hashing::Plain.block(plain)))
            .expect("sealing works")
    }

    fn open(sealed: &Sealed) -> Result<Vec<u8>> {
        let len = sealed.plain_bytes as usize;
        let header = Header::prove(Hashing::Plain, sealed.id, len, &sealed.header)?;
        let mut plain = vec![0xEE; len];
        for (number, out) in plain.chunks_mut(PAGE_BYTES).enumerate() {
            assert_eq!(header.page_len(number), out.len());
            header.open_page(number, &sealed.pages[number], out)?;
        }
        Ok(plain)
    }

    /// Returns pages of different kinds in turn: text, noise, zeros.
    fn mixed(len: usize) -> Vec<u8> {
        let mut noise = 1_u32;
        (0..len)
            .map(|i| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match i / PAGE_BYTES % 3 {
                    0 => b"lorem ipsum "[i % 12],
                    1 => (noise >> 24) as u8,
                    _ => 0,
                }
            })
            .collect()
    }

    #[test]
    fn every_length_and_level_opens_to_what_was_sealed() {
        for len in [
            1,
            512,
            PAGE_BYTES - 1,
            PAGE_BYTES,
            PAGE_BYTES + 1,
            1 << 20,
            (1 << 20) - 512,
        ] {
            for compression in [Compression::None, Compression::Zstd(1), Compression::Zstd(19)] {
                let plain = mixed(len);
                assert_eq!(open(&seal(&plain, compression)).expect("opens"), plain);
            }
        }
    }

    #[test]
    fn noise_is_kept_raw_text_small_and_zeros_not_at_all() {
        let sealed = seal(&mixed(3 * PAGE_BYTES), Compression::default());
        assert!(sealed.pages[0].len() < 1024);
        assert_eq!(sealed.pages[1].len(), PAGE_BYTES);
        assert!(sealed.pages[2].is_empty());
    }

    #[test]
    fn a_page_of_another_block_is_never_taken() {
        let (one, other) = (mixed(2 * PAGE_BYTES), vec![7; 2 * PAGE_BYTES]);
        let (mut sealed, stranger) = (seal(&one, Compression::None), seal(&other, Compression::None));
        sealed.pages[0] = stranger.pages[0].clone();
        assert!(matches!(open(&sealed), Err(Error::BlockDamaged { .. })));
        sealed.header = stranger.header;
        assert!(matches!(open(&sealed), Err(Error::BlockDamaged { .. })));
    }

    #[test]
    fn a_block_gets_its_names_of_another_hashing_and_stays_compressed_as_it_is() {
        let keyed = Hashing::Keyed([3; 32]);
        for len in [1, 512, PAGE_BYTES, 3 * PAGE_BYTES, 4 * PAGE_BYTES - 700] {
            let plain = mixed(len);
            let sealed = seal(&plain, Compression::default());
            let header = Header::prove(Hashing::Plain, sealed.id, len, &sealed.header).expect("proves");
            assert_eq!(
                header
                    .to_sealed(Hashing::Plain, sealed.pages.clone())
                    .expect("is whole"),
                sealed
            );
            let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
            let wanted = sealer.seal(&plain, &keyed.block(&plain)).expect("seals");
            assert_eq!(header.to_sealed(keyed, sealed.pages.clone()).expect("is whole"), wanted);
            for hashing in [Hashing::Plain, keyed] {
                let mut damaged = sealed.pages.clone();
                damaged[0][0] ^= 1;
                assert!(header.to_sealed(hashing, damaged).is_err(), "{len} bytes");
                assert!(
                    header.to_sealed(hashing, sealed.pages[1..].to_vec()).is_err(),
                    "{len} bytes"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_flipped_byte_is_found_or_harmless(part in 0..5_usize, place: prop::sample::Index, flip in 1..=255_u8) {
            let plain = mixed(4 * PAGE_BYTES - 700);
            let mut sealed = seal(&plain, Compression::default());
            let bytes = if part == 0 { &mut sealed.header } else { &mut sealed.pages[part - 1] };
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] ^= flip;
            }
            if let Ok(opened) = open(&sealed) {
                prop_assert_eq!(opened, plain);
            }
        }

        #[test]
        fn a_header_of_random_bytes_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), len in 0..200_000_usize) {
            prop_assert!(Header::prove(Hashing::Plain, BlockId([9; 32]), len, &bytes).is_err());
        }
    }
}
