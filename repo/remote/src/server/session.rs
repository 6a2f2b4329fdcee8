//! One client: reads its questions, hands them out, and writes the answers.
//!
//! Questions that write go through a queue to one thread, in their order; the others to the threads of a pool, some at a time.

mod pool;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;
use vbk_repo::ErrorKind;
use vbk_repo::repository::SealedOptions;
use vbk_repo::repository::home::Home;

use self::pool::{Pool, Queue};
use super::Allowed;
use super::registry::Registered;
use super::stores::Stores;
use super::until::Until;
use crate::budget::{Budget, Reserved, Share};
use crate::message::{Answer, Ask, Fault, Hello, OLDEST_PROTOCOL, PROTOCOL, Welcome};
use crate::wire::{
    Channel, Kind, Limits, Message, MessageReader, Outbox, PREAMBLE, ping, read_preamble, stalled, write_all,
};
use crate::{DEAD_AFTER, PING_INTERVAL};

/// Bytes of puts that may be on their way or in the queue.
pub(super) const WINDOW_BYTES: usize = 64 << 20;
/// The same of heads: that of a put is much shorter than its body, which has the headers of the blocks. In memory they are longer.
const HEAD_WINDOW_BYTES: usize = 16 << 20;
/// Bytes of the other questions that may wait.
pub(super) const ASKED_BYTES: usize = 64 << 20;
/// Bytes of finished answers after which no more are made.
pub(super) const ANSWER_BYTES: usize = 32 << 20;
/// Bytes of short answers that a client may leave unread.
pub(super) const UNREAD_BYTES: usize = 32 << 20;
/// Memory of the long questions of all clients, and of their answers.
pub(super) const ALL_ASKED_BYTES: usize = 96 << 20;
const ALL_ANSWER_BYTES: usize = 128 << 20;
/// Longest waits for them of a client that has none. Questions have theirs as long as the server needs; answers as long as other
/// clients read slowly.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Makes the repository that is served, for an administrator.
pub type Make = dyn Fn(&SealedOptions) -> vbk_repo::Result<()> + Send + Sync;

/// A client's visit.
pub(super) struct Visit {
    /// What others see of it.
    pub(super) registered: Registered,
    /// For a client that may have a repository made.
    pub(super) make: Option<Arc<Make>>,
}

impl Visit {
    /// The visit of somebody whom nobody sees.
    pub(super) fn of_nobody() -> Self {
        Self {
            registered: Registered::nobody(),
            make: None,
        }
    }
}

/// Where the answers to one question go.
pub(super) struct Reply {
    outbox: Arc<Outbox>,
    request: u32,
    /// An answer in parts keeps to one channel, because the parts keep their order.
    is_in_parts: AtomicBool,
    /// Memory for the answer.
    pub(super) reserved: Mutex<Option<Reserved>>,
}

impl Reply {
    pub(super) fn new(outbox: &Arc<Outbox>, request: u32) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            request,
            is_in_parts: AtomicBool::new(false),
            reserved: Mutex::default(),
        }
    }

    /// Sends an answer, the last one unless there is `more`. Waits while many answers wait to be written.
    pub(super) fn send(&self, answer: &Answer, body: Vec<u8>, more: bool) {
        let message = Message {
            kind: Kind::Answer,
            more,
            request: self.request,
            head: encode(answer),
            body,
        };
        let is_in_parts = self.is_in_parts.fetch_or(more, Ordering::SeqCst) || more;
        let channel = match !is_in_parts && message.len() <= Limits::PEER.control {
            true => Channel::Control,
            false => Channel::Bulk,
        };
        match more {
            true => self.outbox.send(channel, message),
            // There was room when it was begun.
            false => self.outbox.send_now(channel, message, self.reserved.lock().take()),
        }
    }
}

/// Bounds of what all clients of a server take together.
pub(super) struct Memory {
    asked: Arc<Budget>,
    answers: Arc<Budget>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            asked: Budget::new(ALL_ASKED_BYTES, ASKED_WITHIN),
            answers: Budget::new(ALL_ANSWER_BYTES, ANSWER_WITHIN),
        }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("messages are plain data")
}

/// Serves a client until it hangs up, or until `end` says with a reason that it may not go on.
pub(super) async fn run(
    home: Result<&Arc<dyn Home>, &Fault>,
    allowed: Allowed,
    memory: &Memory,
    visit: Visit,
    end: impl Future<Output = String>,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let outbox = Arc::new(Outbox::new(ANSWER_BYTES));
    let Visit { registered, make } = visit;
    registered.counts.writes(&outbox);
    let over = watch::Sender::new(None::<String>);
    let mut is_over = over.subscribe();
    let mut read = Until::new(read, async move { reason_in(&mut is_over).await });
    let answers = async {
        write.write_all(&PREAMBLE).await?;
        write_all(&outbox, &mut write).await?;
        write.shutdown().await
    };
    let server = Served {
        home,
        allowed,
        memory,
        registered: Arc::new(registered),
        make,
        outbox: &outbox,
    };
    let questions = async {
        let ended = async {
            let noise = timeout(DEAD_AFTER, read_preamble(&mut read)).await?;
            noise.inspect_err(|error| last_words(&outbox, error))?;
            listen(&server, read).await
        };
        let ended = ended.await;
        outbox.close();
        ended
    };
    let pings = ping(&outbox);
    let both = async {
        let end = async {
            tokio::select! {
                reason = end => reason,
                () = stalled(&outbox) => "the client does not read its answers".to_owned(),
            }
        };
        tokio::pin!(questions, answers, end);
        loop {
            tokio::select! {
                ended = &mut questions => {
                    // The last words; a client that does not listen is not waited for.
                    let _ = timeout(PING_INTERVAL, &mut answers).await;
                    return ended;
                }
                written = &mut answers => { return match written {
                    // All answers are written: the client has hung up, and its stores are closed now.
                    Ok(()) => (&mut questions).await,
                    Err(error) => {
                        // What is open is closed in order, and off the threads of the runtime. A thread that waits for room would
                        // keep the stores open.
                        outbox.close();
                        over.send_replace(Some("the client does not listen any more".to_owned()));
                        let _ = (&mut questions).await;
                        Err(error)
                    }
                }; }
                reason = &mut end, if over.borrow().is_none() => {
                    over.send_replace(Some(reason));
                }
            }
        }
    };
    tokio::select! {
        ended = both => ended,
        () = pings => Ok(()),
    }
}

/// Waits for the reason to end.
async fn reason_in(over: &mut watch::Receiver<Option<String>>) -> String {
    loop {
        let reason = over.borrow_and_update().clone();
        match reason {
            Some(reason) => return reason,
            None if over.changed().await.is_err() => std::future::pending().await,
            None => {}
        }
    }
}

/// What a client is served with.
struct Served<'a> {
    home: Result<&'a Arc<dyn Home>, &'a Fault>,
    allowed: Allowed,
    memory: &'a Memory,
    registered: Arc<Registered>,
    make: Option<Arc<Make>>,
    outbox: &'a Arc<Outbox>,
}

/// Reads questions until the client hangs up.
async fn listen(server: &Served<'_>, read: impl AsyncRead + Unpin) -> io::Result<()> {
    let outbox = server.outbox;
    let mut open: Option<Client> = None;
    let ended = questions(server, read, &mut open).await;
    if let Err(error) = &ended {
        last_words(outbox, error);
    }
    // Nobody waits for an answer any more. A thread that waits for room for one would keep the stores open.
    outbox.close();
    if let Some(client) = open {
        // The store is closed in order, which may take a moment.
        let _ = tokio::task::spawn_blocking(move || drop(client)).await;
    }
    ended
}

/// Tells a client the reason for which its connection ends.
fn last_words(outbox: &Arc<Outbox>, error: &io::Error) {
    // A client that breaks the protocol need not come back.
    let kind = match error.kind() {
        io::ErrorKind::InvalidData => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let fault = Fault::Other(kind, error.to_string());
    Reply::new(outbox, 0).send(&Answer::Failed(fault), Vec::new(), false);
}

/// A client that has greeted.
struct Client {
    stores: Arc<Stores>,
    queue: Queue,
}

impl Drop for Client {
    fn drop(&mut self) {
        // Before the queue, which waits until all is done.
        self.stores.stop();
    }
}

/// Reads questions; `open` is what the client has open.
async fn questions(server: &Served<'_>, read: impl AsyncRead + Unpin, open: &mut Option<Client>) -> io::Result<()> {
    let outbox = server.outbox;
    let mut reader = MessageReader::new(read, Limits::STRANGER).with_share(Share::new(&server.memory.asked));
    let pool = Pool::new(Share::new(&server.memory.answers));
    loop {
        if outbox.control_bytes() > UNREAD_BYTES {
            return Err(io::Error::other("the client does not read its answers"));
        }
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "the client has been silent for too long");
        let Some(mut message) = reader.next(DEAD_AFTER, silent).await? else {
            return Ok(());
        };
        match message.kind {
            Kind::Ping => outbox.send_now(Channel::Control, Message::empty(Kind::Pong), None),
            Kind::Pong => {}
            Kind::Answer => return Err(invalid("an answer from a client")),
            Kind::Ask => {
                let ask = postcard::from_bytes(&message.head);
                let ask = ask.map_err(|error| invalid(&format!("a question that can't be read: {error}")))?;
                let reply = Reply::new(outbox, message.request);
                let counts = Arc::clone(&server.registered.counts);
                counts.asked(message.len());
                let reserved = reader.take_reserved();
                match (&*open, ask) {
                    (None, Ask::Hello(hello)) => match server.home {
                        Ok(home) => {
                            counts.greeted(&hello.program);
                            counts.answered();
                            let asked = Arc::clone(home);
                            let greeted = tokio::task::spawn_blocking(move || greet(&*asked, &hello));
                            let welcome = greeted.await.map_err(io::Error::other)??;
                            let protocol = welcome.protocol;
                            reply.send(&Answer::Welcome(welcome), Vec::new(), false);
                            reader.set_limits(Limits::PEER);
                            let stores = Stores::new(Arc::clone(home), server.allowed);
                            let stores = Arc::new(stores.of(&server.registered, protocol));
                            let queue = Queue::start(Arc::clone(&stores), counts)?;
                            *open = Some(Client { stores, queue });
                        }
                        Err(fault) => {
                            reply.send(&Answer::Failed(fault.clone()), Vec::new(), false);
                            return Ok(());
                        }
                    },
                    (None, Ask::Create(options)) => {
                        let made = match (server.make.clone(), server.home) {
                            (Some(make), _) => {
                                let made = tokio::task::spawn_blocking(move || make(&options));
                                made.await
                                    .map_err(io::Error::other)?
                                    .map_err(|error| Fault::from(&error))
                            }
                            (None, Err(fault)) => Err(fault.clone()),
                            (None, Ok(_)) => Err(makes_none()),
                        };
                        let answer = made.map_or_else(Answer::Failed, |()| Answer::Done);
                        reply.send(&answer, Vec::new(), false);
                        return Ok(());
                    }
                    (None, _) | (Some(_), Ask::Hello(_) | Ask::Create(_)) => {
                        return Err(invalid("a greeting in the wrong place"));
                    }
                    (Some(client), ask) if is_ordered(&ask) => {
                        client
                            .queue
                            .add(ask, message.head.len(), message.body, reply, reserved)?
                    }
                    (Some(client), ask) => {
                        // It is in `ask` now.
                        message.head = Vec::new();
                        // Its own bound counts: it waits as long as the client reads slowly.
                        drop(reserved);
                        pool.answer(client, server, ask, message, reply)?;
                    }
                }
            }
        }
    }
}

/// The answer to a client that may not make a repository.
fn makes_none() -> Fault {
    let what =
        "the server does not let this client make a repository; who logs in there by ssh without a forced command can";
    Fault::Other(ErrorKind::Denied, what.to_owned())
}

/// Agrees on a version with a client.
fn greet(home: &dyn Home, hello: &Hello) -> io::Result<Welcome> {
    let program = concat!("vbk ", env!("CARGO_PKG_VERSION")).to_owned();
    let (oldest, newest) = hello.protocol;
    let protocol = newest.min(PROTOCOL);
    if protocol < oldest.max(OLDEST_PROTOCOL) {
        return Err(invalid(&format!(
            "{} speaks versions {oldest} to {newest} of the protocol, but {program} on the server speaks {OLDEST_PROTOCOL} to \
             {PROTOCOL}; use the same vbk on both",
            hello.program
        )));
    }
    let marker = home.marker();
    Ok(Welcome {
        protocol,
        program,
        id: marker.id.clone(),
        key_check: marker.key_check.clone(),
        window_bytes: WINDOW_BYTES as u32,
        newest: home.newest().ok(),
    })
}

/// Tells the questions whose order counts.
fn is_ordered(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Put { .. }
            | Ask::PutNodes { .. }
            | Ask::BuildsOn { .. }
            | Ask::Flush(_)
            | Ask::Commit { .. }
            | Ask::Amend { .. }
            | Ask::Condemn(_)
            | Ask::Pardon(_)
            | Ask::Publish(_)
            | Ask::Prune { .. }
            | Ask::Close(_)
    )
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
