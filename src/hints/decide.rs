//! Whether a disk may be read by hints at all: asked of the catalogue, before anything is compared.
//!
//! | reading in full is due when | because |
//! |---|---|
//! | the base is not what the guest's latest backup was read from | the slots to take over are that backup's |
//! | that backup is damaged, or was read without a snapshot | its slots would be handed on, or the base is not what was read |
//! | no backup of the last 30 days read all of the disk | what the sample did not find must not stay for ever |
//! | a backup of the last 30 days found hints wrong | what was wrong once may be so again; `--trust-hints` overrides this |
//!
//! Only backups that are listed count: one that was forgotten proves nothing any more.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::name::DiskName;
use vbk_repo::state::States;

/// How old the last full read of a disk may be.
pub const FULL_READ_EVERY: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Several backups in one second get the seconds that follow, so a good clock may be behind by this.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(60);
/// Digits of a backup's id that name it in the tag of a base.
pub const BASE_DIGITS: usize = 32;

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The guest's backups in this repository, oldest first.
    pub entries: &'a [Entry],
    /// What is known of them.
    pub states: &'a States,
    /// The disk.
    pub disk: &'a DiskName,
    /// The first digits of the id of the backup that the base was read for, [`BASE_DIGITS`] or more.
    pub base: &'a str,
    /// The time.
    pub now: Timestamp,
    /// How old the last full read may be: [`FULL_READ_EVERY`].
    pub full_read_every: SignedDuration,
    /// Whether hints are used though they were wrong lately.
    pub trust_hints: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision<'a> {
    /// Compare with the base, which is of this backup.
    Use(&'a Entry),
    /// Read everything.
    Full(Reason),
}

/// Why everything is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no earlier backup of the disk.
    First,
    /// The base belongs to another backup than the guest's latest.
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
            Self::OtherBase => f.write_str("what was kept to compare with is not of the latest backup"),
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
    if question.base.len() < BASE_DIGITS || !latest.id.to_string().starts_with(question.base) {
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
mod tests {
    use super::*;
    use vbk_repo::backup::{Backup, Consistency, RECORD_FORMAT, SnapshotKind};
    use vbk_repo::id::{BackupId, SegmentId};
    use vbk_repo::name::BackupTime;
    use vbk_repo::state::{State, note_of};
    use vbk_repo::store::BlockStore;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn now() -> Timestamp {
        "2026-11-21T03:00:00Z".parse().expect("a time")
    }

    fn disk() -> DiskName {
        "vda".parse().expect("a name")
    }

    /// A backup so many days ago, of which so much was skipped.
    fn entry(days: i64, skipped_bytes: u64, change: impl FnOnce(&mut Image)) -> Entry {
        let mut image = Image {
            disk: disk(),
            source: "/dev/vg0/web1".into(),
            size_bytes: 1 << 30,
            manifest: SegmentId([1; 32]),
            data_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            snapshot: Some(SnapshotKind::Thin),
            snapshot_used_bytes: 0,
            skipped_bytes,
            hints_wrong: false,
        };
        change(&mut image);
        Entry {
            id: BackupId([days.unsigned_abs() as u8; 32]),
            backup: Backup {
                format: RECORD_FORMAT,
                guest: "web1".parse().expect("a name"),
                time: BackupTime::new(now() - DAY * i32::try_from(days).expect("few days")),
                duration_ms: 1000,
                host: "host".into(),
                vbk_version: "0".into(),
                consistency: Consistency::Crash,
                images: vec![image],
                files: Vec::new(),
            },
        }
    }

    fn decide(entries: &[Entry], states: &States, trust_hints: bool) -> Result<BackupId, Reason> {
        let base = entries.last().map_or(String::new(), |entry| entry.id.to_string());
        let question = Question {
            entries,
            states,
            disk: &disk(),
            base: base.get(..BASE_DIGITS).unwrap_or_default(),
            now: now(),
            full_read_every: FULL_READ_EVERY,
            trust_hints,
        };
        match may_skip(&question) {
            Decision::Use(entry) => Ok(entry.id),
            Decision::Full(reason) => Err(reason),
        }
    }

    fn plain(entries: &[Entry]) -> Result<BackupId, Reason> {
        decide(entries, &States::default(), false)
    }

    #[test]
    fn hints_are_used_between_full_reads() {
        assert_eq!(plain(&[]), Err(Reason::First));
        assert_eq!(plain(&[entry(1, 0, |_| {})]), Ok(BackupId([1; 32])));
        assert_eq!(
            plain(&[entry(30, 0, |_| {}), entry(1, 5, |_| {})]),
            Ok(BackupId([1; 32]))
        );
        assert_eq!(plain(&[entry(31, 0, |_| {}), entry(1, 5, |_| {})]), Err(Reason::Due));
        assert_eq!(plain(&[entry(2, 5, |_| {}), entry(1, 5, |_| {})]), Err(Reason::Due));
        let other_disk = entry(1, 0, |image| image.disk = "vdb".parse().expect("a name"));
        assert_eq!(plain(&[entry(2, 0, |_| {}), other_disk]), Err(Reason::First));
    }

    #[test]
    fn a_base_must_be_of_the_latest_backup_and_of_what_was_read() {
        let entries = [entry(2, 0, |_| {}), entry(1, 5, |_| {})];
        let digits = |entry: &Entry, count: usize| entry.id.to_string()[..count].to_owned();
        for (base, wanted) in [
            (digits(&entries[1], 32), Ok(BackupId([1; 32]))),
            (digits(&entries[1], 64), Ok(BackupId([1; 32]))),
            (digits(&entries[1], 31), Err(Reason::OtherBase)),
            (digits(&entries[0], 32), Err(Reason::OtherBase)),
            (String::new(), Err(Reason::OtherBase)),
        ] {
            let question = Question {
                entries: &entries,
                states: &States::default(),
                disk: &disk(),
                base: &base,
                now: now(),
                full_read_every: FULL_READ_EVERY,
                trust_hints: true,
            };
            let found = match may_skip(&question) {
                Decision::Use(entry) => Ok(entry.id),
                Decision::Full(reason) => Err(reason),
            };
            assert_eq!(found, wanted, "{base}");
        }
        assert_eq!(
            plain(&[entry(1, 0, |image| image.snapshot = None)]),
            Err(Reason::NoSnapshot)
        );
    }

    #[test]
    fn hints_that_were_wrong_are_off_for_a_while() {
        let wrong = |days| entry(days, 0, |image| image.hints_wrong = true);
        for (entries, wanted) in [
            (vec![wrong(1)], false),
            (vec![wrong(29), entry(2, 0, |_| {}), entry(1, 5, |_| {})], false),
            (vec![wrong(31), entry(2, 0, |_| {}), entry(1, 5, |_| {})], true),
        ] {
            assert_eq!(plain(&entries).is_ok(), wanted);
            assert!(decide(&entries, &States::default(), true).is_ok());
        }
        assert!(matches!(plain(&[wrong(1)]), Err(Reason::Wrong(_))));
    }

    #[test]
    fn a_damaged_backup_hands_nothing_on() {
        let entries = [entry(2, 0, |_| {}), entry(1, 5, |_| {})];
        let store = vbk_repo::store::memory::MemoryStore::new(vbk_repo::block::BlockSize::DEFAULT);
        let damaged = State {
            damaged: Some(now()),
            ..State::default()
        };
        let note = |entry: &Entry| note_of(&entry.backup.spec(), damaged);
        store.amend(&[], &[note(&entries[0])]).expect("notes");
        let states = States::load(&store).expect("loads");
        assert!(
            decide(&entries, &states, false).is_ok(),
            "an earlier one does not matter"
        );
        store.amend(&[], &[note(&entries[1])]).expect("notes");
        let states = States::load(&store).expect("loads");
        assert_eq!(decide(&entries, &states, true), Err(Reason::Damaged));
    }

    #[test]
    fn backups_of_the_future_mean_reading_everything() {
        assert_eq!(plain(&[entry(-1, 0, |_| {})]), Err(Reason::Clock));
        assert_eq!(plain(&[entry(1, 0, |_| {}), entry(-1, 5, |_| {})]), Err(Reason::Clock));
    }
}
