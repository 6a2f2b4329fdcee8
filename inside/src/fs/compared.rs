//! For the tests of several readers: compares a tree with the directory that an image was made of.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::{FileKind, FileTree, Node};
use crate::device::{Device, SharedDevice};

/// Runs a tool, and fails with its messages.
pub(crate) fn run(tool: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) {
    let output = Command::new(tool)
        .args(args.iter().map(|arg| arg.as_ref()))
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{tool} failed: {out}{err}");
}

/// A sparse file of this length in a directory.
pub(crate) fn image(dir: &Path, size_bytes: u64) -> PathBuf {
    let path = dir.join("image");
    let file = File::create(&path).expect("an image");
    file.set_len(size_bytes).expect("a sparse file");
    path
}

/// Opens an image for reading.
pub(crate) fn device(path: &Path) -> SharedDevice {
    Arc::new(File::open(path).expect("the image opens"))
}

/// A mounted file system that is unmounted when this is dropped.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = unmount(&self.0);
        assert!(
            unmounted || std::thread::panicking(),
            "{} is still mounted",
            self.0.display()
        );
    }
}

/// Unmounts a file system. The child of another test may hold a file of it between its fork and its exec.
pub(crate) fn unmount(point: &Path) -> bool {
    (0..250).any(|_| {
        let done = Command::new("umount").arg(point).output();
        let done = done.is_ok_and(|output| output.status.success());
        if !done {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        done
    })
}

/// A loop device that is detached when this is dropped.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn new(image: &Path) -> Self {
        let output = Command::new("/usr/sbin/losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .expect("losetup of package mount");
        assert!(output.status.success(), "no loop device: this test needs root");
        Self(String::from_utf8(output.stdout).expect("a path").trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("/usr/sbin/losetup").arg("--detach").arg(&self.0).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} is still attached", self.0.display());
        }
    }
}

/// How a tree may differ from its original.
#[derive(Default)]
pub(crate) struct Terms {
    /// Times are multiples of so many nanoseconds; 0 if they are not compared.
    pub(crate) time_nanos: i128,
    /// Owner and mode are compared.
    pub(crate) owners: bool,
    /// Number of links, and inodes, are compared.
    pub(crate) links: bool,
}

/// All content of a device.
pub(crate) fn content(device: &dyn Device) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Names and nodes of a directory, sorted.
pub(crate) fn names(tree: &dyn FileTree, directory: Node) -> Vec<(Vec<u8>, Node)> {
    let mut names = Vec::new();
    let listed = tree.list(directory, &mut |entry| {
        names.push((entry.name, entry.node));
        ControlFlow::Continue(())
    });
    listed.expect("the directory is whole");
    names.sort();
    names
}

/// Compares all files below a directory; returns how many there are.
pub(crate) fn compare<T: FileTree + 'static>(tree: &Arc<T>, parent: Node, original: &Path, terms: &Terms) -> usize {
    let found = names(&**tree, parent);
    let mut expected: Vec<_> = fs::read_dir(original)
        .expect("the original")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    expected.sort();
    let show = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    assert_eq!(
        found.iter().map(|(name, _)| show(name)).collect::<Vec<_>>(),
        expected.iter().map(|name| show(name.as_bytes())).collect::<Vec<_>>(),
        "names in {}",
        original.display()
    );
    let mut count = 0;
    for ((name, node), expected) in found.iter().zip(&expected) {
        count += 1;
        let path = original.join(expected);
        if count < 200 {
            assert_eq!(tree.lookup(parent, name).ok(), Some(*node));
        }
        let (stat, meta) = (tree.stat(*node).expect("stat"), path.symlink_metadata().expect("stat"));
        let at = path.display();
        if terms.time_nanos != 0 {
            let nanos = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            let rounded = nanos.div_euclid(terms.time_nanos) * terms.time_nanos;
            let found = stat.modified.as_nanosecond().div_euclid(terms.time_nanos) * terms.time_nanos;
            assert_eq!(found, rounded, "time of {at}");
        }
        if terms.owners {
            assert_eq!((stat.uid, stat.gid), (meta.uid(), meta.gid()), "{at}");
            assert_eq!(u32::from(stat.mode), meta.mode() & 0o7777, "{at}");
        }
        if terms.links && !meta.is_dir() {
            assert_eq!(u64::from(stat.links), meta.nlink(), "links of {at}");
        }
        if meta.is_dir() {
            assert_eq!(stat.kind, FileKind::Directory, "{at}");
            count += compare(tree, *node, &path, terms);
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            assert_eq!(stat.kind, FileKind::Link, "{at}");
            assert_eq!(stat.size_bytes, target.as_os_str().len() as u64, "{at}");
            let found = tree.read_link(*node).expect("a target");
            assert_eq!(show(&found), target.to_string_lossy(), "{at}");
        } else if meta.is_file() {
            assert_eq!(stat.kind, FileKind::File, "{at}");
            assert_eq!(stat.size_bytes, meta.len(), "{at}");
            let file = Arc::clone(tree).open(*node).expect("the file opens");
            let bytes = content(&*file).unwrap_or_else(|e| panic!("{at}: {e}"));
            assert!(bytes == fs::read(&path).expect("the original"), "content of {at}");
        }
    }
    count
}

/// Returns the image with bytes changed at these places, each as a part of 2^16 of the metadata's length.
pub(crate) fn mutated(image: &[u8], metadata_bytes: usize, changes: &[(u16, u8)]) -> Vec<u8> {
    let mut bytes = image.to_vec();
    for (place, value) in changes {
        let at = metadata_bytes.min(bytes.len()) * usize::from(*place) / (1 << 16);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = *value;
        }
    }
    bytes
}
