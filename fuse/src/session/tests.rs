//! Files that are read in user space, through a real mount. The tests need root and FUSE, and fail without them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use vbk_inside::device::SharedDevice;
use vbk_inside::fs::{Entry, FileKind, FileTree, Identity, Node, Stat};
use vbk_inside::volumes::NamedTree;

use super::*;
use crate::sys;

const FILES: u64 = 5000;
/// Attributes of this file can't be read.
const DAMAGED: u64 = 4321;
const TOP: u64 = u64::MAX;

/// A directory of files, each of as many bytes as its number says.
#[derive(Default)]
struct Many {
    opened: AtomicUsize,
}

fn node(number: u64) -> Node {
    Node { space: 0, number }
}

impl FileTree for Many {
    fn root(&self) -> Node {
        node(TOP)
    }

    fn identity(&self) -> Identity {
        Identity::default()
    }

    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    fn stat(&self, node: Node) -> vbk_inside::Result<Stat> {
        let stat = Stat::of_directory(Timestamp::UNIX_EPOCH);
        match node.number {
            TOP => Ok(stat),
            DAMAGED => Err(vbk_inside::Error::Damaged("an inode of a test".into())),
            number => Ok(Stat {
                kind: FileKind::File,
                mode: 0o640,
                uid: 1234,
                size_bytes: number,
                ..stat
            }),
        }
    }

    fn list(&self, _: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> vbk_inside::Result<()> {
        for number in 0..FILES {
            let entry = Entry {
                name: format!("file {number}").into_bytes(),
                node: node(number),
                kind: Some(FileKind::File),
            };
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, _: Node) -> vbk_inside::Result<Vec<u8>> {
        Err(vbk_inside::Error::NotFound)
    }

    fn open(self: Arc<Self>, node: Node) -> vbk_inside::Result<SharedDevice> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(vec![node.number as u8; node.number as usize]))
    }
}

/// A mount that a failed test does not leave behind.
struct Mounted {
    dir: tempfile::TempDir,
    tree: Arc<FileFs>,
    many: Arc<Many>,
    session: Session,
}

impl Mounted {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("creates");
        let many = Arc::new(Many::default());
        let named = NamedTree {
            name: "many".into(),
            fs: "test".into(),
            size_bytes: 0,
            names: Vec::new(),
            tree: many.clone(),
        };
        let tree = Arc::new(FileFs::of_tree(named, Timestamp::UNIX_EPOCH));
        let options = SessionOptions {
            allow_other: false,
            threads: 2,
        };
        let session = Session::mount_files(Arc::clone(&tree), ReadResources::new(1), dir.path(), options);
        Self {
            session: session.expect("mounts"),
            dir,
            tree,
            many,
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = sys::unmount(self.dir.path(), true);
        self.session.wait();
    }
}

#[test]
fn a_large_directory_is_listed_with_attributes_and_forgotten() {
    let mounted = Mounted::new();
    let mut some = fs::read_dir(mounted.path()).expect("opens");
    some.next().expect("has names").expect("lists");
    assert!(mounted.tree.known() > 100, "attributes come with the names");
    drop(some);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(mounted.path()).expect("opens") {
        let entry = entry.expect("lists");
        assert!(entry.file_type().expect("has one").is_file());
        let name = entry.file_name().into_string().expect("is UTF-8");
        let number: u64 = name["file ".len()..].parse().expect("is a number");
        match entry.metadata() {
            Ok(found) => {
                let is = (found.len(), found.mode() & 0o7777, found.uid());
                assert_eq!(is, (number, 0o640, 1234));
            }
            Err(error) => assert_eq!((number, error.raw_os_error()), (DAMAGED, Some(nix::libc::EIO))),
        }
        assert!(names.insert(number), "{number} is listed twice");
    }
    assert!(names.into_iter().eq(0..FILES));
    assert!(mounted.tree.known() > FILES as usize / 2, "the kernel knows them");
    // The kernel gives up what nothing uses, and says so.
    let patience = Instant::now();
    while mounted.tree.known() > 1 {
        assert!(patience.elapsed().as_secs() < 30, "{} are left", mounted.tree.known());
        fs::write("/proc/sys/vm/drop_caches", "2").expect("drops");
    }
}

#[test]
fn the_kernel_reads_ahead_far() {
    let mounted = Mounted::new();
    let device = fs::metadata(mounted.path()).expect("is mounted").dev();
    let setting = format!("/sys/class/bdi/0:{}/read_ahead_kb", minor(device));
    let is = fs::read_to_string(setting).expect("has its own setting");
    assert_eq!(is.trim(), READ_AHEAD_KIB.to_string());
}

#[test]
fn files_are_read_without_being_opened() {
    let mounted = Mounted::new();
    // More files than contents are kept of, read in turn.
    let numbers = [4000_u64, 4001, 4002, 4003, 4004, 4005, 4006, 4007];
    let open = |number: &u64| fs::File::open(mounted.path().join(format!("file {number}"))).expect("opens");
    let mut files: Vec<_> = numbers.iter().map(open).collect();
    for offset in (0..4000).step_by(400) {
        for (file, number) in files.iter().zip(numbers) {
            let mut bytes = [0; 400];
            file.read_exact_at(&mut bytes, offset).expect("reads");
            assert_eq!(bytes, [number as u8; 400]);
        }
    }
    let opened = mounted.many.opened.load(Ordering::SeqCst);
    for file in &mut files[4..] {
        assert_eq!(
            file.seek(SeekFrom::End(-3)).expect("seeks"),
            file.stream_position().expect("seeks")
        );
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).expect("reads");
        assert_eq!(rest.len(), 3);
    }
    assert_eq!(
        mounted.many.opened.load(Ordering::SeqCst),
        opened,
        "the contents are kept"
    );
    fs::File::open(mounted.path().join(format!("file {DAMAGED}"))).expect_err("is damaged");
}
