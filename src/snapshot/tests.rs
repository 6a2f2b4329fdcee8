//! Needs root, for device nodes (which nobody opens), loop devices and mounts. lvm2 is tests/fake-lvm2; the real one is
//! tested in the lab.

mod conformance;
mod fake;
pub(crate) mod files;
mod guarding;
mod harm;
mod lab;

use std::path::Path;

use vbk_repo::ErrorKind;
use vbk_repo::backup::SnapshotKind;

use self::fake::{Fake, HOST, names};
use super::remove::remove_volume;
use super::*;

const MIB: u64 = 1 << 20;

impl Plan {
    /// Holds all disks still, or none.
    fn take(self, run: &Run, observer: &dyn Observer) -> Result<Snapshots, SnapshotError> {
        self.make(run, observer).settle()
    }
}

#[test]
fn a_thick_volume_is_held_by_a_tagged_snapshot_that_is_removed() {
    let fake = Fake::new();
    let path = fake.volume("vg0/web1-root", "100M");
    let plan = fake.plan(&[("vda", &path)]).expect("plans");
    assert_eq!(fake.called("lvcreate"), 0, "a plan makes nothing");
    let planned = &plan.disks()[0];
    assert_eq!((planned.method.name(), planned.space_bytes), ("thick", Some(20 * MIB)));
    let volume = planned.disk.volume.as_ref().expect("is a volume");
    assert_eq!(
        (volume.full_name().as_str(), volume.size_bytes),
        ("vg0/web1-root", 100 * MIB)
    );

    let run = fake.run();
    let snapshots = plan.take(&run, &()).expect("takes");
    let disk = &snapshots.disks()[0];
    assert_eq!((disk.kind(), disk.is_live()), (Some(SnapshotKind::Thick), false));
    assert!(disk.read.ends_with(disk.read.file_name().expect("a name")) && disk.read.is_file());
    let snapshot = disk.snapshot.as_ref().expect("is a volume");
    assert!(snapshot.name.starts_with("vbk-web1-root-2"), "{}", snapshot.name);
    assert_eq!(
        snapshot.tags,
        ["vbk", &format!("vbk_host_{HOST}"), &format!("vbk_run_{}", run.id())]
    );
    let made = fake
        .log()
        .into_iter()
        .find(|line| line.starts_with("lvcreate"))
        .expect("is in the log");
    assert!(made.contains("-s -p r -l 5 -c 65536b --addtag vbk "), "{made}");

    let name = snapshot.full_name();
    fake.set(&name, "used", 7 * MIB);
    snapshots.check().expect("is good");
    let peak = &snapshots.peaks()[0];
    assert_eq!((peak.fill, peak.used_bytes), (7.0 / 20.0, Some(7 * MIB)));
    snapshots.remove().expect("removes");
    assert!(!fake.is_there(&name) && fake.is_there("vg0/web1-root"));
}

#[test]
fn a_thin_volume_is_held_by_an_active_thin_snapshot_without_a_size() {
    let fake = Fake::new();
    let path = fake.thin_volume("vg0/db", "200M");
    let plan = fake.plan(&[("vda", &path)]).expect("plans");
    assert_eq!(plan.disks()[0].method.name(), "thin");
    let pool = plan.disks()[0].pool.as_ref().expect("has a pool");
    assert_eq!((pool.full_name().as_str(), pool.chunk_bytes), ("vg0/pool", 65536));
    let snapshots = plan.take(&fake.run(), &()).expect("takes");
    snapshots.check().expect("is good");
    let snapshot = snapshots.disks()[0].snapshot.clone().expect("is a volume");
    assert!(snapshot.thin_id.is_some() && snapshot.pool == "pool");
    assert_eq!(lvm::dm_name(&snapshot.vg, &snapshot.pool, "tpool"), "vg0-pool-tpool");
    let made = fake
        .log()
        .into_iter()
        .find(|line| line.starts_with("lvcreate"))
        .expect("is in the log");
    assert!(made.contains(" -kn -ay ") && !made.contains(" -l "), "{made}");
    // Dropping it removes it too.
    drop(snapshots);
    assert!(!fake.is_there(&snapshot.full_name()));
}

#[test]
fn either_all_snapshots_are_made_or_none() {
    let fake = Fake::new();
    let paths = ["vg0/a", "vg0/b", "vg0/c"].map(|name| fake.volume(name, "40M"));
    let disks = [("vda", paths[0].as_path()), ("vdb", &paths[1]), ("vdc", &paths[2])];
    let plan = fake.plan(&disks).expect("plans");
    fake.fault("lvcreate", "after 1 no luck today");
    let run = fake.run();
    let error = plan.take(&run, &()).expect_err("fails").to_string();
    assert!(error.contains("no luck today") && error.contains("lvcreate"), "{error}");
    // One was made and is gone, the second failed, the third was not tried.
    assert_eq!(
        (fake.called("lvcreate"), fake.called("lvremove"), names(&fake).len()),
        (2, 1, 3)
    );
}

#[test]
fn a_group_without_room_is_refused_with_the_figure_before_anything_is_made() {
    let fake = Fake::new();
    let paths = ["vg0/a", "vg0/b"].map(|name| fake.volume(name, "400M"));
    let disks = [("vda", paths[0].as_path()), ("vdb", paths[1].as_path())];
    let options = SnapshotOptions {
        size: Some(SnapshotSize::Bytes(200 * MIB)),
        ..SnapshotOptions::default()
    };
    let error = plan(&fake.programs, &Fake::disks(&disks), &options).expect_err("is refused");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let text = error.to_string();
    // Of 1 GiB 800 MiB are taken.
    for part in ["vg0", "224 MiB", "400 MiB", "vda, vdb", "--snapshot-size"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Without a size each gets a share of what is there.
    let plan = fake.plan(&disks).expect("plans");
    assert!(
        plan.disks()
            .iter()
            .all(|disk| (disk.method.name(), disk.space_bytes) == ("thick", Some(80 * MIB)))
    );
    assert_eq!(fake.called("lvcreate"), 0);
}

#[test]
fn a_pool_that_is_nearly_full_is_refused_with_the_figure() {
    let fake = Fake::new();
    let path = fake.thin_volume("vg0/db", "200M");
    fake.set("vg0/pool", "meta_used", 3_800_000);
    let error = fake.plan(&[("vda", &path)]).expect_err("is refused").to_string();
    assert!(
        error.contains("metadata of thin pool vg0/pool is 90.6 % full"),
        "{error}"
    );
    fake.set("vg0/pool", "meta_used", 0);
    fake.set("vg0/pool", "data_used", 95 * MIB);
    let error = fake.plan(&[("vda", &path)]).expect_err("is refused").to_string();
    assert!(error.contains("data of thin pool vg0/pool is 95.0 % full"), "{error}");
}

#[test]
fn a_volume_without_snapshot_support_is_refused_with_the_reason() {
    let fake = Fake::new();
    let path = fake.volume("vg0/x", "40M");
    let refused = |attr: &str, role: &str| {
        fake.set("vg0/x", "attr", format!("\"{attr}\""));
        fake.set("vg0/x", "role", format!("\"{role}\""));
        fake.plan(&[("vda", &path)]).expect_err("is refused").to_string()
    };
    assert!(refused("swi-a-s---", "public,snapshot").contains("vg0/x is a snapshot"));
    assert!(refused("Owi-a-s---", "public").contains("being merged"));
    assert!(refused("twi-aotz--", "private").contains("is a pool or a part of another volume"));
    assert!(refused("Cwi-aoC---", "private,cache,origin").contains("part of another volume"));
    fake.set("vg0/x", "attr", "null");
    fake.set("vg0/x", "role", "null");
    let error = fake.plan(&[("vda", &path), ("vdb", &path)]).expect_err("is refused");
    assert!(error.to_string().contains("vda and vdb are the same device"), "{error}");
    // No device, but lvm2 knows it.
    fake.set("vg0/x", "active", "false");
    let error = fake.plan(&[("vda", Path::new("/dev/vg0/x"))]).expect_err("is refused");
    assert!(error.to_string().contains("lvchange -ay vg0/x"), "{error}");
    let error = fake.plan(&[("vda", Path::new("/dev/vg0/y"))]).expect_err("is refused");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn failing_hanging_garbled_or_missing_lvm_is_an_error() {
    let fake = Fake::new();
    let path = fake.volume("vg0/x", "40M");
    for (fault, part) in [
        ("fail out of order", "out of order"),
        ("garbage", "the answer of lvs is not understood"),
        ("hang", "did not end within"),
    ] {
        fake.fault("lvs", fault);
        let error = lvm::volumes(&fake.programs, "lv_name=x").expect_err("is an error");
        assert!(error.to_string().contains(part), "{error}");
    }
    fake.fault("lvs", "");
    fake.remove_program("lvcreate");
    let plan = fake.plan(&[("vda", &path)]).expect("plans");
    let error = plan.take(&fake.run(), &()).expect_err("is an error").to_string();
    assert!(error.contains("lvcreate is not installed"), "{error}");
}

#[test]
fn a_busy_snapshot_is_retried_and_blocks_no_other_removal() {
    let fake = Fake::new();
    let paths = ["vg0/a", "vg0/b"].map(|name| fake.volume(name, "40M"));
    let disks = [("vda", paths[0].as_path()), ("vdb", &paths[1])];
    let take = || fake.plan(&disks).expect("plans").take(&fake.run(), &()).expect("takes");
    let snapshots = take();
    fake.fault("lvremove", "times 2 Logical volume in use.");
    snapshots.remove().expect("removes at last");
    assert_eq!(names(&fake).len(), 2);

    let snapshots = take();
    fake.fault("lvremove", "times 7 Logical volume in use.");
    let stays = snapshots.disks()[1].snapshot.as_ref().expect("a volume").full_name();
    let error = snapshots.remove().expect_err("one stays").to_string();
    assert!(
        error.contains(&format!("type: lvremove {stays}")) && error.contains("in use"),
        "{error}"
    );
    assert!(fake.is_there(&stays) && names(&fake).len() == 3);
}

#[test]
fn a_volume_without_our_tags_is_never_removed() {
    let fake = Fake::new();
    let path = fake.volume("vg0/x", "40M");
    let snapshots = fake
        .plan(&[("vda", &path)])
        .expect("plans")
        .take(&fake.run(), &())
        .expect("takes");
    let snapshot = snapshots.disks()[0].snapshot.clone().expect("a volume");
    fake.set(&snapshot.full_name(), "tags", "[\"vbk\", \"vbk_host_other\"]");
    let error = snapshots.remove().expect_err("is left alone");
    assert!(matches!(error, SnapshotError::NotOurs { .. }), "{error}");
    assert!(fake.is_there(&snapshot.full_name()) && fake.called("lvremove") == 0);
    let error = remove_volume(&fake.programs, HOST, &snapshot).expect_err("is left alone");
    assert!(matches!(error, SnapshotError::NotOurs { .. }), "{error}");
}

#[test]
fn only_leftovers_of_dead_runs_are_removed() {
    let fake = Fake::new();
    let path = fake.volume("vg0/x", "40M");
    fake.volume("vg0/precious", "40M");
    fake.set(
        "vg0/precious",
        "tags",
        format!("[\"vbk\", \"vbk_host_{HOST}\", \"vbk_run_0123456789ab\"]"),
    );
    // What a power cut in lvcreate leaves, and a plain volume of that name that is of no run.
    let (half_made, no_run) = (
        "vg0/vbk-x-20261121T173000Z-01234567",
        "vg0/vbk-x-20261121T173000Z-76543210",
    );
    for name in [half_made, no_run] {
        fake.volume(name, "8M");
        fake.set(
            name,
            "tags",
            format!("[\"vbk\", \"vbk_host_{HOST}\", \"vbk_run_0123456789ab\"]"),
        );
    }
    let run = fake.run();
    let take = |run: &Run| {
        fake.plan(&[("vda", &path)])
            .expect("plans")
            .take(run, &())
            .expect("takes")
    };
    let name = |snapshots: &Snapshots| snapshots.disks()[0].snapshot.as_ref().expect("a volume").full_name();
    let left = |run: Run| {
        let snapshots = take(&run);
        let name = name(&snapshots);
        // As kill -9: nothing is undone.
        std::mem::forget(snapshots);
        name
    };
    let (dead, foreign, kept, unclear) = (left(fake.run()), left(fake.run()), left(fake.run()), left(fake.run()));
    let retag = |name: &str, tags: &str| fake.set(name, "tags", tags);
    let ours = format!("\"vbk\", \"vbk_host_{HOST}\"");
    retag(&dead, &format!("[{ours}, \"vbk_run_0123456789ab\"]"));
    retag(&foreign, "[\"vbk\", \"vbk_host_other\", \"vbk_run_0123456789ab\"]");
    retag(&kept, &format!("[{ours}, \"vbk_base\", \"vbk_guest_web1\"]"));
    retag(&unclear, &format!("[{ours}]"));
    let used = take(&run);

    let found = leftovers(&fake.programs, fake.directories()).expect("lists");
    let state = |name: &str| found.iter().find(|found| found.name == name).map(|found| found.state);
    assert_eq!(state(&dead), Some(State::LeftBehind));
    assert_eq!(state(&foreign), Some(State::OtherHost));
    assert_eq!(state(&kept), Some(State::Kept));
    assert_eq!(state(&unclear), Some(State::Unclear));
    assert_eq!(state(&name(&used)), Some(State::InUse));
    assert_eq!(state(half_made), Some(State::LeftBehind));
    for name in ["vg0/precious", no_run] {
        assert_eq!(state(name), None, "{name} is no snapshot");
    }
    let in_use = found
        .iter()
        .find(|found| found.state == State::InUse)
        .expect("is listed");
    assert_eq!(in_use.info.as_ref().expect("says who it is").command, "backup web1");
    assert_eq!(in_use.of, "vg0/x");

    let cleaned = clean(&fake.programs, fake.directories(), false).expect("cleans");
    let mut removed = cleaned.removed;
    removed.sort();
    let mut expected = vec![half_made.to_owned(), dead.clone()];
    expected.sort();
    assert_eq!((removed, cleaned.failed.len()), (expected, 0));
    assert!(!fake.is_there(&dead) && !fake.is_there(half_made));
    for name in [&foreign, &kept, &unclear, &name(&used), no_run, "vg0/precious", "vg0/x"] {
        assert!(fake.is_there(name), "{name}");
    }
    let cleaned = clean(&fake.programs, fake.directories(), true).expect("cleans");
    assert_eq!((cleaned.removed, cleaned.failed.len()), (vec![kept], 0));
    used.remove().expect("removes");
}

#[test]
fn a_kept_snapshot_stays_as_a_base_and_can_be_removed_later() {
    let fake = Fake::new();
    let path = fake.thin_volume("vg0/db", "40M");
    let run = fake.run();
    let mut snapshots = fake
        .plan(&[("vda", &path)])
        .expect("plans")
        .take(&run, &())
        .expect("takes");
    let disk: DiskName = "vda".parse().expect("a name");
    snapshots.keep(&disk, "00ff", fake.runtime()).expect("keeps");
    let held = snapshots.disks()[0].snapshot.clone().expect("is a volume");
    let kept = lvm::volume(&fake.programs, &held.vg, &held.name)
        .expect("asks")
        .expect("is there");
    assert_eq!(
        kept.tags,
        ["vbk", &format!("vbk_host_{HOST}"), "vbk_base", "vbk_backup_00ff"]
    );
    assert_eq!(names::mark_of(&kept), Some("00ff"));
    snapshots.remove().expect("removes the others");
    drop(run);
    assert!(
        clean(&fake.programs, fake.directories(), false)
            .expect("cleans")
            .removed
            .is_empty()
    );
    assert!(fake.is_there(&kept.full_name()));
    remove_volume(&fake.programs, HOST, &kept).expect("removes");
    assert!(!fake.is_there(&kept.full_name()));
}

#[test]
fn long_names_are_cut_and_stay_different() {
    let fake = Fake::new();
    let long = |end: &str| format!("vg0/{}{end}", "a-".repeat(45));
    let paths = [long("1"), long("2")].map(|name| fake.volume(&name, "8M"));
    let plan = fake
        .plan(&[("vda", paths[0].as_path()), ("vdb", &paths[1])])
        .expect("plans");
    let snapshots = plan.take(&fake.run(), &()).expect("takes");
    let [first, second] = [0, 1].map(|at| snapshots.disks()[at].snapshot.clone().expect("a volume"));
    assert_ne!(first.name, second.name);
    for volume in [&first, &second] {
        assert!(
            lvm::dm_name(&volume.vg, &volume.name, "cow").len() <= 120,
            "{}",
            volume.name
        );
        assert!(volume.name.starts_with("vbk-a-a-") && lvm::is_name(&volume.name));
    }
    snapshots.remove().expect("removes");
}
