//! The clients of a repository, and what each does: for `vbk status`.
//!
//! Several processes may serve one repository: one for each client that comes by ssh, one for all that come over TLS, and the one
//! that has the store open for writing. Each counts its own clients in memory, and while it has some, it keeps two files in
//! `DIR/serve/clients`: `NAME.json` with the counts, written anew every [`PUBLISH_EVERY`] if they have changed, and `NAME.lock`,
//! whose lock it holds. A file without that lock is left from a process that was killed: it counts for nothing, and the next look
//! removes it.
//!
//! Nothing waits for these files, and nothing depends on them: where they can't be written, each process shows its own clients alone.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::geteuid;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::interval;
use vbk_repo::files::{self, Mode, Synced};

use super::key::{SERVE, make_directory};
use crate::message::Handle;
use crate::status::{ClientStatus, NAMED, Way};
use crate::wire::Outbox;

/// Time between two looks at the counts.
pub(super) const PUBLISH_EVERY: Duration = Duration::from_secs(2);
/// Time over which rates are measured.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Characters of a text that a client chose.
const MAX_TEXT: usize = 80;
/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Files that are looked at.
const MAX_FILES: usize = 4096;

/// A client that the server let in.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) name: String,
    pub(super) way: Way,
    pub(super) address: Option<String>,
    pub(super) pid: Option<u32>,
    /// It may see the other clients.
    pub(super) sees_all: bool,
}

/// What one client does. Everything is counted without a lock that another client takes.
pub(super) struct Counts {
    visitor: Visitor,
    since: Timestamp,
    program: OnceLock<String>,
    commands: Mutex<BTreeMap<Handle, String>>,
    received: AtomicU64,
    outbox: OnceLock<Arc<Outbox>>,
    // A flush counts off what a put counted; without a queue (in tests) no put was counted.
    backlog: AtomicI64,
    questions: AtomicU64,
    samples: Mutex<VecDeque<Sample>>,
}

/// Counts at a moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    received: u64,
    sent: u64,
}

impl Counts {
    fn new(visitor: Visitor, now: Instant) -> Self {
        let start = Sample {
            at: now,
            received: 0,
            sent: 0,
        };
        Self {
            visitor,
            since: Timestamp::now(),
            program: OnceLock::new(),
            commands: Mutex::default(),
            received: AtomicU64::new(0),
            outbox: OnceLock::new(),
            backlog: AtomicI64::new(0),
            questions: AtomicU64::new(0),
            samples: Mutex::new(VecDeque::from([start])),
        }
    }

    /// The messages that are written through this outbox go to the client.
    pub(super) fn writes(&self, outbox: &Arc<Outbox>) {
        // A client has one connection, and so one outbox.
        let _ = self.outbox.set(Arc::clone(outbox));
    }

    /// The client said what it is.
    pub(super) fn greeted(&self, program: &str) {
        let _ = self.program.set(shortened(program));
    }

    /// A question came, with its length.
    pub(super) fn asked(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.questions.fetch_add(1, Ordering::Relaxed);
    }

    /// A question was answered.
    pub(super) fn answered(&self) {
        self.questions.fetch_sub(1, Ordering::Relaxed);
    }

    /// A store was opened for writing.
    pub(super) fn opened(&self, store: Handle, command: &str) {
        self.commands.lock().insert(store, shortened(command));
    }

    /// A store was closed.
    pub(super) fn closed(&self, store: Handle) {
        self.commands.lock().remove(&store);
    }

    /// Bytes were put.
    pub(super) fn put(&self, bytes: usize) {
        self.backlog.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Bytes that were put are durable, or are not wanted any more.
    pub(super) fn settled(&self, bytes: u64) {
        self.backlog.fetch_sub(bytes as i64, Ordering::Relaxed);
    }

    fn status(&self, now: Instant) -> ClientStatus {
        let (received, sent) = (
            self.received.load(Ordering::Relaxed),
            self.outbox.get().map_or(0, |outbox| outbox.written_bytes()),
        );
        let (received_per_second, sent_per_second) = self.rates(Sample {
            at: now,
            received,
            sent,
        });
        let Visitor {
            name,
            way,
            address,
            pid,
            ..
        } = self.visitor.clone();
        ClientStatus {
            name,
            way,
            address,
            pid,
            program: self.program.get().cloned().unwrap_or_default(),
            since: self.since,
            command: self.commands.lock().values().next_back().cloned(),
            received_bytes: received,
            sent_bytes: sent,
            received_per_second,
            sent_per_second,
            backlog_bytes: self.backlog.load(Ordering::Relaxed).max(0).unsigned_abs(),
            questions: self.questions.load(Ordering::Relaxed),
        }
    }

    /// Bytes a second in both directions since the oldest count that is not too old.
    fn rates(&self, newest: Sample) -> (u64, u64) {
        let mut samples = self.samples.lock();
        samples.push_back(newest);
        // The oldest one is at least as old as the time to measure, if there is one.
        while samples.len() > 2 && newest.at.duration_since(samples[1].at) >= RATE_OVER {
            samples.pop_front();
        }
        // However often somebody looks.
        while samples.len() > 64 {
            samples.remove(1);
        }
        let oldest = samples[0];
        let seconds = newest.at.duration_since(oldest.at).as_secs_f64().max(1.0);
        let rate = |new: u64, old: u64| (new.saturating_sub(old) as f64 / seconds) as u64;
        (rate(newest.received, oldest.received), rate(newest.sent, oldest.sent))
    }
}

/// Replaces what a terminal would obey, and shortens.
fn shortened(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '?' } else { c };
    text.chars().take(MAX_TEXT).map(printable).collect()
}

/// Content of a file.
#[derive(Serialize, Deserialize)]
struct Published {
    pid: u32,
    total: u64,
    clients: Vec<ClientStatus>,
}

/// The clients of one repository that this process serves.
pub(super) struct Registry {
    /// Directory of the repository; without one nothing is published.
    directory: Option<PathBuf>,
    clients: Mutex<BTreeMap<u64, Arc<Counts>>>,
    next: AtomicU64,
    file: Mutex<Option<OwnFile>>,
    /// Shared by all of the process.
    changed: Arc<Notify>,
    warned: AtomicBool,
}

/// A client in a registry, until it is dropped.
pub(super) struct Registered {
    registry: Arc<Registry>,
    number: u64,
    pub(super) counts: Arc<Counts>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.clients.lock().remove(&self.number);
        self.registry.changed.notify_one();
    }
}

impl Registered {
    /// A client of no repository: for tests, and for those that are only told why they may not come in.
    pub(super) fn nobody() -> Self {
        Registry::new(None, Arc::default()).enter(Visitor {
            name: String::new(),
            way: Way::Local,
            address: None,
            pid: None,
            sees_all: false,
        })
    }

    /// The directory of its repository.
    pub(super) fn directory(&self) -> Option<&Path> {
        self.registry.directory.as_deref()
    }

    /// Returns whether it may see the other clients.
    pub(super) fn sees_all(&self) -> bool {
        self.counts.visitor.sees_all
    }

    /// Returns the clients that it may see, the oldest connection first, and their number. At most [`NAMED`] are named.
    pub(super) fn seen(&self) -> (Vec<ClientStatus>, u64) {
        let own = self.registry.published();
        let own_name = self.registry.file.lock().as_ref().map(|file| file.name.clone());
        let others = self.directory().map(|directory| read(directory, own_name.as_deref()));
        let (mut clients, total) = merged(others.into_iter().flatten().chain([own]).collect());
        if self.sees_all() {
            return (clients, total);
        }
        let Visitor { name, way, .. } = &self.counts.visitor;
        clients.retain(|client| client.name == *name && client.way == *way);
        let total = clients.len() as u64;
        (clients, total)
    }
}

impl Registry {
    fn new(directory: Option<PathBuf>, changed: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            directory,
            clients: Mutex::default(),
            next: AtomicU64::new(0),
            file: Mutex::default(),
            changed,
            warned: AtomicBool::new(false),
        })
    }

    fn enter(self: Arc<Self>, visitor: Visitor) -> Registered {
        let counts = Arc::new(Counts::new(visitor, Instant::now()));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.clients.lock().insert(number, Arc::clone(&counts));
        self.changed.notify_one();
        Registered {
            registry: self,
            number,
            counts,
        }
    }

    fn published(&self) -> Published {
        let now = Instant::now();
        let clients: Vec<_> = self.clients.lock().values().cloned().collect();
        Published {
            pid: std::process::id(),
            total: clients.len() as u64,
            clients: clients.iter().take(NAMED).map(|client| client.status(now)).collect(),
        }
    }

    /// Writes the file, if it would be another one than the last time.
    fn publish(&self) {
        let Some(directory) = &self.directory else { return };
        let published = self.published();
        let mut file = self.file.lock();
        if published.clients.is_empty() {
            *file = None;
            return;
        }
        let written = match &mut *file {
            Some(file) => file.write(&published),
            none => OwnFile::create(directory).and_then(|new| none.insert(new).write(&published)),
        };
        if let Err(error) = written
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::debug!("other processes can't see the clients of this one: {error}");
        }
    }
}

/// The files of this process for one repository. Removed when it is dropped.
struct OwnFile {
    name: String,
    path: PathBuf,
    _lock: File,
    last: Vec<u8>,
}

impl OwnFile {
    fn create(repository: &Path) -> io::Result<Self> {
        // Only for the owner of the repository: others would write where the owner may have put links.
        make_directory(repository).map_err(io::Error::other)?;
        let directory = directory_in(repository);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made?,
        }
        // Process ids are not unique among containers.
        let now = Timestamp::now().as_nanosecond();
        let name = format!("{}-{now:x}", std::process::id());
        let lock = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.join(format!("{name}.lock")))?;
        lock.lock()?;
        Ok(Self {
            path: directory.join(format!("{name}.json")),
            name,
            _lock: lock,
            last: Vec::new(),
        })
    }

    fn write(&mut self, published: &Published) -> io::Result<()> {
        let text = serde_json::to_vec(published).expect("plain fields");
        if text != self.last {
            files::write_whole(&self.path, &text, Mode::Private, Synced::Nothing)?;
            self.last = text;
        }
        Ok(())
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the files of a process.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(path.with_extension("lock"));
}

fn directory_in(repository: &Path) -> PathBuf {
    repository.join(SERVE).join("clients")
}

/// Returns the clients of a repository, of all processes that serve it, and their number.
pub(super) fn all_in(repository: &Path) -> (Vec<ClientStatus>, u64) {
    merged(read(repository, None))
}

/// Reads the files of all processes that serve a repository, but for the one with that name. What can't be read is not shown.
fn read(repository: &Path, but: Option<&str>) -> Vec<Published> {
    let directory = directory_in(repository);
    let is_own = fs::metadata(repository).is_ok_and(|owner| owner.uid() == geteuid().as_raw());
    let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let others = files.filter(|path| but.is_none() || path.file_stem().and_then(|stem| stem.to_str()) != but);
    let mut all = Vec::new();
    for path in others.take(MAX_FILES) {
        match is_held(&path.with_extension("lock")) {
            Ok(true) => all.extend(read_file(&path)),
            // Root does not remove what another user may have put links into.
            Ok(false) if is_own => remove(&path),
            Ok(false) => {}
            Err(error) => tracing::debug!("can't look at {}: {error}", path.display()),
        }
    }
    all
}

/// Returns whether a process holds a lock.
fn is_held(lock: &Path) -> io::Result<bool> {
    let file = match open(lock) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Opens a file that another user may have replaced.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no file")),
    }
}

fn read_file(path: &Path) -> Option<Published> {
    let mut text = Vec::new();
    open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Puts the clients of several processes together. A program of this machine that serves clients itself is not shown: they are.
fn merged(all: Vec<Published>) -> (Vec<ClientStatus>, u64) {
    let servers: HashSet<u32> = all.iter().map(|one| one.pid).collect();
    let mut unnamed = 0;
    let mut clients = Vec::new();
    for one in all {
        unnamed += one.total.saturating_sub(one.clients.len() as u64);
        let is_shown = |client: &ClientStatus| match (client.way, client.pid) {
            (Way::Local, Some(pid)) => !servers.contains(&pid),
            _ => true,
        };
        clients.extend(one.clients.into_iter().filter(is_shown));
    }
    clients.sort_by_key(|client| client.since);
    let total = clients.len() as u64 + unnamed;
    clients.truncate(NAMED);
    (clients, total)
}

/// The registries of all repositories that this process serves.
#[derive(Default)]
pub(super) struct Registries {
    all: Mutex<HashMap<PathBuf, Arc<Registry>>>,
    changed: Arc<Notify>,
}

impl Registries {
    /// Registers a client of the repository in a directory.
    pub(super) fn enter(&self, directory: &Path, visitor: Visitor) -> Registered {
        let mut all = self.all.lock();
        let registry = all
            .entry(directory.to_owned())
            .or_insert_with(|| Registry::new(Some(directory.to_owned()), Arc::clone(&self.changed)));
        Arc::clone(registry).enter(visitor)
    }

    /// Number of the clients that are connected.
    pub(super) fn clients(&self) -> usize {
        let all: Vec<_> = self.all.lock().values().cloned().collect();
        all.iter().map(|registry| registry.clients.lock().len()).sum()
    }

    fn publish(&self) {
        // Not under the lock: a disk may not answer.
        let all: Vec<_> = self.all.lock().values().cloned().collect();
        all.iter().for_each(|registry| registry.publish());
        self.all.lock().retain(|_, registry| {
            let is_used = !registry.clients.lock().is_empty();
            is_used || registry.file.lock().is_some()
        });
    }

    /// Keeps the files up to date, for ever.
    pub(super) async fn keep_published(self: Arc<Self>) {
        let mut ticks = interval(PUBLISH_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.changed.notified() => {}
            }
            let all = Arc::clone(&self);
            // A panic of it was reported there.
            let _ = tokio::task::spawn_blocking(move || all.publish()).await;
        }
    }
}

#[cfg(test)]
mod tests;
