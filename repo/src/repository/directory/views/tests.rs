use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::block::BlockSize;
use crate::reader::{ImageReader, ReadResources};
use crate::repository::directory::marker::MARKER;
use crate::repository::directory::second_copies;
use crate::repository::{CreateOptions, Repository, View as Opened, Writer};
use crate::store::rocks::manifest::StoreFile;
use crate::store::rocks::path_in;
use crate::store::{PruneOptions, StoreReader};
use crate::tests::testing::{backup, store_image};

const ALL: PruneOptions = PruneOptions {
    max_unused: 0.0,
    dry_run: false,
    empty_bin: true,
};

fn new() -> (tempfile::TempDir, Repository) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    (directory, repository)
}

fn time(day: u32) -> String {
    format!("2026-11-{:02}T05-54-00Z", day + 1)
}

/// Noise, so that the pages lie in blob files.
fn content(day: u32) -> Vec<u8> {
    let mut noise = 2 * day + 1;
    let mut next = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    };
    (0..300_000).map(|_| next()).collect()
}

fn store_day(writer: &Writer, day: u32) {
    let image = store_image(writer.store(), "vda", &content(day));
    let committed = writer.commit(backup("web1", &time(day), vec![image])).expect("commits");
    assert!(committed.unpublished.is_none(), "{committed:?}");
}

/// Reads all backups that a view has; they are those of these days.
fn assert_days(view: &Opened, days: &[u32]) {
    let catalogue = view.catalogue().expect("loads");
    let times: Vec<_> = catalogue
        .entries()
        .iter()
        .map(|entry| entry.backup.time.to_string())
        .collect();
    assert_eq!(times, days.iter().map(|day| time(*day)).collect::<Vec<_>>());
    for (entry, day) in catalogue.entries().iter().zip(days) {
        let image = ImageReader::open(view.store(), ReadResources::new(1), &entry.backup.images[0]).expect("opens");
        let mut out = vec![0; 300_000];
        image.read_at(0, &mut out).expect("reads");
        assert!(out == content(*day), "{day}");
    }
}

fn forget_and_prune(repository: &Repository, days: &[u32]) {
    let mut manager = repository.manager("test", &mut |_| true).expect("opens");
    let keys: Vec<_> = days.iter().map(|day| format!("web1@{}", time(*day))).collect();
    manager.amend(&keys, &[]).expect("forgets");
    manager.prune(ALL, 1, &AtomicBool::new(false), &|_| ()).expect("prunes");
}

fn pool_files(repository: &Repository, number: u64) -> BTreeSet<StoreFile> {
    let path = pool::path_of(&directory(repository.path()), number);
    pool::list(&path).expect("lists").into_keys().collect()
}

fn store_files(repository: &Repository) -> BTreeSet<StoreFile> {
    pool::list(&path_in(repository.path()))
        .expect("lists")
        .into_keys()
        .collect()
}

/// Lets RocksDB merge all tables now, so that it does not begin to, beside a test that compares files, at the next commit.
fn merge_tables(repository: &Repository) {
    let store = RocksStore::open(&path_in(repository.path())).expect("opens");
    store.compact();
}

fn lists(repository: &Repository, number: u64) -> BTreeSet<String> {
    pool::manifests(&pool::path_of(&directory(repository.path()), number)).expect("lists")
}

#[test]
fn a_view_stays_whole_while_the_store_loses_its_files_and_its_space_comes_back_after_it() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..4).for_each(|day| store_day(&writer, day));
    drop(writer);
    let held = repository.view().expect("opens");
    let needed = pool_files(&repository, 1);
    forget_and_prune(&repository, &[0, 1, 2]);
    // A second writer knows nothing of what the first one saw go.
    drop(repository.writer("test", &mut |_| true).expect("opens"));
    assert!(needed.is_subset(&pool_files(&repository, 1)));
    assert!(!needed.is_subset(&store_files(&repository)), "something was pruned");
    assert_days(&held, &[0, 1, 2, 3]);
    assert_days(&repository.view().expect("opens"), &[3]);
    assert_eq!(lists(&repository, 1).len(), 2);
    drop(held);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    writer.publish().expect("publishes");
    assert_eq!(pool_files(&repository, 1), store_files(&repository));
    store_day(&writer, 9);
    assert_eq!(lists(&repository, 1).len(), 1);
    assert_days(&repository.view().expect("opens"), &[3, 9]);
}

#[test]
fn views_between_two_that_are_held_keep_nothing() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 0);
    let first = repository.view().expect("opens");
    store_day(&writer, 1);
    let before = pool_files(&repository, 1);
    store_day(&writer, 2);
    let between: BTreeSet<_> = pool_files(&repository, 1).difference(&before).copied().collect();
    drop(writer);
    forget_and_prune(&repository, &[1, 2]);
    let left = pool_files(&repository, 1);
    // What came and went after the view that is held, and before the newest one.
    let kept: Vec<_> = between
        .iter()
        .filter(|file| matches!(file, StoreFile::Blob(_)) && left.contains(file))
        .collect();
    assert_eq!(kept, Vec::<&StoreFile>::new(), "{between:?} {left:?}");
    assert_days(&first, &[0]);
    let last = repository.view().expect("opens");
    assert_days(&last, &[0]);
}

#[test]
fn a_publication_touches_nothing_but_what_is_new() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..3).for_each(|day| store_day(&writer, day));
    drop(writer);
    merge_tables(&repository);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 3);
    let path = pool::path_of(&directory(repository.path()), 1);
    let changed = |file: &StoreFile| {
        let found = fs::metadata(path.join(file.name())).expect("is there");
        (found.ctime(), found.ctime_nsec(), found.ino())
    };
    let before: Vec<_> = pool_files(&repository, 1)
        .into_iter()
        .map(|file| (file, changed(&file)))
        .collect();
    store_day(&writer, 4);
    let stays = store_files(&repository);
    let same = before.iter().filter(|(file, _)| stays.contains(file));
    let mut count = 0;
    for (file, was) in same {
        count += 1;
        assert_eq!(changed(file), *was, "{file:?} was linked or unlinked");
    }
    assert!(count >= 3, "{before:?}");
}

#[test]
fn a_list_that_is_not_understood_makes_views_by_links_to_everything() {
    let (_directory, repository) = new();
    let store = RocksStore::open(&path_in(repository.path())).expect("opens");
    let mut views = Views::open(repository.path(), &store).expect("opens");
    let store = Arc::new(store);
    for day in 0..4 {
        if day == 2 {
            views.misunderstand();
        }
        let image = store_image(&*store, "vda", &content(day));
        let record = crate::store::Record {
            key: format!("web1@{}", time(day)),
            bytes: backup("web1", &time(day), vec![image]).encode(),
        };
        crate::store::StoreWriter::commit(&*store, &record).expect("commits");
        views.publish(&store).expect("publishes");
        let days: Vec<_> = (0..=day).collect();
        assert_days(&repository.view().expect("opens"), &days);
        assert!(!scratch(repository.path()).exists());
    }
    drop((views, store));
    forget_and_prune(&repository, &[0, 1, 2]);
    assert_days(&repository.view().expect("opens"), &[3]);
    drop(repository.writer("test", &mut |_| true).expect("opens"));
    assert_eq!(pool_files(&repository, 1), store_files(&repository));
}

/// Makes a repository as an older vbk left it: its newest view is a directory.
fn make_older(repository: &Repository) -> PathBuf {
    let views = directory(repository.path());
    let number = current(repository.path()).expect("reads").expect("is there");
    let store = RocksStore::open(&path_in(repository.path())).expect("opens");
    assert_eq!(store.generation().expect("is known"), number);
    let view = path_of(repository.path(), number);
    fs::remove_file(&view).expect("removes");
    store.checkpoint(&view).expect("links");
    drop(store);
    for pool in pool::all(&views).expect("lists") {
        fs::remove_dir_all(pool::path_of(&views, pool)).expect("removes");
    }
    let marker = repository.path().join(MARKER);
    let text = fs::read_to_string(&marker).expect("reads");
    fs::write(&marker, text.replace("format: 2", "format: 1")).expect("writes");
    view
}

#[test]
fn a_repository_of_an_older_vbk_is_read_as_it_is_and_changed_by_the_first_writer() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    drop(writer);
    let older = make_older(&repository);
    let repository = Repository::open(repository.path()).expect("opens");
    let marker = || fs::read_to_string(repository.path().join(MARKER)).expect("reads");
    let held = repository.view().expect("opens");
    assert_days(&held, &[0, 1]);
    assert!(marker().contains("\nformat: 1\n"));
    drop(repository.writer("test", &mut |_| true).expect("opens"));
    assert!(
        marker().contains("\nformat: 2\n"),
        "an older vbk refuses it from now on"
    );
    let view = repository.view().expect("opens");
    assert!(view.number() > held.number() && older.is_dir());
    drop(view);
    forget_and_prune(&repository, &[0]);
    assert_days(&held, &[0, 1]);
    drop(held);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 2);
    assert!(!older.exists());
    assert_days(&repository.view().expect("opens"), &[1, 2]);
    assert_eq!(pool_files(&repository, 1), store_files(&repository));
}

#[test]
fn a_copy_without_hard_links_gets_a_new_pool_and_gives_the_old_one_back() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    drop(writer);
    for file in store_files(&repository) {
        let path = path_in(repository.path()).join(file.name());
        let bytes = fs::read(&path).expect("reads");
        fs::remove_file(&path).expect("removes");
        fs::write(&path, bytes).expect("writes");
    }
    assert_days(&repository.view().expect("opens"), &[0, 1]);
    let held = repository.view().expect("opens");
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 2);
    assert_days(&repository.view().expect("opens"), &[0, 1, 2]);
    assert_days(&held, &[0, 1]);
    drop((held, writer));
    merge_tables(&repository);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 3);
    assert_eq!(pool::all(&directory(repository.path())).expect("lists"), [2]);
    assert_eq!(pool_files(&repository, 2), store_files(&repository));
    assert_days(&repository.view().expect("opens"), &[0, 1, 2, 3]);
}

#[test]
fn a_file_that_the_store_has_lost_is_kept_for_readers() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    drop(writer);
    let blob = store_files(&repository)
        .into_iter()
        .find(|file| matches!(file, StoreFile::Blob(_)));
    let blob = blob.expect("is there");
    fs::remove_file(path_in(repository.path()).join(blob.name())).expect("removes");
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 2);
    drop(writer);
    assert_days(&repository.view().expect("opens"), &[0, 1, 2]);
    let mended = repository.mend(&mut |_| true).expect("mends");
    assert_eq!(mended.left, Vec::<String>::new());
    assert!(store_files(&repository).contains(&blob));
}

/// A crash at any step leaves what the next writer puts right.
#[test]
fn what_a_killed_publication_left_is_put_right_by_the_next_writer() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    let held = repository.view().expect("opens");
    drop(writer);
    let views = directory(repository.path());
    let pool = pool::path_of(&views, 1);
    let number = current(repository.path()).expect("reads").expect("is there");
    // Steps 1 to 3 of a publication that did not come to its end, and files that it was to remove.
    let strays = ["000900.sst", "000901.blob"];
    strays
        .iter()
        .for_each(|name| fs::write(pool.join(name), "x").expect("writes"));
    let list = lists(&repository, 1).pop_first().expect("is there");
    let mut bytes = fs::read(pool.join(&list)).expect("reads");
    bytes.extend_from_slice(b"part of a record");
    fs::write(pool.join(&list), bytes).expect("writes");
    let record = fs::read(views.join(number.to_string())).expect("reads");
    for name in [
        format!("{}.lock", number + 1),
        format!("{}.new", number + 1),
        format!("{}", number + 2),
    ] {
        fs::write(views.join(name), &record).expect("writes");
    }
    assert_days(&repository.view().expect("opens"), &[0, 1]);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    let is_there = |path: &Path| path.exists();
    assert!(strays.iter().all(|name| !is_there(&pool.join(name))));
    assert!(
        !is_there(&views.join(format!("{}.lock", number + 1))) && !is_there(&views.join(format!("{}", number + 2)))
    );
    store_day(&writer, 2);
    assert_days(&held, &[0, 1]);
    assert_days(&repository.view().expect("opens"), &[0, 1, 2]);
}

#[test]
fn files_that_take_the_names_of_new_ones_lead_to_a_new_pool() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    let held = repository.view().expect("opens");
    let last = pool_files(&repository, 1).iter().map(|file| file.number()).max();
    let last = last.expect("has files");
    let pool = pool::path_of(&directory(repository.path()), 1);
    for number in last + 1..last + 100 {
        for file in [StoreFile::Table(number), StoreFile::Blob(number)] {
            let stranger = fs::File::create_new(pool.join(file.name()));
            drop(stranger.expect("is a free name"));
        }
    }
    (2..4).for_each(|day| store_day(&writer, day));
    assert_days(&repository.view().expect("opens"), &[0, 1, 2, 3]);
    assert_days(&held, &[0, 1]);
    assert_eq!(pool::all(&directory(repository.path())).expect("lists"), [1, 2]);
    drop((held, writer));
    merge_tables(&repository);
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 4);
    assert_eq!(pool::all(&directory(repository.path())).expect("lists"), [2]);
    assert_eq!(pool_files(&repository, 2), store_files(&repository));
    assert_days(&repository.view().expect("opens"), &[0, 1, 2, 3, 4]);
}

#[test]
fn a_publication_that_fails_half_way_is_made_up_for_by_the_next_one() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    store_day(&writer, 0);
    let next = current(repository.path()).expect("reads").expect("is there") + 1;
    let obstacle = directory(repository.path()).join(format!("{next}.lock"));
    fs::create_dir(&obstacle).expect("creates");
    let image = store_image(writer.store(), "vda", &content(1));
    let committed = writer.commit(backup("web1", &time(1), vec![image])).expect("commits");
    assert!(committed.unpublished.is_some());
    assert_days(&repository.view().expect("opens"), &[0]);
    fs::remove_dir(&obstacle).expect("removes");
    store_day(&writer, 2);
    assert_days(&repository.view().expect("opens"), &[0, 1, 2]);
}

#[test]
fn tables_that_were_merged_keep_their_second_copies_until_there_is_a_newer_view() {
    let (_directory, repository) = new();
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    (0..2).for_each(|day| store_day(&writer, day));
    drop(writer);
    let spares = || -> BTreeSet<String> {
        let spares = second_copies::list(repository.path()).expect("lists").into_iter();
        spares.map(|spare| spare.table).collect()
    };
    merge_tables(&repository);
    let before = spares();
    let merged: BTreeSet<_> = store_files(&repository).into_iter().map(StoreFile::name).collect();
    assert!(before.iter().any(|table| !merged.contains(table)), "tables were merged");
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    assert!(spares().is_superset(&before), "the newest view has them");
    store_day(&writer, 2);
    assert!(
        spares()
            .iter()
            .all(|table| !before.contains(table) || merged.contains(table))
    );
}
