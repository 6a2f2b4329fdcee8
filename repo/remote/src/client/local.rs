//! A directory of this machine that another process may have open for all writers.
//!
//! # When that process is gone
//!
//! It may be killed, or told to end, while this one has a session. Then this one waits a moment for the next process, which systemd
//! may start, and opens the directory itself, as it would have done without the first, if the directory is this user's. Nothing else changes for the session: this
//! process serves itself, and the connection to that server is made again like any other (`lib.rs`, "Lost connections").
//!
//! 1. The lock of the directory decides who writes, and never the socket: a process that is gone from the socket and still closes its
//!    store has the lock, and so has one that opened the directory meanwhile. Until they release it this one waits.
//! 2. The lock of a killed process goes with it. Its store is opened like that of any killed writer: what no barrier covered is gone.
//! 3. What was not answered is put again, and each commit proves that the store has all that it names, or says what is missing.
//! 4. A process that listens from then on waits for the lock in turn.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SOCKET;
use vbk_repo::repository::directory::through::{Through, Writers};
use vbk_repo::repository::home::{Home, Session, Wait};
use vbk_repo::store::{Distance, StoreManager, StoreWriter};
use vbk_repo::{Error, ErrorKind, Result};

use super::again::Moment;
use super::{Again, RemoteHome};
use crate::server::serve_own;

/// Time that a process may take until its socket is there.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// Time from the end of a process's last connection to that of its socket.
const ENDED_WITHIN: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);

/// Connections that may end before the greeting.
const MOST_TRIES: u32 = 5;

/// Time within which a process that has ended is there again: it is started by this one, or by systemd.
const RESTARTED_WITHIN: Duration = Duration::from_secs(60);

/// Time for which nobody may listen until this process opens the directory itself. systemd starts a server again after 5 s.
const GONE_FOR: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

type Start = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

/// The way to the process that has a directory open, if there is one; otherwise this one opens it.
struct Owner {
    directory: Arc<Directory>,
    /// The wishes of the caller for the time after that process has gone.
    again: Again,
    /// Starts a process that opens the directory for all writers, where there is none.
    start: Option<Arc<Start>>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// A directory whose writers go through the process that has it open, if there is one. Readers open views, as always. Of `again` only
/// the wish to stop and the words to people count.
pub fn local_home(directory: Arc<Directory>, again: Again) -> Arc<dyn Home> {
    home(directory, again, None)
}

/// Like [`local_home`], and `start` starts such a process where there is none, so that many programs can write at once. If it
/// fails, this process opens the directory itself.
pub fn local_home_starting(
    directory: Arc<Directory>,
    start: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static,
) -> Arc<dyn Home> {
    let again = Again::new(RESTARTED_WITHIN, || false, |line| tracing::debug!("{line}"));
    home(directory, again, Some(Arc::new(start)))
}

fn home(directory: Arc<Directory>, again: Again, start: Option<Arc<Start>>) -> Arc<dyn Home> {
    let owner = Owner {
        directory: Arc::clone(&directory),
        again,
        start,
    };
    Arc::new(Through::new(directory, owner))
}

/// The words about the process that has a directory open.
fn words(moment: Moment<'_>, name: &str, limit: &str) -> String {
    match moment {
        Moment::Lost(reason) => format!(
            "the connection to the process that has {name} open is lost: {reason}; trying again for {} s, then this command opens \
             the repository itself",
            GONE_FOR.as_secs()
        ),
        Moment::Back => format!("{name} is open again, and this command goes on"),
        Moment::Waits(holder) => format!("waiting for {holder}, which writes to the repository"),
        Moment::GivenUp(reason) => format!(
            "the connection to the process that has {name} open is lost, and all tries to make it again failed for {limit}: \
             {reason}; see that the repository is there and that process works, or end it, then run the command again"
        ),
    }
}

/// The same for the directory of another user, which this process does not open itself.
fn words_of_another(moment: Moment<'_>, name: &str, limit: &str) -> String {
    match moment {
        Moment::Lost(reason) => format!(
            "the connection to the process that has {name} open is lost: {reason}; trying again for {limit}, until the owner of \
             the directory has it open again"
        ),
        moment => words(moment, name, limit),
    }
}

/// The way to the process that has a directory open; to this process itself, when nobody listens any more.
struct Way {
    directory: Arc<Directory>,
    socket: PathBuf,
    start: Option<Arc<Start>>,
    /// The first connection.
    first: Mutex<Option<UnixStream>>,
}

impl Way {
    /// Called on a thread of the runtime that may block.
    fn connect(&self) -> io::Result<UnixStream> {
        if let Some(first) = self.first.lock().take() {
            return Ok(first);
        }
        let gone = Instant::now();
        loop {
            match (UnixStream::connect(&self.socket), &self.start) {
                (Ok(stream), _) => return Ok(stream),
                (Err(error), Some(start)) => {
                    start(self.directory.name())?;
                    return Err(error);
                }
                (Err(error), None) if !is_gone(&error) => return Err(error),
                (Err(error), None) if gone.elapsed() >= GONE_FOR => {
                    return if is_own(&self.directory) {
                        self.serve_itself()
                    } else {
                        Err(error)
                    };
                }
                (Err(_), None) => std::thread::sleep(ENDED_WITHIN),
            }
        }
    }

    /// Starts a server in this process, for this connection alone.
    fn serve_itself(&self) -> io::Result<UnixStream> {
        let (here, there) = UnixStream::pair()?;
        there.set_nonblocking(true)?;
        let (read, write) = tokio::net::UnixStream::from_std(there)?.into_split();
        let home: Arc<dyn Home> = Arc::<Directory>::clone(&self.directory) as _;
        tokio::spawn(async move {
            if let Err(error) = serve_own(&home, read, write).await {
                tracing::debug!("the connection of this process to itself ended: {error}");
            }
        });
        Ok(here)
    }
}

/// Tells whether the directory is this user's. In that of another user, root would make files that its owner could not use.
fn is_own(directory: &Directory) -> bool {
    let owner = std::fs::metadata(directory.name()).map(|found| found.uid());
    owner.is_ok_and(|owner| owner == nix::unistd::geteuid().as_raw())
}

/// Tells whether nobody listens on a socket.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Owner {
    fn socket(&self) -> PathBuf {
        self.directory.name().join(SOCKET)
    }

    /// Connects to the process that has the directory open; `None` if there is none.
    fn connect(&self) -> Result<Option<RemoteHome>> {
        let mut tries = 0;
        loop {
            match self.try_connect() {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    // It may just have ended, because nobody used it; then its socket is gone. Or it was killed before it could
                    // greet, and another one is there.
                    std::thread::sleep(ENDED_WITHIN);
                    tries += 1;
                    match UnixStream::connect(self.socket()) {
                        Err(_) => return Ok(None),
                        Ok(_) if tries < MOST_TRIES => {}
                        Ok(_) => return Err(error),
                    }
                }
                connected => return connected,
            }
        }
    }

    fn try_connect(&self) -> Result<Option<RemoteHome>> {
        let stream = match UnixStream::connect(self.socket()) {
            // Nobody listens, or not to this user, who then may not write to the directory either.
            Err(error) => {
                tracing::debug!(%error, "no process has the repository open");
                return Ok(None);
            }
            Ok(stream) => stream,
        };
        let way = Way {
            directory: Arc::clone(&self.directory),
            socket: self.socket(),
            start: self.start.clone(),
            first: Mutex::new(Some(stream)),
        };
        let words = if is_own(&self.directory) {
            words
        } else {
            words_of_another
        };
        let again = self.again.clone().with_words(RESTARTED_WITHIN, words);
        let home = RemoteHome::connect(self.directory.name().to_owned(), again, move || {
            let stream = way.connect()?;
            stream.set_nonblocking(true)?;
            Ok(tokio::net::UnixStream::from_std(stream)?.into_split())
        });
        Ok(Some(home?.at(Distance::Near)))
    }

    /// Connects to that process, and starts it first if that was wanted.
    fn owner(&self) -> Result<Option<RemoteHome>> {
        if let Some(owner) = self.connect()? {
            return Ok(Some(owner));
        }
        let Some(start) = &self.start else {
            return Ok(None);
        };
        if let Err(error) = start(self.directory.name()) {
            tracing::debug!(%error, "can't start a process that has the repository open");
            return Ok(None);
        }
        let started = Instant::now();
        while started.elapsed() < STARTED_WITHIN {
            if let Some(owner) = self.connect()? {
                return Ok(Some(owner));
            }
            std::thread::sleep(POLL);
        }
        Ok(None)
    }

    /// Opens a session through the process that has the directory open, also if that was started while this one waited for the
    /// lock; otherwise here.
    fn session<T>(
        &self,
        wait: Wait<'_>,
        there: &dyn Fn(RemoteHome, Wait<'_>) -> Result<T>,
        here: &dyn Fn(Wait<'_>) -> Result<T>,
    ) -> Result<T> {
        loop {
            if let Some(owner) = self.owner()? {
                return there(owner, wait);
            }
            let mut is_there = false;
            let session = here(&mut |holder| {
                is_there = UnixStream::connect(self.socket()).is_ok();
                !is_there && wait(holder)
            });
            match session {
                Err(Error::Locked { .. }) if is_there => {}
                session => return session,
            }
        }
    }
}

impl Writers for Owner {
    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        self.session(wait, &|owner, wait| owner.write(command, wait), &|wait| {
            self.directory.write(command, wait)
        })
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.session(wait, &|owner, wait| owner.manage(command, wait), &|wait| {
            self.directory.manage(command, wait)
        })
    }
}
