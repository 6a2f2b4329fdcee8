//! Step 3 of a sweep: gives back the space of removed blocks, for a few adjacent windows at a time.
//!
//! First without moving anything: a compaction drops the files in which nothing is live, and needs no room for it. Only where that
//! left removed blocks beside live ones, the live ones are moved, all of the tables in the range. A disk may be too full for that, or
//! a block damaged: then the windows stay in `sweeping`, and the next sweep tries again.

use std::ops::Range;

use rocksdb::WriteBatch;

use super::compaction::{drop_removed, flush_blocks, garbage_bytes, move_live, moved_bytes};
use super::{BATCH_ROWS, Sweep, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::store::rocks::rows::part_key;
use crate::store::{Place, Swept};

/// Room that a compaction needs for its tables, as a share of what it moves, and in bytes.
const TABLES_SHARE: u64 = 128;
const TABLES_BYTES: u64 = 256 << 10;

/// What became of the space of removed blocks.
enum Space {
    Back,
    /// A block beside them is damaged, and can't be moved.
    Damaged,
    /// So many bytes must be free to move what is beside them.
    Short(u64),
}

impl Sweep<'_> {
    /// Step 3 for some adjacent windows, or for each of them alone where it can't be done for all.
    pub(super) fn sweep_group(
        &mut self,
        group: &Range<u64>,
        moves_live: bool,
        step: &mut dyn FnMut(&Swept) -> Result<()>,
    ) -> Result<()> {
        // Before the removal: RocksDB may compact that by itself.
        let garbage_before = garbage_bytes(&self.store.reader)?;
        // One by one: a compaction of several windows writes tables that reach over them, and what is moved later is whole tables.
        for number in group.clone() {
            let window = self.sequences(&(number..number + 1));
            self.remove(&window)?;
            drop_removed(self.store, &keys(&window))?;
        }
        let grew = garbage_bytes(&self.store.reader)? > garbage_before;
        let must_move = moves_live && (grew || group.clone().any(|number| self.left_over.contains(&number)));
        self.count_removed(group.clone());
        if !must_move {
            return self.finish(group, step);
        }
        // A view that is published now frees the files that were dropped.
        self.note_begun()?;
        step(&self.swept)?;
        let mut pieces = vec![group.clone()];
        while let Some(piece) = pieces.pop() {
            let number = piece.start;
            match self.move_group(&piece, step)? {
                Space::Back => self.finish(&piece, step)?,
                _ if piece.end - number > 1 => pieces.extend(piece.map(|number| number..number + 1).rev()),
                Space::Damaged => self.damaged = true,
                Space::Short(bytes) => _ = self.short.insert(number, bytes),
            }
        }
        step(&self.swept)
    }

    /// Sweeps the windows again for which there was no room: what was given back since may be enough.
    pub(super) fn try_again(&mut self, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        for number in std::mem::take(&mut self.short).into_keys() {
            self.left_over.insert(number);
            self.sweep_group(&(number..number + 1), true, step)?;
        }
        Ok(())
    }

    fn move_group(&self, group: &Range<u64>, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Space> {
        let keys = keys(&self.sequences(group));
        flush_blocks(self.store)?;
        let Some(bytes) = moved_bytes(&self.store.reader, &keys, &mut || step(&self.swept))? else {
            return Ok(Space::Damaged);
        };
        let needed_bytes = bytes + bytes / TABLES_SHARE + TABLES_BYTES;
        if self.free_bytes()? < needed_bytes {
            return Ok(Space::Short(needed_bytes));
        }
        move_live(self.store, &keys)?;
        Ok(Space::Back)
    }

    /// Notes that windows are swept.
    fn finish(&mut self, group: &Range<u64>, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        self.begun.retain(|number| !group.contains(number));
        self.note_begun()?;
        step(&self.swept)
    }

    /// Counts what was removed from the index in some windows.
    pub(super) fn count_removed(&mut self, windows: Range<u64>) {
        let numbers: Vec<u64> = self.unlisted.range(windows).map(|(number, _)| *number).collect();
        for (blocks, bytes) in numbers.iter().filter_map(|number| self.unlisted.remove(number)) {
            self.swept.removed_blocks += blocks;
            self.swept.removed_bytes += bytes;
        }
    }

    /// Removes the rows of all blocks that are not live, adjacent ones with one deletion, and writes that to tables.
    pub(super) fn remove(&self, sequences: &Range<u64>) -> Result<()> {
        let blocks = self.store.reader.family("blocks");
        // A table with these removals and with the pages of a running backup would reach from here to the end of the store, and
        // a compaction takes whole tables.
        let _no_puts = self.store.gate.write();
        flush_blocks(self.store)?;
        for runs in self.unused(sequences).chunks(BATCH_ROWS) {
            let mut batch = WriteBatch::default();
            for run in runs {
                batch.delete_range_cf(blocks, part_key(run.start, 0), part_key(run.end, 0));
            }
            self.store.write("remove blocks", batch)?;
        }
        flush_blocks(self.store)
    }

    /// Returns the runs of sequence numbers in a range whose blocks are not live.
    fn unused(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for sequence in range.start..range.end.min(self.horizon) {
            match runs.last_mut() {
                _ if self.live_places.contains(Place(sequence)) => {}
                Some(run) if run.end == sequence => run.end += 1,
                _ => runs.push(sequence..sequence + 1),
            }
        }
        runs
    }

    /// Fails if not all space could be given back.
    pub(super) fn tell_what_is_left(&self) -> Result<()> {
        const DOING: &str = "give all space back";
        let mib = |bytes: u64| format!("{} MiB", bytes.div_ceil(1 << 20));
        if let Some(needed_bytes) = self.short.values().max() {
            return Err(Error::Store {
                kind: ErrorKind::NoSpace,
                doing: DOING,
                message: format!(
                    "there is no space to move the blocks that share files with removed ones, of which {} stay; {} must be free, and {} are",
                    mib(garbage_bytes(&self.store.reader)?),
                    mib(*needed_bytes),
                    mib(self.free_bytes()?),
                ),
            });
        }
        match self.damaged {
            false => Ok(()),
            true => Err(Error::Store {
                kind: ErrorKind::Corrupt,
                doing: DOING,
                message: "blocks are damaged, and what was stored beside them stays until they are stored again or removed; `vbk verify` \
                          tells which backups need them, and `vbk prune --max-unused 0` removes those that none needs"
                    .into(),
            }),
        }
    }
}
