use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::restore::tests::device::Loop;
use crate::restore::tests::{MIB, Meanwhile, Program, image, plain, stored};
use vbk_repo::reader::ReadResources;

fn options(force: bool, damaged: Damaged) -> DifferentialOptions {
    DifferentialOptions {
        label: "web1".into(),
        force,
        overwrite: false,
        damaged,
        threads: 2,
    }
}

fn run(plain: &[u8], path: &Path, force: bool) -> Result<Updated> {
    let (image, _) = image(plain);
    let options = options(force, Damaged::Refuse);
    restore(&image, path, &options, &AtomicBool::new(false), &())
}

fn look(plain: &[u8], path: &Path) -> Result<Updated> {
    let (image, _) = image(plain);
    compare(
        &image,
        path,
        &options(false, Damaged::Refuse),
        &AtomicBool::new(false),
        &(),
    )
}

/// A file in a directory of its own, with these bytes.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    // Not in /tmp, which may be a tmpfs without direct I/O.
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, bytes).expect("writes");
    (directory, path)
}

/// Differs from [`plain`] in one byte of the second block, one of the last, and one of a zero block.
fn changed() -> Vec<u8> {
    let mut changed = plain();
    for at in [MIB + 17, 12 * MIB + 776, 5 * MIB - 1] {
        changed[at] = changed[at].wrapping_add(1);
    }
    changed
}

fn difference_of_changed() -> Difference {
    Difference {
        compared_bytes: plain().len() as u64,
        data_bytes: MIB as u64 + 777,
        zero_bytes: MIB as u64,
        ..Difference::default()
    }
}

#[test]
fn a_file_is_changed_in_place_and_only_where_it_differs() {
    let (_directory, path) = file(&changed());
    let before = fs::metadata(&path).expect("stat");
    let updated = run(&plain(), &path, true).expect("restores");
    assert_eq!(updated.difference, difference_of_changed());
    assert!(fs::read(&path).expect("reads") == plain());
    assert_eq!(fs::metadata(&path).expect("stat").ino(), before.ino());
    // Again: all is the same now.
    let again = run(&plain(), &path, true).expect("restores").difference;
    assert_eq!((again.data_bytes, again.zero_bytes), (0, 0));
}

#[test]
fn a_comparison_changes_nothing() {
    let (_directory, path) = file(&changed());
    let before = fs::metadata(&path).expect("stat");
    let updated = look(&plain(), &path).expect("compares");
    assert_eq!(updated.difference, difference_of_changed());
    let after = fs::metadata(&path).expect("stat");
    let times = |of: &fs::Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec(), of.blocks());
    assert_eq!(times(&before), times(&after));
    assert!(fs::read(&path).expect("reads") == changed());
}

#[test]
fn zeros_become_holes_and_holes_stay() {
    let (_directory, path) = file(&vec![0xAA; plain().len()]);
    run(&plain(), &path, true).expect("restores");
    assert!(fs::read(&path).expect("reads") == plain());
    let allocated = fs::metadata(&path).expect("stat").blocks() * 512;
    assert!(allocated < 8 * MIB as u64, "{allocated} bytes allocated");
    let updated = run(&vec![0; plain().len()], &path, true).expect("restores");
    assert_eq!(updated.difference.zero_bytes, 6 * MIB as u64 + 777);
    // The file system keeps the block in which the file ends.
    assert!(fs::metadata(&path).expect("stat").blocks() <= 8);
    // A hole is different from data, and the same as zeros, without being read.
    let updated = run(&plain(), &path, true).expect("restores");
    assert_eq!(
        (updated.difference.data_bytes, updated.difference.zero_bytes),
        (6 * MIB as u64 + 777, 0)
    );
    assert!(fs::read(&path).expect("reads") == plain());
}

#[test]
fn a_file_gets_the_size_of_the_disk() {
    for len in [0, 5, 9 * MIB + 5, 12 * MIB + 776] {
        let (_directory, path) = file(&plain()[..len]);
        assert_eq!(
            look(&plain(), &path).expect("compares").difference,
            run(&plain(), &path, true).expect("restores").difference
        );
        assert!(fs::read(&path).expect("reads") == plain(), "{len} bytes");
    }
    let mut longer = plain();
    longer.extend(b"the old end");
    let (_directory, path) = file(&longer);
    let updated = run(&plain(), &path, true).expect("restores");
    assert_eq!(updated.difference.resized_from_bytes, Some(longer.len() as u64));
    assert_eq!(updated.difference.data_bytes, 0);
    assert!(fs::read(&path).expect("reads") == plain());
}

#[test]
fn a_smaller_file_grows_by_zeros_too() {
    let mut disk = plain();
    disk.resize(20 * MIB + 3, 0);
    let (_directory, path) = file(&plain());
    let updated = run(&disk, &path, true).expect("restores");
    assert_eq!((updated.difference.data_bytes, updated.difference.zero_bytes), (0, 0));
    assert!(fs::read(&path).expect("reads") == disk);
}

#[test]
fn an_existing_file_needs_force_and_a_missing_one_is_not_made() {
    let (directory, path) = file(b"precious");
    assert!(matches!(run(&plain(), &path, false), Err(Error::TargetKept(_))));
    assert_eq!(fs::read(&path).expect("reads"), b"precious");
    let missing = directory.path().join("missing.img");
    for result in [run(&plain(), &missing, true), look(&plain(), &missing)] {
        assert!(matches!(result, Err(Error::NothingToCompare(_))), "{result:?}");
    }
    assert!(!missing.exists());
    for path in ["/tmp", "/dev/null"] {
        assert!(matches!(
            run(&plain(), Path::new(path), true),
            Err(Error::NotADisk { .. })
        ));
        assert!(matches!(look(&plain(), Path::new(path)), Err(Error::NotADisk { .. })));
    }
}

#[test]
fn a_file_with_another_name_is_not_changed_under_that_name() {
    let (directory, path) = file(b"precious");
    fs::hard_link(&path, directory.path().join("other.img")).expect("links");
    assert!(matches!(run(&plain(), &path, true), Err(Error::HardLinked(_))));
    assert_eq!(fs::read(&path).expect("reads"), b"precious");
}

#[test]
fn a_file_of_disk_bytes_is_no_program_with_rights() {
    let (_directory, path) = file(&changed());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).expect("sets");
    run(&plain(), &path, true).expect("restores");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o755);
}

#[test]
fn a_file_in_use_is_refused_and_a_comparison_warns() {
    struct Warned(Mutex<Vec<String>>);
    impl Observer for Warned {
        fn event(&self, event: Event<'_>) {
            if let Event::Warning(text) = event {
                self.0.lock().push(text.to_owned());
            }
        }
    }
    let (_directory, path) = file(&changed());
    let _guest = Program::with(&path);
    assert!(matches!(run(&plain(), &path, true), Err(Error::TargetInUse { .. })));
    assert!(fs::read(&path).expect("reads") == changed());
    let warned = Warned(Mutex::default());
    let (image, _) = image(&plain());
    let options = options(false, Damaged::Refuse);
    let updated = compare(&image, &path, &options, &AtomicBool::new(false), &warned).expect("compares");
    assert_eq!(updated.difference, difference_of_changed());
    let warned = warned.0.into_inner();
    assert!(
        matches!(&warned[..], [one] if one.contains("in use") && one.contains("approximate")),
        "{warned:?}"
    );
}

fn run_meanwhile(path: &Path, harm: impl Fn() + Send + Sync) -> Result<Updated> {
    let (image, _) = image(&plain());
    let meanwhile = Meanwhile(std::sync::Once::new(), harm);
    let options = options(true, Damaged::Refuse);
    restore(&image, path, &options, &AtomicBool::new(false), &meanwhile)
}

#[test]
fn a_program_that_begins_to_write_stops_the_restore() {
    let (_directory, path) = file(&changed());
    let guest = Mutex::new(None);
    let stopped = run_meanwhile(&path, || *guest.lock() = Some(Program::with(&path)));
    let text = stopped.expect_err("is in use").to_string();
    assert!(text.contains("neither the old file nor the restored one"), "{text}");
}

#[test]
fn a_file_that_was_moved_away_is_not_called_restored() {
    let (directory, path) = file(&changed());
    let moved = run_meanwhile(&path, || {
        fs::rename(&path, directory.path().join("moved")).expect("moves");
        fs::write(&path, b"new").expect("writes");
    });
    assert!(matches!(moved, Err(Error::TargetExchanged { .. })), "{moved:?}");
    assert_eq!(fs::read(&path).expect("reads"), b"new");
}

#[test]
fn a_cancelled_restore_is_completed_by_the_next_one() {
    /// Cancels after the first block.
    struct Cancel<'a>(&'a AtomicBool);
    impl Observer for Cancel<'_> {
        fn event(&self, _: Event<'_>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let disk: Vec<u8> = (0..64 * MIB).map(|i| (i / MIB) as u8 + 1).collect();
    let (_directory, path) = file(&vec![0xAA; 80 * MIB]);
    let (image, _) = image(&disk);
    let cancel = AtomicBool::new(false);
    let options = options(true, Damaged::Refuse);
    let result = restore(&image, &path, &options, &cancel, &Cancel(&cancel));
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    let half = fs::read(&path).expect("reads");
    assert_eq!(half.len(), 80 * MIB, "the end comes last");
    assert!(half[..64 * MIB] != disk);
    let updated = restore(&image, &path, &options, &AtomicBool::new(false), &()).expect("restores");
    assert!(
        updated.difference.data_bytes < 64 * MIB as u64,
        "some blocks were right already"
    );
    assert!(fs::read(&path).expect("reads") == disk);
}

#[test]
fn a_block_that_is_lost_does_no_harm_where_the_target_has_it() {
    let (store, stored) = stored(&plain());
    let block = |number: usize| number * MIB..(number + 1) * MIB;
    store.lose(vbk_repo::block::Hashing::Plain.block(&plain()[block(9)]).id);
    let image = Arc::new(ImageReader::open(store, ReadResources::new(2), &stored).expect("opens"));
    let run = |path: &Path, damaged| restore(&image, path, &options(true, damaged), &AtomicBool::new(false), &());
    let (_directory, path) = file(&changed());
    let updated = run(&path, Damaged::Refuse).expect("needs no lost block");
    assert_eq!(updated.damaged, []);
    assert!(fs::read(&path).expect("reads") == plain());
    // Where the target lacks it, it is damage as in any restore.
    let mut other = plain();
    other[9 * MIB] ^= 1;
    fs::write(&path, &other).expect("writes");
    let failed = run(&path, Damaged::Refuse);
    assert!(matches!(failed, Err(Error::ReadImage { .. })), "{failed:?}");
    let lost = DamagedRange {
        offset_bytes: 9 * MIB as u64,
        len_bytes: MIB as u64,
    };
    assert_eq!(run(&path, Damaged::Keep).expect("restores").damaged, [lost]);
    assert!(fs::read(&path).expect("reads") == other);
    assert_eq!(run(&path, Damaged::Zeros).expect("restores").damaged, [lost]);
    other[block(9)].fill(0);
    assert!(fs::read(&path).expect("reads") == other);
}

/// Needs root and loop devices.
mod device {
    use super::*;

    #[test]
    fn a_device_is_changed_where_it_differs_and_keeps_what_is_behind() {
        let device = Loop::new(14 * MIB);
        let updated = run(&plain(), &device.path, false).expect("restores");
        assert_eq!(
            (updated.difference.data_bytes, updated.difference.zero_bytes),
            (6 * MIB as u64 + 777, 6 * MIB as u64)
        );
        assert_eq!(updated.difference.resized_from_bytes, None);
        let behind = 14 * MIB - plain().len();
        assert_eq!(updated.behind.map(|behind| behind.bytes), Some(behind as u64));
        let read = fs::read(&device.path).expect("reads");
        assert!(read[..plain().len()] == plain());
        assert!(read[plain().len()..].iter().all(|byte| *byte == 0xAA));
        let raw = fs::OpenOptions::new().write(true).open(&device.path).expect("opens");
        raw.write_all_at(&changed(), 0).expect("writes");
        drop(raw);
        let updated = run(&plain(), &device.path, false).expect("restores");
        assert_eq!(updated.difference, difference_of_changed());
        assert!(fs::read(&device.path).expect("reads")[..plain().len()] == plain());
    }

    #[test]
    fn a_device_that_is_too_small_or_written_to_stays_as_it_was() {
        let device = Loop::new(12 * MIB);
        for result in [run(&plain(), &device.path, true), look(&plain(), &device.path)] {
            assert!(matches!(result, Err(Error::TargetTooSmall { .. })), "{result:?}");
        }
        let device = Loop::new(14 * MIB);
        let guest = Program::with(&device.path);
        assert!(matches!(
            run(&plain(), &device.path, false),
            Err(Error::TargetInUse { .. })
        ));
        drop(guest);
        device.assert_unchanged();
    }

    #[test]
    fn what_can_not_be_read_is_written_again() {
        // Without an end that shares its page with bytes that must be kept, and therefore read.
        let disk = &plain()[..12 * MIB];
        let device = Loop::new(12 * MIB);
        run(disk, &device.path, false).expect("restores");
        // Past the end of its file a loop device returns EIO (drivers/block/loop.c, lo_complete_rq), and a write extends
        // the file.
        device._file.as_file().set_len(9 * MIB as u64).expect("cuts");
        let updated = run(disk, &device.path, false).expect("restores");
        assert_eq!(updated.difference.unreadable_bytes, 3 * MIB as u64);
        assert_eq!(updated.difference.data_bytes, 3 * MIB as u64);
        assert!(fs::read(&device.path).expect("reads") == disk);
    }
}
