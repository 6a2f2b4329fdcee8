//! Runs of blocks: how many a worker reads or asks the store for at once, and how many workers there are.
//!
//! Backups, restores and verifications share this rule, so that none takes more memory than the others.

use crate::block::BlockSize;
use crate::store::Distance;

/// Bytes of a run; at least one block.
const RUN_BYTES: usize = 4 << 20;
/// Memory of all workers together; with large blocks there are fewer workers.
const NEAR_BYTES: usize = 64 << 20;
/// The same where the store is far: a worker that asks it waits for a round trip. At 100 ms these move 640 MB/s at most.
const FAR_BYTES: usize = 128 << 20;

/// The runs of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runs {
    /// Blocks in a run.
    pub blocks: usize,
    /// Number of workers.
    pub workers: usize,
}

impl Runs {
    /// Plans a job that keeps `near` workers busy where the store is near. From a far store most workers wait, so there are as
    /// many as the memory allows.
    pub fn new(block_size: BlockSize, distance: Distance, near: usize) -> Self {
        let blocks = (RUN_BYTES / block_size.bytes()).max(1);
        // Plain bytes and, at worst, as much sealed.
        let most = |bytes| bytes / (2 * blocks * block_size.bytes());
        let workers = match distance {
            Distance::Near => near.clamp(1, most(NEAR_BYTES)),
            Distance::Far => most(FAR_BYTES),
        };
        Self { blocks, workers }
    }

    /// The same with single blocks where the store is near: a call costs nothing there, and the same memory keeps four times as many
    /// reads and processors busy.
    pub fn of_single_blocks(block_size: BlockSize, distance: Distance, near: usize) -> Self {
        match distance {
            Distance::Near => Self {
                blocks: 1,
                workers: near.clamp(1, NEAR_BYTES / (2 * block_size.bytes())),
            },
            Distance::Far => Self::new(block_size, distance, near),
        }
    }

    /// The same for a disk of so many blocks, which may need fewer workers.
    pub fn of(self, blocks: u64) -> Self {
        let runs = usize::try_from(blocks.div_ceil(self.blocks as u64)).unwrap_or(usize::MAX);
        Self {
            workers: self.workers.min(runs).max(1),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_job_takes_more_than_its_memory_or_has_less_than_a_worker() {
        for block_size in [BlockSize::MIN, BlockSize::DEFAULT, BlockSize::MAX] {
            for (distance, most) in [(Distance::Near, NEAR_BYTES), (Distance::Far, FAR_BYTES)] {
                for near in [0, 1, 4, 1000] {
                    for plan in [Runs::new, Runs::of_single_blocks] {
                        let Runs { blocks, workers } = plan(block_size, distance, near);
                        assert!(blocks >= 1 && workers >= 1);
                        assert!(2 * workers * blocks * block_size.bytes() <= most);
                    }
                }
            }
        }
        assert_eq!(
            Runs::new(BlockSize::DEFAULT, Distance::Near, 4),
            Runs { blocks: 4, workers: 4 }
        );
        let far = Runs::new(BlockSize::DEFAULT, Distance::Far, 4);
        assert_eq!(far.workers, 16);
        assert_eq!([0, 1, 5, 1 << 40].map(|blocks| far.of(blocks).workers), [1, 1, 2, 16]);
    }
}
