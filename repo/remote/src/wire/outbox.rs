//! Messages on their way to the other side.

use std::collections::VecDeque;
use std::io::Result;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::{CHUNK_BYTES, Channel, Kind, Message};
use crate::PING_INTERVAL;
use crate::budget::Share;

/// Messages that wait to be written. Threads fill it, one task empties it.
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    filled: Notify,
    emptied: Condvar,
    /// The same for tasks.
    has_room: Notify,
    /// Bytes of bulk messages that may wait.
    room_bytes: usize,
    /// Counts bulk messages.
    share: Option<Share>,
}

#[derive(Default)]
struct Queues {
    control: VecDeque<Arc<Message>>,
    control_bytes: usize,
    bulk: VecDeque<Arc<Message>>,
    bulk_bytes: usize,
    closed: bool,
}

impl Outbox {
    /// An empty outbox, in which threads wait while more than `room_bytes` of bulk messages are in it.
    pub(crate) fn new(room_bytes: usize) -> Self {
        Self {
            queues: Mutex::default(),
            filled: Notify::new(),
            emptied: Condvar::new(),
            has_room: Notify::new(),
            room_bytes,
            share: None,
        }
    }

    /// The same, with bulk messages counted on a budget.
    pub(crate) fn with_share(room_bytes: usize, share: Share) -> Self {
        Self {
            share: Some(share),
            ..Self::new(room_bytes)
        }
    }

    /// Adds a message; waits while there is no room. Drops it if the outbox is closed. Never call it with
    /// [`Channel::Bulk`] from a task.
    pub(crate) fn send(&self, channel: Channel, message: impl Into<Arc<Message>>) {
        let mut queues = self.queues.lock();
        while channel == Channel::Bulk && !queues.closed && queues.bulk_bytes > self.room_bytes {
            self.emptied.wait(&mut queues);
        }
        self.add(queues, channel, message.into());
    }

    /// Adds a message, also where there is no room for it. Drops it if the outbox is closed.
    pub(crate) fn send_now(&self, channel: Channel, message: Message) {
        self.add(self.queues.lock(), channel, Arc::new(message));
    }

    fn add(&self, mut queues: MutexGuard<'_, Queues>, channel: Channel, message: Arc<Message>) {
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
                if let Some(share) = &self.share {
                    share.take(message.len());
                }
                queues.bulk.push_back(message);
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
            match (closed, is_full, &self.share) {
                (true, ..) => return false,
                (false, true, _) => emptied.await,
                (false, false, None) => return true,
                (false, false, Some(share)) => tokio::select! {
                    () = share.room() => return true,
                    () = emptied => {}
                },
            }
        }
    }

    /// Counts bytes of an answer that is being made, until it is dropped.
    pub(crate) fn making(self: &Arc<Self>, bytes: usize) -> Making {
        if let Some(share) = &self.share {
            share.take(bytes);
        }
        Making(Arc::clone(self), bytes)
    }

    /// Bytes of control messages that wait.
    pub(crate) fn control_bytes(&self) -> usize {
        self.queues.lock().control_bytes
    }

    fn next(&self, channel: Channel) -> Option<Arc<Message>> {
        let mut queues = self.queues.lock();
        match channel {
            Channel::Control => {
                let message = queues.control.pop_front()?;
                queues.control_bytes -= message.len();
                Some(message)
            }
            Channel::Bulk => queues.bulk.pop_front(),
        }
    }

    /// Makes room for a bulk message that was written.
    fn written(&self, message: &Message) {
        self.queues.lock().bulk_bytes -= message.len();
        if let Some(share) = &self.share {
            share.give(message.len());
        }
        self.emptied.notify_all();
        self.has_room.notify_waiters();
    }

    /// Returns whether the outbox is closed and empty.
    fn is_done(&self) -> bool {
        let queues = self.queues.lock();
        queues.closed && queues.control.is_empty() && queues.bulk.is_empty()
    }
}

/// Bytes that count while an answer is being made.
pub(crate) struct Making(Arc<Outbox>, usize);

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(share) = &self.0.share {
            share.give(self.1);
        }
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

/// Writes all messages of an outbox until it is closed and empty. A control message waits for one chunk of a bulk message at
/// most.
pub(crate) async fn write_all(outbox: &Outbox, stream: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut bulk: Option<Bulk> = None;
    loop {
        while let Some(message) = outbox.next(Channel::Control) {
            let mut control = Bulk::new(message);
            while control.write_chunk(Channel::Control, stream).await? {}
        }
        if bulk.is_none() {
            bulk = outbox.next(Channel::Bulk).map(Bulk::new);
        }
        match &mut bulk {
            Some(writing) => {
                if !writing.write_chunk(Channel::Bulk, stream).await? {
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
    async fn write_chunk(&mut self, channel: Channel, stream: &mut (impl AsyncWrite + Unpin)) -> Result<bool> {
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
        self.done = to;
        Ok(to < self.message.len())
    }
}
