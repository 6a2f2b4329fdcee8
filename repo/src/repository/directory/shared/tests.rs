use std::sync::atomic::AtomicBool;

use super::*;
use crate::block::BlockSize;
use crate::error::ErrorKind;
use crate::id::BlockId;
use crate::reader::{ImageReader, ReadResources};
use crate::repository::{CreateOptions, Repository, prune_without_key};
use crate::slots::SlotReader;
use crate::store::{PruneOptions, Record};
use crate::tests::testing::{backup, mixed_bytes, store_image};

const LEN: usize = 40 << 16;

const ALL: PruneOptions = PruneOptions {
    max_unused: 0.0,
    dry_run: false,
    empty_bin: false,
};

fn shared() -> (tempfile::TempDir, Arc<SharedDirectory>) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    let shared = Arc::new(SharedDirectory::new(Arc::new(Directory::open(&path).expect("opens"))));
    (directory, shared)
}

fn no_wait(_: &str) -> bool {
    false
}

fn commit(session: &Session<dyn StoreWriter>, guest: &str, time: &str, seed: u32) -> String {
    let image = store_image(&*session.store, "vda", &mixed_bytes(seed, LEN));
    let made = backup(guest, time, vec![image]);
    let (key, bytes) = (made.spec(), made.encode());
    session
        .store
        .commit(&Record {
            key: key.clone(),
            bytes,
        })
        .expect("commits");
    key
}

fn prune(shared: &Arc<SharedDirectory>) -> crate::repository::Pruned {
    let session = shared.manage("prune", &mut |_| true).expect("opens");
    let stop = AtomicBool::new(false);
    prune_without_key(&*session.store, &*session.keeper, ALL, 2, &stop, &|_| {}).expect("prunes")
}

#[test]
fn many_writers_have_a_directory_open_and_the_lock_is_free_afterwards() {
    let (_directory, shared) = shared();
    let sessions: Vec<_> = (0..4)
        .map(|_| shared.write("backup", &mut |_| true).expect("opens"))
        .collect();
    std::thread::scope(|scope| {
        for (number, session) in sessions.iter().enumerate() {
            scope.spawn(move || commit(session, &format!("web{number}"), "2026-11-20T05-54-00Z", number as u32));
        }
    });
    let other = Directory::open(shared.directory.name()).expect("opens");
    let locked = other.write("backup", &mut no_wait).map(drop);
    assert_eq!(locked.map_err(|error| error.kind()), Err(ErrorKind::Locked));
    sessions[0].keeper.publish().expect("publishes");
    assert_eq!(other.read().expect("opens").store.records().expect("lists").len(), 4);
    assert!(!shared.close_if_unused());
    drop(sessions);
    assert!(!shared.close_if_unused(), "it stays open for a while");
    shared.state.lock().unused_since = Some(Instant::now() - OPEN_FOR);
    assert!(shared.close_if_unused());
    drop(other.write("backup", &mut |_| true).expect("opens"));
}

#[test]
fn what_a_lost_client_put_is_there_when_it_comes_back() {
    let (directory, shared) = shared();
    let put = |shared: &Arc<SharedDirectory>, seed| {
        let session = shared.write("backup", &mut |_| true).expect("opens");
        let made = store_image(&*session.store, "vda", &mixed_bytes(seed, LEN));
        let reader = SlotReader::open(&*session.store, made.manifest).expect("opens");
        let slots = reader.segment(0).expect("reads");
        slots.into_iter().flatten().collect::<Vec<_>>()
    };
    let is_there = |shared: &Arc<SharedDirectory>, ids: &[BlockId]| {
        let session = shared.write("backup", &mut |_| true).expect("opens");
        let located = session.store.locate(ids).expect("looks");
        !ids.is_empty() && located.iter().all(Option::is_some)
    };
    let first = put(&shared, 1);
    assert!(!shared.close_if_unused());
    shared.state.lock().unused_since = Some(Instant::now() - OPEN_FOR);
    assert!(shared.close_if_unused());
    assert!(is_there(&shared, &first));
    // The end of the server is not waited for.
    let second = put(&shared, 2);
    drop(shared);
    let path = directory.path().join("repo");
    let next = Arc::new(SharedDirectory::new(Arc::new(Directory::open(&path).expect("opens"))));
    assert!(is_there(&next, &second));
}

#[test]
fn a_prune_beside_a_backup_takes_nothing_of_it() {
    let (_directory, shared) = shared();
    let writer = shared.write("backup", &mut |_| true).expect("opens");
    let old = commit(&writer, "web1", "2026-11-20T05-54-00Z", 1);
    drop(writer);
    let writer = shared.write("backup", &mut |_| true).expect("opens");
    // It has stored its blocks, and has neither flushed nor committed. Most of them are those of the old backup.
    let image = store_image(&*writer.store, "vda", &mixed_bytes(1, LEN));
    let manager = shared.manage("forget", &mut |_| true).expect("opens");
    manager.store.amend(&[old], &[]).expect("forgets");
    drop(manager);
    let pruned = prune(&shared);
    assert_eq!(pruned.swept.removed_blocks, 0);
    let made = backup("web1", "2026-11-21T05-54-00Z", vec![image]);
    let (key, bytes) = (made.spec(), made.encode());
    writer.store.commit(&Record { key, bytes }).expect("commits");
    drop(writer);
    assert_eq!(prune(&shared).swept.removed_blocks, 0);
    let view = Repository::open(shared.directory.name())
        .and_then(|repository| repository.view())
        .expect("opens");
    let catalogue = view.catalogue().expect("loads");
    let image = &catalogue.entries()[0].backup.images[0];
    let reader = ImageReader::open(view.store(), ReadResources::new(1), image).expect("opens");
    let mut read = vec![0; LEN];
    reader.read_at(0, &mut read).expect("reads");
    assert!(read == mixed_bytes(1, LEN));
}

#[test]
fn what_a_session_forgets_it_can_prune() {
    let (_directory, shared) = shared();
    let writer = shared.write("backup", &mut |_| true).expect("opens");
    let old = commit(&writer, "web1", "2026-11-20T05-54-00Z", 1);
    drop(writer);
    let manager = shared.manage("forget", &mut |_| true).expect("opens");
    manager.store.amend(&[old], &[]).expect("forgets");
    let stop = AtomicBool::new(false);
    let pruned = prune_without_key(&*manager.store, &*manager.keeper, ALL, 2, &stop, &|_| {}).expect("prunes");
    assert!(pruned.swept.removed_blocks > 0);
}

#[test]
fn a_client_that_asks_again_and_again_waits_in_between() {
    let (directory, shared) = shared();
    let open = || Directory::open(&directory.path().join("repo")).expect("opens");
    let prune = open().manage("prune", &mut no_wait).expect("opens");
    let is_locked = |error: Option<Error>| matches!(error, Some(Error::Locked { .. }));

    assert!(is_locked(shared.manage("prune", &mut no_wait).err()));
    assert!(!prune.keeper.is_awaited(), "two prunes would go in turns");
    assert!(is_locked(shared.write("backup", &mut no_wait).err()));
    assert!(prune.keeper.is_awaited());
    assert!(is_locked(shared.manage("prune", &mut no_wait).err()));
    assert!(prune.keeper.is_awaited(), "the backup still waits");
    // That client went away.
    while prune.keeper.is_awaited() {
        assert!(shared.close_if_unused());
        std::thread::sleep(Duration::from_millis(20));
    }

    let alone = open();
    assert!(is_locked(alone.write("backup", &mut no_wait).err()));
    assert!(prune.keeper.is_awaited());
    drop(prune);
    let session = alone.write("backup", &mut no_wait).expect("opens");
    assert!(!session.keeper.is_awaited(), "it has what it waited for");
}
