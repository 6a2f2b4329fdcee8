//! Tests of renaming a guest.

use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::block::BlockSize;
use crate::repository::{CreateOptions, Repository};
use crate::state::State;
use crate::store::Note;
use crate::tests::testing::{backup, mixed_bytes, store_image};

const TIMES: [&str; 3] = ["2026-11-20T00-00-00Z", "2026-11-22T00-00-00Z", "2026-11-21T00-00-00Z"];

/// A repository with a guest whose last backup is older than the one before.
fn repository() -> (TempDir, Repository) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = CreateOptions::plain(BlockSize::MIN);
    let repository = Repository::create(&directory.path().join("repo"), &options).expect("creates");
    let manager = manager(&repository);
    for (seed, time) in (1..).zip(TIMES) {
        let image = store_image(manager.store(), "vda", &mixed_bytes(seed, 100_000));
        let committed = manager.writer().commit(backup("web1", time, vec![image]));
        assert!(committed.expect("commits").unpublished.is_none());
    }
    let protected = State {
        protected: true,
        proven: Some(Timestamp::UNIX_EPOCH),
        ..State::default()
    };
    let name = format!("web1@{}", TIMES[0]);
    manager.amend(&[], &[note_of(&name, protected)]).expect("notes");
    drop(manager);
    (directory, repository)
}

fn manager(repository: &Repository) -> Manager {
    repository.manager("test", &mut |_| true).expect("opens")
}

fn name(text: &str) -> GuestName {
    text.parse().expect("a name")
}

fn rename(manager: &Manager, new: &str) -> Result<Renamed> {
    manager.rename(&name("web1"), &name(new), &AtomicBool::new(false))
}

/// Returns the backups as a reader sees them: names, images and sequences.
fn seen(repository: &Repository) -> Vec<(String, Backup)> {
    let catalogue = repository.view().and_then(|view| view.catalogue()).expect("loads");
    assert!(catalogue.damaged().is_empty());
    let entries = catalogue.entries().iter();
    entries
        .map(|entry| (entry.backup.spec(), Backup::clone(&entry.backup)))
        .collect()
}

#[track_caller]
fn assert_renamed(repository: &Repository, before: &[(String, Backup)]) {
    let wanted: Vec<_> = before
        .iter()
        .map(|(_, backup)| with_name(backup, &name("web2")))
        .map(|backup| (backup.spec(), backup))
        .collect();
    assert_eq!(seen(repository), wanted);
    let states = repository.view().and_then(|view| view.states()).expect("loads");
    let state = states.noted(&format!("web2@{}", TIMES[0]));
    assert_eq!((state.protected, state.proven), (true, Some(Timestamp::UNIX_EPOCH)));
    for time in TIMES {
        assert_eq!(states.noted(&format!("web1@{time}")), State::default());
    }
}

#[test]
fn a_renamed_guest_keeps_content_order_and_notes() {
    let (_directory, repository) = repository();
    let before = seen(&repository);
    let manager = manager(&repository);
    let names = TIMES.map(|time| format!("web2@{time}"));
    assert_eq!(
        rename(&manager, "web2").expect("renames"),
        Renamed::Done(names.to_vec())
    );
    assert_renamed(&repository, &before);
    assert!(matches!(rename(&manager, "web2"), Err(Error::NoSuchGuest { .. })));
    let latest = manager
        .catalogue()
        .expect("loads")
        .latest(&name("web2"))
        .expect("is there")
        .backup
        .time;
    assert_eq!(latest.to_string(), TIMES[2]);
}

#[test]
fn a_rename_that_was_interrupted_anywhere_continues() {
    for recorded in 0..=TIMES.len() {
        let (_directory, repository) = repository();
        let before = seen(&repository);
        let manager = manager(&repository);
        let (catalogue, states) = (manager.catalogue().expect("loads"), manager.states().expect("loads"));
        for entry in catalogue.of(&name("web1")).take(recorded) {
            manager
                .record_as(entry, &name("web2"), &catalogue, &states)
                .expect("records");
        }
        // The administrator protects another one in between.
        let also = format!("web1@{}", TIMES[1]);
        let protected = State {
            protected: true,
            ..State::default()
        };
        manager.amend(&[], &[note_of(&also, protected)]).expect("notes");
        assert_eq!(seen(&repository).len(), TIMES.len() + recorded);
        drop(manager);
        let manager = self::manager(&repository);
        assert!(matches!(rename(&manager, "web2"), Ok(Renamed::Done(names)) if names.len() == TIMES.len()));
        assert_renamed(&repository, &before);
        let states = manager.states().expect("loads");
        assert!(states.noted(&format!("web2@{}", TIMES[1])).protected);
    }
}

#[test]
fn a_name_that_another_guest_has_is_refused() {
    let (_directory, repository) = repository();
    let manager = manager(&repository);
    // Of the same time, but another one.
    let image = store_image(manager.store(), "vda", &mixed_bytes(9, 100_000));
    manager
        .writer()
        .commit(backup("web2", TIMES[1], vec![image]))
        .expect("commits");
    let before = seen(&repository);
    let taken = Renamed::Taken(format!("web2@{}", TIMES[1]));
    assert_eq!(rename(&manager, "web2").expect("looks"), taken);
    assert_eq!(rename(&manager, "web1").expect("looks"), Renamed::Done(Vec::new()));
    assert_eq!(seen(&repository), before);
}

#[test]
fn nothing_is_renamed_of_a_guest_with_a_note_that_can_not_be_read() {
    let (_directory, repository) = repository();
    let manager = manager(&repository);
    let bad = Note {
        name: format!("backup/web1@{}", TIMES[1]),
        value: Some(b"{".to_vec()),
    };
    manager.amend(&[], &[bad]).expect("notes");
    let before = seen(&repository);
    assert!(matches!(rename(&manager, "web2"), Err(Error::NoteDamaged { .. })));
    assert_eq!(seen(&repository), before);
}

#[test]
fn a_cancelled_rename_loses_nothing() {
    let (_directory, repository) = repository();
    let manager = manager(&repository);
    let before = seen(&repository);
    let cancelled = manager.rename(&name("web1"), &name("web2"), &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(Error::Interrupted)));
    assert_eq!(seen(&repository), before);
}
