//! A limit of what passes between this process and other hosts, by the time of day.
//!
//! The bytes of all connections count together, each direction for itself. What passes is counted afterwards, in pieces of 64 KiB
//! at most, and the next piece waits until the rate allows it: so a ping waits for no more than one piece.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use jiff::Zoned;
use jiff::civil::Time;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The most bytes at once.
const PIECE_BYTES: usize = 64 << 10;

/// Time for which a rate may be made up for after a pause: timers come a millisecond late.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Time after which the clock is looked at again.
const CLOCK_EVERY: Duration = Duration::from_secs(1);

/// A rate, and the part of each day in which it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BandwidthRule {
    /// Bytes per second in each direction; `None` for no limit.
    pub bytes_per_sec: Option<u64>,
    /// From the first time of the day to the second one, across midnight if that is not the later one; `None` for all day. Local
    /// time.
    pub within: Option<(Time, Time)>,
}

impl BandwidthRule {
    fn counts_at(&self, time: Time) -> bool {
        match self.within {
            None => true,
            Some((from, to)) if from < to => (from..to).contains(&time),
            Some((from, to)) => time >= from || time < to,
        }
    }
}

/// The limit of all connections of this process that were given it.
#[derive(Clone, Default)]
pub struct Bandwidth(Option<Arc<Limit>>);

struct Limit {
    rules: Vec<BandwidthRule>,
    now: Mutex<Option<(Instant, Option<u64>)>>,
    up: Mutex<Option<Instant>>,
    down: Mutex<Option<Instant>>,
}

impl fmt::Debug for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = self.0.as_ref().map(|limit| &limit.rules);
        f.debug_tuple("Bandwidth").field(&rules).finish()
    }
}

/// The rate at a time of the day: that of the first rule that counts then.
fn rate_at(rules: &[BandwidthRule], time: Time) -> Option<u64> {
    rules.iter().find(|rule| rule.counts_at(time))?.bytes_per_sec
}

impl Bandwidth {
    /// The first rule that counts is the one that does; without any there is no limit.
    pub fn new(rules: Vec<BandwidthRule>) -> Self {
        let limit = |rules| {
            Arc::new(Limit {
                rules,
                now: Mutex::default(),
                up: Mutex::default(),
                down: Mutex::default(),
            })
        };
        Self((!rules.is_empty()).then(|| limit(rules)))
    }

    /// The two directions of a connection, with the limit.
    pub(super) fn limit<R, W>(&self, (read, write): (R, W)) -> (Limited<R>, Limited<W>) {
        (Limited::new(read, self, false), Limited::new(write, self, true))
    }
}

impl Limit {
    fn rate(&self) -> Option<u64> {
        let mut now = self.now.lock();
        match *now {
            Some((since, rate)) if since.elapsed() < CLOCK_EVERY => rate,
            _ => {
                let rate = rate_at(&self.rules, Zoned::now().time());
                *now = Some((Instant::now(), rate));
                rate
            }
        }
    }

    fn direction(&self, is_up: bool) -> &Mutex<Option<Instant>> {
        match is_up {
            true => &self.up,
            false => &self.down,
        }
    }

    /// Time until more may pass.
    fn wait(&self, is_up: bool) -> Option<Duration> {
        self.rate()?;
        let free_at = (*self.direction(is_up).lock())?;
        Some(free_at.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// Counts what passed.
    fn count(&self, is_up: bool, bytes: usize) {
        let Some(rate) = self.rate() else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let mut free_at = self.direction(is_up).lock();
        let now = Instant::now();
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        *free_at = Some(free_at.map_or(earliest, |at| at.max(earliest)) + takes);
    }
}

/// One direction of a connection, limited.
pub(super) struct Limited<T> {
    inner: T,
    limit: Option<Arc<Limit>>,
    is_up: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<T> Limited<T> {
    fn new(inner: T, bandwidth: &Bandwidth, is_up: bool) -> Self {
        Self {
            inner,
            limit: bandwidth.0.clone(),
            is_up,
            pause: None,
        }
    }

    /// Ready when a piece may pass.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = &self.limit else {
            return Poll::Ready(());
        };
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match limit.wait(self.is_up) {
                None => return Poll::Ready(()),
                // The rate may change meanwhile.
                Some(wait) => self.pause = Some(Box::pin(sleep(wait.min(CLOCK_EVERY)))),
            }
        }
    }

    fn count(&self, bytes: usize) {
        if let Some(limit) = &self.limit {
            limit.count(self.is_up, bytes);
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Limited<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_turn(context));
        if self.limit.is_none() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let room = buffer.remaining().min(PIECE_BYTES);
        let mut piece = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut piece))?;
        let read = piece.filled().len();
        buffer.advance(read);
        self.count(read);
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Limited<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        let piece = match self.limit {
            None => bytes,
            Some(_) => &bytes[..bytes.len().min(PIECE_BYTES)],
        };
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, piece))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn time(hour: i8, minute: i8) -> Time {
        Time::constant(hour, minute, 0, 0)
    }

    #[test]
    fn the_first_rule_that_counts_is_the_one() {
        let rule = |bytes_per_sec, within| BandwidthRule { bytes_per_sec, within };
        let rules = [
            rule(Some(5), Some((time(8, 0), time(18, 30)))),
            rule(None, Some((time(22, 0), time(6, 0)))),
            rule(Some(50), None),
        ];
        for (at, rate) in [
            (time(7, 59), Some(50)),
            (time(8, 0), Some(5)),
            (time(18, 29), Some(5)),
            (time(18, 30), Some(50)),
            (time(22, 0), None),
            (time(0, 0), None),
            (time(5, 59), None),
            (time(6, 0), Some(50)),
        ] {
            assert_eq!(rate_at(&rules, at), rate, "{at}");
        }
        assert_eq!(rate_at(&rules[..1], time(7, 0)), None);
        for at in [0, 12] {
            let all_day = rule(Some(5), Some((time(0, 0), time(0, 0))));
            assert_eq!(rate_at(&[all_day], time(at, 0)), Some(5));
        }
    }

    #[test]
    fn all_connections_share_the_rate_in_each_direction() {
        const RATE: usize = 4 << 20;
        let bandwidth = Bandwidth::new(vec![BandwidthRule {
            bytes_per_sec: Some(RATE as u64),
            within: None,
        }]);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("starts");
        let bytes: Arc<Vec<u8>> = Arc::new((0..RATE / 4).map(|at| (at % 251) as u8).collect());
        let started = Instant::now();
        runtime.block_on(async {
            let mut all = Vec::new();
            for _ in 0..2 {
                let (here, mut there) = tokio::io::duplex(300_000);
                let (mut read, mut write) = bandwidth.limit(tokio::io::split(here));
                let (up, down, echo) = (Arc::clone(&bytes), Arc::clone(&bytes), Arc::clone(&bytes));
                all.push(tokio::spawn(async move {
                    write.write_all(&up).await.expect("writes");
                    write.flush().await.expect("flushes");
                    let mut got = vec![0; down.len()];
                    read.read_exact(&mut got).await.expect("reads");
                    assert!(got == *down);
                }));
                all.push(tokio::spawn(async move {
                    let mut got = vec![0; echo.len()];
                    there.read_exact(&mut got).await.expect("reads");
                    assert!(got == *echo);
                    there.write_all(&echo).await.expect("writes");
                }));
            }
            for task in all {
                task.await.expect("runs");
            }
        });
        // Half a second for each direction, at the same time perhaps, but for what may be made up.
        assert!(
            started.elapsed() > Duration::from_millis(450),
            "{:?}",
            started.elapsed()
        );
    }
}
