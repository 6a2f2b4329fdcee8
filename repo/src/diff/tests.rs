use super::*;
use crate::block::BlockSize;
use crate::error::ErrorKind;
use crate::id::{BlockId, NodeId};
use crate::store::StoreWriter;
use crate::store::memory::MemoryStore;
use crate::store::{Identity, Located, Note, Record, StoreReader, Stored, Wanted};
use crate::tests::testing::{SMALL, store_image};
use crate::writer::ImageWriter;
use parking_lot::Mutex;
use proptest::prelude::*;

const BLOCK: u64 = 1 << 16;

/// Returns an image whose block n has the content `blocks[n]`, 0 for zeros. Its blocks are not stored: no diff may read
/// them.
fn image(store: &MemoryStore, block_size: BlockSize, blocks: &[u8], size_bytes: u64) -> Image {
    let writer = ImageWriter::create(store, block_size, size_bytes);
    let slots: Vec<_> = blocks.iter().map(|&n| (n > 0).then_some(BlockId([n; 32]))).collect();
    writer.set(BlockIndex(0), &slots).expect("sets");
    Image {
        manifest: writer.finish().expect("finishes"),
        size_bytes,
        ..store_image(store, "vda", &[])
    }
}

fn whole(store: &MemoryStore, blocks: &[u8]) -> Image {
    image(store, SMALL, blocks, blocks.len() as u64 * BLOCK)
}

fn run(store: &dyn StoreReader, before: &Image, after: &Image) -> (Vec<ChangedRange>, ImageDiff) {
    let mut ranges = Vec::new();
    let found = diff(store, before, after, &mut |range| ranges.push(range)).expect("compares");
    assert_eq!(found.ranges, ranges.len() as u64);
    assert_eq!(
        found.total_bytes(),
        ranges.iter().map(|range| range.len_bytes).sum::<u64>()
    );
    (ranges, found)
}

/// Returns the expected ranges of two images with these blocks, computed without knowledge of segments.
fn expected(before: &[u8], after: &[u8]) -> Vec<ChangedRange> {
    let kinds = (0..before.len().max(after.len())).map(|n| match (before.get(n), after.get(n)) {
        (None, _) => Some(ChangeKind::Grown),
        (_, None) => Some(ChangeKind::Cut),
        (Some(old), Some(new)) if old == new => None,
        (Some(0), _) => Some(ChangeKind::FromZero),
        (_, Some(0)) => Some(ChangeKind::Zeroed),
        _ => Some(ChangeKind::Changed),
    });
    let kinds: Vec<_> = kinds.collect();
    let mut ranges = Vec::new();
    let mut offset_bytes = 0;
    for run in kinds.chunk_by(|a, b| a == b) {
        let len_bytes = run.len() as u64 * BLOCK;
        if let Some(kind) = run[0] {
            ranges.push(ChangedRange {
                offset_bytes,
                len_bytes,
                kind,
            });
        }
        offset_bytes += len_bytes;
    }
    ranges
}

struct Counting<'a>(&'a MemoryStore, Mutex<Vec<usize>>);

impl StoreReader for Counting<'_> {
    fn identity(&self) -> Result<Identity> {
        self.0.identity()
    }
    fn generation(&self) -> Result<u64> {
        self.0.generation()
    }
    fn locate(&self, _: &[BlockId]) -> Result<Vec<Option<Located>>> {
        panic!("a diff asks for no block");
    }
    fn survey_from(&self, _: BlockId, _: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        panic!("a diff asks for no block");
    }
    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.0.condemned()
    }
    fn notes(&self) -> Result<Vec<Note>> {
        self.0.notes()
    }
    fn get(&self, _: &[Wanted]) -> Vec<Result<Stored>> {
        panic!("a diff reads no block");
    }
    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.1.lock().push(ids.len());
        self.0.nodes(ids)
    }
    fn records(&self) -> Result<Vec<Record>> {
        self.0.records()
    }
}

#[test]
fn only_segments_that_differ_are_read_and_many_at_once() {
    let store = MemoryStore::new(SMALL);
    let mut blocks = vec![1; 40 * SEGMENT_SLOTS];
    blocks[..SEGMENT_SLOTS].fill(0);
    let before = whole(&store, &blocks);
    for segment in (0..40).step_by(2) {
        blocks[segment * SEGMENT_SLOTS + 5] = 2;
    }
    let after = whole(&store, &blocks);
    let counting = Counting(&store, Mutex::default());
    let (ranges, found) = run(&counting, &before, &after);
    assert_eq!((ranges.len(), found.total_bytes()), (20, 20 * BLOCK));
    // A root and a page of each; then 16 pairs, of which one half is a segment of zeros that is not stored; then the other 4.
    assert_eq!(*counting.1.lock(), [1, 1, 1, 1, 31, 8]);
}

#[test]
fn an_image_does_not_differ_from_itself() {
    let store = MemoryStore::new(SMALL);
    for blocks in [&[][..], &[0, 1, 2]] {
        let image = whole(&store, blocks);
        assert_eq!(run(&store, &image, &image).1.total_bytes(), 0);
    }
}

#[test]
fn a_range_goes_on_over_a_segment_border_and_ends_with_the_shorter_image() {
    let store = MemoryStore::new(SMALL);
    let before = image(&store, SMALL, &[1; 1030], 1029 * BLOCK + 100);
    let after = image(&store, SMALL, &[2; 3000], 3000 * BLOCK - 1);
    let ranges = |before, after| -> Vec<_> {
        let (ranges, _) = run(&store, before, after);
        ranges
            .iter()
            .map(|range| (range.offset_bytes, range.len_bytes, range.kind))
            .collect()
    };
    let (first, rest) = (1029 * BLOCK + 100, 1971 * BLOCK - 101);
    let changed = (0, first, ChangeKind::Changed);
    assert_eq!(ranges(&before, &after), [changed, (first, rest, ChangeKind::Grown)]);
    assert_eq!(ranges(&after, &before), [changed, (first, rest, ChangeKind::Cut)]);
}

#[test]
fn blocks_of_another_size_are_refused() {
    let store = MemoryStore::new(SMALL);
    let before = image(&store, SMALL, &[1], BLOCK);
    let after = image(&store, BlockSize::DEFAULT, &[1], BLOCK);
    let error = diff(&store, &before, &after, &mut |_| ()).expect_err("differ");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_manifest_that_is_missing_is_an_error() {
    let (store, other) = (MemoryStore::new(SMALL), MemoryStore::new(SMALL));
    let (here, elsewhere) = (whole(&store, &[1]), whole(&other, &[2]));
    let error = diff(&store, &here, &elsewhere, &mut |_| ()).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let (id, root) = (elsewhere.manifest, other.nodes(&[elsewhere.manifest]).remove(0));
    store.put_nodes(vec![(id, root.expect("reads"))]).expect("puts");
    let error = diff(&store, &here, &elsewhere, &mut |_| ()).expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// Runs of blocks with few contents, over several segments.
fn blocks() -> impl Strategy<Value = Vec<u8>> {
    let run = (0..3_u8, prop_oneof![1..5_usize, 900..1100_usize]);
    prop::collection::vec(run, 0..5).prop_map(|runs| runs.into_iter().flat_map(|(n, len)| vec![n; len]).collect())
}

proptest! {
    #[test]
    fn ranges_are_those_of_the_blocks(before in blocks(), after in blocks()) {
        let store = MemoryStore::new(SMALL);
        let (ranges, _) = run(&store, &whole(&store, &before), &whole(&store, &after));
        prop_assert_eq!(ranges, expected(&before, &after));
    }

    #[test]
    fn a_byte_is_in_a_range_just_if_its_block_has_a_byte_that_differs(
        before in prop::collection::vec(0..3_u8, 0..6),
        after in prop::collection::vec(0..3_u8, 0..6),
        (cut_before, cut_after) in (0..BLOCK as usize, 0..BLOCK as usize),
        pokes in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let plain = |blocks: &[u8], cut: usize| -> Vec<u8> {
            let len = (blocks.len() * BLOCK as usize).saturating_sub(cut);
            blocks.iter().flat_map(|&n| vec![n; BLOCK as usize]).take(len).collect()
        };
        let (before, mut after) = (plain(&before, cut_before), plain(&after, cut_after));
        for poke in pokes.iter().take(after.len()) {
            let place = poke.index(after.len());
            after[place] ^= 0x80;
        }
        let store = MemoryStore::new(SMALL);
        let (first, second) = (store_image(&store, "vda", &before), store_image(&store, "vda", &after));
        let (ranges, _) = run(&store, &first, &second);
        let both = before.len().min(after.len());
        let mut wanted = vec![true; before.len().max(after.len())];
        for at in (0..both).step_by(BLOCK as usize) {
            let block = |plain: &[u8]| plain[at..plain.len().min(at + BLOCK as usize)].to_vec();
            let (old, new) = (block(&before), block(&after));
            let same = old == new || old.iter().chain(&new).all(|&byte| byte == 0);
            wanted[at..both.min(at + BLOCK as usize)].fill(!same);
        }
        let mut found = vec![false; wanted.len()];
        for range in ranges {
            let end = range.offset_bytes + range.len_bytes;
            found[range.offset_bytes as usize..end as usize].fill(true);
        }
        prop_assert!(found == wanted);
    }
}
