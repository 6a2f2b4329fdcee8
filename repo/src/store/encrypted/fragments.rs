//! How the pages of an encrypted block lie in its parts, so that the parts' lengths say next to nothing of the pages.
//!
//! A page compresses to a length of its own, and a sequence of sixteen such lengths tells a known MiB from all others. So
//! the pages, as they are stored, lie end to end; zeros fill them up to a multiple of [`UNIT_BYTES`] for each page of the
//! block; and that is cut into as many fragments of one length as the block has pages. Each fragment is sealed as one
//! part. Who has no key sees one number for a block: sixteen are possible with blocks of 1 MiB. A page of zeros, of which
//! nothing is stored, can't be told from others.
//!
//! The header has the lengths of the pages, so it says in which fragments a page lies: in one to three, most often.

use std::ops::Range;

use crate::block::PAGE_BYTES;
use crate::codec::stored_lengths;

/// Fragments have a multiple of this many bytes. Half of it is what a page costs on average; with less there would be more
/// lengths to tell blocks apart by (`repo/examples/seen_lengths.rs` measures both).
pub(super) const UNIT_BYTES: usize = 4096;

/// Cuts a block's stored pages into fragments, as many as there are pages. A block has a page or more.
pub(super) fn cut(pages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut all = pages.concat();
    let fragment_bytes = fragment_bytes(all.len(), pages.len());
    all.resize(fragment_bytes * pages.len(), 0);
    all.chunks_exact(fragment_bytes.max(1)).map(<[u8]>::to_vec).collect()
}

/// Length of each of `count` fragments that hold `total_bytes`.
pub(super) fn fragment_bytes(total_bytes: usize, count: usize) -> usize {
    let of_each = UNIT_BYTES * count.max(1);
    total_bytes.div_ceil(of_each).max(1) * UNIT_BYTES
}

/// Where the pages of one block lie.
pub(super) struct Layout {
    /// Where each page begins, and where the last one ends.
    bounds: Vec<usize>,
    fragment_bytes: usize,
}

impl Layout {
    /// Reads the lengths in a header. `None` if it is not one.
    pub fn of(header: &[u8]) -> Option<Self> {
        let mut bounds = vec![0];
        for length in stored_lengths(header)? {
            if length > PAGE_BYTES {
                return None;
            }
            bounds.push(bounds.last()? + length);
        }
        let fragment_bytes = fragment_bytes(*bounds.last()?, bounds.len() - 1);
        Some(Self { bounds, fragment_bytes })
    }

    /// The fragments that pages lie in; empty if nothing is stored of the pages. `None` if the block has fewer pages.
    pub fn fragments(&self, pages: &Range<usize>) -> Option<Range<usize>> {
        let (start, end) = (*self.bounds.get(pages.start)?, *self.bounds.get(pages.end)?);
        Some(match start < end {
            true => start / self.fragment_bytes..end.div_ceil(self.fragment_bytes),
            false => 0..0,
        })
    }

    /// The stored bytes of a page, out of the plain fragments from number `first` on. `None` if they do not hold it.
    pub fn page(&self, number: usize, first: usize, fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
        let (mut start, end) = (*self.bounds.get(number)?, *self.bounds.get(number + 1)?);
        let mut page = Vec::with_capacity(end - start);
        while start < end {
            let fragment = fragments.get((start / self.fragment_bytes).checked_sub(first)?)?;
            if fragment.len() != self.fragment_bytes {
                return None;
            }
            let within = start % self.fragment_bytes;
            let part = &fragment[within..(within + end - start).min(self.fragment_bytes)];
            page.extend_from_slice(part);
            start += part.len();
        }
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;
    use crate::codec::{Compression, Sealed, Sealer};
    use proptest::prelude::*;

    /// A block whose pages are of these kinds: zeros, text, noise.
    fn block(kinds: &[u8], seed: u32) -> Sealed {
        let mut noise = seed | 1;
        let plain: Vec<u8> = kinds
            .iter()
            .flat_map(|kind| {
                let next = |at: usize| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    match kind {
                        0 => 0,
                        1 => b"lorem ipsum "[at % 12] ^ u8::from(noise > 4_250_000_000),
                        _ => (noise >> 24) as u8,
                    }
                };
                (0..PAGE_BYTES).map(next).collect::<Vec<_>>()
            })
            .collect();
        let mut sealer = Sealer::new(Compression::default()).expect("works");
        sealer.seal(&plain, &Hashing::Plain.block(&plain)).expect("seals")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn every_range_of_pages_comes_out_of_its_fragments(
            kinds in prop::collection::vec(0..3_u8, 1..17),
            seed in any::<u32>(),
            places in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let sealed = block(&kinds, seed);
            let fragments = cut(&sealed.pages);
            prop_assert_eq!(fragments.len(), kinds.len());
            let length = fragments[0].len();
            prop_assert!(length % UNIT_BYTES == 0 && (UNIT_BYTES..=PAGE_BYTES).contains(&length));
            prop_assert!(fragments.iter().all(|fragment| fragment.len() == length));
            let layout = Layout::of(&sealed.header).expect("a header");
            let (one, other) = (places.0.index(kinds.len() + 1), places.1.index(kinds.len() + 1));
            let pages = one.min(other)..one.max(other);
            let needed = layout.fragments(&pages).expect("the block has them");
            for number in pages {
                let page = layout.page(number, needed.start, &fragments[needed.clone()]);
                prop_assert_eq!(page.as_ref(), Some(&sealed.pages[number]));
            }
        }
    }

    #[test]
    fn blocks_that_differ_in_their_pages_have_the_same_lengths() {
        let lengths = |kinds: &[u8]| -> Vec<usize> { cut(&block(kinds, 7).pages).iter().map(Vec::len).collect() };
        let one = lengths(&[2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(one, lengths(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1]));
        assert_eq!(one, [2 * UNIT_BYTES; 16]);
    }

    #[test]
    fn pages_that_a_block_does_not_have_are_not_found() {
        let sealed = block(&[1, 2], 3);
        let layout = Layout::of(&sealed.header).expect("a header");
        let fragments = cut(&sealed.pages);
        assert_eq!(layout.fragments(&(0..3)), None);
        assert_eq!(layout.page(2, 0, &fragments), None);
        assert_eq!(layout.page(1, 0, &fragments[..1]), None);
        assert_eq!(layout.page(0, 1, &fragments), None);
        assert!(Layout::of(&sealed.header[..sealed.header.len() - 1]).is_none());
        assert!(Layout::of(&[]).is_none());
    }
}
