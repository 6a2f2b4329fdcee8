use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::*;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Image;
use vbk_repo::block::{BlockSize, Hashing, is_zero};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::reader::ReadResources;
use vbk_repo::store::StoreWriter;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::writer::ImageWriter;

pub(super) const MIB: usize = 1 << 20;

/// Stores an image.
pub(super) fn stored(plain: &[u8]) -> (Arc<MemoryStore>, Image) {
    let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
    let writer = ImageWriter::create(&*store, BlockSize::DEFAULT, plain.len() as u64);
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    let mut data_bytes = 0;
    for (index, block) in (0..).zip(plain.chunks(MIB)) {
        let slot = (!is_zero(block)).then(|| {
            let hashes = Hashing::Plain.block(block);
            let sealed = sealer.seal(block, &hashes).expect("seals");
            store.put(vec![sealed]).expect("puts");
            data_bytes += block.len() as u64;
            hashes.id
        });
        writer.set(BlockIndex(index), &[slot]).expect("sets");
    }
    let image = Image {
        data_bytes,
        ..Image::new(
            "vda".parse().expect("a name"),
            "",
            plain.len() as u64,
            writer.finish().expect("finishes"),
        )
    };
    (store, image)
}

pub(super) fn image(plain: &[u8]) -> (Arc<ImageReader>, u64) {
    let (store, image) = stored(plain);
    let reader = ImageReader::open(store, ReadResources::new(2), &image).expect("opens");
    (Arc::new(reader), image.data_bytes)
}

/// 12 MiB and a bit, with 6 MiB of zeros inside.
pub(super) fn plain() -> Vec<u8> {
    let mut plain: Vec<u8> = (0..12 * MIB + 777).map(|i| (i % 255) as u8 + 1).collect();
    plain[2 * MIB..8 * MIB].fill(0);
    plain
}

fn run(plain: &[u8], path: &Path, force: bool) -> Result<()> {
    let (image, data_bytes) = image(plain);
    let options = RestoreOptions {
        label: "web1".into(),
        format: Format::Raw,
        changes: None,
        force,
        overwrite: false,
        fill: Fill::Image,
        damaged: Damaged::Refuse,
        threads: 2,
    };
    restore(&image, data_bytes, path, &options, &AtomicBool::new(false), &()).map(|_| ())
}

fn names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("lists");
    entries.map(|entry| entry.expect("entry").file_name().into()).collect()
}

#[test]
fn a_new_file_is_the_image_and_sparse() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    run(&plain(), &path, false).expect("restores");
    assert!(fs::read(&path).expect("reads") == plain());
    let allocated = fs::metadata(&path).expect("stat").blocks() * 512;
    assert!(allocated < 8 * MIB as u64, "{allocated} bytes allocated");
    assert_eq!(names(directory.path()), [PathBuf::from("out.img")]);
}

#[test]
fn an_existing_file_needs_force_and_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, b"precious").expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("sets");
    assert!(matches!(run(&plain(), &path, false), Err(Error::TargetExists(_))));
    assert_eq!(fs::read(&path).expect("reads"), b"precious");
    run(&plain(), &path, true).expect("restores");
    assert!(fs::read(&path).expect("reads") == plain());
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o640);
}

/// A program that holds a file or device open for reading and writing, as QEMU does with its guest's disks.
pub(super) struct Program(std::process::Child);

impl Program {
    pub(super) fn with(disk: &Path) -> Self {
        let script = "exec 5<>\"$1\"; echo open; read -r _";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script, "guest"])
            .arg(disk)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("starts");
        let mut said = [0; 5];
        let stdout = child.stdout.as_mut().expect("is a pipe");
        std::io::Read::read_exact(stdout, &mut said).expect("opens it");
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_file_that_a_program_writes_to_is_not_taken_from_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("web1.img");
    fs::write(&path, b"precious").expect("writes");
    let guest = Program::with(&path);
    let text = run(&plain(), &path, true).expect_err("is in use").to_string();
    let process = format!("open for writing in process {}, sh", guest.0.id());
    assert!(text.contains(&process) && text.contains("move the file away"), "{text}");
    assert_eq!(fs::read(&path).expect("reads"), b"precious");
    assert_eq!(names(directory.path()), [PathBuf::from("web1.img")]);
    drop(guest);
    // A reader of the target loses nothing.
    let _reader = fs::File::open(&path).expect("opens");
    run(&plain(), &path, true).expect("restores");
}

#[test]
fn an_interrupted_or_failed_restore_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    let (image, data_bytes) = image(&plain());
    let options = RestoreOptions {
        label: "web1".into(),
        format: Format::Raw,
        changes: None,
        force: false,
        overwrite: false,
        fill: Fill::Image,
        damaged: Damaged::Refuse,
        threads: 2,
    };
    let result = restore(&image, data_bytes, &path, &options, &AtomicBool::new(true), &());
    assert!(matches!(result, Err(Error::Interrupted)));
    assert_eq!(names(directory.path()), [] as [PathBuf; 0]);
    let full = restore(&image, u64::MAX, &path, &options, &AtomicBool::new(false), &());
    assert_eq!(full.map_err(|error| error.kind()), Err(ErrorKind::NoSpace));
    assert_eq!(names(directory.path()), [] as [PathBuf; 0]);
}

#[test]
fn what_a_killed_restore_left_goes_with_the_next_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    // One of a restore that is still running, and others.
    let busy = fs::File::create(directory.path().join(".vbk-part-77-out.img")).expect("creates");
    busy.lock().expect("locks");
    for name in [".vbk-part-78-out.img", ".vbk-part-78-other.img", ".vbk-part-x-out.img"] {
        fs::write(directory.path().join(name), b"half").expect("writes");
    }
    run(&plain(), &path, false).expect("restores");
    let mut left = names(directory.path());
    left.sort();
    let expected = [
        ".vbk-part-77-out.img",
        ".vbk-part-78-other.img",
        ".vbk-part-x-out.img",
        "out.img",
    ];
    assert_eq!(left, expected.map(PathBuf::from));
}

#[test]
fn a_long_name_and_a_dangling_link_are_no_surprise() {
    let directory = tempfile::tempdir().expect("a directory");
    run(&plain(), &directory.path().join("x".repeat(255)), false).expect("restores");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).expect("links");
    assert!(matches!(run(&plain(), &link, true), Err(Error::DanglingLink(_))));
}

#[test]
fn what_can_not_be_a_disk_is_refused() {
    let kind = |path: &str| run(b"x", Path::new(path), true).map_err(|error| error.kind());
    assert_eq!(kind("/tmp"), Err(ErrorKind::Invalid));
    assert_eq!(kind("/dev/null"), Err(ErrorKind::Invalid));
    assert_eq!(kind("/dev/no-such-volume"), Err(ErrorKind::NotFound));
    assert_eq!(kind("/nowhere/out.img"), Err(ErrorKind::NotFound));
}

#[test]
fn a_stream_has_every_byte() {
    let (image, _) = image(&plain());
    let mut out = Vec::new();
    stream("web1", &image, Damaged::Refuse, &mut out, &AtomicBool::new(false), &()).expect("streams");
    assert!(out == plain());
}

#[test]
fn nothing_that_another_user_put_in_the_way_is_followed_or_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, victim) = (directory.path().join("out.img"), directory.path().join("victim"));
    fs::write(&victim, b"precious").expect("writes");
    // The names that a killed restore leaves: a pipe without another end, and a link.
    let pipe = directory.path().join(".vbk-part-1-out.img");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo runs").success());
    std::os::unix::fs::symlink("victim", directory.path().join(".vbk-part-2-out.img")).expect("links");
    run(&plain(), &path, false).expect("restores");
    assert!(fs::read(&path).expect("reads") == plain());
    assert_eq!(fs::read(&victim).expect("reads"), b"precious");
    assert_eq!(names(directory.path()).len(), 4, "what is not ours stays");
    // The target itself, as a link owned by another user; root may change its owner.
    let link = directory.path().join("link.img");
    std::os::unix::fs::symlink("victim", &link).expect("links");
    std::os::unix::fs::lchown(&link, Some(65534), Some(65534)).expect("needs root");
    for force in [false, true] {
        assert!(matches!(
            run(&plain(), &link, force),
            Err(Error::ForeignLink { owner: 65534, .. })
        ));
    }
    assert_eq!(fs::read(&victim).expect("reads"), b"precious");
    // Links of the user itself are followed.
    std::os::unix::fs::lchown(&link, Some(0), Some(0)).expect("needs root");
    run(&plain(), &link, true).expect("restores");
    assert!(fs::read(&victim).expect("reads") == plain());
}

/// Changes the target's directory when the first bytes are written.
pub(super) struct Meanwhile<F: Fn() + Send + Sync>(pub(super) std::sync::Once, pub(super) F);

impl<F: Fn() + Send + Sync> Observer for Meanwhile<F> {
    fn event(&self, _: Event<'_>) {
        self.0.call_once(&self.1);
    }
}

fn run_meanwhile(path: &Path, force: bool, harm: impl Fn() + Send + Sync) -> Result<()> {
    let (image, data_bytes) = image(&plain());
    let options = RestoreOptions {
        label: "web1".into(),
        format: Format::Raw,
        changes: None,
        force,
        overwrite: false,
        fill: Fill::Image,
        damaged: Damaged::Refuse,
        threads: 2,
    };
    let meanwhile = Meanwhile(std::sync::Once::new(), harm);
    restore(&image, data_bytes, path, &options, &AtomicBool::new(false), &meanwhile).map(|_| ())
}

fn part_in(directory: &Path) -> PathBuf {
    let part = names(directory)
        .into_iter()
        .find(|name| name.to_string_lossy().starts_with(".vbk-part-"));
    directory.join(part.expect("is being written"))
}

#[test]
fn a_part_file_that_is_exchanged_is_never_called_restored() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, victim) = (directory.path().join("out.img"), directory.path().join("victim"));
    fs::write(&victim, b"precious").expect("writes");
    let exchanged = run_meanwhile(&path, false, || {
        let part = part_in(directory.path());
        fs::rename(&part, directory.path().join("moved")).expect("moves");
        std::os::unix::fs::symlink("victim", &part).expect("links");
    });
    assert!(matches!(exchanged, Err(Error::TargetExchanged { .. })), "{exchanged:?}");
    assert!(!path.exists());
    assert_eq!(fs::read(&victim).expect("reads"), b"precious");
}

#[test]
fn a_file_that_another_took_the_place_of_is_not_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, b"old").expect("writes");
    let exchanged = run_meanwhile(&path, true, || {
        fs::write(directory.path().join("new"), b"new").expect("writes");
        fs::rename(directory.path().join("new"), &path).expect("moves");
    });
    assert!(matches!(exchanged, Err(Error::TargetExchanged { .. })), "{exchanged:?}");
    assert_eq!(fs::read(&path).expect("reads"), b"new");
    assert_eq!(names(directory.path()), [PathBuf::from("out.img")]);
}

#[test]
fn a_program_that_begins_to_write_to_the_file_stops_the_restore() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, b"old").expect("writes");
    let guest = Mutex::new(None);
    let stopped = run_meanwhile(&path, true, || *guest.lock() = Some(Program::with(&path)));
    assert!(matches!(stopped, Err(Error::TargetTaken { .. })), "{stopped:?}");
    assert_eq!(fs::read(&path).expect("reads"), b"old");
    assert_eq!(names(directory.path()), [PathBuf::from("out.img")]);
}

#[test]
fn a_watch_ends_by_itself_when_another_process_begins_to_use_the_target() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, b"old").expect("writes");
    let target = Target::open(&path, 10, 10, true).expect("opens");
    let _guest = Program::with(&path);
    let seen = Watch::default().run(&target);
    assert!(matches!(seen, Err(Error::TargetTaken { .. })), "{seen:?}");
}

#[test]
fn a_file_is_in_use_by_whatever_name_it_was_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, other) = (directory.path().join("out.img"), directory.path().join("other.img"));
    fs::write(&path, b"precious").expect("writes");
    fs::hard_link(&path, &other).expect("links");
    let _guest = Program::with(&other);
    assert!(matches!(run(&plain(), &path, true), Err(Error::TargetInUse { .. })));
    assert_eq!(fs::read(&path).expect("reads"), b"precious");
}

#[test]
fn a_replaced_file_gives_no_rights_to_run_the_guests_bytes() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("out.img");
    fs::write(&path, b"program").expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).expect("sets");
    run(&plain(), &path, true).expect("restores");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o7777, 0o755);
}

/// Needs qemu-img (Debian: qemu-utils).
mod qcow2 {
    use super::*;
    use std::process::Command;

    fn options(force: bool, damaged: Damaged) -> RestoreOptions {
        RestoreOptions {
            label: "web1".into(),
            format: Format::Qcow2,
            changes: None,
            force,
            overwrite: false,
            fill: Fill::Image,
            damaged,
            threads: 2,
        }
    }

    fn run(image: &ImageReader, path: &Path, options: &RestoreOptions) -> Result<Restored> {
        restore(image, 7 << 20, path, options, &AtomicBool::new(false), &())
    }

    fn qemu_img(args: &[&str], files: &[&Path]) -> String {
        let output = Command::new("qemu-img").args(args).args(files).output();
        let output = output.expect("qemu-img runs (package qemu-utils)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    #[track_caller]
    fn assert_is(path: &Path, plain: &[u8]) {
        let check = qemu_img(&["check", "-f", "qcow2"], &[path]);
        assert!(check.contains("No errors were found"), "{check}");
        let raw = path.with_extension("raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[path, &raw]);
        let mut read = fs::read(&raw).expect("reads");
        fs::remove_file(&raw).expect("removes");
        assert_eq!(read.len(), plain.len().next_multiple_of(512));
        let behind = read.split_off(plain.len());
        assert!(is_zero(&behind) && read == plain);
    }

    #[test]
    fn a_qcow2_image_is_the_disk_and_holds_no_zeros() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out.qcow2");
        let mut plain = plain();
        // Zeros within blocks of data: no cluster for them.
        plain[0..3 * 65536].fill(0);
        plain[9 * MIB + 65536..10 * MIB - 65536].fill(0);
        plain[11 * MIB + 65536 + 1..12 * MIB].fill(0);
        let (image, _) = image(&plain);
        run(&image, &path, &options(false, Damaged::Refuse)).expect("restores");
        assert_is(&path, &plain);
        // Eight clusters for header and tables at most.
        let data = plain.chunks(65536).filter(|cluster| !is_zero(cluster)).count() as u64;
        let metadata = fs::metadata(&path).expect("stat");
        assert!(metadata.len() <= (data + 8) * 65536, "{} bytes", metadata.len());
        assert_eq!(names(directory.path()), [PathBuf::from("out.qcow2")]);
    }

    #[test]
    fn disks_of_no_and_of_few_bytes_can_be_qcow2_images() {
        let directory = tempfile::tempdir().expect("a directory");
        for len in [0, 1, 511, 512, 65536, 65537] {
            let path = directory.path().join("out.qcow2");
            let plain = vec![7; len];
            run(&image(&plain).0, &path, &options(true, Damaged::Refuse)).expect("restores");
            assert_is(&path, &plain);
        }
    }

    #[test]
    fn a_qcow2_image_replaces_a_file_only_with_force_and_no_device() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out.qcow2");
        fs::write(&path, b"precious").expect("writes");
        let (image, _) = image(&plain());
        let refused = run(&image, &path, &options(false, Damaged::Refuse));
        assert!(matches!(refused, Err(Error::TargetExists(_))), "{refused:?}");
        assert_eq!(fs::read(&path).expect("reads"), b"precious");
        run(&image, &path, &options(true, Damaged::Refuse)).expect("restores");
        assert_is(&path, &plain());
        let device = device::Loop::new(14 * MIB);
        let refused = run(&image, &device.path, &options(true, Damaged::Refuse)).expect_err("is a device");
        assert!(refused.to_string().contains("omit --format"), "{refused}");
        device.assert_unchanged();
    }

    #[test]
    fn a_cancelled_qcow2_image_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out.qcow2");
        let (image, data_bytes) = image(&plain());
        let cancel = AtomicBool::new(true);
        let result = restore(
            &image,
            data_bytes,
            &path,
            &options(false, Damaged::Refuse),
            &cancel,
            &(),
        );
        assert!(matches!(result, Err(Error::Interrupted)));
        assert_eq!(names(directory.path()), [] as [PathBuf; 0]);
    }

    #[test]
    fn damage_becomes_zeros_in_a_qcow2_image() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out.qcow2");
        let mut plain = plain();
        let (store, image) = stored(&plain);
        store.lose(Hashing::Plain.block(&plain[9 * MIB..10 * MIB]).id);
        let reader = ImageReader::open(store, ReadResources::new(2), &image).expect("opens");
        assert!(run(&reader, &path, &options(false, Damaged::Refuse)).is_err());
        let restored = run(&reader, &path, &options(false, Damaged::Zeros)).expect("restores");
        assert_eq!(restored.damaged.len(), 1);
        plain[9 * MIB..10 * MIB].fill(0);
        assert_is(&path, &plain);
    }
}

/// Needs root and loop devices.
pub(super) mod device {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    /// A loop device that is detached when it is dropped.
    pub(in crate::restore) struct Loop {
        pub(in crate::restore) _file: tempfile::NamedTempFile,
        pub(in crate::restore) path: PathBuf,
    }

    impl Loop {
        /// A device of this many bytes, all 0xAA.
        pub(in crate::restore) fn new(size: usize) -> Self {
            let file = tempfile::NamedTempFile::new().expect("a file");
            file.as_file().write_all_at(&vec![0xAA; size], 0).expect("writes");
            let output = Command::new("losetup").args(["-f", "--show"]).arg(file.path()).output();
            let output = output.expect("losetup runs");
            assert!(output.status.success(), "losetup needs root: {output:?}");
            let path = String::from_utf8(output.stdout).expect("text");
            Self {
                _file: file,
                path: path.trim().into(),
            }
        }

        #[track_caller]
        pub(in crate::restore) fn assert_unchanged(&self) {
            assert!(fs::read(&self.path).expect("reads").iter().all(|byte| *byte == 0xAA));
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
        }
    }

    #[test]
    fn a_device_reads_as_the_image_and_what_lies_behind_stays() {
        let device = Loop::new(14 * MIB);
        run(&plain(), &device.path, false).expect("restores");
        let read = fs::read(&device.path).expect("reads");
        assert!(read[..plain().len()] == plain());
        assert!(read[plain().len()..].iter().all(|byte| *byte == 0xAA));
    }

    #[test]
    fn a_new_device_is_filled_to_its_end_or_gets_only_data() {
        let (image, data_bytes) = image(&plain());
        let fill = |fill: Fill| {
            let device = Loop::new(14 * MIB);
            let options = RestoreOptions {
                label: "web1".into(),
                format: Format::Raw,
                changes: None,
                force: false,
                overwrite: false,
                fill,
                damaged: Damaged::Refuse,
                threads: 2,
            };
            let done = restore(&image, data_bytes, &device.path, &options, &AtomicBool::new(false), &());
            done.expect("restores");
            fs::read(&device.path).expect("reads")
        };
        let mut whole = plain();
        whole.resize(14 * MIB, 0);
        assert!(fill(Fill::Device) == whole);
        // On a device that reads as zeros no other bytes would be missing.
        let mut data = vec![0xAA; 14 * MIB];
        for (at, block) in (0..).step_by(MIB).zip(plain().chunks(MIB)) {
            if !is_zero(block) {
                data[at..at + block.len()].copy_from_slice(block);
            }
        }
        assert!(fill(Fill::Data) == data);
    }

    #[test]
    fn a_device_that_is_too_small_stays_as_it_was() {
        let device = Loop::new(12 * MIB);
        assert!(matches!(
            run(&plain(), &device.path, true),
            Err(Error::TargetTooSmall { .. })
        ));
        assert!(fs::read(&device.path).expect("reads").iter().all(|byte| *byte == 0xAA));
    }

    #[test]
    fn a_file_that_another_loop_device_shows_stays_as_it_was() {
        let device = Loop::new(14 * MIB);
        let again = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(device._file.path())
            .output();
        let again = String::from_utf8(again.expect("losetup runs").stdout).expect("text");
        let refused = run(&plain(), &device.path, true);
        let _ = Command::new("losetup").arg("-d").arg(again.trim()).status();
        let text = refused.expect_err("is in use").to_string();
        assert!(text.contains(again.trim()), "{text}");
        assert!(fs::read(&device.path).expect("reads").iter().all(|byte| *byte == 0xAA));
    }

    #[test]
    fn a_device_that_a_program_writes_to_needs_force() {
        let device = Loop::new(14 * MIB);
        let guest = Program::with(&device.path);
        let text = run(&plain(), &device.path, false).expect_err("is in use").to_string();
        let process = format!("open for writing in process {}, sh", guest.0.id());
        assert!(text.contains(&process) && text.contains("--force"), "{text}");
        assert!(fs::read(&device.path).expect("reads").iter().all(|byte| *byte == 0xAA));
        run(&plain(), &device.path, true).expect("restores");
    }

    #[test]
    fn a_guest_that_is_started_meanwhile_stops_the_restore() {
        let device = Loop::new(14 * MIB);
        let guest = Mutex::new(None);
        let start = || *guest.lock() = Some(Program::with(&device.path));
        let text = run_meanwhile(&device.path, false, start)
            .expect_err("is in use")
            .to_string();
        assert!(
            text.contains("came into use") && text.contains("neither the old disk"),
            "{text}"
        );
    }

    #[test]
    fn a_loop_device_by_another_name_of_the_file_is_seen() {
        let device = Loop::new(14 * MIB);
        let other = device._file.path().with_extension("link");
        fs::hard_link(device._file.path(), &other).expect("links");
        let refused = run(&plain(), &other, true);
        fs::remove_file(&other).expect("removes");
        let text = refused.expect_err("is in use").to_string();
        assert!(text.contains(&device.path.display().to_string()), "{text}");
    }

    #[test]
    fn a_loop_device_of_the_device_is_seen() {
        let device = Loop::new(14 * MIB);
        let above = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(&device.path)
            .output();
        let above = String::from_utf8(above.expect("losetup runs").stdout).expect("text");
        let refused = run(&plain(), &device.path, true);
        let _ = Command::new("losetup").arg("-d").arg(above.trim()).status();
        let text = refused.expect_err("is in use").to_string();
        assert!(text.contains(above.trim()), "{text}");
    }

    #[test]
    fn a_device_that_is_set_read_only_is_called_so() {
        let device = Loop::new(14 * MIB);
        let set = Command::new("blockdev").arg("--setro").arg(&device.path).status();
        assert!(set.expect("blockdev runs").success());
        let refused = run(&plain(), &device.path, true);
        // Otherwise the next user of this number would find it read-only.
        let _ = Command::new("blockdev").arg("--setrw").arg(&device.path).status();
        let refused = refused.expect_err("is read-only");
        assert_eq!(refused.kind(), ErrorKind::ReadOnly);
        assert!(refused.to_string().contains("blockdev --setrw"), "{refused}");
    }

    #[test]
    fn a_mounted_device_and_its_file_stay_as_they_were() {
        let device = Loop::new(32 * MIB);
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.path).status();
        assert!(made.expect("mkfs.ext4 runs").success());
        let point = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount").arg(&device.path).arg(point.path()).status();
        assert!(mounted.expect("mount runs").success(), "mount needs root");
        let busy = run(&plain(), &device.path, true);
        let backing = run(&plain(), device._file.path(), true);
        let _ = Command::new("umount").arg(point.path()).status();
        let text = busy.expect_err("is mounted").to_string();
        assert!(text.contains(&point.path().display().to_string()), "{text}");
        assert!(matches!(backing, Err(Error::TargetInUse { .. })));
    }
}
