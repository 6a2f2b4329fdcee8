//! The rules of blocks that are stored as differences.

use super::{plain, retain, sealed, whole};
use crate::block::PAGE_BYTES;
use crate::codec::{Compression, Header, Over, Sealed, Sealer};
use crate::error::Error;
use crate::store::whole::get as get_whole;
use crate::store::{DIFFERENCES, Live, StoreManager, Wanted};

/// The bytes of a block of four pages that differs in a byte from that of the seed.
fn changed(seed: u8, byte: u8) -> Vec<u8> {
    let mut plain = plain(seed, 4);
    plain[9] ^= byte;
    plain
}

fn as_a_whole(store: &dyn StoreManager, seed: u8, byte: u8) -> Sealed {
    let plain = changed(seed, byte);
    let hashes = store.hashing().block(&plain);
    let sealed = Sealer::new(Compression::default()).and_then(|mut sealer| sealer.seal(&plain, &hashes));
    sealed.expect("seals")
}

/// The same as a difference from that of the seed.
fn difference(store: &dyn StoreManager, seed: u8, byte: u8) -> Sealed {
    let base = sealed(store, seed, 4);
    let over = Over::open(store.hashing(), base.id, &base.header, 0, &base.pages).expect("opens");
    let plain = changed(seed, byte);
    let hashes = store.hashing().block(&plain);
    let sealed = Sealer::new(Compression::default()).and_then(|mut sealer| sealer.seal_over(&plain, &hashes, &over, 1));
    sealed.expect("seals").expect("saves much")
}

pub(super) fn a_difference_is_kept_with_its_base(store: &dyn StoreManager) {
    assert!(!store.identity().expect("identity").has(DIFFERENCES));
    let (base, other) = (sealed(store, 1, 4), sealed(store, 2, 4));
    store.put(vec![base.clone(), other.clone()]).expect("puts");
    let [one, two] = [1, 2].map(|byte| difference(store, 1, byte));
    store.put(vec![one.clone(), two.clone()]).expect("puts");
    for flushed in [false, true] {
        let ids = [base.id, one.id, other.id, two.id];
        let located = store.locate(&ids).expect("locates");
        let bases: Vec<_> = located.iter().map(|located| located.expect("is there").base).collect();
        assert_eq!(bases, [None, Some(base.id), None, Some(base.id)], "flushed: {flushed}");
        let as_stored = store.get(&[whole(&one), whole(&base)]);
        let as_stored: Vec<_> = as_stored.into_iter().map(|stored| stored.expect("is there")).collect();
        assert_eq!((as_stored[0].base, as_stored[1].base), (Some(base.id), None));
        assert_eq!((&as_stored[0].header, &as_stored[0].pages), (&one.header, &one.pages));
        // Whole, all of it and a part.
        for pages in [0..4, 0..1, 3..4, 2..3] {
            let wanted = Wanted {
                id: one.id,
                pages: pages.clone(),
            };
            let stored = get_whole(store, &[whole(&other), wanted]).remove(1).expect("is there");
            assert_eq!(stored.base, None);
            let header = Header::prove(store.hashing(), one.id, 4 * PAGE_BYTES, &stored.header).expect("proves");
            let wanted = changed(1, 1);
            for (number, page) in pages.zip(&stored.pages) {
                let mut out = vec![0; PAGE_BYTES];
                header.open_page(number, page, &mut out).expect("opens");
                assert!(out == wanted[number * PAGE_BYTES..][..PAGE_BYTES]);
            }
        }
        store.flush().expect("flushes");
    }
    let mut with_base = 0;
    let survey = store.survey(&mut |_, located| {
        with_base += usize::from(located.base == Some(base.id));
        Ok(())
    });
    survey.expect("surveys");
    assert_eq!(with_base, 2);
    // Again, and as a whole: nothing changes.
    let before = store.locate(&[one.id]).expect("locates");
    store.put(vec![one.clone(), as_a_whole(store, 1, 1)]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(store.locate(&[one.id]).expect("locates"), before);
}

pub(super) fn a_difference_without_its_base_is_refused(store: &dyn StoreManager) {
    let is_stored = |block: &Sealed| store.locate(&[block.id]).expect("locates")[0].is_some();
    let one = difference(store, 1, 1);
    // A store that is far away tells only what is not stored.
    match store.put(vec![one.clone()]) {
        Ok(()) | Err(Error::BlockMissing(_)) => {}
        Err(error) => panic!("{error}"),
    }
    store.flush().expect("flushes");
    assert!(!is_stored(&one));
    // Nor is it if its base comes with it, or after it.
    let base = sealed(store, 1, 4);
    _ = store.put(vec![base.clone(), one.clone()]);
    store.flush().expect("flushes");
    assert!(!is_stored(&base) && !is_stored(&one));
    store.put(vec![base]).expect("puts");
    assert!(!is_stored(&one));
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert!(is_stored(&one));
    // Or if it is damaged.
    let other = difference(store, 1, 2);
    let damaged = sealed(store, 1, 4);
    store.condemn(&[damaged.id]).expect("condemns");
    _ = store.put(vec![other.clone()]);
    store.flush().expect("flushes");
    assert!(!is_stored(&other));
    store.put(vec![damaged]).expect("puts");
    store.put(vec![other.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert!(is_stored(&other));
}

pub(super) fn a_condemned_block_becomes_a_difference_unless_its_base_depends_on_it(store: &dyn StoreManager) {
    let (base, other) = (sealed(store, 1, 4), as_a_whole(store, 1, 7));
    store.put(vec![base.clone(), other.clone()]).expect("puts");
    let one = difference(store, 1, 1);
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    let base_over = |base: &Sealed, over: &Sealed| {
        let over = Over::open(store.hashing(), over.id, &over.header, 0, &over.pages).expect("opens");
        let plain = changed(1, 0);
        let hashes = store.hashing().block(&plain);
        assert_eq!(hashes.id, base.id);
        let sealed =
            Sealer::new(Compression::default()).and_then(|mut sealer| sealer.seal_over(&plain, &hashes, &over, 1));
        sealed.expect("seals").expect("saves much")
    };
    store.condemn(&[base.id]).expect("condemns");
    let circle = base_over(&base, &as_a_whole(store, 1, 1));
    assert_eq!((circle.id, circle.base), (base.id, Some(one.id)));
    for flushed in [false, true] {
        _ = store.put(vec![circle.clone()]);
        store.flush().expect("flushes");
        let located = store.locate(&[base.id]).expect("locates")[0].expect("is there");
        assert_eq!(located.base, None, "flushed: {flushed}");
    }
    // The whole block takes another base.
    let over = base_over(&base, &other);
    store.put(vec![over]).expect("puts");
    store.flush().expect("flushes");
    let located = store.locate(&[base.id, one.id]).expect("locates");
    let bases: Vec<_> = located.iter().map(|located| located.expect("is there").base).collect();
    assert_eq!(bases, [Some(other.id), Some(base.id)]);
    assert!(get_whole(store, &[whole(&one)])[0].is_ok());
    assert!(!store.condemned().expect("lists").contains(&base.id));
}

pub(super) fn what_depends_on_a_condemned_block_is_condemned(store: &dyn StoreManager) {
    let (base, other) = (sealed(store, 1, 4), sealed(store, 2, 4));
    store.put(vec![base.clone(), other.clone()]).expect("puts");
    let one = difference(store, 1, 1);
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    store.condemn(&[base.id]).expect("condemns");
    let condemned = || {
        let mut ids = store.condemned().expect("lists");
        ids.sort_unstable();
        ids
    };
    let mut both = [base.id, one.id];
    both.sort_unstable();
    assert_eq!(condemned(), both);
    // Stored again as a difference of the same base, or as a whole.
    store.put(vec![base.clone()]).expect("puts");
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(condemned(), []);
    store.condemn(&[one.id]).expect("condemns");
    assert_eq!(condemned(), [one.id]);
    store.pardon(&[one.id]).expect("pardons");
    store.condemn(&[one.id]).expect("condemns");
    store.put(vec![as_a_whole(store, 1, 1)]).expect("puts");
    store.flush().expect("flushes");
    assert_eq!(
        store.locate(&[one.id]).expect("locates")[0].expect("is there").base,
        None
    );
}

pub(super) fn a_difference_whose_base_is_removed_is_not_stored(store: &dyn StoreManager) {
    let base = sealed(store, 1, 4);
    store.put(vec![base.clone()]).expect("puts");
    let one = difference(store, 1, 1);
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    // Marks that hold too little: as after the loss of an index row.
    let live = Live::of(store, &[one.id], &[]).expect("locates");
    retain(store, &live, 0.0, false);
    assert_eq!(store.locate(&[base.id, one.id]).expect("locates"), [None, None]);
    assert!(get_whole(store, &[whole(&one)])[0].is_err());
    // It can be stored again.
    store.put(vec![base.clone()]).expect("puts");
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    let located = store.locate(&[base.id, one.id]).expect("locates");
    assert!(located.iter().all(Option::is_some));
    assert!(get_whole(store, &[whole(&one)])[0].is_ok());
}
