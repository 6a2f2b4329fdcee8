use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Instant;

use super::*;
use crate::disk::buffer::AlignedBuffer;
use crate::host::program::Programs;

/// Held by tests that move this process: it is in one group, and they compare it with its earlier one.
static MOVING: Mutex<()> = Mutex::new(());

fn moving() -> MutexGuard<'static, ()> {
    MOVING.lock()
}

/// A loop device over a file of random-looking bytes; needs root.
struct Loop {
    node: PathBuf,
    _file: tempfile::NamedTempFile,
}

const SIZE_BYTES: usize = 16 << 20;

impl Loop {
    fn new() -> Self {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).expect("a file");
        file.write_all(&vec![0xA5; SIZE_BYTES]).expect("writes");
        let path = file.path().to_str().expect("UTF-8");
        let node = Programs::system()
            .run("losetup", &["--find", "--show", path], Duration::from_secs(20))
            .expect("root, losetup and loop devices are there");
        Self {
            node: node.trim_end().into(),
            _file: file,
        }
    }

    fn number(&self) -> DeviceNumber {
        DeviceNumber::of_block_device(&self.node).expect("a block device")
    }

    /// Reads this many bytes past the page cache.
    fn read(&self, len: usize) -> Duration {
        use std::os::unix::fs::FileExt;
        let mut options = File::options();
        options.read(true).custom_flags(nix::fcntl::OFlag::O_DIRECT.bits());
        let device = options.open(&self.node).expect("opens");
        let mut buffer = AlignedBuffer::new(1 << 20);
        let clock = Instant::now();
        for at in (0..len).step_by(1 << 20) {
            device.read_exact_at(buffer.as_mut_slice(), at as u64).expect("reads");
        }
        clock.elapsed()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.node).status();
    }
}

fn groups_of_this_process() -> Vec<PathBuf> {
    let layout = Layout::of_this_process();
    let name = format!("{PREFIX}{}", std::process::id());
    let parents = [layout.unified, layout.blkio].into_iter().flatten();
    parents
        .map(|parent| parent.join(&name))
        .filter(|path| path.exists())
        .collect()
}

#[test]
fn the_kernel_limits_a_device_and_the_group_is_removed() {
    let _moving = moving();
    let (limited, other) = (Loop::new(), Loop::new());
    let before = Layout::of_this_process();
    let rate = 4 << 20;
    let limit = match KernelLimit::begin(limited.number(), rate) {
        Ok(limit) => limit,
        Err(refusal) => {
            // A refusal must have a visible reason, and nothing may have changed.
            assert!(before.blkio.is_none(), "cgroup v1 is there, but: {refusal}");
            assert_eq!(Layout::of_this_process(), before);
            return;
        }
    };
    assert_ne!(Layout::of_this_process(), before, "it is in a group of its own");
    // A second limit of this process uses the same group.
    let second = KernelLimit::begin(other.number(), 1 << 40).expect("a second one");
    // 8 MiB at 4.4 MiB/s take 1.8 s; the kernel lets a part of a second through at once.
    let took = limited.read(8 << 20);
    assert!(took > Duration::from_secs(1), "{took:?}");
    limit.set(1 << 40).expect("changes");
    let free = limited.read(SIZE_BYTES);
    assert!(
        free < took,
        "{free:?} for twice as much without a limit, {took:?} with one"
    );
    drop(limit);
    assert_ne!(Layout::of_this_process(), before);
    drop(second);
    assert_eq!(Layout::of_this_process(), before);
    assert_eq!(groups_of_this_process(), Vec::<PathBuf>::new());
}

#[test]
fn a_missing_device_is_refused_and_the_group_is_removed() {
    let _moving = moving();
    let before = Layout::of_this_process();
    // The highest minor number (MINORBITS is 20) of a major number that no device has.
    let device = DeviceNumber::parse("4000:1048575").expect("a number");
    let refusal = KernelLimit::begin(device, 1 << 20).expect_err("is refused").to_string();
    assert!(!refusal.is_empty());
    assert_eq!(Layout::of_this_process(), before);
    assert_eq!(groups_of_this_process(), Vec::<PathBuf>::new());
}

#[test]
fn only_groups_of_killed_runs_are_removed() {
    let parent = tempfile::tempdir().expect("a directory");
    // No process has the number 4194305: the kernel's highest is 4194304 (PID_MAX_LIMIT).
    let dead = parent.path().join("vbk-4194305");
    let alive = parent.path().join(format!("vbk-{}", std::process::id()));
    let foreign = parent.path().join("vbk-web");
    for group in [&dead, &alive, &foreign] {
        fs::create_dir(group).expect("makes");
    }
    remove_left_behind(parent.path());
    assert!(!dead.exists() && alive.exists() && foreign.exists());
}

#[test]
fn the_own_control_group_is_found_in_every_hierarchy() {
    let mixed = "9:name=systemd:/\n7:blkio:/\n4:memory:/x\n0::/\n";
    let mounts = "\
        30 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:27 / /sys/fs/cgroup/blkio rw,relatime shared:9 - cgroup cgroup rw,blkio\n\
        33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
    let layout = Layout::parse(mixed, &table(mounts));
    assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(layout.blkio.as_deref(), Some(Path::new("/sys/fs/cgroup/blkio")));

    let unit = "0::/system.slice/vbk.service\n";
    let mount = "33 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let path = Path::new("/sys/fs/cgroup/system.slice/vbk.service");
    assert_eq!(Layout::parse(unit, &table(mount)).unified.as_deref(), Some(path));

    // A container that sees its own part of the hierarchy, one that sees another's, and no mount at all.
    let part = "33 30 0:28 /system.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let path = Path::new("/sys/fs/cgroup/vbk.service");
    assert_eq!(Layout::parse(unit, &table(part)).unified.as_deref(), Some(path));
    let others = "33 30 0:28 /user.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    assert_eq!(Layout::parse(unit, &table(others)), Layout::default());
    assert_eq!(Layout::parse("0::/../x\n", &table(mount)), Layout::default());
    assert_eq!(Layout::parse(unit, &table("")), Layout::default());
}

#[test]
fn a_delegated_group_with_other_processes_or_without_the_controller_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let put = |file: &str, text: &str| fs::write(directory.path().join(file), text).expect("writes");
    let refused = || Group::enter_v2(directory.path()).expect_err("is refused").to_string();
    put("cgroup.type", "domain\n");
    put("cgroup.controllers", "cpu memory pids\n");
    put("cgroup.procs", &format!("{}\n", std::process::id()));
    assert!(refused().contains("Delegate=io"), "{}", refused());
    put("cgroup.controllers", "cpu io memory pids\n");
    put("cgroup.procs", &format!("{}\n1\n", std::process::id()));
    assert!(refused().contains("other processes"), "{}", refused());
    assert!(
        fs::read_dir(directory.path())
            .expect("lists")
            .flatten()
            .all(|entry| entry.path().is_file())
    );
}

#[test]
fn only_child_processes_count_as_ours() {
    let mut child = Command::new("sleep").arg("30").spawn().expect("starts");
    assert!(is_ours(child.id()) && is_ours(std::process::id()));
    assert!(!is_ours(1) && !is_ours(4_194_305));
    child.kill().and_then(|()| child.wait()).expect("ends");
}

fn table(text: &str) -> Vec<Mount> {
    mounts::parse(text.as_bytes())
}
