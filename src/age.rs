//! Lengths of time as people type them: one grammar for ages, time limits and intervals, on the command line and in the
//! configuration.
//!
//! | unit | words |
//! |---|---|
//! | second | `s`, `sec`, `second` |
//! | minute | `min`, `minute` |
//! | hour | `h`, `hr`, `hour` |
//! | day | `d`, `day` |
//! | week | `w`, `wk`, `week` |
//! | month | `mo`, `month` |
//! | year | `y`, `yr`, `year` |
//!
//! All of them also in the plural, in any case, and with spaces: `6hours`, `7 days`, `1h 30min`. The largest unit comes
//! first. `m` is months to restic and borg and minutes to systemd and cron, so it is taken only where its neighbours
//! decide: months in `1y6m` and `1m2w`, minutes in `1h30m` and `5m30s`. A time limit is never meant in months.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, Timestamp, Zoned};
use serde::{Serialize, Serializer};

/// A length of time, e.g. `14d` or `1y6mo`.
///
/// Days and all larger units follow the calendar: a day leads to the same time on the previous day, be it 23 hours or 25,
/// and a month before March 31 is the last day of February.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age([u32; UNITS.len()]);

/// A unit: its short name, its words without the plural's `s`, and its seconds where no calendar decides.
struct Unit(&'static str, &'static [&'static str], u64);

/// The units, the largest first.
const UNITS: [Unit; 7] = [
    Unit("y", &["yr", "year"], 365 * DAY_SECS),
    Unit("mo", &["mo", "month"], 30 * DAY_SECS),
    Unit("w", &["wk", "week"], 7 * DAY_SECS),
    Unit("d", &["day"], DAY_SECS),
    Unit("h", &["hr", "hour"], 3600),
    Unit("min", &["min", "minute"], 60),
    Unit("s", &["sec", "second"], 1),
];
const DAY_SECS: u64 = 24 * 3600;
const YEAR: usize = 0;
const MONTH: usize = 1;
const WEEK: usize = 2;
const DAY: usize = 3;
const MINUTE: usize = 5;
const SECOND: usize = 6;

/// Meaning of an `m` that stands alone.
#[derive(Clone, Copy)]
enum LoneM {
    Minutes,
    Refused,
}

impl Age {
    /// Parses a time limit or a delay: as [`Age::from_str`], and `90m` is 90 minutes, for nobody limits a run to months.
    pub fn parse_limit(text: &str) -> Result<Self, BadAge> {
        Self::parse(text, LoneM::Minutes)
    }

    /// Returns the point in time this long before `now`; the earliest representable one if it lies before that.
    pub fn before(&self, now: &Zoned) -> Timestamp {
        let [years, months, weeks, days, hours, minutes, seconds] = self.0;
        let span = || {
            Span::new()
                .try_years(years)?
                .try_months(months)?
                .try_weeks(weeks)?
                .try_days(days)?
                .try_hours(hours)?
                .try_minutes(minutes)?
                .try_seconds(seconds)
        };
        let before = span().and_then(|span| now.checked_sub(span));
        before.map_or(Timestamp::MIN, |zoned| zoned.timestamp())
    }

    /// Returns the length without a calendar: a month has 30 days, and a year 365.
    pub fn duration(&self) -> Duration {
        let parts = self.0.iter().zip(UNITS);
        Duration::from_secs(parts.map(|(number, unit)| u64::from(*number) * unit.2).sum())
    }

    fn parse(text: &str, lone_m: LoneM) -> Result<Self, BadAge> {
        let bad = |why| BadAge {
            given: text.to_owned(),
            why,
        };
        let parts = split(text).ok_or_else(|| bad(Why::NoAge))?;
        let mut numbers = [0; UNITS.len()];
        let mut last = None;
        for (at, (number, word)) in parts.iter().enumerate() {
            let next = parts.get(at + 1).and_then(|(_, word)| unit_of(word));
            let unit = match (unit_of(word), last, next) {
                (Some(unit), ..) => unit,
                (None, ..) if word.is_empty() => return Err(bad(Why::NoUnit)),
                (None, ..) if word != "m" => return Err(bad(Why::NoAge)),
                (None, Some(YEAR), _) => MONTH,
                (None, Some(_), _) | (None, None, Some(SECOND)) => MINUTE,
                (None, None, Some(WEEK | DAY)) => MONTH,
                (None, None, _) => match lone_m {
                    LoneM::Minutes => MINUTE,
                    LoneM::Refused if parts.len() == 1 => return Err(bad(Why::LoneM(*number))),
                    LoneM::Refused => return Err(bad(Why::NoAge)),
                },
            };
            // The largest unit first, and each only once.
            if last.replace(unit).is_some_and(|last| last >= unit) {
                return Err(bad(Why::NoAge));
            }
            numbers[unit] = *number;
        }
        match numbers.iter().any(|number| *number > 0) {
            true => Ok(Self(numbers)),
            false => Err(bad(Why::NoAge)),
        }
    }
}

/// Splits a text into numbers, each with the word that follows it, in lower case.
fn split(text: &str) -> Option<Vec<(u32, String)>> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (digits, after) = cut(rest, |c| c.is_ascii_digit());
        let (word, after) = cut(after.trim_start(), |c| c.is_ascii_alphabetic());
        parts.push((digits.parse().ok()?, word.to_ascii_lowercase()));
        rest = after.trim_start_matches([' ', ',']);
    }
    (!parts.is_empty()).then_some(parts)
}

fn cut(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

/// Returns the index of a unit in [`UNITS`].
fn unit_of(word: &str) -> Option<usize> {
    let singular = word.strip_suffix('s').unwrap_or(word);
    UNITS
        .iter()
        .position(|Unit(short, words, _)| *short == word || words.contains(&word) || words.contains(&singular))
}

impl FromStr for Age {
    type Err = BadAge;

    fn from_str(text: &str) -> Result<Self, BadAge> {
        Self::parse(text, LoneM::Refused)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.0.iter().zip(UNITS).filter(|(number, _)| **number > 0);
        let text: String = numbers.map(|(number, unit)| format!("{number}{}", unit.0)).collect();
        f.pad(&text)
    }
}

/// The text that [`Age::from_str`] reads.
impl Serialize for Age {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadAge {
    given: String,
    why: Why,
}

impl BadAge {
    /// Returns whether it could be months or minutes.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self.why, Why::LoneM(_))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Why {
    NoUnit,
    /// An `m` that could be months or minutes, after this number.
    LoneM(u32),
    NoAge,
}

impl fmt::Display for BadAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = &self.given;
        match self.why {
            Why::NoUnit => write!(f, "{given:?} has no unit; write e.g. 90min, 6h, 14d, 2w, 6mo or 1y"),
            Why::LoneM(number) => write!(
                f,
                "{given:?} could be months or minutes; write {number}mo or {number}min"
            ),
            Why::NoAge => write!(
                f,
                "{given:?} is not a length of time; write e.g. 90min, 6h, 14d, 2w, 6mo, 1y or 1h30min"
            ),
        }
    }
}

impl std::error::Error for BadAge {}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn age(text: &str) -> Age {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn ages_are_parsed_as_people_write_them() {
        for (text, shown) in [
            ("14d", "14d"),
            ("14D", "14d"),
            (" 14d", "14d"),
            ("007d", "7d"),
            ("7 days", "7d"),
            ("6hours", "6h"),
            ("6 h", "6h"),
            ("90min", "90min"),
            ("30 secs", "30s"),
            ("2 Weeks", "2w"),
            ("6mo", "6mo"),
            ("6 months", "6mo"),
            ("1 year, 6 months", "1y6mo"),
            ("2y3mo1w4d12h5min6s", "2y3mo1w4d12h5min6s"),
            ("0h5s", "5s"),
        ] {
            assert_eq!(age(text).to_string(), shown, "{text}");
            assert_eq!(age(shown), age(text), "{text}");
            assert_eq!(Age::parse_limit(text), Ok(age(text)), "{text}");
        }
    }

    #[test]
    fn an_m_is_taken_where_its_neighbours_decide() {
        for (text, shown) in [
            ("1y6m", "1y6mo"),
            ("1y5m7d2h", "1y5mo7d2h"),
            ("1m2w", "1mo2w"),
            ("1h30m", "1h30min"),
            ("2d30M", "2d30min"),
            ("5m30s", "5min30s"),
        ] {
            assert_eq!(age(text).to_string(), shown, "{text}");
        }
        for text in ["90m", "6m", "1M"] {
            let number = &text[..text.len() - 1];
            let error = text.parse::<Age>().expect_err(text).to_string();
            let both = format!("could be months or minutes; write {number}mo or {number}min");
            assert!(error.contains(&both), "{error}");
            assert_eq!(Age::parse_limit(text), Ok(age(&format!("{number}min"))), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_an_age_is_refused_with_examples() {
        for text in ["14", "1h30", "0"] {
            let error = text.parse::<Age>().expect_err(text).to_string();
            assert!(error.contains("has no unit; write e.g. 90min, 6h, 14d"), "{error}");
        }
        for text in [
            "",
            " ",
            "d",
            "0d",
            "1d1d",
            "1h1d",
            "30m1h",
            "2m30m",
            "-1d",
            "+1d",
            "1.5d",
            "30ms",
            "forever",
            "d14",
            "5000000000d",
            "1\u{e4}",
            "5\u{b5}",
        ] {
            for error in [
                text.parse::<Age>().expect_err(text),
                Age::parse_limit(text).expect_err(text),
            ] {
                let error = error.to_string();
                assert!(error.contains("14d, 2w, 6mo, 1y or 1h30min"), "{error}");
            }
        }
    }

    #[test]
    fn a_length_without_a_calendar_has_months_of_30_days() {
        assert_eq!(age("1h30min5s").duration(), Duration::from_secs(5405));
        assert_eq!(age("1y1mo").duration(), Duration::from_secs(395 * DAY_SECS));
        assert_eq!(
            age("4294967295y").duration().as_secs(),
            u64::from(u32::MAX) * 365 * DAY_SECS
        );
    }

    #[test]
    fn minutes_and_seconds_are_counted_back() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
        let before = age("1d1h1min1s").before(&now.to_zoned(TimeZone::UTC));
        assert_eq!(before.to_string(), "2026-11-20T10:58:59Z");
        assert_eq!(age("99999y").before(&now.to_zoned(TimeZone::UTC)), Timestamp::MIN);
    }
}
