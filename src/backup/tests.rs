use std::fs;
use std::os::unix::fs::FileExt;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::*;
use crate::disk::buffer::Buffers;
use crate::limit::Pace;
use jiff::Timestamp;
use vbk_repo::backup::Consistency;
use vbk_repo::codec::Compression;
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SharedDirectory;
use vbk_repo::repository::{CreateOptions, Repository};

struct Fixture {
    directory: tempfile::TempDir,
    repository: Repository,
}

impl Fixture {
    fn new(block_size: BlockSize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let repository =
            Repository::create(&directory.path().join("repo"), &CreateOptions::plain(block_size)).expect("creates");
        Self { directory, repository }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn plan(&self) -> BackupPlan {
        plan(self.path())
    }

    fn backup(&self) -> BackupSummary {
        self.try_backup(&self.plan(), &AtomicBool::new(false), &())
            .expect("backs up")
    }

    fn try_backup(&self, plan: &BackupPlan, cancel: &AtomicBool, observer: &dyn Observer) -> Result<BackupSummary> {
        // Another test may start a program, which holds the lock for the moment until it is executed.
        let writer = self.repository.writer("test", &mut |_| true)?;
        backup(&writer, plan, &|| Ok(BTreeMap::new()), &[cancel], observer)
    }

    fn read(&self, entry: &Entry) -> Vec<u8> {
        let view = self.repository.view().expect("opens");
        let image = ImageReader::open(view.store(), ReadResources::new(1), &entry.backup.images[0]);
        let image = image.expect("opens");
        let mut bytes = vec![0xEE; image.size_bytes() as usize];
        assert_eq!(image.read_at(0, &mut bytes).expect("reads"), bytes.len());
        bytes
    }

    fn count(&self) -> usize {
        let view = self.repository.view().expect("opens");
        view.catalogue().expect("loads").entries().len()
    }
}

fn plan(path: PathBuf) -> BackupPlan {
    BackupPlan {
        guest: "web1".parse().expect("a name"),
        disks: vec![disk("vda", path)],
        files: Vec::new(),
        consistency: Consistency::Live,
        compression: Compression::default(),
        host: "host".into(),
        version: "0".into(),
        started: Timestamp::now(),
        threads: 2,
        buffers: Buffers::default(),
    }
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

mod far;
mod hints;
mod thin;

const MIB: u64 = 1 << 20;

fn disk(name: &str, path: PathBuf) -> DiskPlan {
    DiskPlan {
        name: name.parse().expect("a name"),
        source: path.clone(),
        read: path,
        snapshot: None,
        pace: Pace::default(),
        hint: None,
    }
}

#[test]
fn two_days_come_back_bit_for_bit_and_share_what_did_not_change() {
    for block_size in [BlockSize::MIN, BlockSize::DEFAULT, BlockSize::MAX] {
        let fixture = Fixture::new(block_size);
        let mut bytes = noise(1, (40 * MIB + 12_345) as usize);
        bytes[(5 * MIB) as usize..(25 * MIB) as usize].fill(0);
        fs::write(fixture.path(), &bytes).expect("writes");
        let first = fixture.backup();
        assert_eq!(first.counts.done_bytes(), bytes.len() as u64);
        assert_eq!(first.counts.unchanged_bytes, 0);

        let before = bytes.clone();
        bytes[(30 * MIB) as usize] ^= 1;
        fs::write(fixture.path(), &bytes).expect("writes");
        let second = fixture.backup();
        assert_eq!(second.counts.new_bytes, block_size.bytes() as u64);
        assert!(fixture.read(&first.entry) == before);
        assert!(fixture.read(&second.entry) == bytes);
    }
}

#[test]
fn a_changed_block_is_stored_as_its_difference_from_the_first_one() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let mut bytes = noise(1, 3 << 20);
    fs::write(fixture.path(), &bytes).expect("writes");
    fixture.backup();
    for day in 1..5 {
        bytes[(1 << 20) + 70_000 * day] ^= 1;
        fs::write(fixture.path(), &bytes).expect("writes");
        let BackupSummary { entry, counts } = fixture.backup();
        assert_eq!(counts.new_bytes, 1 << 20);
        assert!(counts.stored_bytes < 5000, "{} bytes on day {day}", counts.stored_bytes);
        assert!(fixture.read(&entry) == bytes, "{day}");
    }
    let store = fixture.repository.view().expect("opens").store();
    let mut bases = std::collections::HashSet::new();
    let survey = store.survey(&mut |_, located| {
        bases.extend(located.base);
        Ok(())
    });
    survey.expect("surveys");
    assert_eq!(bases.len(), 1);
    assert!(store.identity().expect("has one").has(vbk_repo::store::DIFFERENCES));
}

#[test]
fn holes_are_not_read_and_zeros_not_stored() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let file = fs::File::create(fixture.path()).expect("creates");
    file.set_len(3 << 40).expect("grows");
    file.write_all_at(&noise(1, MIB as usize), 1 << 40).expect("writes");
    file.write_all_at(&vec![0; MIB as usize], 2 << 40).expect("writes");
    let summary = fixture.backup();
    assert_eq!(summary.counts.new_bytes, MIB);
    assert_eq!(summary.counts.zero_bytes, (3 << 40) - MIB);
    assert!(summary.counts.read_bytes <= 4 * MIB, "{:?}", summary.counts);
}

#[test]
fn a_second_that_a_faster_writer_of_the_guest_took_is_not_taken_again() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    fs::write(fixture.path(), noise(1, MIB as usize)).expect("writes");
    let directory = Directory::open(fixture.repository.path()).expect("opens");
    let repository = Repository::at(Arc::new(SharedDirectory::new(Arc::new(directory))).home());
    let [slow, fast] = ["slow", "fast"].map(|name| repository.writer(name, &mut |_| true).expect("opens"));
    let plan = fixture.plan();
    let other = OnceLock::new();
    let overtaken = || {
        other.get_or_init(|| backup(&fast, &plan, &|| Ok(BTreeMap::new()), &[], &()).expect("backs up"));
        Ok(BTreeMap::new())
    };
    let made = backup(&slow, &plan, &overtaken, &[], &()).expect("backs up");
    let other = other.get().expect("was made");
    assert_eq!(made.entry.backup.time, other.entry.backup.time.next());
    assert_eq!(fixture.count(), 2);
}

#[test]
fn equal_blocks_are_stored_once() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let block = noise(1, MIB as usize);
    fs::write(fixture.path(), block.repeat(4)).expect("writes");
    let summary = fixture.backup();
    assert_eq!(
        (summary.counts.new_bytes, summary.counts.unchanged_bytes),
        (MIB, 3 * MIB)
    );
}

#[test]
fn a_moved_block_is_found_in_the_index() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let blocks: Vec<_> = (0..6).map(|seed| noise(seed * 2, MIB as usize)).collect();
    fs::write(fixture.path(), blocks.concat()).expect("writes");
    fixture.backup();
    fs::write(
        fixture.path(),
        blocks.iter().rev().flatten().copied().collect::<Vec<_>>(),
    )
    .expect("writes");
    assert_eq!(fixture.backup().counts.new_bytes, 0);
}

#[test]
fn an_interrupted_backup_is_not_listed_and_its_blocks_are_not_stored_again() {
    /// Interrupts after some blocks.
    struct Stopper {
        cancel: AtomicBool,
        new_bytes: std::sync::atomic::AtomicU64,
    }
    impl Observer for Stopper {
        fn event(&self, event: Event<'_>) {
            if let Event::Done(counts) = event {
                let before = self.new_bytes.fetch_add(counts.new_bytes, Ordering::SeqCst);
                if before + counts.new_bytes >= 20 * MIB {
                    self.cancel.store(true, Ordering::SeqCst);
                }
            }
        }
    }
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let bytes = noise(1, (64 * MIB) as usize);
    fs::write(fixture.path(), &bytes).expect("writes");
    let stopper = Stopper {
        cancel: AtomicBool::new(false),
        new_bytes: 0.into(),
    };
    let stopped = fixture.try_backup(&fixture.plan(), &stopper.cancel, &stopper);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(fixture.count(), 0);
    let stored = stopper.new_bytes.load(Ordering::SeqCst);
    let summary = fixture.backup();
    assert_eq!(summary.counts.unchanged_bytes, stored);
    assert!(fixture.read(&summary.entry) == bytes);
}

#[test]
fn a_source_that_shrinks_while_it_is_read_makes_no_backup() {
    struct Shrinker(PathBuf);
    impl Observer for Shrinker {
        fn event(&self, event: Event<'_>) {
            if let Event::Done(_) = event {
                let file = fs::File::options().write(true).open(&self.0).expect("opens");
                file.set_len(20 * MIB).expect("shrinks");
            }
        }
    }
    let fixture = Fixture::new(BlockSize::DEFAULT);
    fs::write(fixture.path(), noise(1, (64 * MIB) as usize)).expect("writes");
    let result = fixture.try_backup(&fixture.plan(), &AtomicBool::new(false), &Shrinker(fixture.path()));
    assert!(matches!(result, Err(Error::SourceChanged { .. })), "{result:?}");
    assert_eq!(fixture.count(), 0);
}

#[test]
fn a_wrong_disk_fails_before_anything_is_read() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    fs::write(fixture.path(), b"x").expect("writes");
    let mut plan = fixture.plan();
    plan.disks.push(disk("vdb", "/nowhere".into()));
    let missing = fixture.try_backup(&plan, &AtomicBool::new(false), &());
    assert!(matches!(missing, Err(Error::OpenSource { .. })));
    plan.disks[1] = plan.disks[0].clone();
    let twice = fixture.try_backup(&plan, &AtomicBool::new(false), &());
    assert!(matches!(twice, Err(Error::DiskTwice(_))));
}

#[test]
fn an_empty_disk_can_be_backed_up() {
    let fixture = Fixture::new(BlockSize::DEFAULT);
    fs::write(fixture.path(), b"").expect("writes");
    let summary = fixture.backup();
    assert_eq!(fixture.read(&summary.entry), b"");
}

#[test]
fn files_are_kept_with_the_backup_and_known_the_next_time() {
    let fixture = Fixture::new(BlockSize::MIN);
    fs::write(fixture.path(), noise(1, 300_000)).expect("writes");
    let mut plan = fixture.plan();
    let nvram = noise(2, 100_000);
    plan.files = vec![
        ("config.xml".parse().expect("a name"), b"<domain/>".to_vec()),
        ("nvram.fd".parse().expect("a name"), nvram.clone()),
        ("empty".parse().expect("a name"), Vec::new()),
    ];
    let run = |plan: &BackupPlan| fixture.try_backup(plan, &AtomicBool::new(false), &());
    let first = run(&plan).expect("backs up").entry.backup;
    assert_eq!(first.files.len(), 3);
    plan.started += Duration::from_secs(5);
    let second = run(&plan).expect("backs up").entry.backup;
    assert!(second.files.iter().all(|file| file.new_bytes == 0), "{second:?}");
    let view = fixture.repository.view().expect("opens");
    let read = |name: &str| {
        let image = second.file(name).expect("is there");
        let reader = ImageReader::open(view.store(), ReadResources::new(1), image).expect("opens");
        reader.read_file(name).expect("reads")
    };
    assert_eq!(
        (read("config.xml"), read("nvram.fd"), read("empty")),
        (b"<domain/>".to_vec(), nvram, Vec::new())
    );
}

#[test]
fn a_file_that_could_not_be_kept_stops_the_backup_before_it_starts() {
    let fixture = Fixture::new(BlockSize::MIN);
    fs::write(fixture.path(), noise(1, 300_000)).expect("writes");
    for (name, len) in [
        ("vda", 1),
        ("backup.json", 1),
        ("vda.img", 1),
        ("config.xml", (16 << 20) + 1),
    ] {
        let mut plan = fixture.plan();
        plan.files = vec![(name.parse().expect("a name"), vec![1; len])];
        let error = fixture.try_backup(&plan, &AtomicBool::new(false), &()).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    assert_eq!(fixture.count(), 0);
}
