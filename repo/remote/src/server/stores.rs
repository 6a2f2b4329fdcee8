//! The stores that a client has open, and the answers from them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::keys::SlotFile;
use vbk_repo::repository::home::{Home, Keeper, Snapshot};
use vbk_repo::repository::prune_without_key;
use vbk_repo::store::door::Door;
use vbk_repo::store::{Forgotten, Identity, Listing, Note, Record, StoreManager, StoreReader, StoreWriter, Wanted};
use vbk_repo::{Error, ErrorKind, Result};

use super::Allowed;
use super::registry::Registered;
use super::session::Reply;
use super::status;
use crate::body;
use crate::client::node_sum;
use crate::message::{
    Answer, Ask, DIFFERENCES_PROTOCOL, Fault, Handle, MAX_BLOCK_PAGES, MAX_FINDING, MAX_FINDINGS, MAX_NAMES, MAX_NODES,
    MAX_PAGES, MAX_SUMS, PROTOCOL,
};

/// Stores that one client may have open.
const MAX_STORES: usize = 256;
/// Index entries of one answer: 768 KiB.
const SURVEYED: usize = 16 << 10;
/// Blocks that a client may put before a flush: until then the store keeps an entry of each in memory. Clients flush sooner.
pub(super) const UNFLUSHED_BLOCKS: usize = 16 << 10;
/// Bytes of records and notes of one answer.
const LISTED_BYTES: usize = 4 << 20;

/// Tells whether a client knows blocks with a base.
type CheckBase<'a> = dyn Fn(Option<BlockId>) -> Result<()> + 'a;

/// The stores that a client has open.
pub(super) struct Stores {
    home: Arc<dyn Home>,
    allowed: Allowed,
    /// Version of the protocol that the client speaks.
    protocol: u16,
    registered: Arc<Registered>,
    open: Mutex<HashMap<Handle, Arc<Open>>>,
    /// Stores in the opening: questions about them wait.
    opening: Mutex<HashSet<Handle>>,
    /// Notified when one was opened, or could not be.
    opened: Condvar,
}

/// An open store, with the rights that it was opened with.
struct Open {
    identity: Identity,
    /// `None` if what the client puts need not be checked.
    door: Option<Door>,
    reader: Arc<dyn StoreReader>,
    writer: Option<Arc<dyn StoreWriter>>,
    manager: Option<Arc<dyn StoreManager>>,
    /// Blocks since the last flush.
    unflushed_blocks: AtomicUsize,
    /// Ends a prune.
    stop: AtomicBool,
    /// Bytes that were put since the last flush.
    unflushed_bytes: AtomicU64,
    /// Dropped last: it lets the next writer in.
    keeper: Option<Arc<dyn Keeper>>,
}

impl Open {
    /// A store open for reading.
    fn new(reader: Arc<dyn StoreReader>, allowed: Allowed) -> Result<Self> {
        let identity = reader.identity()?;
        Ok(Self {
            door: (allowed != Allowed::Trusted).then(|| Door::of(&identity)),
            identity,
            reader,
            writer: None,
            manager: None,
            unflushed_blocks: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            unflushed_bytes: AtomicU64::new(0),
            keeper: None,
        })
    }
}

/// A store in the opening. Those that wait for it go on when this is dropped, after a panic too.
struct Opening<'a> {
    stores: &'a Stores,
    store: Handle,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.stores.opening.lock().remove(&self.store);
        self.stores.opened.notify_all();
    }
}

impl Stores {
    /// Ends what takes long, when nobody waits for it any more.
    pub(super) fn stop(&self) {
        self.open
            .lock()
            .values()
            .for_each(|open| open.stop.store(true, Ordering::SeqCst));
    }

    pub(super) fn new(home: Arc<dyn Home>, allowed: Allowed) -> Self {
        Self {
            home,
            allowed,
            protocol: PROTOCOL,
            registered: Arc::new(Registered::nobody()),
            open: Mutex::default(),
            opening: Mutex::default(),
            opened: Condvar::new(),
        }
    }

    /// The same for a client that is counted and speaks this version of the protocol.
    pub(super) fn of(self, registered: &Arc<Registered>, protocol: u16) -> Self {
        Self {
            registered: Arc::clone(registered),
            protocol,
            ..self
        }
    }

    /// An error for an older client, which was connected when the repository got its first difference.
    fn check_knows(&self, base: Option<BlockId>) -> Result<()> {
        match base.is_some() && self.protocol < DIFFERENCES_PROTOCOL {
            true => Err(Error::Remote {
                kind: ErrorKind::Unsupported,
                message:
                    "this vbk is too old for the repository, which has blocks that are stored as differences now; \
                          use the same vbk as on the server"
                        .into(),
            }),
            false => Ok(()),
        }
    }

    /// Returns whether a question opens a store. Questions that come after it about that store wait from now on until it is
    /// answered.
    pub(super) fn expect(&self, ask: &Ask) -> bool {
        match opens(ask) {
            Some(store) => {
                self.opening.lock().insert(store);
                true
            }
            None => false,
        }
    }

    /// Answers a question.
    pub(super) fn answer(&self, ask: Ask, body: &[u8], reply: &Reply) {
        let _opening = opens(&ask).map(|store| Opening { stores: self, store });
        let put_into = match &ask {
            Ask::Put { store, .. } | Ask::PutNodes { store, .. } => Some(*store),
            _ => None,
        };
        let answered = self.try_answer(ask, body, reply);
        if let Some(store) = put_into {
            self.count_put(store, body.len() as u64, answered.is_ok());
        }
        match answered {
            Ok(Some((answer, body))) => reply.send(&answer, body, false),
            Ok(None) => {}
            Err(error) => reply.send(&Answer::Failed(Fault::from(&error)), Vec::new(), false),
        }
    }

    /// Returns the last answer, unless it was sent already.
    pub(super) fn try_answer(&self, ask: Ask, body: &[u8], reply: &Reply) -> Result<Option<(Answer, Vec<u8>)>> {
        if !body.is_empty() && !has_body(&ask) {
            return Err(broken("a body where none belongs"));
        }
        let alone = |answer| Ok(Some((answer, Vec::new())));
        match ask {
            Ask::Hello(_) => Err(broken("a second greeting")),
            Ask::Newest => alone(Answer::Number(self.home.newest()?)),
            Ask::KeySlots => {
                let slots = self.home.key_slots()?.into_iter();
                alone(Answer::Slots(slots.map(|slot| (slot.name, slot.bytes)).collect()))
            }
            Ask::CheckReserve(reserve) => {
                self.home.check_reserve(reserve)?;
                alone(Answer::Done)
            }
            Ask::Read {
                store: handle,
                as_it_is,
            } => {
                let snapshot = match as_it_is {
                    true => self.home.read_as_it_is()?,
                    false => Some(self.home.read()?),
                };
                alone(match snapshot {
                    Some(Snapshot { store, number }) => self.opened(handle, Open::new(store, self.allowed)?, number)?,
                    None => Answer::Nothing,
                })
            }
            Ask::Write { store, command } => {
                let session = self.home.write(&command, &mut |_| false)?;
                let open = Open {
                    writer: Some(Arc::clone(&session.store)),
                    keeper: Some(session.keeper),
                    ..Open::new(session.store, self.allowed)?
                };
                self.registered.counts.opened(store, &command);
                alone(self.opened(store, open, 0)?)
            }
            Ask::Manage { store, command } => {
                let session = self.home.manage(&command, &mut |_| false)?;
                let open = Open {
                    writer: Some(Arc::clone(&session.store) as _),
                    manager: Some(Arc::clone(&session.store)),
                    keeper: Some(session.keeper),
                    ..Open::new(session.store, self.allowed)?
                };
                self.registered.counts.opened(store, &command);
                alone(self.opened(store, open, 0)?)
            }
            Ask::Close(store) => {
                // Answers that are still in the making keep it open until they are done.
                self.registered.counts.closed(store);
                let closed = self.open.lock().remove(&store);
                closed.inspect(|open| self.flushed(open));
                alone(Answer::Done)
            }
            Ask::Prune { store, options } => {
                let (manager, keeper, open) = (self.manager(store)?, self.keeper(store)?, self.store(store)?);
                let threads = std::thread::available_parallelism().map_or(2, usize::from);
                let progress = |bytes| reply.send(&Answer::Number(Some(bytes)), Vec::new(), true);
                // The store may be far from here too.
                let pruned = match keeper.prune(options, &open.stop, &progress) {
                    Some(pruned) => pruned?,
                    None => prune_without_key(&*manager, &*keeper, options, threads, &open.stop, &progress)?,
                };
                alone(Answer::Pruned(pruned))
            }
            Ask::Stop(store) => {
                self.store(store)?.stop.store(true, Ordering::SeqCst);
                alone(Answer::Done)
            }
            Ask::Status => alone(report(&status::of(&*self.home, &self.registered)?)),
            Ask::Check(store) => {
                let open = self.store(store)?;
                alone(check(&*self.home, &open.stop, reply)?)
            }
            Ask::AddSlot(name, bytes) => {
                self.home.add_key_slot(&SlotFile { name, bytes })?;
                alone(Answer::Done)
            }
            Ask::RemoveSlot { name, stays } => {
                let stays = stays.map(|(name, bytes)| SlotFile { name, bytes });
                self.home.remove_key_slot(&name, stays.as_ref())?;
                alone(Answer::Done)
            }
            Ask::DiskUsage => alone(report(&self.home.disk_usage()?)),
            Ask::CheckTables(view) => alone(report(&self.home.check_tables(view, &AtomicBool::new(false))?)),
            Ask::Listing { store, records, notes } => {
                let store = self.store(store)?;
                let listing = match records {
                    true => store.reader.listing(notes)?,
                    false => Listing {
                        notes: store.reader.notes()?,
                        generation: store.reader.generation()?,
                        ..Listing::default()
                    },
                };
                list(listing, reply);
                Ok(None)
            }
            Ask::Forgotten(store) => {
                list_forgotten(self.store(store)?.reader.forgotten()?, reply);
                Ok(None)
            }
            Ask::Lookup { store, records, notes } => {
                list(self.store(store)?.reader.lookup(&records, &notes)?, reply);
                Ok(None)
            }
            ask => self.answer_of_store(ask, body).map(Some),
        }
    }

    fn answer_of_store(&self, ask: Ask, body: &[u8]) -> Result<(Answer, Vec<u8>)> {
        let alone = |answer| Ok((answer, Vec::new()));
        let ids = |most| {
            let ids = body::read_ids(body).filter(|ids| ids.len() <= most);
            ids.ok_or_else(|| broken("a list of ids"))
        };
        let block_ids = || Ok::<_, Error>(ids(MAX_NAMES)?.into_iter().map(BlockId).collect::<Vec<_>>());
        match ask {
            Ask::Generation(store) => alone(Answer::Number(Some(self.store(store)?.reader.generation()?))),
            Ask::Locate(store) => {
                let located = self.store(store)?.reader.locate(&block_ids()?)?;
                let mut bases = located.iter().flatten().map(|located| located.base);
                bases.try_for_each(|base| self.check_knows(base))?;
                Ok((Answer::Located, body::entries(&located)))
            }
            Ask::Survey { store, from } => survey(&*self.store(store)?.reader, BlockId(from), &|base| {
                self.check_knows(base)
            }),
            Ask::Condemned(store) => {
                let condemned = self.store(store)?.reader.condemned()?;
                Ok((Answer::Ids, body::ids(condemned.into_iter().map(|id| id.0))))
            }
            Ask::Get { store, wanted } => get(&*self.store(store)?.reader, &wanted, &|base| self.check_knows(base)),
            Ask::Nodes(store) => {
                let ids: Vec<_> = ids(MAX_NODES)?.into_iter().map(NodeId).collect();
                let mut body = Vec::new();
                let nodes = self.store(store)?.reader.nodes(&ids).into_iter().map(|node| {
                    let node = node.map_err(|error| Fault::from(&error))?;
                    body.extend(&node);
                    Ok(node.len() as u32)
                });
                let nodes = nodes.collect();
                Ok((Answer::Nodes(nodes), body))
            }
            Ask::CompareNodes(store) => {
                let reader = &self.store(store)?.reader;
                let ids = ids(2 * MAX_SUMS)?;
                let (pairs, []) = ids.as_chunks::<2>() else {
                    return Err(broken("a node without a sum"));
                };
                let mut other = Vec::new();
                for pairs in pairs.chunks(MAX_NODES) {
                    let nodes: Vec<_> = pairs.iter().map(|[id, _]| NodeId(*id)).collect();
                    let stored = reader.nodes(&nodes);
                    let stored = stored.iter().map(|node| node.as_ref().ok().map(|node| node_sum(node)));
                    let compared = stored.zip(pairs).filter(|(stored, [_, sum])| *stored != Some(*sum));
                    other.extend(compared.map(|(_, [id, _])| *id));
                }
                Ok((Answer::Ids, body::ids(other)))
            }
            Ask::Put { store, blocks } => {
                let sealed = body::read_sealed(&blocks, body).ok_or_else(|| broken("a block"))?;
                let open = self.store(store)?;
                if let Some(door) = &open.door {
                    door.check_blocks(&sealed, &*open.reader)?;
                }
                let writer = self.writer(store)?;
                let count = sealed.len();
                writer.put(sealed)?;
                if open.unflushed_blocks.fetch_add(count, Ordering::SeqCst) + count >= UNFLUSHED_BLOCKS {
                    writer.flush()?;
                    self.flushed(&open);
                }
                alone(Answer::Done)
            }
            Ask::PutNodes { store, nodes, terms } => {
                let mut strings = body::Strings(body);
                let nodes = nodes
                    .into_iter()
                    .map(|(id, len)| Some((NodeId(id), strings.take(len)?)));
                let nodes: Vec<_> = nodes.collect::<Option<_>>().ok_or_else(|| broken("a manifest"))?;
                if !strings.0.is_empty() {
                    return Err(broken("bytes after a manifest"));
                }
                if let Some(door) = &self.store(store)?.door {
                    nodes.iter().try_for_each(|(id, bytes)| door.check_node(*id, bytes))?;
                }
                let writer = self.writer(store)?;
                writer.set_terms(terms);
                writer.put_nodes(nodes)?;
                alone(Answer::Done)
            }
            Ask::BuildsOn { store, record } => {
                self.writer(store)?.builds_on(&record)?;
                alone(Answer::Done)
            }
            Ask::Flush(store) => {
                self.writer(store)?.flush()?;
                self.flushed(&*self.store(store)?);
                alone(Answer::Done)
            }
            Ask::Commit {
                store,
                key,
                record,
                notes,
                at,
                terms,
            } => {
                let (record, notes) = (Record { key, bytes: record }, notes_of(notes));
                // A plain record is read where its guest counts.
                if let Some(door) = self.store(store)?.door.filter(Door::is_sealed) {
                    door.check_record(&record)?;
                    door.check_notes(&notes)?;
                }
                let writer = self.writer(store)?;
                writer.set_terms(terms);
                writer.commit_at(&record, &notes, at)?;
                self.flushed(&*self.store(store)?);
                alone(Answer::Done)
            }
            Ask::Amend {
                store,
                remove_records,
                notes,
                at,
                terms,
            } => {
                let manager = self.manager(store)?;
                let notes = notes_of(notes);
                if let Some(door) = &self.store(store)?.door {
                    door.check_notes(&notes)?;
                }
                manager.set_terms(terms);
                manager.amend_at(&remove_records, &notes, at)?;
                alone(Answer::Done)
            }
            Ask::Condemn(store) => {
                self.manager(store)?.condemn(&block_ids()?)?;
                alone(Answer::Done)
            }
            Ask::Pardon(store) => {
                self.manager(store)?.pardon(&block_ids()?)?;
                alone(Answer::Done)
            }
            Ask::Publish(store) => {
                self.keeper(store)?.publish()?;
                alone(Answer::Done)
            }
            Ask::Room(store) => {
                let room = self.keeper(store)?.room()?;
                alone(Answer::Room(room))
            }
            _ => Err(broken("a question in the wrong place")),
        }
    }

    /// Counts what was put, once it is in the store or was refused.
    fn count_put(&self, store: Handle, bytes: u64, is_in: bool) {
        match self.open.lock().get(&store).filter(|_| is_in) {
            Some(open) => drop(open.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed)),
            None => self.registered.counts.settled(bytes),
        }
    }

    /// Counts that all that was put into a store is durable, or not wanted any more.
    fn flushed(&self, open: &Open) {
        open.unflushed_blocks.store(0, Ordering::SeqCst);
        let settled = open.unflushed_bytes.swap(0, Ordering::Relaxed);
        self.registered.counts.settled(settled);
    }

    fn opened(&self, store: Handle, open: Open, number: u64) -> Result<Answer> {
        let identity = serde_json::to_string(&open.identity).expect("an identity has only plain fields");
        let mut all = self.open.lock();
        if all.len() >= MAX_STORES {
            return Err(broken("too many open stores"));
        }
        if all.contains_key(&store) {
            return Err(broken("a second store with the same number"));
        }
        all.insert(store, Arc::new(open));
        Ok(Answer::Opened { number, identity })
    }

    fn store(&self, store: Handle) -> Result<Arc<Open>> {
        let mut opening = self.opening.lock();
        while opening.contains(&store) {
            self.opened.wait(&mut opening);
        }
        drop(opening);
        let found = self.open.lock().get(&store).map(Arc::clone);
        found.ok_or_else(|| broken("a store that is not open"))
    }

    fn writer(&self, store: Handle) -> Result<Arc<dyn StoreWriter>> {
        let found = self.store(store)?.writer.clone();
        found.ok_or_else(|| broken("a store that is open for reading only"))
    }

    fn manager(&self, store: Handle) -> Result<Arc<dyn StoreManager>> {
        let found = self.store(store)?.manager.clone();
        found.ok_or_else(|| broken("a store that is not open for changes"))
    }

    fn keeper(&self, store: Handle) -> Result<Arc<dyn Keeper>> {
        let found = self.store(store)?.keeper.clone();
        found.ok_or_else(|| broken("a store that is open for reading only"))
    }
}

/// The store that a question opens.
fn opens(ask: &Ask) -> Option<Handle> {
    match ask {
        Ask::Read { store, .. } | Ask::Write { store, .. } | Ask::Manage { store, .. } => Some(*store),
        _ => None,
    }
}

/// Tells the questions that have a body.
fn has_body(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Locate(_)
            | Ask::Nodes(_)
            | Ask::CompareNodes(_)
            | Ask::Put { .. }
            | Ask::PutNodes { .. }
            | Ask::Condemn(_)
            | Ask::Pardon(_)
    )
}

fn report(value: &impl Serialize) -> Answer {
    Answer::Report(serde_json::to_string(value).expect("plain fields"))
}

/// Checks what is stored, and sends each damage that is found.
fn check(home: &dyn Home, stop: &AtomicBool, reply: &Reply) -> Result<Answer> {
    let mut found = 0;
    let bytes = home.check_stored(stop, &mut |finding| {
        found += 1;
        if found <= MAX_FINDINGS {
            let finding = finding.chars().take(MAX_FINDING).collect();
            reply.send(&Answer::Findings(vec![finding]), Vec::new(), true);
        }
    })?;
    Ok(Answer::Checked { bytes, found })
}

fn notes_of(notes: Vec<(String, Option<Vec<u8>>)>) -> Vec<Note> {
    notes.into_iter().map(|(name, value)| Note { name, value }).collect()
}

fn survey(store: &dyn StoreReader, from: BlockId, check: &CheckBase<'_>) -> Result<(Answer, Vec<u8>)> {
    let (mut body, mut count) = (Vec::new(), 0);
    let surveyed = store.survey_from(from, &mut |id, located| {
        if count == SURVEYED {
            return Err(Error::Interrupted);
        }
        check(located.base)?;
        count += 1;
        body::add_row(id, located, &mut body);
        Ok(())
    });
    match surveyed {
        Ok(()) => Ok((Answer::Surveyed { is_last: true }, body)),
        Err(Error::Interrupted) => Ok((Answer::Surveyed { is_last: false }, body)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Err(error),
        // What comes before a damaged entry is of use; the next question starts at it.
        Err(_) if count > 0 => Ok((Answer::Surveyed { is_last: false }, body)),
        Err(error) => Err(error),
    }
}

fn get(store: &dyn StoreReader, wanted: &[([u8; 32], u16, u16)], check: &CheckBase<'_>) -> Result<(Answer, Vec<u8>)> {
    let pages: usize = wanted.iter().map(|(_, _, count)| usize::from(*count)).sum();
    let most = match wanted.len() {
        1 => MAX_BLOCK_PAGES,
        _ => MAX_PAGES,
    };
    if pages > most {
        return Err(broken("too many pages at once"));
    }
    let wanted: Vec<_> = wanted
        .iter()
        .map(|(id, first, count)| Wanted {
            id: BlockId(*id),
            pages: usize::from(*first)..usize::from(*first) + usize::from(*count),
        })
        .collect();
    let mut body = Vec::new();
    let stored = store.get(&wanted).into_iter().map(|stored| {
        let stored = stored.and_then(|stored| check(stored.base).map(|()| stored));
        let stored = stored.map_err(|error| Fault::from(&error))?;
        Ok(body::add_stored(stored.base, &stored.header, &stored.pages, &mut body))
    });
    let stored = stored.collect();
    Ok((Answer::Stored(stored), body))
}

/// Sends a listing in parts.
fn list(listing: Listing, reply: &Reply) {
    let (mut part, mut body) = ((Vec::new(), Vec::new()), Vec::new());
    let generation = listing.generation;
    let answer = |(records, notes), foreign_changes| Answer::Listing {
        records,
        notes,
        foreign_changes,
        generation,
    };
    let received: HashMap<_, _> = listing.received.into_iter().collect();
    let records = listing
        .records
        .into_iter()
        .map(|Record { key, bytes }| (true, key, bytes));
    let notes = listing.notes.into_iter();
    let notes = notes.map(|Note { name, value }| (false, name, value.unwrap_or_default()));
    for (is_record, name, bytes) in records.chain(notes) {
        let len = bytes.len() as u32;
        match is_record {
            true => {
                let received = received.get(&name);
                let received = received.map(|received| (received.time.as_second(), received.is_doubted));
                part.0.push((name, len, received));
            }
            false => part.1.push((name, len)),
        }
        body.extend(bytes);
        if body.len() >= LISTED_BYTES {
            let sent = answer(std::mem::take(&mut part), Vec::new());
            reply.send(&sent, std::mem::take(&mut body), true);
        }
    }
    reply.send(&answer(part, listing.foreign_changes), body, false);
}

/// Sends the bin in parts.
fn list_forgotten(all: Vec<Forgotten>, reply: &Reply) {
    let (mut part, mut body) = (Vec::new(), Vec::new());
    for Forgotten {
        record,
        removed,
        kept_until,
    } in all
    {
        part.push((
            record.key,
            record.bytes.len() as u32,
            removed.as_second(),
            kept_until.as_second(),
        ));
        body.extend(record.bytes);
        if body.len() >= LISTED_BYTES {
            let sent = Answer::Forgotten(std::mem::take(&mut part));
            reply.send(&sent, std::mem::take(&mut body), true);
        }
    }
    reply.send(&Answer::Forgotten(part), body, false);
}

/// The error for a client that breaks the protocol.
fn broken(what: &str) -> Error {
    Error::Remote {
        kind: ErrorKind::Internal,
        message: format!("the client sent what the protocol does not have: {what}"),
    }
}
