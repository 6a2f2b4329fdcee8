//! Parts of files.

use std::collections::BTreeMap;

/// Adjacent blocks of a file that are adjacent on the volume as well, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First block in the file.
    pub first: u64,
    /// Block in the file after the last.
    pub end: u64,
    /// First block on the volume; `None` for a hole.
    pub block: Option<u64>,
}

/// Parts of a file whose blocks are others than its map says: by their first block, and disjoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranges(BTreeMap<u64, Run>);

impl Ranges {
    /// Replaces a part of the map.
    pub fn set(&mut self, new: Run) {
        let before = self.0.range(..new.first).next_back().map(|(_, run)| *run);
        let mut old: Vec<Run> = before.into_iter().filter(|run| run.end > new.first).collect();
        old.extend(self.0.range(new.first..new.end).map(|(_, run)| *run));
        for run in old {
            self.0.remove(&run.first);
            if run.first < new.first {
                let end = new.first;
                self.0.insert(run.first, Run { end, ..run });
            }
            if run.end > new.end {
                let block = run.block.map(|block| block.saturating_add(new.end - run.first));
                self.0.insert(
                    new.end,
                    Run {
                        first: new.end,
                        end: run.end,
                        block,
                    },
                );
            }
        }
        self.0.insert(new.first, new);
    }

    /// Returns the run with a block, or else the end of the run before and the start of the one after.
    pub fn at(&self, block: u64) -> Result<Run, (u64, u64)> {
        let before = self.0.range(..=block).next_back().map(|(_, run)| *run);
        match before {
            Some(run) if block < run.end => Ok(run),
            before => {
                let after = self.0.range(block..).next().map(|(first, _)| *first);
                Err((before.map_or(0, |run| run.end), after.unwrap_or(u64::MAX)))
            }
        }
    }
}
