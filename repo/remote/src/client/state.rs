//! All that outlives a connection: the questions without an answer, and the open stores.
//!
//! A question keeps its message until it is answered, so that the next connection can send it again as it is: the client chose
//! the numbers of questions and of stores. The state's lock is taken before that of [`Puts`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vbk_repo::{Error, ErrorKind};

use super::gate::GATE;
use super::puts::{Id, Puts};
use crate::message::{Answer, Ask, Fault, Handle, Welcome};
use crate::wire::{Channel, Kind, Limits, Message, Outbox};

/// A report to the thread that asked.
pub(super) enum Event {
    /// An answer, its body, and whether more follow.
    Answer(Answer, Vec<u8>, bool),
    /// The connection was lost: the answers so far count for nothing, and all come again.
    Restarted,
    /// The connection was lost for this reason, and the question is not asked again.
    Lost(String),
}

/// The state of a link.
pub(super) struct Shared {
    /// The repository's address.
    pub(super) name: PathBuf,
    state: Mutex<State>,
    /// Notified when a put was answered, a connection is there, or all is over.
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    next_request: u32,
    next_order: u64,
    next_store: Handle,
    waiting: HashMap<u32, Asked>,
    stores: BTreeMap<Handle, OpenStore>,
    pub(super) put_bytes: usize,
    /// That of the connection, while there is one.
    outbox: Option<Arc<Outbox>>,
    /// The first greeting.
    pub(super) welcome: Option<Welcome>,
    /// A question was answered on this connection.
    is_of_use: bool,
    /// The reason for which nothing will be answered any more.
    over: Option<Fault>,
    /// Nobody has a question any more.
    is_closed: bool,
}

/// A question without an answer.
struct Asked {
    /// Place among all questions.
    order: u64,
    channel: Channel,
    message: Arc<Message>,
    waiter: Waiter,
}

pub(super) enum Waiter {
    Caller {
        sender: Sender<Event>,
        /// It is asked again after a lost connection.
        is_repeated: bool,
        /// The store that it opens.
        opens: Option<(Handle, Arc<Puts>)>,
        /// A part of the answer was there already.
        has_parts: bool,
    },
    Put {
        puts: Arc<Puts>,
    },
}

/// A store that the server has open.
struct OpenStore {
    /// The question that opens it.
    head: Vec<u8>,
    identity: String,
    puts: Arc<Puts>,
}

/// A store to be opened again.
pub(super) struct Reopened {
    pub(super) store: Handle,
    pub(super) head: Vec<u8>,
    pub(super) identity: String,
}

impl State {
    /// Returns whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.outbox.is_some()
    }

    /// Bytes that wait to be written; `None` if there is no connection.
    pub(super) fn unwritten_bytes(&self) -> Option<usize> {
        Some(self.outbox.as_ref()?.bulk_bytes())
    }

    pub(super) fn new_store(&mut self) -> Handle {
        self.next_store += 1;
        self.next_store
    }

    /// Asks now, or when there is a connection again. Returns the question's place among all.
    pub(super) fn ask(&mut self, ask: &Ask, body: Vec<u8>, is_ordered: bool, waiter: Waiter) -> u64 {
        tracing::trace!("asks {ask:?}, {} bytes", body.len());
        self.send(encode(ask), body, is_ordered, waiter)
    }

    fn send(&mut self, head: Vec<u8>, body: Vec<u8>, is_ordered: bool, waiter: Waiter) -> u64 {
        let message = Arc::new(question(self.number(), head, body));
        let channel = match is_ordered || message.len() > Limits::PEER.control {
            true => Channel::Bulk,
            false => Channel::Control,
        };
        self.next_order += 1;
        let asked = Asked {
            order: self.next_order,
            channel,
            message: Arc::clone(&message),
            waiter,
        };
        self.waiting.insert(message.request, asked);
        if let Some(outbox) = &self.outbox {
            outbox.send(channel, message);
        }
        self.next_order
    }

    /// Puts blocks, or nodes if there are none.
    pub(super) fn put(&mut self, puts: &Arc<Puts>, blocks: Option<Vec<Id>>, head: Vec<u8>, body: Vec<u8>) {
        let bytes = body.len();
        self.put_bytes += bytes;
        puts.begin(self.next_order + 1, blocks, bytes);
        let puts = Arc::clone(puts);
        self.send(head, body, true, Waiter::Put { puts });
    }

    fn number(&mut self) -> u32 {
        // 0 is the greeting's, and the server's own; the last one is for the opening of stores.
        loop {
            self.next_request = match self.next_request {
                number if number >= REOPEN - 1 => 1,
                number => number + 1,
            };
            if !self.waiting.contains_key(&self.next_request) {
                return self.next_request;
            }
        }
    }
}

/// Number of the questions that open stores again.
pub(super) const REOPEN: u32 = u32::MAX;

impl Shared {
    pub(super) fn new(name: PathBuf) -> Self {
        Self {
            name,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Tells those who wait that the state has changed.
    fn tell(&self) {
        self.changed.notify_all();
        GATE.change();
    }

    /// The state; the final error once there is one.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock();
        match &state.over {
            None => Ok(state),
            Some(fault) => Err(fault.clone().into_error(&self.name)),
        }
    }

    /// The state once it is so; the final error if that comes first.
    pub(super) fn wait(&self, is_so: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.lock()?;
        while !is_so(&state) {
            self.changed.wait(&mut state);
            if let Some(fault) = &state.over {
                return Err(fault.clone().into_error(&self.name));
            }
        }
        Ok(state)
    }

    /// Hands an answer to the one who waits for it.
    pub(super) fn deliver(&self, message: Message) -> io::Result<()> {
        let answer = decode(&message)?;
        let mut state = self.state.lock();
        let Some(mut asked) = state.waiting.remove(&message.request) else {
            return Err(match answer {
                // The server's last words.
                Answer::Failed(Fault::Other(ErrorKind::Invalid, what)) if message.request == 0 => invalid(&what),
                Answer::Failed(Fault::Other(_, what)) if message.request == 0 => io::Error::other(what),
                _ => invalid("an answer to nothing"),
            });
        };
        state.is_of_use = true;
        match &mut asked.waiter {
            Waiter::Caller {
                sender,
                opens,
                has_parts,
                ..
            } => {
                if let (Some((store, puts)), Answer::Opened { identity, .. }) = (opens.take(), &answer) {
                    let open = OpenStore {
                        head: asked.message.head.clone(),
                        identity: identity.clone(),
                        puts,
                    };
                    state.stores.insert(store, open);
                }
                // Who no longer waits has an error already.
                let _ = sender.send(Event::Answer(answer, message.body, message.more));
                if message.more {
                    *has_parts = true;
                    state.waiting.insert(message.request, asked);
                }
            }
            Waiter::Put { puts } => {
                let failed = match answer {
                    Answer::Done => None,
                    Answer::Failed(fault) => Some(fault),
                    _ => return Err(invalid("an answer to another question than a put")),
                };
                state.put_bytes -= asked.message.body.len();
                puts.end(asked.order, asked.message, failed);
                self.tell();
            }
        }
        Ok(())
    }

    /// The stores that a new connection has to open.
    pub(super) fn stores(&self) -> Vec<Reopened> {
        let state = self.state.lock();
        let stores = state.stores.iter().map(|(store, open)| Reopened {
            store: *store,
            head: open.head.clone(),
            identity: open.identity.clone(),
        });
        stores.collect()
    }

    /// Starts to use a connection on which these stores are open: sends all questions without an answer, in their order.
    pub(super) fn use_connection(&self, outbox: &Arc<Outbox>, opened: &[Reopened]) {
        let mut state = self.state.lock();
        let mut all: Vec<_> = state.waiting.values_mut().collect();
        all.sort_by_key(|asked| asked.order);
        for asked in all {
            if let Waiter::Caller { sender, has_parts, .. } = &mut asked.waiter
                && std::mem::take(has_parts)
            {
                let _ = sender.send(Event::Restarted);
            }
            outbox.send(asked.channel, Arc::clone(&asked.message));
        }
        state.outbox = Some(Arc::clone(outbox));
        state.is_of_use = false;
        for closed in opened {
            if !state.stores.contains_key(&closed.store) {
                let (waiter, _) = once();
                state.ask(&Ask::Close(closed.store), Vec::new(), true, waiter);
            }
        }
        if state.is_closed {
            outbox.close();
        }
        drop(state);
        self.tell();
    }

    /// Notes that the connection is lost. Returns whether it was of use; `None` if there was none.
    pub(super) fn lose(&self, reason: &str) -> Option<bool> {
        let mut state = self.state.lock();
        let outbox = state.outbox.take()?;
        outbox.close();
        state.waiting.retain(|_, asked| match &asked.waiter {
            Waiter::Caller {
                sender,
                is_repeated: false,
                ..
            } => {
                let _ = sender.send(Event::Lost(reason.to_owned()));
                false
            }
            _ => true,
        });
        state.stores.values().for_each(|open| open.puts.lose());
        Some(state.is_of_use)
    }

    /// Ends all waits with an error. The first one counts.
    pub(super) fn end(&self, fault: Fault) {
        let mut state = self.state.lock();
        state.over.get_or_insert(fault);
        // Those who wait find that nobody will answer.
        state.waiting.clear();
        if let Some(outbox) = state.outbox.take() {
            outbox.close();
        }
        drop(state);
        self.tell();
    }

    /// Closes a store; its server does so by itself when the connection ends. With `waits`, when this returns the store is closed
    /// or the connection lost.
    pub(super) fn close_store(&self, store: Handle, waits: bool) {
        let (waiter, closed) = once();
        let Ok(mut state) = self.lock() else { return };
        state.stores.remove(&store);
        if state.is_up() {
            state.ask(&Ask::Close(store), Vec::new(), true, waiter);
            drop(state);
            if waits {
                let _ = closed.recv();
            }
        }
    }

    /// Notes that nobody has a question any more. Returns whether there is a connection, which then ends by itself.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.outbox.as_ref().inspect(|outbox| outbox.close()).is_some()
    }

    /// Returns whether nobody has a question any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Returns whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        self.state.lock().is_up()
    }

    /// Returns whether a server has greeted.
    pub(super) fn is_greeted(&self) -> bool {
        self.state.lock().welcome.is_some()
    }

    /// Compares the greeting with the first one; the name of the difference.
    pub(super) fn greeted(&self, welcome: Welcome) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        let first = state.welcome.get_or_insert_with(|| welcome.clone());
        match (first.id == welcome.id, first.key_check == welcome.key_check) {
            (true, true) => Ok(()),
            (false, _) => Err("it has another id"),
            (true, false) => Err("it has another key"),
        }
    }
}

/// A waiter whose question is not asked again.
pub(super) fn once() -> (Waiter, std::sync::mpsc::Receiver<Event>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiter = Waiter::Caller {
        sender,
        is_repeated: false,
        opens: None,
        has_parts: false,
    };
    (waiter, receiver)
}

pub(super) fn encode(ask: &Ask) -> Vec<u8> {
    postcard::to_stdvec(ask).expect("messages are plain data")
}

pub(super) fn decode(message: &Message) -> io::Result<Answer> {
    postcard::from_bytes(&message.head).map_err(|error| invalid(&error.to_string()))
}

pub(super) fn question(request: u32, head: Vec<u8>, body: Vec<u8>) -> Message {
    Message {
        kind: Kind::Ask,
        more: false,
        request,
        head,
        body,
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server breaks the protocol: {what}"),
    )
}

pub(super) fn unreachable(name: &Path, reason: &str) -> Fault {
    Fault::Other(
        ErrorKind::Unavailable,
        format!("can't open {}: {reason}", name.display()),
    )
}
