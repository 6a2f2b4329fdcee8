//! The cache of nodes that a client has put.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vbk_repo::block::{BlockSize, Hashing};
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::manifest::Full;
use vbk_repo::repository::home::{Home, Session};
use vbk_repo::store::{StoreReader, StoreWriter};

use super::again::put_backup;
use super::line::{Line, until};
use super::memory;

/// A node of 32 KiB.
fn large(seed: u8) -> (NodeId, Vec<u8>) {
    let name = |number: u16| {
        let mut name = [seed; 32];
        name[..2].copy_from_slice(&number.to_le_bytes());
        Some(BlockId(name))
    };
    let slots: Vec<_> = (0..1024).map(name).collect();
    Full::of(&slots).expect("not zero").encode(Hashing::Plain)
}

#[test]
fn what_this_host_put_is_not_fetched_and_put_again_where_it_is_gone() {
    let cache = tempfile::tempdir().expect("a directory");
    let homes = [(); 2].map(|()| memory(BlockSize::DEFAULT));
    let lines = homes.each_ref().map(|home| Line::new(home.clone()));
    let write = |line: usize| -> Session<dyn StoreWriter> {
        let client = lines[line].client(Duration::from_secs(3600)).expect("connects");
        let client = client.with_cache(Some((cache.path(), 1 << 30)));
        client.write("backup", &mut |_| false).expect("opens")
    };
    let nodes: Vec<_> = (0..20).map(large).collect();
    let ids: Vec<_> = nodes.iter().map(|(id, _)| *id).collect();
    let check = |store: &dyn StoreReader| {
        for (node, (_, bytes)) in store.nodes(&ids).into_iter().zip(&nodes) {
            assert!(node.expect("is there") == *bytes);
        }
    };
    let session = write(0);
    session.store.put_nodes(nodes.clone()).expect("puts");
    session
        .store
        .commit(&put_backup(&*session.store, "web1", 1))
        .expect("commits");
    drop(session);

    // The next backup on this host.
    let session = write(0);
    let down = || lines[0].down_bytes.load(Ordering::SeqCst);
    let before = down();
    check(&*session.store);
    session
        .store
        .commit(&put_backup(&*session.store, "web2", 1))
        .expect("commits");
    assert!(down() - before < 10_000, "{}", down() - before);
    drop(session);

    // A server that lost them all, but has the same name and id.
    let session = write(1);
    check(&*session.store);
    let there = || homes[1].read().expect("reads").store.nodes(&ids);
    assert!(there().iter().all(Result::is_err));
    session
        .store
        .commit(&put_backup(&*session.store, "web1", 1))
        .expect("commits");
    assert!(there().iter().all(Result::is_ok));
    drop(session);

    // Who reads gets what the server has.
    let reader = lines[0]
        .client(Duration::ZERO)
        .expect("connects")
        .with_cache(Some((cache.path(), 1 << 30)));
    let reader = reader.read().expect("reads").store;
    let before = down();
    check(&*reader);
    until("the answers have passed", || down() - before > 20 * 32_000);
}
