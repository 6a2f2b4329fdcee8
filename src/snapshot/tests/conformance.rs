//! The promises of `hold.rs`, kept by every method. A new method needs a case here. The volumes are loop devices, whose
//! snapshots tests/fake-lvm2 makes as copies; the files lie on real file systems.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::*;
use super::fake::{Fake, HOST, names};
use super::files::{Loop, in_dir};
use crate::snapshot::hold::HoldMethod;

const MARK: &str = "0123456789abcdef0123456789abcdef";

struct Case {
    method: &'static str,
    /// A machine with a disk for this method.
    bench: fn() -> Bench,
    /// Makes the disk not held still any more; `None` where nothing can.
    lose: Option<fn(&Bench, &HeldDisk)>,
    /// Lets the making fail half way; `None` where nothing is made.
    fail: Option<fn(&Bench, &Run)>,
    /// Bases are kept of its disks.
    has_bases: bool,
}

const CASES: [Case; 5] = [
    Case {
        method: "thin",
        bench: || {
            let bench = Bench::of_device();
            bench.fake.fake(&["pool", "vg0/pool", "100M", "4M"]);
            let path = bench.disk.display().to_string();
            bench.fake.fake(&["thin", "vg0/x", "8M", "pool", &path]);
            bench
        },
        lose: Some(invalidate),
        fail: Some(fail_next_lvs),
        has_bases: true,
    },
    Case {
        method: "thick",
        bench: || {
            let bench = Bench::of_device();
            bench
                .fake
                .fake(&["lv", "vg0/x", "8M", &bench.disk.display().to_string()]);
            bench
        },
        lose: Some(invalidate),
        fail: Some(fail_next_lvs),
        has_bases: false,
    },
    Case {
        method: "reflink",
        bench: || Bench::of_file(SnapshotOptions::default()),
        lose: None,
        fail: Some(|_, run| fs::create_dir(run.dir().join("copies")).expect("is made")),
        has_bases: true,
    },
    Case {
        method: "live",
        bench: || {
            Bench::of_file(SnapshotOptions {
                method: Method::None,
                live: true,
                ..SnapshotOptions::default()
            })
        },
        lose: None,
        fail: None,
        has_bases: false,
    },
    Case {
        method: "unused",
        bench: || {
            Bench::of_file(SnapshotOptions {
                method: Method::None,
                ..SnapshotOptions::default()
            })
        },
        lose: Some(|bench, _| bench.write(7)),
        fail: None,
        has_bases: false,
    },
];

fn invalidate(bench: &Bench, disk: &HeldDisk) {
    let volume = disk.snapshot.as_ref().expect("is a volume");
    bench.fake.set(&volume.full_name(), "invalid", "true");
}

/// The next question to lvm2 is the one for the new volumes.
fn fail_next_lvs(bench: &Bench, _run: &Run) {
    bench.fake.fault("lvs", "times 1 no luck today");
}

struct Bench {
    fake: Fake,
    disk: PathBuf,
    options: SnapshotOptions,
    storage: Loop,
    is_file: bool,
}

impl Bench {
    fn of_device() -> Self {
        let storage = Loop::device(8 << 20);
        let bench = Self {
            fake: Fake::new(),
            disk: storage.device.clone(),
            options: SnapshotOptions::default(),
            storage,
            is_file: false,
        };
        bench.write(1);
        bench
    }

    fn of_file(options: SnapshotOptions) -> Self {
        let storage = Loop::mounted("mkfs.xfs -q -m reflink=1");
        let disk = storage.path().join("disk.img");
        fs::write(&disk, vec![1; 1 << 20]).expect("writes");
        Self {
            fake: Fake::new(),
            disk,
            options,
            storage,
            is_file: true,
        }
    }

    fn write(&self, byte: u8) {
        let file = File::options().write(true).open(&self.disk).expect("opens");
        file.write_all_at(&[byte; 4096], 4096)
            .and_then(|()| file.sync_all())
            .expect("writes");
    }

    fn plan(&self) -> Plan {
        let disks = Fake::disks(&[("vda", &self.disk)]);
        plan(&self.fake.programs, &disks, &self.options).expect("plans")
    }

    fn take(&self, run: &Run) -> Snapshots {
        self.plan().take(run, &()).expect("takes")
    }

    /// All volumes, and all files beside the disk.
    fn things(&self) -> (Vec<String>, Vec<String>) {
        let files = match self.is_file {
            true => in_dir(&self.storage.path()),
            false => Vec::new(),
        };
        (names(&self.fake), files)
    }

    fn leftovers(&self) -> Vec<(State, String)> {
        let found = leftovers(&self.fake.programs, self.fake.directories()).expect("lists");
        found.into_iter().map(|left| (left.state, left.name)).collect()
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("reads")
}

#[test]
fn every_method_has_a_case_and_is_chosen_for_its_disk() {
    let methods: Vec<&str> = methods::ALL.iter().map(|method| method.name()).collect();
    let cases: Vec<&str> = CASES.iter().map(|case| case.method).collect();
    assert_eq!(cases, methods, "a case for each, in the same order");
    for case in &CASES {
        let bench = (case.bench)();
        let before = bench.things();
        let plan = bench.plan();
        assert_eq!(plan.disks()[0].method.name(), case.method);
        assert_eq!(bench.things(), before, "a plan of {} makes nothing", case.method);
    }
}

#[test]
fn a_hold_is_unchanged_or_fails_its_check_or_is_live() {
    for case in &CASES {
        let bench = (case.bench)();
        let snapshots = bench.take(&bench.fake.run());
        let held = &snapshots.disks()[0];
        let before = read(&held.read);
        assert_eq!(before, read(&bench.disk), "{}", case.method);
        snapshots.check().expect("is good");
        bench.write(2);
        let (is_same, is_good) = (read(&held.read) == before, snapshots.check().is_ok());
        let method: &dyn HoldMethod = held.method;
        // (What is read is the same, the check is good.)
        let promised = match (method.kind().is_some(), method.is_live()) {
            (true, false) => (true, true),
            (false, false) => (false, false),
            (false, true) => (false, true),
            (true, true) => panic!("{}: a snapshot is not live", case.method),
        };
        assert_eq!((is_same, is_good), promised, "{}", case.method);
        assert_eq!(snapshots.is_live(), method.is_live());
    }
}

#[test]
fn a_lost_hold_fails_every_check() {
    for case in &CASES {
        let Some(lose) = case.lose else {
            continue;
        };
        let bench = (case.bench)();
        let snapshots = bench.take(&bench.fake.run());
        snapshots.check().expect("is good");
        lose(&bench, &snapshots.disks()[0]);
        for _ in 0..2 {
            snapshots.check().expect_err(case.method);
        }
        snapshots.remove().expect("removes it all the same");
    }
}

#[test]
fn release_removes_everything_and_a_second_release_does_nothing() {
    for case in &CASES {
        let bench = (case.bench)();
        let before = bench.things();
        let run = bench.fake.run();
        let mut snapshots = bench.take(&run);
        snapshots.release().expect("removes");
        assert_eq!(bench.things(), before, "{}", case.method);
        let removals = bench.fake.called("lvremove");
        snapshots.release().expect("has nothing to remove");
        drop(snapshots);
        assert_eq!(bench.fake.called("lvremove"), removals, "{}", case.method);
        assert_eq!(bench.things(), before, "{}", case.method);
        assert_eq!(bench.leftovers(), [], "{}", case.method);
    }
}

#[test]
fn a_failed_hold_leaves_nothing() {
    for case in &CASES {
        let Some(fail) = case.fail else {
            continue;
        };
        let bench = (case.bench)();
        let before = bench.things();
        let run = bench.fake.run();
        let plan = bench.plan();
        fail(&bench, &run);
        plan.take(&run, &()).expect_err(case.method);
        assert_eq!(bench.things(), before, "{}", case.method);
        assert_eq!(bench.leftovers(), [], "{}", case.method);
    }
}

#[test]
fn a_kept_hold_is_found_as_a_base() {
    for case in &CASES {
        let bench = (case.bench)();
        let before = bench.things();
        let mut first = bench.take(&bench.fake.run());
        let content = read(&first.disks()[0].read);
        let bases = |snapshots: &Snapshots| {
            let bases = snapshots.disks()[0].bases(&bench.fake.programs, HOST).expect("looks");
            bases.map(|bases| bases.kept)
        };
        assert_eq!(bases(&first).is_some(), case.has_bases, "{}", case.method);
        if !case.has_bases {
            continue;
        }
        let name = first.disks()[0].disk.name.clone();
        first.keep(&name, MARK, bench.fake.runtime()).expect("keeps");
        first.remove().expect("leaves it");
        bench.write(3);

        let [(State::Kept, kept)] = &bench.leftovers()[..] else {
            panic!("{}: {:?}", case.method, bench.leftovers());
        };
        let cleaned = clean(&bench.fake.programs, bench.fake.directories(), false).expect("cleans");
        assert_eq!(cleaned.removed, [""; 0], "{}", case.method);
        let second = bench.take(&bench.fake.run());
        let found = bases(&second).expect("has bases");
        let [base] = &found[..] else {
            panic!("{}: {found:?}", case.method);
        };
        assert_eq!(base.mark.as_deref(), Some(MARK), "{}", case.method);
        let path = match &base.content {
            Content::ThinVolume(volume) => PathBuf::from(&volume.path),
            Content::File(path) => path.clone(),
        };
        assert!(read(&path) == content, "{}: {kept} is as it was", case.method);
        assert!(base.remains.remove(&bench.fake.programs).expect("removes"));
        assert_eq!(bases(&second).expect("has bases").len(), 0, "{}", case.method);
        second.remove().expect("removes");
        assert_eq!(bench.things(), before, "{}", case.method);
        assert_eq!(bench.leftovers(), [], "{}", case.method);
    }
}

#[test]
fn leftovers_of_a_killed_run_are_found_and_removed() {
    for case in &CASES {
        let bench = (case.bench)();
        let before = bench.things();
        let run = bench.fake.run();
        let snapshots = bench.take(&run);
        let left = bench.things();
        let expected = usize::from(left != before);
        let states = || {
            bench
                .leftovers()
                .into_iter()
                .map(|(state, _)| state)
                .collect::<Vec<_>>()
        };
        assert_eq!(states(), vec![State::InUse; expected], "{}", case.method);
        kill(snapshots, run);
        assert_eq!(bench.things(), left, "{}", case.method);
        assert_eq!(states(), vec![State::LeftBehind; expected], "{}", case.method);
        let cleaned = clean(&bench.fake.programs, bench.fake.directories(), false).expect("cleans");
        assert_eq!(
            (cleaned.removed.len(), cleaned.failed.len()),
            (expected, 0),
            "{}",
            case.method
        );
        assert_eq!(bench.things(), before, "{}", case.method);
        assert_eq!(states(), [], "{}", case.method);
    }
}

/// Leaves of a run what kill -9 leaves: nothing is undone, the kernel closes its files, and its directory stays.
fn kill(mut snapshots: Snapshots, run: Run) {
    for HeldDisk { hold, read, .. } in std::mem::take(&mut snapshots.disks) {
        std::mem::forget(hold);
        if let Ok(descriptor) = read.strip_prefix("/proc/self/fd") {
            let number: i32 = descriptor.to_string_lossy().parse().expect("a number");
            nix::unistd::close(number).expect("was open");
        }
    }
    let dir = run.dir().to_owned();
    let notes = fs::read(dir.join("copies")).ok();
    drop((snapshots, run));
    fs::create_dir_all(&dir).expect("is made again");
    if let Some(notes) = notes {
        fs::write(dir.join("copies"), notes).expect("writes");
    }
}
