//! The thread that carries packets from device to device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use parking_lot::Mutex;

use crate::link::Link;
use crate::packet::{Frame, MAX_FRAME_BYTES};

/// Pieces taken from one device before the other has its turn.
const TURN: usize = 16;
/// Buffers that are kept to be used again: 16 MiB.
const SPARE_BUFFERS: usize = 256;

/// Carries packets until the other end of `stop` is closed. `links[0]` leads from the first device to the second.
pub(crate) fn run(devices: [&File; 2], links: &Mutex<[Link; 2]>, stop: &UnixStream) -> io::Result<()> {
    // By default the kernel may wake a thread 50 us late, which would be a delay of its own.
    set_timerslack(1)?;
    let mut spare = Spare::default();
    loop {
        let mut more = false;
        let due = {
            let mut links = links.lock();
            for (device, link) in devices.iter().zip(links.iter_mut()) {
                more |= take(device, link, &mut spare)?;
            }
            for (device, link) in devices.iter().rev().zip(links.iter_mut()) {
                hand_over(device, link, &mut spare);
            }
            links.iter().filter_map(Link::next_due).min()
        };
        if !more && wait(devices, due, stop)? {
            return Ok(());
        }
    }
}

/// Offers what a device has to its link; returns whether it may have more.
fn take(mut device: &File, link: &mut Link, spare: &mut Spare) -> io::Result<bool> {
    for _ in 0..TURN {
        let mut buffer = spare.take();
        match device.read(&mut buffer) {
            Ok(len) => link.offer(Instant::now(), spare.frame(buffer, len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                spare.keep(buffer);
                return Ok(false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn hand_over(mut device: &File, link: &mut Link, spare: &mut Spare) {
    let now = Instant::now();
    while let Some(frame) = link.arrived(now) {
        // A packet that the kernel refuses is lost, as on any network.
        let _ = device.write(frame.bytes());
        spare.keep(frame.into_buffer());
    }
}

/// Waits for a packet, for the moment `due`, or for the end; returns whether this is the end.
fn wait(devices: [&File; 2], due: Option<Instant>, stop: &UnixStream) -> io::Result<bool> {
    let [first, second] = devices.map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
    let mut files = [first, second, PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let time = due.map(|due| TimeSpec::from_duration(due.saturating_duration_since(Instant::now())));
    match ppoll(&mut files, time, None) {
        Ok(_) | Err(Errno::EINTR) => Ok(files[2].any() == Some(true)),
        Err(error) => Err(error.into()),
    }
}

/// Buffers for pieces: those of 64 KiB are used again, because to zero them anew costs more than to carry them.
#[derive(Default)]
struct Spare(Vec<Vec<u8>>);

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; MAX_FRAME_BYTES])
    }

    fn keep(&mut self, buffer: Vec<u8>) {
        if buffer.len() == MAX_FRAME_BYTES && self.0.len() < SPARE_BUFFERS {
            self.0.push(buffer);
        }
    }

    /// Makes a piece of the buffer, or of a copy: a short piece would hold 64 KiB for as long as it is on the way.
    fn frame(&mut self, buffer: Vec<u8>, len: usize) -> Frame {
        if len > MAX_FRAME_BYTES / 2 {
            return Frame::new(buffer, len);
        }
        let bytes = buffer[..len].to_vec();
        self.keep(buffer);
        Frame::new(bytes, len)
    }
}
