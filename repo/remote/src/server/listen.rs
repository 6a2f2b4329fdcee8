//! A server: its listeners, and its end.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use vbk_repo::Error;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SharedDirectory;

use super::clients::{Listener, Open, Served, Shared, take_clients};
use super::local::{LocalListener, Socket};
use super::tls::TlsListener;
use crate::peer::Seed;

/// Time in which sessions must end when the server does. systemd kills after 90 s.
const END_WITHIN: Duration = Duration::from_secs(60);
/// Threads that read from stores and files, started as they are needed; a client has 16 at most.
const MAX_THREADS: usize = 2048;
/// Time between two looks whether the server shall end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// A server.
pub struct Server {
    runtime: Runtime,
    shared: Arc<Shared>,
    /// Set when all shall end.
    stop: watch::Sender<bool>,
    /// Closed when nothing of the server lives any more.
    alive: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

impl Server {
    /// Makes a server without a listener. `open` is called for each client.
    pub fn new(served: Served, open: Box<Open>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("vbk-serve")
            .max_blocking_threads(MAX_THREADS)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::new(served, open));
        runtime.spawn(Arc::clone(&shared.registries).keep_published());
        Ok(Self {
            runtime,
            shared,
            stop: watch::Sender::new(false),
            alive: mpsc::channel(1),
        })
    }

    /// Listens for clients over TLS, and returns the address with its port. Clients are served from now on.
    pub fn listen_tls(&self, address: SocketAddr, key: &Seed) -> io::Result<SocketAddr> {
        let _on_runtime = self.runtime.enter();
        let listener = TlsListener::bind(address, key)?;
        let address = listener.local_address()?;
        self.listen(listener);
        Ok(address)
    }

    /// Has the only repository that is served open for all programs of this machine, and for the clients of this server. Ends the
    /// server when nobody was connected for `idle`, if that is given. `false` if another process has it open.
    pub fn share(&self, directory: &Path, idle: Option<Duration>) -> vbk_repo::Result<bool> {
        let _on_runtime = self.runtime.enter();
        let failed = |error| Error::io("listen in", directory)(error);
        let socket = match Socket::bind(directory) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(false),
            socket => socket.map_err(failed)?,
        };
        let shared = Arc::new(SharedDirectory::new(Arc::new(Directory::open(directory)?)));
        let socket = LocalListener::new(socket, Arc::clone(&shared));
        let unused = socket.close_unused(idle);
        self.listen(socket);
        let stop = self.stop.clone();
        self.runtime.spawn(async move {
            unused.await;
            stop.send_replace(true);
        });
        Ok(true)
    }

    /// Takes clients from a listener from now on.
    fn listen(&self, listener: impl Listener) {
        let (shared, stop, alive) = (Arc::clone(&self.shared), self.stop.subscribe(), self.alive.0.clone());
        self.runtime.spawn(async move {
            let mut stopped = stop.clone();
            tokio::select! {
                () = take_clients(Arc::new(listener), shared, stop, alive) => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// Serves until `stop` says so, and then ends all sessions in order.
    pub fn run(self, stop: &dyn Fn() -> bool) {
        let Self {
            runtime,
            stop: all,
            alive: (own, mut alive),
            ..
        } = self;
        runtime.block_on(async {
            while !stop() && !*all.borrow() {
                sleep(STOP_POLL).await;
            }
            all.send_replace(true);
            drop(own);
            if timeout(END_WITHIN, alive.recv()).await.is_err() {
                tracing::warn!("some clients' work did not end within {} s", END_WITHIN.as_secs());
            }
        });
        runtime.shutdown_timeout(super::LAST_ANSWERS);
    }
}
