//! Takes clients from a server's listeners, finds out who each of them is, and serves it in a task.
//!
//! A kind of listener is a [`Listener`]: it accepts streams and finds out who is at their other ends. All else is the same
//! for all.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use vbk_repo::repository::home::Home;

use super::crowd::{Crowd, Place, Refused};
use super::owned::Owned;
use super::registry::{Registered, Registries};
use super::session::{Memory, Visit};
use super::{Allowed, session};
use crate::message::Fault;

/// Time in which a client must say who it is.
const KNOWN_WITHIN: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
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

/// Parts of a server that all its tasks use.
pub(super) struct Shared {
    pub(super) served: Served,
    pub(super) open: Box<Open>,
    crowd: Crowd,
    pub(super) registries: Arc<Registries>,
    pub(super) owned: Owned,
    memory: Memory,
}

impl Shared {
    pub(super) fn new(served: Served, open: Box<Open>) -> Self {
        Self {
            served,
            open,
            crowd: Crowd::new(),
            registries: Arc::default(),
            owned: Owned::default(),
            memory: Memory::new(),
        }
    }
}

/// What each task of a server has.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) shared: Arc<Shared>,
    /// Says when all shall end.
    pub(super) stop: watch::Receiver<bool>,
    /// Lives as long as one client is served.
    pub(super) _alive: mpsc::Sender<()>,
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
    pub(super) registered: Registered,
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
    fn admit(&self, stream: Self::Stream, serving: &Serving) -> impl Future<Output = io::Result<Client>> + Send;
}

impl Serving {
    /// Serves all clients of a listener, in a task of its own, until the server ends or `ended` completes. Has to be called on a
    /// runtime.
    pub(super) fn listen(&self, listener: impl Listener, ended: impl Future<Output = ()> + Send + 'static) {
        let (serving, mut stop) = (self.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = take_clients(Arc::new(listener), serving) => {}
                () = ended => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }
}

/// Serves all clients of a listener, until it is dropped.
async fn take_clients<L: Listener>(listener: Arc<L>, serving: Serving) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("can't accept a client: {error}");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let entered = match serving.shared.crowd.enter(from, Instant::now()) {
            Err(Refused::Busy) => serving.shared.crowd.queue(from).map(Err),
            Err(Refused::TooMany) => None,
            Ok(place) => Some(Ok(place)),
        };
        let Some(entered) = entered else {
            tracing::debug!(?from, "too many clients, or too many that failed: one is turned away");
            continue;
        };
        let (listener, serving) = (Arc::clone(&listener), serving.clone());
        tokio::spawn(async move {
            let place = match entered {
                Ok(place) => place,
                Err(waiting) => {
                    let entering = serving.shared.crowd.enter_later(from, waiting);
                    let Ok(Ok(place)) = timeout(KNOWN_WITHIN, entering).await else {
                        return tracing::debug!(?from, "a client was not heard in time: it is turned away");
                    };
                    place
                }
            };
            serve(&*listener, stream, &serving, place)
                .await
                .unwrap_or_else(|error| {
                    tracing::debug!(?from, "a client's connection ended: {error}");
                });
        });
    }
}

async fn serve<L: Listener>(listener: &L, stream: L::Stream, serving: &Serving, mut place: Place) -> io::Result<()> {
    let (mut stop, mut stopped) = (serving.stop.clone(), serving.stop.clone());
    let memory = &serving.shared.memory;
    let admitted = tokio::select! {
        admitted = timeout(KNOWN_WITHIN, listener.admit(stream, serving)) => admitted,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let admitted = admitted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let Client {
        is_known,
        read,
        write,
        home,
        allowed,
        registered,
        ended,
    } = admitted.inspect_err(|_| place.failed())?;
    match is_known {
        true => place.known(),
        false => place.failed(),
    }
    let visit = Visit { registered, make: None };
    match home {
        Ok(home) => {
            let ended = async move {
                tokio::select! {
                    reason = ended => reason,
                    _ = stop.wait_for(|stop| *stop) => "the server is shutting down".to_owned(),
                }
            };
            session::run(Ok(&home), allowed, memory, visit, ended, read, write).await
        }
        Err(fault) => {
            let refused = session::run(Err(&fault), allowed, memory, visit, ended, read, write);
            timeout(KNOWN_WITHIN, refused).await.unwrap_or(Ok(()))
        }
    }
}
