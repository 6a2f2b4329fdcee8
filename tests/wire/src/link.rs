//! One direction of the wire: what happens to each packet and when. Knows no device and reads no clock, so that it is
//! tested alone.
//!
//! A packet is first lost by chance, then waits in a queue until the line is free, then takes half the round trip. The
//! queue drops what does not fit at its end, as a router's does. The order of packets never changes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::packet::Frame;
use crate::settings::Settings;

/// Bytes on the way in one direction without a set rate: 2.5 GB/s at a round trip of 200 ms, and less than a test
/// machine has.
const MAX_FLYING_BYTES: usize = 256 << 20;
/// The least default of a queue: routers have buffers also on short paths.
const MIN_QUEUE_BYTES: u64 = 1 << 20;
/// Time of the line that packets handed over together take at most: a piece of 64 KiB would be one gust on a slow line.
const BURST: Duration = Duration::from_millis(1);

/// Counts of one direction since the start. Packets are those of the line, at most 1500 bytes; bytes are those of IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that were handed over at the other end.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets that did not fit into the queue.
    pub overflowed: u64,
    /// Packets that met a cut wire.
    pub cut: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    No,
    Until(Instant),
    Open,
}

/// One direction of the wire.
#[derive(Debug)]
pub struct Link {
    delay: Duration,
    bytes_per_sec: Option<f64>,
    queue_bytes: Option<u64>,
    loss: f64,
    chance: fastrand::Rng,
    cut: Cut,
    /// The moment from which the line is free.
    free: Option<Instant>,
    flying: VecDeque<(Instant, Frame)>,
    flying_bytes: usize,
    counts: Counts,
}

impl Link {
    /// A direction of its own chance: the same seed and packets give the same losses.
    pub fn new(settings: &Settings, seed: u64) -> Link {
        Link {
            delay: settings.delay / 2,
            bytes_per_sec: settings.rate_mbit_per_sec.map(|rate| rate * 1e6 / 8.0),
            queue_bytes: settings.queue_bytes,
            loss: settings.loss,
            chance: fastrand::Rng::with_seed(seed),
            cut: Cut::No,
            free: None,
            flying: VecDeque::new(),
            flying_bytes: 0,
            counts: Counts::default(),
        }
    }

    /// Takes a piece from the sender.
    pub fn offer(&mut self, now: Instant, frame: Frame) {
        let packets = frame.packets();
        if self.is_cut(now) {
            self.counts.cut += packets as u64;
            return;
        }
        if self.loss == 0.0 {
            return self.send(now, frame);
        }
        let mut start = 0;
        for packet in 0..packets {
            if self.chance.f64() >= self.loss {
                continue;
            }
            self.counts.lost += 1;
            if start < packet {
                self.send(now, frame.part(start..packet));
            }
            start = packet + 1;
        }
        if start == 0 {
            self.send(now, frame);
        } else if start < packets {
            self.send(now, frame.part(start..packets));
        }
    }

    /// Puts the packets of a piece on the line, in pieces of at most a [`BURST`], or drops those that find no space.
    fn send(&mut self, now: Instant, frame: Frame) {
        let packets = frame.packets();
        let Some(rate) = self.bytes_per_sec else {
            let fits = self.flying_bytes + frame.line_bytes() <= MAX_FLYING_BYTES;
            return if fits {
                self.fly(now, frame);
            } else {
                self.counts.overflowed += packets as u64;
            };
        };
        let packet = frame.packet_bytes() as f64;
        let free = self.free.map_or(now, |free| free.max(now));
        let space = self.queue_limit_bytes(rate) as f64 - (free - now).as_secs_f64() * rate;
        // A line that is free takes a packet also without a queue.
        let fits = ((space / packet) as usize).max(usize::from(free == now)).min(packets);
        self.counts.overflowed += (packets - fits) as u64;
        let at_once = ((rate * BURST.as_secs_f64() / packet) as usize).max(1);
        if fits == packets && packets <= at_once {
            let end = self.occupy(free, &frame, rate);
            return self.fly(end, frame);
        }
        let mut free = free;
        for start in (0..fits).step_by(at_once) {
            let part = frame.part(start..fits.min(start + at_once));
            free = self.occupy(free, &part, rate);
            self.fly(free, part);
        }
    }

    /// The line's next free moment if a piece is sent from `free` on.
    fn occupy(&mut self, free: Instant, frame: &Frame, bytes_per_sec: f64) -> Instant {
        let end = free + Duration::from_secs_f64(frame.line_bytes() as f64 / bytes_per_sec);
        self.free = Some(end);
        end
    }

    fn fly(&mut self, from: Instant, frame: Frame) {
        // With a delay that became shorter, a packet waits for the one before it.
        let before = self.flying.back().map(|(due, _)| *due);
        let due = before.map_or(from + self.delay, |before| before.max(from + self.delay));
        self.flying_bytes += frame.line_bytes();
        self.flying.push_back((due, frame));
    }

    /// One bandwidth-delay product where none is set, as routers' buffers are commonly sized.
    fn queue_limit_bytes(&self, bytes_per_sec: f64) -> u64 {
        self.queue_bytes.unwrap_or_else(|| {
            let product = bytes_per_sec * (2 * self.delay).as_secs_f64();
            MIN_QUEUE_BYTES.max(product as u64)
        })
    }

    /// The moment at which the next piece arrives.
    pub fn next_due(&self) -> Option<Instant> {
        self.flying.front().map(|(due, _)| *due)
    }

    /// The next piece, if it has arrived.
    pub fn arrived(&mut self, now: Instant) -> Option<Frame> {
        if self.next_due()? > now {
            return None;
        }
        let (_, frame) = self.flying.pop_front()?;
        let bytes = frame.line_bytes();
        self.flying_bytes -= bytes;
        self.counts.packets += frame.packets() as u64;
        self.counts.bytes += bytes as u64;
        Some(frame)
    }

    /// Lets nothing pass any more, for a time or until [`Link::mend`]. What is on the way is lost too.
    pub fn cut(&mut self, now: Instant, time: Option<Duration>) {
        self.cut = time.map_or(Cut::Open, |time| Cut::Until(now + time));
        self.counts.cut += self.flying.iter().map(|(_, frame)| frame.packets() as u64).sum::<u64>();
        self.flying.clear();
        self.flying_bytes = 0;
        self.free = None;
    }

    /// Ends a cut.
    pub fn mend(&mut self) {
        self.cut = Cut::No;
    }

    fn is_cut(&self, now: Instant) -> bool {
        match self.cut {
            Cut::No => false,
            Cut::Until(end) => now < end,
            Cut::Open => true,
        }
    }

    /// Sets the time of one way for later packets.
    pub fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Sets the share of packets that are lost, 0 to 1.
    pub fn set_loss(&mut self, loss: f64) {
        self.loss = loss;
    }

    /// The counts since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Counts, Link};
    use crate::packet::{Frame, VNET_BYTES};
    use crate::settings::Settings;

    const MS: Duration = Duration::from_millis(1);

    fn packet(bytes: usize) -> Frame {
        Frame::new(vec![0; VNET_BYTES + bytes], VNET_BYTES + bytes)
    }

    /// A piece of 40 TCP packets of 1000 bytes each.
    fn piece() -> Frame {
        let mut bytes = vec![0; VNET_BYTES + 40 + 40 * 960];
        bytes[0] = 1;
        bytes[1] = 1;
        bytes[4..6].copy_from_slice(&960_u16.to_ne_bytes());
        bytes[10] = 0x45;
        bytes[42] = 5 << 4;
        let len = bytes.len();
        Frame::new(bytes, len)
    }

    /// Moments since `start` at which pieces arrive, with their packets.
    fn arrivals(link: &mut Link, start: Instant) -> Vec<(Duration, usize)> {
        let mut arrivals = Vec::new();
        while let Some(due) = link.next_due() {
            assert_eq!(link.arrived(due - Duration::from_nanos(1)), None);
            let frame = link.arrived(due).unwrap();
            arrivals.push((due - start, frame.packets()));
        }
        arrivals
    }

    #[test]
    fn half_the_round_trip_is_added() {
        let settings = Settings {
            delay: 100 * MS,
            ..Settings::default()
        };
        let (mut link, now) = (Link::new(&settings, 1), Instant::now());
        link.offer(now, packet(100));
        link.offer(now + 3 * MS, packet(1500));
        assert_eq!(arrivals(&mut link, now), [(50 * MS, 1), (53 * MS, 1)]);
    }

    #[test]
    fn a_shorter_delay_does_not_reorder() {
        let settings = Settings {
            delay: 100 * MS,
            ..Settings::default()
        };
        let (mut link, now) = (Link::new(&settings, 1), Instant::now());
        link.offer(now, packet(100));
        link.set_delay(MS);
        link.offer(now, packet(100));
        assert_eq!(arrivals(&mut link, now), [(50 * MS, 1), (50 * MS, 1)]);
    }

    #[test]
    fn a_rate_spaces_packets_and_its_queue_drops_at_the_end() {
        let settings = Settings {
            delay: 20 * MS,
            rate_mbit_per_sec: Some(8.0),
            queue_bytes: Some(30_000),
            ..Settings::default()
        };
        // 1000 bytes a millisecond.
        let (mut link, now) = (Link::new(&settings, 1), Instant::now());
        link.offer(now, packet(1000));
        link.offer(now, packet(2000));
        assert_eq!(arrivals(&mut link, now), [(11 * MS, 1), (13 * MS, 1)]);

        // Of a piece, each packet has its own time, and those after the first 30 find no space.
        let later = now + 100 * MS;
        link.offer(later, piece());
        let expected: Vec<_> = (1..=30).map(|packet| ((10 + packet) * MS, 1)).collect();
        assert_eq!(arrivals(&mut link, later), expected);
        assert_eq!((link.counts().packets, link.counts().overflowed), (32, 10));
    }

    #[test]
    fn a_queue_holds_a_round_trip_unless_that_is_short() {
        for (delay, packets) in [(Duration::ZERO, 1048), (100 * MS, 1250)] {
            let settings = Settings {
                delay,
                rate_mbit_per_sec: Some(100.0),
                ..Settings::default()
            };
            let (mut link, now) = (Link::new(&settings, 1), Instant::now());
            for _ in 0..2000 {
                link.offer(now, packet(1000));
            }
            assert_eq!(link.counts().overflowed, 2000 - packets);
        }
    }

    #[test]
    fn chance_loses_single_packets_and_is_the_same_for_the_same_seed() {
        let settings = Settings {
            loss: 0.1,
            ..Settings::default()
        };
        let lost = |pieces: bool, seed| {
            let (mut link, now) = (Link::new(&settings, seed), Instant::now());
            for _ in 0..1000 {
                if pieces {
                    link.offer(now, piece());
                } else {
                    (0..40).for_each(|_| link.offer(now, packet(1000)));
                }
            }
            arrivals(&mut link, now);
            assert_eq!(link.counts().packets + link.counts().lost, 40_000);
            assert_eq!(link.counts().bytes, link.counts().packets * 1000);
            link.counts().lost
        };
        assert!((3800..4200).contains(&lost(true, 1)));
        assert_eq!(lost(true, 1), lost(false, 1));
        assert_ne!(lost(true, 1), lost(true, 2));
    }

    #[test]
    fn a_cut_loses_what_is_on_the_way_and_ends_in_time() {
        let settings = Settings {
            delay: 100 * MS,
            ..Settings::default()
        };
        let (mut link, now) = (Link::new(&settings, 1), Instant::now());
        link.offer(now, piece());
        link.cut(now + MS, Some(1000 * MS));
        link.offer(now + 1000 * MS, packet(100));
        assert_eq!(link.next_due(), None);
        link.offer(now + 1001 * MS, packet(100));
        assert_eq!(arrivals(&mut link, now), [(1051 * MS, 1)]);
        link.cut(now, None);
        link.offer(now + Duration::from_secs(3600), packet(100));
        link.mend();
        link.offer(now, packet(100));
        let expected = Counts {
            packets: 1,
            bytes: 100,
            cut: 42,
            ..Counts::default()
        };
        assert_eq!(link.counts(), expected);
    }
}
