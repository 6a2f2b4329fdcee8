//! The display of a running command: one line on a terminal, and warnings everywhere.
//!
//! The line is made anew whenever it is drawn, for the width that the terminal has then.

mod line;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use parking_lot::Mutex;
use vbk::host::terminal;
use vbk::observer::{Counts, Event, Observer};

use self::line::{Guests, Line, Rate};
use crate::terminal::{output, printable, units};

/// Interval between two drawings, also while nothing happens: the window may be made smaller.
const REDRAW: Duration = Duration::from_millis(200);

/// Draws a line and counts warnings.
pub struct Progress {
    bar: ProgressBar,
    says: bool,
    shown: Arc<Mutex<Shown>>,
    warnings: AtomicU64,
}

/// What the line shows besides the position.
struct Shown {
    disk: String,
    guests: Option<Guests>,
    counts: Counts,
    words: Words,
    /// The end is known.
    has_total: bool,
    started: Instant,
    rate: Rate,
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
    /// Starts a line about `total` bytes. It is hidden with `quiet`, or if standard error is not a terminal.
    pub fn new(quiet: bool, total: u64, words: Words) -> Self {
        Self::start(quiet, Some(total), words)
    }

    /// Starts a count of bytes whose total is not known.
    pub fn counting(quiet: bool) -> Self {
        Self::start(quiet, None, Words::Plain)
    }

    fn start(quiet: bool, total: Option<u64>, words: Words) -> Self {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        let target = match is_shown {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let shown = Arc::new(Mutex::new(Shown {
            disk: String::new(),
            guests: None,
            counts: Counts::default(),
            words,
            has_total: total.is_some(),
            started: Instant::now(),
            rate: Rate::default(),
        }));
        let bar = ProgressBar::with_draw_target(total, target);
        let style = ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let drawn = Arc::clone(&shown);
        let draw = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let columns = terminal::columns(std::io::stderr()).unwrap_or(80);
            let text = drawn.lock().line(state).fit(columns.saturating_sub(1));
            // A drawing that fails has no reader.
            let _ = out.write_str(&text);
        };
        bar.set_style(style.with_key("line", draw));
        if is_shown {
            bar.enable_steady_tick(REDRAW);
        }
        Self {
            bar,
            says: false,
            shown,
            warnings: AtomicU64::new(0),
        }
    }

    /// Shows what the work is about.
    pub fn of(self, what: &str) -> Self {
        self.rename(what);
        self
    }

    /// Shows another object of the work.
    pub fn rename(&self, what: &str) {
        what.clone_into(&mut self.shown.lock().disk);
    }

    /// Shows which of these guests are at work.
    pub fn with_guests(self, all: usize) -> Self {
        self.shown.lock().guests = Some(Guests::new(all));
        self
    }

    /// Work on a guest starts.
    pub fn begin_guest(&self, name: &str) {
        if let Some(guests) = &mut self.shown.lock().guests {
            guests.begin(printable::line(name));
        }
    }

    /// Work on a guest ends.
    pub fn end_guest(&self, name: &str) {
        if let Some(guests) = &mut self.shown.lock().guests {
            guests.end(&printable::line(name));
        }
    }

    /// Adds to the position.
    pub fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.shown.lock().rate.add(bytes);
    }

    /// Sets the position, for work that is not counted by events.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.shown.lock().rate.set(done);
    }

    /// Removes the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Hides the line while `print` prints.
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

impl Shown {
    fn line(&mut self, state: &ProgressState) -> Line {
        let total_bytes = state.len().filter(|_| self.has_total);
        let who = match &self.guests {
            Some(guests) => guests.describe(),
            None => line::Who::Disk(self.disk.clone()),
        };
        Line {
            who,
            done_bytes: state.pos(),
            total_bytes,
            bytes_per_sec: self.rate.per_sec(Instant::now()),
            elapsed: self.started.elapsed(),
            counts: (self.words == Words::Backup).then_some(self.counts),
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Disk { name, size_bytes } => {
                self.shown.lock().disk = printable::line(name);
                tracing::info!("reading {name}, {}", units::size(size_bytes));
            }
            Event::Done(counts) => {
                {
                    let mut shown = self.shown.lock();
                    shown.counts += counts;
                    // Holes and what is skipped cost no time; a limit is about what is read.
                    shown.rate.add(counts.read_bytes);
                }
                // Without the lock: the drawing takes it.
                self.bar.inc(counts.done_bytes());
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
