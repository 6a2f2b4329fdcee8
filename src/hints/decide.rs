//! Decides from the catalogue whether a disk may be read by hints at all, before anything is compared.
//!
//! | reading in full is due when | because |
//! |---|---|
//! | the base is not what this disk of the guest's latest backup was read from | the slots to take over are those of that disk |
//! | that backup is damaged, or was read without a snapshot | its slots would be handed on, or the base is not what was read |
//! | no backup of the last 30 days read all of the disk | what the sample did not find must not stay for ever |
//! | a backup of the last 30 days found hints wrong | what was wrong once may be so again; `--trust-hints` overrides this |
//!
//! Only backups that are listed count: one that was forgotten proves nothing any more.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::catalogue::CLOCK_SLACK;
use vbk_repo::name::DiskName;
use vbk_repo::state::States;

use crate::snapshot::names::base_name;

/// Highest age of the last full read of a disk.
pub const FULL_READ_EVERY: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A disk, its base, and all that decides whether its hints may be used.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The guest's backups in this repository, oldest first.
    pub entries: &'a [Entry],
    /// States of these backups.
    pub states: &'a States,
    /// The disk.
    pub disk: &'a DiskName,
    /// Name of the base: see `snapshot::names::base_name`.
    pub base: &'a str,
    /// The time.
    pub now: Timestamp,
    /// Highest age of the last full read: [`FULL_READ_EVERY`].
    pub full_read_every: SignedDuration,
    /// Use hints although they were wrong lately.
    pub trust_hints: bool,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision<'a> {
    /// Compare with the base, which is of this backup.
    Use(&'a Entry),
    /// Read everything.
    Full(Reason),
}

/// Reason for which everything is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The disk has no earlier backup.
    First,
    /// The base belongs to another backup than the guest's latest, or to another disk of it.
    OtherBase,
    /// The latest backup was read without a snapshot.
    NoSnapshot,
    /// The latest backup is damaged.
    Damaged,
    /// The last full read is too long ago, or its backup is not listed any more.
    Due,
    /// Hints were wrong at that time.
    Wrong(Timestamp),
    /// The clock is behind a backup.
    Clock,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("there is no earlier backup of it"),
            Self::OtherBase => f.write_str("the base was not kept for this disk in the latest backup"),
            Self::NoSnapshot => f.write_str("the latest backup was made without a snapshot"),
            Self::Damaged => f.write_str("the latest backup is damaged"),
            Self::Due => f.write_str("the last full read is too long ago"),
            Self::Wrong(when) => write!(
                f,
                "change hints were found wrong at {when}; --trust-hints uses them again"
            ),
            Self::Clock => f.write_str("the clock is behind the latest backup"),
        }
    }
}

/// Decides whether a disk may be read by hints.
pub fn may_skip<'a>(question: &Question<'a>) -> Decision<'a> {
    match reason_for_full(question) {
        Ok(latest) => Decision::Use(latest),
        Err(reason) => Decision::Full(reason),
    }
}

fn reason_for_full<'a>(question: &Question<'a>) -> Result<&'a Entry, Reason> {
    let latest = question.entries.last().ok_or(Reason::First)?;
    let image = image_of(latest, question.disk).ok_or(Reason::First)?;
    if question.base != base_name(&latest.id, question.disk) {
        return Err(Reason::OtherBase);
    }
    if image.snapshot.is_none() {
        return Err(Reason::NoSnapshot);
    }
    let state = question.states.of(&latest.backup);
    if state.damaged.is_some() || question.states.is_unread(&latest.backup.spec()) {
        return Err(Reason::Damaged);
    }
    let read = question.entries.iter().rev().filter_map(|entry| {
        let image = image_of(entry, question.disk)?;
        Some((entry.backup.time.timestamp(), image))
    });
    let age = |time: Timestamp| question.now.duration_since(time);
    let (full, _) = read
        .clone()
        .find(|(_, image)| image.skipped_bytes == 0)
        .ok_or(Reason::Due)?;
    if age(full) < -CLOCK_SLACK || age(latest.backup.time.timestamp()) < -CLOCK_SLACK {
        return Err(Reason::Clock);
    }
    if age(full) > question.full_read_every {
        return Err(Reason::Due);
    }
    let wrong = read.clone().find(|(_, image)| image.hints_wrong);
    match wrong {
        Some((time, _)) if !question.trust_hints && age(time) <= question.full_read_every => Err(Reason::Wrong(time)),
        _ => Ok(latest),
    }
}

fn image_of<'a>(entry: &'a Entry, disk: &DiskName) -> Option<&'a Image> {
    entry.backup.images.iter().find(|image| image.disk == *disk)
}

#[cfg(test)]
mod tests;
