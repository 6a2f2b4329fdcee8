//! A store behind a long way: a decorator that answers each call after a delay. It shows how the rest of vbk behaves when the
//! repository is in another datacenter, and counts what that costs.
//!
//! Its puts return as soon as they are in a window of [`WINDOW_BYTES`], and arrive in order; a failed one fails the flush.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{
    Distance, Identity, Listing, Live, Located, Note, PruneOptions, Record, StoreManager, StoreReader, StoreWriter,
    Stored, Swept, Wanted, failed_before,
};
use crate::codec::Sealed;
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};

/// Bytes of puts that may be on their way.
pub const WINDOW_BYTES: u64 = 64 << 20;

/// Passes calls on to the plain store `S` after a delay. Its distance is [`Distance::Far`]. Encryption belongs above it, as it
/// is on this side of the way.
pub struct Delayed<S: StoreManager + 'static> {
    store: Arc<S>,
    delay: Duration,
    lane: Arc<Lane>,
    lane_thread: Option<JoinHandle<()>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    waits: AtomicU64,
    blocks: AtomicU64,
    nodes: AtomicU64,
}

/// Calls of a [`Delayed`] store so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// Calls that their callers waited for: all but puts.
    pub waits: u64,
    /// Blocks that were read.
    pub blocks: u64,
    /// Nodes that were read.
    pub nodes: u64,
}

/// The puts that are on their way.
#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
    changed: Condvar,
}

#[derive(Default)]
struct LaneState {
    puts: VecDeque<(Instant, u64, Put)>,
    bytes: u64,
    /// Number of puts that were sent, and of those that arrived.
    sent: u64,
    arrived: u64,
    failed: bool,
    ended: bool,
}

enum Put {
    Blocks(Vec<Sealed>),
    Nodes(Vec<(NodeId, Vec<u8>)>),
}

impl Lane {
    fn deliver(&self, store: &dyn StoreManager) {
        let mut state = self.state.lock();
        loop {
            match state.puts.pop_front() {
                None if state.ended => return,
                None => self.changed.wait(&mut state),
                Some((at, bytes, put)) => {
                    drop(state);
                    std::thread::sleep(at.saturating_duration_since(Instant::now()));
                    let done = match put {
                        Put::Blocks(blocks) => store.put(blocks),
                        Put::Nodes(nodes) => store.put_nodes(nodes),
                    };
                    state = self.state.lock();
                    state.arrived += 1;
                    // A difference without its base is not stored: the commit says so.
                    state.failed |= !matches!(done, Ok(()) | Err(Error::BlockMissing(_)));
                    state.bytes -= bytes;
                    self.changed.notify_all();
                }
            }
        }
    }
}

impl<S: StoreManager + 'static> Delayed<S> {
    /// Puts `store` behind a way that takes `delay` there and back.
    pub fn new(store: Arc<S>, delay: Duration) -> Result<Self> {
        let lane = Arc::new(Lane::default());
        let (delivered, below) = (Arc::clone(&lane), Arc::clone(&store));
        let thread = std::thread::Builder::new()
            .name("vbk-delayed".into())
            .spawn(move || delivered.deliver(&*below))
            .map_err(Error::io("start", "a thread"))?;
        Ok(Self {
            store,
            delay,
            lane,
            lane_thread: Some(thread),
            counters: Counters::default(),
        })
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Calls {
            waits: of(&self.counters.waits),
            blocks: of(&self.counters.blocks),
            nodes: of(&self.counters.nodes),
        }
    }

    fn wait(&self) {
        let sent = self.lane.state.lock().sent;
        self.counters.waits.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.delay);
        // Calls arrive in the order in which they were made.
        let mut state = self.lane.state.lock();
        while state.arrived < sent {
            self.lane.changed.wait(&mut state);
        }
    }

    fn send(&self, bytes: u64, put: Put) -> Result<()> {
        let mut state = self.lane.state.lock();
        while state.bytes > 0 && state.bytes + bytes > WINDOW_BYTES {
            self.lane.changed.wait(&mut state);
        }
        if state.failed {
            return Err(failed_before());
        }
        state.bytes += bytes;
        state.sent += 1;
        state.puts.push_back((Instant::now() + self.delay, bytes, put));
        self.lane.changed.notify_all();
        Ok(())
    }

    /// Waits until everything that was put has arrived.
    fn drain(&self) -> Result<()> {
        let mut state = self.lane.state.lock();
        while state.arrived < state.sent {
            self.lane.changed.wait(&mut state);
        }
        match state.failed {
            true => Err(failed_before()),
            false => Ok(()),
        }
    }
}

impl<S: StoreManager + 'static> Drop for Delayed<S> {
    fn drop(&mut self) {
        self.lane.state.lock().ended = true;
        self.lane.changed.notify_all();
        if let Some(thread) = self.lane_thread.take() {
            // A panic of it was reported there.
            let _ = thread.join();
        }
    }
}

impl<S: StoreManager + 'static> StoreReader for Delayed<S> {
    fn identity(&self) -> Result<Identity> {
        self.wait();
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.wait();
        self.store.generation()
    }

    fn distance(&self) -> Distance {
        Distance::Far
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.wait();
        self.store.locate(ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.wait();
        self.store.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.wait();
        self.store.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        self.wait();
        self.counters.blocks.fetch_add(wanted.len() as u64, Ordering::SeqCst);
        self.store.get(wanted)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.wait();
        self.counters.nodes.fetch_add(ids.len() as u64, Ordering::SeqCst);
        self.store.nodes(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.wait();
        self.store.records()
    }

    fn forgotten(&self) -> Result<Vec<super::Forgotten>> {
        self.wait();
        self.store.forgotten()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.wait();
        self.store.notes()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.wait();
        self.store.listing(with_notes)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.wait();
        self.store.lookup(record_keys, note_names)
    }
}

impl<S: StoreManager + 'static> StoreWriter for Delayed<S> {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        let bytes = blocks.iter().map(Sealed::stored_bytes).sum();
        self.send(bytes, Put::Blocks(blocks))
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        let bytes = nodes.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.send(bytes, Put::Nodes(nodes))
    }

    fn set_terms(&self, terms: super::Terms) {
        self.store.set_terms(terms);
    }

    fn flush(&self) -> Result<()> {
        self.drain()?;
        self.wait();
        self.store.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.drain()?;
        self.wait();
        self.store.commit_at(record, notes, at)
    }
}

impl<S: StoreManager + 'static> StoreManager for Delayed<S> {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.wait();
        self.store.amend_at(remove_records, notes, at)
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.wait();
        self.store.empty_bin(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.wait();
        self.store.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.wait();
        self.store.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.drain()?;
        self.wait();
        self.store.retain(live, options, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn keeps_what_every_store_keeps() {
        crate::store::conformance::check(|size| {
            let below = Arc::new(MemoryStore::new(size));
            Box::new(Delayed::new(below, Duration::from_millis(1)).expect("starts"))
        });
    }
}
