//! A store that the server has open.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use jiff::Timestamp;
use parking_lot::Mutex;
use vbk_repo::block::PAGE_BYTES;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::store::{
    Distance, Forgotten, Identity, Listing, Located, Note, Received, Record, StoreReader, Stored, Terms, Wanted,
};
use vbk_repo::{Error, Result};

use super::copies::Copies;
use super::early::Early;
use super::kept::{Kept, Thing};
use super::lanes::Lanes;
use super::link::{Answers, Link, Part};
use super::puts::{Id, Puts};
use super::state::Event;
use crate::body;
use crate::message::{Answer, Ask, Fault, Handle, MAX_NAMES, MAX_NODES, MAX_SUMS, StoredShape};

mod pieces;
mod writing;

use pieces::{PIECE_BYTES, after, bytes_of, split};
pub(super) use writing::RemoteKeeper;

/// A store that the server has open, until it is dropped.
pub(crate) struct RemoteStore {
    opened: Opened,
    /// Bytes of blocks that were asked for on this connection.
    asked_bytes: AtomicUsize,
    published: Mutex<Published>,
    /// Nodes that came from this host's cache, and the answers that tell which the server does not have so.
    compared: Mutex<Vec<Receiver<Event>>>,
    /// For the server, if it trusts this client.
    terms: Mutex<Terms>,
}

/// The publication of the last commit.
#[derive(Default)]
enum Published {
    /// The next commit asks for it.
    #[default]
    Next,
    /// It was asked for with the commit.
    Asked(Receiver<Event>),
    /// The caller asks for it when it wants it.
    Seldom,
}

/// What the opening of a store gives.
pub(crate) struct Opened {
    pub(super) link: Arc<Link>,
    pub(super) handle: Handle,
    pub(super) identity: Identity,
    pub(super) distance: Distance,
    pub(super) puts: Arc<Puts>,
    pub(super) is_writer: bool,
    pub(super) early: Early,
    pub(super) lanes: Lanes,
    /// For a writer, the nodes that a backup compares with; for a reader, all that it reads.
    pub(super) kept: Option<Arc<Kept>>,
}

impl Deref for RemoteStore {
    type Target = Opened;

    fn deref(&self) -> &Opened {
        &self.opened
    }
}

impl RemoteStore {
    pub(super) fn new(opened: Opened) -> Self {
        Self {
            opened,
            asked_bytes: AtomicUsize::new(0),
            published: Mutex::default(),
            compared: Mutex::default(),
            terms: Mutex::default(),
        }
    }

    pub(super) fn is_of(&self, identity: &Identity) -> bool {
        self.identity.is_of_same(identity)
    }

    /// Bytes that are on their way on this connection.
    pub(super) fn load(&self) -> usize {
        self.asked_bytes.load(Ordering::Relaxed) + self.link.put_bytes()
    }

    /// Returns whether nothing will be answered on this connection any more.
    pub(super) fn is_over(&self) -> bool {
        self.link.is_over()
    }

    /// Waits until the puts have arrived, if `ids` are among them; without ids, until all have.
    fn drain(&self, ids: Option<&[Id]>) -> Result<()> {
        let lanes = self.lanes.all();
        let mut of_use = lanes.iter().filter(|lane| !lane.is_over() || lane.puts.has_any());
        of_use.try_for_each(|lane| lane.drain(ids))?;
        self.link.drain(&self.puts, ids)
    }

    /// Asks what has to see all that was put.
    fn read(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        self.drain(None)?;
        self.link.ask(ask, body)
    }

    /// Gives the present listing to `of`, if it is known, or there is an answer to wait for. Not if that is an error: who asks
    /// for something else than a damaged record still gets it.
    fn known<T>(&self, of: impl FnOnce(&Listing) -> T) -> Option<T> {
        let read = |answer| self.read_listing(&self.link.answers(answer)).ok();
        self.early.listing(self.is_writer, read, of)
    }

    fn list(&self, ask: &Ask) -> Result<Listing> {
        self.drain(None)?;
        self.read_listing(&self.link.begin(ask, Vec::new(), false)?)
    }

    fn read_listing(&self, answers: &Answers<'_>) -> Result<Listing> {
        self.collect(answers, |listing: &mut Listing, answer, body| {
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
                    let time = self.time(seconds)?;
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
            Ok(())
        })
    }

    fn time(&self, seconds: i64) -> Result<Timestamp> {
        Timestamp::from_second(seconds).map_err(|_| self.link.unexpected())
    }

    /// Puts an answer in parts together: `add` adds a part to those before it.
    fn collect<T: Default>(
        &self,
        answers: &Answers<'_>,
        add: impl Fn(&mut T, Answer, Vec<u8>) -> Result<()>,
    ) -> Result<T> {
        let mut all = T::default();
        loop {
            match answers.part()? {
                Part::Answer(answer, body, more) => {
                    add(&mut all, answer, body)?;
                    if !more {
                        return Ok(all);
                    }
                }
                Part::Restarted => all = T::default(),
                Part::Lost(reason) => return Err(self.link.lost(&reason)),
            }
        }
    }

    /// Asks all questions at once, each about some things, and returns an answer per thing; first waits for the puts of `after`, as
    /// [`RemoteStore::drain`] does. `take` takes the answers to one question off its body.
    fn ask_each<T>(
        &self,
        after: Option<&[Id]>,
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
        if let Err(error) = self.drain(after) {
            return all_failed(&error, questions.iter().map(|(count, ..)| count).sum());
        }
        let begin = |(count, ask, body)| (count, self.link.begin(&ask, body, false));
        let asked: Vec<_> = questions.into_iter().map(begin).collect();
        asked
            .into_iter()
            .flat_map(|(count, answers)| answer(answers, count).unwrap_or_else(|error| all_failed(&error, count)))
            .collect()
    }

    /// Reads blocks on this connection.
    fn get_here(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let bytes = bytes_of(wanted);
        self.asked_bytes.fetch_add(bytes, Ordering::Relaxed);
        let page = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let question = |wanted: &[Wanted]| {
            let of = |wanted: &Wanted| (wanted.id.0, page(wanted.pages.start), page(wanted.pages.len()));
            let ask = Ask::Get {
                store: self.handle,
                wanted: wanted.iter().map(of).collect(),
            };
            (wanted.len(), ask, Vec::new())
        };
        let pieces = split(wanted, PIECE_BYTES, |wanted| wanted.pages.len().max(1) * PAGE_BYTES);
        // Other puts go on meanwhile: a backup reads what it makes differences from.
        let ids: Vec<_> = wanted.iter().map(|wanted| wanted.id.0).collect();
        let stored = self.ask_each(
            Some(&ids),
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
        );
        self.asked_bytes.fetch_sub(bytes, Ordering::Relaxed);
        stored
    }

    /// Asks the server for the sums of nodes that are known here, without waiting for the answers.
    fn compare_nodes(&self, ids: &[NodeId], known: &[Option<(Vec<u8>, [u8; 32])>]) {
        let pairs = ids.iter().zip(known);
        let pairs: Vec<_> = pairs
            .filter_map(|(id, known)| Some([id.0, known.as_ref()?.1]))
            .collect();
        for pairs in pairs.chunks(MAX_SUMS) {
            let body = body::ids(pairs.iter().flatten().copied());
            match self.link.begin(&Ask::CompareNodes(self.handle), body, false) {
                Ok(answers) => self.compared.lock().push(answers.later()),
                // The next question says it.
                Err(error) => tracing::debug!("{error}"),
            }
        }
    }

    fn read_ids(&self, answer: Result<(Answer, Vec<u8>)>) -> Result<Vec<Id>> {
        match answer? {
            (Answer::Ids, body) => body::read_ids(&body).ok_or_else(|| self.link.unexpected()),
            _ => Err(self.link.unexpected()),
        }
    }

    fn fetch_nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let question = |ids: &[NodeId]| {
            let body = body::ids(ids.iter().map(|id| id.0));
            (ids.len(), Ask::Nodes(self.handle), body)
        };
        let questions = ids.chunks(MAX_NODES).map(question).collect();
        self.ask_each(None, questions, |answer, body| match answer {
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
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        // On this machine the lock is free when this returns, so the next command need not wait for it.
        let waits = self.is_writer && self.distance == Distance::Near;
        self.link.close_store(self.handle, waits);
    }
}

impl StoreReader for RemoteStore {
    fn identity(&self) -> Result<Identity> {
        Ok(self.identity.clone())
    }

    fn generation(&self) -> Result<u64> {
        if let Some(generation) = self.known(|listing| listing.generation) {
            return Ok(generation);
        }
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
        self.drain(Some(&ids))?;
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
        self.drain(None)?;
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
        let answer = match self.early.condemned() {
            Some(answer) => self.link.answers(answer).only(),
            None => self.read(&Ask::Condemned(self.handle), Vec::new()),
        };
        Ok(self.read_ids(answer)?.into_iter().map(BlockId).collect())
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let Some(lane) = self.lanes.pick(bytes_of(wanted), self.load()) else {
            return self.get_here(wanted);
        };
        let mut stored = lane.get_here(wanted);
        let failed = stored.iter().enumerate().filter(|(_, stored)| stored.is_err());
        let failed: Vec<_> = failed.map(|(at, _)| at).collect();
        if !failed.is_empty() {
            let again: Vec<_> = failed.iter().map(|at| wanted[*at].clone()).collect();
            for (at, answer) in failed.into_iter().zip(self.get_here(&again)) {
                stored[at] = answer;
            }
        }
        stored
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let known = match self.kept.as_ref().filter(|_| self.is_writer) {
            Some(kept) => ids.iter().map(|id| kept.get(Thing::Made(*id))).collect(),
            None => vec![None; ids.len()],
        };
        self.compare_nodes(ids, &known);
        let others = ids.iter().zip(&known).filter(|(_, known)| known.is_none());
        let others: Vec<_> = others.map(|(id, _)| *id).collect();
        let mut fetched = self.fetch_nodes(&others).into_iter();
        let node = |known: Option<(Vec<u8>, _)>| match known {
            Some((bytes, _)) => Ok(bytes),
            None => fetched.next().unwrap_or_else(|| Err(self.link.unexpected())),
        };
        known.into_iter().map(node).collect()
    }

    fn with_copies(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        let kept = self.kept.clone().filter(|_| !self.is_writer)?;
        Some(Arc::new(Copies::new(self, kept)))
    }

    fn records(&self) -> Result<Vec<Record>> {
        Ok(self.listing(false)?.records)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        if let Some(notes) = self.known(|listing| listing.notes.clone()) {
            return Ok(notes);
        }
        let ask = Ask::Listing {
            store: self.handle,
            records: false,
            notes: true,
        };
        Ok(self.list(&ask)?.notes)
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        let answers = self.link.begin(&Ask::Forgotten(self.handle), Vec::new(), false)?;
        self.collect(&answers, |all: &mut Vec<Forgotten>, answer, body| {
            let Answer::Forgotten(part) = answer else {
                return Err(self.link.unexpected());
            };
            let mut strings = body::Strings(&body);
            for (key, len, removed, kept_until) in part {
                let bytes = strings.take(len).ok_or_else(|| self.link.unexpected())?;
                all.push(Forgotten {
                    record: Record { key, bytes },
                    removed: self.time(removed)?,
                    kept_until: self.time(kept_until)?,
                });
            }
            Ok(())
        })
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        let of = |listing: &Listing| match with_notes {
            true => listing.clone(),
            false => Listing {
                records: listing.records.clone(),
                notes: Vec::new(),
                foreign_changes: listing.foreign_changes.clone(),
                generation: listing.generation,
                received: listing.received.clone(),
            },
        };
        if let Some(listing) = self.known(of) {
            return Ok(listing);
        }
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
