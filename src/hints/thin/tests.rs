use super::*;
use vbk_repo::block::BlockIndex;

/// A pool that keeps its state in files, as far as these programs show it.
struct FakePool {
    directory: tempfile::TempDir,
}

/// Holds a metadata snapshot as dm-thin does: one, under a number.
const DMSETUP: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 9
echo "dmsetup $*" >>log
if [ "$1" = ls ]; then
    echo "vg0-root	(254:0)"
    [ -e inactive ] || echo "my--vg-th--pool-tpool	(254:3)"
    exit 0
fi
[ ! -e inactive ] || { echo "Device $2 not found" >&2; exit 1; }
[ "$2" = my--vg-th--pool-tpool ] || { echo "Device $2 not found" >&2; exit 1; }
case "$1 $4" in
    "status ") echo "0 614400 thin-pool $(cat transaction) 119/1024 691/4800 $(cat held) rw discard_passdown queue_if_no_space - 256 " ;;
    "message reserve_metadata_snap")
        [ "$(cat held)" = - ] || { echo "device-mapper: message ioctl failed: Device or resource busy" >&2; exit 1; }
        cat next >held ;;
    "message release_metadata_snap")
        [ "$(cat held)" != - ] || { echo "device-mapper: message ioctl failed: Invalid argument" >&2; exit 1; }
        echo - >held ;;
    *) exit 8 ;;
esac
"#;

const THIN_DELTA: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 9
echo "thin_delta $*" >>log
[ "$(cat held)" != - ] || { echo "no current metadata snap" >&2; exit 1; }
cat answer
exit "$(cat status)"
"#;

const ANSWER: &str = r#"<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="2" right="3">
    <same begin="0" length="33"/>
    <different begin="33" length="2"/>
    <same begin="35" length="605"/>
  </diff>
</superblock>
"#;

impl FakePool {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let pool = Self { directory };
        for (name, text) in [("dmsetup", DMSETUP), ("thin_delta", THIN_DELTA)] {
            pool.set(name, text);
            fs::set_permissions(pool.path().join(name), fs::Permissions::from_mode(0o755)).expect("sets");
        }
        for (name, text) in [
            ("transaction", "3"),
            ("held", "-"),
            ("next", "59"),
            ("answer", ANSWER),
            ("status", "0"),
        ] {
            pool.set(name, text);
        }
        pool
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("writes");
    }

    fn get(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path().join(name)).unwrap_or_default();
        text.trim().to_owned()
    }

    fn mark(&self) -> String {
        self.get("my--vg-th--pool-tpool")
    }

    fn programs(&self) -> Programs {
        Programs::found_in(format!("{}:/usr/bin:/bin", self.path().display()))
    }

    fn unchanged(&self, pair: &ThinPair) -> Result<Unchanged, HintError> {
        unchanged(&self.programs(), self.path(), pair, BlockSize::DEFAULT, &|| false)
    }

    fn clean(&self) -> Result<bool, HintError> {
        let (released, mut failed) = clean(&self.programs(), self.path());
        failed.pop().map_or(Ok(released == ["my--vg-th--pool-tpool"]), Err)
    }
}

fn snapshot(thin_id: u32, transaction: u64) -> ThinSnapshot {
    ThinSnapshot {
        thin_id,
        origin_uuid: "EZYzfE-jqFA-WT4k-AoXW-YnIR-Hxae-TCIQrW".into(),
        transaction,
        read_only: true,
        size_bytes: 120 << 20,
    }
}

fn pair() -> ThinPair {
    ThinPair {
        vg: "my-vg".into(),
        pool: "th-pool".into(),
        base: snapshot(2, 1),
        new: snapshot(3, 2),
    }
}

#[test]
fn two_snapshots_are_compared_and_the_metadata_snapshot_is_released() {
    let pool = FakePool::new();
    let unchanged = pool.unchanged(&pair()).expect("compares");
    assert_eq!(unchanged.run_from(BlockIndex(0)), Some(0..2));
    assert_eq!(unchanged.run_from(BlockIndex(2)), Some(3..120));
    assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()));
    let log = pool.get("log");
    let delta = "thin_delta -m --thin1 2 --thin2 3 /dev/mapper/my--vg-th--pool_tmeta";
    assert!(log.lines().any(|line| line == delta), "{log}");
    let place = |what: &str| log.lines().position(|line| line.contains(what));
    assert!(place(" 0 reserve_metadata_snap") < place("thin_delta") && place("thin_delta") < place(" 0 release_"));
}

#[test]
fn every_failure_gives_no_hint_and_releases_the_metadata_snapshot() {
    for (name, text, said) in [
        ("status", "1", "thin_delta"),
        ("answer", "", "too early"),
        ("answer", "<superblock>", "data_block_size"),
        ("transaction", "1", "is at transaction 1"),
    ] {
        let pool = FakePool::new();
        pool.set(name, text);
        let error = pool.unchanged(&pair()).expect_err(name).to_string();
        assert!(error.contains(said), "{error}");
        assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()), "{name}");
    }
    let pool = FakePool::new();
    fs::remove_file(pool.path().join("thin_delta")).expect("removes");
    // What the fake dmsetup calls, and nothing of the system that could be a real thin_delta.
    std::os::unix::fs::symlink("/usr/bin/cat", pool.path().join("cat")).expect("links");
    let programs = Programs::found_in(pool.path());
    let error = unchanged(&programs, pool.path(), &pair(), BlockSize::DEFAULT, &|| false).expect_err("is missing");
    assert!(
        error.to_string().contains("apt install thin-provisioning-tools"),
        "{error}"
    );
    assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()));
}

#[test]
fn only_our_leftover_metadata_snapshots_are_released() {
    let pool = FakePool::new();
    // Killed while it compared.
    pool.set("held", "59");
    pool.set("my--vg-th--pool-tpool", "59\n");
    pool.set("next", "64");
    pool.unchanged(&pair()).expect("compares");
    assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()));
    pool.set("held", "59");
    pool.set("my--vg-th--pool-tpool", "59\n");
    assert!(pool.clean().expect("releases"));
    assert!(!pool.clean().expect("finds nothing"));

    for mark in ["", "58\n", "59", "5", "\u{0}\u{0}\n"] {
        pool.set("held", "59");
        pool.set("my--vg-th--pool-tpool", mark);
        let error = pool.unchanged(&pair()).expect_err("is not ours");
        assert!(matches!(error, HintError::Held { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("dmsetup message my--vg-th--pool-tpool 0 release_metadata_snap")
        );
        // Without a word in the mark nobody of ours was at it; with another number what was ours is gone.
        let left = if mark == "58\n" { "" } else { mark };
        assert_eq!(
            fs::read_to_string(pool.path().join("my--vg-th--pool-tpool")).expect("reads"),
            left
        );
        let cleaned = pool.clean();
        assert!(
            matches!(cleaned, Err(HintError::Held { .. })) || left.is_empty(),
            "{mark:?}: {cleaned:?}"
        );
        assert_eq!(pool.get("held"), "59", "is left alone");
    }
}

#[test]
fn a_mark_is_emptied_when_its_metadata_snapshot_is_gone() {
    let pool = FakePool::new();
    // Released by hand after a kill; then another program makes one, which gets the same number.
    pool.set("my--vg-th--pool-tpool", "59\n");
    assert!(!pool.clean().expect("finds nothing"));
    assert_eq!(pool.mark(), "");
    pool.set("held", "59");
    assert!(!pool.clean().expect("is not ours"));
    assert!(matches!(pool.unchanged(&pair()), Err(HintError::Held { .. })));
    assert_eq!(pool.get("held"), "59");
}

#[test]
fn a_mark_of_an_inactive_pool_is_kept_without_a_message() {
    let pool = FakePool::new();
    pool.set("held", "59");
    pool.set("my--vg-th--pool-tpool", "59\n");
    pool.set("inactive", "");
    assert!(!pool.clean().expect("nothing is wrong"));
    assert_eq!(pool.mark(), "59");
    fs::remove_file(pool.path().join("inactive")).expect("removes");
    assert!(pool.clean().expect("releases"));
    assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()));
}

#[test]
fn a_mismatched_pair_of_snapshots_is_not_compared() {
    let pool = FakePool::new();
    let change = |change: &dyn Fn(&mut ThinPair)| {
        let mut pair = pair();
        change(&mut pair);
        pair
    };
    for (wrong, said) in [
        (change(&|pair| pair.base.origin_uuid = "x".into()), "same volume"),
        (change(&|pair| pair.base.thin_id = 3), "with itself"),
        (change(&|pair| pair.base.transaction = 2), "not older"),
        (change(&|pair| pair.base.size_bytes = 1), "another size"),
        (change(&|pair| pair.base.read_only = false), "written to"),
        (change(&|pair| pair.vg = "../x".into()), "LVM name"),
        (change(&|pair| pair.pool = "-x".into()), "LVM name"),
    ] {
        let error = pool.unchanged(&wrong).expect_err(said);
        assert!(matches!(error, HintError::NotComparable { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(pool.get("log"), "", "nothing was asked");
}

#[test]
fn a_comparison_stops_on_request() {
    let pool = FakePool::new();
    pool.set("thin_delta", &THIN_DELTA.replace("cat answer", "sleep 60; cat answer"));
    let started = std::time::Instant::now();
    let stop = || started.elapsed() > std::time::Duration::from_millis(300);
    let ended = unchanged(&pool.programs(), pool.path(), &pair(), BlockSize::DEFAULT, &stop);
    assert!(ended.is_err() && started.elapsed() < std::time::Duration::from_secs(30));
    assert_eq!(
        (pool.get("held"), pool.mark()),
        ("-".into(), String::new()),
        "and is released"
    );
}

#[test]
fn runs_on_one_pool_are_serialized() {
    let pool = FakePool::new();
    pool.set("thin_delta", &THIN_DELTA.replace("cat answer", "sleep 0.2; cat answer"));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| pool.unchanged(&pair()).map(|found| found.blocks())))
            .collect();
        for run in runs {
            assert_eq!(run.join().expect("ends").expect("compares"), 119);
        }
    });
    assert_eq!((pool.get("held"), pool.mark()), ("-".into(), String::new()));
}
