//! The guard: watches snapshots and thin pools fill while they are read, extends them where there is room, and stops
//! the run before one overflows.
//!
//! A thread asks the kernel about once a second, more often when something fills fast ([`crate::host::lvm::status`]: no
//! lock of LVM's is taken). Extending is left to a thread of its own: `lvextend` may fail, wait for another lvm2
//! command or hang, and the guard continues to watch meanwhile.
//!
//! A thin pool was seldom empty before the run. One that was above the threshold already is extended only when it has
//! come half the way from there to the limit: its usual fill is the administrator's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::SnapshotError;
use super::gauge::{Fills, Gauge, Gauged, Label};
use super::options::SnapshotOptions;
use crate::host::lvm::status::Space;
use crate::host::program::{ProgramError, Programs};
use crate::observer::{Event, Observer};

/// Pause between two looks, and between two when something fills fast.
const PAUSE: Duration = Duration::from_secs(1);
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// With less time than this until it reaches the limit, it is extended whatever the fill.
const AHEAD_SECS: f64 = 5.0;
/// Number of failures in a row after which the guard gives up.
const BLIND: u32 = 5;
/// Pause before the next try to extend what could not be extended.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// The guard at work.
#[derive(Debug)]
pub struct Watch {
    /// Dropped to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<(), SnapshotError>>>,
}

impl Watch {
    /// Ends the guard. The error is the reason for which it stopped the run, if it did. Waits for an `lvextend` that is
    /// under way.
    pub fn end(mut self) -> Result<(), SnapshotError> {
        self.join().unwrap_or(Ok(()))
    }

    fn join(&mut self) -> Option<Result<(), SnapshotError>> {
        drop(self.end.take());
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| Err(SnapshotError::NoGuard(std::io::Error::other("it panicked")))))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.join() {
            tracing::warn!("{error}");
        }
    }
}

/// Starts the guard. When a disk is not held still any more, or is about not to be, it sets `stop`, and [`Watch::end`]
/// says why.
pub(super) fn watch(
    programs: &Programs,
    options: &SnapshotOptions,
    things: Vec<Gauged>,
    stop: Arc<AtomicBool>,
    observer: Arc<dyn Observer>,
) -> Result<Watch, SnapshotError> {
    let mut guard = Guard {
        programs: programs.clone(),
        extend_at: options.extend_at,
        stop_at: options.stop_at,
        observer,
        watched: watched(things),
    };
    let (end, ended) = channel();
    let thread = Builder::new()
        .name("vbk-guard".into())
        .spawn(move || {
            let result = guard.run(&ended);
            if result.is_err() {
                stop.store(true, Ordering::SeqCst);
            }
            guard.finish();
            result
        })
        .map_err(SnapshotError::NoGuard)?;
    Ok(Watch {
        end: Some(end),
        thread: Some(thread),
    })
}

/// Joins things that are the same, e.g. the pool of two disks.
fn watched(things: Vec<Gauged>) -> Vec<Watched> {
    let mut all: Vec<Watched> = Vec::new();
    for Gauged { thing, gauge } in things {
        let label = thing.label();
        match all.iter_mut().find(|known| known.label == label) {
            Some(known) => known.gauges.extend(gauge),
            None => all.push(Watched::new(label, thing, gauge)),
        }
    }
    all
}

struct Guard {
    programs: Programs,
    extend_at: Option<f64>,
    stop_at: f64,
    observer: Arc<dyn Observer>,
    watched: Vec<Watched>,
}

/// One thing that can become full.
struct Watched {
    label: Label,
    thing: Arc<dyn Fills>,
    gauges: Vec<Arc<Gauge>>,
    /// Fill at the first look.
    first: Option<f64>,
    last: Option<(Instant, Space)>,
    failures: u32,
    extending: Option<JoinHandle<Result<(), String>>>,
    /// The reason for which it could not be extended, and the time of the next try.
    failed: Option<(String, Instant)>,
    warned: bool,
}

impl Watched {
    fn new(label: Label, thing: Arc<dyn Fills>, gauge: Option<Arc<Gauge>>) -> Self {
        Self {
            label,
            thing,
            gauges: gauge.into_iter().collect(),
            first: None,
            last: None,
            failures: 0,
            extending: None,
            failed: None,
            warned: false,
        }
    }

    /// Notes its space; the error is the reason for which the run must stop.
    fn space(
        &mut self,
        answer: Result<Result<Space, SnapshotError>, ProgramError>,
    ) -> Result<Option<Space>, SnapshotError> {
        let space = match answer {
            Ok(space) => space,
            Err(source) => {
                self.failures += 1;
                if self.failures < BLIND {
                    return Ok(None);
                }
                return Err(SnapshotError::Blind {
                    device: self.label.device.clone(),
                    source,
                });
            }
        };
        self.failures = 0;
        let space = space?;
        for gauge in &self.gauges {
            gauge.note(space);
        }
        Ok(Some(space))
    }

    /// Fill per second since the last look.
    fn rate(&mut self, now: Instant, space: Space) -> f64 {
        let before = self.last.replace((now, space));
        let Some((then, before)) = before.filter(|(_, before)| before.total == space.total) else {
            return 0.0;
        };
        let secs = now.duration_since(then).as_secs_f64();
        if secs > 0.0 {
            ((space.fill() - before.fill()) / secs).max(0.0)
        } else {
            0.0
        }
    }

    /// The fill from which on to extend it.
    fn threshold(&self, extend_at: f64, stop_at: f64) -> f64 {
        match self.first.filter(|first| self.label.is_shared && *first >= extend_at) {
            Some(first) => first + (stop_at - first) / 2.0,
            None => extend_at,
        }
    }

    fn stopped(&self, fill: f64) -> SnapshotError {
        let why = match &self.failed {
            Some((why, _)) => why.clone(),
            None if self.extending.is_some() => "that was under way".to_owned(),
            None => "that was not asked for, or it filled too fast".to_owned(),
        };
        self.thing.stopped(fill * 100.0, why)
    }
}

impl Guard {
    fn run(&mut self, ended: &Receiver<()>) -> Result<(), SnapshotError> {
        loop {
            let mut pause = PAUSE;
            for at in 0..self.watched.len() {
                pause = pause.min(self.look(at)?);
            }
            match ended.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Looks at one, and returns the pause until the next look.
    fn look(&mut self, at: usize) -> Result<Duration, SnapshotError> {
        self.reap(at);
        let (extend_at, stop_at) = (self.extend_at, self.stop_at);
        let watched = &mut self.watched[at];
        let answer = watched.thing.look(&self.programs);
        let Some(space) = watched.space(answer)? else {
            return Ok(PAUSE);
        };
        let (now, fill) = (Instant::now(), space.fill());
        let rate = watched.rate(now, space);
        watched.first.get_or_insert(fill);
        if !watched.thing.can_overflow(space) {
            return Ok(PAUSE);
        }
        // What is being extended gets half of what is left.
        let limit = match &watched.extending {
            Some(_) => stop_at + (1.0 - stop_at) / 2.0,
            None => stop_at,
        };
        let threshold = extend_at.map(|extend_at| watched.threshold(extend_at, stop_at));
        let soon = fill + rate * AHEAD_SECS >= stop_at;
        let due = threshold.is_some_and(|threshold| fill >= threshold || (soon && rate > 0.0));
        let may = watched.failed.as_ref().is_none_or(|(_, again)| now >= *again);
        if fill < limit && due && may && watched.extending.is_none() {
            self.extend(at, space);
            return Ok(SHORT_PAUSE);
        }
        if fill >= limit {
            // Invalid, if it has overflowed since.
            return Err(self.watched[at].stopped(fill));
        }
        // A quarter of the time to the next mark, so that it is not missed.
        let next = threshold.filter(|threshold| fill < *threshold).unwrap_or(stop_at);
        let secs = if rate > 0.0 {
            (next - fill) / rate / 4.0
        } else {
            f64::MAX
        };
        let pause = Duration::try_from_secs_f64(secs).unwrap_or(PAUSE);
        Ok(pause.clamp(SHORT_PAUSE, PAUSE))
    }

    fn extend(&mut self, at: usize, space: Space) {
        let watched = &mut self.watched[at];
        let (programs, thing) = (self.programs.clone(), Arc::clone(&watched.thing));
        let thread = Builder::new()
            .name("vbk-extend".into())
            .spawn(move || thing.extend(&programs, space.total));
        match thread {
            Ok(thread) => watched.extending = Some(thread),
            Err(error) => watched.failed = Some((error.to_string(), Instant::now() + TRY_AGAIN)),
        }
    }

    /// Takes the result of an extension that has ended.
    fn reap(&mut self, at: usize) {
        let watched = &mut self.watched[at];
        let Some(thread) = watched.extending.take_if(|thread| thread.is_finished()) else {
            return;
        };
        let result = thread.join().unwrap_or_else(|_| Err("it panicked".to_owned()));
        let Label {
            noun, name, is_shared, ..
        } = &watched.label;
        match result {
            Ok(()) => {
                watched.failed = None;
                // It stays so, and the administrator should know.
                if *is_shared {
                    self.observer
                        .event(Event::Warning(&format!("{noun} {name} was extended")));
                } else {
                    tracing::info!("{noun} {name} was extended");
                }
            }
            Err(why) => {
                if !watched.warned {
                    watched.warned = true;
                    self.observer.event(Event::Warning(&format!(
                        "{name} is filling and could not be extended ({why}); the backup is stopped at {:.0} %",
                        self.stop_at * 100.0
                    )));
                }
                watched.failed = Some((why, Instant::now() + TRY_AGAIN));
            }
        }
    }

    fn finish(&mut self) {
        for watched in &mut self.watched {
            if let Some(thread) = watched.extending.take() {
                let _ = thread.join();
            }
        }
    }
}
