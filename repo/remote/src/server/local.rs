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
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use vbk_repo::repository::directory::shared::SOCKET;
use vbk_repo::repository::home::Home;

use super::Allowed;
use super::clients::{Client, Listener, Served, Serving};
use super::owned::{Client as Entered, Owner};
use super::registry::Visitor;
use crate::status::Way;

/// Time for which one of many repositories stays this process's own after its last client.
const UNUSED_FOR: Duration = Duration::from_secs(10);

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
    pub(super) socket: Socket,
    pub(super) owner: Owner,
}

impl Serving {
    /// Has a repository open for all programs of this machine, and for the clients of this server. Ends that, and calls `ended`, when
    /// nobody used it for `idle`, if that is given. `false` if another process has it open. Has to be called on a runtime.
    pub(super) fn own(
        &self,
        directory: &Path,
        idle: Option<Duration>,
        ended: impl FnOnce() + Send + 'static,
    ) -> vbk_repo::Result<bool> {
        let Some((owner, socket)) = self.shared.owned.begin(directory)? else {
            return Ok(false);
        };
        let (shared, of, directory) = (Arc::clone(&self.shared), owner.clone(), directory.to_owned());
        let unused = async move {
            shared.owned.end_unused(&directory, of, idle).await;
            ended();
        };
        self.listen(LocalListener { socket, owner }, unused);
        Ok(true)
    }

    /// Opens a repository for a client that came from elsewhere, which counts as one until the second is dropped. One of many is this
    /// process's own from its first client on, if no other process has it open. Has to be called on a runtime.
    pub(super) fn open(&self, directory: &Path) -> (vbk_repo::Result<Arc<dyn Home>>, Option<Entered>) {
        let entered = self.shared.owned.enter(directory).or_else(|| {
            let is_one_of_many = matches!(self.shared.served, Served::Below(_));
            let is_own = is_one_of_many && self.own(directory, Some(UNUSED_FOR), || ()).is_ok_and(|is_own| is_own);
            is_own.then(|| self.shared.owned.enter(directory))?
        });
        match entered {
            Some((home, client)) => (Ok(home), Some(client)),
            None => ((self.shared.open)(directory), None),
        }
    }
}

impl Listener for LocalListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        let (stream, _) = self.socket.listener.accept().await?;
        Ok((stream, None))
    }

    async fn admit(&self, stream: UnixStream, serving: &Serving) -> io::Result<Client> {
        // The mode of the socket says the same, but not that of a directory that was given to somebody else since.
        let credentials = stream.peer_cred()?;
        let peer = credentials.uid();
        if peer != 0 && peer != std::fs::metadata("/proc/self")?.uid() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("user {peer} is neither root nor the user of the server"),
            ));
        }
        let (home, entered) = self.owner.enter();
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
        let registered = serving.shared.registries.enter(home.name(), visitor);
        let (read, write) = stream.into_split();
        Ok(Client {
            is_known: true,
            read: Box::new(read),
            write: Box::new(write),
            home: Ok(home),
            allowed: Allowed::Trusted,
            registered,
            ended: Box::pin(async move {
                let _entered = entered;
                pending().await
            }),
        })
    }
}
