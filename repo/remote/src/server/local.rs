//! The socket on which the programs of this machine find the process that has a repository open.
//!
//! Only root and the user that the process runs as may use it: they could write to the directory itself. So they have all
//! rights, and what they put is not checked again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use vbk_repo::repository::directory::shared::{SOCKET, Shared};
use vbk_repo::repository::home::Home;

use super::{Allowed, session};

/// Time between two looks at what nobody uses any more.
const TICK: Duration = Duration::from_millis(500);

/// The socket of a repository, from [`Socket::bind`] on. Removed when it is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: std::path::PathBuf,
    /// Held by the process that listens.
    _lock: std::fs::File,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held, so it is this process's own.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens on the socket of the repository in `directory`. [`io::ErrorKind::AddrInUse`] if another process does. To be called
    /// on a runtime.
    pub(super) fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET);
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.with_extension("lock"))?;
        if let Err(error) = lock.try_lock() {
            return Err(match error {
                std::fs::TryLockError::WouldBlock => io::ErrorKind::AddrInUse.into(),
                std::fs::TryLockError::Error(error) => error,
            });
        }
        // What a killed process left.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody can connect before the mode is right: the draft has another name.
        let draft = path.with_extension("draft");
        let _ = std::fs::remove_file(&draft);
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&draft, &path)?;
        Ok(Self {
            listener,
            path,
            _lock: lock,
        })
    }

    /// Serves all who connect, and closes the store when no writer uses it. Ends when nobody was connected for `idle`, if that is
    /// given; otherwise never.
    pub(super) async fn serve(&self, shared: Arc<Shared>, idle: Option<Duration>) {
        let connected = Arc::new(AtomicUsize::new(0));
        let home: Arc<dyn Home> = Arc::clone(&shared) as _;
        let mut last_used = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (home, count) = (Arc::clone(&home), Count::of(&connected));
                        tokio::spawn(async move {
                            if let Err(error) = serve_one(&home, stream).await {
                                tracing::debug!(%error, "a client of the socket");
                            }
                            drop(count);
                        });
                    }
                    Err(error) => {
                        // Too many open files: others must end first.
                        tracing::warn!("can't accept a client: {error}");
                        tokio::time::sleep(TICK).await;
                    }
                },
                _ = ticks.tick() => {
                    let shared = Arc::clone(&shared);
                    let closed = tokio::task::spawn_blocking(move || shared.close_if_unused()).await;
                    if connected.load(Ordering::SeqCst) > 0 || !closed.unwrap_or(true) {
                        last_used = Instant::now();
                    }
                    if idle.is_some_and(|idle| last_used.elapsed() >= idle) {
                        return;
                    }
                }
            }
        }
    }
}

/// A client that is counted as long as it is connected.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn of(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(all))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve_one(home: &Arc<dyn Home>, stream: UnixStream) -> io::Result<()> {
    // The mode of the socket says the same, but not in a directory that was copied.
    let (peer, own) = (stream.peer_cred()?.uid(), own_user()?);
    if peer != 0 && peer != own {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {peer} is neither root nor the server's"),
        ));
    }
    let (read, write) = stream.into_split();
    session::run(Ok(home), Allowed::Trusted, read, write).await
}

/// The effective user id of this process: proc(5), the owner of its directory there.
fn own_user() -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid())
}
