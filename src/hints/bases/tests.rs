//! Bases of raw files, on a real file system. Needs root, for loop devices and mounts. Those of thin volumes are tested
//! in the lab.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vbk_repo::backup::Entry;
use vbk_repo::repository::{CreateOptions, Repository, Writer};

use super::*;
use crate::backup::guest::{GuestPlan, Host, back_up_guest};
use crate::guest::freeze::FreezePlan;
use crate::hints::decide::FULL_READ_EVERY;
use crate::host::run::Run;
use crate::limit::pressure::Backoff;
use crate::limit::{GuestDisk, LimitOptions, ReadLimit};
use crate::snapshot::tests::files::Loop;
use crate::snapshot::{self, SnapshotOptions};

/// Many more than the sample reads of them.
const BLOCKS: usize = 1000;

fn block_bytes() -> usize {
    BlockSize::MIN.bytes()
}

/// Tells why a disk is read in full, for who looks at a test that failed.
struct Printer;

impl Observer for Printer {
    fn event(&self, event: Event<'_>) {
        if let Event::Note(text) | Event::Warning(text) = event {
            println!("{text}");
        }
    }
}

struct Bench {
    fs: Loop,
    _dir: tempfile::TempDir,
    host: Host,
    writer: Writer,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let repository = Repository::create(&dir.path().join("repo"), &CreateOptions::plain(BlockSize::MIN));
        // A process that another test starts holds the lock until it runs its program.
        let writer = repository.expect("creates").writer("test", &mut |_| true);
        let run = Run::begin(&dir.path().join("run"), "0a1b2c", "test").expect("begins");
        Self {
            fs: Loop::mounted("mkfs.xfs -q -m reflink=1"),
            writer: writer.expect("opens"),
            host: Host::new(Programs::found_in("/nowhere"), run, &dir.path().join("cache")),
            _dir: dir,
        }
    }

    /// A disk whose first block is its own; the others are the same in all.
    fn disk(&self, name: &str, own: u8) {
        let mut bytes = vec![own; block_bytes()];
        (1..BLOCKS as u64).for_each(|block| bytes.extend(block.to_le_bytes().repeat(block_bytes() / 8)));
        fs::write(self.fs.path().join(name), bytes).expect("writes");
    }

    fn back_up(&self, disks: &[(&str, &str)]) -> Entry {
        let disk = |(name, file): &(&str, &str)| GuestDisk {
            name: name.parse().expect("a name"),
            path: self.fs.path().join(file),
            limit: ReadLimit::Unlimited,
            speed: None,
        };
        let plan = GuestPlan {
            time: None,
            raw: false,
            guest: "web1".parse().expect("a name"),
            disks: disks.iter().map(disk).collect(),
            files: Vec::new(),
            freeze: FreezePlan::none("web1"),
            snapshots: SnapshotOptions::default(),
            limits: LimitOptions {
                kernel: false,
                idle: false,
                backoff: Backoff::Off,
                ..LimitOptions::default()
            },
            hints: HintOptions {
                hints: ChangeHints::Auto,
                full_read_every: FULL_READ_EVERY,
                trust: false,
            },
            compression: vbk_repo::codec::Compression::Zstd(1),
            host: "host".into(),
            version: "0".into(),
            threads: 2,
        };
        let observer: Arc<dyn Observer> = Arc::new(Printer);
        let made = back_up_guest(&self.writer, &self.host, &plan, &AtomicBool::new(false), &observer);
        made.expect("backs up").entry
    }
}

fn image<'a>(entry: &'a Entry, disk: &str) -> &'a vbk_repo::backup::Image {
    entry.backup.image(disk).expect("is there")
}

#[test]
fn changed_blocks_are_read_and_a_replaced_disk_is_read_in_full() {
    let bench = Bench::new();
    bench.disk("a.img", 1);
    bench.disk("b.img", 2);
    let disks = [("vda", "a.img"), ("vdb", "b.img")];
    let first = bench.back_up(&disks);
    assert_eq!(image(&first, "vda").skipped_bytes, 0);
    let a = fs::File::options().write(true).open(bench.fs.path().join("a.img"));
    a.and_then(|file| file.write_all_at(&[9; 4096], 3 * block_bytes() as u64))
        .expect("writes");
    let second = bench.back_up(&disks);
    for name in ["vda", "vdb"] {
        assert!(
            image(&second, name).skipped_bytes > (BLOCKS / 2 * block_bytes()) as u64,
            "{second:?}"
        );
    }
    assert_ne!(image(&second, "vda").manifest, image(&first, "vda").manifest);
    assert_eq!(image(&second, "vdb").manifest, image(&first, "vdb").manifest);
    // All but two blocks of them are the same, so the sample would hardly find it.
    let swapped = bench.back_up(&[("vda", "b.img"), ("vdb", "a.img")]);
    for (now, then) in [("vda", "vdb"), ("vdb", "vda")] {
        let (now, then) = (image(&swapped, now), image(&second, then));
        let differs = vbk_repo::diff::diff(bench.writer.store(), now, then, &mut |_| ()).expect("compares");
        assert_eq!(differs.total_bytes(), 0);
        assert_eq!(now.skipped_bytes, 0);
    }
}

/// The copies that a run which holds this file finds as its bases.
fn bases_of(bench: &Bench, source: &Path) -> Vec<PathBuf> {
    let disk = ("vda".parse().expect("a name"), source.to_owned());
    let planned = snapshot::plan(bench.host.programs(), &[disk], &SnapshotOptions::default());
    let made = planned.expect("plans").make(bench.host.run(), &());
    let snapshots = made.settle().expect("holds it");
    let bases = snapshots.disks()[0].bases(bench.host.programs(), "0a1b2c");
    let bases = bases.expect("looks").expect("is a method with bases");
    let path = |base: Base| match base.content {
        Content::File(path) => path,
        other @ Content::ThinVolume(_) => panic!("{other:?} is not a file"),
    };
    bases.kept.into_iter().map(path).collect()
}

#[test]
fn a_base_that_other_users_can_write_is_not_used() {
    let bench = Bench::new();
    bench.disk("a.img", 1);
    bench.back_up(&[("vda", "a.img")]);
    let source = bench.fs.path().join("a.img");
    let [base] = &bases_of(&bench, &source)[..] else {
        panic!("there is one base");
    };
    chown(base, Some(12345), None).expect("is ours");
    assert_eq!(bases_of(&bench, &source), [] as [PathBuf; 0]);
    chown(base, Some(0), None).expect("is ours");
    assert_eq!(bases_of(&bench, &source).len(), 1);
    fs::set_permissions(base, fs::Permissions::from_mode(0o620)).expect("is ours");
    assert_eq!(bases_of(&bench, &source), [] as [PathBuf; 0]);
}
