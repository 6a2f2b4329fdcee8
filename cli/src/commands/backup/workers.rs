//! Backs up guests, several at a time. One that fails does not stop the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::unistd::geteuid;
use vbk::guest_backup::{GuestSummary, Host, back_up_guest};
use vbk::observer::{Event, Observer};
use vbk_repo::ErrorKind;
use vbk_repo::name::GuestName;
use vbk_repo::repository::Writer;

use super::{Done, Job};
use crate::config::Config;
use crate::context::Context;
use crate::exit::{Error, Result};
use crate::metrics::{GuestRun, Made, Metrics};
use crate::nightly::{self, Deadline};
use crate::notify::Notifier;
use crate::progress::{Progress, Words};
use crate::units;

/// What all guests of a run share.
pub struct Workers<'a> {
    pub context: &'a Context<'a>,
    pub writer: &'a Writer,
    pub host: &'a Host,
    pub config: &'a Config,
    pub cancel: &'a AtomicBool,
    pub deadline: &'a Deadline,
    pub notifier: &'a Notifier,
    /// Whether failures are told at once, because others follow.
    pub is_all: bool,
}

/// What the workers have in common.
struct Shared<'a, 'm> {
    queue: Mutex<VecDeque<Job>>,
    done: Mutex<Vec<Done>>,
    metrics: Mutex<Option<&'m mut Metrics>>,
    progress: Arc<Progress>,
    guests: usize,
    workers: &'a Workers<'a>,
}

impl Workers<'_> {
    /// Backs all up; gives what became of each.
    pub fn run(&self, jobs: Vec<Job>, threads: usize, metrics: Option<&mut Metrics>) -> Result<Vec<Done>> {
        let total = jobs.iter().map(|job| job.size_bytes).sum();
        let shared = Shared {
            guests: jobs.len(),
            queue: Mutex::new(jobs.into()),
            done: Mutex::default(),
            metrics: Mutex::new(metrics),
            progress: Arc::new(Progress::new(self.context.quiet(), total, Words::Backup)),
            workers: self,
        };
        // Only root makes snapshots of volumes; copies of files are found by the next run of the same file.
        if geteuid().is_root() && lock(&shared.queue).iter().any(Job::has_devices) {
            self.host.clean(&*shared.progress);
        }
        std::thread::scope(|scope| {
            for number in 0..threads.min(shared.guests) {
                let shared = &shared;
                std::thread::Builder::new()
                    .name(format!("vbk-guest-{number}"))
                    .spawn_scoped(scope, move || shared.work())
                    .expect("the system can start a few threads");
            }
        });
        shared.progress.finish();
        Ok(shared.done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared<'_, '_> {
    fn work(&self) {
        loop {
            let Some(job) = lock(&self.queue).pop_front() else {
                return;
            };
            let guest = job.guest.clone();
            self.workers.notifier.status(&self.status(&guest));
            let clock = Instant::now();
            let observer: Arc<GuestObserver> = Arc::new(GuestObserver {
                guest: self.workers.is_all.then(|| guest.clone()),
                progress: Arc::clone(&self.progress),
                warnings: AtomicU64::new(0),
            });
            for note in &job.notes {
                observer.event(Event::Warning(note));
            }
            let result = self.back_up(job, &observer);
            let took = clock.elapsed();
            if let Err(error) = &result {
                self.failed(&guest, error, &observer);
            }
            self.record(&guest, &result, took, &observer);
            lock(&self.done).push(Done {
                guest,
                result,
                took,
                warnings: observer.warnings.load(Ordering::Relaxed),
            });
        }
    }

    fn status(&self, guest: &GuestName) -> String {
        let left = lock(&self.queue).len();
        format!("backing up {guest} ({} of {})", self.guests - left, self.guests)
    }

    fn back_up(&self, job: Job, observer: &Arc<GuestObserver>) -> Result<GuestSummary> {
        let Workers {
            writer, host, cancel, ..
        } = self.workers;
        if cancel.load(Ordering::SeqCst) {
            return Err(self.ended());
        }
        let plan = job.plan?;
        let observer: Arc<dyn Observer> = Arc::clone(observer) as _;
        back_up_guest(writer, host, &plan, cancel, &observer).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => self.ended(),
            _ => error.into(),
        })
    }

    /// Who asked for the end.
    fn ended(&self) -> Error {
        match self.workers.deadline.is_over() {
            true => Error::TimeOver(
                "the time limit is over; what was stored is not stored again by the next run".to_owned(),
            ),
            false => vbk::Error::Interrupted.into(),
        }
    }

    fn failed(&self, guest: &GuestName, error: &Error, observer: &GuestObserver) {
        let Workers { config, host, .. } = self.workers;
        if self.workers.is_all {
            self.progress
                .suspend(|| tracing::error!("{guest}: {}", error.message()));
        }
        if error.kind() == ErrorKind::Interrupted {
            return;
        }
        let Some(command) = &config.on_failure else {
            return;
        };
        let told = nightly::on_failure(host.programs(), command, guest.as_str(), error, &crate::context::host());
        if let Err(error) = told {
            observer.event(Event::Warning(&format!("the on-failure command: {error}")));
        }
    }

    fn record(&self, guest: &GuestName, result: &Result<GuestSummary>, took: Duration, observer: &GuestObserver) {
        let mut metrics = lock(&self.metrics);
        let Some(metrics) = metrics.as_mut() else {
            return;
        };
        let made = result.as_ref().ok();
        let run = GuestRun {
            ended: Timestamp::now(),
            duration: took,
            snapshot_peak_fill: made.and_then(|made| made.peaks.iter().map(|peak| peak.fill).reduce(f64::max)),
            made: made.map(|made| {
                let counts = &made.backup.counts;
                Made {
                    read_bytes: counts.read_bytes,
                    new_bytes: counts.new_bytes,
                    stored_bytes: counts.stored_bytes,
                    size_bytes: made.backup.entry.backup.size_bytes(),
                }
            }),
        };
        if let Err(error) = metrics.record(guest.as_str(), run) {
            observer.event(Event::Warning(&error.message()));
        }
    }
}

/// Passes on what happens to one guest, and counts its warnings.
struct GuestObserver {
    /// Named in messages, where there are several.
    guest: Option<GuestName>,
    progress: Arc<Progress>,
    warnings: AtomicU64,
}

impl Observer for GuestObserver {
    fn event(&self, event: Event<'_>) {
        match (event, &self.guest) {
            (Event::Warning(text), guest) => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                let text = match guest {
                    Some(guest) => format!("{guest}: {text}"),
                    None => text.to_owned(),
                };
                self.progress.event(Event::Warning(&text));
            }
            (Event::Disk { name, size_bytes }, Some(guest)) => {
                tracing::info!("{guest}: reading {name}, {}", units::size(size_bytes));
            }
            (event, _) => self.progress.event(event),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
