//! A server: takes clients from its listeners, finds out who each of them is, and serves it in a task.
//!
//! A kind of listener is a [`Listener`]: it accepts streams and finds out who is at their other ends. All else is the same
//! for all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use vbk_repo::repository::home::Home;

use super::crowd::{Crowd, Place};
use super::until::Until;
use super::{Allowed, session};
use crate::message::Fault;

/// Time in which a client must say who it is.
const KNOWN_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// Time in which sessions must end when the server does. systemd kills after 90 s.
const END_WITHIN: Duration = Duration::from_secs(60);
/// Threads that read from stores and files, started as they are needed; a client has 16 at most.
const MAX_THREADS: usize = 2048;
/// Time between two looks whether the server shall end.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Pause after a failed accept: of too many open files, the next fails too.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// Opens the repository in a directory.
pub type Open = dyn Fn(&Path) -> vbk_repo::Result<Arc<dyn Home>> + Send + Sync;

/// The repositories that a server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// The one in a directory; clients name none.
    One(PathBuf),
    /// Those in the directories below one, each under the name of its directory.
    Below(PathBuf),
}

/// A server.
pub struct Server {
    runtime: Runtime,
    shared: Arc<Shared>,
    /// Set when all shall end.
    stop: watch::Sender<bool>,
    /// Closed when nothing of the server lives any more.
    alive: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// Parts of a server that all its tasks use.
pub(super) struct Shared {
    pub(super) served: Served,
    pub(super) open: Box<Open>,
    crowd: Crowd,
}

/// A client that said who it is.
pub(super) struct Client {
    /// It proved to be one that may come; else its try counts as failed.
    pub(super) is_known: bool,
    pub(super) read: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) write: Box<dyn AsyncWrite + Send + Unpin>,
    /// The repository as this client may have it, or the reason for which it may not.
    pub(super) home: Result<Arc<dyn Home>, Fault>,
    pub(super) allowed: Allowed,
    /// Completes when this client may not go on, with the reason.
    pub(super) ended: Pin<Box<dyn Future<Output = String> + Send>>,
}

/// A way for clients to come.
pub(super) trait Listener: Send + Sync + 'static {
    /// A stream to a client that may be anybody.
    type Stream: Send + 'static;

    /// Waits for a client. Returns its address too, if it has one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;

    /// Finds out who a client is. An error ends the connection without an answer.
    fn admit(&self, stream: Self::Stream, shared: &Arc<Shared>) -> impl Future<Output = io::Result<Client>> + Send;
}

impl Server {
    /// Makes a server without a listener. `open` is called for each client.
    pub fn new(served: Served, open: Box<Open>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("vbk-serve")
            .max_blocking_threads(MAX_THREADS)
            .enable_all()
            .build()?;
        let crowd = Crowd::new();
        Ok(Self {
            runtime,
            shared: Arc::new(Shared { served, open, crowd }),
            stop: watch::Sender::new(false),
            alive: mpsc::channel(1),
        })
    }

    /// Listens for clients over TLS, and returns the address with its port. Clients are served from now on.
    pub fn listen_tls(&self, address: SocketAddr, key: &crate::peer::Seed) -> io::Result<SocketAddr> {
        let _on_runtime = self.runtime.enter();
        let listener = super::tls::TlsListener::bind(address, key)?;
        let address = listener.local_address()?;
        self.listen(listener);
        Ok(address)
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
            while !stop() {
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

async fn take_clients<L: Listener>(
    listener: Arc<L>,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    alive: mpsc::Sender<()>,
) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("can't accept a client: {error}");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(place) = shared.crowd.enter(from, Instant::now()) else {
            tracing::debug!(?from, "too many clients, or too many that failed: one is turned away");
            continue;
        };
        let (listener, shared, stop, alive) = (Arc::clone(&listener), Arc::clone(&shared), stop.clone(), alive.clone());
        tokio::spawn(async move {
            serve(&*listener, stream, &shared, place, stop)
                .await
                .unwrap_or_else(|error| {
                    tracing::debug!(?from, "a client's connection ended: {error}");
                });
            drop(alive);
        });
    }
}

async fn serve<L: Listener>(
    listener: &L,
    stream: L::Stream,
    shared: &Arc<Shared>,
    mut place: Place,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut stopped = stop.clone();
    let admitted = tokio::select! {
        admitted = timeout(KNOWN_WITHIN, listener.admit(stream, shared)) => admitted,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let admitted = admitted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let Client {
        is_known,
        read,
        write,
        home,
        allowed,
        ended,
    } = admitted.inspect_err(|_| place.failed())?;
    match is_known {
        true => place.known(),
        false => place.failed(),
    }
    match home {
        Ok(home) => {
            let ended = async move {
                tokio::select! {
                    reason = ended => reason,
                    _ = stop.wait_for(|stop| *stop) => "the server is shutting down".to_owned(),
                }
            };
            session::run(Ok(&home), allowed, Until::new(read, ended), write).await
        }
        Err(fault) => {
            let refused = session::run(Err(&fault), allowed, read, write);
            timeout(KNOWN_WITHIN, refused).await.unwrap_or(Ok(()))
        }
    }
}
