//! A store that the server has open.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use vbk_repo::block::PAGE_BYTES;
use vbk_repo::codec::Sealed;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::repository::Pruned;
use vbk_repo::repository::home::{Keeper, Room};
use vbk_repo::store::{
    Distance, Forgotten, Identity, Listing, Live, Located, Note, PruneOptions, Received, Record, StoreManager,
    StoreReader, StoreWriter, Stored, Swept, Terms, Wanted,
};
use vbk_repo::{Error, ErrorKind, Result};

use super::link::{Answers, Barrier, Link, Part};
use super::puts::Puts;
use crate::body;
use crate::message::{Answer, Ask, Fault, Handle, MAX_NAMES, MAX_NODES, MAX_PAGES, StoredShape};

/// Bytes of blocks in one question, at least one block.
const PIECE_BYTES: usize = MAX_PAGES * PAGE_BYTES / 2;
/// Time between two looks whether the caller wants to stop.
const CANCEL_POLL: Duration = Duration::from_millis(200);

/// A store that the server has open, until it is dropped.
pub(crate) struct RemoteStore {
    link: Arc<Link>,
    handle: Handle,
    identity: Identity,
    distance: Distance,
    puts: Arc<Puts>,
    is_writer: bool,
    terms: Mutex<Terms>,
}

impl RemoteStore {
    pub(super) fn new(
        link: Arc<Link>,
        handle: Handle,
        identity: Identity,
        distance: Distance,
        puts: Arc<Puts>,
        is_writer: bool,
    ) -> Self {
        Self {
            link,
            handle,
            identity,
            distance,
            puts,
            is_writer,
            terms: Mutex::default(),
        }
    }

    /// Asks what has to see all that was put.
    fn read(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        self.link.drain(&self.puts, None)?;
        self.link.ask(ask, body)
    }

    /// Asks what changes the store, after all that was put.
    fn write(&self, ask: &Ask, body: Vec<u8>) -> Result<()> {
        let (answer, _) = match self.link.ask_in_order(ask, body) {
            // The first reason, and not that something failed before.
            Err(error) => return self.link.check(&self.puts).and(Err(error)),
            answer => answer?,
        };
        self.link.check(&self.puts)?;
        match answer {
            Answer::Done => Ok(()),
            _ => Err(self.link.unexpected()),
        }
    }

    /// Asks for a flush or commit until it is answered on one connection. What a server that was restarted has lost is put again
    /// first, or is the error.
    fn barrier(&self, ask: &Ask) -> Result<()> {
        loop {
            let missing = self.puts.missing();
            if !missing.is_empty() && !matches!(ask, Ask::Flush(_)) {
                return Err(missing_error(missing));
            }
            match self.link.barrier(&self.puts, ask) {
                Ok(Barrier::InDoubt) => self.settle()?,
                Ok(Barrier::Unknown) => {}
                // The first reason, and not that something failed before.
                Err(error) => return self.link.check(&self.puts).and(Err(error)),
                Ok(Barrier::Done) => {
                    self.link.check(&self.puts)?;
                    let missing = self.puts.missing();
                    return match missing.is_empty() {
                        true => Ok(()),
                        false => Err(missing_error(missing)),
                    };
                }
            }
        }
    }

    /// Finds out what the server has lost of all that was put, and puts the nodes among it again.
    fn settle(&self) -> Result<()> {
        let Some(doubt) = self.puts.doubt() else {
            return Ok(());
        };
        for nodes in &doubt.nodes {
            self.link.put_again(&self.puts, nodes)?;
        }
        let ids: Vec<_> = doubt.blocks.iter().copied().map(BlockId).collect();
        let located = self.locate(&ids)?;
        let missing = doubt
            .blocks
            .iter()
            .zip(located)
            .filter(|(_, located)| located.is_none());
        let missing = missing.map(|(id, _)| *id).collect();
        self.puts.resolve(&doubt, missing);
        Ok(())
    }

    /// Flushes when much was put since the last time: all of it may have to be put again.
    fn flush_if_due(&self) -> Result<()> {
        match self.puts.are_many().then(|| self.flush()) {
            // The caller's own flush says it again.
            None | Some(Ok(()) | Err(Error::Missing { .. })) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    fn list(&self, ask: &Ask) -> Result<Listing> {
        self.link.drain(&self.puts, None)?;
        let answers = self.link.begin(ask, Vec::new(), false)?;
        let mut listing = Listing::default();
        loop {
            let (answer, body, more) = match answers.part()? {
                Part::Answer(answer, body, more) => (answer, body, more),
                Part::Restarted => {
                    listing = Listing::default();
                    continue;
                }
                Part::Lost(reason) => return Err(self.link.lost(&reason)),
            };
            let Answer::Listing {
                records,
                notes,
                foreign_changes,
                generation,
            } = answer
            else {
                return Err(self.link.unexpected());
            };
            let mut strings = body::Strings(&body);
            let mut take = |len| strings.take(len).ok_or_else(|| self.link.unexpected());
            for (key, len, received) in records {
                if let Some((seconds, is_doubted)) = received {
                    let time = Timestamp::from_second(seconds).map_err(|_| self.link.unexpected())?;
                    listing.received.push((key.clone(), Received { time, is_doubted }));
                }
                listing.records.push(Record { key, bytes: take(len)? });
            }
            for (name, len) in notes {
                let value = Some(take(len)?);
                listing.notes.push(Note { name, value });
            }
            listing.foreign_changes.extend(foreign_changes);
            listing.generation = generation;
            if !more {
                return Ok(listing);
            }
        }
    }

    fn bin(&self) -> Result<Vec<Forgotten>> {
        let answers = self.link.begin(&Ask::Forgotten(self.handle), Vec::new(), false)?;
        let mut all = Vec::new();
        loop {
            let (answer, body, more) = match answers.part()? {
                Part::Answer(answer, body, more) => (answer, body, more),
                Part::Restarted => {
                    all.clear();
                    continue;
                }
                Part::Lost(reason) => return Err(self.link.lost(&reason)),
            };
            let Answer::Forgotten(part) = answer else {
                return Err(self.link.unexpected());
            };
            let mut strings = body::Strings(&body);
            let time = |seconds| Timestamp::from_second(seconds).map_err(|_| self.link.unexpected());
            for (key, len, removed, kept_until) in part {
                let bytes = strings.take(len).ok_or_else(|| self.link.unexpected())?;
                all.push(Forgotten {
                    record: Record { key, bytes },
                    removed: time(removed)?,
                    kept_until: time(kept_until)?,
                });
            }
            if !more {
                return Ok(all);
            }
        }
    }

    /// Asks all questions at once, each about some things, and returns an answer per thing. `take` takes the answers to one
    /// question off its body.
    fn ask_each<T>(
        &self,
        questions: Vec<(usize, Ask, Vec<u8>)>,
        take: impl Fn(Answer, &mut body::Strings<'_>) -> Option<Vec<Option<std::result::Result<T, Fault>>>>,
    ) -> Vec<Result<T>> {
        let name = self.link.name();
        let answer = |answers: Result<Answers<'_>>, count: usize| {
            let (answer, body) = answers?.only()?;
            let taken = take(answer, &mut body::Strings(&body)).filter(|taken| taken.len() == count);
            let taken = taken.ok_or_else(|| self.link.unexpected())?;
            Ok(taken
                .into_iter()
                .map(|one| match one {
                    Some(one) => one.map_err(|fault| fault.into_error(name)),
                    None => Err(self.link.unexpected()),
                })
                .collect())
        };
        // What fails the whole question is the error of each thing in it.
        let all_failed = |error: &Error, count| {
            let fault = Fault::from(error);
            (0..count).map(|_| Err(fault.clone().into_error(name))).collect()
        };
        if let Err(error) = self.link.drain(&self.puts, None) {
            return all_failed(&error, questions.iter().map(|(count, ..)| count).sum());
        }
        let begin = |(count, ask, body)| (count, self.link.begin(&ask, body, false));
        let asked: Vec<_> = questions.into_iter().map(begin).collect();
        asked
            .into_iter()
            .flat_map(|(count, answers)| answer(answers, count).unwrap_or_else(|error| all_failed(&error, count)))
            .collect()
    }
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        // The lock is free when this returns, so the next command need not wait for it.
        self.link.close_store(self.handle, self.is_writer);
    }
}

/// Cuts a list into pieces of [`PIECE_BYTES`], each of one thing at least.
fn split<T>(all: &[T], bytes_of: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, one) in all.iter().enumerate() {
        let more = bytes_of(one);
        if at > start && (bytes + more > PIECE_BYTES || at - start == MAX_NAMES) {
            pieces.push(&all[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < all.len() {
        pieces.push(&all[start..]);
    }
    pieces
}

impl StoreReader for RemoteStore {
    fn identity(&self) -> Result<Identity> {
        Ok(self.identity.clone())
    }

    fn generation(&self) -> Result<u64> {
        match self.read(&Ask::Generation(self.handle), Vec::new())? {
            (Answer::Number(Some(generation)), _) => Ok(generation),
            _ => Err(self.link.unexpected()),
        }
    }

    fn distance(&self) -> Distance {
        self.distance
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        self.link.drain(&self.puts, Some(&ids))?;
        let asked = ids.chunks(MAX_NAMES).map(|ids| {
            self.link
                .begin(&Ask::Locate(self.handle), body::ids(ids.iter().copied()), false)
        });
        let asked = asked.collect::<Result<Vec<_>>>()?;
        let mut located = Vec::with_capacity(ids.len());
        for answers in asked {
            match answers.only()? {
                (Answer::Located, body) => {
                    located.extend(body::read_entries(&body).ok_or_else(|| self.link.unexpected())?);
                }
                _ => return Err(self.link.unexpected()),
            }
        }
        Ok(located)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.link.drain(&self.puts, None)?;
        let mut next = from.0;
        loop {
            let ask = Ask::Survey {
                store: self.handle,
                from: next,
            };
            let (Answer::Surveyed { is_last }, body) = self.link.ask(&ask, Vec::new())? else {
                return Err(self.link.unexpected());
            };
            let rows = body::read_rows(&body).ok_or_else(|| self.link.unexpected())?;
            // A server that gives the same again would keep its caller for ever.
            let is_ascending = rows.is_sorted_by(|(one, _), (other, _)| one < other);
            if !is_ascending || rows.first().is_some_and(|(id, _)| id.0 < next) || (rows.is_empty() && !is_last) {
                return Err(self.link.unexpected());
            }
            for (id, located) in &rows {
                each(*id, *located)?;
            }
            match rows.last().and_then(|(id, _)| after(id.0)).filter(|_| !is_last) {
                Some(after) => next = after,
                None => return Ok(()),
            }
        }
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        match self.read(&Ask::Condemned(self.handle), Vec::new())? {
            (Answer::Ids, body) => {
                let ids = body::read_ids(&body).ok_or_else(|| self.link.unexpected())?;
                Ok(ids.into_iter().map(BlockId).collect())
            }
            _ => Err(self.link.unexpected()),
        }
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let page = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let question = |wanted: &[Wanted]| {
            let of = |wanted: &Wanted| (wanted.id.0, page(wanted.pages.start), page(wanted.pages.len()));
            let ask = Ask::Get {
                store: self.handle,
                wanted: wanted.iter().map(of).collect(),
            };
            (wanted.len(), ask, Vec::new())
        };
        let pieces = split(wanted, |wanted| wanted.pages.len().max(1) * PAGE_BYTES);
        self.ask_each(
            pieces.into_iter().map(question).collect(),
            |answer, body| match answer {
                Answer::Stored(shapes) => {
                    let take = |shape: std::result::Result<StoredShape, Fault>| match shape {
                        Ok(shape) => body.take_shape(&shape).map(Ok),
                        Err(fault) => Some(Err(fault)),
                    };
                    Some(shapes.into_iter().map(take).collect())
                }
                _ => None,
            },
        )
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let question = |ids: &[NodeId]| {
            let body = body::ids(ids.iter().map(|id| id.0));
            (ids.len(), Ask::Nodes(self.handle), body)
        };
        let questions = ids.chunks(MAX_NODES).map(question).collect();
        self.ask_each(questions, |answer, body| match answer {
            Answer::Nodes(lengths) => {
                let take = |len: std::result::Result<u32, Fault>| match len {
                    Ok(len) => body.take(len).map(Ok),
                    Err(fault) => Some(Err(fault)),
                };
                Some(lengths.into_iter().map(take).collect())
            }
            _ => None,
        })
    }

    fn records(&self) -> Result<Vec<Record>> {
        Ok(self.listing(false)?.records)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        let ask = Ask::Listing {
            store: self.handle,
            records: false,
            notes: true,
        };
        Ok(self.list(&ask)?.notes)
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.bin()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.list(&Ask::Listing {
            store: self.handle,
            records: true,
            notes: with_notes,
        })
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.list(&Ask::Lookup {
            store: self.handle,
            records: record_keys.to_vec(),
            notes: note_names.to_vec(),
        })
    }
}

/// Returns the id after this one; `None` after the last.
fn after(mut id: [u8; 32]) -> Option<[u8; 32]> {
    for byte in id.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(id);
        }
    }
    None
}

impl StoreWriter for RemoteStore {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        for blocks in split(&blocks, |block| block.stored_bytes() as usize) {
            let mut body = Vec::new();
            let ids = blocks.iter().map(|block| block.id.0).collect();
            let shapes = blocks.iter().map(|block| body::add_sealed(block, &mut body)).collect();
            let ask = Ask::Put {
                store: self.handle,
                blocks: shapes,
            };
            self.flush_if_due()?;
            self.link.put(&self.puts, Some(ids), &ask, body)?;
        }
        Ok(())
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        for nodes in nodes.chunks(MAX_NODES) {
            let body = nodes.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            let ask = Ask::PutNodes {
                store: self.handle,
                nodes: nodes.iter().map(|(id, bytes)| (id.0, bytes.len() as u32)).collect(),
                terms: *self.terms.lock(),
            };
            self.flush_if_due()?;
            self.link.put(&self.puts, None, &ask, body)?;
        }
        Ok(())
    }

    fn builds_on(&self, record_key: &str) -> Result<()> {
        let ask = Ask::BuildsOn {
            store: self.handle,
            record: record_key.to_owned(),
        };
        // It only saves the server work, so nobody waits for the answer.
        self.link.begin(&ask, Vec::new(), true).map(drop)
    }

    fn set_terms(&self, terms: Terms) {
        *self.terms.lock() = terms;
    }

    fn flush(&self) -> Result<()> {
        self.barrier(&Ask::Flush(self.handle))
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        let ask = Ask::Commit {
            store: self.handle,
            key: record.key.clone(),
            record: record.bytes.clone(),
            notes: notes_for(notes),
            at,
            terms: *self.terms.lock(),
        };
        self.barrier(&ask)
    }
}

fn missing_error(blocks: Vec<[u8; 32]>) -> Error {
    Error::Missing {
        blocks: blocks.into_iter().map(BlockId).collect(),
        // They were put again.
        nodes: Vec::new(),
    }
}

fn notes_for(notes: &[Note]) -> Vec<(String, Option<Vec<u8>>)> {
    notes
        .iter()
        .map(|note| (note.name.clone(), note.value.clone()))
        .collect()
}

impl StoreManager for RemoteStore {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        let ask = Ask::Amend {
            store: self.handle,
            remove_records: remove_records.to_vec(),
            notes: notes_for(notes),
            at,
            terms: *self.terms.lock(),
        };
        self.write(&ask, Vec::new())
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.write(&Ask::Condemn(self.handle), body::ids(ids.iter().map(|id| id.0)))
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.write(&Ask::Pardon(self.handle), body::ids(ids.iter().map(|id| id.0)))
    }

    fn retain(&self, _: &Live, _: PruneOptions, _: &mut dyn FnMut(u64) -> Result<()>) -> Result<Swept> {
        // What is live is the server's to find: no client can make it remove what a backup names.
        Err(Error::NotOnThisMachine {
            path: Path::new(self.link.name()).to_owned(),
        })
    }
}

/// The place of a store that is open for writing.
pub(super) struct RemoteKeeper(pub(super) Arc<RemoteStore>);

impl RemoteKeeper {
    fn pruned(&self, options: PruneOptions, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Result<Pruned> {
        let RemoteStore { link, handle, .. } = &*self.0;
        let ask = Ask::Prune {
            store: *handle,
            options,
        };
        let answers = link.begin_once(&ask)?;
        let mut stopped = false;
        loop {
            if !stopped && cancel.load(Ordering::SeqCst) {
                stopped = true;
                link.ask(&Ask::Stop(*handle), Vec::new())?;
            }
            match answers.part_within(CANCEL_POLL)? {
                None => {}
                Some(Part::Answer(Answer::Number(Some(bytes)), ..)) => progress(bytes),
                Some(Part::Answer(Answer::Pruned(pruned), ..)) => return Ok(pruned),
                Some(Part::Lost(reason)) => {
                    return Err(Error::Remote {
                        kind: ErrorKind::Unavailable,
                        message: format!(
                            "the connection to {} was lost during the prune: {reason}; the server may still be pruning; the next \
                             `vbk prune` continues",
                            link.name().display()
                        ),
                    });
                }
                Some(_) => return Err(link.unexpected()),
            }
        }
    }
}

impl Keeper for RemoteKeeper {
    fn prune(&self, options: PruneOptions, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Option<Result<Pruned>> {
        Some(self.pruned(options, cancel, progress))
    }

    fn publish(&self) -> Result<()> {
        self.0.write(&Ask::Publish(self.0.handle), Vec::new())
    }

    fn room(&self) -> Result<Room> {
        match self.0.link.ask(&Ask::Room(self.0.handle), Vec::new())? {
            (Answer::Room(room), _) => Ok(room),
            _ => Err(self.0.link.unexpected()),
        }
    }
}
