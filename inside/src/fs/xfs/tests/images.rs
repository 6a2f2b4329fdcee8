//! Images that mkfs.xfs made and the kernel filled, and the comparison of a reader's view with the kernel's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, SeekFrom, XattrFlags};

use crate::device::{Device, SharedDevice};
use crate::fs::compared::unmount;
use crate::fs::{FileKind, FileTree, Node, Xattr};

use super::super::{Xfs, open};

/// Runs a command to its end; panics with its output if it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("these tests need {program} (packages xfsprogs, mount): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{errors}");
    text
}

/// A file as a device.
struct OnFile(File, u64);

impl Device for OnFile {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.1
    }
}

/// An image in a temporary directory.
pub struct Image {
    pub dir: tempfile::TempDir,
}

impl Image {
    /// Makes an image of 320 MiB with a file system.
    pub fn new(args: &[&str]) -> Self {
        let image = Self {
            dir: tempfile::tempdir_in("/var/tmp").unwrap(),
        };
        File::create(image.path()).unwrap().set_len(320 << 20).unwrap();
        run(
            "mkfs.xfs",
            &[&["-q", "-f"], args, &[image.path().to_str().unwrap()]].concat(),
        );
        image
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn device(&self) -> SharedDevice {
        let file = File::open(self.path()).unwrap();
        let len = file.metadata().unwrap().len();
        Arc::new(OnFile(file, len))
    }

    pub fn open(&self) -> Arc<Xfs> {
        Arc::new(open(self.device()).unwrap())
    }

    pub fn mount(&self, options: &str) -> Mount {
        let at = self.dir.path().join("mnt");
        fs::create_dir_all(&at).unwrap();
        let image = self.path();
        run(
            "mount",
            &[
                "-o",
                &format!("loop,{options}"),
                "-t",
                "xfs",
                image.to_str().unwrap(),
                at.to_str().unwrap(),
            ],
        );
        Mount { at }
    }

    /// Copies the image as it is now, keeping its holes.
    pub fn copy(&self) -> Self {
        let copy = Self {
            dir: tempfile::tempdir_in("/var/tmp").unwrap(),
        };
        let (from, to) = (self.path(), copy.path());
        run("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
        copy
    }
}

/// A mounted image. Unmounted on drop.
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = unmount(&self.at);
        assert!(
            unmounted || std::thread::panicking(),
            "{} is still mounted",
            self.at.display()
        );
    }
}

/// Bytes that no run of zeros or repetition hides errors of.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sets an attribute of a node itself.
pub fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// An access control list in the form of setxattr(2): an owner, a named user, a group, a mask, others.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1234),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Writes a tree with every kind of object and every form that XFS stores it in.
pub fn populate(top: &Path) {
    populate_with(top, 5000);
}

/// As [`populate`], with `many` files in the largest directory.
pub fn populate_with(top: &Path, many: u32) {
    let mut deep = top.to_owned();
    for level in 0..40 {
        deep.push(format!("level {level}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "reached").unwrap();
    for (dir, count) in [("few", 5), ("block", 60), ("leaf", 700), ("many", many)] {
        let dir = top.join(dir);
        fs::create_dir(&dir).unwrap();
        for number in 0..count {
            File::create(dir.join(format!("file with the number {number}"))).unwrap();
        }
    }
    for number in (0..700).step_by(3) {
        fs::remove_file(top.join(format!("leaf/file with the number {number}"))).unwrap();
    }
    fs::write(top.join("empty"), "").unwrap();
    fs::write(top.join("noise"), noise(3_000_001, 5)).unwrap();
    fs::write(top.join("na\u{ef}ve \u{2713} \n"), "odd name").unwrap();
    fs::write(top.join("x".repeat(255)), "long name").unwrap();
    fs::hard_link(top.join("noise"), top.join("noise too")).unwrap();
    symlink("empty", top.join("short link")).unwrap();
    symlink("y/".repeat(300), top.join("long link")).unwrap();
    symlink("z".repeat(1023), top.join("longest link")).unwrap();
    for (name, kind) in [
        ("char", FileType::CharacterDevice),
        ("block device", FileType::BlockDevice),
        ("fifo", FileType::Fifo),
        ("socket", FileType::Socket),
    ] {
        let device = rustix::fs::makedev(259, 70_000);
        rustix::fs::mknodat(CWD, top.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    }
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(top.join("few"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::lchown(top.join("noise"), Some(70_001), Some(4_000_000_000)).unwrap();
    write_content(top);
    write_attributes(top);
    let old = fs::File::options().write(true).open(top.join("empty")).unwrap();
    let before = std::time::UNIX_EPOCH - std::time::Duration::new(86_399, 123_456_789);
    old.set_modified(before).unwrap();
}

fn write_content(top: &Path) {
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(&noise(70_000, 1), 5 << 30).unwrap();
    sparse.set_len(6 << 30).unwrap();
    let reserved = File::create(top.join("reserved")).unwrap();
    rustix::fs::fallocate(&reserved, rustix::fs::FallocateFlags::empty(), 0, 4 << 20).unwrap();
    reserved.write_all_at(&noise(70_000, 2), 1 << 20).unwrap();
    let beyond = File::create(top.join("beyond")).unwrap();
    beyond.write_all_at(&noise(20_000, 3), 0).unwrap();
    rustix::fs::fallocate(&beyond, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 4 << 20).unwrap();
    // Every second block: hundreds of extents, more than an inode and more than a block holds.
    let fragmented = File::create(top.join("fragmented")).unwrap();
    for number in 0..1200 {
        fragmented.write_all_at(&noise(4096, number), number * 8192).unwrap();
    }
    fragmented.sync_all().unwrap();
}

fn write_attributes(top: &Path) {
    set(&top.join("empty"), "user.small", b"value");
    set(&top.join("empty"), "user.nothing", b"");
    set(&top.join("empty"), "trusted.overlay.opaque", b"y");
    set(&top.join("empty"), "security.example", &noise(20, 9));
    set(&top.join("noise"), "user.large", &noise(65_536, 4));
    set(&top.join("noise"), "user.middle", &noise(2_000, 6));
    set(&top.join("short link"), "trusted.link", b"on a link");
    for number in 0..300 {
        set(
            &top.join("beyond"),
            &format!("user.number {number}"),
            &noise(200, number),
        );
    }
    set(&top.join("noise"), "system.posix_acl_access", &acl());
    set(&top.join("few"), "system.posix_acl_access", &acl());
    set(&top.join("few"), "system.posix_acl_default", &acl());
}

/// Shares the content of a file and changes a part of the copy.
pub fn reflink(top: &Path) {
    let original = File::open(top.join("noise")).unwrap();
    let copy = File::create(top.join("reflink")).unwrap();
    rustix::fs::ioctl_ficlone(&copy, &original).unwrap();
    copy.write_all_at(b"changed in the middle", 1_234_567).unwrap();
}

/// Compares all objects below the root; returns their number.
pub fn compare(xfs: &Arc<Xfs>, top: &Path) -> usize {
    let mut links = BTreeMap::new();
    compare_directory(xfs, xfs.root(), top, &mut links)
}

fn compare_directory(xfs: &Arc<Xfs>, node: Node, at: &Path, links: &mut BTreeMap<u64, Node>) -> usize {
    compare_node(xfs, node, at);
    let mut entries = BTreeMap::new();
    xfs.list(node, &mut |entry| {
        assert!(entries.insert(entry.name, (entry.node, entry.kind)).is_none());
        ControlFlow::Continue(())
    })
    .unwrap_or_else(|error| panic!("{at:?}: {error}"));
    let mut count = 0;
    for entry in fs::read_dir(at).unwrap() {
        let entry = entry.unwrap();
        let (child, kind) = entries
            .remove(entry.file_name().as_bytes())
            .unwrap_or_else(|| panic!("{:?} is missing", entry.path()));
        let stat = xfs
            .stat(child)
            .unwrap_or_else(|error| panic!("{:?}: {error}", entry.path()));
        assert!(kind.is_none_or(|kind| kind == stat.kind), "{:?}", entry.path());
        assert_eq!(*links.entry(entry.metadata().unwrap().ino()).or_insert(child), child);
        count += 1;
        if stat.kind == FileKind::Directory {
            count += compare_directory(xfs, child, &entry.path(), links);
        } else {
            compare_node(xfs, child, &entry.path());
        }
    }
    assert!(entries.is_empty(), "{at:?} has no {:?}", entries.keys());
    count
}

fn compare_node(xfs: &Arc<Xfs>, node: Node, at: &Path) {
    let stat = xfs.stat(node).unwrap();
    let real = fs::symlink_metadata(at).unwrap();
    let kind = real.file_type();
    let real_kind = match () {
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_file() => FileKind::File,
        () if kind.is_symlink() => FileKind::Link,
        () if kind.is_char_device() => FileKind::CharDevice,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_fifo() => FileKind::Fifo,
        () => FileKind::Socket,
    };
    assert_eq!(stat.kind, real_kind, "{at:?}");
    assert_eq!(u32::from(stat.mode), real.mode() & 0o7777, "{at:?}");
    assert_eq!((stat.uid, stat.gid), (real.uid(), real.gid()), "{at:?}");
    assert_eq!(
        (u64::from(stat.links), stat.size_bytes),
        (real.nlink(), real.size()),
        "{at:?}"
    );
    let device = (rustix::fs::major(real.rdev()), rustix::fs::minor(real.rdev()));
    assert_eq!(stat.device, device, "{at:?}");
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    assert_eq!(
        stat.modified.as_nanosecond(),
        time(real.mtime(), real.mtime_nsec()),
        "{at:?}"
    );
    assert_eq!(
        stat.changed.as_nanosecond(),
        time(real.ctime(), real.ctime_nsec()),
        "{at:?}"
    );
    let mut ours = xfs.xattrs(node).unwrap_or_else(|error| panic!("{at:?}: {error}"));
    ours.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(ours, real_xattrs(at), "{at:?}");
    match stat.kind {
        FileKind::Link => {
            let target = fs::read_link(at).unwrap();
            assert_eq!(xfs.read_link(node).unwrap(), target.as_os_str().as_bytes(), "{at:?}");
        }
        FileKind::File => compare_content(xfs, node, at),
        _ => {}
    }
}

fn real_xattrs(at: &Path) -> Vec<Xattr> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(at, &mut names[..]).unwrap();
    let mut xattrs: Vec<_> = names[..len]
        .split(|byte| *byte == 0)
        // The kernel shows the stored form of the lists of access rights as well.
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL"))
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(at, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(len);
            Xattr {
                name: name.to_vec(),
                value,
            }
        })
        .collect();
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    xattrs
}

fn compare_content(xfs: &Arc<Xfs>, node: Node, at: &Path) {
    let content = Arc::clone(xfs).open(node).unwrap();
    let real = File::open(at).unwrap();
    let size = real.metadata().unwrap().len();
    assert_eq!(content.size_bytes(), size);
    let mut at_bytes = 0;
    while let Some(data) = content.next_data(at_bytes).unwrap() {
        let hole = content.next_hole(data).unwrap();
        assert!(
            data < hole && hole <= size.next_multiple_of(65_536),
            "{at:?}: {data} {hole}"
        );
        let end = hole.min(size);
        // Between the runs of data, the kernel has zeros too.
        if data > at_bytes {
            let real_data = rustix::fs::seek(&real, SeekFrom::Data(at_bytes));
            assert!(
                real_data.is_err() || real_data.is_ok_and(|found| found >= data || is_zero(&real, found, data)),
                "{at:?}"
            );
        }
        compare_range(&*content, &real, data, end, at);
        at_bytes = end;
    }
    if size > 0 {
        let from = size.saturating_sub(100_000);
        compare_range(&*content, &real, from, size, at);
        compare_range(&*content, &real, 0, size.min(20_000), at);
    }
}

fn is_zero(real: &File, from: u64, to: u64) -> bool {
    let mut bytes = vec![1; (to - from).min(8 << 20) as usize];
    real.read_exact_at(&mut bytes, from).unwrap();
    bytes.iter().all(|byte| *byte == 0)
}

fn compare_range(content: &dyn Device, real: &File, from: u64, to: u64, at: &Path) {
    let mut position = from;
    while position < to {
        let len = (to - position).min(777_777) as usize;
        let (mut ours, mut theirs) = (vec![0xa5; len], vec![0x5a; len]);
        content
            .read_at(position, &mut ours)
            .unwrap_or_else(|error| panic!("{at:?}: {error}"));
        real.read_exact_at(&mut theirs, position).unwrap();
        assert!(ours == theirs, "{at:?} differs after {position}");
        position += len as u64;
    }
}

/// Appends to a file and makes that durable.
pub fn append_durably(path: &Path, bytes: &[u8]) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}
