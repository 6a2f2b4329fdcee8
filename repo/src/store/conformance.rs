//! What every store must do; run against each of them.

use std::sync::Arc;

use super::{BlockStore, Record, Wanted};
use crate::block::{BlockSize, PAGE_BYTES, hash_block};
use crate::codec::{Compression, Header, Sealed, Sealer};
use crate::error::{Error, ErrorKind};
use crate::id::{BlockId, SegmentId};
use crate::manifest::encode_segment;

/// Runs all cases, each on a new store.
pub(crate) fn check(make: impl Fn(BlockSize) -> Box<dyn BlockStore>) {
    let cases: [fn(&dyn BlockStore); 8] = [
        a_new_store_is_empty_and_knows_itself,
        what_is_put_is_got,
        parts_of_a_block_are_got_alone,
        putting_twice_changes_nothing,
        one_missing_block_does_not_keep_the_others_back,
        segments_are_kept_under_their_names,
        records_are_listed_in_order_and_never_replaced,
        many_threads_may_put_the_same,
    ];
    for case in cases {
        case(&*make(BlockSize::DEFAULT));
    }
}

fn sealed(seed: u8, pages: usize) -> Sealed {
    // Each page differs from the others, and every third one is zeros.
    let plain: Vec<u8> = (0..pages * PAGE_BYTES)
        .map(|i| match i / PAGE_BYTES % 3 {
            2 => 0,
            page => (i * 7 % 251) as u8 ^ seed ^ page as u8,
        })
        .collect();
    Sealer::new(Compression::default())
        .and_then(|mut sealer| sealer.seal(&plain, &hash_block(&plain)))
        .expect("seals")
}

fn whole(sealed: &Sealed) -> Wanted {
    Wanted {
        id: sealed.id,
        pages: 0..sealed.pages.len(),
    }
}

fn a_new_store_is_empty_and_knows_itself(store: &dyn BlockStore) {
    assert_eq!(store.identity().expect("identity").block_size, BlockSize::DEFAULT);
    assert_eq!(store.records().expect("records"), []);
    assert_eq!(store.locate(&[BlockId([1; 32])]).expect("locates"), [None]);
    assert!(store.locate(&[]).expect("locates").is_empty());
    store.flush().expect("an empty flush succeeds");
}

fn what_is_put_is_got(store: &dyn BlockStore) {
    let blocks = [sealed(1, 16), sealed(2, 1), sealed(3, 5)];
    store.put(blocks.to_vec()).expect("puts");
    for flushed in [false, true] {
        let ids = blocks.each_ref().map(|block| block.id);
        let places = store.locate(&ids).expect("locates");
        assert!(places.iter().all(Option::is_some), "flushed: {flushed}");
        for (block, stored) in blocks.iter().zip(store.get(&blocks.each_ref().map(whole))) {
            let stored = stored.expect("is there");
            assert_eq!((&stored.header, &stored.pages), (&block.header, &block.pages));
            Header::prove(block.id, block.plain_bytes as usize, &stored.header).expect("proves");
        }
        store.flush().expect("flushes");
    }
}

fn parts_of_a_block_are_got_alone(store: &dyn BlockStore) {
    let block = sealed(1, 16);
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

fn putting_twice_changes_nothing(store: &dyn BlockStore) {
    let block = sealed(1, 4);
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

fn one_missing_block_does_not_keep_the_others_back(store: &dyn BlockStore) {
    let (here, gone) = (sealed(1, 4), sealed(2, 4));
    store.put(vec![here.clone()]).expect("puts");
    let answers = store.get(&[whole(&gone), whole(&here), whole(&gone)]);
    assert!(matches!(answers[0], Err(Error::BlockMissing(id)) if id == gone.id));
    assert!(answers[1].is_ok());
    assert!(answers[2].is_err());
}

fn segments_are_kept_under_their_names(store: &dyn BlockStore) {
    let (id, bytes) = encode_segment(&[Some(BlockId([7; 32])), None]).expect("not zero");
    store
        .put_segments(vec![(id, bytes.clone()), (id, bytes.clone())])
        .expect("puts");
    store.flush().expect("flushes");
    let answers = store.segments(&[SegmentId([9; 32]), id]);
    assert_eq!(answers[0].as_ref().map_err(Error::kind), Err(ErrorKind::Corrupt));
    assert_eq!(answers[1].as_ref().expect("is there"), &bytes);
}

fn records_are_listed_in_order_and_never_replaced(store: &dyn BlockStore) {
    let record = |key: &str, bytes: &[u8]| Record {
        key: key.into(),
        bytes: bytes.into(),
    };
    let all = [record("a@1", b"1"), record("a@2", b"2"), record("b@0", b"3")];
    for place in [2, 0, 1] {
        store.commit(&all[place]).expect("commits");
    }
    let again = store.commit(&record("a@1", b"other"));
    assert!(matches!(again, Err(Error::BackupExists(key)) if key == "a@1"));
    assert_eq!(store.records().expect("records"), all);
}

fn many_threads_may_put_the_same(store: &dyn BlockStore) {
    let blocks: Arc<Vec<_>> = Arc::new((0..8).map(|seed| sealed(seed, 2)).collect());
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
