use proptest::prelude::*;

use super::*;
use crate::block::BlockSize;
use crate::id::BlockId;

fn slots() -> impl Strategy<Value = Vec<Slot>> {
    let any_block = any::<[u8; 32]>().prop_map(BlockId);
    let few_blocks = (1..5_u8).prop_map(|number| BlockId([number; 32]));
    let slot = prop::option::of(prop_oneof![3 => any_block, 1 => few_blocks]);
    prop::collection::vec(slot, 1..=SEGMENT_SLOTS)
}

/// A segment, and the same with some slots changed.
fn changed() -> impl Strategy<Value = (Vec<Slot>, Vec<Slot>)> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), slots()), 0..20);
    (slots(), changes).prop_map(|(before, changes)| {
        let mut now = before.clone();
        for (place, slots) in changes {
            let place = place.index(now.len());
            now[place] = slots[0];
        }
        (before, now)
    })
}

fn pages() -> impl Strategy<Value = Page> {
    let id = || prop_oneof![any::<[u8; 32]>(), Just([7; 32])].prop_map(NodeId);
    let delta = prop_oneof![id(), Just(NodeId::ZERO)];
    let segment = (id(), delta).prop_map(|(full, delta)| Segment { full, delta });
    prop::collection::vec(prop_oneof![segment, Just(Segment::ZERO)], 1..=PAGE_SEGMENTS).prop_map(Page)
}

fn root(pages: usize) -> Root {
    Root {
        block_size: BlockSize::DEFAULT,
        size_bytes: (64 << 30) + 1,
        pages: vec![NodeId([3; 32]); pages],
    }
}

#[test]
fn zero_blocks_alone_are_not_stored() {
    assert_eq!(Full::of(&[None; SEGMENT_SLOTS]), None);
    assert_eq!(Page(vec![Segment::ZERO; 3]).encode(Hashing::Plain), None);
}

#[test]
fn a_root_must_list_as_many_pages_as_its_size_needs() {
    let (id, bytes) = root(2).encode(Hashing::Plain);
    assert_eq!(Root::decode(Hashing::Plain, id, &bytes).expect("decodes"), root(2));
    assert_eq!(
        (root(2).segments(), root(2).segments_in(0), root(2).segments_in(1)),
        (65, 64, 1)
    );
    for wrong in [0, 1, 3] {
        let (id, bytes) = root(wrong).encode(Hashing::Plain);
        assert!(Root::decode(Hashing::Plain, id, &bytes).is_err());
    }
}

#[test]
fn no_kind_of_node_is_taken_for_another() {
    let blocks = [Some(BlockId([1; 32])), None];
    let full = Full::of(&blocks).expect("not zero");
    let delta = Delta::between(&full, &[None, Some(BlockId([2; 32]))]).expect("differs");
    let segment = Segment {
        full: NodeId([1; 32]),
        delta: NodeId::ZERO,
    };
    let nodes = [
        full.encode(Hashing::Plain),
        delta.encode(Hashing::Plain),
        Page(vec![segment]).encode(Hashing::Plain).expect("not zero"),
        root(2).encode(Hashing::Plain),
    ];
    for (number, (id, bytes)) in nodes.into_iter().enumerate() {
        let readable = [
            Full::decode(Hashing::Plain, id, 2, &bytes).is_ok(),
            Delta::decode(Hashing::Plain, id, &full, &bytes).is_ok(),
            Page::decode(Hashing::Plain, id, 1, &bytes).is_ok(),
            Root::decode(Hashing::Plain, id, &bytes).is_ok(),
        ];
        let wanted: [bool; 4] = std::array::from_fn(|kind| kind == number);
        assert_eq!(readable, wanted);
    }
}

#[test]
fn a_head_that_names_other_blocks_than_the_body_is_refused() {
    let blocks = [1, 2, 3].map(|number| Some(BlockId([number; 32])));
    let full = Full::of(&blocks).expect("not zero");
    let delta = Delta::between(&full, &[None, blocks[1], Some(BlockId([4; 32]))]).expect("differs");
    let nodes = [full.encode(Hashing::Plain).1, delta.encode(Hashing::Plain).1];
    for (number, bytes) in nodes.into_iter().enumerate() {
        let (head, body) = Head::split(&bytes).expect("a head");
        assert_eq!(head.encode(), bytes[..bytes.len() - body.len()]);
        let changes: [&dyn Fn(&mut Head); 4] = [
            &|head| head.names.push([9; 32]),
            &|head| head.names.truncate(head.names.len() - 1),
            &|head| head.drops.push(1),
            &|head| head.drops.clear(),
        ];
        for change in changes {
            let mut other = head.clone();
            change(&mut other);
            if other == head {
                continue;
            }
            let bytes = [other.encode(), body.to_vec()].concat();
            let id = NodeId(Hashing::Plain.content(&bytes));
            match number {
                0 => assert!(Full::decode(Hashing::Plain, id, 3, &bytes).is_err(), "{other:?}"),
                _ => assert!(Delta::decode(Hashing::Plain, id, &full, &bytes).is_err(), "{other:?}"),
            }
        }
    }
}

proptest! {
    #[test]
    fn full_segments_go_there_and_back(slots in slots()) {
        if let Some(full) = Full::of(&slots) {
            let (id, bytes) = full.encode(Hashing::Plain);
            prop_assert_eq!(bytes.len(), full.encoded_len());
            prop_assert_eq!(Full::decode(Hashing::Plain, id, slots.len(), &bytes).expect("decodes").slots(), slots.clone());
            prop_assert!(Full::decode(Hashing::Plain, id, slots.len() + 1, &bytes).is_err());
        }
    }

    #[test]
    fn deltas_go_there_and_back((before, now) in changed()) {
        if let Some(full) = Full::of(&before) {
            match Delta::between(&full, &now) {
                None => prop_assert_eq!(before, now),
                Some(delta) => {
                    let (id, bytes) = delta.encode(Hashing::Plain);
                    prop_assert_eq!(bytes.len(), delta.encoded_len());
                    prop_assert_eq!(Delta::decode(Hashing::Plain, id, &full, &bytes).expect("decodes"), now);
                }
            }
        }
    }

    #[test]
    fn pages_go_there_and_back(page in pages()) {
        if let Some((id, bytes)) = page.encode(Hashing::Plain) {
            prop_assert_eq!(Page::decode(Hashing::Plain, id, page.0.len(), &bytes).expect("decodes"), page.clone());
            prop_assert!(Page::decode(Hashing::Plain, id, page.0.len() + 1, &bytes).is_err());
            let named = Page::pairs(&Head::split(&bytes).expect("a head").0);
            prop_assert!(page.0.iter().all(|segment| *segment == Segment::ZERO || named.contains(segment)));
        }
    }

    #[test]
    fn a_changed_byte_is_always_found(slots in slots(), place: prop::sample::Index, flip in 1..=255_u8) {
        if let Some(full) = Full::of(&slots) {
            let (id, mut bytes) = full.encode(Hashing::Plain);
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            prop_assert!(Full::decode(Hashing::Plain, id, slots.len(), &bytes).is_err());
        }
    }

    #[test]
    fn well_hashed_nonsense_is_refused_without_a_panic(
        kind in prop::sample::select(&b"SDPRX"[..]),
        (names, drops, length) in (0..5_u32, 0..4_u16, 0..5_usize),
        bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 0..300),
        count in 0..8_usize,
    ) {
        let mut node = vec![kind, VERSION];
        node.extend(drops.to_le_bytes());
        node.extend(names.to_le_bytes());
        node.extend(&bytes[..bytes.len() * length / 4]);
        let id = NodeId(Hashing::Plain.content(&node));
        let full = Full::of(&[Some(BlockId([1; 32])), None, Some(BlockId([2; 32]))]).expect("not zero");
        let _ = Full::decode(Hashing::Plain, id, count, &node);
        let _ = Delta::decode(Hashing::Plain, id, &full, &node);
        let _ = Page::decode(Hashing::Plain, id, count, &node);
        let _ = Root::decode(Hashing::Plain, id, &node);
    }
}
