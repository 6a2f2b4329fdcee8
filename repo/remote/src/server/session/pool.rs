//! The questions that wait for a thread: those that write for one of their own, which keeps their order, the others for those of
//! the pool.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::Semaphore;
use vbk_repo::block::PAGE_BYTES;

use super::{ASKED_BYTES, Client, HEAD_WINDOW_BYTES, Reply, Served, WINDOW_BYTES, invalid};
use crate::budget::{Reserved, Share};
use crate::message::{Ask, MAX_NODES};
use crate::server::registry::Counts;
use crate::server::stores::Stores;
use crate::wire::{CHUNK_BYTES, Message};

/// Answers in the making.
const AT_ONCE: usize = 16;
/// Those among them in parts: a thread waits while a client reads the parts slowly.
const LISTINGS: usize = 2;
/// Stores in the opening. Apart from those: they must not wait for answers that wait for them.
const OPENINGS: usize = 4;
/// Questions without an answer yet; a client that has more breaks the protocol.
const MAX_ASKED: usize = 4096;

/// The questions that threads of the pool answer.
pub(super) struct Pool {
    threads: Arc<Semaphore>,
    openings: Arc<Semaphore>,
    listings: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    asked_bytes: Arc<AtomicUsize>,
    /// For the answers.
    share: Arc<Share>,
}

impl Pool {
    pub(super) fn new(share: Share) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(AT_ONCE)),
            openings: Arc::new(Semaphore::new(OPENINGS)),
            listings: Arc::new(Semaphore::new(LISTINGS)),
            asked: Arc::default(),
            asked_bytes: Arc::default(),
            share: Arc::new(share),
        }
    }

    /// Has a question answered; an error if too many wait.
    pub(super) fn answer(
        &self,
        client: &Client,
        server: &Served<'_>,
        ask: Ask,
        message: Message,
        reply: Reply,
    ) -> io::Result<()> {
        let bytes = message.len();
        let had_room = self.asked_bytes.fetch_add(bytes, Ordering::SeqCst) <= ASKED_BYTES;
        if self.asked.fetch_add(1, Ordering::SeqCst) >= MAX_ASKED || !had_room {
            return Err(invalid("too many questions at once"));
        }
        let is_opening = client.stores.expect(&ask);
        let threads = match (is_opening, is_in_parts(&ask)) {
            (true, _) => &self.openings,
            (false, true) => &self.listings,
            (false, false) => &self.threads,
        };
        let (threads, stores, outbox) = (
            Arc::clone(threads),
            Arc::clone(&client.stores),
            Arc::clone(server.outbox),
        );
        let counts = Arc::clone(&server.registered.counts);
        let (asked, asked_bytes, share) = (
            Arc::clone(&self.asked),
            Arc::clone(&self.asked_bytes),
            Arc::clone(&self.share),
        );
        tokio::spawn(async move {
            let permit = threads.acquire_owned().await;
            // A client that reads no answers holds no thread. Others wait for a store that is in the opening.
            let is_wanted = is_opening || outbox.room().await;
            if let (true, Some(bytes)) = (is_wanted, length_of_answer(&ask)) {
                *reply.reserved.lock() = Some(share.reserve(bytes).await);
            }
            let answer = move || {
                if is_wanted {
                    stores.answer(ask, &message.body, &reply);
                }
                drop(message);
                asked.fetch_sub(1, Ordering::SeqCst);
                asked_bytes.fetch_sub(bytes, Ordering::SeqCst);
                counts.answered();
                drop(permit);
            };
            let _ = tokio::task::spawn_blocking(answer).await;
        });
        Ok(())
    }
}

/// Tells the questions that are answered in parts.
fn is_in_parts(ask: &Ask) -> bool {
    matches!(ask, Ask::Listing { .. } | Ask::Lookup { .. } | Ask::Forgotten(_))
}

/// Memory for a long answer, as long as it can be.
fn length_of_answer(ask: &Ask) -> Option<usize> {
    let bytes = match ask {
        Ask::Get { wanted, .. } => wanted.iter().map(|(.., pages)| usize::from(*pages) * PAGE_BYTES).sum(),
        Ask::Nodes(_) => CHUNK_BYTES * MAX_NODES,
        _ => return None,
    };
    Some(bytes)
}

/// The questions that write, on their way to the thread that answers them.
pub(super) struct Queue {
    sender: Option<mpsc::Sender<Waiting>>,
    waiting: Arc<WaitingBytes>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// A question in the queue, with the length of its head.
type Waiting = (Ask, usize, Vec<u8>, Reply, Option<Reserved>);

/// Bytes in the queue. Records and notes travel in heads, blocks and nodes in bodies.
#[derive(Default)]
struct WaitingBytes {
    heads: AtomicUsize,
    bodies: AtomicUsize,
}

impl WaitingBytes {
    /// Counts a question; `false` if there is no room for it.
    fn add(&self, head_bytes: usize, body_bytes: usize) -> bool {
        let had_room = |bytes: &AtomicUsize, more, most| bytes.fetch_add(more, Ordering::SeqCst) <= most;
        had_room(&self.heads, head_bytes, HEAD_WINDOW_BYTES) & had_room(&self.bodies, body_bytes, WINDOW_BYTES)
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
    pub(super) fn start(stores: Arc<Stores>, counts: Arc<Counts>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Waiting>();
        let waiting = Arc::<WaitingBytes>::default();
        let done = Arc::clone(&waiting);
        let answered = Arc::clone(&counts);
        let thread = move || {
            for (ask, head_bytes, body, reply, reserved) in receiver {
                // Before the answer, after which the client may send as much again.
                done.remove(head_bytes, body.len());
                stores.answer(ask, &body, &reply);
                drop((body, reserved));
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
    pub(super) fn add(
        &self,
        ask: Ask,
        head_bytes: usize,
        body: Vec<u8>,
        reply: Reply,
        reserved: Option<Reserved>,
    ) -> io::Result<()> {
        if !self.waiting.add(head_bytes, body.len()) {
            return Err(invalid("more puts at once than the server allows"));
        }
        if let Ask::Put { .. } | Ask::PutNodes { .. } = ask {
            self.counts.put(body.len());
        }
        let sent = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.send((ask, head_bytes, body, reply, reserved)).is_ok());
        match sent {
            true => Ok(()),
            false => Err(io::Error::other("the thread that writes has ended")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_heads_nor_bodies_fill_the_memory() {
        type Of = fn(usize) -> (usize, usize);
        let kinds: [(Of, usize); 2] = [
            (|bytes| (bytes, 0), HEAD_WINDOW_BYTES),
            (|bytes| (0, bytes), WINDOW_BYTES),
        ];
        for (of, most) in kinds {
            let waiting = WaitingBytes::default();
            let add = |bytes: usize| {
                let (head, body) = of(bytes);
                waiting.add(head, body)
            };
            // What comes when the window is just full is taken.
            assert!(add(most) && add(1));
            assert!(!add(1));
            let (head, body) = of(2 + most);
            waiting.remove(head, body);
            assert!(add(1));
        }
    }
}
