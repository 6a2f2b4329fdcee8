//! Removes blocks and nodes of manifests that no backup names, and returns their space to the file system.
//!
//! The sequence numbers are cut into windows of about 2 GiB of plain blocks. A window is swept if enough in it is
//! unused; elsewhere unused blocks stay, in the index and ready to be used again. So the index names exactly the stored
//! blocks at any time. A base may be removed before an unused difference from it, which does not count as stored then, see
//! `bases.rs`.
//!
//! A pass sweeps some windows, after one scan of the whole index in its own order: looking up each block would cost a
//! random read each. The first pass has few blocks, so that even a full disk has room for the removal of their rows.
//! Each pass has four times as many as the one before, so that a large repository needs few passes. What is on disk
//! after each step of a pass:
//!
//! 1. `sweeping` names its windows. Nothing is changed yet.
//! 2. The index rows of the unused blocks in them are removed, in synced and logged batches. The blocks no longer exist
//!    for readers of the store (views keep theirs), and only their space is still taken.
//! 3. For a few adjacent windows at a time, see `groups.rs`: the rows of all blocks in them that are not live are removed, and that
//!    is flushed. A forced compaction drops the files in which nothing is live. Where unused blocks shared files with live ones,
//!    another one writes the live ones to new blob files and drops the old files, each completely or not at all. Then `sweeping` no
//!    longer names these windows.
//!
//! Damaged pages stop no sweep: a compaction that meets one would fail, and RocksDB would write nothing any more. So what a
//! compaction would move is read before. Windows in which something can't be read, or for which the disk is too full, stay in
//! `sweeping`, and the sweep ends with an error when all else is done. The next sweep tries them again.
//!
//! A crash leaves `sweeping`, and the next sweep includes the windows that it names, by what is live then: a block that
//! was put since is live, or its index row is removed before its own rows. Windows without live blocks always come
//! first, because sweeping them needs no space.
//!
//! Nodes are removed in batches; each one is a single row that nothing names any more. In the end small files are merged, see
//! `merge.rs`.
//!
//! Writers go on meanwhile: `sessions.rs` says why none of them loses anything.
//!
//! Memory: 40 bytes per window of 2 GiB, a bit per block, and 300 bytes for each table of the store, besides the live set.

mod compaction;
mod estimate;
mod groups;
mod merge;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rocksdb::{IteratorMode, WriteBatch};

use self::compaction::Keys;
pub(super) use self::compaction::compact;
pub(crate) use self::estimate::Estimate;
use self::merge::Merging;
use self::windows::{Window, choose, decode, encode, length_of_pass, neighbours};
use super::RocksStore;
use super::errors::failed;
use super::reader::scan;
use super::rows::part_key;
use super::sessions::Rule;
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};
use crate::store::places::Places;
use crate::store::{Live, Located, PruneOptions, StoreManager, StoreReader, StoreWriter, Swept};

/// Plain bytes of a window.
const WINDOW_BYTES: u64 = 2 << 30;
/// Unused blocks in the first pass: the removal of their index rows takes about 1 MiB.
const FIRST_PASS_BLOCKS: u64 = 16 << 10;
/// Growth of each further pass, as a factor.
const PASS_GROWTH: u64 = 4;
/// Rows of the index that are read between two steps.
const STEP_ROWS: u64 = if cfg!(test) { 61 } else { 64 << 10 };
/// Rows that are removed in one batch.
const BATCH_ROWS: usize = 10_000;
/// In `meta`: ranges of sequence numbers, first and end (u64 each), whose unused blocks are to be removed.
const SWEEPING: &str = "sweeping";
/// In `meta`: rows were removed from the small column families that are to be merged away.
const TIDYING: &str = "tidying";
/// Parts in which a small column family is merged: of 100 million rows, each takes seconds.
const TIDIED_PARTS: u8 = 32;

pub(super) fn sweep(
    store: &RocksStore,
    session: Option<u64>,
    live: &Live,
    options: PruneOptions,
    step: &mut dyn FnMut(&Swept) -> Result<()>,
) -> Result<Swept> {
    let window_blocks = WINDOW_BYTES / u64::from(store.identity()?.block_size);
    sweep_windows(store, session, live, options, window_blocks, step)
}

pub(super) fn sweep_windows(
    store: &RocksStore,
    session: Option<u64>,
    live: &Live,
    options: PruneOptions,
    window_blocks: u64,
    step: &mut dyn FnMut(&Swept) -> Result<()>,
) -> Result<Swept> {
    let pending: Vec<_> = store.pending().values().map(|pending| pending.place()).collect();
    if !pending.is_empty() {
        if pending
            .iter()
            .any(|place| store.sessions.lock().is_put_by(session, *place))
        {
            // The marks do not have them.
            return Err(Error::Internal {
                doing: "prune",
                message: "blocks were put since the last barrier".into(),
            });
        }
        // Those of other sessions are below the horizon then, like all that they put before.
        store.flush()?;
    }
    let mut sweep = Sweep::new(store, live, window_blocks);
    sweep.session = session;
    if store.sessions.lock().keep(Rule::Horizon) {
        sweep.horizon = store.reader.barrier()?;
    }
    let mut windows = sweep.count(step)?;
    let mut chosen = choose(&windows, sweep.swept.live_bytes, options.max_unused);
    sweep.begun = sweep.find_left_over()?;
    sweep.left_over = sweep.begun.clone();
    for &number in &sweep.begun {
        windows.entry(number).or_default();
        if !chosen.contains(&number) {
            chosen.push(number);
        }
    }
    if options.dry_run {
        for number in &chosen {
            sweep.swept.removed_blocks += windows[number].unused_blocks;
            sweep.swept.removed_bytes += windows[number].unused_bytes;
        }
        sweep.remove_nodes(true, step)?;
        return Ok(sweep.swept);
    }
    let result = sweep.run(&windows, &chosen, step);
    if matches!(result, Err(Error::Interrupted)) {
        // No longer in the index, so the next sweep would count it nowhere, though it frees the space.
        sweep.count_removed(0..u64::MAX);
        let _interrupted = step(&sweep.swept);
    }
    result.map(|()| sweep.swept)
}

struct Sweep<'a> {
    store: &'a RocksStore,
    /// The session that sweeps.
    session: Option<u64>,
    /// Sequence number from which on nothing is looked at.
    horizon: u64,
    live: &'a Live,
    /// Places of the blocks that stay: the live ones, and unused ones that a session uses.
    live_places: Places,
    window_blocks: u64,
    /// Windows listed in `sweeping`.
    begun: BTreeSet<u64>,
    /// Windows of those in which removed blocks may lie beside live ones already: an earlier sweep left them.
    left_over: BTreeSet<u64>,
    /// Some windows have damaged blocks, which can't be moved.
    damaged: bool,
    /// Windows whose live blocks could not be moved, and the room in bytes that this takes.
    short: BTreeMap<u64, u64>,
    /// Blocks and bytes of each window whose index rows were removed.
    unlisted: BTreeMap<u64, (u64, u64)>,
    swept: Swept,
}

impl<'a> Sweep<'a> {
    /// A sweep that has done nothing yet, of no session and of all that is there.
    fn new(store: &'a RocksStore, live: &'a Live, window_blocks: u64) -> Self {
        Self {
            store,
            session: None,
            horizon: u64::MAX,
            live,
            live_places: Places::default(),
            window_blocks,
            begun: BTreeSet::new(),
            left_over: BTreeSet::new(),
            damaged: false,
            short: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            swept: Swept::default(),
        }
    }
}

impl Sweep<'_> {
    /// Counts the live and unused blocks of each window, and finds the places of the live ones.
    fn count(&mut self, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<BTreeMap<u64, Window>> {
        let mut windows: BTreeMap<u64, Window> = BTreeMap::new();
        let mut rows = 0;
        let (live, swept, window_blocks) = (self.live, &mut self.swept, self.window_blocks);
        let (live_places, horizon) = (&mut self.live_places, self.horizon);
        let (store, session) = (self.store, self.session);
        store.reader.survey(&mut |_, located| {
            rows += 1;
            if rows % STEP_ROWS == 0 {
                step(swept)?;
            }
            if located.place.0 >= horizon {
                return Ok(());
            }
            let window = windows.entry(located.place.0 / window_blocks).or_default();
            // What another session uses will soon be named, or is unused at the next sweep.
            let is_live = live.has_block_at(located.place) || store.sessions.lock().use_place(session, located.place);
            if is_live {
                live_places.insert(located.place);
            }
            window.add(&located, is_live, swept);
            Ok(())
        })?;
        Ok(windows)
    }

    fn run(
        &mut self,
        windows: &BTreeMap<u64, Window>,
        chosen: &[u64],
        step: &mut dyn FnMut(&Swept) -> Result<()>,
    ) -> Result<()> {
        let (mut dead, mut mixed): (Vec<_>, Vec<_>) = chosen
            .iter()
            .copied()
            .partition(|number| windows[number].live_bytes == 0);
        dead.sort_unstable();
        mixed.sort_unstable();
        let mut pass_blocks = FIRST_PASS_BLOCKS;
        for (mut numbers, moves_live) in [(&dead[..], false), (&mixed[..], true)] {
            while !numbers.is_empty() {
                let (pass, rest) = numbers.split_at(length_of_pass(numbers, windows, pass_blocks));
                self.pass(pass, windows, moves_live, step)?;
                numbers = rest;
                pass_blocks *= PASS_GROWTH;
            }
        }
        step(&self.swept)?;
        self.remove_nodes(false, step)?;
        self.tidy(step)?;
        self.try_again(step)?;
        self.merge(Merging::USUAL, step)?;
        step(&self.swept)?;
        self.tell_what_is_left()
    }

    /// Sweeps windows, given in order. `moves_live`: some blocks in them are live.
    fn pass(
        &mut self,
        numbers: &[u64],
        windows: &BTreeMap<u64, Window>,
        moves_live: bool,
        step: &mut dyn FnMut(&Swept) -> Result<()>,
    ) -> Result<()> {
        self.begun.extend(numbers);
        self.note_begun()?;
        let groups = neighbours(numbers, &|number| {
            windows.get(&number).map_or(0, |window| window.live_bytes)
        });
        let ranges: Vec<_> = groups.iter().map(|group| self.sequences(group)).collect();
        self.unlist(&ranges, step)?;
        groups
            .into_iter()
            .try_for_each(|group| self.sweep_group(&group, moves_live, step))
    }

    fn sequences(&self, windows: &Range<u64>) -> Range<u64> {
        windows.start * self.window_blocks..windows.end * self.window_blocks
    }

    fn note_begun(&self) -> Result<()> {
        let meta = self.store.reader.family("meta");
        let numbers: Vec<_> = self.begun.iter().copied().collect();
        let groups = neighbours(&numbers, &|_| 0);
        let ranges: Vec<_> = groups.iter().map(|group| self.sequences(group)).collect();
        let mut batch = WriteBatch::default();
        match &ranges[..] {
            [] => batch.delete_cf(meta, SWEEPING),
            ranges => batch.put_cf(meta, SWEEPING, encode(ranges)),
        }
        // A view that is published now leaves the old files out, which frees their space.
        let _one = self.store.barrier.lock();
        self.store.next_generation(&mut batch)?;
        self.store.write_logged("remove blocks", batch)
    }

    /// Step 2: removes the index rows of unused blocks, in sorted ranges of sequence numbers.
    fn unlist(&mut self, ranges: &[Range<u64>], step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        let store = self.store;
        let mut rows = 0;
        let mut unused = Vec::new();
        store.reader.survey(&mut |id, located| {
            rows += 1;
            if rows % STEP_ROWS == 0 {
                step(&self.swept)?;
            }
            let place = located.place;
            let after = ranges.partition_point(|range| range.end <= place.0);
            let swept = ranges.get(after).is_some_and(|range| range.contains(&place.0));
            if swept && place.0 < self.horizon && !self.live_places.contains(place) {
                unused.push((id, located));
            }
            match unused.len() >= BATCH_ROWS {
                true => self.unlist_unused(&mut unused),
                false => Ok(()),
            }
        })?;
        self.unlist_unused(&mut unused)
    }

    /// Removes the index rows of those blocks that no session uses.
    fn unlist_unused(&mut self, unused: &mut Vec<(BlockId, Located)>) -> Result<()> {
        let index = self.store.reader.family("index");
        let mut batch = WriteBatch::default();
        let mut sessions = self.store.sessions.lock();
        for (id, located) in unused.drain(..) {
            let place = located.place;
            if sessions.use_place(self.session, place) {
                self.live_places.insert(place);
                continue;
            }
            batch.delete_cf(index, id.0);
            let (blocks, bytes) = self.unlisted.entry(place.0 / self.window_blocks).or_default();
            *blocks += 1;
            *bytes += u64::from(located.stored_bytes);
        }
        sessions.removals += 1;
        if !batch.is_empty() {
            batch.put_cf(self.store.reader.family("meta"), TIDYING, []);
        }
        self.store.write_logged("remove blocks", batch)
    }

    /// Returns the windows that an earlier sweep did not finish.
    fn find_left_over(&self) -> Result<BTreeSet<u64>> {
        let reader = &self.store.reader;
        let row = reader.db.get_cf(reader.family("meta"), SWEEPING);
        let row = row.map_err(failed("read its state"))?.unwrap_or_default();
        // No window after the last one with blocks is used, whatever a damaged row says: it could mean a walk through
        // 2^64 places. Sweeping a window that was not started does no harm.
        let end = self.horizon.div_ceil(self.window_blocks);
        let windows =
            |range: Range<u64>| range.start / self.window_blocks..range.end.div_ceil(self.window_blocks).min(end);
        Ok(decode(&row).into_iter().flat_map(windows).collect())
    }

    /// Removes the nodes of manifests that are not live.
    fn remove_nodes(&mut self, dry_run: bool, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        let reader = &self.store.reader;
        let family = reader.family("nodes");
        let (mut unused, mut rows) = (Vec::new(), 0);
        for row in reader.db.iterator_cf_opt(family, scan(), IteratorMode::Start) {
            let (key, _) = row.map_err(failed("read the manifests"))?;
            rows += 1;
            if rows % STEP_ROWS == 0 {
                step(&self.swept)?;
            }
            let live = <[u8; 32]>::try_from(&key[..]).is_ok_and(|id| self.live.has_node(&NodeId(id)));
            if live {
                continue;
            }
            unused.push(key);
            if unused.len() >= BATCH_ROWS {
                self.swept.removed_nodes += self.remove_unused(&mut unused, dry_run)?;
            }
        }
        self.swept.removed_nodes += self.remove_unused(&mut unused, dry_run)?;
        Ok(())
    }

    /// Removes those nodes that no session uses; returns their number.
    fn remove_unused(&self, unused: &mut Vec<Box<[u8]>>, dry_run: bool) -> Result<u64> {
        let family = self.store.reader.family("nodes");
        let mut batch = WriteBatch::default();
        let sessions = self.store.sessions.lock();
        for key in unused.drain(..) {
            let used = |id| sessions.use_node(self.session, &NodeId(id));
            if !<[u8; 32]>::try_from(&key[..]).is_ok_and(used) {
                batch.delete_cf(family, &key);
            }
        }
        let removed = batch.len() as u64;
        if !dry_run && removed > 0 {
            batch.put_cf(self.store.reader.family("meta"), TIDYING, []);
            self.store.write_logged("remove manifests", batch)?;
        }
        Ok(removed)
    }

    /// Merges away the removed rows of the small column families, which take space until then. Also drops the condemned
    /// mark of blocks that no longer exist.
    fn tidy(&self, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<()> {
        let condemned = self.store.condemned()?;
        let rows = self.store.reader.index_rows(&condemned)?;
        let gone = condemned.iter().zip(rows).filter(|(_, row)| row.is_none());
        self.store.pardon(&gone.map(|(id, _)| *id).collect::<Vec<_>>())?;
        // Windows past the store's end, which a damaged row named, are no longer named.
        self.note_begun()?;
        let reader = &self.store.reader;
        let meta = reader.family("meta");
        let tidying = reader.db.get_pinned_cf(meta, TIDYING);
        if tidying.map_err(failed("read its state"))?.is_none() {
            return Ok(());
        }
        for family in ["index", "nodes"].map(|name| reader.family(name)) {
            let first = |part: u8| (part > 0).then(|| [part * (256 / u16::from(TIDIED_PARTS)) as u8]);
            for part in 0..TIDIED_PARTS {
                let end = (part + 1 < TIDIED_PARTS).then(|| first(part + 1)).flatten();
                reader.db.compact_range_cf(family, first(part), end);
                step(&self.swept)?;
            }
        }
        let mut batch = WriteBatch::default();
        batch.delete_cf(meta, TIDYING);
        self.store.write_logged("give space back", batch)
    }
}

/// Keys of the rows of a range of sequence numbers.
pub(super) fn keys(sequences: &Range<u64>) -> Keys {
    part_key(sequences.start, 0)..=part_key(sequences.end - 1, usize::from(u16::MAX))
}

#[cfg(test)]
mod tests;
