//! The users of a disk: a mount, swap, a volume group, or a process that has it open for writing.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use vbk_repo::mounts::{self, Mount};

use crate::host::device::DeviceNumber;

/// Number of looks at a disk in use, and the time between two of them.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Describes the user of a device who may change its content; `None` if there is none.
pub(crate) fn user_of_device(path: &Path, device: DeviceNumber) -> io::Result<Option<String>> {
    // O_EXCL without O_CREAT: the kernel refuses while the device, a partition of it or the disk it is on is mounted
    // (in whatever namespace), swap, or part of a volume group or array (open(2), block/bdev.c).
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(path);
    match exclusive {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            return Ok(Some(claim_of(device).to_string()));
        }
        Err(error) => return Err(error),
    }
    // Programs that write to a disk, as QEMU does, rarely claim it.
    Ok(writer_of_device(device))
}

/// Repeats the search for a disk's user for a while, because programs such as losetup open a device for a moment when
/// they look for a free or a known one.
pub(crate) fn lasting<E>(user: impl Fn() -> Result<Option<String>, E>) -> Result<Option<String>, E> {
    for _ in 0..LOOKS {
        if user()?.is_none() {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    user()
}

/// An exclusive use of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Mounted here.
    Mounted(PathBuf),
    /// Swap.
    Swap,
    /// Part of this device, e.g. an array or a logical volume.
    PartOf(String),
    /// Mounted in another namespace, or held by a program.
    Unknown,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted(point) => write!(f, "mounted at {}", point.display()),
            Self::Swap => f.write_str("swap"),
            Self::PartOf(device) => write!(f, "part of {device}"),
            Self::Unknown => f.write_str("by the kernel or by a program that opened it exclusively"),
        }
    }
}

/// Finds the reason why the kernel refuses an exclusive open of a device.
pub(crate) fn claim_of(device: DeviceNumber) -> Claim {
    let related = device.related();
    let is_it = |path: &Path| DeviceNumber::of_block_device(path).is_some_and(|number| related.contains(&number));
    // btrfs makes up a device number, so the source is compared too.
    let uses_it = |mount: &Mount| {
        let source = Path::new(&mount.source);
        related.contains(&mount.device.into()) || source.is_absolute() && is_it(source)
    };
    if let Some(mount) = mounts::read().unwrap_or_default().into_iter().find(uses_it) {
        return Claim::Mounted(mount.mount_point);
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    if swaps.any(|swap| is_it(Path::new(swap))) {
        return Claim::Swap;
    }
    let holders = related
        .iter()
        .filter_map(|device| std::fs::read_dir(device.sysfs("holders")).ok());
    match holders.flatten().flatten().next() {
        Some(holder) => Claim::PartOf(holder.file_name().to_string_lossy().into_owned()),
        None => Claim::Unknown,
    }
}

/// Finds a process that has this device, a partition of it or the disk it is on open for writing.
pub(crate) fn writer_of_device(device: DeviceNumber) -> Option<String> {
    let devices = device.related();
    writer(|named, file| {
        // Devices only: examining a file of a network file system that hangs would hang too.
        named.starts_with("/dev") && DeviceNumber::of_block_device(file).is_some_and(|number| devices.contains(&number))
    })
}

/// Finds a process that has this file open for writing, under any name. `identity` is its device and inode, `path` one
/// of its names.
pub(crate) fn writer_of_file(path: &Path, identity: (u64, u64)) -> Option<String> {
    // By its inode number first, or by its name before Linux 5.14: see below.
    writer(|named, file| {
        let is_candidate = match inode_of(file) {
            Some(inode) => inode == identity.1,
            None => named.file_name() == path.file_name(),
        };
        is_candidate && std::fs::metadata(file).is_ok_and(|found| (found.dev(), found.ino()) == identity)
    })
}

/// Returns the inode number of an open file, from its link in /proc (proc_pid_fdinfo(5)).
fn inode_of(file: &Path) -> Option<u64> {
    let number = file.file_name()?;
    let info = std::fs::read_to_string(file.parent()?.with_file_name("fdinfo").join(number)).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("ino:"))?
        .trim()
        .parse()
        .ok()
}

/// Finds another process that has something open for writing, as far as it may be examined. `is_it` gets the name of an
/// open file and its link in /proc. It must not examine a file whose name it does not know: on a network file system
/// that hangs, that would hang too.
fn writer(is_it: impl Fn(&Path, &Path) -> bool) -> Option<String> {
    let own = std::process::id();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.filter(|process| *process != own).find_map(|process| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
        let mut files = files.map(|entry| entry.path());
        files.find(|file| std::fs::read_link(file).is_ok_and(|named| is_it(&named, file)) && writes(file, process))?;
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        Some(format!("open for writing in process {process}, {}", name.trim_end()))
    })
}

fn writes(file: &Path, process: u32) -> bool {
    let number = file.file_name().unwrap_or_default().to_string_lossy();
    let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    // A process whose flags can't be read counts as a writer.
    flags.is_none_or(|flags| flags & OFlag::O_ACCMODE.bits() != OFlag::O_RDONLY.bits())
}
