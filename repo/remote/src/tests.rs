//! Both ends of the wire together.

mod again;
mod copies;
mod gone;
mod lanes;
mod line;
mod nodes;
mod silence;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use vbk_repo::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use vbk_repo::block::BlockSize;
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::repository::{CreateOptions, Repository};
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Note, Record, StoreManager, Wanted};
use vbk_repo::{Error, ErrorKind};

pub(crate) use self::line::until;
use crate::client::{Again, RemoteHome};
use crate::message::Ask;
use crate::server::{Allowed, serve};

fn memory(size: BlockSize) -> Arc<dyn Home> {
    Arc::new(StoreHome::new(Arc::new(MemoryStore::new(size))).expect("a home"))
}

/// The two halves of the client's end of a stream whose other end is served.
fn served(home: Arc<dyn Home>, allowed: Allowed) -> (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>) {
    let (here, there) = tokio::io::duplex(100_000);
    tokio::spawn(async move {
        let (read, write) = tokio::io::split(there);
        serve(&home, allowed, read, write).await
    });
    tokio::io::split(here)
}

fn remote(home: &Arc<dyn Home>, allowed: Allowed) -> RemoteHome {
    let home = Arc::clone(home);
    RemoteHome::connect("test".into(), Again::never(), move || {
        Ok(served(Arc::clone(&home), allowed))
    })
    .expect("connects")
}

/// A backup of these images.
pub(crate) fn backup(guest: &str, time: &str, images: Vec<Image>) -> Backup {
    Backup {
        format: RECORD_FORMAT,
        guest: guest.parse().expect("a name"),
        time: time.parse().expect("a time"),
        sequence: 0,
        duration_ms: 0,
        host: "host".into(),
        vbk_version: "test".into(),
        consistency: Consistency::Crash,
        images,
        files: Vec::new(),
    }
}

fn manager(home: &RemoteHome) -> Box<dyn StoreManager> {
    let ask = |store| Ask::Manage {
        store,
        command: "test".into(),
    };
    Box::new(home.opened(ask, true).expect("opens").expect("is there").0)
}

fn sealed(seed: u8) -> Sealed {
    let plain: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
        .collect();
    let hashes = vbk_repo::block::Hashing::Plain.block(&plain);
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &hashes))
        .expect("seals")
}

#[test]
fn a_remote_store_keeps_what_every_store_keeps() {
    vbk_repo::store::conformance::check_without_sweeps(|size| manager(&remote(&memory(size), Allowed::Everything)));
}

#[test]
fn a_remote_directory_is_a_repository_like_any_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repository");
    drop(Repository::create(&path, &CreateOptions::plain(BlockSize::DEFAULT)).expect("creates"));
    let home: Arc<dyn Home> = Arc::new(vbk_repo::repository::directory::Directory::open(&path).expect("opens"));
    let (one, other) = (remote(&home, Allowed::Everything), remote(&home, Allowed::Everything));
    assert_eq!(
        one.marker().id.as_deref(),
        Some(&*one.read().expect("reads").store.identity().expect("has one").id)
    );
    let writing = one.write("backup web1", &mut |_| false).expect("opens");
    let refused = other.write("backup web2", &mut |_| false).err().expect("is locked");
    assert!(
        matches!(&refused, Error::Locked { holder, .. } if holder.contains("backup web1")),
        "{refused}"
    );
    let block = sealed(1);
    writing.store.put(vec![block.clone()]).expect("puts");
    let record = Record {
        key: "web1@2026-11-29T00:00:00Z".into(),
        bytes: b"{}".to_vec(),
    };
    writing.store.commit(&record).expect("commits");
    writing.keeper.publish().expect("publishes");
    assert!(writing.keeper.room().expect("is known").used_bytes > 1 << 20);
    drop(writing);
    let snapshot = other.read().expect("reads");
    assert_eq!(snapshot.store.records().expect("lists"), [record]);
    let wanted = Wanted {
        id: block.id,
        pages: 0..block.pages.len(),
    };
    let stored = snapshot
        .store
        .get(&[wanted])
        .pop()
        .expect("an answer")
        .expect("is stored");
    assert_eq!((stored.header, stored.pages), (block.header, block.pages));
    until("its holder gave the lock back", || {
        other.write("backup web2", &mut |_| false).is_ok()
    });
}

#[test]
fn a_client_has_the_rights_that_the_server_gives_it() {
    let home = memory(BlockSize::DEFAULT);
    let reader = remote(&home, Allowed::Read);
    assert!(reader.read().is_ok());
    assert_eq!(
        reader.write("backup", &mut |_| false).err().map(|error| error.kind()),
        Some(ErrorKind::Denied)
    );
    let adder = remote(&home, Allowed::Add);
    assert!(adder.write("backup", &mut |_| false).is_ok());
    assert_eq!(
        adder.manage("forget", &mut |_| false).err().map(|error| error.kind()),
        Some(ErrorKind::Denied)
    );
}

#[test]
fn a_server_that_goes_away_fails_every_wait_and_is_named() {
    let lost = RemoteHome::connect("ssh://dc2/srv".into(), Again::never(), || {
        let (here, mut there) = tokio::io::duplex(100_000);
        tokio::spawn(async move {
            let mut greeting = [0; 100];
            let _ = there.read(&mut greeting).await;
            let _ = there.write_all(b"bash: vbk: command not found\n").await;
        });
        Ok(tokio::io::split(here))
    });
    let message = lost.expect_err("no server").to_string();
    assert!(
        message.contains("ssh://dc2/srv") && message.contains("command not found"),
        "{message}"
    );

    let home = memory(BlockSize::DEFAULT);
    let stop = Arc::new(tokio::sync::Notify::new());
    let stopped = Arc::clone(&stop);
    let gone = RemoteHome::connect("gone".into(), Again::never(), move || {
        let (here, there) = tokio::io::duplex(100_000);
        let (home, stopped) = (Arc::clone(&home), Arc::clone(&stopped));
        tokio::spawn(async move {
            let (read, write) = tokio::io::split(there);
            tokio::select! {
                _ = serve(&home, Allowed::Everything, read, write) => {}
                () = stopped.notified() => {}
            }
        });
        Ok(tokio::io::split(here))
    });
    let gone = gone.expect("connects");
    let session = gone.write("backup", &mut |_| false).expect("opens");
    session.store.put(vec![sealed(1)]).expect("puts");
    session.store.flush().expect("flushes");
    stop.notify_one();
    let error = loop {
        match session.store.locate(&[BlockId([1; 32])]) {
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("gone"), "{error}");
    let wanted = Wanted {
        id: BlockId([1; 32]),
        pages: 0..1,
    };
    // The reason is that of each block, and no block is none.
    let answers = session.store.get(&[wanted.clone(), wanted]);
    let kinds: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.expect_err("is lost").kind())
        .collect();
    assert_eq!(kinds, [ErrorKind::Unavailable; 2]);
    assert_eq!(session.store.get(&[]).len(), 0);
    assert_eq!(session.store.nodes(&[]).len(), 0);
    assert!(session.store.put(vec![sealed(2)]).is_err());
    assert!(session.store.flush().is_err());
}

#[test]
fn what_is_not_what_its_name_says_is_refused_and_fails_the_flush() {
    let home = remote(&memory(BlockSize::DEFAULT), Allowed::Everything);
    let store = manager(&home);
    // The bytes of another block under its name would be what the next one who has that block gets.
    let mut poisoned = sealed(3);
    poisoned.pages = sealed(4).pages;
    store.put(vec![poisoned.clone()]).expect("is on its way");
    let record = Record {
        key: "a@b".into(),
        bytes: Vec::new(),
    };
    for _ in 0..2 {
        let error = store.commit(&record).expect_err("was refused");
        assert!(
            matches!(error, Error::BlockDamaged { id, .. } if id == poisoned.id),
            "{error}"
        );
    }
    let store = manager(&home);
    assert_eq!(store.locate(&[poisoned.id]).expect("looks"), [None]);
    let (node, other) = ([1; 32], vec![b'S', 1, 0, 0, 0, 0, 0, 0]);
    store.put_nodes(vec![(NodeId(node), other)]).expect("is on its way");
    assert!(store.flush().is_err());
}

/// Commits more records than one part of a listing holds.
fn fill(store: &dyn StoreManager) -> Vec<Record> {
    let records: Vec<_> = (0..3000)
        .map(|number| Record {
            key: format!("web1@{number:04}"),
            bytes: vec![number as u8; 4000],
        })
        .collect();
    for record in &records {
        store.commit(record).expect("commits");
    }
    records
}

#[test]
fn a_long_listing_arrives_in_order() {
    let home = remote(&memory(BlockSize::DEFAULT), Allowed::Everything);
    let store = manager(&home);
    let records = fill(&*store);
    let note = Note {
        name: "one".into(),
        value: Some(vec![7; 5 << 20]),
    };
    store.amend(&[], std::slice::from_ref(&note)).expect("notes");
    for _ in 0..20 {
        let listing = store.listing(true).expect("lists");
        assert!(listing.records == records && listing.notes == [note.clone()]);
    }
}

#[test]
fn more_blocks_are_condemned_than_one_question_names() {
    let store = manager(&remote(&memory(BlockSize::DEFAULT), Allowed::Everything));
    let name = |number: u32| {
        let mut name = [7; 32];
        name[..4].copy_from_slice(&number.to_le_bytes());
        BlockId(name)
    };
    let ids: Vec<_> = (0..5000).map(name).collect();
    store.condemn(&ids).expect("condemns");
    assert_eq!(store.condemned().expect("lists").len(), 5000);
    store.pardon(&ids).expect("pardons");
    assert_eq!(store.condemned().expect("lists"), []);
}
