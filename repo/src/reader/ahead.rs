//! Reads ahead: a sequential reader of an image finds the next blocks decoded already, and others find those they return to.

mod kept;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use kept::Kept;

use super::{ImageReader, Piece, filled, read_all};
use crate::block::BlockIndex;
use crate::error::Result;
use crate::id::BlockId;
use crate::store::{Distance, StoreReader};

/// Bytes of a sequential run for each further block that is read ahead of it, so that a short run costs little.
const RUN_BYTES: u64 = 4 << 20;
/// Bytes that one stream reads ahead at most.
const STREAM_BYTES: usize = 16 << 20;
/// The same for a far store, where waiting costs more than reading in vain: at a round trip of 100 ms this gives 320 MB/s.
const FAR_STREAM_BYTES: usize = 32 << 20;
const FAR_RUN_BYTES: u64 = 1 << 20;
/// Bytes of the blocks that are requested in one call from a far store, at least one block.
const FAR_BATCH_BYTES: usize = 4 << 20;
/// Threads that wait for a far store at the same time.
const FAR_THREADS: usize = 8;
/// Largest distance from the expected offset at which a read still counts as sequential: the kernel sends several
/// requests at once, and they arrive in any order.
const SLACK_BYTES: u64 = 4 << 20;
/// Bytes of sequential reads after which reading ahead starts.
const START_BYTES: u64 = 256 << 10;
/// Bytes before the reader's block that stay for requests that arrive late, at least one block.
const KEEP_BEHIND_BYTES: usize = SLACK_BYTES as usize;

/// Sequential readers of one image that are told apart: a guest's volumes lie on one disk, and are read at the same time.
const RUNS: usize = 4;
/// Time after which a stream that is not read gives its blocks back to those that want memory.
const IDLE: Duration = Duration::from_secs(2);

type Windows = Mutex<Vec<Window>>;

/// Decodes blocks on a few threads, within a memory budget.
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    queue: Receiver<Job>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    budget: Arc<Budget>,
    /// What the streams hold.
    held: Mutex<Vec<Weak<Windows>>>,
    /// Blocks that readers return to.
    kept: Kept,
}

/// Holds no [`super::ReadResources`]: one of the threads might otherwise drop the last of those, and would then join
/// itself.
struct Job {
    store: Arc<dyn StoreReader>,
    blocks: Vec<(BlockId, Arc<Promise>)>,
}

struct Budget {
    free_bytes: AtomicUsize,
}

impl Pool {
    pub(super) fn start(threads: usize, budget_bytes: usize) -> Self {
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        let pool = Self {
            jobs: Some(jobs),
            queue,
            threads: Mutex::default(),
            budget: Arc::new(Budget {
                free_bytes: AtomicUsize::new(budget_bytes),
            }),
            held: Mutex::default(),
            kept: Kept::default(),
        };
        pool.grow(threads.max(1));
        pool
    }

    /// Starts as many threads as reading from a store at this distance needs.
    pub(super) fn prepare(&self, distance: Distance) {
        if distance == Distance::Far {
            self.grow(FAR_THREADS);
        }
    }

    fn grow(&self, wanted: usize) {
        let mut threads = self.threads.lock();
        for number in threads.len()..wanted {
            let queue = self.queue.clone();
            let started = std::thread::Builder::new()
                .name(format!("vbk-ahead-{number}"))
                .spawn(move || queue.iter().for_each(Job::run));
            threads.push(started.expect("the system can start a few threads"));
        }
    }

    /// Registers what a new stream holds.
    fn register(&self, windows: &Arc<Windows>) {
        let mut held = self.held.lock();
        held.retain(|windows| windows.strong_count() > 0);
        held.push(Arc::downgrade(windows));
    }

    /// Drops the blocks of all streams that were not read for this time, and the kept ones. A stream in use at the moment is
    /// not idle.
    pub(super) fn drop_idle(&self, idle: Duration) {
        self.kept.drop_idle(idle);
        let held: Vec<_> = self.held.lock().iter().filter_map(Weak::upgrade).collect();
        for windows in held {
            if let Some(mut windows) = windows.try_lock() {
                windows.retain(|window| window.used.is_some_and(|used| used.elapsed() < idle));
            }
        }
    }

    /// Reserves memory for a block; `None` if the budget is used up.
    fn promise(&self, len: usize) -> Option<Arc<Promise>> {
        let free = &self.budget.free_bytes;
        let reserve = || free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| free.checked_sub(len));
        if reserve().is_err() {
            self.drop_idle(IDLE);
            while reserve().is_err() {
                if !self.kept.drop_oldest() {
                    return None;
                }
            }
        }
        Some(Arc::new(Promise {
            len,
            budget: Arc::clone(&self.budget),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Keeps blocks that a run of reads has no more use for. Those that are not decoded yet will not be.
    fn keep(&self, blocks: impl IntoIterator<Item = Ahead>) {
        for block in blocks {
            if block.promise.is_ready() {
                self.kept.keep(block.id, block.promise);
            }
        }
    }

    /// Returns a block that is kept, or is now, because this read is one of many in it.
    fn often_read(&self, image: &ImageReader, id: BlockId, piece: &Piece) -> Option<Arc<Promise>> {
        if let Some(kept) = self.kept.get(id) {
            return Some(kept);
        }
        let is_small = piece.out.len() < piece.block_len;
        if !is_small || image.is_cached(id, piece) || !self.kept.is_read_often(id) {
            return None;
        }
        let promise = self.promise(piece.block_len)?;
        self.kept.keep(id, Arc::clone(&promise));
        let job = Job {
            store: Arc::clone(image.source.of_run(0)),
            blocks: vec![(id, Arc::clone(&promise))],
        };
        // Not by the threads: they may be far ahead for others, and this reader waits.
        job.run();
        Some(promise)
    }

    /// Starts to read blocks with one call of the store.
    fn submit(&self, store: &Arc<dyn StoreReader>, blocks: Vec<(BlockId, Arc<Promise>)>) {
        let job = Job {
            store: Arc::clone(store),
            blocks,
        };
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !job.blocks.is_empty()) {
            // The pool itself holds a receiver, so the channel is open.
            let _ = jobs.send(job);
        }
    }

    #[cfg(test)]
    pub(super) fn kept_blocks(&self) -> usize {
        self.kept.len()
    }

    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> usize {
        self.budget.free_bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        let threads = self.threads.get_mut();
        for thread in threads.drain(..) {
            // A panic in the thread was reported there.
            let _ = thread.join();
        }
    }
}

impl Job {
    fn run(mut self) {
        // If only this job holds a promise, its reader has moved to another offset or ended.
        self.blocks.retain(|(_, promise)| Arc::strong_count(promise) > 1);
        let mut buffers: Vec<Vec<u8>> = self.blocks.iter().map(|(_, promise)| vec![0; promise.len]).collect();
        let ids = self.blocks.iter().map(|(id, _)| *id);
        let mut wanted: Vec<_> = ids.zip(buffers.iter_mut().map(Vec::as_mut_slice)).collect();
        let read = read_all(&*self.store, &mut wanted);
        for (((_, promise), bytes), read) in self.blocks.iter().zip(buffers).zip(read) {
            promise.set(read.ok().map(|()| bytes));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // After a panic, or in a queue that nothing reads any more: readers must not wait for ever.
        for (_, promise) in &self.blocks {
            promise.give_up();
        }
    }
}

/// Result of a job for one block: first pending, then the block.
struct Promise {
    len: usize,
    budget: Arc<Budget>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Failed,
    Ready(Vec<u8>),
}

impl Promise {
    fn is_ready(&self) -> bool {
        matches!(*self.state.lock(), State::Ready(_))
    }

    fn has_failed(&self) -> bool {
        matches!(*self.state.lock(), State::Failed)
    }

    /// Fails, unless there is a result.
    fn give_up(&self) {
        if matches!(*self.state.lock(), State::Waiting) {
            self.set(None);
        }
    }

    fn set(&self, bytes: Option<Vec<u8>>) {
        let mut state = self.state.lock();
        *state = bytes.map_or(State::Failed, State::Ready);
        self.changed.notify_all();
    }

    /// Waits for the block and copies a part of it; `false` if it could not be read.
    fn copy(&self, inside: std::ops::Range<usize>, out: &mut [u8]) -> bool {
        let mut state = self.state.lock();
        while matches!(*state, State::Waiting) {
            self.changed.wait(&mut state);
        }
        match &*state {
            State::Ready(bytes) => {
                out.copy_from_slice(&bytes[inside]);
                true
            }
            State::Waiting | State::Failed => false,
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.budget.free_bytes.fetch_add(self.len, Ordering::SeqCst);
    }
}

/// A block that is read ahead.
struct Ahead {
    index: BlockIndex,
    id: BlockId,
    promise: Arc<Promise>,
}

/// One reader of an image, e.g. an open file. Detects sequential reads, several runs of them at once, and reads ahead for
/// them. May be used by many threads at once.
pub struct Stream {
    image: Arc<ImageReader>,
    /// Runs of sequential reads, the one read last at the end.
    windows: Arc<Windows>,
}

#[derive(Default)]
struct Window {
    /// Offset at which the next sequential read starts.
    next: u64,
    /// Bytes of the current run of sequential reads.
    run_bytes: u64,
    /// Number of sequential reads in the run.
    reads: u64,
    ahead: VecDeque<Ahead>,
    /// First block that has not yet been considered for reading ahead.
    frontier: u64,
    /// Time of the last read.
    used: Option<Instant>,
}

impl Stream {
    /// Returns a new reader of the image.
    pub fn new(image: Arc<ImageReader>) -> Self {
        let windows = Arc::default();
        image.resources.ahead.register(&windows);
        Self { image, windows }
    }

    /// Returns the image.
    pub fn image(&self) -> &Arc<ImageReader> {
        &self.image
    }

    #[cfg(test)]
    pub(super) fn runs_that_read_ahead(&self) -> usize {
        let windows = self.windows.lock();
        windows.iter().filter(|window| !window.ahead.is_empty()).count()
    }

    /// Reads like [`ImageReader::read_exact_at`].
    pub fn read_exact_at(&self, offset_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        let wanted = out.len();
        filled(wanted, self.read_at(offset_bytes, out))
    }

    /// Reads like [`ImageReader::read_at`].
    pub fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        let len = self.image.readable(offset_bytes, out.len());
        if len == 0 {
            return Ok(0);
        }
        self.plan(offset_bytes, len);
        for piece in self.image.pieces(offset_bytes, len) {
            let out = &mut out[piece.out.clone()];
            let promise = self.promised(piece.index);
            let promise = match (promise, self.image.slot(piece.index)) {
                (None, Ok(Some(id))) => self.image.resources.ahead.often_read(&self.image, id, &piece),
                (promise, _) => promise,
            };
            // An id stands for one length. A manifest that gives it another one is damaged, and the store's answer says so.
            let promise = promise.filter(|promise| promise.len == piece.block_len);
            // A block that could not be decoded as a whole is read again page by page: its intact pages can still be used,
            // and the error names the damaged one.
            if !promise.is_some_and(|promise| promise.copy(piece.inside.clone(), out)) {
                self.image.read_piece(&piece, out)?;
            }
        }
        Ok(len)
    }

    fn promised(&self, index: BlockIndex) -> Option<Arc<Promise>> {
        let windows = self.windows.lock();
        let mut ahead = windows.iter().flat_map(|window| &window.ahead);
        let found = ahead.find(|ahead| ahead.index == index);
        found.map(|ahead| Arc::clone(&ahead.promise))
    }

    /// Records a read, and starts to read the blocks after it if reads are sequential.
    fn plan(&self, offset_bytes: u64, len: usize) {
        let size = self.image.block_size();
        let blocks_in = |bytes: usize, least: usize| (bytes / size.bytes()).max(least) as u64;
        let end = offset_bytes + len as u64;
        let mut windows = self.windows.lock();
        let run = windows
            .iter()
            .position(|window| offset_bytes.abs_diff(window.next) <= SLACK_BYTES);
        let window = match run {
            Some(run) => windows.remove(run),
            None => Window::default(),
        };
        let pool = &self.image.resources.ahead;
        if windows.len() == RUNS {
            pool.keep(windows.remove(0).ahead);
        }
        windows.push(window);
        let Some(window) = windows.last_mut() else {
            return;
        };
        window.used = Some(Instant::now());
        window.next = window.next.max(end);
        window.run_bytes += len as u64;
        window.reads += 1;
        let first = size.index_of(offset_bytes).0;
        let behind = blocks_in(KEEP_BEHIND_BYTES, 1);
        let passed = window.ahead.partition_point(|ahead| ahead.index.0 + behind < first);
        pool.keep(window.ahead.drain(..passed));
        if window.run_bytes < START_BYTES || window.reads < 2 {
            return;
        }
        let (most, batch, run_bytes) = match self.image.distance() {
            Distance::Near => (STREAM_BYTES, 1, RUN_BYTES),
            Distance::Far => (FAR_STREAM_BYTES, blocks_in(FAR_BATCH_BYTES, 1), FAR_RUN_BYTES),
        };
        let depth = (window.run_bytes / run_bytes + 1).min(blocks_in(most, 2));
        let last = size.index_of(window.next - 1).0;
        let first = window.frontier.max(last + 1);
        let count = size.blocks_in(self.image.size_bytes());
        let end = (last + depth + 1).min(count);
        // Requests full batches only, unless the reader is about to run out of blocks.
        if end < count && end.saturating_sub(first) < batch.min(depth / 2) {
            return;
        }
        let store = self.image.source.of_run(window.run_bytes);
        let mut job = Vec::new();
        for index in (first..end).map(BlockIndex) {
            match self.image.slot(index) {
                Ok(Some(id)) => {
                    let promise = match pool.kept.get(id) {
                        Some(kept) => kept,
                        None => {
                            let Some(promise) = pool.promise(size.len_of(index, self.image.size_bytes())) else {
                                break;
                            };
                            job.push((id, Arc::clone(&promise)));
                            promise
                        }
                    };
                    window.ahead.push_back(Ahead { index, id, promise });
                }
                Ok(None) => {}
                // A reader that reaches this block gets the error.
                Err(_) => break,
            }
            window.frontier = index.0 + 1;
            if job.len() as u64 == batch {
                pool.submit(store, std::mem::take(&mut job));
            }
        }
        pool.submit(store, job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::tests::testing::SMALL;

    #[test]
    fn readers_of_a_block_whose_job_did_not_run_to_its_end_do_not_wait() {
        let pool = Pool::start(1, 8192);
        let promise = pool.promise(4096).expect("there is room");
        let id = BlockId([7; 32]);
        pool.kept.keep(id, Arc::clone(&promise));
        let job = Job {
            store: Arc::new(MemoryStore::new(SMALL)),
            blocks: vec![(id, promise)],
        };
        let panicked = std::thread::spawn(move || {
            let _job = job;
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.join().is_err());
        let left = pool.kept.get(id).expect("is kept");
        assert!(!left.copy(0..1, &mut [0]));
        assert_eq!(pool.free_bytes(), 4096);
    }
}
