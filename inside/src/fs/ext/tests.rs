//! File systems made by mke2fs (package e2fsprogs) and written by the kernel through a loop device. These tests need
//! root.

mod fast_commit;
mod hostile;
mod journal;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags, fallocate, lgetxattr,
    llistxattr, lsetxattr, makedev, mknodat, seek, utimensat,
};

use super::*;
use crate::device::Device;

/// Runs a tool of the system and returns what it printed.
fn run(program: &str, args: &[&OsStr]) -> String {
    let output = Command::new(program)
        .args(args)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An image, and a directory to mount it at.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// Makes a file system with the arguments of mke2fs.
    fn new(size_bytes: u64, mke2fs: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let image = Self { dir };
        File::create(image.path())
            .and_then(|file| file.set_len(size_bytes))
            .expect("a sparse file");
        fs::create_dir(image.mount_point()).expect("a directory");
        let path = image.path();
        let mut args: Vec<&OsStr> = ["-q", "-F"]
            .into_iter()
            .chain(mke2fs.split(' '))
            .map(OsStr::new)
            .collect();
        args.push(path.as_os_str());
        run("mke2fs", &args);
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn mount(&self, options: &str) -> Mounted {
        Mounted::new(&self.path(), &self.mount_point(), options)
    }

    fn file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.path())
            .expect("the image opens")
    }

    fn open(&self) -> Arc<Ext> {
        Arc::new(open(Arc::new(self.file())).expect("the file system opens"))
    }
}

/// A mounted image.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path, options: &str) -> Self {
        let options = format!("loop,{options}");
        let args = [
            OsStr::new("-o"),
            OsStr::new(&options),
            image.as_os_str(),
            at.as_os_str(),
        ];
        run("mount", &args);
        Self(at.to_owned())
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if crate::fs::compared::unmount(&self.0) {
            return;
        }
        let _ = Command::new("/bin/umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking(), "{:?} stays in use", self.0);
    }
}

/// Bytes that don't repeat.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(count);
    bytes
}

/// An access control list in the form of setxattr(2): owner, user 1000, group, group 70000, mask, others.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 6] = [
        (1, 7, !0),
        (2, 6, 1000),
        (4, 5, !0),
        (8, 4, 70000),
        (0x10, 7, !0),
        (0x20, 1, !0),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// cap_net_raw+ep, as `struct vfs_cap_data` of revision 2.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// Makes files of every kind. The names in `many` fill several blocks of a directory; the big file has `sparse_bytes`.
fn populate(root: &Path, many: usize, sparse_bytes: u64) {
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).expect("writes");
    write("empty", b"");
    write("tiny", b"tiny");
    write("sixty", &noise(60, 1));
    write("hundred", &noise(100, 2));
    write("page", &noise(4096, 3));
    write("content", &noise((3 << 20) + 17, 4));
    let mut deep = root.to_owned();
    for depth in 0..30 {
        deep.push(format!("level {depth}"));
        fs::create_dir(&deep).expect("a directory");
    }
    fs::write(deep.join("bottom"), b"bottom").expect("writes");
    fs::create_dir(root.join("many")).expect("a directory");
    for number in 0..many {
        let path = root.join(format!("many/a file with a number {number:05}"));
        let content = if number % 100 == 0 {
            vec![b'x'; number]
        } else {
            Vec::new()
        };
        fs::write(path, content).expect("writes");
    }
    // Removed names leave gaps in the blocks.
    for number in (0..many).step_by(7) {
        fs::remove_file(root.join(format!("many/a file with a number {number:05}"))).expect("removes");
    }
    fs::create_dir(root.join("few")).expect("a directory");
    for name in ["one", "two", "three"] {
        fs::write(root.join("few").join(name), name).expect("writes");
    }
    for name in ["few/hard", "hard"] {
        fs::hard_link(root.join("content"), root.join(name)).expect("links");
    }
    for length in [1, 59, 60, 61, 200, 1000] {
        symlink("x".repeat(length), root.join(format!("link {length}"))).expect("links");
    }
    fs::write(root.join("y".repeat(255)), b"long").expect("writes");
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe\x01 \xc3(")), b"not UTF-8").expect("writes");
    let devices = [
        ("null", FileType::CharacterDevice, 1, 3),
        ("disk", FileType::BlockDevice, 259, 1000),
        ("far", FileType::BlockDevice, 8, 70000),
        ("pipe", FileType::Fifo, 0, 0),
    ];
    for (name, kind, major, minor) in devices {
        let mode = Mode::from_raw_mode(0o640);
        mknodat(CWD, root.join(name), kind, mode, makedev(major, minor)).expect("makes a node");
    }
    let holes = File::create(root.join("holes")).expect("creates");
    holes.write_all_at(&noise(5000, 5), 0).expect("writes");
    holes.write_all_at(&noise(5000, 6), 1 << 20).expect("writes");
    holes.set_len(3 << 20).expect("extends");
    let sparse = File::create(root.join("sparse")).expect("creates");
    for (number, offset_bytes) in [70_000, sparse_bytes / 2 + 12345, sparse_bytes - 5000]
        .into_iter()
        .enumerate()
    {
        sparse
            .write_all_at(&noise(5000, 7 + number as u64), offset_bytes)
            .expect("writes");
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        lsetxattr(root.join(name), attribute, value, XattrFlags::empty()).expect("sets an attribute");
    };
    set("page", "user.comment", b"a comment");
    set("page", "user.empty", b"");
    set("content", "user.long", &noise(700, 11));
    set("content", "trusted.mine", b"\0\x01");
    set("tiny", "system.posix_acl_access", &acl());
    set("few", "system.posix_acl_default", &acl());
    set("few", "system.posix_acl_access", &acl());
    set("hundred", "security.capability", &capability());
    for (name, mode) in [("page", 0o4755), ("few", 0o1777), ("hundred", 0o2711), ("empty", 0)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("sets the mode");
    }
    std::os::unix::fs::lchown(root.join("sixty"), Some(70_000), Some(3_000_000_000)).expect("sets the owner");
    std::os::unix::fs::lchown(root.join("link 59"), Some(5), Some(6)).expect("sets the owner");
    for (name, seconds, nanoseconds) in [("sixty", 1, 999_999_999), ("content", 1_700_000_000, 1), ("many", 5, 0)] {
        set_time(&root.join(name), seconds, nanoseconds);
    }
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("sets the time");
}

/// Adds what only the kernel can write: a socket, times far away, blocks that are allocated but not written.
fn populate_by_kernel(root: &Path, has_extents: bool, has_wide_times: bool) {
    std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket");
    if has_wide_times {
        for (name, seconds) in [
            ("link 60", 5_000_000_000),
            ("sixty", 12_000_000_000),
            ("page", -2_000_000_000),
        ] {
            set_time(&root.join(name), seconds, 123_456_789);
        }
    }
    // Many extents: every second block.
    let file = File::create(root.join("fragments")).expect("creates");
    for number in 0..1000 {
        file.write_all_at(&noise(4096, number), number * 8192).expect("writes");
    }
    if has_extents {
        let file = File::create(root.join("unwritten")).expect("creates");
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 8 << 20).expect("allocates");
        file.write_all_at(&noise(10_000, 20), 1 << 20).expect("writes");
    }
}

/// Everything about a file that a test compares.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: FileKind,
    mode: u16,
    owner: (u32, u32),
    links: u32,
    size_bytes: u64,
    device: (u32, u32),
    times: [(i64, i32); 3],
    /// Inode, which hard links share.
    number: u64,
    link: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Offsets and checksums of what lies between the holes.
    data: Vec<(u64, u64, u32)>,
}

type Files = BTreeMap<Vec<u8>, Seen>;

/// Differences that are due to the way in which an image was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Against {
    /// The kernel's view of the same image: everything is equal.
    Kernel,
    /// The directory that mke2fs copied: numbers, holes, some times and the lengths of directories differ.
    Original,
}

/// Reads a directory through the kernel.
fn seen_by_kernel(root: &Path, against: Against) -> Files {
    let mut files = Files::new();
    let mut open = vec![(root.to_owned(), Vec::new())];
    while let Some((path, name)) = open.pop() {
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        let kind = metadata.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path).expect("a directory") {
                let entry = entry.expect("an entry").file_name();
                open.push((path.join(&entry), [&name, &b"/"[..], entry.as_bytes()].concat()));
            }
        }
        let seen = Seen {
            kind: match () {
                () if kind.is_file() => FileKind::File,
                () if kind.is_dir() => FileKind::Directory,
                () if kind.is_symlink() => FileKind::Link,
                () if kind.is_char_device() => FileKind::CharDevice,
                () if kind.is_block_device() => FileKind::BlockDevice,
                () if kind.is_fifo() => FileKind::Fifo,
                () => FileKind::Socket,
            },
            mode: (metadata.mode() & 0o7777) as u16,
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink() as u32,
            size_bytes: metadata.size(),
            device: match kind.is_char_device() || kind.is_block_device() {
                true => (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())),
                false => (0, 0),
            },
            times: [
                (metadata.mtime(), metadata.mtime_nsec() as i32),
                (metadata.ctime(), metadata.ctime_nsec() as i32),
                (metadata.atime(), metadata.atime_nsec() as i32),
            ],
            number: metadata.ino(),
            link: match kind.is_symlink() {
                true => fs::read_link(&path).expect("a link").into_os_string().into_vec(),
                false => Vec::new(),
            },
            xattrs: kernel_xattrs(&path),
            data: match kind.is_file() {
                true => data(&Seekable(File::open(&path).expect("opens")), against),
                false => Vec::new(),
            },
        };
        files.insert(name, seen.adjusted(against));
    }
    files
}

impl Seen {
    fn adjusted(mut self, against: Against) -> Self {
        if against == Against::Original {
            self.number = 0;
            // mke2fs copies seconds, and of the change time not the original's.
            self.times = [(self.times[0].0, 0), (0, 0), (0, 0)];
            if self.kind == FileKind::Directory {
                self.size_bytes = 0;
                // It writes entries after it has set the time.
                self.times[0] = (0, 0);
            }
        }
        self
    }
}

fn kernel_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..]).expect("lists attributes");
    let mut value = vec![0; 65536];
    let mut get = |name: &[u8]| {
        let length = lgetxattr(path, name, &mut value[..]).expect("an attribute");
        (name.to_vec(), value[..length].to_vec())
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(&mut get).collect()
}

/// A file whose holes the kernel finds.
struct Seekable(File);

impl Device for Seekable {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_exact_at(buf, offset_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.0.metadata().expect("metadata").len()
    }

    fn next_data(&self, offset_bytes: u64) -> std::io::Result<Option<u64>> {
        match seek(&self.0, SeekFrom::Data(offset_bytes)) {
            Ok(offset_bytes) => Ok(Some(offset_bytes)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset_bytes: u64) -> std::io::Result<u64> {
        Ok(seek(&self.0, SeekFrom::Hole(offset_bytes))?)
    }
}

/// Returns the parts of a file that are not holes, with their checksums. Against an original, the parts that are not
/// zero, whatever the holes are.
fn data(device: &dyn Device, against: Against) -> Vec<(u64, u64, u32)> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = device.next_data(at).expect("seeks") {
        let end = device.next_hole(start).expect("seeks");
        assert!(end > start);
        let mut bytes = vec![0; (end - start) as usize];
        device.read_at(start, &mut bytes).expect("reads");
        match against {
            Against::Kernel => parts.push((start, end, checksum::crc32c(0, &bytes))),
            Against::Original => {
                for (offset_bytes, sector) in (start..).step_by(512).zip(bytes.chunks(512)) {
                    if sector.iter().any(|byte| *byte != 0) {
                        parts.push((offset_bytes, 0, checksum::crc32c(0, sector)));
                    }
                }
            }
        }
        at = end;
    }
    parts
}

/// Reads all files through the reader.
fn seen_by_reader(tree: &Arc<Ext>, against: Against) -> Files {
    let mut files = Files::new();
    let mut open = vec![(tree.root(), Vec::new(), None)];
    while let Some((node, name, kind)) = open.pop() {
        let stat = tree
            .stat(node)
            .unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(&name)));
        assert!(kind.is_none_or(|kind| kind == stat.kind));
        let mut entries = 0;
        if stat.kind == FileKind::Directory {
            let listed = tree.list(node, &mut |entry| {
                entries += 1;
                open.push((entry.node, [&name, &b"/"[..], &entry.name].concat(), entry.kind));
                ControlFlow::Continue(())
            });
            listed.expect("lists");
        }
        let time = |time: jiff::Timestamp| {
            let nanoseconds = time.as_nanosecond();
            let seconds = nanoseconds.div_euclid(1_000_000_000);
            (seconds as i64, nanoseconds.rem_euclid(1_000_000_000) as i32)
        };
        let seen = Seen {
            kind: stat.kind,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            links: stat.links,
            size_bytes: stat.size_bytes,
            device: stat.device,
            times: [time(stat.modified), time(stat.changed), time(stat.accessed)],
            number: node.number,
            link: match stat.kind {
                FileKind::Link => tree.read_link(node).expect("a link"),
                _ => Vec::new(),
            },
            xattrs: tree
                .xattrs(node)
                .expect("attributes")
                .into_iter()
                .map(|it| (it.name, it.value))
                .collect(),
            data: match stat.kind {
                FileKind::File => data(Arc::clone(tree).open(node).expect("opens").as_ref(), against),
                _ => Vec::new(),
            },
        };
        files.insert(name, seen.adjusted(against));
    }
    files
}

/// Compares file by file: the whole maps would be an unreadable message.
fn assert_same(reader: &Files, other: &Files, what: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    for name in names(reader).iter().chain(&names(other)) {
        let (ours, theirs) = (reader.get(name), other.get(name));
        assert!(
            ours == theirs,
            "{what}: {}\n{ours:?}\n{theirs:?}",
            String::from_utf8_lossy(name)
        );
    }
}

/// File systems that the kernel fills, with the arguments of mke2fs.
const KINDS: [&str; 14] = [
    "-t ext2 -b 1024",
    "-t ext2 -b 4096 -r 0 -O none -I 128",
    "-t ext3 -b 4096",
    "-t ext3 -b 1024 -O dir_index",
    "-t ext4 -b 1024",
    "-t ext4 -b 4096",
    "-t ext4 -b 4096 -I 128",
    "-t ext4 -b 2048 -O ^64bit,^metadata_csum,uninit_bg",
    "-t ext4 -b 1024 -O ^metadata_csum,64bit",
    "-t ext4 -b 4096 -O inline_data -I 512",
    "-t ext4 -b 4096 -O bigalloc -C 65536",
    "-t ext4 -b 4096 -O metadata_csum_seed,sparse_super2,large_dir,stable_inodes",
    "-t ext4 -b 1024 -O meta_bg,^resize_inode,^flex_bg",
    "-t ext4 -b 4096 -O ea_inode,^filetype,fast_commit",
];

#[test]
fn every_file_is_as_the_kernel_shows_it() {
    for kind in KINDS {
        let image = Image::new(1 << 30, kind);
        {
            let mounted = image.mount("rw");
            let many = if kind == KINDS[5] { 5000 } else { 400 };
            // 1 KiB blocks of ext2 have three levels from 64 MiB on, those of 4 KiB from 4 GiB on.
            populate(mounted.path(), many, 5 << 30);
            populate_by_kernel(mounted.path(), kind.contains("ext4"), !kind.contains("-I 128"));
            if kind.contains("ea_inode") {
                let path = mounted.path().join("sixty");
                lsetxattr(path, "user.huge", &noise(60_000, 12), XattrFlags::empty()).expect("sets an attribute");
            }
        }
        let tree = image.open();
        assert_eq!(tree.remarks(), [""; 0], "{kind}");
        let mounted = image.mount("ro");
        let ours = seen_by_reader(&tree, Against::Kernel);
        assert!(ours.len() > 350);
        assert_same(&ours, &seen_by_kernel(mounted.path(), Against::Kernel), kind);
    }
}

#[test]
fn every_file_is_as_mke2fs_copied_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("source");
    fs::create_dir(&source).expect("a directory");
    populate(&source, 2000, 5 << 30);
    let mut theirs = seen_by_kernel(&source, Against::Original);
    // The kernel on a common machine has no blocks of 64 KiB.
    for kind in [
        "-t ext2 -b 1024",
        "-t ext4 -b 1024 -O ea_inode",
        "-t ext4 -b 65536 -O dir_index",
        "-t ext4 -b 4096 -O bigalloc,casefold,encrypt,verity",
    ] {
        let image = Image::new(1 << 30, &format!("{kind} -d {}", source.to_str().expect("a path")));
        for is_optimised in [false, true] {
            if is_optimised {
                // Makes the index of the large directory.
                let args = ["-f", "-y", "-D"].map(OsStr::new);
                let path = image.path();
                let args: Vec<&OsStr> = args.into_iter().chain([path.as_os_str()]).collect();
                let status = Command::new("/sbin/e2fsck")
                    .args(args)
                    .output()
                    .expect("this test needs e2fsck")
                    .status;
                assert!(status.code().is_some_and(|code| code <= 1), "{status}");
            }
            let mut ours = seen_by_reader(&image.open(), Against::Original);
            let found = ours.remove(&b"/lost+found"[..]).expect("mke2fs makes it");
            assert_eq!(found.kind, FileKind::Directory);
            // The directory lost+found is a link to its parent.
            for files in [&mut ours, &mut theirs] {
                files.get_mut(&b""[..]).expect("the top").links = 0;
                files.get_mut(&b""[..]).expect("the top").mode = 0;
            }
            assert_same(&ours, &theirs, kind);
        }
    }
}

/// Counts the reads of a device, and remembers the longest.
struct Counting {
    file: File,
    reads: std::sync::atomic::AtomicUsize,
    longest: std::sync::atomic::AtomicUsize,
}

impl Device for Counting {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        self.reads.fetch_add(1, Relaxed);
        self.longest.fetch_max(buf.len(), Relaxed);
        self.file.read_exact_at(buf, offset_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }
}

#[test]
fn adjacent_content_is_read_at_once() {
    use std::sync::atomic::Ordering::Relaxed;
    for kind in ["-t ext4 -b 4096", "-t ext3 -b 4096"] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("content"), noise(8 << 20, 1)).expect("writes");
        let image = Image::new(64 << 20, &format!("{kind} -d {}", dir.path().to_str().expect("a path")));
        let device = Arc::new(Counting {
            file: image.file(),
            reads: Default::default(),
            longest: Default::default(),
        });
        let tree = Arc::new(open(device.clone()).expect("opens"));
        let file = tree.lookup(tree.root(), b"content").expect("the file");
        let file = Arc::clone(&tree).open(file).expect("opens");
        let mut bytes = vec![0; 1 << 20];
        file.read_at(0, &mut bytes).expect("reads");
        let before = device.reads.load(Relaxed);
        for mib in 0..8 {
            file.read_at(mib << 20, &mut bytes).expect("reads");
        }
        let reads = device.reads.load(Relaxed) - before;
        // ext3 has a block of numbers between 4 MiB and the next.
        let most = if kind.contains("ext4") { 8 } else { 8 + 6 };
        assert!(reads <= most, "{kind}: {reads} reads");
        assert_eq!(device.longest.load(Relaxed), 1 << 20);
    }
}

#[test]
fn a_destroyed_superblock_is_replaced_by_its_copy() {
    for (kind, block) in [
        ("-t ext2 -b 1024", 8193),
        ("-t ext3 -b 2048", 16384),
        ("-t ext4 -b 4096", 32768),
        ("-t ext4 -b 4096 -O bigalloc -C 16384", 131072),
        ("-t ext4 -b 4096 -O sparse_super2", 32768),
        ("-t ext4 -b 1024 -O meta_bg,^resize_inode", 8193),
        ("-t ext4 -b 65536", 65528),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("content"), b"here").expect("writes");
        let arguments = format!("{kind} -U 6b1a2c3d-0001-4002-8003-123456789abc -L some_label -d");
        let image = Image::new(
            8 << 30,
            &format!("{arguments} {}", dir.path().to_str().expect("a path")),
        );
        let intact = image.open();
        let file = image.file();
        let found = backup_superblock(&file).expect("reads").expect("a copy");
        assert_eq!(found.block, block, "{kind}");
        assert_eq!(found.offset_bytes, block * u64::from(found.block_size_bytes));
        // The superblock and the group descriptors.
        file.write_all_at(&[0; 8192], 0).expect("writes");
        assert_eq!(backup_superblock(&file).expect("reads"), Some(found));
        let tree = image.open();
        assert_eq!(
            tree.remarks(),
            [format!(
                "the superblock is damaged; opened by the copy at block {block}"
            )],
            "{kind}"
        );
        assert_eq!(tree.identity(), intact.identity());
        assert_eq!(
            tree.identity().uuid.as_deref(),
            Some("6b1a2c3d-0001-4002-8003-123456789abc")
        );
        assert_eq!(tree.identity().label.as_deref(), Some("some_label"));
        assert_same(
            &seen_by_reader(&tree, Against::Kernel),
            &seen_by_reader(&intact, Against::Kernel),
            kind,
        );
    }
}

#[test]
fn the_index_of_a_directory_leads_to_every_name() {
    for (kind, hash, flags) in [
        ("-t ext4 -b 1024", "half_md4", 1),
        ("-t ext4 -b 4096", "tea", 1),
        ("-t ext3 -b 1024", "legacy", 1),
        ("-t ext4 -b 1024", "half_md4", 2),
        ("-t ext4 -b 1024", "tea", 2),
        ("-t ext4 -b 1024", "legacy", 2),
    ] {
        let image = Image::new(128 << 20, kind);
        let path = image.path();
        for value in [format!("ssv def_hash_version {hash}"), format!("ssv flags {flags}")] {
            let args = ["-w", "-R", &value].map(OsStr::new);
            let args: Vec<&OsStr> = args.into_iter().chain([path.as_os_str()]).collect();
            run("debugfs", &args);
        }
        let names: Vec<Vec<u8>> = (0..3000_u64)
            .map(|number| {
                let mut name = noise(1 + (number % 90) as usize, number);
                name.iter_mut().for_each(|byte| *byte |= 0x41);
                [&name, number.to_string().as_bytes()].concat()
            })
            .collect();
        {
            let mounted = image.mount("rw");
            let first = mounted.path().join("first");
            File::create(&first).expect("creates");
            for name in &names {
                fs::hard_link(&first, mounted.path().join(OsStr::from_bytes(name))).expect("links");
            }
        }
        let tree = image.open();
        let root = Blocks::new(Inode::read(&tree.volume, inode::ROOT).expect("the top"));
        let first = tree.lookup(tree.root(), b"first").expect("a name");
        for name in &names {
            assert_eq!(tree.lookup(tree.root(), name).expect("a name"), first);
            let mut found = false;
            let blocks = directory::index::blocks_of(&tree.volume, &root, name);
            assert!(matches!(blocks.len(), 1 | 2), "{kind} {hash} {flags}");
            for number in blocks {
                let run = root.run(&tree.volume, number).expect("a run");
                let block = tree
                    .volume
                    .block(run.block.expect("data") + number - run.first)
                    .expect("reads");
                found |= block.windows(name.len()).any(|window| window == name);
            }
            assert!(found, "{kind} {hash} {flags}");
        }
        assert!(matches!(tree.lookup(tree.root(), b"none"), Err(Error::NotFound)));
    }
}
