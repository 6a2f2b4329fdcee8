use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::backup::Image;
use crate::codec::{Compression, Sealer};
use crate::error::{Error, ErrorKind};
use crate::store::StoreWriter;
use crate::store::delayed::Delayed;
use crate::store::memory::MemoryStore;
use crate::tests::testing::{SMALL, mixed_bytes, store_image};
use crate::writer::ImageWriter;

struct Fixture {
    store: Arc<MemoryStore>,
    plain: Vec<u8>,
    image: Arc<ImageReader>,
}

fn fixture(block_size: BlockSize, len: usize) -> Fixture {
    let store = Arc::new(MemoryStore::new(block_size));
    let plain = mixed_bytes(7, len);
    let image = store_image(&*store, "vda", &plain);
    let reader = ImageReader::open(store.clone(), ReadResources::new(2), &image);
    Fixture {
        store,
        plain,
        image: Arc::new(reader.expect("opens")),
    }
}

fn damage_block(fixture: &Fixture, index: u64) {
    let slot = fixture.image.slot(BlockIndex(index)).expect("a slot");
    fixture.store.damage(slot.expect("not zero"), |sealed| {
        let last = sealed.pages.iter_mut().rfind(|page| !page.is_empty());
        last.expect("not all zero")[0] ^= 0x40;
    });
}

#[test]
fn a_whole_image_reads_back_through_a_stream_of_any_request_size() {
    for (block_size, request) in [
        (SMALL, 4096),
        (SMALL, 1 << 20),
        (BlockSize::DEFAULT, 131_072),
        (BlockSize::DEFAULT, 1 << 20),
        (BlockSize::DEFAULT, 3_000_001),
    ] {
        let fixture = fixture(block_size, 20_000_123);
        let stream = Stream::new(fixture.image);
        let mut read: Vec<u8> = Vec::new();
        let mut buffer = vec![0xEE; request];
        loop {
            let len = stream.read_at(read.len() as u64, &mut buffer).expect("reads");
            if len == 0 {
                break;
            }
            read.extend(&buffer[..len]);
        }
        assert!(read == fixture.plain, "requests of {request}");
    }
}

#[test]
fn many_threads_may_read_one_stream() {
    let fixture = fixture(SMALL, 8_000_000);
    let stream = Stream::new(Arc::clone(&fixture.image));
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(100_000, std::sync::atomic::Ordering::SeqCst);
                    if offset >= fixture.plain.len() {
                        break;
                    }
                    let mut buffer = vec![0; 100_000];
                    let len = stream.read_at(offset as u64, &mut buffer).expect("reads");
                    assert_eq!(buffer[..len], fixture.plain[offset..offset + len]);
                }
            });
        }
    });
}

#[test]
fn reading_past_the_end_gives_what_there_is() {
    let fixture = fixture(SMALL, 100_000);
    let mut buffer = [0; 1000];
    assert_eq!(fixture.image.read_at(99_500, &mut buffer).expect("reads"), 500);
    assert_eq!(fixture.image.read_at(100_000, &mut buffer).expect("reads"), 0);
    assert_eq!(fixture.image.read_at(u64::MAX, &mut buffer).expect("reads"), 0);
}

#[test]
fn a_damaged_page_fails_alone() {
    let fixture = fixture(BlockSize::DEFAULT, 4 << 20);
    // The first block that is not all zeros and has a stored page after its first one.
    damage_block(&fixture, 0);
    let stream = Stream::new(Arc::clone(&fixture.image));
    let mut bad = Vec::new();
    for page in 0..64_u64 {
        let offset = page as usize * PAGE_BYTES;
        let mut buffer = vec![0; PAGE_BYTES];
        match stream.read_at(offset as u64, &mut buffer) {
            Ok(_) => assert_eq!(buffer, fixture.plain[offset..offset + PAGE_BYTES]),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                bad.push(page);
            }
        }
    }
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(bad[0] < 16);
    // A request for the whole block includes the damaged page.
    let mut block = vec![0; 1 << 20];
    assert!(stream.read_at(0, &mut block).is_err());
}

#[test]
fn a_lost_block_is_an_error_and_not_zeros() {
    let fixture = fixture(SMALL, 1 << 20);
    let index = (0..16).find(|&i| fixture.image.slot(BlockIndex(i)).expect("a slot").is_some());
    let index = BlockIndex(index.expect("not all zero"));
    fixture
        .store
        .lose(fixture.image.slot(index).expect("a slot").expect("not zero"));
    let mut buffer = vec![0; SMALL.bytes()];
    let error = fixture.image.read_block(index, &mut buffer).expect_err("is lost");
    assert!(matches!(error, Error::BlockMissing(_)));
}

#[test]
fn holes_and_data_are_found() {
    let store = Arc::new(MemoryStore::new(SMALL));
    let mut plain = vec![0; 3000 * SMALL.bytes() + 10];
    for block in [5, 6, 2999] {
        plain[block * SMALL.bytes() + 3] = 1;
    }
    let image = store_image(&*store, "vda", &plain);
    let image = ImageReader::open(store, ReadResources::new(1), &image).expect("opens");
    let at = |block: u64| block << 16;
    assert_eq!(image.next_data(0).expect("finds"), Some(at(5)));
    assert_eq!(image.next_data(at(5) + 77).expect("finds"), Some(at(5) + 77));
    assert_eq!(image.next_hole(at(5)).expect("finds"), at(7));
    assert_eq!(image.next_hole(100).expect("finds"), 100);
    assert_eq!(image.next_data(at(7)).expect("finds"), Some(at(2999)));
    assert_eq!(image.next_hole(at(2999)).expect("finds"), at(3000));
    assert_eq!(image.next_data(at(3000)).expect("finds"), None);
    assert_eq!(image.next_hole(at(3000) + 10).expect("finds"), at(3000) + 10);
}

#[test]
fn the_memory_for_reading_ahead_is_given_back() {
    let fixture = fixture(SMALL, 8_000_000);
    let free = || fixture.image.resources.ahead.free_bytes();
    let before = free();
    let stream = Stream::new(Arc::clone(&fixture.image));
    let mut buffer = vec![0; 500_000];
    for turn in 0..8 {
        stream.read_at(turn * 500_000, &mut buffer).expect("reads");
    }
    assert!(free() < before, "something is read ahead");
    drop(stream);
    fixture.image.resources.drop_idle(std::time::Duration::ZERO);
    // Jobs without a waiting reader return their memory when a thread reaches them.
    let patience = std::time::Instant::now();
    while free() != before && patience.elapsed().as_secs() < 10 {
        std::thread::yield_now();
    }
    assert_eq!(free(), before);
}

#[test]
fn a_block_with_many_small_reads_is_decoded_once() {
    let fixture = fixture(BlockSize::DEFAULT, 80 << 20);
    let stream = Stream::new(Arc::clone(&fixture.image));
    let mut buffer = vec![0; 4096];
    let mut read = |offset: usize| {
        stream.read_at(offset as u64, &mut buffer).expect("reads");
        assert!(buffer == fixture.plain[offset..offset + 4096]);
        fixture.image.resources.ahead.kept_blocks()
    };
    // Too far from each other for a sequential reader.
    let place = |block: usize, page: usize| (block << 20) + page * PAGE_BYTES + 100;
    for block in (0..80).step_by(8) {
        assert_eq!(read(place(block, 3)), 0, "one read in a block");
    }
    assert_eq!(read(place(24, 3)), 0, "a page that is cached");
    assert_eq!(read(place(24, 9)), 0);
    assert_eq!(read(place(72, 9)), 0);
    assert_eq!(read(place(24, 5)), 1, "the third page");
    damage_block(&fixture, 24);
    assert_eq!(read(place(24, 12)), 1, "the store is not asked again");
}

#[test]
fn a_block_under_an_id_of_another_length_is_an_error_and_not_a_panic() {
    // The end of a disk, which a damaged manifest of another disk names as a block in its middle.
    let block = 1 << 20;
    let fixture = fixture(BlockSize::DEFAULT, block + 200_000);
    let id = fixture.image.slot(BlockIndex(1)).expect("a slot");
    let writer = ImageWriter::after(&*fixture.store, BlockSize::DEFAULT, 2 * block as u64, None);
    writer.set(BlockIndex(0), &[id, None]).expect("sets");
    let damaged = Image::new(
        "vdb".parse().expect("a name"),
        "test",
        2 * block as u64,
        writer.finish().expect("finishes"),
    );
    let resources = Arc::clone(&fixture.image.resources);
    let damaged = ImageReader::open(fixture.store.clone(), resources, &damaged).expect("opens");
    let damaged = Stream::new(Arc::new(damaged));
    let stream = Stream::new(Arc::clone(&fixture.image));
    let read = |page: usize| {
        let (mut buffer, at) = ([0; 1000], block + page * PAGE_BYTES);
        stream.read_at(at as u64, &mut buffer).expect("reads");
        assert!(buffer == fixture.plain[at..at + 1000]);
    };
    let fails = |offset: u64| {
        let error = damaged.read_at(offset, &mut [0; 1000]).expect_err("fails");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    };
    // The last page, which is shorter than the damaged manifest says, is cached.
    read(3);
    fails(199_900);
    read(1);
    read(2);
    assert_eq!(fixture.image.resources.ahead.kept_blocks(), 1);
    // Not in pages that are cached: what was proven of the block is right under its id.
    [1000, 199_900, 500_000].into_iter().for_each(fails);
    read(0);
}

#[test]
fn a_block_that_could_not_be_decoded_is_tried_again_after_a_while() {
    let fixture = fixture(BlockSize::DEFAULT, 4 << 20);
    let stream = Stream::new(Arc::clone(&fixture.image));
    let resources = &fixture.image.resources;
    let mut buffer = vec![0; 1000];
    let mut read = |page: usize| {
        let at = page * PAGE_BYTES;
        stream.read_at(at as u64, &mut buffer).expect("reads");
        assert!(buffer == fixture.plain[at..at + 1000], "an intact page");
        resources.ahead.kept_blocks()
    };
    damage_block(&fixture, 0);
    let pages = [4, 1, 6, 2];
    assert_eq!(pages.map(&mut read)[2..], [1, 1], "that it failed is remembered");
    let failed = std::time::Instant::now();
    read(7);
    resources.drop_idle(failed.elapsed());
    assert_eq!(resources.ahead.kept_blocks(), 0, "not for longer because it is read");
}

#[test]
fn two_sequential_readers_of_one_stream_both_read_ahead() {
    let fixture = fixture(SMALL, 24_000_000);
    let stream = Stream::new(Arc::clone(&fixture.image));
    let mut buffer = vec![0; 500_000];
    for turn in 0..4 {
        stream.read_at(turn * 500_000, &mut buffer).expect("reads");
        stream.read_at(12_000_000 + turn * 500_000, &mut buffer).expect("reads");
    }
    assert_eq!(stream.runs_that_read_ahead(), 2);
}

#[test]
fn an_idle_stream_gives_its_blocks_back() {
    let fixture = fixture(SMALL, 8_000_000);
    let resources = &fixture.image.resources;
    let before = resources.ahead.free_bytes();
    let stream = Stream::new(Arc::clone(&fixture.image));
    let mut buffer = vec![0; 500_000];
    for turn in 0..8 {
        stream.read_at(turn * 500_000, &mut buffer).expect("reads");
    }
    resources.drop_idle(std::time::Duration::from_secs(3600));
    assert_eq!(stream.runs_that_read_ahead(), 1, "it is not idle yet");
    resources.drop_idle(std::time::Duration::ZERO);
    assert_eq!(stream.runs_that_read_ahead(), 0);
    let patience = std::time::Instant::now();
    while resources.ahead.free_bytes() != before && patience.elapsed().as_secs() < 10 {
        std::thread::yield_now();
    }
    assert_eq!(resources.ahead.free_bytes(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_reads_in_any_order_give_the_plain_bytes(
        len in 1..1_500_000_usize,
        reads in prop::collection::vec((0.0..1.0_f64, 1..300_000_usize), 1..30),
    ) {
        let fixture = fixture(SMALL, len);
        let stream = Stream::new(Arc::clone(&fixture.image));
        for (place, wanted) in reads {
            let offset = (place * len as f64) as usize;
            let mut buffer = vec![0xEE; wanted];
            let read = stream.read_at(offset as u64, &mut buffer).expect("reads");
            prop_assert_eq!(read, wanted.min(len - offset));
            prop_assert!(buffer[..read] == fixture.plain[offset..offset + read]);
        }
    }
}

#[test]
fn announced_reads_of_a_far_image_take_one_call_and_of_a_near_one_none() {
    const SEGMENT_BYTES: u64 = SEGMENT_SLOTS as u64 * PAGE_BYTES as u64;
    let below = Arc::new(MemoryStore::new(SMALL));
    let image = ImageWriter::create(&*below, SMALL, 20 * SEGMENT_BYTES);
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    let mut offsets = Vec::new();
    let mut slots: Vec<Slot> = vec![None; 20 * SEGMENT_SLOTS];
    for number in 0..10_u64 {
        let plain = vec![number as u8 + 1; SMALL.bytes()];
        let hashes = Hashing::Plain.block(&plain);
        below
            .put(vec![sealer.seal(&plain, &hashes).expect("seals")])
            .expect("puts");
        let index = BlockIndex(2 * number * SEGMENT_SLOTS as u64 + number);
        slots[index.0 as usize] = Some(hashes.id);
        offsets.push(SMALL.offset_of(index) + 1024);
    }
    for (segment, slots) in (0..).zip(slots.chunks(SEGMENT_SLOTS)) {
        image
            .set(BlockIndex(segment * SEGMENT_SLOTS as u64), slots)
            .expect("sets");
    }
    // Zeros, the same page twice, and past the end.
    offsets.extend([SEGMENT_BYTES, offsets[0] + 1, 20 * SEGMENT_BYTES, u64::MAX]);
    let image = Image::new(
        "vda".parse().expect("a name"),
        "test",
        20 * SEGMENT_BYTES,
        image.finish().expect("puts"),
    );
    let far = Arc::new(Delayed::new(Arc::clone(&below), Duration::ZERO).expect("opens"));
    let reader = ImageReader::open(far.clone(), ReadResources::new(1), &image).expect("opens");
    let before = far.calls();
    reader.will_read(&offsets);
    let announced = far.calls();
    assert_eq!(announced.waits - before.waits, 2, "segments, and blocks");
    for (number, offset) in (1..=10).zip(&offsets) {
        let mut bytes = [0; 1024];
        assert_eq!(reader.read_at(*offset, &mut bytes).expect("reads"), 1024);
        assert_eq!(bytes, [number; 1024]);
    }
    reader.will_read(&offsets);
    assert_eq!(far.calls(), announced);
    // What can't be read is left to those who read it.
    let id = reader.slot(BlockIndex(0)).expect("reads").expect("is stored");
    below.damage(id, |sealed| sealed.pages[0][0] ^= 1);
    let reader = ImageReader::open(far, ReadResources::new(1), &image).expect("opens");
    reader.will_read(&offsets);
    assert!(reader.read_at(offsets[0], &mut [0; 10]).is_err());
    assert_eq!(reader.read_at(offsets[1], &mut [0; 10]).expect("reads"), 10);
    let near = ImageReader::open(below, ReadResources::new(1), &image).expect("opens");
    near.will_read(&offsets);
    assert!((0..20).all(|segment| segment % 2 == 1 || !near.is_loaded(segment)));
}
