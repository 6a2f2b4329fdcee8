use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use jiff::Timestamp;

use super::*;
use crate::fs::Xattr;
use crate::testing::{Content, MemoryTree};

/// Copies the root of a tree into a new directory; returns it, the numbers, and the events.
fn copy_to(tree: MemoryTree, target: &Path, force: bool) -> (Copied, Vec<String>) {
    let events = RefCell::new(Vec::new());
    let observer = |event: CopyEvent<'_>| match event {
        CopyEvent::Written(_) => {}
        CopyEvent::Warning(path, text) => events
            .borrow_mut()
            .push(format!("{}: {text}", String::from_utf8_lossy(path))),
        CopyEvent::Failed(path, fault) => events
            .borrow_mut()
            .push(format!("{}: {fault}", String::from_utf8_lossy(path))),
    };
    let cancel = AtomicBool::new(false);
    let root = tree.root();
    let opened = open_target(target).expect("opens");
    let mut copier = Copier::new(tree.shared(), opened, CopyOptions { force }, &cancel, &observer);
    copier.copy(root, b"copy").expect("copies");
    let copied = copier.copied();
    drop(copier);
    (copied, events.into_inner())
}

fn lab() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").expect("makes a directory")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns all paths below a directory.
fn all(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("lists") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    let relative = found.iter().map(|path| path.strip_prefix(dir).expect("below"));
    let mut relative: Vec<_> = relative.map(|path| path.display().to_string()).collect();
    relative.sort();
    relative
}

#[test]
fn a_copy_keeps_content_links_holes_and_attributes() {
    assert!(is_root(), "this test needs root: it sets owners and makes devices");
    let lab = lab();
    let mut tree = MemoryTree::new();
    tree.directory("/dir").stat.mode = 0o2750;
    let file = tree.file("/dir/file", "content");
    (file.stat.mode, file.stat.uid, file.stat.gid) = (0o4755, 1234, 4321);
    let xattr = |name: &str| Xattr {
        name: name.as_bytes().to_vec(),
        value: b"value".to_vec(),
    };
    file.xattrs = vec![xattr("user.comment"), xattr("trusted.x"), xattr("foreign.y")];
    tree.hard_link("/dir/same", "/dir/file");
    tree.hard_link("/other", "/dir/file");
    tree.link("/link", "/nothing/../here").stat.uid = 77;
    let big = vec![(0, b"start".to_vec()), (1 << 30, b"middle".to_vec())];
    tree.file("/sparse", "").content = Content::File(3 << 30, big);
    tree.file("/old", "").stat.modified = Timestamp::new(-1, -500).expect("a time");
    tree.other("/null", FileKind::CharDevice).stat.device = (1, 3);
    tree.other("/fifo", FileKind::Fifo);
    tree.other("/socket", FileKind::Socket);
    let (copied, events) = copy_to(tree, lab.path(), false);
    assert_eq!((copied.files, copied.directories, copied.failed), (8, 2, 0));
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].contains("foreign.* can't be kept"), "{events:?}");
    assert!(events[1].starts_with("copy/socket: left out"), "{events:?}");

    let at = |path: &str| lab.path().join("copy").join(path);
    let stat = |path: &str| fs::symlink_metadata(at(path)).expect("exists");
    assert_eq!(fs::read(at("dir/file")).expect("reads"), b"content");
    let file = stat("dir/file");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4755, 1234, 4321));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!([stat("dir/same").ino(), stat("other").ino()], [file.ino(); 2]);
    assert_eq!(stat("dir").mode() & 0o7777, 0o2750);
    assert_eq!(stat("dir").mtime(), 1_700_000_000);
    assert_eq!(
        fs::read_link(at("link")).expect("a link"),
        Path::new("/nothing/../here")
    );
    assert_eq!((stat("link").uid(), stat("link").mtime()), (77, 1_700_000_000));
    assert_eq!((stat("old").mtime(), stat("old").mtime_nsec()), (-2, 999_999_500));
    let sparse = stat("sparse");
    assert_eq!(sparse.len(), 3 << 30);
    assert!(sparse.blocks() < 100, "{} blocks", sparse.blocks());
    assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == rustix::fs::makedev(1, 3));
    assert!(stat("fifo").file_type().is_fifo());
    assert!(!at("socket").exists());
    let mut value = [0; 10];
    for name in ["user.comment", "trusted.x"] {
        let length = rustix::fs::getxattr(at("dir/file"), name, &mut value).expect("is set");
        assert_eq!(&value[..length], b"value");
    }
    let left: Vec<_> = all(lab.path())
        .into_iter()
        .filter(|path| path.contains(".vbk-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn no_name_and_no_link_of_the_guest_leads_out_of_the_target() {
    let lab = lab();
    fs::create_dir(lab.path().join("outside")).expect("makes");
    let outside = lab.path().join("outside").display().to_string();
    let mut tree = MemoryTree::new();
    // Names that no reader returns, and a directory whose name a link has too.
    for name in [&b"../evil"[..], b"..", b"/evil", b"a/../../evil", b"nul\0", b"."] {
        let file = tree.add(FileKind::File, Content::File(0, Vec::new()));
        tree.entry(0, name, file);
    }
    tree.link("/trap", &outside);
    tree.directory("/dir");
    tree.link("/dir/trap", "../../outside");
    let trap = tree.add(FileKind::Directory, Content::Directory(Vec::new()));
    let evil = tree.add(FileKind::File, Content::File(0, Vec::new()));
    tree.entry(trap, b"evil", evil);
    // Two passes of one listing could see different entries first.
    tree.entry(0, b"trap", trap);
    let (copied, events) = copy_to(tree, lab.path(), false);
    assert_eq!(copied.failed, 6, "{events:?}");
    assert_eq!(
        all(lab.path()),
        ["copy", "copy/dir", "copy/dir/trap", "copy/trap", "outside"]
    );

    // A link of an earlier copy where this one has a directory.
    let mut tree = MemoryTree::new();
    tree.directory("/trap");
    tree.file("/trap/evil", "");
    let (_, events) = copy_to(tree, lab.path(), true);
    assert_eq!(events, ["copy/trap: exists and is not a directory"]);
    assert_eq!(all(&lab.path().join("outside")), [""; 0]);
}

#[test]
fn existing_objects_stay_unless_force_is_given() {
    let lab = lab();
    let tree = || {
        let mut tree = MemoryTree::new();
        tree.directory("/dir");
        tree.file("/dir/a", "new");
        tree.file("/dir/b", "new");
        tree.file("/name", "new");
        tree.file("/linked", "new");
        tree
    };
    let copy = lab.path().join("copy");
    fs::create_dir_all(copy.join("dir")).expect("makes");
    fs::create_dir(copy.join("name")).expect("makes");
    fs::write(copy.join("dir/a"), "old").expect("writes");
    fs::write(lab.path().join("precious"), "old").expect("writes");
    std::os::unix::fs::symlink(lab.path().join("precious"), copy.join("linked")).expect("links");
    fs::set_permissions(copy.join("dir"), fs::Permissions::from_mode(0o700)).expect("sets");
    let (copied, events) = copy_to(tree(), lab.path(), false);
    let expected = [
        "copy/dir/a: exists already",
        "copy/linked: exists already",
        "copy/name: a directory exists there",
    ];
    assert_eq!(events, expected);
    assert_eq!((copied.files, copied.failed), (1, 3));
    let read = |path: &str| fs::read_to_string(copy.join(path)).expect("reads");
    assert_eq!([read("dir/a"), read("dir/b")], ["old", "new"]);
    let mode = |path: &str| fs::metadata(copy.join(path)).expect("exists").mode() & 0o777;
    assert_eq!(mode("dir"), 0o700);
    let (_, events) = copy_to(tree(), lab.path(), true);
    assert_eq!(events, ["copy/name: a directory exists there"]);
    assert_eq!([read("dir/a"), read("linked")], ["new", "new"]);
    assert_eq!(fs::read_to_string(lab.path().join("precious")).expect("reads"), "old");
}

#[test]
fn damaged_objects_are_named_and_the_rest_is_copied() {
    let lab = lab();
    let mut tree = MemoryTree::new();
    tree.file("/a", "x");
    tree.damaged("/bad", FileKind::File);
    tree.damaged("/dir", FileKind::Directory);
    tree.damaged("/link", FileKind::Link);
    tree.file("/z", "x");
    let (copied, events) = copy_to(tree, lab.path(), false);
    assert_eq!(all(lab.path()), ["copy", "copy/a", "copy/dir", "copy/z"]);
    assert_eq!((copied.files, copied.failed), (2, 3));
    assert_eq!(events[0], "copy/bad: a block of a test is damaged");
}

#[test]
fn an_interrupted_copy_leaves_no_part_of_a_file() {
    let lab = lab();
    let mut tree = MemoryTree::new();
    tree.file("/big", "").content = Content::File(3 << 20, vec![(0, vec![1; 3 << 20])]);
    let cancel = AtomicBool::new(false);
    let observer = |event: CopyEvent<'_>| {
        if matches!(event, CopyEvent::Written(_)) {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let root = tree.root();
    let target = open_target(lab.path()).expect("opens");
    let mut copier = Copier::new(tree.shared(), target, CopyOptions::default(), &cancel, &observer);
    assert!(matches!(copier.copy(root, b"copy"), Err(Stopped::Interrupted)));
    assert_eq!(all(lab.path()), ["copy"]);
}

#[test]
fn a_full_target_ends_the_copy() {
    let full = Trouble::from(std::io::Error::from(Errno::NOSPC));
    assert!(matches!(full, Trouble::Stopped(Stopped::Target { .. })));
    let denied = Trouble::from(Errno::ACCESS);
    assert!(matches!(denied, Trouble::Fault(Fault::Target(_))));
}

#[test]
fn the_entries_of_a_directory_are_copied_into_the_target_itself() {
    let lab = lab();
    let mut tree = MemoryTree::new();
    tree.file("/a", "x");
    let (root, cancel) = (tree.root(), AtomicBool::new(false));
    let target = open_target(lab.path()).expect("opens");
    let mut copier = Copier::new(tree.shared(), target, CopyOptions::default(), &cancel, &|_| {});
    copier.copy_entries(root).expect("copies");
    assert_eq!(all(lab.path()), ["a"]);
}

#[test]
fn a_second_name_is_not_linked_to_what_took_the_place_of_the_first() {
    let lab = lab();
    let mut tree = MemoryTree::new();
    for directory in ["/one", "/two", "/three"] {
        tree.directory(directory);
    }
    tree.file("/one/x", "linked");
    tree.hard_link("/three/y", "/one/x");
    tree.hard_link("/three/z", "/one/x");
    tree.file("/two/x", "another");
    let nodes = ["/one/x", "/two/x", "/three/y", "/three/z"].map(|path| tree.node(path));
    let cancel = AtomicBool::new(false);
    let opened = open_target(lab.path()).expect("opens");
    let options = CopyOptions { force: true };
    let mut copier = Copier::new(tree.shared(), opened, options, &cancel, &|_| {});
    for (node, name) in nodes.into_iter().zip(["x", "x", "y", "z"]) {
        copier.copy(node, name.as_bytes()).expect("copies");
    }
    let read = |name: &str| fs::read_to_string(lab.path().join(name)).expect("a file");
    assert_eq!(["x", "y", "z"].map(read), ["another", "linked", "linked"]);
    let number = |name: &str| fs::metadata(lab.path().join(name)).expect("a file").ino();
    assert_eq!(number("y"), number("z"));
    assert_eq!(all(lab.path()), ["x", "y", "z"]);
}
