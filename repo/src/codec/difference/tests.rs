use proptest::prelude::*;

use super::*;
use crate::codec::Compression;
use crate::tests::testing::{mixed_bytes, noise};

const LEN: usize = 6 * PAGE_BYTES - 700;

fn sealer() -> Sealer {
    Sealer::new(Compression::default()).expect("a sealer")
}

fn seal(plain: &[u8]) -> Sealed {
    sealer().seal(plain, &Hashing::Plain.block(plain)).expect("seals")
}

/// Returns a base with all its pages.
fn over(sealed: &Sealed) -> Over {
    Over::open(Hashing::Plain, sealed.id, &sealed.header, 0, &sealed.pages).expect("opens")
}

fn seal_over(plain: &[u8], base: &Sealed) -> Option<Sealed> {
    let hashes = Hashing::Plain.block(plain);
    sealer().seal_over(plain, &hashes, &over(base), 1).expect("seals")
}

/// Opens a difference as readers do.
fn open(sealed: &Sealed, base: &Sealed) -> Result<Vec<u8>> {
    let (mut header, mut pages) = (sealed.header.clone(), sealed.pages.clone());
    make_whole(sealed.id, &mut header, 0, &mut pages, &over(base), None)?;
    let proved = Header::prove(Hashing::Plain, sealed.id, sealed.plain_bytes as usize, &header)?;
    let mut plain = vec![0; sealed.plain_bytes as usize];
    for (number, out) in plain.chunks_mut(PAGE_BYTES).enumerate() {
        proved.open_page(number, &pages[number], out)?;
    }
    Ok(plain)
}

/// A block, and the same with a page of each kind: like the base's, the same, another, and zeros.
fn one_and_next() -> (Vec<u8>, Vec<u8>) {
    let one = noise(1, LEN);
    let mut next = one.clone();
    next[100..140].copy_from_slice(&[7; 40]);
    next[2 * PAGE_BYTES..3 * PAGE_BYTES].copy_from_slice(&noise(2, PAGE_BYTES));
    next[3 * PAGE_BYTES..4 * PAGE_BYTES].fill(0);
    (one, next)
}

#[test]
fn a_difference_stores_what_changed_and_opens_to_what_was_sealed() {
    let (one, next) = one_and_next();
    let base = seal(&one);
    let difference = seal_over(&next, &base).expect("saves much");
    assert_eq!(difference.base, Some(base.id));
    assert_eq!(difference.id, seal(&next).id, "the id is that of the bytes");
    let lengths: Vec<_> = difference.pages.iter().map(Vec::len).collect();
    assert!((1..300).contains(&lengths[0]), "{lengths:?}");
    assert_eq!(lengths[1..], [0, PAGE_BYTES, 0, 0, 0]);
    assert_eq!(open(&difference, &base).expect("opens"), next);
    // The header tells what is needed.
    assert_eq!(over_base(&difference.header, &(0..6)), Some(0..6));
    assert_eq!(over_base(&difference.header, &(2..4)), None);
    assert_eq!(over_base(&difference.header, &(1..4)), Some(1..2));
    let pages = over(&base).differing(next.len(), &Hashing::Plain.block(&next));
    assert_eq!(pages, Some(0..4));
}

#[test]
fn a_difference_can_be_made_whole_and_compressed() {
    let (mut one, mut next) = one_and_next();
    one[5 * PAGE_BYTES..].fill(b'x');
    next[5 * PAGE_BYTES..].fill(b'x');
    let (base, wanted) = (seal(&one), seal(&next));
    let difference = seal_over(&next, &base).expect("saves much");
    let (mut header, mut pages) = (difference.header, difference.pages);
    make_whole(
        difference.id,
        &mut header,
        0,
        &mut pages,
        &over(&base),
        Some(&mut sealer()),
    )
    .expect("opens");
    assert_eq!((header, pages), (wanted.header, wanted.pages));
}

#[test]
fn steps_count_where_room_is_taken_in_steps() {
    let (one, next) = one_and_next();
    let base = seal(&one);
    let hashes = Hashing::Plain.block(&next);
    for (step_bytes, is_difference) in [(1, true), (PAGE_BYTES, true), (8 * PAGE_BYTES, false)] {
        let sealed = sealer()
            .seal_over(&next, &hashes, &over(&base), step_bytes)
            .expect("seals");
        assert_eq!(sealed.is_some(), is_difference, "{step_bytes}");
    }
}

#[test]
fn a_page_of_a_difference_is_never_taken_for_a_whole_one() {
    let (one, next) = one_and_next();
    let difference = seal_over(&next, &seal(&one)).expect("saves much");
    let header = Header::prove(Hashing::Plain, difference.id, LEN, &difference.header).expect("proves");
    for page in [0, 1] {
        let mut out = vec![0; PAGE_BYTES];
        assert!(header.open_page(page, &difference.pages[page], &mut out).is_err());
    }
}

#[test]
fn a_block_that_has_little_in_common_with_another_is_no_difference() {
    let base = seal(&noise(1, LEN));
    assert_eq!(seal_over(&noise(2, LEN), &base), None);
    assert_eq!(seal_over(&noise(1, LEN - 1), &base), None, "another length");
    // What is small anyhow.
    let text = vec![b'x'; LEN];
    assert_eq!(seal_over(&text, &base), None);
}

#[test]
fn only_the_changed_pages_of_the_base_are_needed_to_seal() {
    let (one, mut next) = (noise(1, LEN), noise(1, LEN));
    next[3 * PAGE_BYTES + 5] ^= 1;
    let base = seal(&one);
    let hashes = Hashing::Plain.block(&next);
    let header = Over::open(Hashing::Plain, base.id, &base.header, 0, &[]).expect("opens");
    let pages = header.differing(LEN, &hashes).expect("the same length");
    assert_eq!(pages, 3..4);
    let some = Over::open(Hashing::Plain, base.id, &base.header, 3, &base.pages[3..4]).expect("opens");
    let difference = sealer()
        .seal_over(&next, &hashes, &some, 1)
        .expect("seals")
        .expect("saves much");
    assert!(difference.stored_bytes() < 1000);
    assert_eq!(open(&difference, &base).expect("opens"), next);
}

#[test]
fn without_compression_equal_pages_are_not_stored() {
    let (one, next) = one_and_next();
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    let base = sealer.seal(&one, &Hashing::Plain.block(&one)).expect("seals");
    let hashes = Hashing::Plain.block(&next);
    let difference = sealer.seal_over(&next, &hashes, &over(&base), 1).expect("seals");
    let difference = difference.expect("saves much");
    assert_eq!(difference.pages.iter().filter(|page| !page.is_empty()).count(), 2);
    assert_eq!(open(&difference, &base).expect("opens"), next);
}

#[test]
fn another_base_gives_an_error_and_no_bytes() {
    let (one, next) = one_and_next();
    let difference = seal_over(&next, &seal(&one)).expect("saves much");
    assert!(open(&difference, &seal(&noise(3, LEN))).is_err());
    assert!(open(&difference, &seal(&noise(1, LEN - PAGE_BYTES))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_flipped_byte_is_found_or_harmless(part in 0..7_usize, place: prop::sample::Index, flip in 1..=255_u8) {
        let (one, next) = one_and_next();
        let base = seal(&one);
        let mut difference = seal_over(&next, &base).expect("saves much");
        let bytes = if part == 0 { &mut difference.header } else { &mut difference.pages[part - 1] };
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        if let Ok(opened) = open(&difference, &base) {
            prop_assert_eq!(opened, next);
        }
    }

    #[test]
    fn random_bytes_are_no_difference(bytes in prop::collection::vec(any::<u8>(), 0..2000), len in any::<u32>()) {
        let (one, next) = one_and_next();
        let base = seal(&one);
        let mut difference = seal_over(&next, &base).expect("saves much");
        let at = FIXED_BYTES + 32;
        difference.header[at..at + 4].copy_from_slice(&(len | OVER_BASE).to_le_bytes());
        difference.pages[0] = bytes;
        prop_assert!(open(&difference, &base).is_err());
    }

    #[test]
    fn any_change_of_any_block_comes_back(seed in 1..1000_u32, at in 0..LEN, len in 0..2 * PAGE_BYTES) {
        let one = mixed_bytes(seed, LEN);
        let mut next = one.clone();
        let end = (at + len).min(LEN);
        next[at..end].copy_from_slice(&mixed_bytes(seed + 1, end - at));
        let base = seal(&one);
        if let Some(difference) = seal_over(&next, &base) {
            prop_assert_eq!(open(&difference, &base).expect("opens"), next);
        }
    }
}
