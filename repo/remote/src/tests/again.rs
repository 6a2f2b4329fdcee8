//! Lost connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vbk_repo::backup::Image;
use vbk_repo::block::{BlockIndex, BlockSize, Hashing};
use vbk_repo::catalogue::Catalogue;
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::manifest::Full;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::{Home, Session};
use vbk_repo::repository::{Change, CreateOptions, Repository};
use vbk_repo::state::States;
use vbk_repo::store::{PruneOptions, Record, StoreReader, StoreWriter, Wanted};
use vbk_repo::writer::ImageWriter;
use vbk_repo::{Error, ErrorKind, Result};

use super::line::{EVER, Line, until};
use super::{backup, fill, manager, memory};
use crate::client::RemoteHome;
use crate::server::Allowed;

const HOUR: Duration = Duration::from_secs(3600);

fn small(seed: u8) -> Sealed {
    let plain: Vec<u8> = (0..200).map(|at: u8| at.wrapping_mul(77) ^ seed).collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

fn node(seed: u8) -> (NodeId, Vec<u8>) {
    Full::of(&[Some(BlockId([seed; 32])), None])
        .expect("not zero")
        .encode(Hashing::Plain)
}

fn record() -> Record {
    Record {
        key: "web1@2026-11-29T00:00:00Z".into(),
        bytes: b"{}".to_vec(),
    }
}

/// Puts a backup of one block of [`small`], but for its record.
pub(super) fn put_backup(store: &dyn StoreWriter, guest: &str, seed: u8) -> Record {
    let block = small(seed);
    let image = ImageWriter::create(store, BlockSize::DEFAULT, 200);
    image.set(BlockIndex(0), &[Some(block.id)]).expect("sets");
    store.put(vec![block]).expect("puts");
    let root = image.finish().expect("puts");
    let image = Image::new("vda".parse().expect("a name"), "/dev/null", 200, root);
    let backup = backup(guest, "2026-11-29T00-00-00Z", vec![image]);
    Record {
        key: backup.spec(),
        bytes: backup.encode(),
    }
}

fn directory(path: &std::path::Path) -> Arc<dyn Home> {
    Arc::new(Directory::open(path).expect("opens"))
}

fn new_directory(parent: &tempfile::TempDir) -> std::path::PathBuf {
    let path = parent.path().join("repository");
    drop(Repository::create(&path, &CreateOptions::plain(BlockSize::DEFAULT)).expect("creates"));
    path
}

fn write(home: &RemoteHome) -> Session<dyn StoreWriter> {
    home.write("backup", &mut |_| false).expect("opens")
}

/// A small backup, and what a reader then sees.
fn back_up(home: &RemoteHome) -> Result<()> {
    let session = home.write("backup", &mut |_| false)?;
    let store = &session.store;
    assert_eq!(store.locate(&[small(1).id, small(2).id])?, [None, None]);
    store.put(vec![small(1)])?;
    store.put(vec![small(2)])?;
    store.flush()?;
    store.put(vec![small(3)])?;
    store.put_nodes(vec![node(1)])?;
    store.commit(&record())?;
    session.keeper.publish()?;
    drop(session);
    let snapshot = home.read()?;
    assert_eq!(snapshot.store.records()?, [record()]);
    check(&*snapshot.store);
    Ok(())
}

fn check(store: &dyn StoreReader) {
    for block in [small(1), small(2), small(3)] {
        let wanted = Wanted {
            id: block.id,
            pages: 0..block.pages.len(),
        };
        let stored = store.get(&[wanted]).pop().expect("an answer").expect("is stored");
        assert_eq!((stored.header, stored.pages), (block.header, block.pages));
    }
    let (id, bytes) = node(1);
    let stored = store.nodes(&[id]).pop().expect("an answer").expect("is stored");
    assert_eq!(stored, bytes);
}

#[test]
fn a_backup_survives_a_cut_after_every_byte() {
    let whole = Line::new(memory(BlockSize::DEFAULT));
    back_up(&whole.client(HOUR).expect("connects")).expect("works");
    let up = whole.up_bytes.load(Ordering::SeqCst);
    let down = whole.down_bytes.load(Ordering::SeqCst);
    assert!(up > 1000 && down > 1000, "{up} {down}");
    let mut survived = 0;
    let cuts = (0..up)
        .map(|after| (after, EVER))
        .chain((0..down).map(|after| (EVER, after)));
    for cut in cuts {
        let home = memory(BlockSize::DEFAULT);
        // The second connection may end while it greets.
        let again = (cut.0.min(cut.1) % 400 + 20, EVER);
        let line = Line::that_cuts(Arc::clone(&home), move |number| match number {
            0 => cut,
            1 => again,
            _ => (EVER, EVER),
        });
        let started = Instant::now();
        match line.client(HOUR) {
            // The first connection is not tried again.
            Err(error) => assert!(cut.0.min(cut.1) < 150, "{cut:?}: {error}"),
            Ok(client) => {
                back_up(&client).unwrap_or_else(|error| panic!("{cut:?}: {error}"));
                assert_eq!(client.put_bytes(), 0, "{cut:?}");
                survived += 1;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{cut:?}");
    }
    assert!(survived > 1500, "{survived}");
}

#[test]
fn a_store_over_a_line_that_is_cut_all_the_time_keeps_what_every_store_keeps() {
    vbk_repo::store::conformance::check_without_sweeps(|size| {
        let line = Line::that_cuts(memory(size), |_| (200 << 10, 200 << 10));
        manager(&line.client(HOUR).expect("connects"))
    });
}

#[test]
fn people_are_told_of_a_lost_connection_and_of_its_end() {
    let line = Line::new(memory(BlockSize::DEFAULT));
    let home = line.client(HOUR).expect("connects");
    line.is_away.store(true, Ordering::SeqCst);
    line.cut();
    until("it is lost", || line.told.lock().len() == 1);
    line.is_away.store(false, Ordering::SeqCst);
    assert!(home.read().is_ok());
    let told = line.told.lock();
    assert!(told[0].starts_with("the connection to line is lost: ") && told[0].ends_with("trying again for up to 1 h"));
    assert_eq!(told[1..], ["the connection to line is back"]);
}

#[test]
fn each_backup_of_a_session_learns_what_a_restarted_server_lost_of_it() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = new_directory(&parent);
    let line = Line::new(directory(&path));
    let home = line.client(HOUR).expect("connects");
    let session = write(&home);
    let store = &*session.store;
    let durable = put_backup(store, "web1", 1);
    store.flush().expect("flushes");
    let lost = put_backup(store, "web2", 2);
    // All was answered, and is only in the server's memory.
    until("all has arrived", || home.put_bytes() == 0);
    line.cut();
    until("it is back", || line.told.lock().len() == 2);
    store.flush().expect("flushes");
    store.commit(&durable).expect("commits");
    for _ in 0..2 {
        match store.commit(&lost) {
            Err(Error::Missing { blocks, nodes }) => {
                assert_eq!(blocks, [small(2).id]);
                assert_eq!(nodes, [], "they were put again");
            }
            other => panic!("{other:?}"),
        }
    }
    store.commit(&put_backup(store, "web3", 3)).expect("commits");
    store.put(vec![small(2)]).expect("puts");
    store.commit(&lost).expect("commits");
    session.keeper.publish().expect("publishes");
    drop(session);
    let reader = home.read().expect("reads").store;
    assert_eq!(reader.records().expect("lists").len(), 3);
    for seed in [1, 2, 3] {
        assert!(reader.locate(&[small(seed).id]).expect("looks")[0].is_some());
    }
}

#[test]
fn a_commit_is_not_repeated_by_a_server_that_lost_what_it_names() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = new_directory(&parent);
    let line = Line::new(directory(&path));
    let home = line.client(HOUR).expect("connects");
    let session = write(&home);
    let record = put_backup(&*session.store, "web1", 1);
    until("all has arrived", || home.put_bytes() == 0);
    // The commit waits for a connection.
    line.is_away.store(true, Ordering::SeqCst);
    line.cut();
    until("it is lost", || !line.told.lock().is_empty());
    let committed = std::thread::scope(|scope| {
        let committing = scope.spawn(|| session.store.commit(&record));
        line.is_away.store(false, Ordering::SeqCst);
        committing.join().expect("runs")
    });
    assert!(matches!(committed, Err(Error::Missing { .. })), "{committed:?}");
    assert_eq!(session.store.records().expect("lists"), []);
}

#[test]
fn a_writer_waits_for_one_that_came_meanwhile() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = new_directory(&parent);
    let line = Line::new(directory(&path));
    let home = line.client(HOUR).expect("connects");
    let session = write(&home);
    session.store.put(vec![small(1)]).expect("puts");
    session.store.flush().expect("flushes");
    line.is_away.store(true, Ordering::SeqCst);
    line.cut();
    let other = directory(&path);
    let other = other.write("backup web2", &mut |_| true).expect("gets the lock");
    let flushed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            session.store.put(vec![small(2)]).expect("puts");
            session.store.flush().expect("flushes");
            flushed.store(true, Ordering::SeqCst);
        });
        let before = line.down_bytes.load(Ordering::SeqCst);
        line.is_away.store(false, Ordering::SeqCst);
        // A greeting has less.
        until("it is refused", || {
            line.down_bytes.load(Ordering::SeqCst) > before + 200
        });
        assert!(!flushed.load(Ordering::SeqCst));
        drop(other);
    });
    assert!(flushed.load(Ordering::SeqCst));
}

#[test]
fn a_wait_ends_when_the_command_is_interrupted() {
    let line = Line::new(memory(BlockSize::DEFAULT));
    let home = line.client(HOUR).expect("connects");
    let session = write(&home);
    line.is_away.store(true, Ordering::SeqCst);
    line.cut();
    until("it is lost", || !line.told.lock().is_empty());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| session.store.locate(&[BlockId([1; 32])]));
        let flushing = scope.spawn(|| session.store.flush());
        line.is_stopped.store(true, Ordering::SeqCst);
        let stopped = Instant::now();
        let error = waiting.join().expect("runs").expect_err("was stopped");
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        let error = flushing.join().expect("runs").expect_err("was stopped");
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert!(stopped.elapsed() < Duration::from_secs(1));
    });
    let ending = Instant::now();
    drop((session, home));
    assert!(ending.elapsed() < Duration::from_secs(1));
}

#[test]
fn tries_end_after_their_time_and_say_what_to_do() {
    let line = Line::new(memory(BlockSize::DEFAULT));
    let home = line.client(Duration::from_secs(1)).expect("connects");
    line.is_away.store(true, Ordering::SeqCst);
    line.cut();
    let started = Instant::now();
    until("it is given up", || home.key_slots().is_err());
    let error = home.key_slots().expect_err("is final");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    for part in ["line", "1 s", "connection refused", "run the command again"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(line.connections.load(Ordering::SeqCst) > 2);
}

#[test]
fn a_refusal_after_a_lost_connection_is_final() {
    let parents = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let homes = parents.each_ref().map(|parent| directory(&new_directory(parent)));
    let refusals = [
        ("another repository", 1, Allowed::Everything, ErrorKind::Invalid),
        ("does not let this client", 0, Allowed::Add, ErrorKind::Denied),
    ];
    for (says, other, allowed, kind) in refusals {
        let line = Line::new(Arc::clone(&homes[0]));
        let home = line.client(HOUR).expect("connects");
        let session = home.manage("forget", &mut |_| true).expect("opens");
        *line.home.lock() = Arc::clone(&homes[other]);
        *line.allowed.lock() = allowed;
        line.cut();
        until("it is refused", || session.store.flush().is_err());
        let error = session.store.flush().expect_err("is final");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn a_prune_is_not_asked_again() {
    let line = Line::new(memory(BlockSize::DEFAULT));
    let home = line.client(HOUR).expect("connects");
    let session = home.manage("prune", &mut |_| false).expect("opens");
    line.is_mute.store(true, Ordering::SeqCst);
    let before = line.up_bytes.load(Ordering::SeqCst);
    let error = std::thread::scope(|scope| {
        let options = PruneOptions {
            max_unused: 0.0,
            dry_run: false,
            empty_bin: false,
        };
        let keeper = &session.keeper;
        let pruning = scope.spawn(move || keeper.prune(options, &AtomicBool::new(false), &|_| {}));
        until("it is asked", || line.up_bytes.load(Ordering::SeqCst) > before);
        line.cut();
        line.is_mute.store(false, Ordering::SeqCst);
        pruning.join().expect("runs").expect("there").expect_err("is lost")
    });
    assert!(error.to_string().contains("`vbk prune` continues"), "{error}");
    // And all else goes on.
    session.store.flush().expect("flushes");
}

#[test]
fn a_forget_whose_answer_is_lost_was_made_and_is_no_error() {
    let home = memory(BlockSize::DEFAULT);
    let line = Line::new(Arc::clone(&home));
    let client = line.client(HOUR).expect("connects");
    let session = write(&client);
    let key = put_backup(&*session.store, "web1", 1);
    session.store.commit(&key).expect("commits");
    drop(session);
    let manager = Repository::at(Arc::new(client))
        .manager("forget", &mut |_| true)
        .expect("opens");
    let decide = |catalogue: &Catalogue, _: &States| {
        let entry = catalogue.find(&key.key.parse()?)?;
        let change = Change {
            forget: vec![entry.backup.spec()],
            ..Change::default()
        };
        Ok::<_, Error>((change, "forgotten"))
    };
    // The answers before the one that counts pass.
    let decide = |catalogue: &Catalogue, states: &States| {
        line.is_mute.store(true, Ordering::SeqCst);
        decide(catalogue, states)
    };
    let forgotten = std::thread::scope(|scope| {
        let forgetting = scope.spawn(|| manager.change(decide));
        let here = home.read().expect("reads").store;
        until("it is done there", || here.records().expect("lists").is_empty());
        line.cut();
        line.is_mute.store(false, Ordering::SeqCst);
        forgetting.join().expect("runs")
    });
    assert_eq!(forgotten.expect("was made"), "forgotten");
}

#[test]
fn a_listing_begins_again() {
    let home = memory(BlockSize::DEFAULT);
    let filling = Line::new(Arc::clone(&home));
    let store = manager(&filling.client(HOUR).expect("connects"));
    let records = fill(&*store);
    // The first parts arrive once more.
    let line = Line::that_cuts(home, |number| match number {
        0 => (EVER, 5 << 20),
        1 => (EVER, 9 << 20),
        _ => (EVER, EVER),
    });
    let reader = line.client(HOUR).expect("connects");
    let listing = reader.read().expect("reads").store.listing(true).expect("lists");
    assert!(listing.records == records);
    assert_eq!(line.connections.load(Ordering::SeqCst), 3);
}
