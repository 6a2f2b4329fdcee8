//! Copies the backups of an encrypted repository to one with the same key, without having the key.
//!
//! Names and times of backups can't be read, so all of them are copied, in the order in which they arrived in the repository
//! that they come from. Everything is copied as it was sealed, and compared with its sum ([`crate::store::door`]).
//!
//! # What the other repository lacks
//!
//! Its store says so: a commit fails with [`Error::Missing`] until everything is there that the backup needs. A round puts what
//! is missing, and what hangs below that and is missing too. A backup of a disk of which both repositories have an earlier
//! backup takes two commits: the first one tells which segments changed.
//!
//! # Differences
//!
//! A block that is stored as a difference is put as it is, because only a holder of the key could make it whole. Its base is put
//! before it if the other repository lacks that. Should the base be a difference there, readers follow it: see
//! [`crate::store::MOST_BASES`].
//!
//! # Records and notes
//!
//! A record is committed with the list of records that the epoch does not count yet (`store/encrypted/uncounted.rs`). Which
//! note belongs to which backup can't be read either, so no note is copied: a backup that is protected is not so in the copy.

mod bases;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Instant;

use jiff::Timestamp;

use super::blocks::{Fault, Mover, Piece, Task};
use super::{CopyError, CopyOptions, PUBLISH_INTERVAL, Sent, check};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Head, Kind};
use crate::repository::{SealedView, SealedWriter};
use crate::store::checked::{get, nodes};
use crate::store::door::Door;
use crate::store::encrypted::{roots_below, uncounted};
use crate::store::{Listing, Located, Record, SUMS, StoreReader, StoreWriter};

/// Nodes of manifests that are read in one call: 2.2 MiB. Their blocks are put in the order in which they are stored.
const NODES: usize = 64;

/// Blocks that are looked up in one call.
const BLOCKS: usize = 4096;

/// Rounds for one backup in which the store names only what was put in the round before.
const MOST_VAIN_ROUNDS: u32 = 3;

/// Commits that are tried while other writers are faster.
const MOST_TRIES: u32 = 1000;

/// Backups that both have and whose manifests are looked at for similar ones, besides two for each that is copied.
const MORE_LIKELY_BASES: usize = 100;

/// A sealed backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBackup {
    /// The record, under its hidden key.
    pub record: Record,
    /// Time of its arrival in the repository that it comes from, if that is known.
    pub received: Option<Timestamp>,
}

/// Backups to copy.
#[derive(Debug, Default)]
pub struct SealedPlan {
    /// Those that the other repository lacks, in the order of their arrival.
    pub missing: Vec<SealedBackup>,
    /// Number of those that it has.
    pub present: u64,
    /// Those that both have, the last one first.
    bases: Vec<Record>,
}

impl SealedPlan {
    /// Compares two repositories. Only backups that arrived at `oldest` or after that count.
    pub fn new(from: Listing, to: &Listing, oldest: Option<Timestamp>) -> Self {
        let received: HashMap<_, _> = from.received.into_iter().collect();
        let there: HashSet<&str> = to.records.iter().map(|record| &*record.key).collect();
        let mut all: Vec<_> = from
            .records
            .into_iter()
            .map(|record| SealedBackup {
                received: received.get(&record.key).map(|received| received.time),
                record,
            })
            .collect();
        all.sort_by_key(|backup| backup.received);
        let mut plan = Self::default();
        for backup in all {
            let is_wanted = backup
                .received
                .is_none_or(|time| oldest.is_none_or(|oldest| time >= oldest));
            match there.contains(&*backup.record.key) {
                true => {
                    plan.present += u64::from(is_wanted);
                    plan.bases.push(backup.record);
                }
                false if is_wanted => plan.missing.push(backup),
                false => {}
            }
        }
        plan.bases.reverse();
        plan
    }
}

/// Result of a copy without the key.
#[derive(Debug, Default)]
pub struct SealedCopied {
    /// Hidden keys of the backups that were copied, with what was put for each. The plain bytes are not known.
    pub copied: Vec<(String, Sent)>,
    /// Hidden keys of backups that could not be copied, with the reason.
    pub failed: Vec<(String, Error)>,
    /// All that was put.
    pub sent: Sent,
    /// Blocks that were looked for and found there.
    pub found_blocks: u64,
    /// Reason why readers do not see what was copied before the next writer has published it, if so.
    pub unpublished: Option<Error>,
}

/// Fails if nothing can be copied between these repositories without the key.
pub fn check_sealed(from: &SealedView, to: &SealedWriter) -> std::result::Result<(), CopyError> {
    let (from, to) = (&from.identity, &to.identity);
    check((&from.id, from.block_size), (&to.id, to.block_size))?;
    match (from.key_check == to.key_check, from.has(SUMS) && to.has(SUMS)) {
        (true, true) => Ok(()),
        (false, _) => Err(CopyError::OtherKey),
        (true, false) => Err(CopyError::NoSums),
    }
}

/// Copies the missing backups of a plan. A backup that is damaged where it comes from is in the result; any other error ends the
/// copy. What was put until then stays, for the next copy.
pub fn copy_sealed(
    from: &SealedView,
    to: &SealedWriter,
    plan: SealedPlan,
    options: CopyOptions<'_>,
    done: &mut dyn FnMut(&SealedBackup, std::result::Result<Sent, &Error>),
) -> std::result::Result<SealedCopied, CopyError> {
    check_sealed(from, to)?;
    if plan.missing.is_empty() {
        return Ok(SealedCopied::default());
    }
    let condemned = to.store.condemned().map_err(CopyError::To)?;
    let mover = Mover::new(
        &*from.store,
        &*to.store,
        from.identity.block_size,
        options,
        condemned.into_iter().collect(),
    );
    let mut job = Job {
        from: &*from.store,
        to: &*to.store,
        door: Door::of(&from.identity),
        mover,
        pages: HashMap::new(),
        planned: plan.missing.iter().map(|backup| backup.record.key.clone()).collect(),
        options,
    };
    let mut copied = SealedCopied::default();
    let ended = job.run(plan, to, &mut copied, done);
    if ended.is_err() {
        // So that the next copy need not send the same again.
        let _ = to.store.flush();
    }
    if !copied.copied.is_empty() {
        copied.unpublished = to.keeper.publish().err();
    }
    ended?;
    copied.sent = job.sent();
    copied.found_blocks = job.mover.totals().1;
    Ok(copied)
}

struct Job<'a> {
    from: &'a dyn StoreReader,
    to: &'a dyn StoreWriter,
    door: Door,
    mover: Mover<'a>,
    /// Pages of manifests, and a backup that the other repository has with them.
    pages: HashMap<NodeId, String>,
    /// Keys of all backups that this copy adds.
    planned: BTreeSet<String>,
    options: CopyOptions<'a>,
}

impl Job<'_> {
    fn run(
        &mut self,
        plan: SealedPlan,
        to: &SealedWriter,
        copied: &mut SealedCopied,
        done: &mut dyn FnMut(&SealedBackup, std::result::Result<Sent, &Error>),
    ) -> std::result::Result<(), CopyError> {
        let likely = 2 * plan.missing.len() + MORE_LIKELY_BASES;
        for base in plan.bases.iter().take(likely) {
            self.learn(base).map_err(CopyError::From)?;
        }
        let mut published = Instant::now();
        for backup in &plan.missing {
            if self.options.cancel.load(Ordering::SeqCst) {
                return Err(CopyError::To(Error::Interrupted));
            }
            (self.options.check_room)().map_err(CopyError::To)?;
            let before = self.sent();
            let key = &backup.record.key;
            match self.backup(&backup.record) {
                Ok(()) => {
                    let after = self.sent();
                    let sent = Sent {
                        blocks: after.blocks - before.blocks,
                        plain_bytes: 0,
                        stored_bytes: after.stored_bytes - before.stored_bytes,
                    };
                    done(backup, Ok(sent));
                    copied.copied.push((key.clone(), sent));
                    if published.elapsed() >= PUBLISH_INTERVAL {
                        // One that fails is made up for at the end.
                        let _ = to.keeper.publish();
                        published = Instant::now();
                    }
                }
                Err(Fault::Backup(error)) => {
                    done(backup, Err(&error));
                    copied.failed.push((key.clone(), error));
                }
                Err(Fault::From(error)) => return Err(CopyError::From(error)),
                Err(Fault::To(error)) => return Err(CopyError::To(error)),
            }
        }
        Ok(())
    }

    fn sent(&self) -> Sent {
        Sent {
            plain_bytes: 0,
            ..self.mover.totals().0
        }
    }

    /// Notes the pages of a backup that both have. What is damaged is left out.
    fn learn(&mut self, record: &Record) -> Result<()> {
        let roots = roots_below(&record.bytes).unwrap_or_default();
        for ids in roots.chunks(NODES) {
            for root in nodes(self.from, ids) {
                let root = match root {
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                    root => root.ok().and_then(|root| Some(Head::split(&root)?.0)),
                };
                self.has_pages(root.into_iter().flat_map(|root| root.names), &record.key);
            }
        }
        Ok(())
    }

    /// Notes pages of a backup that both have.
    fn has_pages(&mut self, pages: impl IntoIterator<Item = [u8; 32]>, key: &str) {
        for page in pages {
            self.pages.entry(NodeId(page)).or_insert_with(|| key.to_owned());
        }
    }

    fn backup(&mut self, record: &Record) -> std::result::Result<(), Fault> {
        self.door.check_record(record).map_err(Fault::Backup)?;
        let roots = roots_below(&record.bytes).unwrap_or_default();
        let pages = self.put_roots(&roots)?;
        if let Some(base) = self.base_of(&pages) {
            // Only so that the store looks at less.
            self.to.builds_on(&base).map_err(Fault::To)?;
        }
        let mut put: HashSet<[u8; 32]> = HashSet::new();
        let mut vain_rounds = 0;
        loop {
            let (missing_blocks, missing_nodes) = match self.commit(record) {
                Err(Error::Missing { blocks, nodes }) => (blocks, nodes),
                committed => {
                    self.mover.are_lost(Vec::new());
                    committed.map_err(Fault::To)?;
                    self.has_pages(pages, &record.key);
                    return Ok(());
                }
            };
            let named = || {
                missing_nodes
                    .iter()
                    .map(|id| id.0)
                    .chain(missing_blocks.iter().map(|id| id.0))
            };
            vain_rounds = match named().all(|id| put.contains(&id)) {
                true => vain_rounds + 1,
                false => 0,
            };
            if vain_rounds > MOST_VAIN_ROUNDS {
                return Err(Fault::To(Error::Missing {
                    blocks: missing_blocks,
                    nodes: missing_nodes,
                }));
            }
            put = named().collect();
            // Put them whatever the index says.
            self.mover.are_lost(missing_blocks.clone());
            self.put_nodes(&missing_nodes)?;
            self.put_blocks(&missing_blocks)?;
        }
    }

    /// Returns a backup that both have with most of these pages.
    fn base_of(&self, pages: &[[u8; 32]]) -> Option<String> {
        let mut shared: HashMap<&String, usize> = HashMap::new();
        for base in pages.iter().filter_map(|page| self.pages.get(&NodeId(*page))) {
            *shared.entry(base).or_default() += 1;
        }
        let most = shared.into_iter().max_by_key(|(base, pages)| (*pages, *base));
        most.map(|(base, _)| base.clone())
    }

    fn head(&self, id: NodeId, bytes: &[u8]) -> std::result::Result<Head, Fault> {
        self.door.check_node(id, bytes).map_err(Fault::Backup)?;
        let head = Head::split(bytes).map(|(head, _)| head);
        head.ok_or_else(|| Fault::Backup(crate::manifest::damaged(id, "it is cut off")))
    }

    /// Puts those of a backup's roots, and of the pages below them, that the other store lacks. Returns the pages below all roots.
    fn put_roots(&self, ids: &[NodeId]) -> std::result::Result<Vec<[u8; 32]>, Fault> {
        let (mut pages, mut may_lack) = (Vec::new(), Vec::new());
        for ids in ids.chunks(NODES) {
            let lacking = self.lacking(ids)?;
            let mut put = Vec::new();
            for (id, root) in ids.iter().zip(nodes(self.from, ids)) {
                let root = root.map_err(Fault::of_source)?;
                let below = self.head(*id, &root)?.names;
                if lacking.contains(id) {
                    may_lack.extend(below.iter().copied().map(NodeId));
                    put.push((*id, root));
                }
                pages.extend(below);
            }
            self.to.put_nodes(put).map_err(Fault::To)?;
        }
        self.put_nodes(&self.lacking(&may_lack)?)?;
        Ok(pages)
    }

    /// Returns those of some small nodes, roots and pages, that the other store lacks.
    fn lacking(&self, ids: &[NodeId]) -> std::result::Result<Vec<NodeId>, Fault> {
        let mut lacking = Vec::new();
        for ids in ids.chunks(NODES) {
            for (id, there) in ids.iter().zip(nodes(self.to, ids)) {
                match there {
                    Ok(bytes) if self.door.check_node(*id, &bytes).is_ok() => {}
                    Err(error) if error.kind() != ErrorKind::Corrupt => return Err(Fault::To(error)),
                    _ => lacking.push(*id),
                }
            }
        }
        Ok(lacking)
    }

    /// Puts nodes, and those of the pages and blocks below them that the other store lacks.
    fn put_nodes(&self, ids: &[NodeId]) -> std::result::Result<(), Fault> {
        let mut pages = Vec::new();
        self.mover.work(
            |hand_out| {
                for ids in ids.chunks(NODES) {
                    let (mut put, mut blocks) = (Vec::new(), Vec::new());
                    for (id, bytes) in ids.iter().zip(nodes(self.from, ids)) {
                        let bytes = bytes.map_err(Fault::of_source)?;
                        let head = self.head(*id, &bytes)?;
                        match head.kind {
                            Kind::Root => pages.extend(head.names.into_iter().map(NodeId)),
                            Kind::Full | Kind::Delta => blocks.extend(head.names.into_iter().map(BlockId)),
                            // The commit tells which of its segments are missing: to ask for them would read all of them.
                            Kind::Page => {}
                        }
                        put.push((*id, bytes));
                    }
                    hand_out(Task::Nodes(put))?;
                    // A full segment names blocks too that no backup needs any more, and that are gone.
                    self.hand_out_lacking(blocks, true, hand_out)?;
                }
                Ok(())
            },
            &|pieces| self.put_run(&pieces),
        )?;
        match pages.is_empty() {
            true => Ok(()),
            false => self.put_nodes(&self.lacking(&pages)?),
        }
    }

    fn put_blocks(&self, ids: &[BlockId]) -> std::result::Result<(), Fault> {
        self.mover.work(
            |hand_out| self.hand_out_lacking(ids.to_vec(), false, hand_out),
            &|pieces| self.put_run(&pieces),
        )
    }

    /// Hands out the blocks that the other store lacks, in the order in which this one has them.
    fn hand_out_lacking(
        &self,
        mut ids: Vec<BlockId>,
        may_be_gone: bool,
        hand_out: &mut dyn FnMut(Task<Located>) -> std::result::Result<(), Fault>,
    ) -> std::result::Result<(), Fault> {
        ids.sort_unstable();
        ids.dedup();
        let mut pieces = Vec::new();
        for ids in ids.chunks(BLOCKS) {
            let mut missing = self.mover.are_missing(ids)?.into_iter();
            let mut ids = ids.to_vec();
            ids.retain(|_| missing.next().unwrap_or(true));
            let located = self.from.locate(&ids).map_err(Fault::of_source)?;
            for (id, located) in ids.into_iter().zip(located) {
                match located {
                    Some(with) => pieces.push(Piece {
                        id,
                        len: with.stored_bytes as usize,
                        with,
                    }),
                    None if may_be_gone => {}
                    None => return Err(Fault::Backup(Error::BlockMissing(id))),
                }
            }
        }
        pieces.sort_by_key(|piece| piece.with.place);
        hand_out(Task::Blocks(pieces))
    }

    /// Reads blocks and compares them with their sums.
    fn read(&self, pieces: &[Piece<Located>]) -> std::result::Result<Vec<crate::codec::Sealed>, Fault> {
        let wanted: Vec<_> = pieces
            .iter()
            .map(|piece| self.door.whole(piece.id, piece.with))
            .collect();
        let answers = pieces.iter().zip(get(self.from, &wanted));
        let checked = answers.map(|(piece, stored)| self.door.check_stored(piece.id, piece.with, stored?, self.from));
        let checked: Result<Vec<_>> = checked.collect();
        let bytes: usize = pieces.iter().map(|piece| piece.len).sum();
        (self.options.observer)(super::Step::Read(bytes as u64));
        checked.map_err(Fault::of_source)
    }

    /// Commits a record together with the list of those that the epoch does not count.
    fn commit(&self, record: &Record) -> Result<()> {
        let (keys, names) = ([record.key.clone()], [uncounted::NAME.to_owned()]);
        for _ in 0..MOST_TRIES {
            let found = self.to.lookup(&keys, &names)?;
            if !found.records.is_empty() {
                // Another copy was faster.
                return Ok(());
            }
            let list = found.notes.first().and_then(|note| note.value.as_deref());
            let mut listed = uncounted::names(list.unwrap_or_default());
            let notes = match listed.contains(&record.key) {
                true => Vec::new(),
                false => {
                    listed.extend(self.planned.iter().cloned());
                    vec![uncounted::note(&listed)]
                }
            };
            match self.to.commit_at(record, &notes, Some(found.generation)) {
                Err(Error::Moved) => {}
                committed => return committed,
            }
        }
        Err(Error::Moved)
    }
}
