use super::*;
use crate::id::BlockId;
use crate::slots::SlotReader;
use crate::store::memory::MemoryStore;
use crate::tests::testing::Before;

fn id(number: u64) -> Slot {
    let mut bytes = [1; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Some(BlockId(bytes))
}

#[test]
fn slots_set_in_any_order_come_back_in_order() {
    let store = MemoryStore::new(BlockSize::MIN);
    let count = 2 * SEGMENT_SLOTS as u64 + 10;
    let writer = ImageWriter::create(&store, BlockSize::MIN, count << 16);
    let runs: Vec<_> = (0..count).step_by(7).collect();
    for run in runs.into_iter().rev() {
        let slots: Vec<_> = (run..count.min(run + 7)).map(id).collect();
        writer.set(BlockIndex(run), &slots).expect("sets");
    }
    let manifest = writer.finish().expect("finishes");
    let reader = SlotReader::open(&store, manifest).expect("opens");
    let all: Vec<_> = (0..4).flat_map(|n| reader.segment(n).expect("reads")).collect();
    assert_eq!(all, (0..count).map(id).collect::<Vec<_>>());
}

#[test]
fn a_hole_of_any_size_costs_one_root() {
    let store = MemoryStore::new(BlockSize::DEFAULT);
    let blocks = 1 << 20;
    let writer = ImageWriter::create(&store, BlockSize::DEFAULT, blocks << 20);
    writer.set_zero(BlockIndex(0), blocks).expect("sets");
    let manifest = writer.finish().expect("finishes");
    let reader = SlotReader::open(&store, manifest).expect("opens");
    assert_eq!(reader.manifest().pages(), [NodeId::ZERO; 16]);
    assert_eq!(reader.segment(1023).expect("reads"), vec![None; 1024]);
}

#[test]
fn a_forgotten_or_doubled_slot_is_an_error_and_not_zeros() {
    let store = MemoryStore::new(BlockSize::DEFAULT);
    let writer = ImageWriter::create(&store, BlockSize::DEFAULT, 3 << 20);
    writer.set(BlockIndex(0), &[id(0)]).expect("sets");
    assert!(writer.set(BlockIndex(0), &[id(0)]).is_err());
    assert!(writer.set(BlockIndex(2), &[id(2), id(3)]).is_err());
    assert!(writer.finish().is_err());
}

#[test]
fn an_empty_disk_has_a_manifest() {
    let store = MemoryStore::new(BlockSize::DEFAULT);
    let manifest = ImageWriter::create(&store, BlockSize::DEFAULT, 0)
        .finish()
        .expect("finishes");
    assert_eq!(
        SlotReader::open(&store, manifest)
            .expect("opens")
            .manifest()
            .size_bytes(),
        0
    );
}

/// A disk that is backed up again and again, and a count of the bytes that this adds to the store.
struct Days {
    store: Arc<MemoryStore>,
    slots: Vec<Slot>,
    last: Option<NodeId>,
    noise: u64,
}

impl Days {
    fn new(slots: u64) -> Self {
        Self {
            store: Arc::new(MemoryStore::new(BlockSize::DEFAULT)),
            slots: (0..slots).map(id).collect(),
            last: None,
            noise: 1 << 40,
        }
    }

    /// Changes every slot of which `changes` is true for a random number below a million.
    fn change(&mut self, changes: impl Fn(usize, u64) -> bool) {
        for number in 0..self.slots.len() {
            self.noise = self
                .noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if changes(number, (self.noise >> 33) % 1_000_000) {
                self.slots[number] = id(self.noise | 1 << 63);
            }
        }
    }

    /// Writes the manifest and returns the bytes that were stored for it.
    fn back_up(&mut self) -> u64 {
        let before = self.store.node_bytes();
        let size_bytes = (self.slots.len() as u64) << 20;
        let base = self.last.map(|id| SlotReader::open(&*self.store, id).expect("opens"));
        let base = base.map(|reader| Arc::new(Before(reader)) as Arc<dyn Base>);
        let writer = ImageWriter::after(&*self.store, BlockSize::DEFAULT, size_bytes, base);
        writer.set(BlockIndex(0), &self.slots).expect("sets");
        self.last = Some(writer.finish().expect("finishes"));
        self.store.node_bytes() - before
    }

    fn assert_read_back(&self) {
        let reader = SlotReader::open(&*self.store, self.last.expect("is backed up")).expect("opens");
        let all = reader.segments(0..usize::MAX);
        let all: Vec<Slot> = all
            .into_iter()
            .flat_map(|segment| segment.expect("reads").slots)
            .collect();
        assert!(all == self.slots);
    }
}

/// Slots of a disk of a TiB.
const TIB: u64 = 1 << 20;

#[test]
fn a_disk_with_random_changes_costs_a_few_ten_thousandths_of_them() {
    let mut days = Days::new(TIB);
    let first = days.back_up();
    assert!((32 * TIB..36 * TIB).contains(&first), "{first}");
    let mut stored = 0;
    for _ in 0..8 {
        days.change(|_, random| random < 30_000);
        stored += days.back_up();
        days.assert_read_back();
    }
    // 3 % of the blocks of 1 MiB each day. 32 bytes for each block alone are 0.003 %.
    let changed = 8.0 * 0.03 * (TIB << 20) as f64;
    let share = stored as f64 / changed;
    println!(
        "{:.1} MiB a day, {:.4} % of the changed bytes",
        stored as f64 / 8.0 / f64::from(1 << 20),
        share * 100.0
    );
    assert!(share < 0.0005, "{share}");
}

#[test]
fn a_disk_with_one_change_costs_a_delta_a_page_and_a_root_and_an_unchanged_one_nothing() {
    let mut days = Days::new(TIB);
    days.back_up();
    assert_eq!(days.back_up(), 0);
    days.change(|number, _| number == 12_345);
    let one = days.back_up();
    assert!(one < 6000, "{one} bytes");
    assert_eq!(days.back_up(), 0);
    days.change(|number, _| number % SEGMENT_SLOTS == 7);
    let each = days.back_up();
    assert!(each < 1024 * 60 + 16 * 4500 + 1000, "{each} bytes");
    days.assert_read_back();
}

#[test]
fn blocks_that_come_back_cost_no_delta() {
    let mut days = Days::new(2048);
    days.back_up();
    let first = days.slots.clone();
    days.change(|number, _| number == 5);
    days.back_up();
    days.slots = first;
    assert!(days.back_up() < 300, "a page and a root");
    days.assert_read_back();
    days.slots.fill(None);
    assert!(days.back_up() < 300, "a root");
    days.assert_read_back();
}

#[test]
fn a_disk_that_grew_or_shrank_is_read_back() {
    let mut days = Days::new(1500);
    days.back_up();
    for slots in [1501, 3000, 1024, 1] {
        days.slots = (0..slots).map(id).collect();
        days.back_up();
        days.assert_read_back();
    }
}

#[test]
fn a_backup_of_an_unchanged_disk_repairs_its_damaged_delta() {
    let mut days = Days::new(1024);
    days.back_up();
    days.change(|number, _| number == 5);
    days.back_up();
    let damaged = days.last.expect("is backed up");
    let names = SlotReader::open(&*days.store, damaged)
        .expect("opens")
        .manifest()
        .segment(0);
    let delta = names.expect("is whole").delta;
    days.store.put_nodes(vec![(delta, b"damaged".to_vec())]).expect("puts");
    assert!(
        SlotReader::open(&*days.store, damaged)
            .expect("opens")
            .segment(0)
            .is_err()
    );
    days.back_up();
    assert_eq!(days.last, Some(damaged));
    days.assert_read_back();
}

#[test]
fn a_segment_that_becomes_zero_is_not_stored() {
    let mut days = Days::new(2048);
    days.slots[..1024].fill(None);
    days.slots[7] = id(1);
    days.back_up();
    days.slots[7] = None;
    days.back_up();
    let reader = SlotReader::open(&*days.store, days.last.expect("is backed up")).expect("opens");
    assert_eq!(reader.manifest().segment(0).expect("is whole"), Segment::ZERO);
    days.assert_read_back();
}
