//! Blocks that are stored as their difference from another block of the same length, the base.
//!
//! | page | as it is stored |
//! |---|---|
//! | zeros | not at all, as in every block |
//! | the page of the base with the same number | not at all; its stored length in the header is 0, with [`OVER_BASE`] set |
//! | similar to that page | a zstd frame that has that page as its prefix; [`OVER_BASE`] is set in its length |
//! | other | as in every block |
//!
//! The hashes in the header, and so the block's id, are those of the plain bytes. So a page that came out of a difference is
//! proved like any other, and a wrong base is noticed.
//!
//! The base is named beside the header, where those who have no key can read it. Memory: the base's pages that are needed.

use std::ops::Range;

use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_error_name};

use super::{
    Compression, FIXED_BYTES, Header, LENGTH, OVER_BASE, PER_PAGE_BYTES, RAW, Sealed, Sealer, encode_header,
    header_bytes, zstd as failed,
};
use crate::block::{BlockHashes, BlockSize, Hashing, PAGE_BYTES, is_zero};
use crate::error::{Error, Result};
use crate::id::BlockId;

/// A base: its proved header, and some of its pages.
pub struct Over {
    header: Header,
    /// Number of the first of `pages`.
    first: usize,
    /// Plain bytes.
    pages: Vec<Vec<u8>>,
}

impl Over {
    /// Proves the header of a block and those of its pages that were read, from number `first` on. They must be whole.
    pub fn open(hashing: Hashing, id: BlockId, header: &[u8], first: usize, stored: &[Vec<u8>]) -> Result<Self> {
        let plain_bytes = stated_bytes(header);
        if plain_bytes > BlockSize::MAX.bytes() {
            return Err(damaged(id, "its header gives another length".into()));
        }
        let header = Header::prove(hashing, id, plain_bytes, header)?;
        let open = |(number, stored): (usize, &Vec<u8>)| {
            let mut plain = vec![0; header.page_len(number)];
            header.open_page(number, stored, &mut plain)?;
            Ok(plain)
        };
        let pages = (first..).zip(stored).map(open).collect::<Result<_>>()?;
        Ok(Self { header, first, pages })
    }

    /// The numbers of the pages that another block does not have in common with this one, and those between; `None` if the blocks
    /// have other lengths.
    pub fn differing(&self, plain_bytes: usize, hashes: &BlockHashes) -> Option<Range<usize>> {
        if plain_bytes != self.header.plain_bytes {
            return None;
        }
        let pages = self.header.pages.iter().zip(&hashes.pages);
        let mut differing = pages.enumerate().filter(|(_, ((base, _), page))| base != *page);
        let first = differing.next().map_or(0, |(number, _)| number);
        let last = differing.next_back().map_or(first, |(number, _)| number);
        Some(first..last + 1)
    }

    fn page(&self, number: usize) -> Option<&[u8]> {
        let page = self.pages.get(number.checked_sub(self.first)?)?;
        Some(page)
    }

    /// Stored bytes of a page.
    fn stored_bytes(&self, number: usize) -> usize {
        self.header
            .pages
            .get(number)
            .map_or(0, |(_, length)| (length & LENGTH) as usize)
    }
}

fn damaged(id: BlockId, what: String) -> Error {
    Error::BlockDamaged { id, what }
}

impl Sealer {
    /// Seals a block as its difference from `over`, which must have the pages of [`Over::differing`]; `None` if that saves little,
    /// where blocks take room in steps of `step_bytes`: then it had better not depend on another block.
    pub fn seal_over(
        &mut self,
        plain: &[u8],
        hashes: &BlockHashes,
        over: &Over,
        step_bytes: usize,
    ) -> Result<Option<Sealed>> {
        let plain_bytes = u32::try_from(plain.len()).expect("a block has at most 16 MiB");
        if plain.len() != over.header.plain_bytes {
            return Ok(None);
        }
        let mut compressor = self.over_compressor()?;
        let (mut lengths, mut pages) = (Vec::new(), Vec::new());
        let (mut bytes, mut whole_bytes) = (0, 0);
        for (number, page) in plain.chunks(PAGE_BYTES).enumerate() {
            let is_same = over.header.pages.get(number).map(|(hash, _)| hash) == hashes.pages.get(number);
            let (stored, flags) = if is_same && !is_zero(page) {
                whole_bytes += over.stored_bytes(number);
                (Vec::new(), OVER_BASE)
            } else {
                let (alone, flags) = self.seal_page(page)?;
                whole_bytes += alone.len();
                match (&mut compressor, over.page(number)) {
                    (Some(compressor), Some(base)) if !alone.is_empty() => {
                        let frame = compress_over(compressor, page, base)?;
                        match frame.len() + frame.len() / 8 < alone.len() {
                            true => (frame, OVER_BASE),
                            false => (alone, flags),
                        }
                    }
                    _ => (alone, flags),
                }
            };
            bytes += stored.len();
            lengths.push(stored.len() as u32 | flags);
            pages.push(stored);
        }
        // Pages of the base are kept for this block alone one day.
        let [bytes, whole_bytes] = [bytes, whole_bytes].map(|bytes: usize| bytes.max(1).next_multiple_of(step_bytes));
        if bytes * 8 > whole_bytes * 7 {
            return Ok(None);
        }
        Ok(Some(Sealed {
            id: hashes.id,
            plain_bytes,
            header: encode_header(plain_bytes, &hashes.pages, lengths),
            pages,
            base: Some(over.header.id),
        }))
    }

    /// Returns a compressor for pages that have a prefix, which it borrows: so it can't be kept.
    fn over_compressor<'a>(&self) -> Result<Option<CCtx<'a>>> {
        let Compression::Zstd(level) = self.compression else {
            return Ok(None);
        };
        let mut compressor = CCtx::try_create().ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        compressor
            .set_parameter(CParameter::CompressionLevel(level))
            .map_err(|code| failed(std::io::Error::other(get_error_name(code))))?;
        Ok(Some(compressor))
    }
}

fn compress_over<'a>(compressor: &mut CCtx<'a>, page: &[u8], base: &'a [u8]) -> Result<Vec<u8>> {
    let error = |code| failed(std::io::Error::other(get_error_name(code)));
    let mut frame = Vec::with_capacity(compress_bound(page.len()));
    compressor.ref_prefix(base).map_err(error)?;
    compressor.compress2(&mut frame, page).map_err(error)?;
    frame.shrink_to_fit();
    Ok(frame)
}

/// Returns the numbers of those of a block's `pages` that need its base, and of those between; `None` if none does. The header is
/// not proved.
pub(crate) fn over_base(header: &[u8], pages: &Range<usize>) -> Option<Range<usize>> {
    let needs = |number: &usize| length_of(header, *number).is_some_and(|length| length & OVER_BASE != 0);
    let mut needing = pages.clone().filter(needs);
    let first = needing.next()?;
    Some(first..needing.next_back().unwrap_or(first) + 1)
}

/// Makes the pages of a difference whole, from number `first` on, with those of its base that [`over_base`] says: raw, or as `sealer`
/// seals them. The header then says so. Nothing of the block is proved.
pub(crate) fn make_whole(
    id: BlockId,
    header: &mut [u8],
    first: usize,
    pages: &mut [Vec<u8>],
    over: &Over,
    mut sealer: Option<&mut Sealer>,
) -> Result<()> {
    let mut decompressor = DCtx::try_create().ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
    for (number, stored) in (first..).zip(pages) {
        let Some(length) = length_of(header, number).filter(|length| length & OVER_BASE != 0) else {
            continue;
        };
        let plain = plain_page(
            header,
            number,
            (length & LENGTH) as usize,
            stored,
            over,
            &mut decompressor,
        );
        let plain = plain.map_err(|what| damaged(id, format!("page {number} {what}")))?;
        let (whole, flag) = match &mut sealer {
            Some(sealer) => sealer.seal_page(&plain)?,
            None => (plain, RAW),
        };
        let at = FIXED_BYTES + number * PER_PAGE_BYTES + 32;
        header[at..at + 4].copy_from_slice(&(whole.len() as u32 | flag).to_le_bytes());
        *stored = whole;
    }
    Ok(())
}

/// Returns the plain bytes of a page that needs the base; the error is what is wrong with it.
fn plain_page<'a>(
    header: &[u8],
    number: usize,
    length: usize,
    stored: &[u8],
    over: &'a Over,
    decompressor: &mut DCtx<'a>,
) -> std::result::Result<Vec<u8>, String> {
    let base = over.page(number);
    let base = base.filter(|base| over.header.plain_bytes == stated_bytes(header) && !base.is_empty());
    let base = base.ok_or("has a base of another length")?;
    // The hash is that of the plain bytes, and does not bound what may be stored.
    if stored.len() != length || length > base.len() {
        return Err("does not have the expected length".into());
    }
    if length == 0 {
        return Ok(base.to_vec());
    }
    let mut plain = vec![0; base.len()];
    let opened = decompressor
        .ref_prefix(base)
        .and_then(|_| decompressor.decompress(&mut plain[..], stored));
    match opened {
        Ok(len) if len == base.len() => Ok(plain),
        Ok(_) => Err("is shorter than expected".into()),
        Err(code) => Err(format!("can't be decompressed ({})", get_error_name(code))),
    }
}

/// Returns the plain length that a header gives for its block; 0 if it is cut off.
fn stated_bytes(header: &[u8]) -> usize {
    let stated = header.get(4..FIXED_BYTES).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(stated.unwrap_or_default()) as usize
}

/// Returns the stored length of a page with its flags; `None` if the header is cut off, or has no such page.
fn length_of(header: &[u8], number: usize) -> Option<u32> {
    let table = header.get(FIXED_BYTES..header_bytes(header)?)?;
    let entry = table.chunks_exact(PER_PAGE_BYTES).nth(number)?;
    entry.last_chunk().map(|length| u32::from_le_bytes(*length))
}

#[cfg(test)]
mod tests;
