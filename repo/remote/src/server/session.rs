//! One client: reads its questions, hands them out, and writes the answers.
//!
//! Questions that write go through a queue to one thread, in their order; the others to the threads of a pool, some at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use vbk_repo::ErrorKind;
use vbk_repo::repository::SealedOptions;
use vbk_repo::repository::home::Home;

use super::Allowed;
use super::registry::{Counts, Registered};
use super::stores::Stores;
use super::until::Until;
use crate::message::{Answer, Ask, Fault, Hello, PROTOCOL, Welcome};
use crate::wire::{Channel, Kind, Limits, Message, MessageReader, Outbox, PREAMBLE, ping, read_preamble, write_all};
use crate::{DEAD_AFTER, PING_INTERVAL};

/// Bytes of puts that may be on their way or in the queue, and as many of heads: that of a put is shorter than its body, which
/// has the headers of the blocks.
const WINDOW_BYTES: usize = 64 << 20;
/// Bytes of finished answers after which no more are made.
const ANSWER_BYTES: usize = 32 << 20;
/// Answers in the making.
const AT_ONCE: usize = 16;
/// Stores in the opening. Apart from those: they must not wait for answers that wait for them.
const OPENINGS: usize = 4;
/// Questions without an answer yet; a client that has more breaks the protocol.
const MAX_ASKED: usize = 4096;

/// Makes the repository that is served, for an administrator.
pub type Make = dyn Fn(&SealedOptions) -> vbk_repo::Result<()> + Send + Sync;

/// Where the answers to one question go.
pub(super) struct Reply {
    outbox: Arc<Outbox>,
    request: u32,
    /// An answer in parts keeps to one channel, because the parts keep their order.
    is_in_parts: AtomicBool,
}

impl Reply {
    pub(super) fn new(outbox: &Arc<Outbox>, request: u32) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            request,
            is_in_parts: AtomicBool::new(false),
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
        self.outbox.send(channel, message);
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("messages are plain data")
}

pub(super) async fn run(
    home: Result<&Arc<dyn Home>, &Fault>,
    allowed: Allowed,
    registered: Registered,
    make: Option<Arc<Make>>,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let outbox = Arc::new(Outbox::new(ANSWER_BYTES));
    registered.counts.writes(&outbox);
    let gone = Arc::new(Notify::new());
    let hang_up = Arc::clone(&gone);
    let mut read = Until::new(read, async move {
        hang_up.notified().await;
        "the client does not listen any more".to_owned()
    });
    let answers = async {
        write.write_all(&PREAMBLE).await?;
        write_all(&outbox, &mut write).await?;
        write.shutdown().await
    };
    let questions = async {
        let ended = async {
            let noise = timeout(DEAD_AFTER, read_preamble(&mut read)).await?;
            noise.inspect_err(|error| last_words(&outbox, error))?;
            listen(home, allowed, registered, make, read, &outbox).await
        };
        let ended = ended.await;
        outbox.close();
        ended
    };
    let pings = ping(&outbox);
    let both = async {
        tokio::pin!(questions, answers);
        tokio::select! {
            ended = &mut questions => {
                // The last words; a client that does not listen is not waited for.
                let _ = timeout(PING_INTERVAL, answers).await;
                ended
            }
            written = &mut answers => match written {
                // All answers are written: the client has hung up, and its stores are closed now.
                Ok(()) => questions.await,
                Err(error) => {
                    // What is open is closed in order, and off the threads of the runtime. A thread that waits for room would keep
                    // the stores open.
                    outbox.close();
                    gone.notify_one();
                    let _ = questions.await;
                    Err(error)
                }
            },
        }
    };
    tokio::select! {
        ended = both => ended,
        () = pings => Ok(()),
    }
}

/// Reads questions until the client hangs up.
async fn listen(
    home: Result<&Arc<dyn Home>, &Fault>,
    allowed: Allowed,
    registered: Registered,
    make: Option<Arc<Make>>,
    read: impl AsyncRead + Unpin,
    outbox: &Arc<Outbox>,
) -> io::Result<()> {
    let mut open: Option<Client> = None;
    let ended = questions(home, allowed, Arc::new(registered), make, read, outbox, &mut open).await;
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
async fn questions(
    home: Result<&Arc<dyn Home>, &Fault>,
    allowed: Allowed,
    registered: Arc<Registered>,
    make: Option<Arc<Make>>,
    read: impl AsyncRead + Unpin,
    outbox: &Arc<Outbox>,
    open: &mut Option<Client>,
) -> io::Result<()> {
    let mut reader = MessageReader::new(read, Limits::STRANGER);
    let threads = Arc::new(Semaphore::new(AT_ONCE));
    let openings = Arc::new(Semaphore::new(OPENINGS));
    let asked = Arc::new(AtomicUsize::new(0));
    loop {
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "the client has been silent for too long");
        let Some(message) = reader.next(DEAD_AFTER, silent).await? else {
            return Ok(());
        };
        match message.kind {
            Kind::Ping => outbox.send(Channel::Control, Message::empty(Kind::Pong)),
            Kind::Pong => {}
            Kind::Answer => return Err(invalid("an answer from a client")),
            Kind::Ask => {
                let ask = postcard::from_bytes(&message.head).map_err(|error| invalid(&error.to_string()))?;
                let reply = Reply::new(outbox, message.request);
                let counts = Arc::clone(&registered.counts);
                counts.asked(message.len());
                match (&*open, ask) {
                    (None, Ask::Hello(hello)) => match home {
                        Ok(home) => {
                            counts.greeted(&hello.program);
                            counts.answered();
                            let asked = Arc::clone(home);
                            let greeted = tokio::task::spawn_blocking(move || greet(&*asked, &hello));
                            let welcome = Answer::Welcome(greeted.await.map_err(io::Error::other)??);
                            reply.send(&welcome, Vec::new(), false);
                            reader.set_limits(Limits::PEER);
                            let stores = Arc::new(Stores::new(Arc::clone(home), allowed).of(&registered));
                            let queue = Queue::start(Arc::clone(&stores), counts)?;
                            *open = Some(Client { stores, queue });
                        }
                        Err(fault) => {
                            reply.send(&Answer::Failed(fault.clone()), Vec::new(), false);
                            return Ok(());
                        }
                    },
                    (None, Ask::Create(options)) => {
                        let made = match (make, home) {
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
                        client.queue.add(ask, message.head.len(), message.body, reply)?
                    }
                    (Some(client), ask) => {
                        if asked.fetch_add(1, Ordering::SeqCst) >= MAX_ASKED {
                            return Err(invalid("too many questions at once"));
                        }
                        let threads = match client.stores.expect(&ask) {
                            true => Arc::clone(&openings),
                            false => Arc::clone(&threads),
                        };
                        let (stores, asked) = (Arc::clone(&client.stores), Arc::clone(&asked));
                        tokio::spawn(async move {
                            let permit = threads.acquire_owned().await;
                            let answer = move || {
                                stores.answer(ask, &message.body, &reply);
                                asked.fetch_sub(1, Ordering::SeqCst);
                                counts.answered();
                                drop(permit);
                            };
                            let _ = tokio::task::spawn_blocking(answer).await;
                        });
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
    if !(oldest..=newest).contains(&PROTOCOL) {
        return Err(invalid(&format!(
            "{} speaks versions {oldest} to {newest} of the protocol, but {program} on the server speaks {PROTOCOL}; use the same vbk \
             on both",
            hello.program
        )));
    }
    let marker = home.marker();
    Ok(Welcome {
        protocol: PROTOCOL,
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

/// The questions that write, on their way to the thread that answers them.
struct Queue {
    sender: Option<mpsc::Sender<Waiting>>,
    waiting: Arc<WaitingBytes>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// A question in the queue, with the length of its head.
type Waiting = (Ask, usize, Vec<u8>, Reply);

/// Bytes in the queue. Records and notes travel in heads, blocks and nodes in bodies.
#[derive(Default)]
struct WaitingBytes {
    heads: AtomicUsize,
    bodies: AtomicUsize,
}

impl WaitingBytes {
    /// Counts a question; `false` if there is no room for it.
    fn add(&self, head_bytes: usize, body_bytes: usize) -> bool {
        let had_room = |bytes: &AtomicUsize, more| bytes.fetch_add(more, Ordering::SeqCst) <= WINDOW_BYTES;
        had_room(&self.heads, head_bytes) & had_room(&self.bodies, body_bytes)
    }

    fn remove(&self, head_bytes: usize, body_bytes: usize) {
        self.heads.fetch_sub(head_bytes, Ordering::SeqCst);
        self.bodies.fetch_sub(body_bytes, Ordering::SeqCst);
    }
}

impl Drop for Queue {
    /// Waits until all that was asked is done.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it was reported there.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn start(stores: Arc<Stores>, counts: Arc<Counts>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Waiting>();
        let waiting = Arc::<WaitingBytes>::default();
        let done = Arc::clone(&waiting);
        let answered = Arc::clone(&counts);
        let thread = move || {
            for (ask, head_bytes, body, reply) in receiver {
                // Before the answer, after which the client may send as much again.
                done.remove(head_bytes, body.len());
                stores.answer(ask, &body, &reply);
                answered.answered();
            }
        };
        let thread = std::thread::Builder::new().name("vbk-serve".into()).spawn(thread)?;
        Ok(Self {
            sender: Some(sender),
            waiting,
            counts,
            thread: Some(thread),
        })
    }

    /// Adds a question; an error if the client sent more than it may.
    fn add(&self, ask: Ask, head_bytes: usize, body: Vec<u8>, reply: Reply) -> io::Result<()> {
        if !self.waiting.add(head_bytes, body.len()) {
            return Err(invalid("more puts at once than the server allows"));
        }
        if let Ask::Put { .. } | Ask::PutNodes { .. } = ask {
            self.counts.put(body.len());
        }
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send((ask, head_bytes, body, reply)).is_ok());
        match sent {
            true => Ok(()),
            false => Err(io::Error::other("the thread that writes has ended")),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_heads_nor_bodies_fill_the_memory() {
        for of in [|bytes| (bytes, 0), |bytes| (0, bytes)] {
            let waiting = WaitingBytes::default();
            let add = |bytes: usize| {
                let (head, body) = of(bytes);
                waiting.add(head, body)
            };
            // What comes when the window is just full is taken.
            assert!(add(WINDOW_BYTES) && add(1));
            assert!(!add(1));
            let (head, body) = of(2 + WINDOW_BYTES);
            waiting.remove(head, body);
            assert!(add(1));
        }
    }
}
