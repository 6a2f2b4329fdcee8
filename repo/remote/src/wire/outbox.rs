//! Messages on their way to the other side.

use std::collections::VecDeque;
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{CHUNK_BYTES, Channel, Kind, Message};
use crate::budget::Reserved;
use crate::{DEAD_AFTER, PING_INTERVAL};

/// Messages that wait to be written. Threads fill it, one task empties it.
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    filled: Notify,
    emptied: Condvar,
    /// The same for tasks.
    has_room: Notify,
    /// Bytes of bulk messages that may wait.
    room_bytes: usize,
    /// Called when a bulk message was written.
    on_written: fn(),
    /// Chunks that were written.
    chunks: AtomicU64,
    written_bytes: AtomicU64,
}

#[derive(Default)]
struct Queues {
    control: VecDeque<Arc<Message>>,
    control_bytes: usize,
    bulk: VecDeque<(Arc<Message>, Option<Reserved>)>,
    bulk_bytes: usize,
    closed: bool,
}

impl Outbox {
    /// An empty outbox, in which threads wait while more than `room_bytes` of bulk messages are in it.
    pub(crate) fn new(room_bytes: usize) -> Self {
        Self::telling(room_bytes, || {})
    }

    /// Like [`Outbox::new`]; calls `on_written` each time when a bulk message was written.
    pub(crate) fn telling(room_bytes: usize, on_written: fn()) -> Self {
        Self {
            queues: Mutex::default(),
            filled: Notify::new(),
            emptied: Condvar::new(),
            has_room: Notify::new(),
            room_bytes,
            on_written,
            chunks: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        }
    }

    /// Adds a message; waits while there is no room. Drops it if the outbox is closed. Never call it with
    /// [`Channel::Bulk`] from a task.
    pub(crate) fn send(&self, channel: Channel, message: impl Into<Arc<Message>>) {
        let mut queues = self.queues.lock();
        while channel == Channel::Bulk && !queues.closed && queues.bulk_bytes > self.room_bytes {
            self.emptied.wait(&mut queues);
        }
        self.add(queues, channel, message.into(), None);
    }

    /// Adds a message, also where there is no room for it. What is reserved for it is given back when it is written. Drops it if the
    /// outbox is closed.
    pub(crate) fn send_now(&self, channel: Channel, message: Message, reserved: Option<Reserved>) {
        self.add(self.queues.lock(), channel, Arc::new(message), reserved);
    }

    fn add(
        &self,
        mut queues: MutexGuard<'_, Queues>,
        channel: Channel,
        message: Arc<Message>,
        reserved: Option<Reserved>,
    ) {
        if queues.closed {
            return;
        }
        match channel {
            Channel::Control => {
                queues.control_bytes += message.len();
                queues.control.push_back(message);
            }
            Channel::Bulk => {
                queues.bulk_bytes += message.len();
                queues.bulk.push_back((message, reserved));
            }
        }
        drop(queues);
        self.filled.notify_one();
    }

    /// Lets nobody wait any more. What is in it is still written.
    pub(crate) fn close(&self) {
        self.queues.lock().closed = true;
        self.emptied.notify_all();
        self.has_room.notify_waiters();
        self.filled.notify_one();
    }

    /// Bytes of messages, but for pings, that were written so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    fn count(&self, message: &Message, before: usize, done: usize) {
        if matches!(message.kind, Kind::Ask | Kind::Answer) {
            self.written_bytes.fetch_add((done - before) as u64, Ordering::Relaxed);
        }
    }

    /// Waits until there is room for bulk messages. Returns `false` if the outbox is closed.
    pub(crate) async fn room(&self) -> bool {
        loop {
            let emptied = self.has_room.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            let (closed, is_full) = {
                let queues = self.queues.lock();
                (queues.closed, queues.bulk_bytes > self.room_bytes)
            };
            match (closed, is_full) {
                (true, _) => return false,
                (false, false) => return true,
                (false, true) => emptied.await,
            }
        }
    }

    /// Bytes of bulk messages that wait, with the one that is being written.
    pub(crate) fn bulk_bytes(&self) -> usize {
        self.queues.lock().bulk_bytes
    }

    /// Bytes of control messages that wait.
    pub(crate) fn control_bytes(&self) -> usize {
        self.queues.lock().control_bytes
    }

    fn next_control(&self) -> Option<Arc<Message>> {
        let mut queues = self.queues.lock();
        let message = queues.control.pop_front()?;
        queues.control_bytes -= message.len();
        Some(message)
    }

    fn next_bulk(&self) -> Option<(Arc<Message>, Option<Reserved>)> {
        self.queues.lock().bulk.pop_front()
    }

    /// Makes room for a bulk message that was written.
    fn written(&self, message: &Message) {
        self.queues.lock().bulk_bytes -= message.len();
        self.emptied.notify_all();
        self.has_room.notify_waiters();
        (self.on_written)();
    }

    /// Returns whether the outbox is closed and empty.
    fn is_done(&self) -> bool {
        let queues = self.queues.lock();
        queues.closed && queues.control.is_empty() && queues.bulk.is_empty()
    }
}

/// Asks the other side now and then whether it lives, for ever.
pub(crate) async fn ping(outbox: &Outbox) -> ! {
    let mut ticks = interval(PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        outbox.send(Channel::Control, Message::empty(Kind::Ping));
    }
}

/// Completes when the other side has taken nothing for a while, though there is a ping for it now and then.
pub(crate) async fn stalled(outbox: &Outbox) {
    let mut ticks = interval(PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        ticks.tick().await;
        let chunks = outbox.chunks.load(Ordering::SeqCst);
        if chunks != seen {
            (seen, since) = (chunks, Instant::now());
        } else if since.elapsed() > DEAD_AFTER {
            return;
        }
    }
}

/// Writes all messages of an outbox until it is closed and empty. A control message waits for one chunk of a bulk message at
/// most.
pub(crate) async fn write_all(outbox: &Outbox, stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut bulk: Option<(Bulk, Option<Reserved>)> = None;
    loop {
        while let Some(message) = outbox.next_control() {
            let mut control = Bulk::new(message);
            while control.write_chunk(Channel::Control, outbox, stream).await? {
                outbox.chunks.fetch_add(1, Ordering::SeqCst);
            }
            outbox.chunks.fetch_add(1, Ordering::SeqCst);
        }
        if bulk.is_none() {
            bulk = outbox
                .next_bulk()
                .map(|(message, reserved)| (Bulk::new(message), reserved));
        }
        match &mut bulk {
            Some((writing, _)) => {
                outbox.chunks.fetch_add(1, Ordering::SeqCst);
                if !writing.write_chunk(Channel::Bulk, outbox, stream).await? {
                    outbox.written(&writing.message);
                    bulk = None;
                }
            }
            None => {
                stream.flush().await?;
                if outbox.is_done() {
                    return Ok(());
                }
                outbox.filled.notified().await;
            }
        }
    }
}

/// A message that is being written.
struct Bulk {
    message: Arc<Message>,
    header: [u8; super::MESSAGE_HEADER_BYTES],
    done: usize,
}

impl Bulk {
    fn new(message: Arc<Message>) -> Self {
        Self {
            header: message.header(),
            message,
            done: 0,
        }
    }

    /// Writes the next chunk; returns whether there are more.
    async fn write_chunk(
        &mut self,
        channel: Channel,
        outbox: &Outbox,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Result<bool> {
        let len = (self.message.len() - self.done).min(CHUNK_BYTES);
        let [low, middle, high, _] = (len as u32).to_le_bytes();
        stream.write_all(&[channel.into(), low, middle, high]).await?;
        let (mut from, to) = (self.done, self.done + len);
        let mut start = 0;
        for part in [&self.header[..], &self.message.head, &self.message.body] {
            let end = start + part.len();
            if from < end && from < to {
                stream.write_all(&part[from - start..to.min(end) - start]).await?;
                from = to.min(end);
            }
            start = end;
        }
        outbox.count(&self.message, self.done, to);
        self.done = to;
        Ok(to < self.message.len())
    }
}
