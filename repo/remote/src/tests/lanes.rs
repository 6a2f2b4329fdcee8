//! Several connections for the blocks of one store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vbk_repo::block::BlockSize;
use vbk_repo::id::BlockId;
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SharedDirectory;
use vbk_repo::repository::home::Home;
use vbk_repo::repository::{CreateOptions, Repository};
use vbk_repo::store::Wanted;
use vbk_repo::{Error, ErrorKind};

use super::line::{Line, until};
use super::{manager, memory, sealed};
use crate::client::{LaneOptions, RemoteHome};

const HOUR: Duration = Duration::from_secs(3600);

/// Connections at once, and without a limit.
const AT_ONCE: LaneOptions = LaneOptions {
    most: 3,
    after_bytes: 0,
};

/// A client of the first line that takes the others for its more connections.
fn client(lines: &[Arc<Line>; 2]) -> RemoteHome {
    let more = Arc::clone(&lines[1]);
    lines[0]
        .client(HOUR)
        .expect("connects")
        .with_lanes(AT_ONCE, move || more.client(HOUR))
}

#[test]
fn a_store_of_many_connections_keeps_what_every_store_keeps() {
    vbk_repo::store::conformance::check_without_sweeps(|size| {
        let home = memory(size);
        manager(&client(&[(); 2].map(|()| Line::new(Arc::clone(&home)))))
    });
    vbk_repo::store::conformance::check_without_sweeps(|size| {
        let home = memory(size);
        let line = || Line::that_cuts(Arc::clone(&home), |_| (200 << 10, 200 << 10));
        manager(&client(&[line(), line()]))
    });
}

#[test]
fn blocks_go_over_all_connections_and_are_stored_when_the_first_one_commits() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("repository");
    drop(Repository::create(&path, &CreateOptions::plain(BlockSize::DEFAULT)).expect("creates"));
    let shared = Arc::new(SharedDirectory::new(Arc::new(Directory::open(&path).expect("opens"))));
    let lines = [(); 2].map(|()| Line::new(shared.home()));
    let home = client(&lines);
    let session = home.write("backup web1", &mut |_| false).expect("opens");
    let ids: Vec<BlockId> = (0..41).map(|seed| sealed(seed).id).collect();
    let put = |seed: u8| session.store.put(vec![sealed(seed)]).expect("puts");
    put(0);
    until("the others are there", || {
        lines[1].connections.load(Ordering::SeqCst) == 2
    });
    (1..40).for_each(put);
    for line in &lines {
        assert!(line.up_bytes.load(Ordering::SeqCst) > 1 << 20);
    }
    // What is asked next sees all of them.
    let located = session.store.locate(&ids[..40]).expect("looks");
    assert!(located.iter().all(Option::is_some));
    // What was on its way when a line broke is sent again.
    put(40);
    lines[1].cut();
    let record = super::again::put_backup(&*session.store, "web1", 1);
    session.store.commit(&record).expect("commits");
    session.keeper.publish().expect("publishes");
    drop(session);
    let reader = client(&lines).read().expect("reads").store;
    assert!(reader.locate(&ids).expect("looks").iter().all(Option::is_some));
    let wanted: Vec<_> = ids.iter().map(|id| Wanted { id: *id, pages: 0..16 }).collect();
    for wanted in wanted.chunks(4) {
        assert!(reader.get(wanted).iter().all(Result::is_ok));
    }
}

#[test]
fn a_connection_that_is_lost_for_good_keeps_nobody_from_reading() {
    let home = memory(BlockSize::DEFAULT);
    let filling = Line::new(Arc::clone(&home));
    let ids: Vec<_> = (0..8).map(|seed| sealed(seed).id).collect();
    let store = manager(&filling.client(HOUR).expect("connects"));
    store.put((0..8).map(sealed).collect()).expect("puts");
    store.flush().expect("flushes");
    let lines = [(); 2].map(|()| Line::new(Arc::clone(&home)));
    let more = Arc::clone(&lines[1]);
    let client = lines[0].client(HOUR).expect("connects");
    let client = client.with_lanes(AT_ONCE, move || more.client(Duration::ZERO));
    let reader = client.read().expect("reads").store;
    let reader = &*reader;
    let read = || {
        let wanted: Vec<_> = ids.iter().map(|id| Wanted { id: *id, pages: 0..16 }).collect();
        // At once: one that waits for each answer needs one connection alone.
        let all = std::thread::scope(|scope| {
            let get = |wanted| scope.spawn(move || reader.get(wanted).iter().all(Result::is_ok));
            let reading: Vec<_> = wanted.chunks(1).map(get).collect();
            reading.into_iter().all(|read| read.join().expect("runs"))
        });
        all && reader.locate(&ids).is_ok()
    };
    assert!(read());
    until("the others are there", || {
        lines[1].connections.load(Ordering::SeqCst) == 2
    });
    until("they are used", || {
        read() && lines[1].down_bytes.load(Ordering::SeqCst) > 1 << 20
    });
    lines[1].cut();
    for _ in 0..20 {
        assert!(read());
    }
}

#[test]
fn one_connection_does_where_others_are_refused_or_lead_elsewhere() {
    let home = memory(BlockSize::DEFAULT);
    let line = Line::new(Arc::clone(&home));
    let elsewhere = Line::new(memory(BlockSize::MIN));
    let refused = || Error::Remote {
        kind: ErrorKind::Denied,
        message: "no".into(),
    };
    let first = || line.client(HOUR).expect("connects");
    let clients = [
        first().with_lanes(AT_ONCE, move || Err(refused())),
        first().with_lanes(AT_ONCE, move || elsewhere.client(HOUR)),
    ];
    for (client, seed) in clients.into_iter().zip([1, 60]) {
        let store = manager(&client);
        for seed in seed..seed + 20 {
            store.put(vec![sealed(seed)]).expect("puts");
        }
        store.flush().expect("flushes");
        let here = home.read().expect("reads").store;
        for seed in seed..seed + 20 {
            assert!(here.locate(&[sealed(seed).id]).expect("looks")[0].is_some(), "{seed}");
        }
    }
}
