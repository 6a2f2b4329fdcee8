//! The text of the progress line: as much as a width has room for, the most important parts first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use vbk::observer::Counts;

use crate::terminal::units;

/// Time over which the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Interval between two points of that time.
const RATE_STEP: Duration = Duration::from_millis(250);
/// Characters of the bar, without its brackets.
const BAR: usize = 16;
/// Share of the work after which a remaining time is worth showing.
const LEAST_SHARE: f64 = 0.005;

/// Content of the line.
#[derive(Debug, Clone)]
pub struct Line {
    pub who: Who,
    pub done_bytes: u64,
    pub total_bytes: Option<u64>,
    pub bytes_per_sec: Option<u64>,
    pub elapsed: Duration,
    /// For backups.
    pub counts: Option<Counts>,
}

/// Object of the work.
#[derive(Debug, Clone)]
pub enum Who {
    /// A disk; empty if it has no name.
    Disk(String),
    /// Guests at work, as `2 of 4`, and their names.
    Guests(String, Vec<String>),
}

impl Line {
    /// Returns the line with at most `width` characters. Parts that do not fit are left out: what was zero or unchanged, the bar,
    /// names of guests, what is new, sizes.
    pub fn fit(&self, width: usize) -> String {
        for level in 0..=Self::BAREST {
            let text = self.at(level);
            if text.chars().count() <= width {
                return text;
            }
        }
        self.at(Self::BAREST).chars().take(width).collect()
    }

    const BAREST: usize = 8;

    /// Returns the line without as many kinds of parts.
    fn at(&self, level: usize) -> String {
        let mut parts = Vec::new();
        match &self.who {
            Who::Disk(name) if name.is_empty() => {}
            Who::Disk(name) if level < 7 => parts.push(name.clone()),
            Who::Disk(_) => {}
            Who::Guests(count, names) => parts.extend(guests_part(count, names, level)),
        }
        if let Some(share) = self.share() {
            parts.push(format!("{:>3.0}%", (share * 100.0).floor()));
            if level < 3 {
                let filled = (share * BAR as f64) as usize;
                parts.push(format!("[{}{}]", "#".repeat(filled), "-".repeat(BAR - filled)));
            }
        }
        if level < 6 {
            let done = units::size(self.done_bytes);
            parts.push(match self.total_bytes {
                Some(total) => format!("{done} of {}", units::size(total)),
                None => done,
            });
        }
        parts.extend(self.bytes_per_sec.map(units::rate));
        if level < 8 {
            parts.extend(self.left().map(|left| format!("{left} left")));
        }
        if let Some(counts) = &self.counts {
            let words = [
                (counts.new_bytes, "new", 5),
                (counts.unchanged_bytes, "unchanged", 2),
                (counts.zero_bytes, "zero", 1),
            ];
            let words = words.iter().filter(|(_, _, until)| level < *until);
            let words: Vec<_> = words
                .map(|(bytes, word, _)| format!("{} {word}", units::size(*bytes)))
                .collect();
            if !words.is_empty() {
                parts.push(words.join(", "));
            }
        }
        parts.join("  ")
    }

    fn share(&self) -> Option<f64> {
        let total = self.total_bytes.filter(|total| *total > 0)?;
        Some((self.done_bytes as f64 / total as f64).clamp(0.0, 1.0))
    }

    /// Returns the time that is left at the pace of the whole run so far: holes and reads change the pace of a moment, and would
    /// make this jump.
    fn left(&self) -> Option<String> {
        let share = self.share().filter(|share| (LEAST_SHARE..1.0).contains(share))?;
        if self.elapsed < Duration::from_secs(1) {
            return None;
        }
        let left = self.elapsed.as_secs_f64() * (1.0 - share) / share;
        let left = Duration::try_from_secs_f64(left.round().max(1.0)).ok()?;
        Some(match left.as_secs() {
            // A guess has no tenths.
            seconds @ 0..10 => format!("{seconds}s"),
            _ => units::duration(left),
        })
    }
}

/// `2 of 4: db1 web2`, with fewer names from some level on.
fn guests_part(count: &str, names: &[String], level: usize) -> Option<String> {
    let shown = match level {
        0..=3 => names.len(),
        4 => 3,
        5 | 6 => 1,
        7 => 0,
        _ => return None,
    };
    let mut text = names.iter().take(shown).cloned().collect::<Vec<_>>().join(" ");
    if names.len() > shown && shown > 0 {
        text.push_str(&format!(" +{}", names.len() - shown));
    }
    Some(match text.is_empty() {
        true => count.to_owned(),
        false => format!("{count}: {text}"),
    })
}

/// Guests of a run.
#[derive(Debug)]
pub struct Guests {
    all: usize,
    begun: usize,
    at_work: Vec<String>,
}

impl Guests {
    pub fn new(all: usize) -> Self {
        Self {
            all,
            begun: 0,
            at_work: Vec::new(),
        }
    }

    pub fn begin(&mut self, name: String) {
        self.begun += 1;
        self.at_work.push(name);
    }

    pub fn end(&mut self, name: &str) {
        if let Some(place) = self.at_work.iter().position(|other| other == name) {
            self.at_work.remove(place);
        }
    }

    pub fn describe(&self) -> Who {
        Who::Guests(format!("{} of {}", self.begun, self.all), self.at_work.clone())
    }
}

/// Rate of the last seconds.
#[derive(Debug, Default)]
pub struct Rate {
    bytes: u64,
    points: VecDeque<(Instant, u64)>,
}

impl Rate {
    pub fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub fn set(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// Returns the rate; `None` in the first moment.
    pub fn per_sec(&mut self, now: Instant) -> Option<u64> {
        let is_due = self
            .points
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= RATE_STEP);
        if is_due {
            self.points.push_back((now, self.bytes));
        }
        // One point from before the window stays, to measure from.
        while self
            .points
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= RATE_WINDOW)
        {
            self.points.pop_front();
        }
        let (since, before) = *self.points.front()?;
        let elapsed = now.duration_since(since);
        if elapsed < RATE_STEP {
            return None;
        }
        Some((self.bytes.saturating_sub(before) as f64 / elapsed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn line(who: Who) -> Line {
        Line {
            who,
            done_bytes: 136 * GIB,
            total_bytes: Some(400 * GIB),
            bytes_per_sec: Some(118_400_000),
            elapsed: Duration::from_secs(340),
            counts: Some(Counts {
                new_bytes: 12 << 20,
                unchanged_bytes: 100 * GIB,
                zero_bytes: 36 * GIB,
                ..Counts::default()
            }),
        }
    }

    #[test]
    fn the_line_has_all_where_there_is_room() {
        assert_eq!(
            line(Who::Disk("vda".into())).fit(200),
            "vda   34%  [#####-----------]  136 GiB of 400 GiB  118 MB/s  11m00s left  12 MiB new, 100 GiB unchanged, 36 GiB zero"
        );
        let counting = Line {
            total_bytes: None,
            counts: None,
            ..line(Who::Disk(String::new()))
        };
        assert_eq!(counting.fit(200), "136 GiB  118 MB/s");
    }

    #[test]
    fn the_line_never_is_wider_than_the_terminal() {
        let names: Vec<_> = (0..8).map(|number| format!("guest{number}")).collect();
        let all = line(Who::Guests("9 of 1000".into(), names));
        assert!(all.fit(300).starts_with("9 of 1000: guest0 guest1 guest2 guest3 "));
        for width in 0..250 {
            for line in [&all, &line(Who::Disk("vda".into()))] {
                let text = line.fit(width);
                assert!(text.chars().count() <= width, "{width} {text}");
                assert!(width < 10 || text.contains("34%"), "{width} {text}");
                assert!(width < 80 || text.contains("left"), "{width} {text}");
            }
        }
        assert_eq!(
            all.fit(79),
            "9 of 1000: guest0 +7   34%  136 GiB of 400 GiB  118 MB/s  11m00s left"
        );
    }

    #[test]
    fn guests_at_work_are_named_until_they_end() {
        let mut guests = Guests::new(4);
        for name in ["db1", "web1", "web2"] {
            guests.begin(name.into());
        }
        guests.end("web1");
        let Who::Guests(count, names) = guests.describe() else {
            unreachable!("these are guests");
        };
        assert_eq!((count.as_str(), names.join(" ").as_str()), ("3 of 4", "db1 web2"));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rate = Rate::default();
        assert_eq!(rate.per_sec(at(0)), None);
        for second in 1..=20 {
            rate.add(if second <= 5 { 1_000_000 } else { 10_000_000 });
            rate.per_sec(at(second * 1000));
        }
        assert_eq!(rate.per_sec(at(20_000)), Some(10_000_000));
        // Nothing is read: the rate falls.
        assert!(rate.per_sec(at(29_000)).is_some_and(|rate| rate < 3_000_000));
        assert!(rate.per_sec(at(40_000)).is_some_and(|rate| rate < 1_000_000));
    }
}
