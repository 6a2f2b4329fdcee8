//! The display of a running command: a bar on a terminal, and warnings everywhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use vbk::observer::{Counts, Event, Observer};

use crate::terminal::output;
use crate::terminal::units;

/// Interval between updates of the text beside the bar.
const REDRAW: Duration = Duration::from_millis(100);

/// Draws a bar and counts warnings.
pub struct Progress {
    bar: ProgressBar,
    says: bool,
    counts: Mutex<Shown>,
    warnings: AtomicU64,
}

struct Shown {
    counts: Counts,
    words: Words,
    last: Instant,
}

/// Text beside the bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// `12 MiB new, 3 GiB unchanged, 1 GiB zero`.
    Backup,
    /// None.
    Plain,
}

impl Progress {
    /// Starts a bar of `total` bytes. It is hidden with `quiet`, or if standard error is not a terminal.
    pub fn new(quiet: bool, total: u64, words: Words) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(
            "{prefix}{percent:>3}% {bar:24} {binary_bytes}/{binary_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {msg}",
        );
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            says: false,
            counts: Mutex::new(Shown {
                counts: Counts::default(),
                words,
                last: Instant::now(),
            }),
            warnings: AtomicU64::new(0),
        }
    }

    /// Starts a count of bytes whose total is not known.
    pub fn counting(quiet: bool) -> Self {
        let progress = Self::new(quiet, 0, Words::Plain);
        progress.bar.unset_length();
        let style = ProgressStyle::with_template("{spinner} {binary_bytes}  {decimal_bytes_per_sec}  {wide_msg}");
        progress
            .bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        progress
    }

    /// Adds to the position.
    pub fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Sets the position, for work that is not counted by events.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Hides the bar while `print` prints.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Prints a note of the engine.
    fn note(&self, text: &str) {
        self.bar.suspend(|| match self.says {
            true => output::line(text),
            false => tracing::info!("{text}"),
        });
    }

    /// Sends notes of the engine to standard output instead of the log.
    pub fn saying(mut self, says: bool) -> Self {
        self.says = says;
        self
    }

    /// Returns the number of warnings.
    pub fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Relaxed)
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Disk { name, size_bytes } => {
                self.bar.set_prefix(format!("{name} "));
                tracing::info!("reading {name}, {}", units::size(size_bytes));
            }
            Event::Done(counts) => {
                self.bar.inc(counts.done_bytes());
                let mut shown = self.counts.lock();
                shown.counts += counts;
                if shown.words == Words::Backup && shown.last.elapsed() >= REDRAW {
                    shown.last = Instant::now();
                    let Counts {
                        new_bytes,
                        unchanged_bytes,
                        zero_bytes,
                        ..
                    } = shown.counts;
                    let size = units::size;
                    self.bar.set_message(format!(
                        "{} new, {} unchanged, {} zero",
                        size(new_bytes),
                        size(unchanged_bytes),
                        size(zero_bytes)
                    ));
                }
            }
            // The first two are followed by a warning for people.
            Event::HintsWrong { .. } | Event::Peak { .. } | Event::DisksRead | Event::DisksNeeded => {}
            Event::Note(text) => self.note(text),
            Event::Warning(text) => {
                self.warnings.fetch_add(1, Ordering::Relaxed);
                self.bar.suspend(|| tracing::warn!("{text}"));
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
