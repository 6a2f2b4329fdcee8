//! A line between a client and a server that breaks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use vbk_repo::repository::home::Home;

use crate::client::{Again, RemoteHome};
use crate::server::{Allowed, serve};

pub(super) const EVER: u64 = u64::MAX;

/// Bytes that pass of one connection, up and down.
pub(super) type Cut = (u64, u64);

/// The line, and the server at its other end.
pub(super) struct Line {
    pub(super) home: Mutex<Arc<dyn Home>>,
    pub(super) allowed: Mutex<Allowed>,
    cuts: Box<dyn Fn(u64) -> Cut + Send + Sync>,
    pub(super) connections: AtomicU64,
    /// No connection can be made.
    pub(super) is_away: AtomicBool,
    /// No answer passes.
    pub(super) is_mute: AtomicBool,
    cut: Notify,
    pub(super) up_bytes: AtomicU64,
    pub(super) down_bytes: AtomicU64,
    /// Lines for people.
    pub(super) told: Mutex<Vec<String>>,
    pub(super) is_stopped: AtomicBool,
}

impl Line {
    /// A line that cuts each connection, by its number from 0 on, after some bytes.
    pub(super) fn that_cuts(home: Arc<dyn Home>, cuts: impl Fn(u64) -> Cut + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            home: Mutex::new(home),
            allowed: Mutex::new(Allowed::Everything),
            cuts: Box::new(cuts),
            connections: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            is_mute: AtomicBool::new(false),
            cut: Notify::new(),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            told: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn new(home: Arc<dyn Home>) -> Arc<Self> {
        Self::that_cuts(home, |_| (EVER, EVER))
    }

    /// Cuts the connection.
    pub(super) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Connects a client that tries again for that long.
    pub(super) fn client(self: &Arc<Self>, reconnect_for: Duration) -> vbk_repo::Result<RemoteHome> {
        let (line, stop, told) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        let again = Again::new(
            reconnect_for,
            move || stop.is_stopped.load(Ordering::SeqCst),
            move |text| told.told.lock().push(text.to_owned()),
        );
        RemoteHome::connect("line".into(), again.at_once(), move || line.connect())
    }

    fn connect(self: &Arc<Self>) -> io::Result<(ReadHalf<DuplexStream>, WriteHalf<DuplexStream>)> {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        if self.is_away.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (client, near) = tokio::io::duplex(64 << 10);
        let (server, far) = tokio::io::duplex(64 << 10);
        let (home, allowed) = (Arc::clone(&self.home.lock()), *self.allowed.lock());
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(server);
            serve(&home, allowed, read, write).await
        });
        let (up, down) = (self.cuts)(number);
        let line = Arc::clone(self);
        tokio::spawn(async move {
            let (near_read, near_write) = tokio::io::split(near);
            let (far_read, far_write) = tokio::io::split(far);
            let never = AtomicBool::new(false);
            let ends = async {
                tokio::try_join!(
                    pump(near_read, far_write, up, &line.up_bytes, &never),
                    pump(far_read, near_write, down, &line.down_bytes, &line.is_mute),
                )
            };
            tokio::select! {
                _ = ends => {}
                () = line.cut.notified() => {}
            }
        });
        Ok(tokio::io::split(client))
    }
}

/// Forwards one direction; an error after the last byte that passes.
async fn pump(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut left: u64,
    total: &AtomicU64,
    is_mute: &AtomicBool,
) -> io::Result<()> {
    let mut bytes = [0; 8 << 10];
    while left > 0 {
        let most = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = from.read(&mut bytes[..most]).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        while is_mute.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Before the other side can answer: a test that has the answer counts from there.
        total.fetch_add(count as u64, Ordering::SeqCst);
        to.write_all(&bytes[..count]).await?;
        left -= count as u64;
    }
    Err(io::ErrorKind::ConnectionReset.into())
}

/// Waits until it is so.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
