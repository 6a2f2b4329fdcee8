//! Questions about a whole repository: its check and its keys.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vbk_repo::Result;
use vbk_repo::block::BlockSize;
use vbk_repo::keys::{Keys, PassphraseCost, SlotFile, Unlock, create_key_file};
use vbk_repo::repository::home::{Home, Marker, Session, Snapshot, Wait};
use vbk_repo::repository::{CreateOptions, DiskUsage, Repository, Reserve};
use vbk_repo::store::{StoreManager, StoreWriter};
use vbk_repo::{Error, ErrorKind};

use super::{memory, remote, served};
use crate::client::{Again, RemoteHome};
use crate::message::MAX_FINDINGS;
use crate::server::Allowed;

/// A home whose check finds damage until it is stopped.
struct Checked {
    inner: Arc<dyn Home>,
    findings: u64,
    /// Goes on until it is stopped.
    is_endless: bool,
    was_stopped: Arc<AtomicBool>,
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checked")
    }
}

impl Home for Checked {
    fn name(&self) -> &Path {
        self.inner.name()
    }
    fn marker(&self) -> &Marker {
        self.inner.marker()
    }
    fn newest(&self) -> Result<Option<u64>> {
        self.inner.newest()
    }
    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        self.inner.key_slots()
    }
    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        self.inner.check_reserve(reserve)
    }
    fn disk_usage(&self) -> Result<DiskUsage> {
        self.inner.disk_usage()
    }
    fn check_tables(&self, snapshot: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
        self.inner.check_tables(snapshot, cancel)
    }
    fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        (0..self.findings).for_each(|number| each(format!("block {number} is damaged")));
        if !self.is_endless {
            return Ok(77);
        }
        while !cancel.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.was_stopped.store(true, Ordering::SeqCst);
        Err(Error::Interrupted)
    }
    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        self.inner.read_as_it_is()
    }
    fn read(&self) -> Result<Snapshot> {
        self.inner.read()
    }
    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        self.inner.write(command, wait)
    }
    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.inner.manage(command, wait)
    }
}

fn checked(findings: u64, is_endless: bool) -> (Arc<dyn Home>, Arc<AtomicBool>) {
    let was_stopped = Arc::new(AtomicBool::new(false));
    let home = Checked {
        inner: memory(BlockSize::DEFAULT),
        findings,
        is_endless,
        was_stopped: Arc::clone(&was_stopped),
    };
    (Arc::new(home), was_stopped)
}

#[test]
fn a_check_names_a_bounded_number_of_damages_and_counts_the_others() {
    for (findings, named, last) in [
        (0, 0, None),
        (2, 2, Some("block 1 is damaged")),
        (MAX_FINDINGS, MAX_FINDINGS, Some("block 999 is damaged")),
        (MAX_FINDINGS + 5, MAX_FINDINGS + 1, Some("and 5 more")),
    ] {
        let (home, _) = checked(findings, false);
        let mut found = Vec::new();
        let bytes = remote(&home, Allowed::Verify).check_stored(&AtomicBool::new(false), &mut |what| found.push(what));
        assert_eq!(bytes.expect("checks"), 77);
        assert_eq!((found.len() as u64, found.last().map(|what| &**what)), (named, last));
    }
}

#[test]
fn a_check_ends_when_its_caller_stops_or_is_gone() {
    let (home, was_stopped) = checked(1, true);
    let cancel = AtomicBool::new(false);
    let stopped = remote(&home, Allowed::Verify).check_stored(&cancel, &mut |_| cancel.store(true, Ordering::SeqCst));
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert!(was_stopped.load(Ordering::SeqCst));

    let (home, was_stopped) = checked(1, true);
    let (again, cut) = (Again::never(), Arc::new(tokio::sync::Notify::new()));
    let line = Arc::clone(&cut);
    let client = RemoteHome::connect("test".into(), again, move || {
        let (read, write) = served(Arc::clone(&home), Allowed::Verify);
        let (line, mut read) = (Arc::clone(&line), read);
        let (mut near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy(&mut read, &mut near) => {}
                () = line.notified() => {}
            }
        });
        let (far, _) = tokio::io::split(far);
        Ok((far, write))
    });
    let lost = client
        .expect("connects")
        .check_stored(&AtomicBool::new(false), &mut |_| cut.notify_one())
        .expect_err("is lost");
    assert_eq!(lost.kind(), ErrorKind::Unavailable, "{lost}");
    super::line::until("the server stopped the check", || was_stopped.load(Ordering::SeqCst));
}

fn encrypted(directory: &Path) -> (PathBuf, Unlock) {
    let path = directory.join("repository");
    let way = create_key_file(&directory.join("key")).expect("makes");
    let mut options = CreateOptions::plain(BlockSize::DEFAULT);
    options.encryption = Some((
        Keys::generate().expect("random"),
        vec![("first".to_owned(), way.clone())],
    ));
    drop(Repository::create(&path, &options).expect("creates"));
    (path, way)
}

#[test]
fn keys_are_added_and_removed_by_no_token() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, first) = encrypted(directory.path());
    let home: Arc<dyn Home> = Arc::new(vbk_repo::repository::directory::Directory::open(&path).expect("opens"));
    let second = create_key_file(&directory.path().join("second")).expect("makes");
    let administrator = Repository::open(&path).expect("opens").unlock(&first).expect("opens");
    administrator
        .add_key("second", &second, PassphraseCost::default())
        .expect("adds");
    let third = create_key_file(&directory.path().join("third")).expect("makes");
    for allowed in [
        Allowed::Read,
        Allowed::Verify,
        Allowed::Copy,
        Allowed::Add,
        Allowed::Everything,
    ] {
        let repository = Repository::at(Arc::new(remote(&home, allowed)));
        let repository = repository.unlock(&first).expect("opens");
        let added = repository.add_key("third", &third, PassphraseCost::default());
        for refused in [added, repository.remove_key("second", &first)] {
            let refused = refused.expect_err("refused");
            assert!(
                refused.kind() == ErrorKind::Denied && refused.to_string().contains("does not let"),
                "{refused}"
            );
        }
        let slots = repository.key_slots().expect("lists").into_iter().flatten();
        let names: Vec<_> = slots.map(|slot| slot.name).collect();
        assert_eq!(names, ["first", "second"]);
    }
}

#[test]
fn the_server_of_an_encrypted_repository_is_not_told_of_guests() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, _) = encrypted(directory.path());
    let home: Arc<dyn Home> = Arc::new(vbk_repo::repository::directory::Directory::open(&path).expect("opens"));
    assert_eq!(remote(&home, Allowed::Add).told("backup web1"), "backup");
    let plain = memory(BlockSize::DEFAULT);
    assert_eq!(remote(&plain, Allowed::Add).told("backup web1"), "backup web1");
}
