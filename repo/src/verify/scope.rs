//! The blocks that one verification reads: all of them, a random sample, or the parts of a rotation that are due.

use jiff::Timestamp;

use crate::id::BlockId;
use crate::state::{PartRead, Rotation};

/// Largest number of parts of a rotation: a year of nightly runs.
pub const MAX_PARTS: usize = 366;

/// Blocks that a verification reads. Manifests are always read in full.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Scope {
    /// All blocks.
    #[default]
    All,
    /// A random share of the blocks.
    Sample {
        /// The share; 1 is all.
        share: f64,
        /// An odd number that decides which blocks are in the sample.
        seed: u64,
    },
    /// Parts of a rotation.
    Parts {
        /// The rotation.
        rotation: Rotation,
        /// Numbers of the parts to read now.
        due: Vec<usize>,
    },
}

impl Scope {
    /// Returns a random share of the blocks, a different one at a different time.
    pub fn sample(share: f64, now: Timestamp) -> Self {
        Self::Sample {
            share,
            seed: now.as_nanosecond() as u64 | 1,
        }
    }

    /// Returns the due parts of a rotation through `parts` parts.
    pub fn rotation(mut rotation: Rotation, parts: usize, now: Timestamp) -> Self {
        let due = rotation.due(parts, now);
        Self::Parts { rotation, due }
    }

    /// Returns whether a block is read.
    pub fn contains(&self, id: BlockId) -> bool {
        match self {
            Self::All => true,
            Self::Sample { share, seed } => {
                let mixed = start_of(id).wrapping_mul(*seed);
                ((mixed >> 11) as f64) < *share * (1_u64 << 53) as f64
            }
            Self::Parts { rotation, due } => due.contains(&part_of(id, rotation.parts.len())),
        }
    }

    /// Returns the expected share of all blocks.
    pub fn share(&self) -> f64 {
        match self {
            Self::All => 1.0,
            Self::Sample { share, .. } => *share,
            Self::Parts { rotation, due } => due.len() as f64 / rotation.parts.len() as f64,
        }
    }

    /// Records in the rotation that its due parts were read.
    pub fn set_read(&mut self, read: PartRead) {
        if let Self::Parts { rotation, due } = self {
            due.iter().for_each(|&part| rotation.parts[part] = Some(read));
        }
    }
}

/// Returns the part that a block belongs to, of `parts` equal parts of all blocks.
fn part_of(id: BlockId, parts: usize) -> usize {
    ((u128::from(start_of(id)) * parts as u128) >> 64) as usize
}

/// Returns the first bytes of an id as a number. Ids are hashes, so these numbers are evenly spread.
fn start_of(id: BlockId) -> u64 {
    id.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_belongs_to_the_last_part() {
        assert_eq!(part_of(BlockId([0xFF; 32]), 7), 6);
        assert_eq!(part_of(BlockId([0; 32]), 7), 0);
    }

    #[test]
    fn a_sample_has_about_its_share_and_changes_with_time() {
        let ids: Vec<_> = (0..10_000_u32)
            .map(|number| BlockId(crate::block::Hashing::Plain.content(&number.to_le_bytes())))
            .collect();
        let sample = |nanos| {
            let scope = Scope::sample(0.1, Timestamp::from_nanosecond(nanos).expect("a time"));
            ids.iter().map(|id| scope.contains(*id)).collect::<Vec<_>>()
        };
        let (one, two) = (sample(1_795_000_000_123_456_789), sample(1_795_000_000_987_654_321));
        let count = one.iter().filter(|is_in| **is_in).count();
        assert!((800..1200).contains(&count), "{count}");
        assert_ne!(one, two);
    }
}
