use std::fs;

use super::directory::{MARKER, views};
use super::*;
use crate::ErrorKind;
use crate::backup::{Entry, Image};
use crate::catalogue::Catalogue;
use crate::mark::mark;
use crate::standing::Standing;
use crate::state::{State, note_of};
use crate::store::rocks::{RocksStore, path_in};
use crate::store::{Forgotten, PruneOptions, Record, StoreWriter, Terms};
use crate::tests::testing::{self, mixed_bytes, store_image};

fn new() -> (tempfile::TempDir, Repository) {
    new_as(false)
}

fn new_as(encrypted: bool) -> (tempfile::TempDir, Repository) {
    let directory = tempfile::tempdir().expect("a directory");
    let options = CreateOptions {
        encryption: encrypted.then(|| (Keys::generate().expect("keys"), Vec::new())),
        ..CreateOptions::plain(BlockSize::MIN)
    };
    let repository = Repository::create(&directory.path().join("repo"), &options).expect("creates");
    (directory, repository)
}

/// For a lock that is refused. Others are waited for: a program that another test starts has all locks for a moment, until it is
/// exec'ed.
fn no_wait(_: &str) -> bool {
    false
}

fn backup(writer: &Writer, time: &str, seed: u32) -> Entry {
    let image = store_image(writer.store(), "vda", &mixed_bytes(seed, 1_000_000));
    commit(writer, time, vec![image]).expect("commits")
}

fn commit(writer: &Writer, time: &str, images: Vec<Image>) -> Result<Entry> {
    let committed = writer.commit(testing::backup("web1", time, images))?;
    assert!(committed.unpublished.is_none(), "{committed:?}");
    Ok(committed.entry)
}

fn views(repository: &Repository) -> Vec<String> {
    let entries = fs::read_dir(repository.path().join("views")).expect("lists");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
        .filter(|name| !name.starts_with("pool-"))
        .collect();
    names.sort();
    names
}

#[test]
fn readers_see_a_backup_once_it_is_committed_and_keep_what_they_opened() {
    let (_directory, repository) = new();
    let empty = repository.view().expect("opens");
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    // The writer is still open.
    let one = repository.view().expect("opens");
    backup(writer.writer(), "2026-11-21T00-00-00Z", 2);
    let counts =
        [&empty, &one, &repository.view().expect("opens")].map(|view| view.catalogue().expect("loads").entries().len());
    assert_eq!(counts, [0, 1, 2]);
    assert_eq!(repository.newest_view().expect("reads"), Some(2));
    assert!(one.number() < 2);
}

#[test]
fn backups_that_are_committed_at_once_are_all_seen() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    const GUESTS: usize = 4;
    for round in 0..10 {
        std::thread::scope(|scope| {
            for guest in 0..GUESTS {
                let writer = &writer;
                scope.spawn(move || {
                    let time = format!("2026-11-20T00-00-{round:02}Z");
                    let image = store_image(writer.store(), "vda", &mixed_bytes(guest as u32, 100_000));
                    let backup = testing::backup(&format!("web{guest}"), &time, vec![image]);
                    let committed = writer.writer().commit(backup).expect("commits");
                    assert!(committed.unpublished.is_none(), "{committed:?}");
                });
            }
        });
        let view = repository.view().expect("opens");
        let seen = view.catalogue().expect("loads").entries().len();
        assert_eq!(seen, GUESTS * (round + 1), "after round {round}");
    }
}

#[test]
fn old_views_go_when_nobody_holds_them() {
    let (_directory, repository) = new();
    let held = repository.view().expect("opens");
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    backup(writer.writer(), "2026-11-21T00-00-00Z", 2);
    assert_eq!(views(&repository), ["0", "0.lock", "2", "2.lock", "current"]);
    drop(held);
    backup(writer.writer(), "2026-11-22T00-00-00Z", 3);
    assert_eq!(views(&repository), ["3", "3.lock", "current"]);
}

#[test]
fn a_lost_view_is_made_again() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    drop(writer);
    fs::remove_dir_all(repository.path().join("views")).expect("removes");
    fs::create_dir(repository.path().join("views")).expect("creates");
    let view = repository.view().expect("opens");
    assert_eq!(view.catalogue().expect("loads").entries().len(), 1);
}

#[test]
fn a_view_that_lacks_something_is_made_again() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    drop(writer);
    let views = repository.path().join("views");
    let count = || {
        let view = repository.view().expect("opens");
        view.catalogue().expect("loads").entries().len()
    };
    fs::remove_file(views.join("1.lock")).expect("removes");
    assert_eq!(count(), 1);
    fs::remove_file(views.join("1")).expect("removes");
    assert_eq!(count(), 1);
    fs::remove_dir_all(views.join("pool-1")).expect("removes");
    assert_eq!(count(), 1);
}

#[test]
fn a_commit_that_was_not_published_is_seen_after_the_next_writer() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    let store = RocksStore::open(&path_in(repository.path()));
    assert_eq!(store.err().map(|error| error.kind()), Some(ErrorKind::Locked));
    let image = store_image(writer.store(), "vda", b"x");
    let entry = commit(writer.writer(), "2026-11-20T00-00-00Z", vec![image]).expect("commits");
    drop(writer);
    // As if killed between the commit and the swap of the link.
    let link = repository.path().join("views/current");
    fs::remove_file(&link).expect("removes");
    std::os::unix::fs::symlink("0", &link).expect("links");
    drop(repository.writer("test", &mut |_| true).expect("opens"));
    let catalogue = repository.view().and_then(|view| view.catalogue()).expect("loads");
    assert_eq!(catalogue.entries(), [entry]);
}

#[test]
fn a_second_writer_learns_for_whom_it_waits() {
    let (_directory, repository) = new();
    let first = repository.writer("backup web1", &mut |_| true).expect("opens");
    let error = repository.writer("backup web2", &mut no_wait).err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("`backup web1` (process "), "{error}");
    let mut first = Some(first);
    let waited = repository.writer("backup web2", &mut |_| {
        first = None;
        true
    });
    assert!(waited.is_ok());
}

#[test]
fn one_second_never_has_two_backups() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    let guest = "web1".parse().expect("a name");
    let free = |now: &str| {
        let now = now.parse().expect("a time");
        writer.catalogue().expect("loads").free_time(&guest, now).to_string()
    };
    assert_eq!(free("2026-11-20T00:00:00.7Z"), "2026-11-20T00-00-00Z");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    backup(writer.writer(), "2026-11-20T00-00-01Z", 1);
    backup(writer.writer(), "2026-11-20T00-00-40Z", 1);
    assert_eq!(free("2026-11-20T00:00:00.7Z"), "2026-11-20T00-00-41Z");
    assert_eq!(free("2026-11-20T00:00:41Z"), "2026-11-20T00-00-41Z");
    // A clock that was set back is not corrected.
    assert_eq!(free("2026-11-19T00:00:00Z"), "2026-11-19T00-00-00Z");
    let again = commit(writer.writer(), "2026-11-20T00-00-00Z", Vec::new());
    assert!(matches!(again, Err(Error::BackupExists(_))));
}

#[test]
fn only_an_empty_directory_becomes_a_repository() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("mine"), "").expect("writes");
    let refused = Repository::create(directory.path(), &CreateOptions::plain(BlockSize::DEFAULT));
    assert!(matches!(refused, Err(Error::NotEmpty { .. })));
    let (_directory, repository) = new();
    let twice = Repository::create(repository.path(), &CreateOptions::plain(BlockSize::DEFAULT));
    assert!(matches!(twice, Err(Error::AlreadyARepository { .. })));
    let not_one = Repository::open(directory.path());
    assert!(matches!(not_one, Err(Error::NotARepository { .. })));
    let gone = Repository::open(&directory.path().join("gone"));
    assert!(matches!(gone, Err(Error::NotARepository { .. })));
}

#[test]
fn what_a_newer_vbk_made_is_refused() {
    let (_directory, repository) = new();
    fs::write(repository.path().join(MARKER), "format: 3\n").expect("writes");
    let newer = Repository::open(repository.path());
    assert!(matches!(newer, Err(Error::NewerFormat { found: 3, .. })));
    let mut identity = repository.view().expect("opens").identity().clone();
    identity.features = vec!["time-travel".into()];
    let refused = identity.check("x").expect_err("unknown").to_string();
    assert!(refused.contains("time-travel"), "{refused}");
}

#[test]
fn a_feature_of_a_newer_vbk_is_refused_before_anything_is_read_or_changed() {
    let (_directory, repository) = new();
    let path = repository.path().to_owned();
    let mut identity = repository.view().expect("opens").identity().clone();
    identity.features = vec!["time-travel".into()];
    for name in ["store", "views"] {
        fs::remove_dir_all(path.join(name)).expect("removes");
    }
    fs::create_dir(path.join("views")).expect("creates");
    let store = RocksStore::create(&path_in(&path), &identity).expect("creates");
    views::publish(&path, &store).expect("publishes");
    drop(store);
    let refused = [
        repository.view().err(),
        repository.writer("test", &mut no_wait).err(),
        repository.mend(&mut no_wait).err(),
    ];
    for error in refused {
        let error = error.expect("is refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("(time-travel); use a newer vbk"), "{error}");
    }
}

#[test]
fn of_several_that_make_a_repository_one_does_and_the_others_harm_nothing() {
    let (directory, repository) = new();
    let path = repository.path();
    let options = CreateOptions::plain(BlockSize::MIN);
    // A process that checked the directory before the other one started.
    let error = create::make(path, &options.sealed().expect("seals")).expect_err("refused");
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    drop(writer);
    for round in 0..20 {
        let path = directory.path().join(round.to_string());
        let made: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Repository::create(&path, &options).is_ok()))
                .collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "{made:?}");
        let repository = Repository::open(&path).expect("opens");
        repository.writer("test", &mut |_| true).expect("opens");
    }
}

#[test]
fn what_could_not_be_made_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    let options = CreateOptions {
        encryption: Some((
            Keys::generate().expect("random"),
            vec![("bad/name".into(), Unlock::KeyFile(vec![b'1'; 64].into()))],
        )),
        ..CreateOptions::plain(BlockSize::MIN)
    };
    for is_there in [false, true] {
        if is_there {
            fs::create_dir(&path).expect("creates");
        }
        Repository::create(&path, &options).expect_err("refused");
        assert_eq!(path.exists(), is_there);
        assert!(!is_there || fs::read_dir(&path).expect("lists").next().is_none());
    }
}

#[test]
fn a_plain_store_in_an_encrypted_repository_is_neither_read_nor_written() {
    let (directory, plain) = new();
    let path = directory.path().join("encrypted");
    let way = Unlock::KeyFile(vec![b'1'; 64].into());
    let options = CreateOptions {
        encryption: Some((Keys::generate().expect("random"), vec![("key".into(), way.clone())])),
        ..CreateOptions::plain(BlockSize::MIN)
    };
    drop(Repository::create(&path, &options).expect("creates"));
    for name in ["store", "views"] {
        fs::remove_dir_all(path.join(name)).expect("removes");
        fs::rename(plain.path().join(name), path.join(name)).expect("renames");
    }
    let repository = Repository::open(&path).and_then(|repository| repository.unlock(&way));
    let repository = repository.expect("the key is that of the slot");
    let before = views(&repository);
    let refused = [
        repository.view().err(),
        repository.writer("test", &mut no_wait).err(),
        Repository::open(&path).expect("opens").view().err(),
    ];
    for error in refused {
        let error = error.expect("refused");
        assert!(matches!(error, Error::EncryptionGone { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    assert_eq!(views(&repository), before);
}

#[test]
fn a_backup_knows_the_generation_that_it_came_with() {
    let (_directory, repository) = new();
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    let before = repository.view().expect("opens").number();
    // The clock is set back between them.
    let times = ["2026-11-20T00-00-00Z", "2031-01-01T00-00-00Z", "2020-01-01T00-00-00Z"];
    std::thread::scope(|scope| {
        let _notes = scope.spawn(|| (0..20).for_each(|_| writer.amend(&[], &[]).expect("amends")));
        for time in times {
            backup(writer.writer(), time, 1);
        }
    });
    let catalogue = writer.catalogue().expect("loads");
    let made: Vec<_> = catalogue.entries().iter().map(|entry| &entry.backup).collect();
    assert_eq!(made.iter().map(|made| made.time.to_string()).collect::<Vec<_>>(), times);
    assert!(made.is_sorted_by_key(|made| made.sequence) && made[0].sequence > before);
    let newest = writer.store().generation().expect("is known");
    assert!(made.iter().all(|made| made.sequence <= newest));
    // A view without a backup is never as new as the backup.
    drop(writer);
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    let without = repository.view().expect("opens").number();
    backup(writer.writer(), "2026-11-21T00-00-00Z", 1);
    let view = repository.view().expect("opens");
    let last = view
        .catalogue()
        .expect("loads")
        .latest(&"web1".parse().expect("a name"))
        .expect("is there")
        .clone();
    assert!(without < last.backup.sequence && last.backup.sequence <= view.number());
}

#[test]
fn what_a_killed_writer_left_of_its_scratch_view_goes_when_the_next_one_comes() {
    let (_directory, repository) = new();
    let scratch = views::scratch(repository.path());
    let mut draft = scratch.clone().into_os_string();
    draft.push(".tmp");
    for path in [scratch, draft.into()] {
        fs::create_dir(&path).expect("creates");
        fs::write(path.join("000007.blob"), "kept for ever").expect("writes");
        let writer = repository.manager("test", &mut |_| true).expect("opens");
        assert!(!path.exists(), "{}", path.display());
        drop(writer);
    }
}

#[test]
fn the_marker_and_the_store_tell_of_the_same_repository() {
    let (_directory, repository) = new();
    let marker = fs::read_to_string(repository.path().join(MARKER)).expect("reads");
    let identity = repository.view().expect("opens").identity().clone();
    assert!(marker.contains(&format!("\nid: {}\n", identity.id)), "{marker}");
    let (_other_directory, other) = new();
    assert_ne!(other.view().expect("opens").identity().id, identity.id);
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    let expected = Standing {
        id: Some(identity.id),
        generation: Some(1),
        ..Standing::default()
    };
    let of_store = writer.standing().expect("reads");
    assert!(of_store.state.is_some());
    let state = of_store.state.clone();
    assert_eq!(
        of_store,
        Standing {
            state,
            ..expected.clone()
        }
    );
    drop(writer);
    let opened = Repository::open(repository.path()).expect("opens");
    assert_eq!(opened.standing(), expected);
    assert_eq!(opened.standing_of_view(), Some(of_store.clone()));
    assert_eq!(*opened.view().expect("opens").standing(), of_store);
    // A marker without an id accepts any store.
    fs::write(repository.path().join(MARKER), "format: 1\n").expect("writes");
    let opened = Repository::open(repository.path()).expect("opens");
    assert_eq!(opened.standing(), expected);
    opened.writer("test", &mut |_| true).expect("opens");
}

#[test]
fn a_store_of_another_repository_is_read_and_not_written() {
    let (_directory, repository) = new();
    let (_other_directory, other) = new();
    let writer = other.manager("test", &mut |_| true).expect("opens");
    backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    drop(writer);
    for name in ["store", "views", "spare"] {
        fs::remove_dir_all(repository.path().join(name)).expect("removes");
        fs::rename(other.path().join(name), repository.path().join(name)).expect("renames");
    }
    let before = views(&repository);
    let refused = repository.writer("test", &mut no_wait).err().expect("refused");
    assert!(matches!(refused, Error::OtherStore { .. }), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert_eq!(views(&repository), before);
    let catalogue = repository.view().and_then(|view| view.catalogue()).expect("loads");
    assert_eq!(catalogue.entries().len(), 1);
    // A repair means that the administrator accepts the store as the right one.
    repository.mend(&mut |_| true).expect("mends");
    let opened = Repository::open(repository.path()).expect("opens");
    opened.writer("test", &mut |_| true).expect("opens");
}

#[test]
fn directories_above_a_new_repository_are_made_only_if_that_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("mnt/usb/repo");
    let mut options = CreateOptions::plain(BlockSize::MIN);
    let refused = Repository::create(&path, &options).expect_err("refused");
    assert!(
        matches!(&refused, Error::NoParent { parent } if parent.ends_with("mnt/usb")),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(!directory.path().join("mnt").exists());
    options.parents = true;
    Repository::create(&path, &options).expect("creates");
    assert!(Repository::open(&path).is_ok());
}

fn forget_for(writer: &Manager, entry: &Entry, keep_removed_secs: u64) {
    writer.store().set_terms(Terms {
        keep_removed_secs,
        ..Terms::default()
    });
    writer.amend(&[entry.backup.spec()], &[]).expect("forgets");
}

fn prune(writer: &mut Manager, empty_bin: bool, dry_run: bool) -> u64 {
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run,
        empty_bin,
    };
    let pruned = writer.prune(options, 2, &AtomicBool::new(false), &|_| {});
    pruned.expect("prunes").swept.removed_blocks
}

fn spec(forgotten: &Forgotten) -> &str {
    &forgotten.record.key
}

#[test]
fn a_forgotten_backup_can_be_brought_back_until_a_prune_or_for_as_long_as_it_must_stay() {
    for encrypted in [false, true] {
        let (_directory, repository) = new_as(encrypted);
        let mut writer = repository.manager("test", &mut |_| true).expect("opens");
        let one = backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
        let two = backup(writer.writer(), "2026-11-21T00-00-00Z", 2);
        forget_for(&writer, &one, 3600);
        forget_for(&writer, &two, 0);
        let bin = writer.forgotten().expect("lists");
        assert_eq!(
            bin.iter().map(spec).collect::<Vec<_>>(),
            [two.backup.spec(), one.backup.spec()]
        );
        assert!(
            repository
                .view()
                .expect("opens")
                .catalogue()
                .expect("loads")
                .entries()
                .is_empty()
        );

        writer.unforget(&bin[..1]).expect("brings back");
        let entries = |repository: &Repository| {
            let view = repository.view().expect("opens");
            let catalogue = view.catalogue().expect("loads");
            assert!(catalogue.damaged().is_empty(), "{:?}", catalogue.damaged());
            catalogue.entries().to_vec()
        };
        assert_eq!(entries(&repository), std::slice::from_ref(&two));
        assert_eq!(
            writer.forgotten().expect("lists").len(),
            1,
            "it is not forgotten any more"
        );

        forget_for(&writer, &two, 0);
        assert!(prune(&mut writer, false, true) > 0);
        assert_eq!(writer.forgotten().expect("lists").len(), 2, "a dry run empties nothing");
        assert!(prune(&mut writer, false, false) > 0);
        let bin = writer.forgotten().expect("lists");
        assert_eq!(bin.iter().map(spec).collect::<Vec<_>>(), [one.backup.spec()]);
        writer.unforget(&bin).expect("brings back");
        assert_eq!(entries(&repository), std::slice::from_ref(&one));
        let view = repository.view().expect("opens");
        let live = mark(
            &*view.store(),
            &view.catalogue().expect("loads"),
            2,
            &AtomicBool::new(false),
        );
        assert!(live.is_ok(), "{:?}", live.err());

        forget_for(&writer, &one, 3600);
        let gone = writer.forgotten().expect("lists");
        assert!(prune(&mut writer, true, false) > 0);
        assert!(writer.forgotten().expect("lists").is_empty());
        let refused = writer.unforget(&gone).expect_err("it is pruned");
        assert!(matches!(refused, Error::Missing { .. }), "{refused}");
        assert!(entries(&repository).is_empty());
    }
}

#[test]
fn the_state_of_a_forgotten_backup_comes_back_with_it_or_goes_with_the_bin() {
    for encrypted in [false, true] {
        let (_directory, repository) = new_as(encrypted);
        let mut writer = repository.manager("test", &mut |_| true).expect("opens");
        let one = backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
        let state = State {
            note: Some("keep for audit".into()),
            proven: Some(jiff::Timestamp::UNIX_EPOCH),
            ..State::default()
        };
        let key = one.backup.spec();
        writer.amend(&[], &[note_of(&key, state.clone())]).expect("notes");
        forget_for(&writer, &one, 3600);
        assert_eq!(writer.states().expect("reads").noted(&key), State::default());
        assert_eq!(writer.states().expect("reads").of_forgotten(&one), state);
        prune(&mut writer, false, false);
        writer
            .unforget(&writer.forgotten().expect("lists"))
            .expect("brings back");
        let back = writer.states().expect("reads").noted(&key);
        assert!(back.arrived.is_some());
        assert_eq!(State { arrived: None, ..back }, state);
        forget_for(&writer, &one, 0);
        prune(&mut writer, true, false);
        assert_eq!(writer.states().expect("reads").of_forgotten(&one), State::default());
    }
}

#[test]
fn a_damaged_backup_in_the_bin_keeps_no_prune_from_its_work() {
    let (_directory, repository) = new();
    let mut writer = repository.manager("test", &mut |_| true).expect("opens");
    let good = backup(writer.writer(), "2026-11-20T00-00-00Z", 1);
    backup(writer.writer(), "2026-11-21T00-00-00Z", 2);
    // It names what was never stored, and its commit is not proved: as one of which something was lost.
    let mut image = good.backup.images[0].clone();
    image.manifest = crate::id::NodeId([7; 32]);
    let lost = testing::backup("web1", "2026-11-22T00-00-00Z", vec![image]);
    drop(writer);
    let store = RocksStore::open(&path_in(repository.path())).expect("opens");
    let record = Record {
        key: lost.spec(),
        bytes: lost.encode(),
    };
    store.commit(&record).expect("commits");
    drop(store);
    writer = repository.manager("test", &mut |_| true).expect("opens");
    let cancel = AtomicBool::new(false);
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    assert!(
        writer.prune(options, 2, &cancel, &|_| {}).is_err(),
        "it is a backup yet"
    );
    writer.store().set_terms(Terms {
        keep_removed_secs: 3600,
        ..Terms::default()
    });
    writer.amend(&[lost.spec(), good.backup.spec()], &[]).expect("forgets");
    assert_eq!(prune(&mut writer, false, false), 0);
    let bin = writer.forgotten().expect("lists");
    let bin: Vec<_> = bin.into_iter().filter(|one| spec(one) == good.backup.spec()).collect();
    writer.unforget(&bin).expect("brings the good one back");
}

/// Asserts that a writer's catalogue is what the store has.
fn assert_known(writer: &Writer) -> usize {
    let known = writer.catalogue().expect("loads");
    let stored = Catalogue::load(writer.store()).expect("loads");
    assert_eq!(known.entries(), stored.entries());
    for entry in stored.entries() {
        assert_eq!(known.received(&entry.backup), stored.received(&entry.backup));
    }
    known.entries().len()
}

#[test]
fn the_catalogue_of_a_writer_is_that_of_the_store_whoever_changes_it() {
    let (_directory, repository) = new();
    change_and_compare(&repository.manager("test", &mut no_wait).expect("opens"));
    let (_directory, repository) = new();
    let manager = repository.manager("test", &mut no_wait).expect("opens");
    let ((), failed) = manager.writer().publishing(|| change_and_compare(&manager));
    assert!(failed.is_none());
    assert_eq!(
        repository
            .view()
            .and_then(|view| view.catalogue())
            .expect("loads")
            .entries()
            .len(),
        35
    );
}

fn change_and_compare(manager: &Manager) {
    let writer = manager.writer();
    let commit = |guest: &str, day: u32| {
        let made = testing::backup(guest, &format!("2026-11-{day:02}T05-54-00Z"), Vec::new());
        writer.commit(made).expect("commits").entry
    };
    assert_eq!(assert_known(writer), 0);
    // Not in the order of their times.
    for (number, day) in [(1, 20), (2, 22), (3, 21)] {
        commit("web1", day);
        assert_eq!(assert_known(writer), number);
    }
    std::thread::scope(|scope| {
        for guest in ["db1", "db2", "web1", "web2"] {
            scope.spawn(move || {
                for day in 1..=8 {
                    let made = commit(guest, day);
                    let known = writer.catalogue().expect("loads");
                    assert!(known.of(&made.backup.guest).any(|entry| entry.id == made.id));
                }
            });
        }
    });
    assert_eq!(assert_known(writer), 35);
    manager
        .amend(&["web1@2026-11-20T05-54-00Z".into()], &[])
        .expect("forgets");
    assert_eq!(assert_known(writer), 34);
    commit("web1", 25);
    assert_eq!(assert_known(writer), 35);
}
