//! Change hints: the volume manager or the file system reports the parts of a disk that have not changed since the
//! backup before, and these need not be read.
//!
//! A hint only ever skips reading, and it is not trusted: each run reads and compares a random sample of the skipped
//! blocks ([`audit`]), and every few weeks a disk is read in full, whatever the hints say ([`decide`]).
//!
//! Hints come from [`thin`] pools and from the [`extents`] of raw files. Both need a base: the snapshot or copy that
//! was read for the backup before, kept since then and not written to. `bases` sees to that; whatever else does not
//! fit is an error here, and the disk is read in full.

pub mod audit;
pub(crate) mod bases;
pub mod decide;
pub mod extents;
pub mod thin;

use std::ops::Range;
use std::path::PathBuf;

use jiff::SignedDuration;
use vbk_repo::ErrorKind;
use vbk_repo::block::{BlockIndex, BlockSize};
use vbk_repo::id::BackupId;

use crate::host::program::ProgramError;
use crate::snapshot::SnapshotError;

/// Choice of change hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangeHints {
    /// Read everything.
    #[default]
    Off,
    /// Use those that are available.
    Auto,
}

/// Choices for change hints.
#[derive(Debug, Clone, Copy)]
pub struct HintOptions {
    /// Use them at all.
    pub hints: ChangeHints,
    /// Highest age of the last full read.
    pub full_read_every: SignedDuration,
    /// Use them although they were found wrong lately.
    pub trust: bool,
}

/// Unchanged blocks of a disk, for a backup's plan.
#[derive(Debug, Clone)]
pub struct Hint {
    /// The backup that the disk is compared with. Used only if it is the guest's latest.
    pub since: BackupId,
    /// The blocks that are as they were then.
    pub unchanged: Unchanged,
    /// Secret and new for each run: chooses the blocks that are read all the same.
    pub seed: u64,
    /// One of how many skipped blocks is read all the same: [`audit::ONE_IN`].
    pub audit_one_in: u64,
}

/// Error for which a disk has no hint. Never a reason for a backup to fail.
#[derive(Debug, thiserror::Error)]
pub enum HintError {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The bases can't be looked for.
    #[error(transparent)]
    Bases(#[from] SnapshotError),
    /// Base and disk do not belong together.
    #[error("{what}")]
    NotComparable {
        /// The reason, as a sentence.
        what: String,
    },
    /// Another program has the pool's one metadata snapshot.
    #[error(
        "pool {pool} has a metadata snapshot that vbk did not make, and can have only one; once no program uses it, release \
         it: dmsetup message {device} 0 release_metadata_snap"
    )]
    Held {
        /// The pool, as VG/LV.
        pool: String,
        /// The pool's device.
        device: String,
    },
    /// Another run of vbk works with the pool's metadata snapshot.
    #[error("another run has used the metadata snapshot of pool {pool} for too long")]
    Busy {
        /// The pool, as VG/LV.
        pool: String,
    },
    /// A report of changes that makes no sense.
    #[error("{what}")]
    NotUnderstood {
        /// The report and what is wrong with it, as a sentence.
        what: String,
    },
    /// A file can't be used.
    #[error("can't {doing} {path}: {source}")]
    File {
        /// The operation that failed, e.g. `open`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl HintError {
    /// Kind of the error, by what the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Bases(error) => error.kind(),
            Self::NotComparable { .. } => ErrorKind::Invalid,
            Self::Held { .. } | Self::Busy { .. } => ErrorKind::Locked,
            Self::NotUnderstood { .. } => ErrorKind::Unsupported,
            Self::File { source, .. } => ErrorKind::of_io(source),
        }
    }

    fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    fn not_understood(what: impl Into<String>) -> Self {
        Self::NotUnderstood { what: what.into() }
    }
}

/// The blocks of a disk that are as they were in an earlier backup.
///
/// Kept as runs of whole blocks, 24 bytes each: at worst, with every other block changed, 12 MiB for 1 TiB of blocks of
/// 1 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    size_bytes: u64,
    block_size: BlockSize,
    /// In order, and never next to each other.
    runs: Vec<BlockRun>,
}

/// Consecutive unchanged blocks: from `first` up to, but not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlockRun {
    first: u64,
    end: u64,
    /// Blocks in the runs before.
    before: u64,
}

impl Unchanged {
    /// The size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The size of the blocks.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Number of unchanged blocks.
    pub fn blocks(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.before + (run.end - run.first))
    }

    /// The first run of unchanged blocks that ends after `index`: it holds the block, or comes next.
    pub fn run_from(&self, index: BlockIndex) -> Option<Range<u64>> {
        let place = self.runs.partition_point(|run| run.end <= index.0);
        self.runs.get(place).map(|run| run.first..run.end)
    }

    /// Zero-based rank of a block among the unchanged blocks; `None` if it has changed.
    fn rank_of(&self, index: BlockIndex) -> Option<u64> {
        let place = self.runs.partition_point(|run| run.end <= index.0);
        let run = self.runs.get(place).filter(|run| run.first <= index.0)?;
        Some(run.before + (index.0 - run.first))
    }

    /// The block with a rank.
    fn block_at(&self, rank: u64) -> Option<BlockIndex> {
        let place = self.runs.partition_point(|run| run.before <= rank).checked_sub(1)?;
        let run = self.runs.get(place)?;
        let index = run.first + (rank - run.before);
        (index < run.end).then_some(BlockIndex(index))
    }
}

/// Makes [`Unchanged`] of ranges of bytes that come in order.
pub struct Collector {
    unchanged: Unchanged,
    /// The range that may still grow.
    open: Range<u64>,
}

impl Collector {
    /// Starts with a disk of which nothing is unchanged.
    pub fn new(size_bytes: u64, block_size: BlockSize) -> Self {
        Self {
            unchanged: Unchanged {
                size_bytes,
                block_size,
                runs: Vec::new(),
            },
            open: 0..0,
        }
    }

    /// Adds a range of unchanged bytes; what is past the end of the disk is left out. An error if it starts before the
    /// end of the one before.
    pub fn add(&mut self, range: Range<u64>) -> Result<(), HintError> {
        if range.start > range.end || range.start < self.open.end {
            return Err(HintError::not_understood(format!(
                "unchanged ranges overlap or are out of order at {} bytes",
                range.start
            )));
        }
        if range.start > self.open.end {
            self.close();
            self.open = range;
        } else {
            self.open.end = range.end;
        }
        Ok(())
    }

    /// Completes it.
    pub fn finish(mut self) -> Unchanged {
        self.close();
        self.unchanged
    }

    /// Takes over the whole blocks of the open range: a block that is unchanged only in part has changed.
    fn close(&mut self) {
        let Unchanged {
            size_bytes,
            block_size,
            ref mut runs,
        } = self.unchanged;
        let first = block_size.blocks_in(self.open.start.min(size_bytes));
        let end = if self.open.end >= size_bytes {
            block_size.blocks_in(size_bytes)
        } else {
            block_size.index_of(self.open.end).0
        };
        if first < end {
            let before = runs.last().map_or(0, |run| run.before + (run.end - run.first));
            runs.push(BlockRun { first, end, before });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn of(size_bytes: u64, ranges: &[Range<u64>]) -> Unchanged {
        let mut collector = Collector::new(size_bytes, BlockSize::DEFAULT);
        for range in ranges {
            collector.add(range.clone()).expect("in order");
        }
        collector.finish()
    }

    #[test]
    fn only_whole_blocks_are_unchanged_and_the_last_may_be_short() {
        let unchanged = of(
            10 * MIB + 5,
            &[0..MIB - 1, MIB + 1..3 * MIB, 3 * MIB..5 * MIB + 7, 10 * MIB..11 * MIB],
        );
        assert_eq!(unchanged.run_from(BlockIndex(0)), Some(2..5));
        assert_eq!(unchanged.run_from(BlockIndex(4)), Some(2..5));
        assert_eq!(unchanged.run_from(BlockIndex(5)), Some(10..11));
        assert_eq!(unchanged.run_from(BlockIndex(11)), None);
        assert_eq!(unchanged.blocks(), 4);
        let cut = of(10 * MIB + 5, std::slice::from_ref(&(10 * MIB..10 * MIB + 4)));
        assert_eq!(cut.blocks(), 0);
    }

    #[test]
    fn ranges_out_of_order_are_refused() {
        let mut collector = Collector::new(100 * MIB, BlockSize::DEFAULT);
        collector.add(5 * MIB..7 * MIB).expect("in order");
        assert!(collector.add(6 * MIB..8 * MIB).is_err());
        assert!(collector.add(0..MIB).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "the mistake that is to be found")]
        let turned = collector.add(9 * MIB..8 * MIB);
        assert!(turned.is_err());
    }

    proptest! {
        #[test]
        fn blocks_and_ranks_agree_with_a_plain_list(lens in prop::collection::vec((0..3 * MIB, 0..3 * MIB), 0..30)) {
            let mut at = 0;
            let mut ranges = Vec::new();
            for (gap, len) in lens {
                ranges.push(at + gap..at + gap + len);
                at += gap + len;
            }
            let size = at.saturating_sub(MIB / 2);
            let unchanged = of(size, &ranges);
            let bytes_of = |block: u64| block * MIB..((block + 1) * MIB).min(size);
            let covered = |wanted: Range<u64>| {
                let mut at = wanted.start;
                for range in &ranges {
                    if range.start <= at && at < range.end {
                        at = range.end;
                    }
                }
                at >= wanted.end
            };
            let blocks: Vec<u64> = (0..size.div_ceil(MIB)).filter(|&block| covered(bytes_of(block))).collect();
            prop_assert_eq!(unchanged.blocks(), blocks.len() as u64);
            for (rank, &block) in (0..).zip(&blocks) {
                prop_assert_eq!(unchanged.rank_of(BlockIndex(block)), Some(rank));
                prop_assert_eq!(unchanged.block_at(rank), Some(BlockIndex(block)));
            }
            prop_assert_eq!(unchanged.block_at(blocks.len() as u64), None);
            for block in 0..size.div_ceil(MIB) {
                prop_assert_eq!(unchanged.rank_of(BlockIndex(block)).is_some(), blocks.contains(&block));
            }
        }
    }
}
