use super::*;
use crate::catalogue::Catalogue;
use crate::mark::mark;
use crate::reader::{ImageReader, ReadResources, read_whole};
use crate::repair::Repair;
use crate::state::States;
use crate::store::memory::MemoryStore;
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};
use crate::verify::{Scope, VerifyReport, verify};

use std::sync::atomic::AtomicBool;

/// Kind of a wrong answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    FewPlaces,
    ManyPlaces,
    NoBlock,
    FewPages,
    ManyPages,
    ShortPage,
    NoSegment,
    ManySegments,
    RecordTwice,
    NoteTwice,
}

struct Short(MemoryStore, Fault);

impl StoreReader for Short {
    fn identity(&self) -> Result<Identity> {
        self.0.identity()
    }
    fn generation(&self) -> Result<u64> {
        self.0.generation()
    }
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let mut located = self.0.locate(ids)?;
        match self.1 {
            Fault::FewPlaces => drop(located.pop()),
            Fault::ManyPlaces => located.push(None),
            _ => {}
        }
        Ok(located)
    }
    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.0.survey_from(from, each)
    }
    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.0.condemned()
    }
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let mut answers = self.0.get(wanted);
        for stored in answers.iter_mut().flatten() {
            match self.1 {
                Fault::FewPages => drop(stored.pages.pop()),
                Fault::ManyPages => stored.pages.push(Vec::new()),
                Fault::ShortPage => {
                    for page in &mut stored.pages {
                        page.pop();
                    }
                }
                _ => {}
            }
        }
        if self.1 == Fault::NoBlock {
            answers.pop();
        }
        answers
    }
    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let mut answers = self.0.nodes(ids);
        match self.1 {
            Fault::NoSegment => drop(answers.pop()),
            Fault::ManySegments => answers.push(Ok(Vec::new())),
            _ => {}
        }
        answers
    }
    fn records(&self) -> Result<Vec<Record>> {
        let mut records = self.0.records()?;
        if self.1 == Fault::RecordTwice {
            records.extend(records.clone());
        }
        Ok(records)
    }
    fn notes(&self) -> Result<Vec<Note>> {
        let mut notes = self.0.notes()?;
        if self.1 == Fault::NoteTwice {
            notes.extend(notes.clone());
        }
        Ok(notes)
    }
}

impl StoreWriter for Short {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.0.put(blocks)
    }

    fn put_nodes(&self, segments: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.0.put_nodes(segments)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.0.commit_at(record, notes, at)
    }
}

impl StoreManager for Short {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.0.amend_at(remove_records, notes, at)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.0.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.0.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.0.retain(live, options, step)
    }
}

const LEN: usize = 3 * (1 << 20) - 5;
static CANCEL: AtomicBool = AtomicBool::new(false);

fn plain() -> Vec<u8> {
    mixed_bytes(7, LEN)
}

fn store(fault: Fault) -> Short {
    let store = MemoryStore::new(crate::block::BlockSize::DEFAULT);
    let made = backup(
        "web1",
        "2026-11-20T00-00-00Z",
        vec![store_image(&store, "vda", &plain())],
    );
    let (key, bytes) = (made.spec(), made.encode());
    let note = Note {
        name: "x".into(),
        value: Some(vec![1]),
    };
    store.commit(&Record { key, bytes }).expect("commits");
    store.amend(&[], &[note]).expect("notes");
    Short(store, fault)
}

/// Reads everything from a store, with the readers' buffers prefilled with other bytes.
fn read_all(store: Arc<dyn StoreReader>) -> Result<()> {
    let catalogue = Catalogue::load(&*store)?;
    States::load(&*store)?;
    let plain = plain();
    let image = &catalogue.entries()[0].backup.images[0];
    let reader = ImageReader::open(Arc::clone(&store), ReadResources::new(1), image)?;
    // Whole blocks, and pages at random offsets, each with its neighbours.
    for (offset, len) in [(0, LEN), (70_000, 1 << 17), (5, 3)] {
        let mut out = vec![0xEE; len];
        let read = reader.read_at(offset as u64, &mut out)?;
        assert!(out[..read] == plain[offset..offset + read], "other bytes came out");
    }
    mark(&*store, &catalogue, 2, &CANCEL)?;
    crate::stats::stats(&*store, &catalogue, 1, jiff::Timestamp::UNIX_EPOCH, &CANCEL)?;
    let found = verify(&*store, catalogue.entries(), &Scope::All, 1, &|_| (), &CANCEL)?;
    match found.damage.first() {
        None => Ok(()),
        Some(damage) => panic!("reading found nothing, and verify {damage:?}"),
    }
}

const FAULTS: [Fault; 10] = [
    Fault::FewPlaces,
    Fault::ManyPlaces,
    Fault::NoBlock,
    Fault::FewPages,
    Fault::ManyPages,
    Fault::ShortPage,
    Fault::NoSegment,
    Fault::ManySegments,
    Fault::RecordTwice,
    Fault::NoteTwice,
];

#[test]
fn a_store_that_answers_in_full_passes() {
    read_all(Arc::new(Checked::new(Arc::new(store(Fault::None))))).expect("reads");
    crate::store::conformance::check(|size| Box::new(Checked::new(Arc::new(MemoryStore::new(size)))));
}

#[test]
fn a_store_that_answers_short_is_damage_and_no_byte_comes_out() {
    for fault in FAULTS {
        let result = read_all(Arc::new(Checked::new(Arc::new(store(fault)))));
        assert_eq!(
            result.map_err(|error| error.kind()),
            Err(ErrorKind::Corrupt),
            "{fault:?}"
        );
    }
}

#[test]
fn readers_do_not_rely_on_the_check_for_what_they_give_out() {
    for fault in [
        Fault::NoBlock,
        Fault::FewPages,
        Fault::ManyPages,
        Fault::ShortPage,
        Fault::NoSegment,
        Fault::ManySegments,
    ] {
        let result = read_all(Arc::new(store(fault)));
        assert_eq!(
            result.map_err(|error| error.kind()),
            Err(ErrorKind::Corrupt),
            "{fault:?}"
        );
    }
}

#[test]
fn damage_to_one_block_is_told_of_it_alone() {
    let store = store(Fault::FewPages);
    let ids: Vec<_> = {
        let mut ids = Vec::new();
        store
            .survey(&mut |id, _| {
                ids.push(id);
                Ok(())
            })
            .expect("lists");
        ids
    };
    let wanted = ids.iter().map(|id| Wanted { id: *id, pages: 0..1 });
    let answers = Checked::new(Arc::new(store)).get(&wanted.collect::<Vec<_>>());
    assert_eq!(answers.len(), ids.len());
    for (answer, id) in answers.iter().zip(&ids) {
        assert!(matches!(answer, Err(Error::BlockDamaged { id: of, .. }) if of == id));
    }
}

#[test]
fn a_repair_from_a_store_that_answers_short_gets_nothing_and_goes_on() {
    let target = MemoryStore::new(SMALL);
    for fault in [Fault::NoBlock, Fault::FewPages, Fault::NoSegment, Fault::ManySegments] {
        let other = store(fault);
        let mut found = VerifyReport::default();
        other
            .survey(&mut |id, located| {
                found.bad_blocks.insert(id, located.plain_bytes as usize);
                Ok(())
            })
            .expect("lists");
        let root = Catalogue::load(&other).expect("loads").entries()[0].backup.images[0].manifest;
        found.bad_nodes.insert(root);
        let write = |change: &mut dyn FnMut(&dyn StoreManager) -> Result<()>| change(&target);
        let mut repair = Repair::start(Hashing::Plain, &write, &found).expect("starts");
        repair
            .from_repository(&other, &AtomicBool::new(false))
            .expect("goes on");
        let (blocks, segments) = repair.mended();
        match fault {
            Fault::NoBlock | Fault::FewPages => assert_eq!((blocks, segments), (0, 1), "{fault:?}"),
            _ => assert_eq!((blocks > 0, segments), (true, 0), "{fault:?}"),
        }
    }
}

#[test]
fn a_buffer_is_never_left_as_it_was() {
    let store = store(Fault::FewPages);
    let mut id = None;
    store
        .survey(&mut |one, _| {
            id = Some(one);
            Ok(())
        })
        .expect("lists");
    let mut out = vec![0xEE; 1 << 20];
    assert!(read_whole(&store, id.expect("a block"), &mut out).is_err());
}
