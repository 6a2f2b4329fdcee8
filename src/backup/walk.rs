//! Hands out a disk to the workers, from its start to its end.

use vbk_repo::block::BlockIndex;
use vbk_repo::manifest::SEGMENT_SLOTS;

use super::DiskCopy;

/// Position of the next worker.
#[derive(Default)]
pub(super) struct Walk {
    next: u64,
    /// End of the data range that contains `next`, as far as known.
    data_end: u64,
}

/// The next task of a worker.
pub(super) enum Claim {
    /// Blocks in a hole.
    Zeros { first: BlockIndex, count: u64 },
    /// Blocks to read, at most as many as a worker has buffers.
    Data { first: BlockIndex, count: u64 },
    /// Blocks of one segment that a hint says are unchanged.
    Unchanged { first: BlockIndex, count: u64 },
}

impl DiskCopy<'_> {
    /// Takes the next run of blocks, or the next hole.
    pub(super) fn claim(&self) -> Option<Claim> {
        let mut walk = self.walk.lock();
        let blocks = self.block_size.blocks_in(self.source.size_bytes());
        let first = BlockIndex(walk.next);
        if first.0 >= blocks {
            return None;
        }
        let at = self.block_size.offset_of(first);
        if at >= walk.data_end {
            // A block that is only partly a hole is read.
            let (data, data_end) = match self.source.next_data(at) {
                Some(data) => (self.block_size.index_of(data.start).0, data.end),
                None => (blocks, self.source.size_bytes()),
            };
            walk.data_end = data_end;
            if data > first.0 {
                walk.next = data;
                return Some(Claim::Zeros {
                    first,
                    count: data - first.0,
                });
            }
        }
        let data_end = self.block_size.blocks_in(walk.data_end).min(blocks);
        let run = self.hint.and_then(|hint| hint.unchanged.run_from(first));
        let claim = match run {
            Some(run) if run.start <= first.0 => {
                let segment = SEGMENT_SLOTS as u64;
                let end = run.end.min(data_end).min((first.0 / segment + 1) * segment);
                let count = end - first.0;
                walk.next += count;
                Claim::Unchanged { first, count }
            }
            run => {
                let end = run.map_or(data_end, |run| run.start.min(data_end));
                let count = (end - first.0).min(self.runs.blocks as u64);
                walk.next += count;
                Claim::Data { first, count }
            }
        };
        Some(claim)
    }
}
