//! A repository that a server has open, as a home.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use vbk_repo::keys::SlotFile;
use vbk_repo::repository::home::{Home, Keeper, Marker, Session, Snapshot, Wait};
use vbk_repo::repository::{DiskUsage, Reserve};
use vbk_repo::store::{Distance, Identity, StoreManager, StoreWriter};
use vbk_repo::{Error, ErrorKind, Result};

use super::again::Again;
use super::early::Early;
use super::kept::Kept;
use super::lanes::{LaneOptions, Lanes};
use super::link::{Link, Part};
use super::puts::Puts;
use super::state::Event;
use super::store::{Opened, RemoteKeeper, RemoteStore};
use crate::message::{Answer, Ask, Handle, MAX_FINDINGS};
use crate::status::ServedStatus;

/// Time for which the number of the newest snapshot counts as known: a mount asks for it at every look-up.
const NEWEST_FOR: Duration = Duration::from_secs(2);

/// Time between two tries to get the lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(500);

/// A repository that a server has open.
pub struct RemoteHome {
    link: Arc<Link>,
    marker: Marker,
    newest: Mutex<Option<(Instant, Option<u64>)>>,
    /// A question whose answer the next opening for writing waits for.
    reserve: Mutex<Option<Receiver<Event>>>,
    distance: Distance,
    /// Makes another connection like this one.
    more: Option<(LaneOptions, Connector)>,
    /// Copies on this host.
    kept: Option<Arc<Kept>>,
}

/// Makes a connection.
type Connector = Arc<dyn Fn() -> Result<RemoteHome> + Send + Sync>;

/// The question that opens a store, for its number.
type Opening = Arc<dyn Fn(Handle) -> Ask + Send + Sync>;

impl fmt::Debug for RemoteHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHome")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl RemoteHome {
    /// Connects to a server, and waits for its greeting. `connect` makes the two directions of a stream; it is called again when
    /// a connection was lost, on a thread of this crate's runtime, and may block. `name` is the repository's address, as the
    /// user gave it.
    pub fn connect<R, W>(
        name: PathBuf,
        again: Again,
        connect: impl Fn() -> io::Result<(R, W)> + Send + Sync + 'static,
    ) -> Result<Self>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let link = Link::open(name, again, connect)?;
        let marker = Marker {
            id: link.welcome().id.clone(),
            key_check: link.welcome().key_check.clone(),
        };
        let newest = link.welcome().newest.map(|newest| (Instant::now(), newest));
        Ok(Self {
            link: Arc::new(link),
            marker,
            newest: Mutex::new(newest),
            reserve: Mutex::default(),
            distance: Distance::Far,
            more: None,
            kept: None,
        })
    }

    /// The same with more connections for what is large: `connect` makes them, without a word to people, and without a question
    /// to them.
    pub fn with_lanes(self, options: LaneOptions, connect: impl Fn() -> Result<Self> + Send + Sync + 'static) -> Self {
        let more = (options.most > 1).then(|| (options, Arc::new(connect) as Connector));
        Self { more, ..self }
    }

    /// The same with a server at that distance.
    pub(super) fn at(self, distance: Distance) -> Self {
        Self { distance, ..self }
    }

    /// The same with a directory for copies of what is read here, and of the nodes that backups compare with, and with a limit for
    /// those of this repository. Several repositories may use the same directory; nobody else may be able to write there.
    pub fn with_cache(self, cache: Option<(&Path, u64)>) -> Self {
        let place = cache.zip(self.marker.id.as_deref());
        let kept = place.map(|((directory, max_bytes), id)| Kept::new(directory, max_bytes, self.name(), id));
        let kept = kept.map(Arc::new);
        Self { kept, ..self }
    }

    /// Opens a store with the question that `ask` makes for its number, and asks what nearly every command wants to know of it.
    pub(crate) fn opened(
        &self,
        ask: impl Fn(Handle) -> Ask + Send + Sync + 'static,
        is_writer: bool,
    ) -> Result<Option<(RemoteStore, u64)>> {
        self.open(&(Arc::new(ask) as Opening), is_writer, false)
    }

    /// `is_lane`: for blocks alone.
    fn open(&self, ask: &Opening, is_writer: bool, is_lane: bool) -> Result<Option<(RemoteStore, u64)>> {
        let puts = Arc::<Puts>::default();
        let asked = Instant::now();
        let listing = |store| Ask::Listing {
            store,
            records: true,
            notes: true,
        };
        let early: &[&dyn Fn(Handle) -> Ask] = match (is_writer, self.distance) {
            (_, Distance::Near) => &[],
            _ if is_lane => &[],
            (false, Distance::Far) => &[&listing],
            (true, Distance::Far) => &[&listing, &Ask::Condemned],
        };
        match self.link.open_store(&**ask, early, &puts)? {
            (_, Answer::Nothing, _) => Ok(None),
            (store, Answer::Opened { number, identity }, early) => {
                let identity: Identity = serde_json::from_str(&identity).map_err(|_| self.link.unexpected())?;
                let opened = Opened {
                    link: Arc::clone(&self.link),
                    handle: store,
                    lanes: self.lanes(ask, &identity, is_writer),
                    identity,
                    distance: self.distance,
                    puts,
                    is_writer,
                    early: Early::new(asked, early),
                    // Who repairs has to see the server's.
                    kept: self
                        .kept
                        .clone()
                        .filter(|_| matches!(ask(store), Ask::Write { .. } | Ask::Read { .. })),
                };
                Ok(Some((RemoteStore::new(opened), number)))
            }
            _ => Err(self.link.unexpected()),
        }
    }

    /// The other connections of a store that was opened with this question.
    fn lanes(&self, ask: &Opening, identity: &Identity, is_writer: bool) -> Lanes {
        let Some((options, connect)) = &self.more else {
            return Lanes::new(LaneOptions::default(), None);
        };
        let (connect, ask, identity) = (Arc::clone(connect), Arc::clone(ask), identity.clone());
        let open = move || {
            let home = connect()?;
            match home.open(&ask, is_writer, true)? {
                Some((store, _)) if store.is_of(&identity) => Ok(store),
                _ => Err(home.link.unexpected()),
            }
        };
        Lanes::new(*options, Some(Arc::new(open)))
    }

    /// The status of the repository, as far as this client may see it.
    pub fn status(&self) -> Result<ServedStatus> {
        self.report(&Ask::Status)
    }

    /// Bytes of puts that take room in the window.
    #[cfg(test)]
    pub(crate) fn put_bytes(&self) -> usize {
        self.link.put_bytes()
    }

    /// Opens the store for writing, once nobody else has it.
    fn session(&self, ask: Opening, wait: Wait<'_>) -> Result<(Arc<RemoteStore>, Arc<dyn Keeper>)> {
        loop {
            match self.open(&ask, true, false) {
                Err(Error::Locked { path, holder }) => {
                    if !wait(&holder) {
                        return Err(Error::Locked { path, holder });
                    }
                    std::thread::sleep(LOCK_POLL);
                }
                Ok(None) => return Err(self.link.unexpected()),
                Ok(Some((store, _))) => {
                    if let Some(reserve) = self.reserve.lock().take() {
                        self.link.answers(reserve).only()?;
                    }
                    let store = Arc::new(store);
                    return Ok((Arc::clone(&store), Arc::new(RemoteKeeper(store))));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn report<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T> {
        match self.link.ask(ask, Vec::new())? {
            (Answer::Report(text), _) => serde_json::from_str(&text).map_err(|_| self.link.unexpected()),
            _ => Err(self.link.unexpected()),
        }
    }

    fn snapshot(&self, as_it_is: bool) -> Result<Option<Snapshot>> {
        let opened = self.opened(move |store| Ask::Read { store, as_it_is }, false)?;
        Ok(opened.map(|(store, number)| Snapshot {
            store: Arc::new(store),
            number,
        }))
    }
}

impl Home for RemoteHome {
    fn name(&self) -> &Path {
        self.link.name()
    }

    fn marker(&self) -> &Marker {
        &self.marker
    }

    fn newest(&self) -> Result<Option<u64>> {
        let mut newest = self.newest.lock();
        if let Some((at, number)) = *newest
            && at.elapsed() < NEWEST_FOR
        {
            return Ok(number);
        }
        let (Answer::Number(number), _) = self.link.ask(&Ask::Newest, Vec::new())? else {
            return Err(self.link.unexpected());
        };
        *newest = Some((Instant::now(), number));
        Ok(number)
    }

    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        match self.link.ask(&Ask::KeySlots, Vec::new())? {
            (Answer::Slots(slots), _) => Ok(slots
                .into_iter()
                .map(|(name, bytes)| SlotFile { name, bytes })
                .collect()),
            _ => Err(self.link.unexpected()),
        }
    }

    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        // Its error is that of the next opening for writing, which all callers want next.
        let asked = self.link.send(&Ask::CheckReserve(reserve))?;
        *self.reserve.lock() = Some(asked);
        Ok(())
    }

    fn disk_usage(&self) -> Result<DiskUsage> {
        self.report(&Ask::DiskUsage)
    }

    fn check_tables(&self, snapshot: u64, _cancel: &AtomicBool) -> Result<Vec<String>> {
        self.report(&Ask::CheckTables(snapshot))
    }

    fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        self.checked(cancel, each)
    }

    fn add_key_slot(&self, slot: &SlotFile) -> Result<()> {
        self.change_keys(&Ask::AddSlot(slot.name.clone(), slot.bytes.clone()))
    }

    fn remove_key_slot(&self, name: &str, stays: Option<&SlotFile>) -> Result<()> {
        self.change_keys(&Ask::RemoveSlot {
            name: name.to_owned(),
            stays: stays.map(|slot| (slot.name.clone(), slot.bytes.clone())),
        })
    }

    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        self.snapshot(true)
    }

    fn read(&self) -> Result<Snapshot> {
        self.snapshot(false)?.ok_or_else(|| self.link.unexpected())
    }

    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        let command = self.told(command);
        let ask = move |store| Ask::Write {
            store,
            command: command.clone(),
        };
        let (store, keeper) = self.session(Arc::new(ask), wait)?;
        Ok(Session { store, keeper })
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        let command = self.told(command);
        let ask = move |store| Ask::Manage {
            store,
            command: command.clone(),
        };
        let (store, keeper) = self.session(Arc::new(ask), wait)?;
        Ok(Session { store, keeper })
    }
}

/// Time between two looks whether the caller wants to stop.
const CANCEL_POLL: Duration = Duration::from_millis(100);

/// Questions about the whole repository, which are not asked again after a lost connection.
impl RemoteHome {
    /// Checks what is stored, at the server.
    fn checked(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        let link = &self.link;
        // The check ends with this store, and with the connection.
        let ask: Opening = Arc::new(|store| Ask::Read { store, as_it_is: false });
        let (store, _) = self.open(&ask, false, true)?.ok_or_else(|| link.unexpected())?;
        let answers = link.begin_once(&Ask::Check(store.handle))?;
        let mut stopped = false;
        loop {
            if !stopped && cancel.load(Ordering::SeqCst) {
                stopped = true;
                link.ask(&Ask::Stop(store.handle), Vec::new())?;
            }
            match answers.part_within(CANCEL_POLL)? {
                None => {}
                Some(Part::Answer(Answer::Findings(findings), ..)) => findings.into_iter().for_each(&mut *each),
                Some(Part::Answer(Answer::Checked { bytes, found }, ..)) => {
                    if let Some(more @ 1..) = found.checked_sub(MAX_FINDINGS) {
                        each(format!("and {more} more"));
                    }
                    return Ok(bytes);
                }
                Some(Part::Lost(reason)) => return Err(self.lost(&reason, "run the command again")),
                Some(_) => return Err(link.unexpected()),
            }
        }
    }

    /// Adds or removes a key slot.
    fn change_keys(&self, ask: &Ask) -> Result<()> {
        match self.link.begin_once(ask)?.part()? {
            Part::Answer(Answer::Done, ..) => Ok(()),
            Part::Lost(reason) => Err(self.lost(&reason, "`vbk key list` shows if the keys were changed")),
            _ => Err(self.link.unexpected()),
        }
    }

    /// Returns what the server is told of a command. The server of an encrypted repository does not learn of which guest it is.
    pub(crate) fn told(&self, command: &str) -> String {
        match &self.marker.key_check {
            Some(_) => command.split(' ').next().unwrap_or_default().to_owned(),
            None => command.to_owned(),
        }
    }

    fn lost(&self, reason: &str, next: &str) -> Error {
        Error::Remote {
            kind: ErrorKind::Unavailable,
            message: format!("the connection to {} was lost: {reason}; {next}", self.name().display()),
        }
    }
}
