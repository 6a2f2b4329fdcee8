//! Change hints on a real thin pool: in the lab, by tests/lab/thin-hints, on /dev/vda.

use std::time::Duration;

use super::hints::{Warnings, noise_blocks};
use super::*;
use crate::hints::thin::{self, ThinPair, ThinSnapshot};
use crate::hints::{HintError, audit};
use crate::host::program::Programs;

fn run(program: &str, args: &[&str]) -> String {
    let answer = Programs::system().run(program, args, Duration::from_secs(60));
    answer.unwrap_or_else(|error| panic!("{error}"))
}

/// A group, a pool and a volume with hyphens in their names.
struct Pool;

impl Pool {
    fn new() -> Self {
        run("vgcreate", &["-q", "my-vg", "/dev/vda"]);
        run(
            "lvcreate",
            &["-q", "-L", "600M", "--thinpool", "th-pool", "-c", "64k", "my-vg"],
        );
        run("lvcreate", &["-q", "-V", "100M", "-T", "my-vg/th-pool", "-n", "w-1"]);
        run("udevadm", &["settle"]);
        Self
    }

    fn write(at: u64, bytes: &[u8]) {
        let device = fs::File::options().write(true).open("/dev/my-vg/w-1").expect("opens");
        device.write_all_at(bytes, at).expect("writes");
        device.sync_all().expect("syncs");
    }

    fn snapshot(name: &str) -> ThinSnapshot {
        run("lvcreate", &["-q", "-s", "-n", name, "-kn", "-ay", "-pr", "my-vg/w-1"]);
        run("udevadm", &["settle"]);
        let columns = "thin_id,origin_uuid,transaction_id,lv_permissions,lv_size";
        let format = [
            "--noheadings",
            "--separator",
            "|",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            columns,
        ];
        let answer = run("lvs", &[&format[..], &[&format!("my-vg/{name}")]].concat());
        let words: Vec<&str> = answer.trim().split('|').collect();
        ThinSnapshot {
            thin_id: words[0].parse().expect("a number"),
            origin_uuid: words[1].into(),
            transaction: words[2].parse().expect("a number"),
            read_only: words[3] == "read-only",
            size_bytes: words[4].parse().expect("a number"),
        }
    }

    fn pair(base: &ThinSnapshot, new: &ThinSnapshot) -> ThinPair {
        ThinPair {
            vg: "my-vg".into(),
            pool: "th-pool".into(),
            base: base.clone(),
            new: new.clone(),
        }
    }

    fn held() -> String {
        let status = run("dmsetup", &["status", "my--vg-th--pool-tpool"]);
        status.split_whitespace().nth(6).expect("a status").to_owned()
    }

    fn message(message: &str) {
        run("dmsetup", &["message", "my--vg-th--pool-tpool", "0", message]);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Programs::system().run("vgremove", &["-ff", "-y", "my-vg"], Duration::from_secs(60));
    }
}

#[test]
#[ignore = "needs a machine of its own: tests/lab/thin-hints"]
fn on_a_real_thin_pool_only_what_changed_is_read() {
    let _pool = Pool::new();
    let fixture = Fixture::new(BlockSize::DEFAULT);
    let marks = fixture.directory.path().join("marks");
    fs::create_dir(&marks).expect("creates");
    let unchanged = |pair: &ThinPair| thin::unchanged(&Programs::system(), &marks, pair, BlockSize::DEFAULT, &|| false);
    let backup_of = |name: &str, hint: Option<Hint>| {
        let mut plan = fixture.plan();
        plan.disks[0] = disk("vda", format!("/dev/my-vg/{name}").into());
        plan.disks[0].hint = hint;
        let warnings = Warnings::default();
        let summary = fixture
            .try_backup(&plan, &AtomicBool::new(false), &warnings)
            .expect("backs up");
        (summary, warnings.texts())
    };

    Pool::write(0, &noise_blocks(1, 60));
    let base = Pool::snapshot("base");
    let (first, _) = backup_of("base", None);
    // Parts of blocks, whole ones, ones that were not mapped, and a discard.
    Pool::write(7 * MIB + 4096, &noise(9, 4096));
    Pool::write(40 * MIB, &noise_blocks(500, 2));
    Pool::write(80 * MIB, &noise_blocks(600, 1));
    run("blkdiscard", &["-o", "10485760", "-l", "2097152", "/dev/my-vg/w-1"]);
    let new = Pool::snapshot("new");
    Pool::write(50 * MIB, &noise_blocks(700, 5));

    let found = unchanged(&Pool::pair(&base, &new)).expect("compares");
    assert_eq!(Pool::held(), "-");
    assert_eq!(found.blocks(), 100 - 6);
    let hint = |since, unchanged| {
        Some(Hint {
            since,
            unchanged,
            seed: 4,
            audit_one_in: audit::ONE_IN,
        })
    };
    // Of 94 unchanged blocks one in five is read, so that there are 16.
    let (second, warnings) = backup_of("new", hint(first.entry.id, found.clone()));
    assert_eq!(warnings, [""; 0]);
    assert!(second.counts.read_bytes <= (6 + 19) * MIB, "{:?}", second.counts);
    assert!(fixture.read(&second.entry) == fs::read("/dev/my-vg/new").expect("reads"));
    let (full, _) = backup_of("new", None);
    assert_eq!(
        full.entry.backup.images[0].manifest,
        second.entry.backup.images[0].manifest
    );

    // A wrong hint: it refers to another snapshot than the one that is read.
    Pool::write(0, &noise_blocks(2_000, 75));
    let third = Pool::snapshot("third");
    let (wrong, warnings) = backup_of("third", hint(full.entry.id, found));
    assert!(warnings[1].contains("WRONG"), "{warnings:?}");
    assert!(wrong.entry.backup.images[0].hints_wrong);
    assert!(fixture.read(&wrong.entry) == fs::read("/dev/my-vg/third").expect("reads"));

    // A held metadata snapshot: first of another program, then of a killed run of vbk.
    let pair = Pool::pair(&new, &third);
    Pool::message("reserve_metadata_snap");
    assert!(matches!(unchanged(&pair), Err(HintError::Held { .. })));
    let held = Pool::held();
    assert_ne!(held, "-", "is left alone");
    fs::write(marks.join("my--vg-th--pool-tpool"), format!("{held}\n")).expect("writes");
    assert_eq!(unchanged(&pair).expect("compares").blocks(), 100 - 75);
    assert_eq!(Pool::held(), "-");

    // A snapshot that no longer exists.
    run("lvremove", &["-q", "-y", "my-vg/base"]);
    let error = unchanged(&Pool::pair(&base, &third)).expect_err("is gone");
    assert!(matches!(error, HintError::Program(_)), "{error}");
    assert_eq!(Pool::held(), "-");
}
