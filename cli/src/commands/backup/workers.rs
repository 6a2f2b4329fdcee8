//! Backs up guests, several at a time. One that fails does not stop the others.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::unistd::geteuid;
use vbk::backup::BackupSummary;
use vbk::backup::guest::{Host, back_up_guest};
use vbk::observer::{Event, Observer};
use vbk_repo::ErrorKind;
use vbk_repo::name::GuestName;
use vbk_repo::pool;
use vbk_repo::repository::Writer;

use super::telling::Telling;
use super::{Done, Job};
use crate::commands::backup::nightly::Deadline;
use crate::commands::backup::notify::Notifier;
use crate::context::Context;
use crate::exit::{Error, Result};
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

/// What all guests of a run share.
pub struct Workers<'a> {
    pub context: &'a Context<'a>,
    pub writer: &'a Writer,
    pub host: &'a Host,
    pub telling: &'a Telling<'a>,
    pub cancel: &'a AtomicBool,
    pub deadline: &'a Deadline,
    pub notifier: &'a Notifier,
    /// Whether failures are told at once, because others follow.
    pub is_all: bool,
}

/// What became of them all.
pub struct Results {
    /// Of each guest.
    pub done: Vec<Done>,
    /// Warnings that are of no guest.
    pub warnings: u64,
}

/// What the workers have in common.
struct Shared<'a> {
    queue: Mutex<VecDeque<Job>>,
    done: Mutex<Vec<Done>>,
    progress: Arc<Progress>,
    guests: usize,
    workers: &'a Workers<'a>,
}

impl Workers<'_> {
    /// Backs all up; gives what became of each.
    pub fn run(&self, jobs: Vec<Job>, threads: usize) -> Result<Results> {
        let total = jobs.iter().map(|job| job.size_bytes).sum();
        let progress = Progress::new(self.context.quiet(), total, Words::Backup);
        let shared = Shared {
            guests: jobs.len(),
            queue: Mutex::new(jobs.into()),
            done: Mutex::default(),
            progress: Arc::new(progress.saying(!self.context.quiet() && !self.context.json())),
            workers: self,
        };
        // Only root makes snapshots of volumes; copies of files are found by the next run of the same file.
        if geteuid().is_root() && lock(&shared.queue).iter().any(Job::has_devices) {
            self.host.clean(&*shared.progress);
        }
        let warnings = shared.progress.warnings();
        let worked = pool::run("vbk-guest", threads.min(shared.guests), &|_, _| {
            shared.work();
            Ok(())
        });
        shared.progress.finish();
        worked.map(|()| Results {
            done: shared.done.into_inner().unwrap_or_else(PoisonError::into_inner),
            warnings,
        })
    }
}

impl Shared<'_> {
    fn work(&self) {
        loop {
            let Some(job) = lock(&self.queue).pop_front() else {
                return;
            };
            let guest = job.guest.clone();
            let is_begun = !self.workers.cancel.load(Ordering::SeqCst);
            self.workers.notifier.status(&self.status(&guest));
            let clock = Instant::now();
            let observer: Arc<GuestObserver> = Arc::new(GuestObserver {
                guest: guest.clone(),
                is_all: self.workers.is_all,
                progress: Arc::clone(&self.progress),
                warnings: AtomicU64::new(0),
                peak_fill: Mutex::default(),
            });
            for note in &job.notes {
                observer.event(Event::Warning(note));
            }
            // A bug that one guest meets is not the end of the others' backups. Snapshots and helpers were let go of while
            // the thread was unwound.
            let result = catch_unwind(AssertUnwindSafe(|| self.back_up(job, &observer)))
                .unwrap_or_else(|_| Err(Error::Bug("the backup broke off; what is above says where".to_owned())));
            let took = clock.elapsed();
            if let Err(error) = &result {
                self.failed(&guest, error, is_begun, &observer);
            }
            let peak_fill = *lock(&observer.peak_fill);
            if let Err(error) = self.workers.telling.record(&guest, result.as_ref(), took, peak_fill) {
                observer.event(Event::Warning(&error.message()));
            }
            lock(&self.done).push(Done {
                guest,
                result,
                is_begun,
                took,
                warnings: observer.warnings.load(Ordering::Relaxed),
            });
        }
    }

    fn status(&self, guest: &GuestName) -> String {
        let left = lock(&self.queue).len();
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
        back_up_guest(writer, host, &plan, cancel, &observer)
            .map_err(|error| deadline.reason_for(error.into(), "what was stored is not stored again by the next run"))
    }

    fn failed(&self, guest: &GuestName, error: &Error, is_begun: bool, observer: &GuestObserver) {
        // Who interrupted it knows; the table has them all.
        if error.kind() == ErrorKind::Interrupted {
            return;
        }
        if self.workers.is_all {
            self.progress
                .suspend(|| tracing::error!("{guest}: {}", error.message()));
        }
        // Those whose turn did not come are told of at once, at the end.
        if self.workers.is_all && !is_begun {
            return;
        }
        if let Err(error) = self.workers.telling.failed(guest.as_str(), error) {
            observer.event(Event::Warning(&format!("the on-failure command: {error}")));
        }
    }
}

/// Passes on what happens to one guest, and counts its warnings.
struct GuestObserver {
    /// Named in messages.
    guest: GuestName,
    /// Whether there are others.
    is_all: bool,
    progress: Arc<Progress>,
    warnings: AtomicU64,
    /// The fullest that a snapshot was.
    peak_fill: Mutex<Option<f64>>,
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
            Event::Peak { fill, .. } => {
                let mut peak = lock(&self.peak_fill);
                *peak = Some(peak.map_or(fill, |known| known.max(fill)));
            }
            // The bar is of all of them.
            Event::Disk { name, size_bytes } if self.is_all => {
                tracing::info!("{guest}: reading {name}, {}", units::size(size_bytes));
            }
            event => self.progress.event(event),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
