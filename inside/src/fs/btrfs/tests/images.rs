//! File systems for the tests, and the comparison with what the kernel shows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, SeekFrom, XattrFlags};

use crate::device::{Device, SharedDevice};
use crate::fs::btrfs::{Btrfs, open};
use crate::fs::compared::unmount;
use crate::fs::{Entry, FileKind, FileTree, Node};

const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The devices of a new file system, each in a sparse file.
pub(super) struct Image {
    dir: tempfile::TempDir,
    pub(super) paths: Vec<PathBuf>,
}

impl Image {
    pub(super) fn new(count: usize, size_bytes: u64, args: &[&str]) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let paths: Vec<PathBuf> = (0..count)
            .map(|number| dir.path().join(format!("disk{number}")))
            .collect();
        for path in &paths {
            File::create(path).unwrap().set_len(size_bytes).unwrap();
        }
        let files = paths.iter().map(|path| path.to_str().unwrap());
        let args: Vec<&str> = ["-q", "-f"]
            .into_iter()
            .chain(args.iter().copied())
            .chain(files)
            .collect();
        run("mkfs.btrfs", &args);
        Self { dir, paths }
    }

    /// Copies the devices as they are.
    pub(super) fn copy(&self) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut paths = Vec::new();
        for path in &self.paths {
            let copy = dir.path().join(path.file_name().unwrap());
            run(
                "cp",
                &["--sparse=always", path.to_str().unwrap(), copy.to_str().unwrap()],
            );
            paths.push(copy);
        }
        Self { dir, paths }
    }

    pub(super) fn uuid(&self) -> String {
        let text = run(
            "btrfs",
            &["inspect-internal", "dump-super", self.paths[0].to_str().unwrap()],
        );
        let line = text.lines().find_map(|line| line.strip_prefix("fsid")).unwrap();
        line.trim().to_owned()
    }

    pub(super) fn file(&self, number: usize) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&self.paths[number])
            .unwrap()
    }

    pub(super) fn devices(&self) -> Vec<SharedDevice> {
        (0..self.paths.len())
            .map(|number| Arc::new(self.file(number)) as SharedDevice)
            .collect()
    }

    pub(super) fn open(&self) -> Arc<Btrfs> {
        Arc::new(open(self.devices()).unwrap())
    }

    pub(super) fn mount(&self, options: &str) -> Mount {
        let mut mount = Mount {
            loops: Vec::new(),
            point: self.dir.path().join("mount"),
            mounted: false,
        };
        for path in &self.paths {
            mount.attach(path);
        }
        fs::create_dir_all(&mount.point).unwrap();
        // Only these devices, so that no other test's are used.
        let devices: Vec<String> = mount.loops.iter().map(|device| format!("device={device}")).collect();
        let options = format!("{options},{}", devices.join(","));
        let point = mount.point.to_str().unwrap();
        run("mount", &["-t", "btrfs", "-o", &options, &mount.loops[0], point]);
        mount.mounted = true;
        mount
    }
}

/// A mounted file system.
pub(super) struct Mount {
    loops: Vec<String>,
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    pub(super) fn path(&self) -> &Path {
        &self.point
    }

    /// Attaches another device, and returns its path.
    pub(super) fn attach(&mut self, path: &Path) -> String {
        let device = run("losetup", &["--find", "--show", path.to_str().unwrap()]);
        self.loops.push(device.clone());
        device
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).env("PATH", PATH).output();
            output.is_ok_and(|output| output.status.success())
        };
        let unmounted = !self.mounted || unmount(&self.point);
        for device in &self.loops {
            run("btrfs", &["device", "scan", "--forget", device]);
            run("losetup", &["--detach", device]);
        }
        assert!(
            unmounted || std::thread::panicking(),
            "{} is still mounted",
            self.point.display()
        );
    }
}

/// Bytes that do not compress.
pub(super) fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Bytes that compress, with matches near and far.
pub(super) fn text(len: usize, seed: u64) -> Vec<u8> {
    let words = random(4096, seed);
    let mut out = Vec::with_capacity(len + 64);
    let mut at = 0;
    while out.len() < len {
        let from = usize::from(words[at % 4096]) * 13 % 4000;
        let count = usize::from(words[(at + 1) % 4096]) % 60 + 1;
        out.extend(&words[from..(from + count).min(4096)]);
        if words[(at + 2) % 4096] < 8 {
            out.extend(vec![b' '; 700]);
        }
        at += 3;
    }
    out.truncate(len);
    out
}

/// Makes files of every kind in an empty directory.
pub(super) fn populate(top: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(top.join(name), bytes).unwrap();
    write("empty", b"");
    for len in [
        1, 100, 2000, 2048, 2049, 3900, 4095, 4096, 4097, 131_071, 131_072, 131_073, 300_000,
    ] {
        write(&format!("text {len}"), &text(len, len as u64));
        write(&format!("random {len}"), &random(len, len as u64));
        write(&format!("zeros {len}"), &vec![0; len]);
    }
    write("random", &random(3 << 20, 5));
    write("text", &text(3 << 20, 6));
    for number in 0..60 {
        write(&format!("small {number}"), &text(number * 50, number as u64));
    }
    let file = File::create(top.join("sparse")).unwrap();
    for (at, len) in [(0, 5000), (100_000, 1), (1 << 20, 70_000), ((1 << 20) + 300_000, 4096)] {
        file.write_all_at(&text(len, at), at).unwrap();
    }
    file.set_len(9_000_000).unwrap();
    let file = File::create(top.join("rewritten")).unwrap();
    file.write_all_at(&text(500_000, 9), 0).unwrap();
    file.sync_all().unwrap();
    for at in [10, 4096, 99_999, 131_000, 400_000] {
        file.write_all_at(&text(3000, at), at).unwrap();
    }
    file.sync_all().unwrap();
    file.set_len(450_001).unwrap();
    let file = File::create(top.join("grown")).unwrap();
    file.write_all_at(b"inline at first", 0).unwrap();
    file.sync_all().unwrap();
    file.set_len(3000).unwrap();
    file.sync_all().unwrap();

    fs::create_dir_all(top.join("a/b/c")).unwrap();
    fs::write(top.join("a/b/c/file"), "deep").unwrap();
    fs::create_dir(top.join("a/empty")).unwrap();
    fs::hard_link(top.join("text"), top.join("a/hard link")).unwrap();
    for number in 0..40 {
        fs::hard_link(
            top.join("random 1"),
            top.join(format!("a/b/{number}{}", "x".repeat(200))),
        )
        .unwrap();
    }
    symlink("a/b/c/file", top.join("link")).unwrap();
    symlink("x".repeat(3000), top.join("long link")).unwrap();
    fs::write(top.join("x".repeat(255)), "longest name").unwrap();
    fs::write(top.join(OsStr::from_bytes(b"not \xff UTF-8\n")), "name").unwrap();
    for (name, kind, major, minor) in [
        ("char", FileType::CharacterDevice, 5, 200),
        ("block", FileType::BlockDevice, 259, 70_000),
        ("fifo", FileType::Fifo, 0, 0),
        ("socket", FileType::Socket, 0, 0),
    ] {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, top.join(name), kind, Mode::from(0o640), device).unwrap();
    }
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o6751)).unwrap();
    std::os::unix::fs::chown(top.join("empty"), Some(70_000), Some(4_000_000_000)).unwrap();
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(top.join("a/empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    for (name, seconds) in [("text 1", -1_000_000_001), ("text 100", 8_000_000_000)] {
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: 123_456_789,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, top.join(name), &times, flags).unwrap();
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(top.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("text 100", "user.short", b"value");
    set("text 100", "user.empty", b"");
    set("text 100", "user.long", &random(3000, 3));
    set("text 100", "security.some", b"\x00\x01");
    set("text 100", "trusted.some", b"hidden");
    set("a", "user.directory", b"too");
    set("link", "trusted.link", b"of a link");
    // linux/posix_acl_xattr.h: version 2; user, user 1000, group, mask, other.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 7, 1000),
        (4, 4, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    set("text 2000", "system.posix_acl_access", &acl);
    set("a", "system.posix_acl_default", &acl);
    fs::write(top.join("a/inherits"), "an ACL").unwrap();
}

/// Compares all below the top with what the kernel shows; returns the number of entries.
pub(super) fn compare(fs: &Arc<Btrfs>, top: &Path) -> usize {
    compare_node(fs, fs.root(), top, true);
    compare_directory(fs, fs.root(), top, true)
}

/// Compares all but the times, which the kernel changes when it replays a log.
pub(super) fn compare_without_times(fs: &Arc<Btrfs>, top: &Path) -> usize {
    compare_node(fs, fs.root(), top, false);
    compare_directory(fs, fs.root(), top, false)
}

fn entries(fs: &Btrfs, node: Node) -> BTreeMap<Vec<u8>, Entry> {
    let mut entries = BTreeMap::new();
    fs.list(node, &mut |entry| {
        assert!(entries.insert(entry.name.clone(), entry).is_none());
        ControlFlow::Continue(())
    })
    .unwrap();
    entries
}

fn compare_directory(fs: &Arc<Btrfs>, node: Node, path: &Path, times: bool) -> usize {
    let ours = entries(fs, node);
    let mut names: Vec<Vec<u8>> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    names.sort();
    assert_eq!(ours.keys().cloned().collect::<Vec<_>>(), names, "{path:?}");
    let mut count = names.len();
    for (name, entry) in ours {
        let path = path.join(OsStr::from_bytes(&name));
        assert_eq!(fs.lookup(node, &name).unwrap(), entry.node, "{path:?}");
        let kind = compare_node(fs, entry.node, &path, times);
        assert_eq!(entry.kind, Some(kind), "{path:?}");
        if kind == FileKind::Directory {
            count += compare_directory(fs, entry.node, &path, times);
        }
    }
    count
}

fn compare_node(fs: &Arc<Btrfs>, node: Node, path: &Path, times: bool) -> FileKind {
    let theirs = fs::symlink_metadata(path).unwrap();
    let ours = fs.stat(node).unwrap();
    let device = match ours.kind {
        FileKind::CharDevice | FileKind::BlockDevice => theirs.rdev(),
        _ => 0,
    };
    let kind = match theirs.mode() & 0o170000 {
        0o100000 => FileKind::File,
        0o040000 => FileKind::Directory,
        0o120000 => FileKind::Link,
        0o020000 => FileKind::CharDevice,
        0o060000 => FileKind::BlockDevice,
        0o010000 => FileKind::Fifo,
        _ => FileKind::Socket,
    };
    assert_eq!(ours.kind, kind, "{path:?}");
    let stub = theirs.ino() == 2;
    assert_eq!(u32::from(ours.mode), theirs.mode() & 0o7777, "{path:?}");
    assert_eq!((ours.uid, ours.gid), (theirs.uid(), theirs.gid()), "{path:?}");
    assert_eq!(u64::from(ours.links), theirs.nlink(), "{path:?}");
    assert_eq!(ours.size_bytes, theirs.size(), "{path:?}");
    assert_eq!(
        ours.device,
        (rustix::fs::major(device), rustix::fs::minor(device)),
        "{path:?}"
    );
    if !stub {
        assert_eq!(node.number, theirs.ino(), "{path:?}");
    }
    if !stub && times {
        let time = |time: jiff::Timestamp| {
            (
                time.as_nanosecond().div_euclid(1_000_000_000) as i64,
                time.as_nanosecond().rem_euclid(1_000_000_000) as i64,
            )
        };
        assert_eq!(time(ours.modified), (theirs.mtime(), theirs.mtime_nsec()), "{path:?}");
        assert_eq!(time(ours.changed), (theirs.ctime(), theirs.ctime_nsec()), "{path:?}");
        assert_eq!(time(ours.accessed), (theirs.atime(), theirs.atime_nsec()), "{path:?}");
    }
    compare_attributes(fs, node, path);
    match kind {
        FileKind::Link => {
            let target = fs::read_link(path).unwrap().into_os_string().into_vec();
            assert_eq!(fs.read_link(node).unwrap(), target, "{path:?}");
        }
        FileKind::File => compare_content(Arc::clone(fs).open(node).unwrap().as_ref(), path),
        _ => {}
    }
    kind
}

fn compare_attributes(fs: &Btrfs, node: Node, path: &Path) {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let mut theirs = BTreeMap::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
        value.truncate(len);
        theirs.insert(name.to_vec(), value);
    }
    let ours: BTreeMap<_, _> = fs
        .xattrs(node)
        .unwrap()
        .into_iter()
        .map(|it| (it.name, it.value))
        .collect();
    assert_eq!(ours, theirs, "{path:?}");
}

/// Returns the ends of data and holes, alternately.
fn edges(mut next: impl FnMut(u64, bool) -> Option<u64>, size_bytes: u64) -> Vec<u64> {
    let (mut edges, mut at) = (Vec::new(), 0);
    while at < size_bytes {
        let Some(data) = next(at, true) else { break };
        let hole = next(data, false).unwrap();
        edges.extend([data, hole]);
        at = hole;
    }
    edges
}

fn compare_content(ours: &dyn Device, path: &Path) {
    let file = File::open(path).unwrap();
    let size_bytes = ours.size_bytes();
    let theirs = edges(
        |at, data| {
            let from = if data { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
            match rustix::fs::seek(&file, from) {
                Ok(found) => Some(found),
                Err(rustix::io::Errno::NXIO) => None,
                Err(error) => panic!("{path:?}: {error}"),
            }
        },
        size_bytes,
    );
    let edges = edges(
        |at, data| match data {
            true => ours.next_data(at).unwrap(),
            false => Some(ours.next_hole(at).unwrap()),
        },
        size_bytes,
    );
    assert_eq!(edges, theirs, "{path:?}");
    let same = |start: u64, len: usize| {
        let (mut a, mut b) = (vec![1; len], vec![2; len]);
        ours.read_at(start, &mut a)
            .unwrap_or_else(|error| panic!("{path:?} at {start}: {error}"));
        file.read_exact_at(&mut b, start).unwrap();
        let differs = a.iter().zip(&b).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{path:?} at {start}, {len} bytes");
    };
    for range in edges.chunks(2) {
        let (mut at, end) = (range[0], range[1]);
        while at < end {
            let len = (end - at).min(3 << 20) as usize;
            same(at, len);
            at += len as u64;
        }
    }
    // Small pieces at odd offsets, across the edges of extents and holes.
    for point in edges.iter().flat_map(|edge| [*edge, edge.saturating_sub(5000)]) {
        for (before, len) in [(1, 2), (777, 1500), (5000, 10_001)] {
            let start = point.saturating_sub(before);
            let len = (len as u64).min(size_bytes.saturating_sub(start)) as usize;
            same(start, len);
        }
    }
}
