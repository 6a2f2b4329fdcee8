//! Hides the compressed sizes of a block's pages: all stored rows have one length, and their number is padded.
//!
//! The stored pages of a block are one stream. It is filled with zeros up to a multiple of [`STEP_BYTES`] and cut into
//! rows of [`ROW_BYTES`]. An observer of the rows learns the number of steps, which for a block of 1 MiB is one of 16.
//! Pages of zeros add nothing to the stream, so they are not visible either. A page lies in one row or in two or three
//! adjacent ones; the lengths in the block's header, which is sealed, say in which.
//!
//! The alternative of one padded row per page was measured as well (`examples/lengths.rs`): the 16 lengths of a block
//! identify most blocks even if only 4 different lengths exist.

use std::ops::Range;

use crate::block::PAGE_BYTES;
use crate::cipher::TAG_BYTES;
use crate::codec::stored_lengths;

/// Plain bytes of a row.
pub const ROW_BYTES: usize = 32 << 10;

/// Unit of a block's rows: their plain bytes are a multiple of this.
pub const STEP_BYTES: usize = 64 << 10;

/// Returns the plain bytes of the rows of a block with this many bytes of stored pages.
pub fn padded(stored_bytes: usize) -> usize {
    stored_bytes.max(1).next_multiple_of(STEP_BYTES)
}

/// Returns the largest number of rows that the first `pages` pages of a block can take: that of pages that were not
/// compressed.
pub(super) fn most_rows(pages: usize) -> usize {
    padded(pages * PAGE_BYTES) / ROW_BYTES
}

/// Lays stored pages out in rows.
pub(super) fn lay_out(pages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut stream = pages.concat();
    stream.resize(padded(stream.len()), 0);
    let row = |bytes: &[u8]| {
        // Includes room for the tag; otherwise sealing copies the row.
        let mut row = Vec::with_capacity(ROW_BYTES + TAG_BYTES);
        row.extend(bytes);
        row
    };
    stream.chunks(ROW_BYTES).map(row).collect()
}

/// Positions of a block's pages in its rows.
pub(super) struct Layout {
    /// Start of each page in the stream, and the end of the last.
    starts: Vec<usize>,
}

impl Layout {
    /// Reads the lengths in a block's header; `None` if it is cut off.
    pub(super) fn of(header: &[u8]) -> Option<Self> {
        let mut starts = vec![0_usize];
        for length in stored_lengths(header)? {
            starts.push(starts[starts.len() - 1].checked_add(length)?);
        }
        Some(Self { starts })
    }

    /// Returns the rows that contain pages. With the last page it includes the rows that are only padding, so that
    /// reading all pages proves all rows.
    pub(super) fn rows(&self, pages: &Range<usize>) -> Range<usize> {
        let (start, end) = (self.start(pages.start), self.start(pages.end));
        let end = match pages.end + 1 >= self.starts.len() && !pages.is_empty() {
            true => padded(end),
            false if start == end => return 0..0,
            false => end,
        };
        start / ROW_BYTES..end.div_ceil(ROW_BYTES)
    }

    /// Cuts pages out of the rows from number `first` on; `None` if the rows are too short or their padding is not
    /// zero.
    pub(super) fn cut(&self, pages: &Range<usize>, first: usize, rows: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        let stream = rows.concat();
        let offset = first * ROW_BYTES;
        let end = self.starts[self.starts.len() - 1];
        let padding = stream.get(end.saturating_sub(offset)..).unwrap_or_default();
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        let page = |number| {
            let (start, end) = (self.start(number), self.start(number + 1));
            match start == end {
                true => Some(Vec::new()),
                false => Some(stream.get(start.checked_sub(offset)?..end - offset)?.to_vec()),
            }
        };
        pages.clone().map(page).collect()
    }

    fn start(&self, page: usize) -> usize {
        self.starts[page.min(self.starts.len() - 1)]
    }
}

/// Returns bytes with their length (u32, little-endian) before them and zeros after them, up to a multiple of `unit`.
pub(super) fn pad(bytes: &[u8], unit: usize) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("nothing that is padded has 4 GiB");
    let mut padded = Vec::with_capacity(4 + bytes.len() + unit);
    padded.extend(length.to_le_bytes());
    padded.extend(bytes);
    padded.resize(padded.len().next_multiple_of(unit), 0);
    padded
}

/// Removes the padding; `None` if it differs from what [`pad`] writes.
pub(super) fn unpad(padded: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = padded.split_first_chunk()?;
    let (bytes, zeros) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    zeros.iter().all(|byte| *byte == 0).then(|| bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Hashing, PAGE_BYTES};
    use crate::codec::{Compression, Sealer};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn pages_come_out_as_they_went_in(
            kinds in prop::collection::vec((0..3_u8, 1..PAGE_BYTES), 1..17),
            first in 0..17_usize,
            count in 0..17_usize,
        ) {
            let mut plain = vec![0; kinds.len() * PAGE_BYTES];
            for (page, (kind, length)) in plain.chunks_mut(PAGE_BYTES).zip(&kinds) {
                let noise = crate::tests::testing::mixed_bytes(*length as u32, *length);
                match kind {
                    0 => {}
                    1 => page[..*length].copy_from_slice(&noise),
                    _ => page.fill(7),
                }
            }
            let sealed = Sealer::new(Compression::default())?.seal(&plain, &Hashing::Plain.block(&plain))?;
            let rows = lay_out(&sealed.pages);
            prop_assert!(rows.iter().all(|row| row.len() == ROW_BYTES));
            prop_assert_eq!(rows.len() * ROW_BYTES % STEP_BYTES, 0);
            let layout = Layout::of(&sealed.header).expect("whole");
            prop_assert_eq!(layout.rows(&(0..kinds.len())), 0..rows.len());
            let pages = first.min(kinds.len())..(first + count).min(kinds.len());
            let needed = layout.rows(&pages);
            let cut = layout.cut(&pages, needed.start, &rows[needed.clone()]).expect("cuts");
            prop_assert_eq!(&cut[..], &sealed.pages[pages]);
        }

        #[test]
        fn padding_comes_off_and_is_proved(bytes in prop::collection::vec(any::<u8>(), 0..3000), flip in 1..=255_u8) {
            let mut padded = pad(&bytes, 512);
            prop_assert_eq!(padded.len() % 512, 0);
            prop_assert_eq!(unpad(&padded), Some(bytes.clone()));
            let last = padded.len() - 1;
            if last >= 4 + bytes.len() {
                padded[last] ^= flip;
                prop_assert_eq!(unpad(&padded), None);
            }
        }
    }
}
