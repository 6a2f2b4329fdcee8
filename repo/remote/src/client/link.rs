//! The way to a server: sends questions, and hands each answer to whoever waits for it. A lost connection is made again
//! meanwhile.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use vbk_repo::{Error, ErrorKind, Result};

use super::again::Again;
use super::connection;
use super::puts::{Id, Puts};
use super::state::{Event, Shared, Waiter, encode, once, unreachable};
use crate::message::{Answer, Ask, Handle, Welcome};

/// Time for a try to connect to end, when nobody wants it any more.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Bytes that may wait to be written, so that the next put is there when one was written. What waits on a slow connection can't go
/// to a fast one any more: at the end of a backup, all would wait for it.
const UNWRITTEN_BYTES: usize = 2 << 20;

/// The way to a server. Everything that is asked fails once it is given up.
pub(super) struct Link {
    welcome: Welcome,
    shared: Arc<Shared>,
    /// Disconnected when the task has ended.
    ended: Mutex<Receiver<()>>,
}

/// A part of an answer.
pub(super) enum Part {
    /// An answer, its body, and whether more follow.
    Answer(Answer, Vec<u8>, bool),
    /// All parts come again.
    Restarted,
    /// The connection was lost for this reason, and the question is not asked again.
    Lost(String),
}

/// Answers to one question.
pub(super) struct Answers<'a> {
    link: &'a Link,
    receiver: Receiver<Event>,
}

impl Answers<'_> {
    /// For [`Link::answers`].
    pub(super) fn later(self) -> Receiver<Event> {
        self.receiver
    }

    /// Waits for the only answer.
    pub(super) fn only(&self) -> Result<(Answer, Vec<u8>)> {
        match self.part()? {
            Part::Answer(answer, body, false) => Ok((answer, body)),
            Part::Lost(reason) => Err(self.link.lost(&reason)),
            Part::Answer(..) | Part::Restarted => Err(self.link.unexpected()),
        }
    }

    /// Waits for the next answer.
    pub(super) fn part(&self) -> Result<Part> {
        match self.receiver.recv() {
            Ok(event) => self.link.part_of(event),
            Err(_) => Err(self.link.over()),
        }
    }

    /// Like [`Answers::part`], but returns `None` if none came for that long.
    pub(super) fn part_within(&self, limit: Duration) -> Result<Option<Part>> {
        match self.receiver.recv_timeout(limit) {
            Ok(event) => self.link.part_of(event).map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.link.over()),
        }
    }
}

/// The threads that move the bytes of all connections of this process.
pub(super) fn runtime() -> io::Result<&'static Runtime> {
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

fn repeated(sender: Sender<Event>, opens: Option<(Handle, Arc<Puts>)>) -> Waiter {
    Waiter::Caller {
        sender,
        is_repeated: true,
        opens,
        has_parts: false,
    }
}

impl Link {
    /// Connects, and waits for the server's greeting. `connect` is called on a thread of the runtime that may block.
    pub(super) fn open<R, W>(
        name: PathBuf,
        again: Again,
        connect: impl Fn() -> io::Result<(R, W)> + Send + Sync + 'static,
    ) -> Result<Self>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let runtime = runtime().map_err(|error| unreachable(&name, &error.to_string()).into_error(&name))?;
        let shared = Arc::new(Shared::new(name));
        let (ends, ended) = mpsc::channel();
        let kept = connection::keep(Arc::clone(&shared), again, Arc::new(connect));
        runtime.spawn(async move {
            kept.await;
            drop::<Sender<()>>(ends);
        });
        let greeted = |state: &super::state::State| state.welcome.is_some() && state.is_up();
        let welcome = shared.wait(greeted)?.welcome.clone();
        Ok(Self {
            welcome: welcome.expect("was waited for"),
            shared,
            ended: Mutex::new(ended),
        })
    }

    /// The repository's address.
    pub(super) fn name(&self) -> &Path {
        &self.shared.name
    }

    /// The server's greeting.
    pub(super) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends a question that keeps its order only if it is `ordered`.
    pub(super) fn begin(&self, ask: &Ask, body: Vec<u8>, ordered: bool) -> Result<Answers<'_>> {
        let (sender, receiver) = mpsc::channel();
        self.shared.lock()?.ask(ask, body, ordered, repeated(sender, None));
        Ok(Answers { link: self, receiver })
    }

    /// Sends a question that keeps its order and is not asked again after a lost connection.
    pub(super) fn begin_once(&self, ask: &Ask) -> Result<Answers<'_>> {
        let (waiter, receiver) = once();
        let mut state = self.shared.wait(|state| state.is_up())?;
        state.ask(ask, Vec::new(), true, waiter);
        Ok(Answers { link: self, receiver })
    }

    /// Asks, and waits for the only answer.
    pub(super) fn ask(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        self.begin(ask, body, false)?.only()
    }

    /// Like [`Link::ask`], after all that was put.
    pub(super) fn ask_in_order(&self, ask: &Ask, body: Vec<u8>) -> Result<(Answer, Vec<u8>)> {
        self.begin(ask, body, true)?.only()
    }

    /// Opens a store, on each later connection too until [`Link::close_store`]. The questions that `early` makes about it go with
    /// the first one, for [`Link::answers`].
    pub(super) fn open_store(
        &self,
        question: &dyn Fn(Handle) -> Ask,
        early: &[&dyn Fn(Handle) -> Ask],
        puts: &Arc<Puts>,
    ) -> Result<(Handle, Answer, Vec<Receiver<Event>>)> {
        let (sender, receiver) = mpsc::channel();
        let mut state = self.shared.lock()?;
        let store = state.new_store();
        let waiter = repeated(sender, Some((store, Arc::clone(puts))));
        state.ask(&question(store), Vec::new(), false, waiter);
        let ask = |question: &&dyn Fn(Handle) -> Ask| {
            let (sender, receiver) = mpsc::channel();
            state.ask(&question(store), Vec::new(), false, repeated(sender, None));
            receiver
        };
        let early = early.iter().map(ask).collect();
        drop(state);
        let (answer, _) = Answers { link: self, receiver }.only()?;
        Ok((store, answer, early))
    }

    /// The answers to a question that was sent before.
    pub(super) fn answers(&self, receiver: Receiver<Event>) -> Answers<'_> {
        Answers { link: self, receiver }
    }

    /// Sends a question, for [`Link::answers`].
    pub(super) fn send(&self, ask: &Ask) -> Result<Receiver<Event>> {
        Ok(self.begin(ask, Vec::new(), false)?.later())
    }

    /// Closes a store. With `waits`, others can have it when this returns.
    pub(super) fn close_store(&self, store: Handle, waits: bool) {
        self.shared.close_store(store, waits);
    }

    /// Sends a put of nodes when the window has room for it. Its error comes with the flush.
    pub(super) fn put_nodes(&self, puts: &Arc<Puts>, ask: &Ask, body: Vec<u8>) -> Result<()> {
        self.check(puts)?;
        let mut state = self.shared.wait(|state| self.has_room(state.put_bytes, body.len()))?;
        // Under the lock: a flush that is sent afterwards must come after it.
        state.put(puts, None, encode(ask), body);
        Ok(())
    }

    /// Sends a put of blocks, if the connection takes it soon; its error comes with the flush. Otherwise it returns `false`, and the
    /// gate of this process tells when to try again. `put` gives the blocks' ids, the question and its body.
    pub(super) fn put_blocks_soon(
        &self,
        puts: &Arc<Puts>,
        bytes: usize,
        put: impl FnOnce() -> (Vec<Id>, Ask, Vec<u8>),
    ) -> Result<bool> {
        self.check(puts)?;
        let mut state = self.shared.lock()?;
        let is_written_soon = |waiting: usize| waiting == 0 || waiting + bytes <= UNWRITTEN_BYTES;
        let takes = self.has_room(state.put_bytes, bytes) && state.unwritten_bytes().is_some_and(is_written_soon);
        if takes {
            let (ids, ask, body) = put();
            state.put(puts, Some(ids), encode(&ask), body);
        }
        Ok(takes)
    }

    fn has_room(&self, put_bytes: usize, more: usize) -> bool {
        put_bytes == 0 || put_bytes + more <= self.welcome.window_bytes as usize
    }

    /// Asks for a flush or commit, after all nodes that a lost connection left in doubt were put again. Returns `None` if the
    /// connection was lost before the answer. It is never repeated by itself: a server that was restarted would do it without
    /// the nodes that it lost. `then` goes with it, for [`Link::answers`].
    pub(super) fn barrier(&self, puts: &Arc<Puts>, ask: &Ask, then: Option<&Ask>) -> Result<Option<Receiver<Event>>> {
        let (waiter, receiver) = once();
        let (then_waiter, then_receiver) = once();
        let order = loop {
            let mut state = self.shared.wait(|state| {
                let next = puts.next_again_bytes();
                state.is_up() && next.is_none_or(|more| self.has_room(state.put_bytes, more))
            })?;
            let Some(nodes) = puts.take_again() else {
                let order = state.ask(ask, Vec::new(), true, waiter);
                if let Some(then) = then {
                    state.ask(then, Vec::new(), true, then_waiter);
                }
                break order;
            };
            state.put(puts, None, nodes.head.clone(), nodes.body.clone());
        };
        match (Answers { link: self, receiver }).part()? {
            Part::Answer(Answer::Done, _, false) => {
                puts.flushed(order);
                Ok(Some(then_receiver))
            }
            Part::Lost(_) => Ok(None),
            _ => Err(self.unexpected()),
        }
    }

    /// Returns whether the link is given up.
    pub(super) fn is_over(&self) -> bool {
        self.shared.lock().is_err()
    }

    /// Bytes of puts without an answer.
    pub(super) fn put_bytes(&self) -> usize {
        self.shared.lock().map_or(0, |state| state.put_bytes)
    }

    /// Waits until the puts have arrived, if `ids` are among them; without ids, until all have.
    pub(super) fn drain(&self, puts: &Puts, ids: Option<&[Id]>) -> Result<()> {
        let ids: Option<HashSet<Id>> = ids.map(|ids| ids.iter().copied().collect());
        self.shared.wait(|_| !puts.are_on_their_way(ids.as_ref())).map(drop)
    }

    /// An error if a put has failed.
    pub(super) fn check(&self, puts: &Puts) -> Result<()> {
        match puts.failed() {
            Some(fault) => Err(fault.into_error(self.name())),
            None => Ok(()),
        }
    }

    fn part_of(&self, event: Event) -> Result<Part> {
        match event {
            Event::Answer(Answer::Failed(fault), ..) => Err(fault.into_error(self.name())),
            Event::Answer(answer, body, more) => Ok(Part::Answer(answer, body, more)),
            Event::Restarted => Ok(Part::Restarted),
            Event::Lost(reason) => Ok(Part::Lost(reason)),
        }
    }

    /// The error that ended all waits.
    fn over(&self) -> Error {
        match self.shared.lock() {
            Err(error) => error,
            Ok(_) => self.lost("its task has ended"),
        }
    }

    /// The error for a question that is not asked again.
    pub(super) fn lost(&self, reason: &str) -> Error {
        Error::Remote {
            kind: ErrorKind::Unavailable,
            message: format!("the connection to {} is lost: {reason}", self.name().display()),
        }
    }

    /// The error for an answer that does not fit the question.
    pub(super) fn unexpected(&self) -> Error {
        Error::Remote {
            kind: ErrorKind::Internal,
            message: format!("the server of {} answered what was not asked", self.name().display()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A connection in use ends by itself. A try to make one has a program that should not outlive this one.
        if !self.shared.close() {
            let _ = self.ended.get_mut().recv_timeout(ENDS_WITHIN);
        }
    }
}
