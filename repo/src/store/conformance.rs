//! The rules of every store, as checks for the tests of each implementation.

mod differences;

use std::sync::Arc;

use super::{Live, Note, PruneOptions, Record, StoreManager, Swept, Terms, Wanted};
use crate::block::Hashing;
use crate::block::{BlockSize, PAGE_BYTES};
use crate::codec::{Compression, Header, Sealed, Sealer};
use crate::error::{Error, ErrorKind};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Full, Slot};

/// Runs all cases, each on a new store. Panics at a rule that is broken.
pub fn check(make: impl Fn(BlockSize) -> Box<dyn StoreManager>) {
    check_without_sweeps(&make);
    the_bin_is_emptied_but_for_what_must_stay(&*make(BlockSize::DEFAULT));
    a_session_that_keeps_nodes_replaces_none(&*make(BlockSize::DEFAULT));
    retain_removes_what_is_not_live_and_nothing_else(&*make(BlockSize::DEFAULT));
    retain_keeps_a_little_that_is_unused_and_a_dry_run_keeps_all(&*make(BlockSize::DEFAULT));
    differences::a_difference_whose_base_is_removed_is_not_stored(&*make(BlockSize::DEFAULT));
}

/// Runs the cases of a store that sweeps by itself: all but those of [`StoreManager::retain`].
pub fn check_without_sweeps(make: impl Fn(BlockSize) -> Box<dyn StoreManager>) {
    let cases: [fn(&dyn StoreManager); 20] = [
        a_new_store_is_empty_and_knows_itself,
        what_is_put_is_got,
        parts_of_a_block_are_got_alone,
        putting_twice_changes_nothing,
        one_missing_block_does_not_keep_the_others_back,
        nodes_are_kept_under_their_names,
        records_are_listed_in_order_and_never_replaced,
        many_threads_may_put_the_same,
        what_readers_see_has_a_generation,
        records_go_by_name_and_notes_change_with_them,
        a_condemned_block_is_stored_anew_once,
        the_mark_of_a_block_that_a_sweep_removed_goes_when_it_is_put_again,
        a_change_is_made_to_the_state_that_it_came_from,
        named_records_and_notes_are_looked_up,
        the_store_knows_when_a_record_was_committed,
        removed_records_are_in_the_bin,
        differences::a_difference_is_kept_with_its_base,
        differences::a_difference_without_its_base_is_refused,
        differences::what_depends_on_a_condemned_block_is_condemned,
        differences::a_condemned_block_becomes_a_difference_unless_its_base_depends_on_it,
    ];
    for case in cases {
        case(&*make(BlockSize::DEFAULT));
    }
}

fn plain(seed: u8, pages: usize) -> Vec<u8> {
    // Each page differs from the others, and every third one is zeros.
    let byte = |i| match i / PAGE_BYTES % 3 {
        2 => 0,
        page => (i * 7 % 251) as u8 ^ seed ^ page as u8,
    };
    (0..pages * PAGE_BYTES).map(byte).collect()
}

fn sealed(store: &dyn StoreManager, seed: u8, pages: usize) -> Sealed {
    let plain = plain(seed, pages);
    Sealer::new(Compression::default())
        .and_then(|mut sealer| sealer.seal(&plain, &store.hashing().block(&plain)))
        .expect("seals")
}

fn segment(hashing: Hashing, slots: &[Slot]) -> (NodeId, Vec<u8>) {
    Full::of(slots).expect("not zero").encode(hashing)
}

fn whole(sealed: &Sealed) -> Wanted {
    Wanted {
        id: sealed.id,
        pages: 0..sealed.pages.len(),
    }
}

fn what_readers_see_has_a_generation(store: &dyn StoreManager) {
    let generation = || store.generation().expect("is known");
    let before = generation();
    store.put(vec![sealed(store, 1, 1)]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(generation(), before);
    let record = Record {
        key: "a@1".into(),
        bytes: vec![1],
    };
    store.commit(&record).expect("commits");
    assert_eq!(generation(), before + 1);
    store.commit(&record).expect("commits the same again");
    assert_eq!(generation(), before + 1);
    store.amend(&["a@1".into()], &[]).expect("forgets");
    assert_eq!(generation(), before + 2);
}

fn a_new_store_is_empty_and_knows_itself(store: &dyn StoreManager) {
    assert_eq!(store.identity().expect("identity").block_size, BlockSize::DEFAULT);
    assert_eq!(store.records().expect("records"), []);
    assert_eq!(store.locate(&[BlockId([1; 32])]).expect("locates"), [None]);
    assert_eq!(store.notes().expect("notes"), []);
    assert_eq!(store.condemned().expect("lists"), []);
    assert!(store.locate(&[]).expect("locates").is_empty());
    store.flush().expect("an empty flush succeeds");
}

fn what_is_put_is_got(store: &dyn StoreManager) {
    let blocks = [sealed(store, 1, 16), sealed(store, 2, 1), sealed(store, 3, 5)];
    store.put(blocks.to_vec()).expect("puts");
    for flushed in [false, true] {
        let ids = blocks.each_ref().map(|block| block.id);
        let places = store.locate(&ids).expect("locates");
        assert!(places.iter().all(Option::is_some), "flushed: {flushed}");
        for (block, stored) in blocks.iter().zip(store.get(&blocks.each_ref().map(whole))) {
            let stored = stored.expect("is there");
            assert_eq!((&stored.header, &stored.pages), (&block.header, &block.pages));
            Header::prove(store.hashing(), block.id, block.plain_bytes as usize, &stored.header).expect("proves");
        }
        store.flush().expect("flushes");
    }
}

fn parts_of_a_block_are_got_alone(store: &dyn StoreManager) {
    let block = sealed(store, 1, 16);
    store.put(vec![block.clone()]).expect("puts");
    store.flush().expect("flushes");
    for pages in [0..1, 3..4, 15..16, 4..9, 7..7] {
        let wanted = Wanted {
            id: block.id,
            pages: pages.clone(),
        };
        let stored = store.get(&[wanted]).remove(0).expect("is there");
        assert_eq!(stored.header, block.header);
        assert_eq!(stored.pages, block.pages[pages]);
    }
}

fn putting_twice_changes_nothing(store: &dyn StoreManager) {
    let block = sealed(store, 1, 4);
    store.put(vec![block.clone(), block.clone()]).expect("puts");
    let first = store.locate(&[block.id]).expect("locates");
    store.put(vec![block.clone()]).expect("puts");
    store.flush().expect("flushes");
    store.put(vec![block.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(store.locate(&[block.id]).expect("locates"), first);
    let stored = store.get(&[whole(&block)]).remove(0).expect("is there");
    assert_eq!(stored.pages, block.pages);
}

fn one_missing_block_does_not_keep_the_others_back(store: &dyn StoreManager) {
    let (here, gone) = (sealed(store, 1, 4), sealed(store, 2, 4));
    store.put(vec![here.clone()]).expect("puts");
    let answers = store.get(&[whole(&gone), whole(&here), whole(&gone)]);
    assert!(matches!(answers[0], Err(Error::BlockMissing(id)) if id == gone.id));
    assert!(answers[1].is_ok());
    assert!(answers[2].is_err());
}

fn nodes_are_kept_under_their_names(store: &dyn StoreManager) {
    let (id, bytes) = segment(store.hashing(), &[Some(BlockId([7; 32])), None]);
    store
        .put_nodes(vec![(id, bytes.clone()), (id, bytes.clone())])
        .expect("puts");
    store.flush().expect("flushes");
    let answers = store.nodes(&[NodeId([9; 32]), id]);
    assert_eq!(answers[0].as_ref().map_err(Error::kind), Err(ErrorKind::Corrupt));
    assert_eq!(answers[1].as_ref().expect("is there"), &bytes);
}

fn records_are_listed_in_order_and_never_replaced(store: &dyn StoreManager) {
    let record = |key: &str, bytes: &[u8]| Record {
        key: key.into(),
        bytes: bytes.into(),
    };
    let all = [record("a@1", b"1"), record("a@2", b"2"), record("b@0", b"3")];
    for place in [2, 0, 1] {
        store.commit(&all[place]).expect("commits");
    }
    // The answer to the first commit may have been lost.
    store.commit(&all[1]).expect("commits the same again");
    let again = store.commit(&record("a@1", b"other"));
    assert!(matches!(again, Err(Error::BackupExists(key)) if key == "a@1"));
    assert_eq!(store.records().expect("records"), all);
}

fn many_threads_may_put_the_same(store: &dyn StoreManager) {
    let blocks: Arc<Vec<_>> = Arc::new((0..8).map(|seed| sealed(store, seed, 2)).collect());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let blocks = Arc::clone(&blocks);
            scope.spawn(move || {
                for turn in 0..8 {
                    let block = blocks[(turn + thread) % 8].clone();
                    store.put(vec![block]).expect("puts");
                    if turn % 3 == thread % 3 {
                        store.flush().expect("flushes");
                    }
                }
            });
        }
    });
    store.flush().expect("flushes");
    let wanted: Vec<_> = blocks.iter().map(whole).collect();
    for (block, stored) in blocks.iter().zip(store.get(&wanted)) {
        assert_eq!(stored.expect("is there").pages, block.pages);
    }
}

fn note(name: &str, value: Option<&[u8]>) -> Note {
    Note {
        name: name.into(),
        value: value.map(Into::into),
    }
}

fn records_go_by_name_and_notes_change_with_them(store: &dyn StoreManager) {
    for key in ["a@1", "a@2"] {
        let bytes = key.into();
        store.commit(&Record { key: key.into(), bytes }).expect("commits");
    }
    store
        .amend(&[], &[note("x", Some(b"1")), note("y", Some(b"2"))])
        .expect("amends");
    store
        .amend(&["a@1".into(), "b@7".into()], &[note("y", None), note("z", None)])
        .expect("amends");
    let keys: Vec<_> = store
        .records()
        .expect("lists")
        .into_iter()
        .map(|record| record.key)
        .collect();
    assert_eq!(keys, ["a@2"]);
    assert_eq!(store.notes().expect("lists"), [note("x", Some(b"1"))]);
    let bytes = b"again".to_vec();
    store
        .commit(&Record {
            key: "a@1".into(),
            bytes,
        })
        .expect("a name is free again");
}

fn a_change_is_made_to_the_state_that_it_came_from(store: &dyn StoreManager) {
    let record = |key: &str| Record {
        key: key.into(),
        bytes: key.into(),
    };
    let before = store.generation().expect("is known");
    store
        .commit_at(&record("a@1"), &[note("x", Some(b"1"))], Some(before))
        .expect("commits");
    let refused = [
        store.commit_at(&record("a@2"), &[note("x", None)], Some(before)),
        store.amend_at(&["a@1".into()], &[note("x", None)], Some(before)),
    ];
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::Moved))));
    assert_eq!(store.records().expect("lists"), [record("a@1")]);
    assert_eq!(store.notes().expect("lists"), [note("x", Some(b"1"))]);
    // The answer to the commit may have been lost.
    store
        .commit_at(&record("a@1"), &[note("x", Some(b"1"))], Some(before))
        .expect("commits the same again");
    store
        .amend_at(&["a@1".into()], &[note("x", None)], Some(before + 1))
        .expect("amends");
    assert_eq!(store.records().expect("lists"), []);
}

fn named_records_and_notes_are_looked_up(store: &dyn StoreManager) {
    for key in ["a@1", "a@2"] {
        let bytes = key.into();
        store.commit(&Record { key: key.into(), bytes }).expect("commits");
    }
    let notes = [note("x", Some(b"1")), note("y", Some(b"2"))];
    store.amend(&[], &notes).expect("amends");
    let found = store
        .lookup(&["a@2".into(), "a@3".into()], &["y".into(), "z".into()])
        .expect("looks up");
    assert_eq!(found.records.len(), 1);
    assert_eq!(found.records[0].key, "a@2");
    assert_eq!(found.notes, notes[1..]);
    assert_eq!(found.generation, store.generation().expect("is known"));
    let nothing = store.lookup(&[], &[]).expect("looks up");
    assert!(nothing.records.is_empty() && nothing.notes.is_empty());
}

fn the_mark_of_a_block_that_a_sweep_removed_goes_when_it_is_put_again(store: &dyn StoreManager) {
    store.condemn(&[sealed(store, 1, 4).id]).expect("condemns");
    store.put(vec![sealed(store, 1, 4)]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(store.condemned().expect("lists"), []);
}

fn a_condemned_block_is_stored_anew_once(store: &dyn StoreManager) {
    let (bad, good) = (sealed(store, 1, 4), sealed(store, 2, 4));
    store.put(vec![bad.clone(), good.clone()]).expect("puts");
    store.flush().expect("flushes");
    let place = |id| store.locate(&[id]).expect("locates")[0].expect("is there").place;
    let (before, other) = (place(bad.id), place(good.id));
    store.condemn(&[bad.id]).expect("condemns");
    assert_eq!(store.condemned().expect("lists"), [bad.id]);
    assert_eq!(place(bad.id), before, "what is left of it can still be read");
    store.put(vec![bad.clone(), good.clone(), bad.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert_ne!(place(bad.id), before);
    assert_eq!(place(good.id), other);
    assert!(store.condemned().expect("lists").is_empty());
    store.condemn(&[bad.id, good.id]).expect("condemns");
    store.pardon(&[bad.id, good.id, BlockId([9; 32])]).expect("pardons");
    assert!(store.condemned().expect("lists").is_empty());
    let after = place(bad.id);
    store.put(vec![bad.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(place(bad.id), after);
    let stored = store.get(&[whole(&bad)]).remove(0).expect("is there");
    assert_eq!(stored.pages, bad.pages);
    let mut count = 0;
    let survey = store.survey(&mut |_, _| {
        count += 1;
        Ok(())
    });
    survey.expect("surveys");
    assert_eq!(count, 2);
}

/// Returns eight blocks and two nodes of which every second one is live.
fn half_live(store: &dyn StoreManager) -> (Vec<Sealed>, Live) {
    let blocks: Vec<_> = (0..8).map(|seed| sealed(store, seed, 4)).collect();
    store.put(blocks.clone()).expect("puts");
    store.flush().expect("flushes");
    let mut live = Vec::new();
    for block in blocks.iter().step_by(2) {
        let located = store.locate(&[block.id]).expect("locates")[0].expect("is there");
        assert!(u64::from(located.stored_bytes) >= block.stored_bytes());
        assert_eq!(located.plain_bytes, block.plain_bytes);
        live.push(block.id);
    }
    let nodes: Vec<_> = [1, 2]
        .map(|seed| segment(store.hashing(), &[Some(BlockId([seed; 32]))]))
        .into();
    let live = Live::of(store, &live, &[nodes[0].0]).expect("locates");
    store.put_nodes(nodes).expect("puts");
    store.flush().expect("flushes");
    (blocks, live)
}

fn retain(store: &dyn StoreManager, live: &Live, max_unused: f64, dry_run: bool) -> Swept {
    let options = PruneOptions {
        max_unused,
        dry_run,
        empty_bin: false,
    };
    store.retain(live, options, &mut |_| Ok(())).expect("sweeps")
}

fn retain_removes_what_is_not_live_and_nothing_else(store: &dyn StoreManager) {
    let (blocks, live) = half_live(store);
    let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
    let located = store.locate(&ids).expect("locates");
    let swept = retain(store, &live, 0.0, false);
    assert_eq!(
        (swept.live_blocks, swept.unused_blocks, swept.removed_blocks),
        (4, 4, 4)
    );
    let lengths = located
        .into_iter()
        .map(|located| u64::from(located.expect("is there").stored_bytes));
    let bytes = |skip| lengths.clone().skip(skip).step_by(2).sum::<u64>();
    assert_eq!((swept.live_bytes, swept.removed_bytes), (bytes(0), bytes(1)));
    assert_eq!(swept.removed_nodes, 1);
    for (number, block) in blocks.iter().enumerate() {
        let live = number % 2 == 0;
        assert_eq!(store.locate(&[block.id]).expect("locates")[0].is_some(), live);
        let stored = store.get(&[whole(block)]).remove(0);
        assert_eq!(
            stored.ok().map(|stored| stored.pages),
            live.then(|| block.pages.clone())
        );
    }
    let (id, _) = segment(store.hashing(), &[Some(BlockId([1; 32]))]);
    assert!(store.nodes(&[id])[0].is_ok());
    // Removed blocks can be put again, and a second sweep finds nothing.
    assert_eq!(retain(store, &live, 0.0, false).removed_blocks, 0);
    store.put(blocks.clone()).expect("puts");
    store.flush().expect("flushes");
    for block in &blocks {
        assert_eq!(
            store.get(&[whole(block)]).remove(0).expect("is there").pages,
            block.pages
        );
    }
}

fn retain_keeps_a_little_that_is_unused_and_a_dry_run_keeps_all(store: &dyn StoreManager) {
    let (blocks, live) = half_live(store);
    let would = retain(store, &live, 0.0, true);
    let kept = retain(store, &live, 100.0, false);
    assert_eq!((would.removed_blocks, would.removed_nodes), (4, 1));
    assert_eq!((kept.unused_blocks, kept.removed_blocks), (4, 0));
    let ids: Vec<_> = blocks.iter().map(|block| block.id).collect();
    assert!(store.locate(&ids).expect("locates").iter().all(Option::is_some));
}

fn removed_records_are_in_the_bin(store: &dyn StoreManager) {
    let record = |key: &str, byte| Record {
        key: key.into(),
        bytes: vec![byte; 3],
    };
    let binned = || -> Vec<Record> {
        let forgotten = store.forgotten().expect("lists");
        forgotten.into_iter().map(|forgotten| forgotten.record).collect()
    };
    assert_eq!(binned(), []);
    let forget = |keys: &[&str]| {
        let keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        store.amend(&keys, &[]).expect("forgets");
    };
    store.commit(&record("b@1", 1)).expect("commits");
    store.commit(&record("a@1", 2)).expect("commits");
    forget(&["b@1", "x@1"]);
    forget(&["a@1"]);
    assert_eq!(binned(), [record("b@1", 1), record("a@1", 2)]);
    // Another record that gets the key does not take the place of the one that was removed.
    store.commit(&record("b@1", 3)).expect("commits");
    forget(&["b@1"]);
    assert_eq!(binned(), [record("b@1", 1), record("a@1", 2), record("b@1", 3)]);
}

fn the_bin_is_emptied_but_for_what_must_stay(store: &dyn StoreManager) {
    let record = |key: &str| Record {
        key: key.into(),
        bytes: vec![4; 3],
    };
    let binned = || -> Vec<Record> {
        let forgotten = store.forgotten().expect("lists");
        forgotten.into_iter().map(|forgotten| forgotten.record).collect()
    };
    store.commit(&record("b@1")).expect("commits");
    store.amend(&["b@1".into()], &[]).expect("forgets");
    store.set_terms(Terms {
        keep_removed_secs: 3600,
        ..Terms::default()
    });
    store.set_terms(Terms {
        doubts_times: true,
        keep_removed_secs: 3600,
        ..Terms::default()
    });
    store.commit(&record("c@1")).expect("commits");
    assert!(store.listing(false).expect("lists").received[0].1.is_doubted);
    store.amend(&["c@1".into()], &[]).expect("forgets");
    let all = store.forgotten().expect("lists");
    let last = all.last().expect("is there");
    assert_eq!(last.kept_until.duration_since(last.removed).as_secs(), 3600);
    store.commit(&last.record).expect("brings back");
    assert_eq!(store.records().expect("lists"), [record("c@1")]);
    store.empty_bin(last.removed, u64::MAX).expect("empties");
    assert_eq!(binned(), [record("c@1")]);
    store.empty_bin(jiff::Timestamp::MAX, u64::MAX).expect("empties");
    assert_eq!(binned(), []);
}

fn the_store_knows_when_a_record_was_committed(store: &dyn StoreManager) {
    let record = |key: &str| Record {
        key: key.into(),
        bytes: vec![1],
    };
    let before = jiff::Timestamp::now().as_second();
    store.commit(&record("b@1")).expect("commits");
    store.commit(&record("a@1")).expect("commits");
    let received = store.listing(false).expect("lists").received;
    let keys: Vec<_> = received.iter().map(|(key, _)| &**key).collect();
    assert_eq!(keys, ["a@1", "b@1"]);
    for (_, received) in &received {
        assert!((before..before + 3600).contains(&received.time.as_second()) && !received.is_doubted);
    }
    let found = store.lookup(&["b@1".into(), "c@1".into()], &[]).expect("looks up");
    assert_eq!(found.received, received[1..]);
    store.amend(&["b@1".into()], &[]).expect("forgets");
    assert_eq!(store.listing(true).expect("lists").received, received[..1]);
}

fn a_session_that_keeps_nodes_replaces_none(store: &dyn StoreManager) {
    let (id, node) = segment(store.hashing(), &[Some(BlockId([1; 32]))]);
    let (other_id, other) = segment(store.hashing(), &[Some(BlockId([2; 32]))]);
    store.put_nodes(vec![(id, node.clone())]).expect("puts");
    store.set_terms(Terms {
        keeps_nodes: true,
        ..Terms::default()
    });
    let puts = vec![(id, other.clone()), (other_id, other.clone())];
    store.put_nodes(puts).expect("puts");
    let stored = store.nodes(&[id, other_id]).into_iter();
    let stored: Vec<_> = stored.map(|node| node.expect("is stored")).collect();
    assert_eq!(stored, [node, other]);
}
