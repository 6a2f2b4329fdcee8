//! Moves blocks: reads them from one store, proves them, and puts them into another.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{CopyOptions, Sent, Step};
use crate::barrier::Barrier;
use crate::block::{BlockSize, pages_in};
use crate::codec::{Header, Sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::pool;
use crate::runs::Runs;
use crate::store::whole;
use crate::store::{Distance, StoreReader, StoreWriter, Stored, Wanted};

/// An error, by what it ends.
#[derive(Debug)]
pub(super) enum Fault {
    /// This backup can't be copied.
    Backup(Error),
    /// The repository that is copied from failed.
    From(Error),
    /// The repository that is copied to failed.
    To(Error),
}

impl Fault {
    /// An error of the repository that is copied from: damage costs only the backups that have it.
    pub(super) fn of_source(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Corrupt => Self::Backup(error),
            _ => Self::From(error),
        }
    }
}

/// For errors of this machine.
impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::To(error)
    }
}

/// A block to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Piece<T> {
    pub(super) id: BlockId,
    /// Length of its plain bytes.
    pub(super) len: usize,
    /// The caller's own.
    pub(super) with: T,
}

/// Work for the threads.
pub(super) enum Task<T> {
    /// Blocks of a run.
    Blocks(Vec<Piece<T>>),
    /// Nodes to put.
    Nodes(Vec<(NodeId, Vec<u8>)>),
}

/// The two stores, and what was moved.
pub(super) struct Mover<'a> {
    pub(super) from: &'a dyn StoreReader,
    pub(super) to: &'a dyn StoreWriter,
    pub(super) block_size: BlockSize,
    options: CopyOptions<'a>,
    runs: Runs,
    /// Blocks to put, though they are stored.
    condemned: HashSet<BlockId>,
    /// Likewise, for one backup.
    lost: HashSet<BlockId>,
    blocks: AtomicU64,
    plain_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    found: AtomicU64,
    barrier: Barrier,
}

impl<'a> Mover<'a> {
    pub(super) fn new(
        from: &'a dyn StoreReader,
        to: &'a dyn StoreWriter,
        block_size: BlockSize,
        options: CopyOptions<'a>,
        condemned: HashSet<BlockId>,
    ) -> Self {
        let distance = match (from.distance(), to.distance()) {
            (Distance::Near, Distance::Near) => Distance::Near,
            _ => Distance::Far,
        };
        Self {
            from,
            to,
            block_size,
            options,
            // More workers than processors, because some of them wait for a disk.
            runs: Runs::new(block_size, distance, options.threads + 2),
            condemned,
            lost: HashSet::new(),
            blocks: AtomicU64::new(0),
            plain_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            found: AtomicU64::new(0),
            barrier: Barrier::default(),
        }
    }

    /// Returns what was put so far, and the number of blocks that were found there.
    pub(super) fn totals(&self) -> (Sent, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let sent = Sent {
            blocks: of(&self.blocks),
            plain_bytes: of(&self.plain_bytes),
            stored_bytes: of(&self.stored_bytes),
        };
        (sent, of(&self.found))
    }

    /// Sets the blocks that are to be put, though the store says that they are stored.
    pub(super) fn are_lost(&mut self, blocks: Vec<BlockId>) {
        self.lost = blocks.into_iter().collect();
    }

    pub(super) fn has_condemned(&self) -> bool {
        !self.condemned.is_empty()
    }

    pub(super) fn is_condemned(&self, id: BlockId) -> bool {
        self.condemned.contains(&id) || self.lost.contains(&id)
    }

    /// Returns for each block of the store that is copied to whether it must be put.
    pub(super) fn are_missing(&self, ids: &[BlockId]) -> std::result::Result<Vec<bool>, Fault> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let asked = ids.iter().zip(self.to.locate(ids).map_err(Fault::To)?);
        let missing: Vec<_> = asked
            .map(|(id, located)| located.is_none() || self.is_condemned(*id))
            .collect();
        let found = missing.iter().filter(|missing| !**missing).count();
        self.found.fetch_add(found as u64, Ordering::SeqCst);
        Ok(missing)
    }

    /// Sorts blocks so that a near store reads them in the order in which it has them.
    pub(super) fn sort<T>(&self, pieces: &mut [Piece<T>]) -> std::result::Result<(), Fault> {
        if self.from.distance() == Distance::Far || pieces.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = pieces.iter().map(|piece| piece.id).collect();
        let located = self.from.locate(&ids).map_err(Fault::of_source)?;
        let places: HashMap<_, _> = ids.into_iter().zip(located).collect();
        pieces.sort_by_key(|piece| places.get(&piece.id).copied().flatten().map(|located| located.place));
        Ok(())
    }

    /// Runs `produce` in the caller's thread, and `blocks` in threads for the runs of blocks that it hands out. `hand_out` fails
    /// soon after a thread has failed, whose error counts.
    pub(super) fn work<T: Send, R>(
        &self,
        produce: impl FnOnce(&mut dyn FnMut(Task<T>) -> std::result::Result<(), Fault>) -> std::result::Result<R, Fault>,
        blocks: &(dyn Fn(Vec<Piece<T>>) -> std::result::Result<(), Fault> + Sync),
    ) -> std::result::Result<R, Fault> {
        let cancelled = || self.options.cancel.load(Ordering::SeqCst);
        let interrupted = || Fault::To(Error::Interrupted);
        let work = |task| match task {
            _ if cancelled() => Err(interrupted()),
            Task::Blocks(pieces) => blocks(pieces),
            Task::Nodes(nodes) => self.to.put_nodes(nodes).map_err(Fault::To),
        };
        pool::feed(
            "vbk-copy",
            self.runs.workers,
            2 * self.runs.workers,
            |send: &mut dyn FnMut(Task<T>) -> bool| {
                produce(&mut |task| {
                    let mut all = match task {
                        Task::Blocks(pieces) => cut(pieces, self.runs.blocks),
                        nodes => vec![nodes],
                    };
                    match all.drain(..).all(&mut *send) && !cancelled() {
                        true => Ok(()),
                        false => Err(interrupted()),
                    }
                })
            },
            &work,
        )
    }

    /// Reads blocks and proves them. They have the names that the other store gives them.
    pub(super) fn read<T>(&self, pieces: &[Piece<T>]) -> std::result::Result<Vec<Sealed>, Fault> {
        let (theirs, ours) = (self.from.hashing(), self.to.hashing());
        let wanted = pieces.iter().map(|piece| Wanted {
            id: piece.id,
            pages: 0..pages_in(piece.len),
        });
        let wanted: Vec<_> = wanted.collect();
        // The other store need not have the base of a difference as a whole, or at all.
        let answers = whole::get_compressed(self.from, &wanted);
        let prove = |(piece, stored): (&Piece<T>, Result<_>)| -> Result<Sealed> {
            let stored: Stored = stored?;
            Header::prove(theirs, piece.id, piece.len, &stored.header)?.to_sealed(ours, stored.pages)
        };
        let proved: Result<Vec<_>> = pieces.iter().zip(answers).map(prove).collect();
        let bytes: usize = pieces.iter().map(|piece| piece.len).sum();
        (self.options.observer)(Step::Read(bytes as u64));
        proved.map_err(Fault::of_source)
    }

    /// Puts blocks.
    pub(super) fn put(&self, blocks: Vec<Sealed>) -> std::result::Result<(), Fault> {
        if blocks.is_empty() {
            return Ok(());
        }
        let plain: u64 = blocks.iter().map(|block| u64::from(block.plain_bytes)).sum();
        let stored: u64 = blocks.iter().map(Sealed::stored_bytes).sum();
        let count = blocks.len() as u64;
        self.to.put(blocks).map_err(Fault::To)?;
        self.blocks.fetch_add(count, Ordering::SeqCst);
        self.plain_bytes.fetch_add(plain, Ordering::SeqCst);
        self.stored_bytes.fetch_add(stored, Ordering::SeqCst);
        match self.barrier.is_due(stored) {
            true => self.to.flush().map_err(Fault::To),
            false => Ok(()),
        }
    }
}

/// Cuts blocks into runs.
fn cut<T>(pieces: Vec<Piece<T>>, blocks: usize) -> Vec<Task<T>> {
    let mut rest = pieces.into_iter().peekable();
    let mut runs = Vec::new();
    while rest.peek().is_some() {
        runs.push(Task::Blocks(rest.by_ref().take(blocks).collect()));
    }
    runs
}
