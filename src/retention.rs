//! Decides which backups of a guest a policy forgets. Pure: time and time zone are passed in, and nothing is removed
//! here.
//!
//! Every rule walks from the newest backup to the oldest and keeps the newest one of each calendar period until its
//! count is used up. The rules are independent: a backup is kept if any rule keeps it, so a larger count never forgets
//! more. Restrictions on all rules:
//!
//! 1. A protected backup is kept, and takes its turn in the rules like any other: protecting one changes nothing else.
//! 2. A damaged backup never displaces a good one. It is kept in its turn but not counted, and its period stays open
//!    for a good one.
//! 3. A backup from the future, made when the clock was wrong, is kept and not counted: otherwise one wrong year on the
//!    clock would use up every rule.
//! 4. The latest good backup is kept; if none is good, the latest backup.
//! 5. A backup is not forgotten before one that was made earlier and has a later time. One of the two times is wrong;
//!    if it is that of the backup made later, that backup is younger than its time says. So a backup dated back by a
//!    slow clock stays at least as long as a rule keeps one with a later time, and is not counted for that.
//! 6. A policy without rules forgets nothing.

pub mod disks;

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::Serialize;
use vbk_repo::name::BackupTime;

pub use crate::age::Age;

/// Number of backups to keep, by rule. 0 means that a rule is not used; the default uses none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KeepPolicy {
    /// The newest backups, whenever they were made.
    pub last: u32,
    /// Hours with a backup. The hour that a change of clocks repeats counts twice.
    pub hourly: u32,
    /// Days.
    pub daily: u32,
    /// ISO 8601 weeks, Monday to Sunday.
    pub weekly: u32,
    /// Months.
    pub monthly: u32,
    /// Years.
    pub yearly: u32,
    /// Age up to which all backups are kept.
    pub within: Option<Age>,
}

impl KeepPolicy {
    /// Tests that no rule is set. Such a policy forgets nothing.
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

/// The properties of a backup on which a decision depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Time of the backup, by the clock at that time. No two backups of a guest have the same time.
    pub time: BackupTime,
    /// The order in which backups were made, where known: see [`vbk_repo::backup::Backup::order`].
    pub sequence: u64,
    /// True if the administrator protected it.
    pub protected: bool,
    /// True if all of it can be restored, as far as is known.
    pub good: bool,
}

impl Candidate {
    fn order(&self) -> (u64, BackupTime) {
        (self.sequence, self.time)
    }
}

/// Decision for a backup, with its reasons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// True if it is kept.
    pub keep: bool,
    /// For a kept backup, every reason that keeps it; for a forgotten one, each rule's reason for not keeping it. Never
    /// empty.
    pub reasons: Vec<Reason>,
}

/// A rule that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
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
    /// Returns the name of the period that contains a time; two times are in the same period if the names are equal.
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

/// Reason why a backup is kept or forgotten. `Display` writes it for people: `daily 2026-11-20`. As JSON it is an object with the
/// variant's name as `reason` beside its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// Kept: it is protected.
    Protected,
    /// Kept: its time is later than now.
    Future,
    /// Kept: the policy has no rule.
    NoRule,
    /// Kept: it is the newest good one of a period.
    Counted {
        /// The rule that keeps it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
        /// Position among the backups that the rule keeps, from 1 on.
        place: u32,
        /// Number of backups that the rule keeps.
        of: u32,
    },
    /// Kept: it is the newest one of a period but damaged, so the rule continues to look for a good one.
    Uncounted {
        /// The rule that keeps it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
    },
    /// Kept: not older than this.
    Within {
        /// The age.
        age: Age,
    },
    /// Kept, and by nothing else: it was made after a backup that a rule keeps and that has a later time.
    MadeAfterKept,
    /// Kept, and by nothing else: it is the latest good backup.
    LastGood,
    /// Kept, and by nothing else: it is the latest backup, and none is good.
    LastOfNoneGood,
    /// Forgotten: its period has a newer backup.
    NotNewest {
        /// The rule that does not keep it.
        rule: Rule,
        /// The period's name in the time zone.
        period: String,
    },
    /// Forgotten: newer backups used the rule up.
    UsedUp {
        /// The rule that does not keep it.
        rule: Rule,
        /// Number of backups that the rule keeps.
        of: u32,
    },
    /// Forgotten: older than this.
    OlderThan {
        /// The age.
        age: Age,
    },
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
            Self::Within { age } => write!(f, "within {age}"),
            Self::MadeAfterKept => f.write_str("made after one that is kept and has a later time"),
            Self::LastGood => f.write_str("last good one"),
            Self::LastOfNoneGood => f.write_str("last one, none is good"),
            Self::NotNewest { rule, period } => write!(f, "a newer one is {rule} {period}"),
            Self::UsedUp { rule, of } => write!(f, "{rule} {of} used up"),
            Self::OlderThan { age } => write!(f, "older than {age}"),
        }
    }
}

/// Decides for the backups of one guest, given in any order; the decisions are in the same order.
///
/// Periods are those of the calendar in `zone`. Applied to its own result with the same `now`, it forgets nothing more.
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
        // The rule `last` goes by the order of making. Calendar periods have only the times.
        let from_newest = if rule == Rule::Last { &made } else { &past };
        count_down(rule, count, backups, from_newest, zone, &mut notes);
    }
    if let Some(age) = policy.within {
        let oldest = age.before(&now.to_zoned(zone.clone()));
        for &index in &past {
            if backups[index].time.timestamp() >= oldest {
                notes[index].keep.push(Reason::Within { age });
            } else {
                notes[index].forget.push(Reason::OlderThan { age });
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

/// Keeps backups that were made after a backup that a rule keeps and that has a later time. `made` lists backups from
/// the one made last to the first; `newest` is kept in any case. A backup that is kept only because it is protected or
/// from the future keeps no other: it may stay for years.
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

/// Reasons for and against a backup.
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

/// Applies one rule to backups listed from the newest to the oldest.
fn count_down(rule: Rule, of: u32, backups: &[Candidate], from_newest: &[usize], zone: &TimeZone, notes: &mut [Notes]) {
    if of == 0 {
        return;
    }
    // Sets, and not only the previous period: where clocks go back at 00:01, as they did in Newfoundland, a day ends,
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

#[cfg(test)]
mod tests;
