//! A directory of this machine that another process may have open for all writers.

use std::io;
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

use super::{Again, RemoteHome};

/// Time that a process may take until its socket is there.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// Time from the end of a process's last connection to that of its socket.
const ENDED_WITHIN: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);

/// Connections that may end before the greeting.
const MOST_TRIES: u32 = 5;

/// Time within which a process that has ended is there again: it is started by this one, or by systemd.
const RESTARTED_WITHIN: Duration = Duration::from_secs(60);

type Start = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

/// The way to the process that has a directory open, if there is one; otherwise this one opens it.
struct Owner {
    directory: Arc<Directory>,
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

/// A directory whose writers go through the process that has it open, if there is one. Readers open views, as always.
pub fn local_home(directory: Arc<Directory>) -> Arc<dyn Home> {
    home(directory, None)
}

/// Like [`local_home`], and `start` starts such a process where there is none, so that many programs can write at once. If it
/// fails, this process opens the directory itself.
pub fn local_home_starting(
    directory: Arc<Directory>,
    start: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static,
) -> Arc<dyn Home> {
    home(directory, Some(Arc::new(start)))
}

fn home(directory: Arc<Directory>, start: Option<Arc<Start>>) -> Arc<dyn Home> {
    let owner = Owner {
        directory: Arc::clone(&directory),
        start,
    };
    Arc::new(Through::new(directory, owner))
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
        let again = Again::new(RESTARTED_WITHIN, || false, |line| tracing::debug!("{line}"));
        let (directory, socket, start) = (self.directory.name().to_owned(), self.socket(), self.start.clone());
        let first = Mutex::new(Some(stream));
        let home = RemoteHome::connect(self.directory.name().to_owned(), again, move || {
            let first = first.lock().take();
            let stream = match first.map_or_else(|| UnixStream::connect(&socket), Ok) {
                Ok(stream) => stream,
                Err(error) => {
                    if let Some(start) = &start {
                        start(&directory)?;
                    }
                    return Err(error);
                }
            };
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
