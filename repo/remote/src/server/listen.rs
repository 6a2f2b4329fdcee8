//! A server: its listeners, and its end.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::clients::{Open, Served, Serving, Shared};
use super::tls::TlsListener;
use crate::peer::Seed;

/// Time in which sessions must end when the server does. systemd kills after 90 s.
const END_WITHIN: Duration = Duration::from_secs(60);
/// Threads that read from stores and files, started as they are needed; a client has 16 at most.
const MAX_THREADS: usize = 2048;
/// Time between two looks whether another process still has the repository open.
const SHARE_POLL: Duration = Duration::from_secs(1);
/// Time between two looks whether the server shall end.
const STOP_POLL: Duration = Duration::from_millis(100);

/// A server.
pub struct Server {
    runtime: Runtime,
    serving: Serving,
    /// Set when all shall end.
    stop: watch::Sender<bool>,
    /// Closed when nothing of the server lives any more.
    alive: mpsc::Receiver<()>,
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
        let (stop, stopped) = watch::channel(false);
        let (lives, alive) = mpsc::channel(1);
        let serving = Serving {
            shared,
            stop: stopped,
            _alive: lives,
        };
        Ok(Self {
            runtime,
            serving,
            stop,
            alive,
        })
    }

    /// Listens for clients over TLS, and returns the address with its port. Clients are served from now on.
    pub fn listen_tls(&self, address: SocketAddr, key: &Seed) -> io::Result<SocketAddr> {
        let _on_runtime = self.runtime.enter();
        let listener = TlsListener::bind(address, key)?;
        let address = listener.local_address()?;
        self.serving.listen(listener, pending());
        Ok(address)
    }

    /// Has the only repository that is served open for all programs of this machine, and for the clients of this server. Ends the
    /// server when nobody was connected for `idle`, if that is given. `false` if another process has it open.
    pub fn share(&self, directory: &Path, idle: Option<Duration>) -> vbk_repo::Result<bool> {
        let _on_runtime = self.runtime.enter();
        let stop = self.stop.clone();
        self.serving.own(directory, idle, move || _ = stop.send_replace(true))
    }

    /// Like [`Server::share`], as soon as the process that has the repository open ends. Until then clients go through that.
    pub fn share_later(&self, directory: &Path) {
        let (serving, directory) = (self.serving.clone(), directory.to_owned());
        let mut stopped = serving.stop.clone();
        let shares = async move {
            loop {
                sleep(SHARE_POLL).await;
                match serving.own(&directory, None, || ()) {
                    Ok(false) => {}
                    Ok(true) => return tracing::info!("{} is open for all here", directory.display()),
                    Err(error) => tracing::debug!("{error}"),
                }
            }
        };
        self.runtime.spawn(async move {
            tokio::select! {
                () = shares => {}
                _ = stopped.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// Serves until `stop` says so, and then ends all sessions in order. Returns the number of clients that were connected.
    pub fn run(self, stop: &dyn Fn() -> bool) -> usize {
        let Self {
            runtime,
            serving,
            stop: all,
            mut alive,
        } = self;
        let clients = runtime.block_on(async {
            while !stop() && !*all.borrow() {
                sleep(STOP_POLL).await;
            }
            let clients = serving.shared.registries.clients();
            all.send_replace(true);
            drop(serving);
            if timeout(END_WITHIN, alive.recv()).await.is_err() {
                tracing::warn!("some clients' work did not end within {} s", END_WITHIN.as_secs());
            }
            clients
        });
        runtime.shutdown_timeout(super::LAST_ANSWERS);
        clients
    }
}
