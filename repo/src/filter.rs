//! A set of block ids that may take some others for members: a Bloom filter, blocked so that each question costs one line of
//! the processor's cache (Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007).

use crate::id::BlockId;

/// Memory for each id.
const BITS_PER_ID: u64 = 12;
/// The least memory, so that small sets are as good as exact.
const MIN_LINES: u64 = (1 << 20) / 64;
const LINE_BITS: u64 = 512;
/// Bits that are set for an id, each named by 9 bits of it.
const PROBES: u32 = 7;

/// Takes one in 170 for a member that is not, when as full as it was made for, and next to none below 100,000 ids.
pub(crate) struct Filter(Vec<[u64; 8]>);

impl Filter {
    /// For so many ids.
    pub(crate) fn for_ids(count: u64) -> Self {
        let lines = (count * BITS_PER_ID).div_ceil(LINE_BITS).max(MIN_LINES);
        Self(vec![[0; 8]; lines as usize])
    }

    /// Adds an id; `false` if it was, or seemed to be, there.
    pub(crate) fn insert(&mut self, id: &BlockId) -> bool {
        let (line, mask) = self.position(id);
        let line = &mut self.0[line];
        let new = !covers(line, &mask);
        line.iter_mut().zip(mask).for_each(|(word, mask)| *word |= mask);
        new
    }

    /// Whether an id is in the set, or seems to be.
    pub(crate) fn contains(&self, id: &BlockId) -> bool {
        let (line, mask) = self.position(id);
        covers(&self.0[line], &mask)
    }

    /// An id is a hash, so its bytes serve as they are.
    fn position(&self, id: &BlockId) -> (usize, [u64; 8]) {
        let word = |at: usize| u64::from_le_bytes(id.0[at..at + 8].try_into().expect("eight bytes"));
        let line = (u128::from(word(0)) * self.0.len() as u128) >> 64;
        let mut mask = [0; 8];
        for probe in 0..PROBES {
            let bit = (word(8) >> (9 * probe)) % LINE_BITS;
            mask[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        (line as usize, mask)
    }
}

fn covers(line: &[u64; 8], mask: &[u64; 8]) -> bool {
    line.iter().zip(mask).all(|(word, mask)| word & mask == *mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;

    fn id(number: u32) -> BlockId {
        BlockId(Hashing::Plain.content(&number.to_le_bytes()))
    }

    #[test]
    fn members_are_found_and_few_others() {
        let count = 200_000;
        for (size, most_wrong) in [(count, 0.01), (10 * count, 0.000_01)] {
            let mut filter = Filter::for_ids(u64::from(size));
            let new = (0..count).filter(|number| filter.insert(&id(*number))).count();
            assert!(new as f64 >= f64::from(count) * (1.0 - most_wrong), "{new}");
            assert!((0..count).all(|number| filter.contains(&id(number))));
            assert!((0..count).all(|number| !filter.insert(&id(number))));
            let wrong = (count..2 * count)
                .filter(|number| filter.contains(&id(*number)))
                .count();
            assert!(wrong as f64 <= f64::from(count) * most_wrong, "{wrong}");
        }
    }
}
