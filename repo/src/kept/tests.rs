use super::*;
use crate::block::{BlockIndex, BlockSize};
use crate::id::BlockId;
use crate::manifest::SEGMENT_SLOTS;
use crate::store::memory::MemoryStore;
use crate::tests::testing::{SMALL, store_image};
use crate::writer::ImageWriter;

const BLOCK: u64 = 1 << 16;

/// Returns a disk whose block n has the content `blocks[n]`, 0 for zeros.
fn image(store: &MemoryStore, block_size: BlockSize, blocks: &[u16]) -> Image {
    let size_bytes = blocks.len() as u64 * u64::from(block_size);
    let writer = ImageWriter::create(store, block_size, size_bytes);
    for (number, blocks) in blocks.chunks(SEGMENT_SLOTS).enumerate() {
        let id = |n: u16| {
            let mut id = [1; 32];
            id[..2].copy_from_slice(&n.to_le_bytes());
            BlockId(id)
        };
        let slots: Vec<_> = blocks.iter().map(|&n| (n > 0).then_some(id(n))).collect();
        writer
            .set(BlockIndex((number * SEGMENT_SLOTS) as u64), &slots)
            .expect("sets");
    }
    Image {
        manifest: writer.finish().expect("finishes"),
        size_bytes,
        ..store_image(store, "vda", &[])
    }
}

fn blocks_kept(before: &[u16], after: &[u16]) -> (u64, u64) {
    let store = MemoryStore::new(SMALL);
    let [before, after] = [before, after].map(|blocks| image(&store, SMALL, blocks));
    let found = kept(&store, &before, &after).expect("compares");
    (found.before_bytes / BLOCK, found.same_bytes / BLOCK)
}

#[test]
fn blocks_at_their_places_are_counted_and_zeros_are_not() {
    assert_eq!(blocks_kept(&[1, 2, 0, 4], &[1, 3, 0, 4]), (3, 2));
    assert_eq!(blocks_kept(&[1, 2, 3], &[0, 0, 0]), (3, 0));
    assert_eq!(blocks_kept(&[1, 2, 3], &[3, 1, 2]), (3, 0));
    assert_eq!(blocks_kept(&[1, 2, 3], &[1]), (3, 1));
    assert_eq!(blocks_kept(&[1], &[1, 2, 3]), (1, 1));
    assert_eq!(blocks_kept(&[], &[1]), (0, 0));
    let long: Vec<u16> = (1..3000).collect();
    let mut other = long.clone();
    other[2500..].fill(7);
    assert_eq!(blocks_kept(&long, &other), (2999, 2500));
    // A short disk in place of a long one, cut within a segment.
    assert_eq!(blocks_kept(&long, &long[..1500]), (2999, 1500));
}

#[test]
fn a_nearly_empty_part_that_stays_is_not_a_share_of_all() {
    let segment = SEGMENT_SLOTS;
    let mut before = vec![0; 4 * segment];
    before[0] = 1;
    before[segment..].fill(2);
    let mut after = before.clone();
    after[segment..].fill(3);
    assert_eq!(blocks_kept(&before, &after), (3 * segment as u64 + 1, 1));
}

#[test]
fn of_many_segments_the_names_are_enough_if_half_are_the_same() {
    let segment = SEGMENT_SLOTS;
    let before: Vec<u16> = (0..100 * segment).map(|n| (n / segment) as u16 + 1).collect();
    let mut after = before.clone();
    for number in 0..40 {
        after[number * segment] = 999;
    }
    assert_eq!(
        blocks_kept(&before, &after).1,
        60 * segment as u64,
        "those that differ are not read"
    );
    for number in 0..60 {
        after[number * segment] = 999;
    }
    assert_eq!(
        blocks_kept(&before, &after).1,
        100 * segment as u64 - 60,
        "they are read"
    );
}

#[test]
fn an_empty_disk_and_another_block_size_are_not_the_same() {
    let store = MemoryStore::new(SMALL);
    let before = image(&store, SMALL, &[1, 2]);
    let empty = image(&store, SMALL, &[]);
    assert_eq!(kept(&store, &before, &empty).expect("compares").share(), 0.0);
    assert_eq!(kept(&store, &empty, &before).expect("compares").share(), 1.0);
    let other = image(&store, BlockSize::DEFAULT, &[1, 2]);
    assert_eq!(kept(&store, &before, &other).expect("compares").share(), 0.0);
    assert_eq!(kept(&store, &before, &before).expect("compares").share(), 1.0);
}
