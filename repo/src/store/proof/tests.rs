use super::*;
use crate::backup::Image;
use crate::store::StoreWriter;
use crate::store::memory::MemoryStore;
use crate::tests::testing::{SMALL, mixed_bytes, store_image, store_image_after};

const LEN: usize = 40 << 16;

fn missing(result: Result<()>) -> (Vec<BlockId>, Vec<NodeId>) {
    match result {
        Ok(()) => Default::default(),
        Err(Error::Missing { blocks, nodes }) => (blocks, nodes),
        Err(error) => panic!("{error}"),
    }
}

fn ids(store: &MemoryStore) -> Vec<BlockId> {
    let mut ids = Vec::new();
    let all = store.survey(&mut |id, _| {
        ids.push(id);
        Ok(())
    });
    all.expect("surveys");
    ids
}

#[test]
fn every_block_of_a_manifest_is_looked_for() {
    let store = MemoryStore::new(SMALL);
    let root = store_image(&store, "vda", &mixed_bytes(1, LEN)).manifest;
    Proved::default().prove(&store, &[root]).expect("all is there");
    for id in ids(&store) {
        let block = store.take(id).expect("is there");
        let found = missing(Proved::default().prove(&store, &[root, root]));
        assert_eq!(found, (vec![id], vec![]));
        store.put(vec![block]).expect("puts");
    }
}

#[test]
fn a_node_that_is_not_there_is_named() {
    let store = MemoryStore::new(SMALL);
    let other = MemoryStore::new(SMALL);
    let root = store_image(&other, "vda", &mixed_bytes(1, LEN)).manifest;
    let mut found = Vec::new();
    // Each time what was named is put, and the next level is missing.
    let blocks = loop {
        let (blocks, nodes) = missing(Proved::default().prove(&store, &[root]));
        if nodes.is_empty() {
            break blocks;
        }
        assert_eq!(blocks, []);
        let bytes = other.nodes(&nodes).into_iter().map(|node| node.expect("is there"));
        store
            .put_nodes(nodes.iter().copied().zip(bytes).collect())
            .expect("puts");
        found.extend(nodes);
    };
    assert!(found.len() >= 3, "a root, a page and a segment: {found:?}");
    assert_eq!(blocks.len(), ids(&other).len());
}

#[test]
fn a_part_that_is_trusted_is_not_looked_at_and_a_changed_one_is() {
    let store = MemoryStore::new(SMALL);
    let plain = mixed_bytes(1, LEN);
    let root = store_image(&store, "vda", &plain).manifest;
    let lost = ids(&store)[0];
    store.take(lost);
    let mut proved = Proved::default();
    proved.trust(&store, &[root]).expect("reads");
    proved.prove(&store, &[root]).expect("is trusted");
    let mut changed = plain;
    changed[..8].copy_from_slice(b"changed!");
    let before = ids(&store);
    let root = store_image(&store, "vda", &changed).manifest;
    let new = ids(&store)
        .into_iter()
        .find(|id| !before.contains(id))
        .expect("a new block");
    store.take(new);
    assert!(missing(proved.prove(&store, &[root])).0.contains(&new));
}

#[test]
fn of_a_changed_part_only_blocks_are_looked_up_that_it_did_not_name_before() {
    let store = MemoryStore::new(SMALL);
    let mut plain = mixed_bytes(1, LEN);
    // No other block is like the first.
    plain[..5].copy_from_slice(b"first");
    let first = store_image(&store, "vda", &plain);
    let old = ids(&store);
    let changed = |text: &[u8]| {
        let mut plain = plain.clone();
        plain[..text.len()].copy_from_slice(text);
        plain
    };
    let second = store_image_after(&store, "vda", &changed(b"second"), Some(&first));
    let of_second = ids(&store)
        .into_iter()
        .find(|id| !old.contains(id))
        .expect("a new block");
    let third = store_image_after(&store, "vda", &changed(b"third"), Some(&second));
    let of_third = ids(&store)
        .into_iter()
        .find(|id| !old.contains(id) && *id != of_second)
        .expect("a new block");
    let back = store_image_after(&store, "vda", &plain, Some(&second));
    assert_ne!(back.manifest, second.manifest);
    // All are gone, so that what is looked up is missing.
    let all = ids(&store);
    all.iter().for_each(|id| drop(store.take(*id)));
    let looked_up = |trusted: &Image, root: &Image| {
        let mut proved = Proved::default();
        proved.trust(&store, &[trusted.manifest]).expect("reads");
        missing(proved.prove(&store, &[root.manifest])).0
    };
    assert_eq!(looked_up(&first, &second), [of_second]);
    assert_eq!(looked_up(&second, &third), [of_third]);
    // The block of the first day that the second has no more is not known by it.
    let again = looked_up(&second, &back);
    assert!(again.len() == 1 && old.contains(&again[0]), "{again:?}");
    // Another disk's parts help nothing.
    let other = store_image(&store, "vdb", &mixed_bytes(2, LEN));
    ids(&store).iter().for_each(|id| drop(store.take(*id)));
    assert!(looked_up(&other, &third).len() >= old.len());
}
