use std::sync::Arc;

use super::*;
use crate::snapshot::names::BASE_DIGITS;
use vbk_repo::backup::{Backup, Consistency, RECORD_FORMAT, SnapshotKind};
use vbk_repo::id::{BackupId, NodeId};
use vbk_repo::name::BackupTime;
use vbk_repo::state::{State, note_of};
use vbk_repo::store::StoreManager;

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
        snapshot: Some(SnapshotKind::Thin),
        skipped_bytes,
        ..Image::new(disk(), "/dev/vg0/web1", 1 << 30, NodeId([1; 32]))
    };
    change(&mut image);
    Entry {
        id: BackupId([days.unsigned_abs() as u8; 32]),
        backup: Arc::new(Backup {
            format: RECORD_FORMAT,
            guest: "web1".parse().expect("a name"),
            time: BackupTime::new(now() - DAY * i32::try_from(days).expect("few days")),
            sequence: 0,
            duration_ms: 1000,
            host: "host".into(),
            vbk_version: "0".into(),
            consistency: Consistency::Crash,
            images: vec![image],
            files: Vec::new(),
        }),
    }
}

fn decide(entries: &[Entry], states: &States, trust_hints: bool) -> Result<BackupId, Reason> {
    let base = entries
        .last()
        .map_or(String::new(), |entry| base_name(&entry.id, &disk()));
    let question = Question {
        entries,
        states,
        disk: &disk(),
        base: &base,
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
    let of = |entry: &Entry, disk: &str| base_name(&entry.id, &disk.parse().expect("a name"));
    assert_eq!(of(&entries[1], "vda").len(), BASE_DIGITS);
    for (base, wanted) in [
        (of(&entries[1], "vda"), Ok(BackupId([1; 32]))),
        (of(&entries[1], "vda")[1..].to_owned(), Err(Reason::OtherBase)),
        (of(&entries[1], "vdb"), Err(Reason::OtherBase)),
        (of(&entries[0], "vda"), Err(Reason::OtherBase)),
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
fn wrong_hints_are_disabled_for_a_while() {
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
fn hints_are_not_used_after_a_damaged_backup() {
    let entries = [entry(2, 0, |_| {}), entry(1, 5, |_| {})];
    let store = vbk_repo::store::memory::MemoryStore::new(vbk_repo::block::BlockSize::DEFAULT);
    let damaged = State {
        damaged: Some(now()),
        ..State::default()
    };
    let note = |entry: &Entry| note_of(&entry.backup.spec(), damaged.clone());
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
fn a_backup_from_the_future_forces_a_full_read() {
    assert_eq!(plain(&[entry(-1, 0, |_| {})]), Err(Reason::Clock));
    assert_eq!(plain(&[entry(1, 0, |_| {}), entry(-1, 5, |_| {})]), Err(Reason::Clock));
}
