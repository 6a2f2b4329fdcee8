//! What changes a store that the server has open.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use vbk_repo::codec::Sealed;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::repository::Pruned;
use vbk_repo::repository::home::{Keeper, Room};
use vbk_repo::store::{Distance, Live, Note, PruneOptions, Record, StoreManager, StoreWriter, Swept, Terms};
use vbk_repo::{Error, ErrorKind, Result};

use super::{Opened, Published, RemoteStore, split};
use crate::body;
use crate::client::gate::GATE;
use crate::client::kept::Thing;
use crate::client::link::Part;
use crate::client::state::Event;
use crate::message::{Answer, Ask, DIFFERENCES_PROTOCOL, MAX_NAMES, MAX_NODES};

/// Bytes of blocks in one put, at least one block. The server needs memory for all of a put before it can work on it.
const PUT_BYTES: usize = 1 << 20;

/// Time between two looks whether the caller wants to stop.
const CANCEL_POLL: Duration = Duration::from_millis(200);

impl RemoteStore {
    /// Puts blocks on this connection, if it takes them soon.
    fn put_here(&self, blocks: &[Sealed], bytes: usize) -> Result<bool> {
        self.flush_if_due()?;
        self.link.put_blocks_soon(&self.puts, bytes, || {
            let mut body = Vec::with_capacity(bytes);
            let ids = blocks.iter().map(|block| block.id.0).collect();
            let shapes = blocks.iter().map(|block| body::add_sealed(block, &mut body)).collect();
            let ask = Ask::Put {
                store: self.handle,
                blocks: shapes,
            };
            (ids, ask, body)
        })
    }

    /// Puts blocks on the first connection that takes them soon.
    fn put_somewhere(&self, blocks: &[Sealed]) -> Result<()> {
        let bytes = blocks.iter().map(Sealed::stored_bytes).sum::<u64>() as usize;
        self.lanes.moves(bytes);
        loop {
            let seen = GATE.changes();
            if self.put_here(blocks, bytes)? {
                return Ok(());
            }
            for lane in self.lanes.all() {
                if !lane.is_over() && lane.put_here(blocks, bytes)? {
                    return Ok(());
                }
            }
            GATE.wait(seen);
        }
    }

    /// Flushes what was put on the other connections, on all at once.
    fn flush_lanes(&self) -> Result<()> {
        let lanes = self.lanes.all();
        let lanes: Vec<_> = lanes.iter().filter(|lane| lane.puts.has_any()).collect();
        std::thread::scope(|scope| {
            let flushing: Vec<_> = lanes.iter().map(|lane| scope.spawn(|| lane.flush())).collect();
            let flushed = flushing.into_iter().map(|lane| lane.join());
            flushed.into_iter().try_for_each(|flushed| match flushed {
                Ok(flushed) => flushed,
                Err(_) => Err(self.link.unexpected()),
            })
        })
    }

    /// Puts nodes on this connection.
    fn put_nodes_here(&self, nodes: &[(NodeId, Vec<u8>)]) -> Result<()> {
        for nodes in nodes.chunks(MAX_NODES) {
            let body = nodes.iter().flat_map(|(_, bytes)| bytes).copied().collect();
            let ask = Ask::PutNodes {
                store: self.handle,
                nodes: nodes.iter().map(|(id, bytes)| (id.0, bytes.len() as u32)).collect(),
                terms: *self.terms.lock(),
            };
            self.flush_if_due()?;
            self.link.put_nodes(&self.puts, &ask, body)?;
        }
        Ok(())
    }

    /// Puts again what a backup took from the cache, and the server does not have so. Another guest of this store waits for it.
    fn put_compared(&self) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut compared = self.compared.lock();
        let (mut again, mut gone) = (Vec::new(), Vec::new());
        // An answer that fails must not take the others with it.
        let mut compares = Ok(());
        for answer in compared.drain(..) {
            match self.read_ids(self.link.answers(answer).only()) {
                Ok(ids) => {
                    for id in ids.into_iter().map(NodeId) {
                        match kept.get(Thing::Made(id)) {
                            Some((bytes, _)) => again.push((id, bytes)),
                            None => gone.push(id),
                        }
                    }
                }
                Err(error) => compares = Err(error),
            }
        }
        self.put_nodes_here(&again)?;
        compares?;
        match gone.is_empty() {
            true => Ok(()),
            // The backup makes them anew.
            false => Err(Error::Missing {
                blocks: Vec::new(),
                nodes: gone,
            }),
        }
    }

    /// Asks what changes the store, after all that was put.
    fn write(&self, ask: &Ask, body: Vec<u8>) -> Result<()> {
        self.early.forget();
        // On the other connections; on this one it keeps its order.
        self.drain(None)?;
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

    /// Asks what changes blocks, some at a time.
    fn write_ids(&self, ask: &Ask, ids: &[BlockId]) -> Result<()> {
        ids.chunks(MAX_NAMES)
            .try_for_each(|ids| self.write(ask, body::ids(ids.iter().map(|id| id.0))))
    }

    /// Asks for a flush or commit until it is answered on one connection. Returns where the answer to `then` comes.
    fn barrier(&self, ask: &Ask, then: Option<&Ask>) -> Result<Receiver<Event>> {
        loop {
            match self.link.barrier(&self.puts, ask, then) {
                Ok(Some(then)) => return self.link.check(&self.puts).map(|()| then),
                Ok(None) => {}
                // The first reason, and not that something failed before.
                Err(error) => return self.link.check(&self.puts).and(Err(error)),
            }
        }
    }

    /// Flushes when much was put since the last time: all of it may have to be put again.
    fn flush_if_due(&self) -> Result<()> {
        match self.puts.are_many() {
            true => self.flush(),
            false => Ok(()),
        }
    }
}

impl StoreWriter for RemoteStore {
    fn takes_differences(&self) -> bool {
        self.distance == Distance::Near && self.link.welcome().protocol >= DIFFERENCES_PROTOCOL
    }

    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.early.forget_condemned();
        let bases: Vec<_> = blocks.iter().filter_map(|block| Some(block.base?.0)).collect();
        if !bases.is_empty() {
            if self.link.welcome().protocol < DIFFERENCES_PROTOCOL {
                return Err(Error::Remote {
                    kind: ErrorKind::Unsupported,
                    message: format!(
                        "{} on the server is too old for blocks that are stored as differences; use the same vbk on both",
                        self.link.welcome().program
                    ),
                });
            }
            // They are put on several connections, and a base must be there first.
            self.drain(Some(&bases))?;
        }
        for blocks in split(&blocks, PUT_BYTES, |block| block.stored_bytes() as usize) {
            self.put_somewhere(blocks)?;
        }
        Ok(())
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.put_nodes_here(&nodes)?;
        if let Some(kept) = &self.kept {
            nodes
                .iter()
                .for_each(|(id, bytes)| kept.put(Thing::Made(*id), &[bytes]));
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
        self.flush_lanes()?;
        self.barrier(&Ask::Flush(self.handle), None).map(drop)
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
        self.early.forget();
        self.put_compared()?;
        self.flush_lanes()?;
        // Most callers publish next. One whose last commit was not published makes many first.
        let mut published = self.published.lock();
        let publish = matches!(*published, Published::Next).then_some(Ask::Publish(self.handle));
        let answer = self.barrier(&ask, publish.as_ref())?;
        *published = match publish {
            Some(_) => Published::Asked(answer),
            None => Published::Seldom,
        };
        Ok(())
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
        // One that was asked for before would not show this.
        *self.published.lock() = Published::Next;
        self.write(&ask, Vec::new())
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.write_ids(&Ask::Condemn(self.handle), ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.write_ids(&Ask::Pardon(self.handle), ids)
    }

    fn retain(&self, _: &Live, _: PruneOptions, _: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        // What is live is the server's to find: no client can make it remove what a backup names.
        Err(Error::NotOnThisMachine {
            path: Path::new(self.link.name()).to_owned(),
        })
    }
}

/// The place of a store that is open for writing.
pub(in crate::client) struct RemoteKeeper(pub(in crate::client) Arc<RemoteStore>);

impl RemoteKeeper {
    fn pruned(&self, options: PruneOptions, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Result<Pruned> {
        let Opened { link, handle, .. } = &**self.0;
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
        let mut published = self.0.published.lock();
        if let Published::Asked(_) = *published
            && let Published::Asked(answer) = std::mem::take(&mut *published)
        {
            match self.0.link.answers(answer).part()? {
                Part::Answer(Answer::Done, ..) => return Ok(()),
                Part::Lost(_) => {}
                _ => return Err(self.0.link.unexpected()),
            }
        }
        self.0.write(&Ask::Publish(self.0.handle), Vec::new())
    }

    fn room(&self) -> Result<Room> {
        match self.0.link.ask(&Ask::Room(self.0.handle), Vec::new())? {
            (Answer::Room(room), _) => Ok(room),
            _ => Err(self.0.link.unexpected()),
        }
    }
}
