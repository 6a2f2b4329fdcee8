use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::block::BlockSize;
use crate::repository::directory::lock::WriterLock;

use super::*;
use crate::repository::CreateOptions;

fn new() -> (tempfile::TempDir, Repository) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    (directory, repository)
}

/// Returns this process. No test here starts another: until a child runs its program it holds the locks of all tests.
fn this() -> Process {
    let pid = std::process::id();
    Process {
        pid: Some(pid),
        command: command(pid),
    }
}

fn hold_shared(lock: &Path) -> File {
    let file = File::open(lock).expect("opens");
    file.lock_shared().expect("locks");
    file
}

/// Creates the files by which a view is recognized from outside.
fn put_view(repository: &Repository, number: u64) -> PathBuf {
    let views = repository.path().join("views");
    fs::create_dir(views.join(number.to_string())).expect("creates");
    let lock = views.join(format!("{number}.lock"));
    File::create(&lock).expect("creates");
    lock
}

fn states(repository: &Repository) -> Vec<(u64, ViewState)> {
    let views = status(repository).expect("tells").views;
    views.into_iter().map(|view| (view.number, view.state)).collect()
}

#[test]
fn a_writer_is_told_while_it_holds_the_lock_and_not_by_the_text_it_left() {
    let (_directory, repository) = new();
    assert_eq!(status(&repository).expect("tells").writer, None);
    let lock = WriterLock::take(
        repository.path(),
        "backup web1",
        crate::repository::directory::lock::Told::Command,
        &mut |_| false,
    )
    .expect("locks");
    let writer = status(&repository).expect("tells").writer.expect("a writer");
    assert_eq!(writer.command.as_deref(), Some("backup web1"));
    assert_eq!(writer.pid, Some(std::process::id()));
    assert!(writer.since.is_some());
    drop(lock);
    assert!(fs::read_to_string(repository.path().join("lock")).is_ok_and(|text| text.is_empty()));
    let started = Instant::now();
    // A child of another test holds the lock too until it runs its program.
    while status(&repository).expect("tells").writer.is_some() {
        assert!(started.elapsed() < Duration::from_secs(30), "still held");
    }
}

#[test]
fn the_text_of_the_writer_before_is_not_taken_for_that_of_this_one() {
    let (_directory, repository) = new();
    let path = repository.path().join("lock");
    for text in [
        r#"{"command":"x","pid":4194305,"since":"2026-11-21T05:54:00Z"}"#,
        "",
        "{",
        "\0",
    ] {
        fs::write(&path, text).expect("writes");
        let file = File::open(&path).expect("opens");
        file.lock().expect("locks");
        let expected = WriterStatus {
            pid: this().pid,
            command: this().command,
            since: None,
        };
        assert_eq!(status(&repository).expect("tells").writer, Some(expected), "{text:?}");
    }
}

#[test]
fn views_are_told_with_the_processes_that_read_them() {
    let (_directory, repository) = new();
    let current = repository.newest_view().expect("reads").expect("a view");
    let lock = repository.path().join(format!("views/{current}.lock"));
    let _current = [hold_shared(&lock), hold_shared(&lock)];
    let _old = hold_shared(&put_view(&repository, current + 7));
    put_view(&repository, current + 8);
    let found = status(&repository).expect("tells");
    let readers: Vec<_> = found.views.iter().map(|view| view.readers.clone()).collect();
    assert_eq!(readers, [vec![this()], vec![this()], vec![]]);
    assert!(found.views.iter().all(|view| view.since.is_some()));
    let expected = [ViewState::Current, ViewState::Old, ViewState::Stale];
    assert_eq!(
        states(&repository),
        [current, current + 7, current + 8]
            .into_iter()
            .zip(expected)
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_view_that_a_writer_makes_is_coming_and_a_dead_writers_is_stale() {
    let (_directory, repository) = new();
    let current = repository.newest_view().expect("reads").expect("a view");
    fs::create_dir(repository.path().join(format!("views/{}.tmp", current + 1))).expect("creates");
    assert_eq!(
        states(&repository),
        [(current, ViewState::Current), (current + 1, ViewState::Stale)]
    );
    let _lock = WriterLock::take(
        repository.path(),
        "test",
        crate::repository::directory::lock::Told::Command,
        &mut |_| false,
    )
    .expect("locks");
    assert_eq!(
        states(&repository),
        [(current, ViewState::Current), (current + 1, ViewState::Coming)]
    );
}

#[test]
fn names_that_no_view_has_are_passed_over() {
    let cases = [
        ("7", Some(7)),
        ("7.lock", Some(7)),
        ("7.tmp", Some(7)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("current", None),
        ("current.new", None),
        ("+7", None),
        ("07", None),
        ("7.lock.old", None),
        ("", None),
        (".lock", None),
    ];
    for (name, number) in cases {
        assert_eq!(view_number(name), number, "{name:?}");
    }
}

#[test]
fn a_repository_without_views_and_lock_is_told_too() {
    let (_directory, repository) = new();
    fs::remove_dir_all(repository.path().join("views")).expect("removes");
    fs::remove_file(repository.path().join("lock")).expect("removes");
    let found = status(&repository).expect("tells");
    assert_eq!((found.writer, found.views), (None, Vec::new()));
}

#[test]
fn command_lines_are_short_and_can_not_drive_a_terminal() {
    let cases: [(&[u8], Option<&str>); 7] = [
        (b"/usr/bin/vbk\0mount\0/mnt\0", Some("vbk mount /mnt")),
        (b"vbk", Some("vbk")),
        (b"a\0\0b\0\0", Some("a  b")),
        (b"\x1b[2Jx\0\n\0", Some("?[2Jx ?")),
        (b"\xff", Some("\u{fffd}")),
        (b"", None),
        (b"\0\0", None),
    ];
    for (line, short) in cases {
        assert_eq!(shorten(line).as_deref(), short, "{line:?}");
    }
    let long = shorten("ü".repeat(1000).as_bytes()).expect("a text");
    assert_eq!(long, format!("{}...", "ü".repeat(MAX_COMMAND_CHARS)));
}

#[test]
fn the_parts_say_what_goes_with_the_old_views() {
    let (_directory, repository) = new();
    let path = repository.path();
    let current = repository.newest_view().expect("reads").expect("a view");
    let before = status(&repository).expect("tells").disk;
    let put = |name: &str| {
        fs::write(path.join(name), vec![1; 1 << 20]).expect("writes");
        File::open(path.join(name))
            .and_then(|file| file.sync_all())
            .expect("syncs");
    };
    put_view(&repository, current + 1);
    let old = format!("views/{}", current + 1);
    put("store/kept");
    // The list of the current view's files, which is longer than any view says while a writer appends to it.
    let pool = path.join("views/pool-1");
    let list = fs::read_dir(&pool)
        .expect("lists")
        .map(|entry| entry.expect("an entry").path());
    let list = list
        .into_iter()
        .find(|path| path.to_string_lossy().contains("MANIFEST-"));
    let mut list = File::options()
        .append(true)
        .open(list.expect("is there"))
        .expect("opens");
    list.write_all(&vec![1; 1 << 20]).expect("writes");
    list.sync_all().expect("syncs");
    put(&format!("{old}/alone"));
    // A file of a view that is not the current one.
    put("views/pool-1/000999.blob");
    for (from, to) in [("store/kept", "kept"), ("views/pool-1/000999.blob", "once")] {
        fs::hard_link(path.join(from), path.join(&old).join(to)).expect("links");
    }
    let after = status(&repository).expect("tells").disk;
    let grew = |after: u64, before: u64| after.saturating_sub(before) >> 20;
    assert_eq!(grew(after.store_bytes, before.store_bytes), 1);
    assert_eq!(grew(after.current_view_bytes, before.current_view_bytes), 1);
    assert_eq!(grew(after.other_views_bytes, before.other_views_bytes), 2);
    assert_eq!(grew(after.total_bytes, before.total_bytes), 4);
    assert_eq!(after.total_bytes, disk_usage(path).expect("counts").total_bytes);
}

#[test]
fn the_file_system_adds_up() {
    let (_directory, repository) = new();
    let found = status(&repository).expect("tells").file_system;
    assert!(
        found.size_bytes > 0 && found.used_bytes + found.free_bytes <= found.size_bytes,
        "{found:?}"
    );
}
