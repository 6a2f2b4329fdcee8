//! Loop devices: attaches images, and finds attached images again in /sys. Keeps no state of its own.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::drivers::Backing;
use crate::sys::{self, Errno};
use crate::volumes::error::{MountError, Result};

const CONTROL: &str = "/dev/loop-control";
const BLOCK_DEVICES: &str = "/sys/block";
const BTRFS_CONTROL: &str = "/dev/btrfs-control";

/// Free devices that another process may take before us. Each time one of the racers wins, so this many failures mean a
/// crowd.
const ATTEMPTS: usize = 64;

/// Sector size that the loop device shows: that of the guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SectorSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes (a "4Kn" disk).
    B4096,
}

impl SectorSize {
    fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// A loop device that shows an image. The kernel clears it when this value is dropped, or later, when a file
/// system that was mounted from it is unmounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    number: u32,
    // LO_FLAGS_AUTOCLEAR acts on the last close: this holds the device until a mount does.
    _device: File,
}

impl LoopDevice {
    /// Attaches the image with direct I/O, or through the page cache if its file system has no direct I/O.
    pub(crate) fn attach(image: &Path, use_of: Backing, sector_size: SectorSize) -> Result<Self> {
        let attach_error = |source: io::Error| MountError::Attach {
            image: image.to_owned(),
            source,
        };
        let writable = use_of == Backing::Writable;
        let open = |path: &Path| OpenOptions::new().read(true).write(writable).open(path);
        let backing = open(image).map_err(attach_error)?;
        let control = open_control()?;
        for _ in 0..ATTEMPTS {
            let number = free_number(&control)?;
            let device = open_node(number, &open)?;
            match configure(&device, &backing, image, use_of, sector_size) {
                Ok(()) => {
                    limit_requests(number);
                    return Ok(Self {
                        number,
                        _device: device,
                    });
                }
                // Another process took it between GET_FREE and CONFIGURE.
                Err(Errno::EBUSY) => {}
                Err(errno) => return Err(attach_error(errno.into())),
            }
        }
        Err(MountError::NoFreeLoop {
            source: Errno::EBUSY.into(),
        })
    }

    /// Holds a device that is already attached: the kernel does not clear it before this value is dropped.
    pub(crate) fn hold(attached: &Attached) -> io::Result<Self> {
        let device = File::open(attached.node())?;
        if Attached::of_number(attached.number).as_ref() != Some(attached) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            number: attached.number,
            _device: device,
        })
    }

    /// Makes the kernel forget the btrfs on this device, unless it is mounted. Otherwise the kernel lists it until the
    /// device shows another one.
    pub(crate) fn forget_btrfs(&self) {
        let forgotten = File::open(BTRFS_CONTROL).map(|control| sys::btrfs_forget(&control, &self.node()));
        match forgotten {
            // ENOENT: this kernel lists only file systems with several devices. ENOTTY: it is older than Linux 5.4.
            Ok(Ok(()) | Err(Errno::ENOENT | Errno::ENOTTY)) => {}
            other => tracing::debug!(device = %self.node().display(), ?other, "the kernel still lists a btrfs"),
        }
    }

    /// The number N of /dev/loopN.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Path of the device's node, to mount from.
    pub(crate) fn node(&self) -> PathBuf {
        node(self.number)
    }
}

/// An attached loop device, as /sys shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The number N of /dev/loopN.
    pub number: u32,
    /// Path of its backing file, even if the file is deleted or its mount is dead.
    pub backing: PathBuf,
}

impl Attached {
    /// Returns the device with that number, if it is attached.
    pub(crate) fn of_number(number: u32) -> Option<Self> {
        let backing = fs::read(format!("{BLOCK_DEVICES}/loop{number}/loop/backing_file")).ok()?;
        Some(Self {
            number,
            backing: backing_path(backing),
        })
    }

    /// Path of the device's node.
    pub(crate) fn node(&self) -> PathBuf {
        node(self.number)
    }

    /// Waits until the device no longer shows this file; false after the timeout.
    pub(crate) fn wait_cleared(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            if Self::of_number(self.number).as_ref() != Some(self) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Clears the device; if it is in use, the kernel clears it when its last user closes it.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let device = match File::open(self.node()) {
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(()),
            other => other?,
        };
        // It may have been cleared and used again in the meantime.
        if Self::of_number(self.number).as_ref() != Some(self) {
            return Ok(());
        }
        match sys::loop_clear(&device) {
            Ok(()) | Err(Errno::ENXIO) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Lists the attached loop devices whose file is at `prefix` or below it. Compares text, because the file's mount may
/// be dead.
pub(crate) fn attached_below(prefix: &Path) -> Result<Vec<Attached>> {
    let table_error = |source| MountError::KernelTable {
        path: BLOCK_DEVICES.into(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(BLOCK_DEVICES).map_err(table_error)? {
        let name = entry.map_err(table_error)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        let attached = number
            .and_then(|number| number.parse().ok())
            .and_then(Attached::of_number);
        found.extend(attached.filter(|attached| attached.backing.starts_with(prefix)));
    }
    found.sort_by_key(|attached| attached.number);
    Ok(found)
}

/// Fails unless this process can get a loop device.
pub(crate) fn check_rights() -> Result<()> {
    free_number(&open_control()?).map(|_| ())
}

fn node(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn open_control() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL)
        .map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => MountError::LoopDenied { source },
            _ => MountError::NoLoopDriver { source },
        })
}

fn free_number(control: &File) -> Result<u32> {
    sys::loop_free_number(control).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => MountError::LoopDenied { source: errno.into() },
        _ => MountError::NoFreeLoop { source: errno.into() },
    })
}

/// Opens the node, for LOOP_CONFIGURE with the rights that the device is to give, and creates it where /dev is not the
/// kernel's own devtmpfs.
fn open_node(number: u32, open: &dyn Fn(&Path) -> io::Result<File>) -> Result<File> {
    let node = node(number);
    let opened = match open(&node) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match sys::make_loop_node(&node, number) {
            Ok(()) | Err(Errno::EEXIST) => open(&node),
            Err(errno) => Err(errno.into()),
        },
        other => other,
    };
    opened.map_err(|source| match source.kind() {
        // A container may have the node and be denied the device (device cgroup).
        io::ErrorKind::PermissionDenied if node.exists() => MountError::LoopDenied { source },
        _ => MountError::NoLoopNode { node, number, source },
    })
}

fn configure(
    device: &File,
    backing: &File,
    image: &Path,
    use_of: Backing,
    sector_size: SectorSize,
) -> std::result::Result<(), Errno> {
    let read_only = use_of == Backing::ReadOnly;
    let configure = |direct| sys::loop_configure(device, backing, image, sector_size.bytes(), (read_only, direct));
    // Kernels up to 6.18 accept the flag and silently use the page cache where direct I/O is not possible; EINVAL is
    // for kernels that do not.
    match configure(true) {
        Err(Errno::EINVAL) => configure(false),
        other => other,
    }
}

/// Limits requests to one block of the backup: with the default of 1280 KiB, every other request straddles two blocks
/// of 1 MiB.
fn limit_requests(number: u32) {
    let path = format!("{BLOCK_DEVICES}/loop{number}/queue/max_sectors_kb");
    if let Err(error) = fs::write(&path, "1024") {
        tracing::debug!(path, %error, "loop device keeps its request size");
    }
}

/// Parses a `backing_file` of /sys: the unescaped path, then " (deleted)" if the file has no name any more, then a
/// newline.
fn backing_path(mut text: Vec<u8>) -> PathBuf {
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    if let Some(kept) = text.strip_suffix(b" (deleted)") {
        text.truncate(kept.len());
    }
    OsString::from_vec(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn image(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        let file = File::create(&path).expect("creates");
        file.set_len(1 << 20).expect("grows");
        file.write_all_at(b"hello", 4096).expect("writes");
        path
    }

    fn scratch() -> tempfile::TempDir {
        // Not /tmp: that may be a tmpfs, and the real images are on FUSE, which has direct I/O.
        tempfile::tempdir_in("/var/tmp").expect("creates")
    }

    fn attribute(number: u32, name: &str) -> String {
        let text = fs::read_to_string(format!("/sys/block/loop{number}/{name}")).expect("reads");
        text.trim().to_owned()
    }

    #[test]
    fn a_backing_path_keeps_odd_names_and_drops_the_deleted_suffix() {
        assert_eq!(backing_path(b"/a b\n".into()), PathBuf::from("/a b"));
        assert_eq!(backing_path(b"/a\n (deleted)\n".into()), PathBuf::from("/a\n"));
    }

    #[test]
    fn needs_root_an_attached_image_is_read_only_direct_and_gone_after_drop() {
        let dir = scratch();
        let image = image(dir.path(), "a.img");
        let device = LoopDevice::attach(&image, Backing::ReadOnly, SectorSize::B512).expect("attaches");
        let number = device.number();
        assert_eq!(attribute(number, "ro"), "1");
        assert_eq!(attribute(number, "loop/autoclear"), "1");
        assert_eq!(attribute(number, "loop/dio"), "1");
        assert_eq!(attribute(number, "queue/max_sectors_kb"), "1024");
        assert_eq!(attribute(number, "queue/logical_block_size"), "512");
        let mut bytes = [0; 5];
        let node = File::open(device.node()).expect("opens");
        node.read_exact_at(&mut bytes, 4096).expect("reads");
        assert_eq!(&bytes, b"hello");
        drop(node);

        let attached = attached_below(dir.path()).expect("/sys can be read");
        assert_eq!(attached, [Attached { number, backing: image }]);
        assert!(!attached[0].wait_cleared(Duration::ZERO));
        drop(device);
        assert!(attached[0].wait_cleared(Duration::from_secs(5)));
        assert!(attached_below(dir.path()).expect("/sys can be read").is_empty());
    }

    #[test]
    fn needs_root_a_disk_of_4096_byte_sectors_keeps_them() {
        let dir = scratch();
        let image = image(dir.path(), "a.img");
        let device = LoopDevice::attach(&image, Backing::ReadOnly, SectorSize::B4096).expect("attaches");
        assert_eq!(attribute(device.number(), "queue/logical_block_size"), "4096");
    }

    #[test]
    fn needs_root_a_deleted_image_is_still_found_and_cleared() {
        let dir = scratch();
        let image = image(dir.path(), "a.img");
        let device = LoopDevice::attach(&image, Backing::ReadOnly, SectorSize::B512).expect("attaches");
        fs::remove_file(&image).expect("removes");
        let attached = attached_below(&image).expect("/sys can be read");
        assert_eq!(attached.len(), 1);
        attached[0].clear().expect("clears");
        drop(device);
        assert!(attached[0].wait_cleared(Duration::from_secs(5)));
        attached[0].clear().expect("clears");
    }

    #[test]
    fn needs_root_concurrent_threads_get_distinct_devices() {
        let dir = scratch();
        let image = image(dir.path(), "a.img");
        let mut numbers: Vec<u32> = thread::scope(|scope| {
            let started: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| LoopDevice::attach(&image, Backing::ReadOnly, SectorSize::B512).expect("attaches"))
                })
                .collect();
            let devices: Vec<_> = started
                .into_iter()
                .map(|it| it.join().expect("does not panic"))
                .collect();
            devices.iter().map(LoopDevice::number).collect()
        });
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 8);
        for attached in attached_below(dir.path()).expect("/sys can be read") {
            assert!(attached.wait_cleared(Duration::from_secs(5)));
        }
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = LoopDevice::attach(Path::new("/nowhere/x.img"), Backing::ReadOnly, SectorSize::B512).unwrap_err();
        assert!(error.to_string().contains("/nowhere/x.img"));
    }
}
