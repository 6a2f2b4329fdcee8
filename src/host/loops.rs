//! Loop devices that show a disk: the kernel, and not a process, has the disk's file open.
//!
//! Files are compared by device and inode. Names prove nothing: the same file has another name through a bind mount or
//! a second hard link.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::host::device::DeviceNumber;
use crate::sys;

/// A loop device in use.
struct Loop {
    node: PathBuf,
    number: DeviceNumber,
    is_writable: bool,
    /// Device and inode of the backing file.
    file: (u64, u64),
    /// Number of the backing device, if the backing file is a device.
    shown: Option<DeviceNumber>,
}

/// Finds a loop device that shows a file; with `writable`, only one that can be written to.
pub(crate) fn showing_file(identity: (u64, u64), writable: bool) -> Option<PathBuf> {
    let mut loops = all();
    loops
        .find(|device| device.file == identity && (device.is_writable || !writable))
        .map(|device| device.node)
}

/// Finds another loop device that shows the same disk as the given device. The kernel does not know this relation: it
/// has the same file, or it shows the device, a partition of it or the disk it is on.
pub(crate) fn sibling_of_device(device: DeviceNumber) -> Option<PathBuf> {
    let related = device.related();
    let (own, others): (Vec<_>, Vec<_>) = all().partition(|device| related.contains(&device.number));
    let shows_it = |device: &Loop| {
        own.iter().any(|own| own.file == device.file) || device.shown.is_some_and(|shown| related.contains(&shown))
    };
    others.into_iter().find(shows_it).map(|device| device.node)
}

fn all() -> impl Iterator<Item = Loop> {
    let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.filter_map(|device| {
        let read = |name: &str| std::fs::read_to_string(device.path().join(name)).ok();
        let backing = read("loop/backing_file")?;
        let node = Path::new("/dev").join(device.file_name());
        let shown = File::open(&node).and_then(|node| sys::loop_backing(&node));
        // If the device itself can't be queried, only the name is left.
        let (dev, inode, rdev) = shown.ok().or_else(|| {
            let shown = std::fs::metadata(backing.trim_end_matches('\n')).ok()?;
            Some((shown.dev(), shown.ino(), shown.rdev()))
        })?;
        Some(Loop {
            node,
            number: DeviceNumber::in_sysfs(&device.path())?,
            is_writable: read("ro").is_none_or(|ro| ro.trim() == "0"),
            file: (dev, inode),
            shown: (rdev != 0).then(|| DeviceNumber::from_raw(rdev)),
        })
    })
}
