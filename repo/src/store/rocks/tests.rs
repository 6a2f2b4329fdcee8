use super::*;
use rocksdb::IteratorMode;

use crate::ErrorKind;
use crate::block::{BlockSize, Hashing};
use crate::codec::{Compression, Sealer};
use crate::store::Place;
use crate::tests::testing::segment;

fn identity(block_size: BlockSize) -> Identity {
    Identity {
        format: super::super::STORE_FORMAT,
        features: Vec::new(),
        id: "test".into(),
        block_size,
        created: jiff::Timestamp::UNIX_EPOCH,
        key_check: None,
    }
}

fn block(seed: u8) -> Sealed {
    let plain: Vec<u8> = (0..200_000).map(|i| (i % 241) as u8 ^ seed).collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

pub(super) fn wanted(block: &Sealed) -> Wanted {
    Wanted {
        id: block.id,
        pages: 0..block.pages.len(),
    }
}

/// A store in a temporary directory that is removed when it is dropped.
pub(super) struct Fixture {
    store: Option<RocksStore>,
    pub(super) directory: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let store = RocksStore::create(&path, &identity(BlockSize::DEFAULT)).expect("creates");
        Self {
            store: Some(store),
            directory,
        }
    }

    pub(super) fn store(&self) -> &RocksStore {
        self.store.as_ref().expect("open")
    }

    /// Closes the store and opens it again.
    pub(super) fn reopen(&mut self) {
        self.store = None;
        self.store = Some(RocksStore::open(&self.directory.path().join("store")).expect("opens"));
    }

    /// Returns the state that a killed process leaves: a copy of the present files, opened.
    pub(super) fn crashed_copy(&self) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(self.directory.path().join("store"))
            .arg(directory.path())
            .status();
        assert!(status.expect("cp runs").success());
        let store = RocksStore::open(&directory.path().join("store")).expect("opens");
        Self {
            store: Some(store),
            directory,
        }
    }
}

/// Delegates all calls, so that the directory lives as long as the store.
struct Owned(Fixture, Mutex<Terms>);

impl StoreReader for Owned {
    fn identity(&self) -> Result<Identity> {
        self.0.store().identity()
    }
    fn generation(&self) -> Result<u64> {
        self.0.store().generation()
    }
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.0.store().locate(ids)
    }
    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.0.store().survey_from(from, each)
    }
    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.0.store().condemned()
    }
    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.0.store().forgotten()
    }
    fn notes(&self) -> Result<Vec<Note>> {
        self.0.store().notes()
    }
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        self.0.store().get(wanted)
    }
    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.0.store().nodes(ids)
    }
    fn records(&self) -> Result<Vec<Record>> {
        self.0.store().records()
    }
    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.0.store().listing(with_notes)
    }
    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.0.store().lookup(record_keys, note_names)
    }
}

impl StoreWriter for Owned {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.0.store().put(blocks)
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        let terms = *self.1.lock();
        self.0.store().put_nodes_for(None, terms, nodes)
    }

    fn set_terms(&self, terms: Terms) {
        *self.1.lock() = terms;
    }

    fn flush(&self) -> Result<()> {
        self.0.store().flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        let terms = *self.1.lock();
        self.0.store().commit_for(terms, record, notes, at)
    }
}

impl StoreManager for Owned {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        let terms = *self.1.lock();
        self.0.store().amend_for(None, terms, remove_records, notes, at)
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.0.store().empty_bin(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.0.store().condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.0.store().pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.0.store().retain(live, options, step)
    }
}

#[test]
fn the_rocks_store_keeps_the_rules_of_the_seam() {
    super::super::conformance::check(|_| Box::new(Owned(Fixture::new(), Mutex::default())));
}

#[test]
fn a_crash_keeps_what_a_barrier_covered_and_drops_the_rest() {
    let fixture = Fixture::new();
    let (covered, lost) = (block(1), block(2));
    let store = fixture.store();
    store.put(vec![covered.clone()]).expect("puts");
    store.flush().expect("flushes");
    store.put(vec![lost.clone()]).expect("puts");
    // Simulates a full write buffer that is flushed between two barriers: the rows are on disk, but not covered.
    store
        .reader
        .db
        .flush_cf(store.reader.family("blocks"))
        .expect("flushes");

    let after = fixture.crashed_copy();
    let places = after.store().locate(&[covered.id, lost.id]).expect("locates");
    let places: Vec<_> = places
        .iter()
        .map(|located| located.map(|located| located.place))
        .collect();
    assert_eq!(places, [Some(Place(0)), None]);
    assert!(after.store().get(&[wanted(&covered)])[0].is_ok());
    let rows = after
        .store()
        .reader
        .db
        .iterator_cf(after.store().reader.family("blocks"), IteratorMode::Start)
        .count();
    assert_eq!(rows, 1 + covered.pages.len(), "the uncovered rows are gone");

    // Its sequence number is used again, and survives another crash.
    let other = block(3);
    after.store().put(vec![other.clone()]).expect("puts");
    after.store().flush().expect("flushes");
    let again = after.crashed_copy();
    let stored = again.store().get(&[wanted(&other), wanted(&covered)]);
    assert_eq!(stored[0].as_ref().expect("is there").pages, other.pages);
    assert_eq!(stored[1].as_ref().expect("is there").pages, covered.pages);
}

#[test]
fn a_commit_survives_a_crash_with_all_it_names() {
    let fixture = Fixture::new();
    let block = block(1);
    let (node, bytes) = segment(Hashing::Plain, &[Some(block.id)]);
    let record = Record {
        key: "web1@2026-11-21T05-54-00Z".into(),
        bytes: b"{}".to_vec(),
    };
    fixture.store().put(vec![block.clone()]).expect("puts");
    fixture.store().put_nodes(vec![(node, bytes.clone())]).expect("puts");
    fixture.store().commit(&record).expect("commits");

    let after = fixture.crashed_copy();
    assert_eq!(after.store().records().expect("lists"), [record]);
    assert_eq!(after.store().generation().expect("reads"), 1);
    assert_eq!(after.store().nodes(&[node]).remove(0).expect("is there"), bytes);
    assert!(after.store().get(&[wanted(&block)])[0].is_ok());
}

#[test]
fn a_view_stays_whole_while_the_store_goes_on() {
    let fixture = Fixture::new();
    let (old, new) = (block(1), block(2));
    fixture.store().put(vec![old.clone()]).expect("puts");
    fixture.store().flush().expect("flushes");
    let path = fixture.directory.path().join("view");
    fixture.store().checkpoint(&path).expect("makes a view");
    fixture.store().put(vec![new.clone()]).expect("puts");
    fixture.store().flush().expect("flushes");

    let views = [0, 1].map(|_| RocksReader::open(&path, None).expect("opens twice"));
    for view in &views {
        assert!(view.get(&[wanted(&old)])[0].is_ok());
        assert_eq!(view.locate(&[new.id]).expect("locates"), [None]);
    }
    drop(views);
    let names: Vec<_> = std::fs::read_dir(&path)
        .expect("lists")
        .map(|entry| entry.expect("entry").file_name())
        .filter(|name| name.to_string_lossy().contains("LOG"))
        .collect();
    assert_eq!(names, Vec::<std::ffi::OsString>::new(), "readers leave no logs");
}

#[test]
fn a_view_gives_the_pages_of_a_block_in_any_order() {
    let fixture = Fixture::new();
    let (one, other) = (block(1), block(2));
    fixture.store().put(vec![one.clone(), other.clone()]).expect("puts");
    fixture.store().flush().expect("flushes");
    let path = fixture.directory.path().join("view");
    fixture.store().checkpoint(&path).expect("makes a view");
    let view = RocksReader::open(&path, None).expect("opens");
    for pages in [2..3, 0..1, 1..4, 0..0, 3..4, 2..3] {
        for block in [&one, &other] {
            let (id, header) = (block.id, block.header.clone());
            let stored = Stored {
                header,
                pages: block.pages[pages.clone()].to_vec(),
                base: None,
            };
            let pages = pages.clone();
            let found = view.get(&[Wanted { id, pages }]).swap_remove(0);
            assert_eq!(found.expect("reads"), stored);
        }
    }
    let missing = Wanted {
        id: BlockId([7; 32]),
        pages: 0..1,
    };
    assert!(matches!(view.get(&[missing])[..], [Err(Error::BlockMissing(_))]));
}

#[test]
fn a_second_writer_is_refused_as_locked() {
    let fixture = Fixture::new();
    let second = RocksStore::open(&fixture.directory.path().join("store"));
    assert_eq!(second.err().map(|error| error.kind()), Some(ErrorKind::Locked));
}

/// Makes the index row of `one` give the place of `other`, like damage in memory that is then written with a valid
/// checksum.
fn confuse(store: &RocksStore, one: &Sealed, other: &Sealed) {
    let index = store.reader.family("index");
    let row = store
        .reader
        .db
        .get_cf(index, other.id.0)
        .expect("reads")
        .expect("a row");
    store
        .reader
        .db
        .put_cf_opt(index, one.id.0, row, &options::logged())
        .expect("writes");
}

#[test]
fn a_block_that_takes_the_place_of_a_damaged_one_removes_no_other() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let (one, other) = (block(1), block(2));
    store.put(vec![one.clone(), other.clone()]).expect("puts");
    store.flush().expect("flushes");
    confuse(store, &one, &other);
    let damaged = store.get(&[wanted(&one)]).remove(0);
    assert!(matches!(damaged, Err(Error::BlockDamaged { .. })));
    store.condemn(&[one.id]).expect("notes");
    store.put(vec![one.clone()]).expect("puts");
    store.flush().expect("flushes");
    let both = store.get(&[wanted(&one), wanted(&other)]);
    assert!(both.iter().all(Result::is_ok), "{both:?}");
}

#[test]
fn verify_finds_two_blocks_that_are_said_to_lie_in_one_place() {
    use crate::backup::Entry;
    let fixture = Fixture::new();
    let store = fixture.store();
    let (one, other) = (block(1), block(2));
    store.put(vec![one.clone(), other.clone()]).expect("puts");
    store.flush().expect("flushes");
    confuse(store, &other, &one);
    let size = BlockSize::DEFAULT.bytes() as u64;
    let image = crate::writer::ImageWriter::create(store, BlockSize::DEFAULT, 2 * size);
    let slots = [Some(one.id), Some(other.id)];
    image.set(crate::block::BlockIndex(0), &slots).expect("sets");
    let image = crate::backup::Image {
        manifest: image.finish().expect("finishes"),
        ..crate::tests::testing::store_image(store, "vda", &[])
    };
    let entry = Entry {
        id: crate::id::BackupId([0; 32]),
        backup: crate::tests::testing::backup("web1", "2026-11-20T00-00-00Z", vec![image]).into(),
    };
    let never = AtomicBool::new(false);
    let report = crate::verify::verify(store, &[entry], &crate::verify::Scope::All, 1, &|_| (), &never).expect("runs");
    assert!(report.bad_blocks.contains_key(&other.id), "{report:?}");
}

#[test]
fn a_store_without_its_barrier_is_damaged_and_stays_as_it_is() {
    let fixture = Fixture::new();
    let block = block(1);
    fixture.store().put(vec![block.clone()]).expect("puts");
    fixture.store().flush().expect("flushes");
    let Fixture { store, directory } = fixture;
    let store = store.expect("open");
    let remove = |store: &RocksStore| {
        let mut batch = WriteBatch::default();
        batch.delete_cf(store.reader.family("meta"), "barrier");
        store.write_logged("test", batch).expect("writes");
    };
    remove(&store);
    let barrier = 1_u64.to_be_bytes();
    drop(store);
    let path = directory.path().join("store");
    let error = RocksStore::open(&path).err().expect("refuses");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // With the barrier restored, the block still exists.
    let reader = RocksStore::open_or_create(&path, false).expect("opens");
    reader
        .db
        .put_cf_opt(reader.family("meta"), "barrier", barrier, &options::logged())
        .expect("writes");
    drop(reader);
    let store = RocksStore::open(&path).expect("opens");
    assert!(store.get(&[wanted(&block)])[0].is_ok());
}

#[test]
fn a_node_whose_bytes_changed_is_stored_again() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let (node, bytes) = segment(Hashing::Plain, &[Some(block(1).id)]);
    store.put_nodes(vec![(node, b"else".to_vec())]).expect("puts");
    store.flush().expect("flushes");
    store.put_nodes(vec![(node, bytes.clone())]).expect("puts");
    assert_eq!(store.nodes(&[node]).remove(0).expect("is there"), bytes);
}

#[test]
fn a_prune_between_a_put_and_its_barrier_is_refused() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    store.put(vec![block(1)]).expect("puts");
    let refused = store.retain(&Live::none(), options, &mut |_| Ok(()));
    assert_eq!(refused.map_err(|error| error.kind()), Err(ErrorKind::Internal));
    store.flush().expect("flushes");
    assert!(store.get(&[wanted(&block(1))])[0].is_ok());
}

/// Returns a block with content that no other number has.
fn numbered_block(number: u32) -> Sealed {
    let plain: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(4096).collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

#[test]
fn a_view_made_while_others_commit_has_the_blocks_of_every_record_in_it() {
    const VIEWS: usize = 25;
    let fixture = Fixture::new();
    let store = fixture.store();
    let (done, number) = (AtomicBool::new(false), std::sync::atomic::AtomicU32::new(0));
    let commit = || {
        while !done.load(Ordering::SeqCst) {
            let sealed = numbered_block(number.fetch_add(1, Ordering::SeqCst));
            let record = Record {
                key: sealed.id.to_string(),
                bytes: sealed.id.0.to_vec(),
            };
            store.put(vec![sealed]).expect("puts");
            store.commit(&record).expect("commits");
        }
    };
    let mut records = 0;
    std::thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(commit)));
        for view in 0..VIEWS {
            let path = fixture.directory.path().join(view.to_string());
            let made = store.checkpoint(&path).and_then(|()| RocksReader::open(&path, None));
            if made.is_err() || view + 1 == VIEWS {
                done.store(true, Ordering::SeqCst);
            }
            let view = made.expect("makes a view");
            for record in view.records().expect("lists") {
                let wanted = Wanted {
                    id: BlockId(record.bytes.try_into().expect("an id")),
                    pages: 0..1,
                };
                let found = view.get(&[wanted]).remove(0).map(drop);
                if found.is_err() {
                    done.store(true, Ordering::SeqCst);
                }
                found.expect("the view has the block of its record");
                records += 1;
            }
        }
    });
    assert!(records > 0, "nothing was committed in time");
}

#[test]
fn nothing_is_logged_while_a_view_is_made() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let sealed = block(1);
    store.put(vec![sealed.clone()]).expect("puts");
    store.flush().expect("flushes");
    let note = Note {
        name: "x".into(),
        value: Some(vec![1]),
    };
    let record = Record {
        key: "a@1".into(),
        bytes: vec![1],
    };
    let log: [(&str, &(dyn Fn() -> Result<()> + Sync)); 5] = [
        ("commit", &|| store.commit(&record)),
        ("amend", &|| store.amend(&[], std::slice::from_ref(&note))),
        ("condemn", &|| store.condemn(&[sealed.id])),
        ("pardon", &|| store.pardon(&[sealed.id])),
        ("retain", &|| {
            let options = PruneOptions {
                max_unused: 0.0,
                dry_run: false,
                empty_bin: false,
            };
            store.retain(&Live::none(), options, &mut |_| Ok(())).map(drop)
        }),
    ];
    for (name, write) in log {
        let before = store.reader.db.latest_sequence_number();
        let view = store.log.lock();
        std::thread::scope(|scope| {
            let writing = scope.spawn(write);
            // Flushes and compactions log nothing and need not wait.
            std::thread::sleep(std::time::Duration::from_millis(30));
            assert!(!writing.is_finished(), "{name} did not wait");
            assert_eq!(store.reader.db.latest_sequence_number(), before, "{name}");
            drop(view);
            writing
                .join()
                .expect("runs")
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        });
        assert!(
            store.reader.db.latest_sequence_number() > before,
            "{name} logged nothing"
        );
    }
}

#[test]
fn a_sweep_makes_views_between_its_steps() {
    let fixture = Fixture::new();
    let store = fixture.store();
    store.put(vec![block(1)]).expect("puts");
    store.flush().expect("flushes");
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    let mut views = 0;
    let swept = store.retain(&Live::none(), options, &mut |_| {
        views += 1;
        store.checkpoint(&fixture.directory.path().join(format!("view{views}")))
    });
    assert_eq!(swept.expect("sweeps").removed_blocks, 1);
    assert!(views > 0);
}

#[test]
fn an_index_row_that_points_past_the_last_barrier_is_damage_and_its_block_is_stored_anew() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let (one, other) = (block(1), block(2));
    store.put(vec![one.clone(), other.clone()]).expect("puts");
    store.flush().expect("flushes");
    for sequence in [2, 1 << 40, u64::MAX] {
        let row = IndexRow {
            sequence,
            plain_bytes: one.plain_bytes,
            stored_bytes: 1,
            base: None,
        };
        let mut batch = WriteBatch::default();
        batch.put_cf(store.reader.family("index"), one.id.0, row.encode());
        store.write_logged("damage", batch).expect("writes");
        let surveyed = store.survey(&mut |_, _| Ok(()));
        assert_eq!(surveyed.map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
        let located = store.locate(&[one.id, other.id]).expect("locates");
        assert_eq!(located.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
        assert!(store.get(&[wanted(&one)]).remove(0).is_err());
        let mut found = Vec::new();
        let read = store
            .reader
            .check(2, &AtomicBool::new(false), &mut |what| found.push(what));
        read.expect("reads");
        assert!(found.len() == 1 && found[0].contains(&one.id.to_string()), "{found:?}");
        store.put(vec![one.clone()]).expect("puts");
        store.flush().expect("flushes");
        assert!(store.get(&[wanted(&one)]).remove(0).is_ok());
        store.survey(&mut |_, _| Ok(())).expect("all is well");
    }
}

#[test]
fn numbers_of_the_store_that_none_reaches_are_damage() {
    for key in ["barrier", "generation"] {
        let fixture = Fixture::new();
        let reader = &fixture.store().reader;
        let mut batch = WriteBatch::default();
        batch.put_cf(reader.family("meta"), key, u64::MAX.to_be_bytes());
        fixture.store().write_logged("damage", batch).expect("writes");
        let record = Record {
            key: "a@1".into(),
            bytes: vec![1],
        };
        let committed = match key {
            "barrier" => {
                RocksStore::over(RocksReader::open(&fixture.directory.path().join("store"), None).expect("opens"))
                    .map(drop)
            }
            _ => fixture.store().commit(&record),
        };
        assert_eq!(
            committed.map_err(|error| error.kind()),
            Err(ErrorKind::Corrupt),
            "{key}"
        );
    }
}
