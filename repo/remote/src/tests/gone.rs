//! The process that has a directory open for all ends while another one writes through it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use vbk_repo::Error;
use vbk_repo::block::BlockSize;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;
use vbk_repo::repository::{CreateOptions, Repository};

use super::again::put_backup;
use super::until;
use crate::client::{Again, local_home};
use crate::server::{Served, Server};

/// A process that has the directory open for all, in this one.
struct Owner {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Owner {
    fn start(path: &Path) -> Self {
        let open = |path: &Path| Ok(Arc::new(Directory::open(path)?) as Arc<dyn Home>);
        let server = Server::new(Served::One(path.to_owned()), Box::new(open)).expect("starts");
        assert!(server.share(path, None).expect("shares"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || server.run(&|| stopped.load(Ordering::SeqCst)));
        Self { stop, thread }
    }

    /// Returns the number of its clients.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("ends")
    }
}

/// A directory, its home, and what people are told.
struct Fixture {
    _parent: tempfile::TempDir,
    directory: Arc<Directory>,
    home: Arc<dyn Home>,
    told: Arc<Mutex<Vec<String>>>,
    owner: Option<Owner>,
}

impl Fixture {
    fn new() -> Self {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("repository");
        drop(Repository::create(&path, &CreateOptions::plain(BlockSize::DEFAULT)).expect("creates"));
        let directory = Arc::new(Directory::open(&path).expect("opens"));
        let told = Arc::<Mutex<Vec<String>>>::default();
        let tells = Arc::clone(&told);
        let again = Again::new(Duration::ZERO, || false, move |line| tells.lock().push(line.to_owned()));
        Self {
            home: local_home(Arc::clone(&directory), again.at_once()),
            owner: Some(Owner::start(directory.name())),
            directory,
            told,
            _parent: parent,
        }
    }

    fn is_told(&self, part: &str) -> bool {
        self.told.lock().iter().any(|line| line.contains(part))
    }
}

#[test]
fn a_writer_opens_the_directory_itself_when_nobody_has_it_open_any_more() {
    let mut fixture = Fixture::new();
    let session = fixture.home.write("backup --all", &mut |_| false).expect("opens");
    let store = &*session.store;
    let first = put_backup(store, "web1", 1);
    store.commit(&first).expect("commits");
    let second = put_backup(store, "web2", 2);
    assert_eq!(fixture.owner.take().expect("runs").end(), 1);
    // The guest that was at work, and one that was not begun.
    match store.commit(&second) {
        Err(Error::Missing { .. }) => {
            let second = put_backup(store, "web2", 2);
            store.commit(&second).expect("commits");
        }
        committed => committed.expect("commits"),
    }
    let third = put_backup(store, "web3", 3);
    store.commit(&third).expect("commits");
    session.keeper.publish().expect("publishes");
    let told = fixture.told.lock().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("is lost: ") && told[0].ends_with("then this command opens the repository itself"),
        "{told:?}"
    );
    assert!(told[1].ends_with("is open again, and this command goes on"), "{told:?}");
    // The writer has the lock like any other, and releases it like any other.
    let other = Directory::open(fixture.directory.name()).expect("opens");
    let refused = other.write("backup web4", &mut |_| false).err().expect("is locked");
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    drop(session);
    assert!(other.write("backup web4", &mut |_| false).is_ok());
    assert_eq!(other.read().expect("reads").store.records().expect("lists").len(), 3);
}

#[test]
fn the_lock_decides_which_of_two_writers_opens_the_directory() {
    let mut fixture = Fixture::new();
    let session = fixture.home.write("backup web1", &mut |_| false).expect("opens");
    let other = Directory::open(fixture.directory.name()).expect("opens");
    // The other one waits for the lock already, and gets it before this one tries.
    let owner = fixture.owner.take().expect("runs");
    let taken = std::thread::scope(|scope| {
        let taken = scope.spawn(|| other.write("backup web2", &mut |_| true));
        owner.end();
        taken.join().expect("ends").expect("gets the lock")
    });
    until("it is told who has the lock", || fixture.is_told("backup web2"));
    assert!(!fixture.is_told("goes on"));
    let record = put_backup(&*taken.store, "web2", 2);
    taken.store.commit(&record).expect("commits");
    drop(taken);
    let record = put_backup(&*session.store, "web1", 1);
    session.store.commit(&record).expect("commits");
    session.keeper.publish().expect("publishes");
    drop(session);
    assert!(fixture.is_told("goes on"));
    assert_eq!(other.read().expect("reads").store.records().expect("lists").len(), 2);
}

#[test]
fn a_writer_goes_on_with_the_next_process_that_has_the_directory_open() {
    let mut fixture = Fixture::new();
    let session = fixture.home.write("backup web1", &mut |_| false).expect("opens");
    fixture.owner.take().expect("runs").end();
    let owner = Owner::start(fixture.directory.name());
    let record = put_backup(&*session.store, "web1", 1);
    session.store.commit(&record).expect("commits");
    // It has the session, and this process has none of its own.
    assert_eq!(owner.end(), 1);
    drop(session);
}
