//! The connection to a server: sends questions, and hands each answer to whoever waits for it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vbk_repo::{Error, ErrorKind, Result};

use crate::message::{Answer, Ask, Fault, Hello, PROTOCOL, Welcome};
use crate::wire::{Channel, Kind, Limits, Message, MessageReader, Outbox, PREAMBLE, read_preamble, write_all};
use crate::{DEAD_AFTER, PING_INTERVAL};

/// Time for the first answer. A user may have to type a password meanwhile.
const WELCOME_WITHIN: Duration = Duration::from_secs(120);

/// A connection to a server. Everything that is asked fails once it is lost.
pub(super) struct Link {
    /// The repository's address.
    name: PathBuf,
    welcome: Welcome,
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Outbox,
    state: Mutex<State>,
    /// Notified when a put was answered, and when the connection is lost.
    answered: Condvar,
}

#[derive(Default)]
struct State {
    next_request: u32,
    waiting: HashMap<u32, Waiting>,
    put_bytes: usize,
    /// The reason for which the connection is lost.
    lost: Option<String>,
}

enum Waiting {
    Caller(Sender<(Answer, Vec<u8>, bool)>),
    Put { bytes: usize, puts: Arc<Puts> },
}

/// The puts of one store that are on their way.
#[derive(Default)]
pub(super) struct Puts(Mutex<PutsState>);

#[derive(Default)]
struct PutsState {
    on_their_way: usize,
    /// Names of blocks among them.
    ids: Vec<(u32, Vec<[u8; 32]>)>,
    failed: Option<Fault>,
}

impl Puts {
    /// Returns the error of the first put that failed.
    fn failed(&self) -> Option<Fault> {
        self.0.lock().failed.clone()
    }
}

/// Answers to one question.
pub(super) struct Answers<'a> {
    link: &'a Link,
    receiver: Receiver<(Answer, Vec<u8>, bool)>,
}

impl Answers<'_> {
    /// Waits for the next answer, and returns whether more follow.
    pub(super) fn next(&self) -> Result<(Answer, Vec<u8>, bool)> {
        match self.receiver.recv() {
            Ok((Answer::Failed(fault), ..)) => Err(fault.into_error(&self.link.name)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.link.lost()),
        }
    }

    /// Like [`Answers::next`], but returns `None` if none came for that long.
    pub(super) fn next_within(&self, limit: Duration) -> Result<Option<(Answer, Vec<u8>, bool)>> {
        match self.receiver.recv_timeout(limit) {
            Ok((Answer::Failed(fault), ..)) => Err(fault.into_error(&self.link.name)),
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.link.lost()),
        }
    }
}

/// The threads that move the bytes of all connections of this process.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("vbk-wire")
        .enable_all()
        .build()?;
    Ok(RUNTIME.get_or_init(|| made))
}

impl Link {
    /// Connects, and waits for the server's greeting. `connect` is called on the runtime.
    pub(super) fn open<R, W>(name: PathBuf, connect: impl FnOnce() -> io::Result<(R, W)>) -> Result<Self>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: io::Error| unreachable(&name, &error.to_string());
        let runtime = runtime().map_err(failed)?;
        let _on_runtime = runtime.enter();
        let (mut read, mut write) = connect().map_err(failed)?;
        let shared = Arc::new(Shared {
            // The window bounds what waits in it.
            outbox: Outbox::new(usize::MAX),
            state: Mutex::default(),
            answered: Condvar::new(),
        });
        let (greeted, welcome) = mpsc::channel();
        shared.state.lock().waiting.insert(0, Waiting::Caller(greeted));
        shared.state.lock().next_request = 1;
        let writing = Arc::clone(&shared);
        runtime.spawn(async move {
            let written = async {
                write.write_all(&PREAMBLE).await?;
                write_all(&writing.outbox, &mut write).await?;
                write.shutdown().await
            };
            if let Err(error) = written.await {
                // The reader knows more: the server's last words.
                tracing::debug!(%error, "can't write to the server");
                tokio::time::sleep(Duration::from_secs(1)).await;
                writing.lose(&error.to_string());
            }
        });
        let reading = Arc::clone(&shared);
        runtime.spawn(async move {
            let ended = async {
                let noise = timeout(WELCOME_WITHIN, read_preamble(&mut read))
                    .await
                    .map_err(|_| silent(WELCOME_WITHIN))??;
                if !noise.is_empty() {
                    tracing::debug!(
                        "before its greeting the server says: {}",
                        String::from_utf8_lossy(&noise).trim()
                    );
                }
                reading.listen(read).await
            };
            let reason = match ended.await {
                Ok(()) => "the server closed it".to_owned(),
                Err(error) => error.to_string(),
            };
            reading.lose(&reason);
        });
        let pinging = Arc::clone(&shared);
        runtime.spawn(async move {
            let mut ticks = interval(PING_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while pinging.state.lock().lost.is_none() {
                ticks.tick().await;
                pinging.outbox.send(Channel::Control, Message::empty(Kind::Ping));
            }
        });
        let hello = Ask::Hello(Hello {
            protocol: (PROTOCOL, PROTOCOL),
            program: concat!("vbk ", env!("CARGO_PKG_VERSION")).to_owned(),
        });
        shared.outbox.send(Channel::Control, message(0, &hello, Vec::new()));
        let greeting = welcome.recv();
        match greeting {
            Ok((Answer::Welcome(welcome), ..)) => Ok(Self { name, welcome, shared }),
            Ok((Answer::Failed(fault), ..)) => {
                shared.lose("the server refused it");
                Err(fault.into_error(&name))
            }
            Ok(_) => Err(unreachable(&name, "the server did not greet")),
            Err(_) => Err(unreachable(&name, &shared.reason())),
        }
    }

    /// The repository's address.
    pub(super) fn name(&self) -> &Path {
        &self.name
    }

    /// The server's greeting.
    pub(super) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends a question that keeps its order only if it is `ordered`.
    pub(super) fn begin(&self, ask: &Ask, body: Vec<u8>, ordered: bool) -> Result<Answers<'_>> {
        let (sender, receiver) = mpsc::channel();
        let request = self.shared.enter(Waiting::Caller(sender)).ok_or_else(|| self.lost())?;
        let message = message(request, ask, body);
        let channel = match ordered || message.len() > Limits::PEER.control {
            true => Channel::Bulk,
            false => Channel::Control,
        };
        self.shared.outbox.send(channel, message);
        Ok(Answers { link: self, receiver })
    }

    /// Asks, and waits for the only answer.
    pub(super) fn ask(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        let (answer, body, _) = self.begin(ask, body, false)?.next()?;
        Ok((answer, body))
    }

    /// Like [`Link::ask`], after all that was put.
    pub(super) fn ask_in_order(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        let (answer, body, _) = self.begin(ask, body, true)?.next()?;
        Ok((answer, body))
    }

    /// Sends a put of blocks with these ids, or of nodes, when the window has room for it. Its error comes with the flush.
    pub(super) fn put(&self, puts: &Arc<Puts>, ids: Vec<[u8; 32]>, ask: &Ask, body: Vec<u8>) -> Result<()> {
        if let Some(fault) = puts.failed() {
            return Err(fault.into_error(&self.name));
        }
        let bytes = body.len();
        let window = self.welcome.window_bytes as usize;
        let mut state = self.shared.state.lock();
        while state.lost.is_none() && state.put_bytes > 0 && state.put_bytes + bytes > window {
            self.shared.answered.wait(&mut state);
        }
        if state.lost.is_some() {
            drop(state);
            return Err(self.lost());
        }
        let request = state.number();
        {
            let mut puts = puts.0.lock();
            puts.on_their_way += 1;
            puts.ids.push((request, ids));
        }
        state.put_bytes += bytes;
        let puts = Arc::clone(puts);
        state.waiting.insert(request, Waiting::Put { bytes, puts });
        // Under the lock: a flush that is sent afterwards must come after it.
        self.shared.outbox.send(Channel::Bulk, message(request, ask, body));
        Ok(())
    }

    /// Waits until the puts have arrived, if `ids` are among them; without ids, until all have.
    pub(super) fn drain(&self, puts: &Puts, ids: Option<&[[u8; 32]]>) -> Result<()> {
        let on_their_way = || {
            let puts = puts.0.lock();
            match ids {
                None => puts.on_their_way > 0,
                Some(ids) => puts.ids.iter().any(|(_, sent)| sent.iter().any(|id| ids.contains(id))),
            }
        };
        let mut state = self.shared.state.lock();
        while state.lost.is_none() && on_their_way() {
            self.shared.answered.wait(&mut state);
        }
        match state.lost.is_some() {
            true => {
                drop(state);
                Err(self.lost())
            }
            false => Ok(()),
        }
    }

    /// An error if a put has failed.
    pub(super) fn check(&self, puts: &Puts) -> Result<()> {
        match puts.failed() {
            Some(fault) => Err(fault.into_error(&self.name)),
            None => Ok(()),
        }
    }

    fn lost(&self) -> Error {
        Error::Remote {
            kind: ErrorKind::Unavailable,
            message: format!(
                "the connection to {} is lost: {}",
                self.name.display(),
                self.shared.reason()
            ),
        }
    }

    /// The error for an answer that does not fit the question.
    pub(super) fn unexpected(&self) -> Error {
        Error::Remote {
            kind: ErrorKind::Internal,
            message: format!("the server of {} answered what was not asked", self.name.display()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.outbox.close();
    }
}

impl State {
    fn number(&mut self) -> u32 {
        // 0 is the greeting's, and the server's own.
        self.next_request = self.next_request.checked_add(1).unwrap_or(1);
        while self.waiting.contains_key(&self.next_request) {
            self.next_request = self.next_request.checked_add(1).unwrap_or(1);
        }
        self.next_request
    }
}

impl Shared {
    /// Notes who waits for an answer; `None` if the connection is lost.
    fn enter(&self, waiting: Waiting) -> Option<u32> {
        let mut state = self.state.lock();
        if state.lost.is_some() {
            return None;
        }
        let request = state.number();
        state.waiting.insert(request, waiting);
        Some(request)
    }

    async fn listen(&self, read: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut reader = MessageReader::new(read, Limits::PEER);
        loop {
            let next = timeout(DEAD_AFTER, reader.next()).await;
            let Some(message) = next.map_err(|_| silent(DEAD_AFTER))?? else {
                return Ok(());
            };
            match message.kind {
                Kind::Ping => self.outbox.send(Channel::Control, Message::empty(Kind::Pong)),
                Kind::Pong => {}
                Kind::Ask => return Err(invalid("a question from a server")),
                Kind::Answer => self.deliver(message)?,
            }
        }
    }

    fn deliver(&self, message: Message) -> io::Result<()> {
        let answer = postcard::from_bytes(&message.head).map_err(|error| invalid(&error.to_string()))?;
        let mut state = self.state.lock();
        match state.waiting.remove(&message.request) {
            Some(Waiting::Caller(sender)) => {
                if message.more {
                    state.waiting.insert(message.request, Waiting::Caller(sender.clone()));
                }
                // Who no longer waits has an error already.
                let _ = sender.send((answer, message.body, message.more));
            }
            Some(Waiting::Put { bytes, puts }) => {
                state.put_bytes -= bytes;
                let mut puts = puts.0.lock();
                puts.on_their_way -= 1;
                puts.ids.retain(|(request, _)| *request != message.request);
                match answer {
                    Answer::Done => {}
                    Answer::Failed(fault) => _ = puts.failed.get_or_insert(fault),
                    _ => return Err(invalid("an answer to another question than a put")),
                }
                self.answered.notify_all();
            }
            None => match answer {
                // The server's last words.
                Answer::Failed(Fault::Other(_, what)) if message.request == 0 => return Err(io::Error::other(what)),
                _ => return Err(invalid("an answer to nothing")),
            },
        }
        Ok(())
    }

    /// Ends all waits. The first reason counts.
    fn lose(&self, reason: &str) {
        let mut state = self.state.lock();
        state.lost.get_or_insert_with(|| reason.to_owned());
        // Those who wait find that nobody will answer.
        state.waiting.clear();
        drop(state);
        self.answered.notify_all();
        self.outbox.close();
    }

    fn reason(&self) -> String {
        self.state.lock().lost.clone().unwrap_or_default()
    }
}

fn message(request: u32, ask: &Ask, body: Vec<u8>) -> Message {
    Message {
        kind: Kind::Ask,
        more: false,
        request,
        head: postcard::to_stdvec(ask).expect("messages are plain data"),
        body,
    }
}

fn unreachable(name: &Path, reason: &str) -> Error {
    Error::Remote {
        kind: ErrorKind::Unavailable,
        message: format!("can't open {}: {reason}", name.display()),
    }
}

fn silent(limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("nothing was heard of the server for {} seconds", limit.as_secs()),
    )
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server breaks the protocol: {what}"),
    )
}
