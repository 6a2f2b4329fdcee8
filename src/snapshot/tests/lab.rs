//! On real LVM, in a machine that tests/lab/lvm has prepared: a group vg0 with a linear volume `thick` of 32 MiB and a
//! thin one `thin` of 100 MiB in a pool of 64 MiB.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::*;
use super::MIB;
use crate::host::lvm::status::{DmStatus, Space, status};
use crate::host::program::Programs;

const THICK: &str = "/dev/vg0/thick";
/// By another name than lvm2's.
const THIN: &str = "/dev/mapper/vg0-thin";

fn take(disks: &[&str], options: &SnapshotOptions) -> Snapshots {
    take_with(&Programs::system(), disks, options)
}

fn take_with(programs: &Programs, disks: &[&str], options: &SnapshotOptions) -> Snapshots {
    let run = Run::begin(Path::new("/run/vbk"), "lab", "backup web1").expect("begins");
    let name = |at: usize| -> DiskName { format!("vd{at}").parse().expect("a name") };
    let disks: Vec<_> = disks
        .iter()
        .enumerate()
        .map(|(at, path)| (name(at), PathBuf::from(path)))
        .collect();
    plan(programs, &disks, options)
        .expect("plans")
        .take(&run, &())
        .expect("takes")
}

/// For what surely happens, however slow the machine is.
const LONG: Duration = Duration::from_secs(240);

/// Waits for a state.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let clock = Instant::now();
    while !is_so() {
        assert!(clock.elapsed() < LONG, "{what} within {LONG:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Space of a disk's thick snapshot, as the kernel has it now.
fn space(disk: &HeldDisk) -> Space {
    let snapshot = disk.snapshot.as_ref().expect("is a volume");
    let device = lvm::dm_name(&snapshot.vg, &snapshot.name, "");
    match status(&Programs::system(), &device).expect("answers") {
        DmStatus::Snapshot(space) => space,
        other => panic!("{} is {other:?}", snapshot.full_name()),
    }
}

/// Writes that go to the device at once.
fn write(path: &str, from_mib: u64, mib: u64, byte: u8) {
    let file = File::options().write(true).open(path).expect("opens");
    for at in from_mib..from_mib + mib {
        file.write_all_at(&[byte; MIB as usize], at * MIB).expect("writes");
        file.sync_data().expect("syncs");
    }
}

fn read_all(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn not_extended(size_mib: u64) -> SnapshotOptions {
    SnapshotOptions {
        size: Some(SnapshotSize::Bytes(size_mib * MIB)),
        extend_at: None,
        ..SnapshotOptions::default()
    }
}

fn ours() -> Vec<Leftover> {
    let directories = Directories {
        runtime_dir: Path::new("/run/vbk"),
        cache: Path::new("/var/cache/vbk"),
        host_id: "lab",
    };
    leftovers(&Programs::system(), directories).expect("lists")
}

#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn real_snapshots_hold_still_are_extended_and_removed() {
    write(THICK, 0, 32, 1);
    write(THIN, 0, 8, 1);
    let snapshots = take(&[THICK, THIN], &SnapshotOptions::default());
    let stop = Arc::new(AtomicBool::new(false));
    let watch = snapshots.watch(Arc::clone(&stop), Arc::new(())).expect("starts");
    assert_eq!(
        ours().iter().map(|found| found.state).collect::<Vec<_>>(),
        [State::InUse, State::InUse]
    );
    // Of 20 % space, 8 MiB; without extension it would overflow at the eighth. The next is written when the guard has
    // made room for it.
    let extend_at = SnapshotOptions::default().extend_at.expect("extends");
    for at in 0..20 {
        write(THICK, at, 1, 2);
        until("it is extended", || {
            assert!(!stop.load(Ordering::SeqCst), "the guard has stopped the run");
            space(&snapshots.disks()[0]).fill() < extend_at
        });
    }
    write(THIN, 0, 4, 2);
    assert_eq!(read_all(&snapshots.disks()[0].read).expect("reads"), vec![1; 32 << 20]);
    let thin = read_all(&snapshots.disks()[1].read).expect("reads");
    assert!(thin[..8 << 20].iter().all(|byte| *byte == 1) && thin[8 << 20..].iter().all(|byte| *byte == 0));
    assert!(!stop.load(Ordering::SeqCst));
    watch.end().expect("has nothing to say");
    snapshots.check().expect("is good");
    let peaks = snapshots.peaks();
    assert!(
        (20 * MIB..22 * MIB).contains(&peaks[0].used_bytes.expect("is thick")),
        "{peaks:?}"
    );
    assert!(peaks[0].fill < 0.9 && peaks[1].fill > 0.1, "{peaks:?}");
    let write = File::options().write(true).open(&snapshots.disks()[0].read);
    assert!(
        write.is_err() || write.is_ok_and(|file| file.write_all_at(&[0; 512], 0).is_err()),
        "read-only"
    );
    snapshots.remove().expect("removes");
    assert!(ours().is_empty(), "{:?}", ours());
}

#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn a_real_overflowed_snapshot_stays_invalid() {
    let snapshots = take(&[THICK], &not_extended(8));
    let stop = Arc::new(AtomicBool::new(false));
    let watch = snapshots.watch(Arc::clone(&stop), Arc::new(())).expect("starts");
    write(THICK, 0, 20, 3);
    let error = snapshots.check().expect_err("is not good").to_string();
    assert!(error.contains("has overflowed"), "{error}");
    assert!(read_all(&snapshots.disks()[0].read).is_err());
    until("the guard sees it", || stop.load(Ordering::SeqCst));
    watch.end().expect_err("says so too");
    assert!(ours()[0].invalid);
    snapshots.remove().expect("removes");
    assert!(ours().is_empty(), "{:?}", ours());
}

#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn a_real_run_is_stopped_before_its_snapshot_overflows() {
    let snapshots = take(&[THICK], &not_extended(16));
    let stop = Arc::new(AtomicBool::new(false));
    let watch = snapshots.watch(Arc::clone(&stop), Arc::new(())).expect("starts");
    let seen = || snapshots.peaks()[0].used_bytes.expect("is thick");
    let is_stopped = || stop.load(Ordering::SeqCst);
    for at in 0..32 {
        if is_stopped() {
            break;
        }
        // Less than a tenth of the space, and the next when the guard has seen this one.
        write(THICK, at, 1, 4);
        let used = space(&snapshots.disks()[0]).used * 512;
        until("the guard looks", || is_stopped() || seen() >= used);
    }
    until("the run is stopped", is_stopped);
    snapshots.check().expect("is still good");
    let error = watch.end().expect_err("has stopped it").to_string();
    assert!(error.contains("full and could not be extended"), "{error}");
    snapshots.remove().expect("removes");
}

#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn a_real_busy_snapshot_is_removed_once_it_is_free() {
    let dir = tempfile::tempdir().expect("a directory");
    let ended = dir.path().join("ended");
    let path = "/usr/sbin:/usr/bin:/sbin:/bin";
    // Notes the end of each attempt. The first ones fail, because the files are open.
    let script = format!(
        "#!/bin/sh\nPATH={path}\nlvremove \"$@\"\ncode=$?\necho >>{}\nexit $code\n",
        ended.display()
    );
    let lvremove = dir.path().join("lvremove");
    std::fs::write(&lvremove, script).expect("writes");
    std::fs::set_permissions(&lvremove, Permissions::from_mode(0o755)).expect("sets the mode");
    let programs = Programs::found_in(format!("{}:{path}", dir.path().display()));
    let snapshots = take_with(&programs, &[THICK, THIN], &SnapshotOptions::default());
    let files: Vec<File> = snapshots
        .disks()
        .iter()
        .map(|disk| File::open(&disk.read).expect("opens"))
        .collect();
    let holder = std::thread::spawn(move || {
        until("a removal is tried", || ended.exists());
        drop(files);
    });
    snapshots.remove().expect("removes");
    holder.join().expect("ends");
    assert!(ours().is_empty(), "{:?}", ours());
}

#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn real_lvm_parts_that_are_not_disks_are_refused() {
    let snapshots = take(&[THICK], &SnapshotOptions::default());
    let refused = |path: &Path| {
        let disk = ("vda".parse().expect("a name"), path.to_owned());
        let error = plan(&Programs::system(), &[disk], &SnapshotOptions::default());
        error.expect_err("is refused").to_string()
    };
    assert!(refused(&snapshots.disks()[0].read).contains("a snapshot that vbk made"));
    for path in ["/dev/mapper/vg0-pool", "/dev/mapper/vg0-pool_tdata"] {
        let text = refused(Path::new(path));
        assert!(text.contains("a pool or a part of another volume"), "{text}");
    }
    assert!(refused(Path::new("/dev/vda")).contains("is in use (part of dm-"));
    let text = refused(Path::new("/dev/mapper/vg0-off"));
    assert!(text.contains("lvchange -ay vg0/off"), "{text}");
}

/// Leaves one kept and one left behind, for the command line to show and clean.
#[test]
#[ignore = "needs the machine of tests/lab/lvm"]
fn leaves_snapshots_behind() {
    let mut kept = take(&[THIN], &SnapshotOptions::default());
    let name = kept.disks()[0].disk.name.clone();
    kept.keep(&name, "00ff", Path::new("/var/cache/vbk")).expect("keeps");
    std::mem::forget(take(&[THICK], &SnapshotOptions::default()));
}
