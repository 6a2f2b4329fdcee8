//! What the guard does, on devices whose fill is what a test says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::*;
use super::MIB;
use super::fake::{Fake, Warnings};

struct Guarded {
    fake: Fake,
    snapshots: Snapshots,
    stop: Arc<AtomicBool>,
    warnings: Arc<Warnings>,
    watch: Option<Watch>,
}

impl Guarded {
    fn thick() -> Self {
        let fake = Fake::new();
        let path = fake.volume("vg0/x", "200M");
        Self::start(fake, &path)
    }

    fn thin() -> Self {
        let fake = Fake::new();
        let path = fake.thin_volume("vg0/db", "200M");
        fake.set("vg0/pool", "data_used", 70 * MIB);
        Self::start(fake, &path)
    }

    fn start(fake: Fake, path: &std::path::Path) -> Self {
        let snapshots = fake
            .plan(&[("vda", path)])
            .expect("plans")
            .take(&fake.run(), &())
            .expect("takes");
        let (stop, warnings) = (Arc::new(AtomicBool::new(false)), Arc::new(Warnings::default()));
        let watch = snapshots
            .watch(Arc::clone(&stop), Arc::clone(&warnings) as Arc<dyn Observer>)
            .expect("starts");
        let guarded = Self {
            fake,
            snapshots,
            stop,
            warnings,
            watch: Some(watch),
        };
        guarded.until("it has looked", || guarded.fake.called("dmsetup") > 1);
        guarded
    }

    fn snapshot(&self) -> String {
        self.snapshots.disks()[0]
            .snapshot
            .as_ref()
            .expect("a volume")
            .full_name()
    }

    fn fill(&self, key: &str, mib: u64) {
        let volume = if key == "used" {
            self.snapshot()
        } else {
            "vg0/pool".into()
        };
        self.fake.set(&volume, key, mib * MIB);
    }

    /// Waits until the guard has looked at everything again.
    fn wait_for_next_look(&self) {
        // Its look at this moment may have begun before, and a pool is two looks.
        let looks = self.fake.called("dmsetup") + 5;
        self.until("it looks again", || self.fake.called("dmsetup") >= looks);
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let clock = Instant::now();
        while !is_so() {
            assert!(
                clock.elapsed() < Duration::from_secs(240),
                "{what}; {:?}",
                self.fake.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn reason(&mut self) -> String {
        self.until("the run is stopped", || self.is_stopped());
        let watch = self.watch.take().expect("is there");
        watch.end().expect_err("has a reason").to_string()
    }
}

#[test]
fn a_filling_snapshot_is_extended_and_the_run_continues() {
    let mut guarded = Guarded::thick();
    assert_eq!(guarded.fake.called("lvextend"), 0);
    guarded.fill("used", 26);
    guarded.until("it is extended", || guarded.fake.called("lvextend") == 1);
    assert!(
        guarded
            .fake
            .log()
            .iter()
            .any(|line| line == &format!("lvextend -l +5 {}", guarded.snapshot()))
    );
    guarded.until("it is larger", || {
        let lv: serde_json::Value =
            serde_json::from_str(&guarded.fake.fake(&["get", &guarded.snapshot()])).expect("JSON");
        lv["size"] == 60 * MIB
    });
    guarded.wait_for_next_look();
    assert!(!guarded.is_stopped() && guarded.fake.called("lvextend") == 1);
    guarded
        .watch
        .take()
        .expect("is there")
        .end()
        .expect("has nothing to say");
    guarded.snapshots.check().expect("is good");
    assert_eq!(guarded.snapshots.peaks()[0].used_bytes, Some(26 * MIB));
}

#[test]
fn a_guard_without_room_warns_once_and_stops_before_the_overflow() {
    let mut guarded = Guarded::thick();
    guarded.fake.fake(&["vg", "vg0", "240M"]);
    guarded.fill("used", 26);
    guarded.until("it warns", || !guarded.warnings.all().is_empty());
    guarded.wait_for_next_look();
    assert!(!guarded.is_stopped());
    guarded.fill("used", 37);
    let reason = guarded.reason();
    for part in [
        &guarded.snapshot(),
        "vg0/x",
        "92 % full",
        "has no room",
        "--snapshot-size",
    ] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert_eq!(guarded.warnings.all().len(), 1);
}

#[test]
fn a_hanging_extension_does_not_stop_the_guard() {
    let mut guarded = Guarded::thick();
    guarded.fake.fault("lvextend", "hang");
    guarded.fill("used", 26);
    guarded.until("it tries", || guarded.fake.called("lvextend") == 1);
    guarded.fill("used", 39);
    guarded.until("the run is stopped", || guarded.is_stopped());
    guarded.fake.fault("lvextend", "");
    let reason = guarded.reason();
    assert!(reason.contains("98 % full") && reason.contains("under way"), "{reason}");
}

#[test]
fn an_invalid_snapshot_stops_the_run_and_fails_the_check() {
    let mut guarded = Guarded::thick();
    guarded.fake.set(&guarded.snapshot(), "invalid", "true");
    let error = guarded.snapshots.check().expect_err("is not good");
    assert!(matches!(error, SnapshotError::Invalid { .. }), "{error}");
    let reason = guarded.reason();
    assert!(reason.contains("has overflowed and is invalid"), "{reason}");
}

#[test]
fn a_guard_without_answers_stops_the_run() {
    let mut guarded = Guarded::thick();
    guarded.fake.fault("dmsetup", "garbage");
    let reason = guarded.reason();
    assert!(
        reason.contains("lost track of how full") && reason.contains("not understood"),
        "{reason}"
    );
    assert!(guarded.snapshots.check().is_err(), "what can't be checked is not good");
}

#[test]
fn a_pool_is_extended_only_when_the_run_fills_it() {
    let mut guarded = Guarded::thin();
    // 70 % were full before.
    guarded.wait_for_next_look();
    assert_eq!(guarded.fake.called("lvextend"), 0);
    guarded.fill("data_used", 82);
    guarded.until("it is extended", || guarded.fake.called("lvextend") == 1);
    assert!(
        guarded.fake.log().iter().any(|line| line == "lvextend -l +3 vg0/pool"),
        "{:?}",
        guarded.fake.log()
    );
    guarded.until("it is told", || guarded.warnings.all().len() == 1);
    guarded.fake.set("vg0/pool", "meta_used", 3 * MIB);
    guarded.until("metadata is extended", || {
        guarded
            .fake
            .log()
            .iter()
            .any(|line| line == "lvextend --poolmetadatasize +4194304b vg0/pool")
    });
    guarded.fake.fault("lvextend", "fail nothing left");
    guarded.fill("data_used", 111);
    let reason = guarded.reason();
    assert!(reason.contains("data of thin pool vg0/pool is 99 % full"), "{reason}");
    assert_eq!(guarded.snapshots.peaks()[0].used_bytes, None);
}
