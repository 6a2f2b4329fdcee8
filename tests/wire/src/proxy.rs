//! A proxy that forwards streams and breaks them: cuts after a given byte, stalls, or is slow.

mod stream;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};

pub use stream::Address;
use stream::{Listener, Stream};

/// Bytes forwarded at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Turns a second in which a slow direction forwards.
const TURNS_PER_SEC: u64 = 50;
/// Time for the receiver's kernel to take the bytes before a cut; it needs microseconds unless the receiver hangs.
const SETTLE: Duration = Duration::from_secs(5);

/// A connection's faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Those of the bytes that the client sends.
    pub up: Fault,
    /// Those of the bytes that the client receives.
    pub down: Fault,
    /// The connections that have faults: the first ones. All, if not set; the others are forwarded as they are.
    pub connections: Option<u64>,
}

/// The faults of one direction of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fault {
    /// Forwards just these bytes and then closes the connection on both ends. With 0, at once: before a byte of the
    /// other direction passes.
    pub cut_after_bytes: Option<u64>,
    /// Forwards nothing for a time after a number of bytes.
    pub stall: Option<Stall>,
    /// Forwards slowly.
    pub bytes_per_sec: Option<u64>,
}

/// A pause after a number of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    /// Bytes forwarded before.
    pub after_bytes: u64,
    /// The length of the pause.
    pub time: Duration,
}

/// The result of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Number of the connection, from 0 on, in the order in which they came.
    pub connection: u64,
    /// Bytes forwarded to the server.
    pub up_bytes: u64,
    /// Bytes forwarded to the client.
    pub down_bytes: u64,
    /// True if a fault ended it.
    pub cut: bool,
}

/// A running proxy. Dropping it closes all connections.
#[derive(Debug)]
pub struct Proxy {
    address: Address,
    shared: Arc<Shared>,
    /// Closed to stop the accepting thread.
    stop: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
    ended: Receiver<Ended>,
}

#[derive(Debug)]
struct Shared {
    to: Address,
    faults: Faults,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    connections: AtomicU64,
    stopped: Mutex<bool>,
    stopping: Condvar,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 if the target is TCP, otherwise on a socket beside the target's with
    /// `.proxy` added to its name.
    pub fn start(to: Address, faults: Faults) -> io::Result<Proxy> {
        let from = to.beside();
        Proxy::listen(&from, to, faults)
    }

    /// Listens on an address of one's choice.
    pub fn listen(from: &Address, to: Address, faults: Faults) -> io::Result<Proxy> {
        let listener = Listener::bind(from)?;
        let address = listener.address()?;
        let shared = Arc::new(Shared {
            to,
            faults,
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
        });
        let (stop, stop_seen) = UnixStream::pair()?;
        let (sender, ended) = unbounded();
        let acceptor = thread::Builder::new().name("proxy".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &stop_seen, &shared, &sender)
        })?;
        Ok(Proxy {
            address,
            shared,
            stop: Some(stop),
            acceptor: Some(acceptor),
            ended,
        })
    }

    /// The address for clients.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Bytes forwarded to the server, of all connections so far.
    pub fn up_bytes(&self) -> u64 {
        self.shared.up_bytes.load(Ordering::Relaxed)
    }

    /// Bytes forwarded to clients.
    pub fn down_bytes(&self) -> u64 {
        self.shared.down_bytes.load(Ordering::Relaxed)
    }

    /// Connections accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Waits for the end of a connection; each is returned once.
    pub fn next_end(&self, patience: Duration) -> Option<Ended> {
        self.ended.recv_timeout(patience).ok()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.stopped.lock() = true;
        self.shared.stopping.notify_all();
        self.stop = None;
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Accepts connections until the other end of `stop` is closed, and then ends them.
fn accept(listener: &Listener, stop: &UnixStream, shared: &Arc<Shared>, ended: &Sender<Ended>) {
    // Weak, because a connection is closed to a peer that only writes when the last owner drops its sockets.
    let mut running: Vec<(Weak<Connection>, JoinHandle<()>)> = Vec::new();
    loop {
        let mut files = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut files, PollTimeout::NONE).is_err() {
            continue;
        }
        if files[1].any() == Some(true) {
            break;
        }
        running.retain(|(_, thread)| !thread.is_finished());
        let Ok(client) = listener.accept() else {
            continue;
        };
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        // A server that is away looks to the client like a connection that is closed.
        let Ok(server) = Stream::connect(&shared.to) else {
            continue;
        };
        let connection = Arc::new(Connection {
            number,
            client,
            server,
            shared: Arc::clone(shared),
            cut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&connection);
        let thread = thread::Builder::new().name(format!("proxy-{number}")).spawn({
            let sender = ended.clone();
            move || {
                let ended = connection.run();
                drop(connection);
                // Nobody may be interested in how it ended.
                let _ = sender.send(ended);
            }
        });
        if let Ok(thread) = thread {
            running.push((weak, thread));
        }
    }
    for (connection, thread) in running {
        if let Some(connection) = connection.upgrade() {
            connection.close();
        }
        let _ = thread.join();
    }
}

#[derive(Debug)]
struct Connection {
    number: u64,
    client: Stream,
    server: Stream,
    shared: Arc<Shared>,
    cut: AtomicBool,
    closed: AtomicBool,
}

impl Connection {
    fn run(&self) -> Ended {
        let shared = &self.shared;
        let faults = match shared.faults.connections {
            Some(connections) if self.number >= connections => Faults::default(),
            _ => shared.faults,
        };
        let (mut up_bytes, mut down_bytes) = (0, 0);
        if faults.up.cut_after_bytes == Some(0) || faults.down.cut_after_bytes == Some(0) {
            self.cut.store(true, Ordering::Relaxed);
        } else {
            thread::scope(|scope| {
                scope.spawn(|| up_bytes = self.pump(&self.client, &self.server, &faults.up, &shared.up_bytes));
                down_bytes = self.pump(&self.server, &self.client, &faults.down, &shared.down_bytes);
            });
        }
        self.close();
        Ended {
            connection: self.number,
            up_bytes,
            down_bytes,
            cut: self.cut.load(Ordering::Relaxed),
        }
    }

    /// Ends both directions, also one that pauses.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        // With the lock, so that a direction does not miss this between its look and its sleep.
        drop(self.shared.stopped.lock());
        self.shared.stopping.notify_all();
        self.client.shutdown(Shutdown::Both);
        self.server.shutdown(Shutdown::Both);
    }

    /// Forwards one direction until its end, an error or a cut, and returns how many bytes that were.
    fn pump(&self, mut from: &Stream, mut to: &Stream, fault: &Fault, total: &AtomicU64) -> u64 {
        let rate = fault.bytes_per_sec.map(|rate| rate.max(1));
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut done = 0;
        let mut stall = fault.stall;
        loop {
            if let Some(Stall { time, .. }) = stall.filter(|stall| done >= stall.after_bytes) {
                stall = None;
                if self.pause(time) {
                    break;
                }
            }
            let until = [fault.cut_after_bytes, stall.map(|stall| stall.after_bytes)];
            let until = until.into_iter().flatten().min().unwrap_or(u64::MAX);
            let turn = rate.map_or(u64::MAX, |rate| (rate / TURNS_PER_SEC).max(1));
            let most = turn.min(until - done).min(CHUNK_BYTES as u64) as usize;
            let len = match from.read(&mut buffer[..most]) {
                Ok(0) => {
                    to.shutdown(Shutdown::Write);
                    return done;
                }
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if to.write_all(&buffer[..len]).is_err() {
                break;
            }
            done += len as u64;
            total.fetch_add(len as u64, Ordering::Relaxed);
            if fault.cut_after_bytes == Some(done) {
                self.cut.store(true, Ordering::Relaxed);
                settle(to);
                break;
            }
            if let Some(rate) = rate
                && self.pause(Duration::from_secs_f64(len as f64 / rate as f64))
            {
                break;
            }
        }
        self.close();
        done
    }

    /// Sleeps, but not longer than the connection and the proxy last; returns whether one of them has ended.
    fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut stopped = self.shared.stopped.lock();
        loop {
            if *stopped || self.closed.load(Ordering::Relaxed) {
                return true;
            }
            if self.shared.stopping.wait_until(&mut stopped, end).timed_out() {
                return false;
            }
        }
    }
}

/// Waits until the receiver's kernel has all bytes. A socket that is closed with unread bytes of the other direction
/// sends a reset, and the kernel would throw away what is not sent yet: the cut would come too early.
fn settle(to: &Stream) {
    let end = Instant::now() + SETTLE;
    while to.unacknowledged_bytes() > 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
}
