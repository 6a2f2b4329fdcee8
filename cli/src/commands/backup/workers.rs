//! Backs up guests, several at a time. A guest that fails does not stop the others.
//!
//! A guest whose disks were read only waits until its backup is durable. So the next one begins then: the processors and the
//! guests' disks are not idle meanwhile, and guests that finish at about the same time become durable together. At most as many
//! guests wait as are read. Who wants one guest at a time gets that: the next begins when nothing of the one before is left.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::unistd::geteuid;
use parking_lot::Mutex;
use vbk::backup::BackupSummary;
use vbk::backup::guest::{Host, back_up_guest};
use vbk::observer::{Event, Observer};
use vbk_repo::ErrorKind;
use vbk_repo::name::GuestName;
use vbk_repo::pool;
use vbk_repo::repository::Writer;
use vbk_repo::turns::{Turn, Turns};

use super::monitoring::Monitoring;
use super::{Done, Job};
use crate::commands::backup::nightly::Deadline;
use crate::context::Context;
use crate::exit::{Error, Result};
use crate::notify::Notifier;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

/// Context that all guests of a run share.
pub struct Workers<'a> {
    pub context: &'a Context<'a>,
    pub writer: &'a Writer,
    pub host: &'a Host,
    pub monitoring: &'a Monitoring<'a>,
    pub cancel: &'a AtomicBool,
    pub deadline: &'a Deadline,
    pub notifier: &'a Notifier,
    /// The run backs up all guests, so failures are reported at once.
    pub is_all: bool,
}

/// Results of a run.
pub struct Results {
    /// One result for each guest.
    pub done: Vec<Done>,
    /// Warnings that concern no single guest.
    pub warnings: u64,
}

/// State that the workers share.
struct Shared<'a> {
    queue: Mutex<VecDeque<Job>>,
    done: Mutex<Vec<Done>>,
    progress: Arc<Progress>,
    guests: usize,
    /// Those of the guests whose disks are read.
    turns: Turns,
    workers: &'a Workers<'a>,
}

impl Workers<'_> {
    /// Backs up all guests, so many at a time, and returns a result for each.
    pub fn run(&self, jobs: Vec<Job>, at_once: usize) -> Result<Results> {
        let total = jobs.iter().map(|job| job.size_bytes).sum();
        let mut progress = Progress::new(self.context.quiet(), total, Words::Backup);
        if self.is_all {
            progress = progress.with_guests(jobs.len());
        }
        let shared = Shared {
            guests: jobs.len(),
            queue: Mutex::new(jobs.into()),
            done: Mutex::default(),
            turns: Turns::new(at_once),
            progress: Arc::new(progress.saying(!self.context.quiet() && !self.context.json())),
            workers: self,
        };
        // Only root makes snapshots of volumes. A copy of a file is found by the next backup of that file.
        if geteuid().is_root() && shared.queue.lock().iter().any(Job::has_devices) {
            self.host.clean(&*shared.progress);
        }
        let mut warnings = shared.progress.warnings();
        let threads = match at_once {
            1 => 1,
            several => 2 * several,
        };
        let work = || {
            pool::run("vbk-guest", threads.min(shared.guests), &|_, _| {
                shared.work();
                Ok(())
            })
        };
        let (worked, unpublished) = match self.is_all {
            true => self.writer.publishing(work),
            false => (work(), None),
        };
        if let Some(error) = unpublished {
            warnings += 1;
            let warning = format!("the latest backups are stored, but will not be listed before the next one: {error}");
            shared.progress.event(Event::Warning(&warning));
        }
        shared.progress.finish();
        worked.map(|()| Results {
            done: shared.done.into_inner(),
            warnings,
        })
    }
}

impl Shared<'_> {
    fn work(&self) {
        loop {
            let turn = self.turns.take();
            let Some(job) = self.queue.lock().pop_front() else {
                return;
            };
            let guest = job.guest.clone();
            let is_begun = !self.workers.cancel.load(Ordering::SeqCst);
            self.workers.notifier.status(&self.status(&guest));
            self.progress.begin_guest(guest.as_str());
            let clock = Instant::now();
            let observer: Arc<GuestObserver> = Arc::new(GuestObserver {
                guest: guest.clone(),
                is_all: self.workers.is_all,
                progress: Arc::clone(&self.progress),
                warnings: AtomicU64::new(0),
                peak_fill: Mutex::default(),
                turn: Mutex::new(Some(turn)),
                turns: self.turns.clone(),
            });
            for note in &job.notes {
                observer.event(Event::Warning(note));
            }
            // A bug in the backup of one guest must not end the others. Snapshots and helpers were released while the thread
            // unwound.
            let result = catch_unwind(AssertUnwindSafe(|| self.back_up(job, &observer))).unwrap_or_else(|_| {
                Err(Error::Bug(
                    "the backup of this guest crashed (a bug); see the panic message above".to_owned(),
                ))
            });
            drop(observer.turn.lock().take());
            self.progress.end_guest(guest.as_str());
            let took = clock.elapsed();
            if let Err(error) = &result {
                self.failed(&guest, error, is_begun, &observer);
            }
            let peak_fill = *observer.peak_fill.lock();
            if let Err(error) = self.workers.monitoring.record(&guest, result.as_ref(), took, peak_fill) {
                observer.event(Event::Warning(&error.message()));
            }
            self.done.lock().push(Done {
                guest,
                result,
                is_begun,
                took,
                warnings: observer.warnings.load(Ordering::Relaxed),
            });
        }
    }

    fn status(&self, guest: &GuestName) -> String {
        let left = self.queue.lock().len();
        format!("backing up {guest} ({} of {})", self.guests - left, self.guests)
    }

    fn back_up(&self, job: Job, observer: &Arc<GuestObserver>) -> Result<BackupSummary> {
        let Workers {
            writer,
            host,
            cancel,
            deadline,
            ..
        } = self.workers;
        if cancel.load(Ordering::SeqCst) {
            return Err(deadline.reason_for(vbk::Error::Interrupted.into(), "this guest was not begun"));
        }
        let plan = job.plan?;
        let observer: Arc<dyn Observer> = Arc::clone(observer) as _;
        back_up_guest(writer, host, &plan, cancel, &observer).map_err(|error| {
            deadline.reason_for(
                error.into(),
                "blocks that were stored are not stored again by the next run",
            )
        })
    }

    fn failed(&self, guest: &GuestName, error: &Error, is_begun: bool, observer: &GuestObserver) {
        // The person who interrupted it knows, and the table lists all of them.
        if error.kind() == ErrorKind::Interrupted {
            return;
        }
        if self.workers.is_all {
            self.progress
                .suspend(|| tracing::error!("{guest}: {}", error.message()));
        }
        // Guests that were not begun are reported together at the end.
        if self.workers.is_all && !is_begun {
            return;
        }
        if let Err(error) = self.workers.monitoring.failed(guest.as_str(), error) {
            observer.event(Event::Warning(&format!("the on-failure command: {error}")));
        }
    }
}

/// Passes on the events of one guest, and counts its warnings.
struct GuestObserver {
    /// Prefix of messages.
    guest: GuestName,
    /// The run backs up all guests.
    is_all: bool,
    progress: Arc<Progress>,
    warnings: AtomicU64,
    /// Peak fill of a snapshot.
    peak_fill: Mutex<Option<f64>>,
    /// Until its disks were read.
    turn: Mutex<Option<Turn>>,
    turns: Turns,
}

impl Observer for GuestObserver {
    fn event(&self, event: Event<'_>) {
        let guest = &self.guest;
        match event {
            Event::Warning(text) => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                self.progress.event(Event::Warning(&format!("{guest}: {text}")));
            }
            Event::Note(text) => self.progress.event(Event::Note(&format!("{guest}: {text}"))),
            Event::DisksRead => drop(self.turn.lock().take()),
            Event::DisksNeeded => {
                let turn = self.turns.take();
                *self.turn.lock() = Some(turn);
            }
            Event::Peak { fill, .. } => {
                let mut peak = self.peak_fill.lock();
                *peak = Some(peak.map_or(fill, |known| known.max(fill)));
            }
            // The bar shows all guests together.
            Event::Disk { name, size_bytes } if self.is_all => {
                tracing::info!("{guest}: reading {name}, {}", units::size(size_bytes));
            }
            event => self.progress.event(event),
        }
    }
}
