//! Decides which backups of a guest a policy forgets. Pure: the time and the zone are passed in, nothing is removed here.
//!
//! Every rule walks from the newest backup to the oldest and keeps the newest one of each calendar period until its count
//! is used up. Rules know nothing of each other: a backup is kept if any rule keeps it, so a larger count never forgets
//! more. What no rule may do:
//!
//! 1. A protected backup is kept, and takes its turn in the rules as any other: protecting one changes nothing else.
//! 2. A damaged backup never pushes a good one out. It is kept in its turn but not counted, and its period stays open for
//!    a good one.
//! 3. A backup from the future, made when the clock was wrong, is kept and not counted, or one wrong year on the clock
//!    would use up every rule.
//! 4. The good backup that was made last is kept; where none is good, the one that was made last.
//! 5. No backup goes before one that was made earlier and has a later time: one of the two times is wrong, and if it is that
//!    of the backup that was made later, it is not as old as it says. So one that a slow clock dates back stays at least as
//!    long as a rule keeps such a one, and is not counted for that.
//! 6. A policy without rules forgets nothing.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use vbk_repo::name::BackupTime;

/// How many backups to keep, by rule. 0 is a rule that is not used; the default uses none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepPolicy {
    /// The newest backups, whenever they were made.
    pub last: u32,
    /// Hours that have a backup. The hour that a change of clocks repeats counts twice.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// ISO 8601 weeks, Monday to Sunday.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// All backups that are not older than this.
    pub within: Option<Age>,
}

impl KeepPolicy {
    /// Whether there is no rule. Such a policy forgets nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn rules(&self) -> [(Rule, u32); 6] {
        [
            (Rule::Last, self.last),
            (Rule::Hourly, self.hourly),
            (Rule::Daily, self.daily),
            (Rule::Weekly, self.weekly),
            (Rule::Monthly, self.monthly),
            (Rule::Yearly, self.yearly),
        ]
    }
}

/// What a decision needs to know of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// When it was made, by the clock of then. No two backups of a guest have the same time.
    pub time: BackupTime,
    /// The order in which backups were made, where known: see [`vbk_repo::backup::Backup::order`].
    pub sequence: u64,
    /// Whether somebody protected it.
    pub protected: bool,
    /// Whether all of it can be restored, as far as is known.
    pub good: bool,
}

impl Candidate {
    fn order(&self) -> (u64, BackupTime) {
        (self.sequence, self.time)
    }
}

/// What becomes of a backup, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it stays.
    pub keep: bool,
    /// Of a kept one: everything that keeps it. Of a forgotten one: why each rule let it go. Never empty.
    pub reasons: Vec<Reason>,
}

/// A rule that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The newest ones.
    Last,
    /// One an hour.
    Hourly,
    /// One a day.
    Daily,
    /// One a week.
    Weekly,
    /// One a month.
    Monthly,
    /// One a year.
    Yearly,
}

impl Rule {
    /// The name of the period that a time is in; two times are in one period if it has the same name.
    fn period(self, at: &Zoned) -> String {
        let format = match self {
            Self::Last => "%Y-%m-%d %H:%M:%S%:z",
            Self::Hourly => "%Y-%m-%d %H:00%:z",
            Self::Daily => "%Y-%m-%d",
            Self::Weekly => "%G-W%V",
            Self::Monthly => "%Y-%m",
            Self::Yearly => "%Y",
        };
        at.strftime(format).to_string()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// Why a backup is kept or forgotten. `Display` writes it for people, as in `daily 2026-11-20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Kept: somebody protected it.
    Protected,
    /// Kept: its time is later than now.
    Future,
    /// Kept: the policy has no rule.
    NoRule,
    /// Kept: the newest good one of a period.
    Counted {
        /// The rule that keeps it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
        /// Which of the rule's this one is, from 1 on.
        place: u32,
        /// How many the rule keeps.
        of: u32,
    },
    /// Kept: the newest one of a period, and damaged, so that the rule goes on looking.
    Uncounted {
        /// The rule that keeps it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
    },
    /// Kept: not older than this.
    Within(Age),
    /// Kept, and by nothing else: it was made after one that a rule keeps and that has a later time.
    MadeAfterKept,
    /// Kept, and by nothing else: the newest good backup.
    LastGood,
    /// Kept, and by nothing else: the newest backup, and none is good.
    LastOfNoneGood,
    /// Forgotten: its period has a newer one.
    NotNewest {
        /// The rule that does not keep it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
    },
    /// Forgotten: newer ones used the rule up.
    UsedUp {
        /// The rule that does not keep it.
        rule: Rule,
        /// How many the rule keeps.
        of: u32,
    },
    /// Forgotten: older than this.
    OlderThan(Age),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protected => f.write_str("protected"),
            Self::Future => f.write_str("in the future"),
            Self::NoRule => f.write_str("no rule given, nothing is forgotten"),
            Self::Counted {
                rule: Rule::Last,
                place,
                of,
                ..
            } => write!(f, "last {place} of {of}"),
            Self::Counted { rule, period, .. } => write!(f, "{rule} {period}"),
            Self::Uncounted { rule: Rule::Last, .. } => f.write_str("last, damaged and not counted"),
            Self::Uncounted { rule, period } => write!(f, "{rule} {period}, damaged and not counted"),
            Self::Within(age) => write!(f, "within {age}"),
            Self::MadeAfterKept => f.write_str("made after one that is kept and has a later time"),
            Self::LastGood => f.write_str("last good one"),
            Self::LastOfNoneGood => f.write_str("last one, none is good"),
            Self::NotNewest { rule, period } => write!(f, "a newer one is {rule} {period}"),
            Self::UsedUp { rule, of } => write!(f, "{rule} {of} used up"),
            Self::OlderThan(age) => write!(f, "older than {age}"),
        }
    }
}

/// Decides for the backups of one guest, given in any order; the answers are in the same order.
///
/// Periods are those of the calendar in `zone`. Applied to what it kept, with the same `now`, it forgets nothing more.
pub fn decide(backups: &[Candidate], policy: &KeepPolicy, now: Timestamp, zone: &TimeZone) -> Vec<Decision> {
    let mut notes = vec![Notes::default(); backups.len()];
    let mut past = Vec::new();
    for (index, backup) in backups.iter().enumerate() {
        if backup.protected {
            notes[index].keep.push(Reason::Protected);
        }
        if backup.time.timestamp() > now {
            notes[index].keep.push(Reason::Future);
        } else {
            past.push(index);
        }
        if policy.is_empty() {
            notes[index].keep.push(Reason::NoRule);
        }
    }
    past.sort_by_key(|&index| Reverse((backups[index].time, backups[index].good)));
    let mut made = past.clone();
    made.sort_by_key(|&index| Reverse((backups[index].order(), backups[index].good)));
    for (rule, count) in policy.rules() {
        // What is last is what was made last. Periods are those of the calendar, and have only the times.
        let from_newest = if rule == Rule::Last { &made } else { &past };
        count_down(rule, count, backups, from_newest, zone, &mut notes);
    }
    if let Some(age) = policy.within {
        let oldest = age.before(&now.to_zoned(zone.clone()));
        for &index in &past {
            if backups[index].time.timestamp() >= oldest {
                notes[index].keep.push(Reason::Within(age));
            } else {
                notes[index].forget.push(Reason::OlderThan(age));
            }
        }
    }
    let newest_good = made.iter().find(|&&index| backups[index].good);
    let newest = newest_good.or(made.first()).copied();
    if let Some(index) = newest
        && notes[index].keep.is_empty()
    {
        let good = backups[index].good;
        let reason = if good { Reason::LastGood } else { Reason::LastOfNoneGood };
        notes[index].keep.push(reason);
    }
    keep_made_after(backups, &made, newest, &mut notes);
    notes.into_iter().map(Notes::decide).collect()
}

/// Keeps what was made after a backup that a rule keeps and that has a later time. `made` lists backups from the one that was
/// made last to the first, `newest` is kept in any case. One that is kept only because it is protected, or from the future,
/// keeps no other: it may stay for years.
fn keep_made_after(backups: &[Candidate], made: &[usize], newest: Option<usize>, notes: &mut [Notes]) {
    let mut latest_kept = None;
    for &index in made.iter().rev() {
        let time = backups[index].time;
        if notes[index].is_kept_by_rule() || newest == Some(index) {
            latest_kept = latest_kept.max(Some(time));
        }
        if notes[index].keep.is_empty() && latest_kept > Some(time) {
            notes[index].keep.push(Reason::MadeAfterKept);
        }
    }
}

/// What was found for and against a backup.
#[derive(Debug, Clone, Default)]
struct Notes {
    keep: Vec<Reason>,
    forget: Vec<Reason>,
}

impl Notes {
    fn is_kept_by_rule(&self) -> bool {
        let by_rule = |reason: &Reason| !matches!(reason, Reason::Protected | Reason::Future | Reason::NoRule);
        self.keep.iter().any(by_rule)
    }

    fn decide(self) -> Decision {
        let keep = !self.keep.is_empty();
        let reasons = if keep { self.keep } else { self.forget };
        Decision { keep, reasons }
    }
}

/// Applies one rule to backups that are listed from the newest to the oldest.
fn count_down(rule: Rule, of: u32, backups: &[Candidate], from_newest: &[usize], zone: &TimeZone, notes: &mut [Notes]) {
    if of == 0 {
        return;
    }
    // Sets, and not just the period before: where clocks go back at 00:01, as they did in Newfoundland, a day ends,
    // begins and ends again.
    let (mut counted, mut uncounted) = (HashSet::new(), HashSet::new());
    let mut place = 0;
    for &index in from_newest {
        let backup = &backups[index];
        let period = rule.period(&backup.time.timestamp().to_zoned(zone.clone()));
        let note = &mut notes[index];
        if counted.contains(&period) {
            note.forget.push(Reason::NotNewest { rule, period });
        } else if place == of {
            note.forget.push(Reason::UsedUp { rule, of });
        } else if backup.good {
            place += 1;
            counted.insert(period.clone());
            let reason = Reason::Counted {
                rule,
                period,
                place,
                of,
            };
            note.keep.push(reason);
        } else if uncounted.insert(period.clone()) {
            note.keep.push(Reason::Uncounted { rule, period });
        } else {
            note.forget.push(Reason::NotNewest { rule, period });
        }
    }
}

/// A length of time as people type it: `14d`, `2w`, `6m`, `1y`, `48h`, or several as in `1y6m`; `m` is months.
///
/// Everything but hours is counted by the calendar: a day is what leads to the same time of the day before, be it 23
/// hours or 25, and a month before March 31 is the last of February.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age([u32; UNITS.len()]);

/// The letter and the name of each number in an [`Age`].
const UNITS: [(char, &str); 5] = [
    ('y', "years"),
    ('m', "months"),
    ('w', "weeks"),
    ('d', "days"),
    ('h', "hours"),
];

impl Age {
    /// The point in time that lies this long before `now`; the first there is if it lies before that.
    pub fn before(&self, now: &Zoned) -> Timestamp {
        let [years, months, weeks, days, hours] = self.0;
        let span = || {
            Span::new()
                .try_years(years)?
                .try_months(months)?
                .try_weeks(weeks)?
                .try_days(days)?
                .try_hours(hours)
        };
        let before = span().and_then(|span| now.checked_sub(span));
        before.map_or(Timestamp::MIN, |zoned| zoned.timestamp())
    }

    /// Reads numbers that are each followed by a unit, which `unit_of` finds in [`UNITS`] by what was written.
    fn parse(text: &str, unit_of: impl Fn(&str) -> Option<usize>) -> Option<Self> {
        let mut numbers = [0; UNITS.len()];
        let mut rest = text;
        while !rest.is_empty() {
            let (digits, behind) = split(rest, |c| c.is_ascii_digit());
            let (word, behind) = split(behind, |c| !c.is_ascii_digit());
            let unit = unit_of(word)?;
            let number = digits.parse::<u32>().ok().filter(|&number| number > 0)?;
            if std::mem::replace(&mut numbers[unit], number) > 0 {
                return None;
            }
            rest = behind;
        }
        (!text.is_empty()).then_some(Self(numbers))
    }

    /// What somebody meant who wrote `14`, `14 days`, `2 Weeks` or `1 year, 6 months`.
    fn guess(text: &str) -> Option<Self> {
        let days = format!("{text}d");
        let text = if text.parse::<u32>().is_ok() { &days } else { text };
        Self::parse(text.trim(), |word| {
            let word = word.replace([' ', ','], "").to_ascii_lowercase();
            // "min" begins no name, so minutes are not taken for months.
            let begins = |(_, name): &(char, &str)| !word.is_empty() && name.starts_with(&word);
            UNITS.iter().position(begins)
        })
    }
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

impl FromStr for Age {
    type Err = BadAge;

    fn from_str(text: &str) -> Result<Self, BadAge> {
        let letter = |word: &str| UNITS.iter().position(|(letter, _)| word.chars().eq([*letter]));
        Self::parse(text, letter).ok_or_else(|| BadAge {
            given: text.to_owned(),
            meant: Self::guess(text),
        })
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.0.iter().zip(UNITS).filter(|(number, _)| **number > 0);
        let text: String = numbers
            .map(|(number, (letter, _))| format!("{number}{letter}"))
            .collect();
        f.pad(&text)
    }
}

/// A length of time was written in a way that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a length of time; {}", hint(*meant))]
pub struct BadAge {
    /// What was given.
    pub given: String,
    /// What was probably meant.
    pub meant: Option<Age>,
}

fn hint(meant: Option<Age>) -> String {
    match meant {
        Some(age) => format!("nearest: {age}"),
        None => "write hours, days, weeks, months or years as 48h, 14d, 2w, 6m, 1y or 1y6m".to_owned(),
    }
}

#[cfg(test)]
mod tests;
