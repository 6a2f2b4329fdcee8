//! The sample of skipped blocks that is read all the same.
//!
//! The unchanged blocks are dealt out into groups of equal size, and of each group one block is taken, by a secret
//! number that is new in each run. So the sample is spread over the whole disk, has the size it is meant to have, every
//! block has the same chance, and a guest can't know which blocks it is, neither before nor from the runs before.

use vbk_repo::block::BlockIndex;

use super::{Hint, Unchanged};

/// One of how many skipped blocks is read.
pub const ONE_IN: u64 = 100;
/// At least so many blocks are read; all, if there are fewer.
pub const LEAST: u64 = 16;

/// The blocks that are read.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    unchanged: &'a Unchanged,
    seed: u64,
    /// Blocks in a group.
    group: u64,
}

impl<'a> Sample<'a> {
    /// The sample for a hint.
    pub fn of(hint: &'a Hint) -> Self {
        let enough = hint.unchanged.blocks() / LEAST;
        Self {
            unchanged: &hint.unchanged,
            seed: hint.seed,
            group: hint.audit_one_in.min(enough).max(1),
        }
    }

    /// Number of groups.
    pub fn groups(&self) -> u64 {
        self.unchanged.blocks().div_ceil(self.group)
    }

    /// The block of a group that is read; of the last group, which may be smaller, maybe none.
    pub fn block_of(&self, group: u64) -> Option<BlockIndex> {
        self.unchanged.block_at(group * self.group + self.chosen(group))
    }

    /// Returns whether a block is read.
    pub fn contains(&self, index: BlockIndex) -> bool {
        self.unchanged
            .rank_of(index)
            .is_some_and(|rank| rank % self.group == self.chosen(rank / self.group))
    }

    fn chosen(&self, group: u64) -> u64 {
        mix(mix(self.seed) ^ group) % self.group
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::Collector;
    use super::*;
    use vbk_repo::block::BlockSize;
    use vbk_repo::id::BackupId;

    const MIB: u64 = 1 << 20;

    fn hint(blocks: u64, seed: u64, audit_one_in: u64) -> Hint {
        let mut collector = Collector::new(2 * blocks * MIB, BlockSize::DEFAULT);
        for block in 0..blocks {
            collector.add(2 * block * MIB..(2 * block + 1) * MIB).expect("in order");
        }
        Hint {
            since: BackupId([1; 32]),
            unchanged: collector.finish(),
            seed,
            audit_one_in,
        }
    }

    fn blocks(hint: &Hint) -> Vec<BlockIndex> {
        let sample = Sample::of(hint);
        (0..sample.groups())
            .filter_map(|group| sample.block_of(group))
            .collect()
    }

    #[test]
    fn an_audit_sample_has_the_expected_size_and_contains_its_blocks() {
        for (unchanged, one_in, wanted) in [
            (0, 100, 0..=0),
            (5, 100, 5..=5),
            (100, 100, 16..=17),
            (20_000, 100, 200..=200),
            (20_050, 100, 200..=201),
            (777, 1, 777..=777),
        ] {
            let hint = hint(unchanged, 7, one_in);
            let chosen = blocks(&hint);
            assert!(wanted.contains(&chosen.len()), "{} of {unchanged}", chosen.len());
            let known = (0..2 * unchanged)
                .map(BlockIndex)
                .filter(|&index| Sample::of(&hint).contains(index));
            assert_eq!(known.collect::<Vec<_>>(), chosen);
        }
    }

    #[test]
    fn an_audit_sample_picks_blocks_evenly_and_depends_on_the_seed() {
        let mut chosen = vec![0_u32; 400];
        for seed in 0..2_000 {
            for index in blocks(&hint(400, seed, 10)) {
                chosen[index.0 as usize / 2] += 1;
            }
        }
        // 200 of 2,000 each; a deviation of 70 is five times the usual one.
        assert!(chosen.iter().all(|count| (130..270).contains(count)), "{chosen:?}");
        assert_ne!(blocks(&hint(20_000, 1, 100)), blocks(&hint(20_000, 2, 100)));
    }
}
