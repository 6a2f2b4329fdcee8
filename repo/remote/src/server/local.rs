//! The socket on which the programs of this machine find the process that has a repository open.
//!
//! Only root and the user that the process runs as may use it: they could write to the directory itself. So they have all
//! rights, and what they put is not checked again.

use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::time::interval;
use vbk_repo::repository::directory::shared::{SOCKET, SharedDirectory};

use super::Allowed;
use super::clients::{Client, Listener, Shared};
use super::registry::Visitor;
use crate::status::Way;

/// Time between two looks at what nobody uses any more.
const TICK: Duration = Duration::from_millis(500);

/// The socket of a repository. Removed when it is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
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
    /// Listens in the directory of a repository. [`io::ErrorKind::AddrInUse`] if another process does. Has to be called on a
    /// runtime.
    pub(super) fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET);
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.with_extension("lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => io::ErrorKind::AddrInUse.into(),
            std::fs::TryLockError::Error(error) => error,
        })?;
        // Under its own name only when nobody else may connect. The names of a killed process are taken over.
        let draft = path.with_extension("draft");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&draft, &path)?;
        Ok(Self {
            listener,
            path,
            _lock: lock,
        })
    }
}

/// Accepts the programs of this machine.
pub(super) struct LocalListener {
    socket: Socket,
    shared: Arc<SharedDirectory>,
    connected: Arc<AtomicUsize>,
}

impl LocalListener {
    pub(super) fn new(socket: Socket, shared: Arc<SharedDirectory>) -> Self {
        Self {
            socket,
            shared,
            connected: Arc::default(),
        }
    }

    /// Closes the store whenever no writer uses it. Completes when nobody was connected for `idle`, if that is given.
    pub(super) fn close_unused(&self, idle: Option<Duration>) -> impl Future<Output = ()> + Send + use<> {
        let (shared, connected) = (Arc::clone(&self.shared), Arc::clone(&self.connected));
        async move {
            let mut ticks = interval(TICK);
            let mut last_used = Instant::now();
            loop {
                ticks.tick().await;
                let shared = Arc::clone(&shared);
                // A panic of it was reported there.
                let _ = tokio::task::spawn_blocking(move || shared.close_if_unused()).await;
                if connected.load(Ordering::SeqCst) > 0 {
                    last_used = Instant::now();
                }
                if idle.is_some_and(|idle| last_used.elapsed() >= idle) {
                    return;
                }
            }
        }
    }
}

/// A client that is counted as long as it is connected.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Listener for LocalListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        let (stream, _) = self.socket.listener.accept().await?;
        Ok((stream, None))
    }

    async fn admit(&self, stream: UnixStream, shared: &Arc<Shared>) -> io::Result<Client> {
        // The mode of the socket says the same, but not that of a directory that was given to somebody else since.
        let credentials = stream.peer_cred()?;
        let peer = credentials.uid();
        if peer != 0 && peer != std::fs::metadata("/proc/self")?.uid() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {peer} is neither root nor the user of the server"),
            ));
        }
        self.connected.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.connected));
        let home = self.shared.home();
        let visitor = Visitor {
            name: match peer {
                0 => "root".to_owned(),
                user => format!("user {user}"),
            },
            way: Way::Local,
            address: None,
            pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()),
            sees_all: true,
        };
        let registered = shared.registries.enter(home.name(), visitor);
        let (read, write) = stream.into_split();
        Ok(Client {
            is_known: true,
            read: Box::new(read),
            write: Box::new(write),
            home: Ok(home),
            allowed: Allowed::Trusted,
            registered,
            ended: Box::pin(async move {
                let _counted = counted;
                pending().await
            }),
        })
    }
}
