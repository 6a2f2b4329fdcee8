//! A long, thin or broken network for tests: two network namespaces and the wire between them, and a proxy that cuts a
//! stream after a given byte ([`proxy`]).
//!
//! # The wire
//!
//! A kernel with `sch_netem` is rare where tests run, so the wire is a thread in user space between two TUN devices.
//! [`Link`] describes what it does to a packet. It needs root and `/dev/net/tun`, and changes nothing of the host's network:
//! devices, addresses and settings exist in the two namespaces alone and go with them.
//!
//! # How true it is
//!
//! TCP sees an MTU of 1500 and counts its windows, losses and acknowledgements in such packets. As with a real network
//! card, the kernel hands over up to 64 KiB of them in one piece and takes them so at the other end
//! ([`packet::Frame`]). The wire loses, queues and counts single packets and cuts a piece where it must.
//!
//! Measured on two busy cores with `examples/throughput.rs`, one, four and eight connections without a delay: pieces of
//! packets of 1500 bytes 560, 950 and 1550 MB/s; single packets of 1500 bytes 80, 50 and 110 MB/s, a system call each;
//! an MTU of 65000 600, 790 and 980 MB/s, but there a lost packet is 64 KiB and TCP starts with 640 KiB, as on no path
//! of the internet. At 100 ms the kernel's windows are the limit, not the wire: 26, 101 and 180 MB/s.
//!
//! Not modelled: jitter, reordering, duplicates, other traffic, bytes under IP, IPv6.

pub mod control;
mod engine;
pub mod link;
pub mod packet;
pub mod proxy;
pub mod settings;
mod side;
pub mod sys;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::link::{Counts, Link};
pub use crate::settings::Settings;
use crate::side::End;

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// One of the two network namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one with the address [`CLIENT`].
    Client,
    /// The one with the address [`SERVER`].
    Server,
}

/// A direction of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Two network namespaces and the wire between them, which is gone when this is dropped. The namespaces last as long as
/// processes or sockets are in them.
#[derive(Debug)]
pub struct Wire {
    ends: Arc<[End; 2]>,
    links: Arc<Mutex<[Link; 2]>>,
    /// Closed to stop the thread.
    stop: Option<UnixStream>,
    carrier: Option<JoinHandle<io::Result<()>>>,
}

impl Wire {
    /// Makes the namespaces and starts to carry packets.
    pub fn new(settings: &Settings) -> io::Result<Wire> {
        let ends = Arc::new([
            End::new(CLIENT, &settings.congestion)?,
            End::new(SERVER, &settings.congestion)?,
        ]);
        let links = Arc::new(Mutex::new([
            Link::new(settings, settings.seed),
            Link::new(settings, !settings.seed),
        ]));
        let (stop, stopped) = UnixStream::pair()?;
        let carrier = thread::Builder::new().name("wire".to_owned()).spawn({
            let (ends, links) = (Arc::clone(&ends), Arc::clone(&links));
            move || engine::run([&ends[0].device, &ends[1].device], &links, &stopped)
        })?;
        Ok(Wire {
            ends,
            links,
            stop: Some(stop),
            carrier: Some(carrier),
        })
    }

    fn end(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }

    /// The namespace of one side, as a file for setns(2).
    pub fn namespace(&self, side: Side) -> &File {
        &self.end(side).namespace
    }

    /// Runs a function in a thread that is in the namespace of one side. Sockets it makes stay there, whoever uses
    /// them later.
    pub fn within<T: Send>(&self, side: Side, function: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.end(side).within(function)
    }

    /// A command that will run in the namespace of one side, and is killed when the thread that starts it ends.
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> io::Result<Command> {
        let mut command = Command::new(program);
        let namespace: OwnedFd = self.namespace(side).try_clone()?.into();
        sys::start_in(&mut command, namespace);
        sys::die_with_parent(&mut command);
        Ok(command)
    }

    /// Lets nothing pass, for a time or until [`Wire::mend`]. When this returns, nothing is on the way any more.
    pub fn cut(&self, time: Option<Duration>) {
        let now = Instant::now();
        self.links.lock().iter_mut().for_each(|link| link.cut(now, time));
    }

    /// Cuts one direction alone.
    pub fn cut_direction(&self, direction: Direction, time: Option<Duration>) {
        self.links.lock()[direction as usize].cut(Instant::now(), time);
    }

    /// Ends all cuts.
    pub fn mend(&self) {
        self.links.lock().iter_mut().for_each(Link::mend);
    }

    /// Sets the round trip for later packets.
    pub fn set_delay(&self, round_trip: Duration) {
        let mut links = self.links.lock();
        links.iter_mut().for_each(|link| link.set_delay(round_trip / 2));
    }

    /// Sets the share of packets that are lost, 0 to 1.
    pub fn set_loss(&self, loss: f64) {
        self.links.lock().iter_mut().for_each(|link| link.set_loss(loss));
    }

    /// The counts of one direction since the start.
    pub fn counts(&self, direction: Direction) -> Counts {
        self.links.lock()[direction as usize].counts()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(carrier) = self.carrier.take() {
            // A thread that failed has left a dead wire, which the test saw.
            let _ = carrier.join();
        }
    }
}
