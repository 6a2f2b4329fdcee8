//! A block device that is read without a snapshot, or a disk that is restored to: who uses it, and whether it was written
//! meanwhile.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};

use super::SnapshotError;

/// How often a disk that is in use is looked at again, and after which time.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Major and minor number.
pub(super) type Number = (u64, u64);

/// The numbers of a device node.
pub(super) fn number(rdev: u64) -> Number {
    (major(rdev), minor(rdev))
}

fn sys_path((major, minor): Number) -> PathBuf {
    format!("/sys/dev/block/{major}:{minor}").into()
}

/// Whether the kernel says that a device is a logical volume.
pub(super) fn is_logical_volume(device: Number) -> bool {
    std::fs::read_to_string(sys_path(device).join("dm/uuid")).is_ok_and(|uuid| uuid.starts_with("LVM-"))
}

/// Who uses a device so that its content may change; `None` if nobody does.
pub(super) fn user_of(path: &Path, device: Number) -> Result<Option<String>, SnapshotError> {
    // O_EXCL without O_CREAT: the kernel refuses while the device, a partition of it or the disk it is on is mounted
    // (in whatever namespace), swap, or part of a volume group or array (open(2), block/bdev.c).
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(path);
    match exclusive {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => return Ok(Some(claimed_by(device))),
        Err(error) => return Err(SnapshotError::io("open", path)(error)),
    }
    // Programs that write to a disk, as QEMU does, rarely claim it.
    let related = related(device);
    Ok(writer_of(&related))
}

/// Asks again for a while who uses a disk: programs that look for a free or a known device open it for a moment, as losetup
/// does.
pub(crate) fn lasting<E>(user: impl Fn() -> Result<Option<String>, E>) -> Result<Option<String>, E> {
    for _ in 0..LOOKS {
        if user()?.is_none() {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    user()
}

/// The device, its partitions, and the disk it is a partition of.
pub(super) fn related(device: Number) -> BTreeSet<Number> {
    let path = sys_path(device);
    let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
    let partitions = entries
        .map(|entry| entry.path())
        .filter(|path| path.join("partition").exists());
    let mut all: BTreeSet<Number> = partitions.filter_map(|path| number_in(&path)).collect();
    all.insert(device);
    if path.join("partition").exists()
        && let Ok(path) = std::fs::canonicalize(&path)
        && let Some(disk) = path.parent().and_then(number_in)
    {
        all.insert(disk);
    }
    all
}

pub(super) fn number_in(dir: &Path) -> Option<Number> {
    let text = std::fs::read_to_string(dir.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn claimed_by(device: Number) -> String {
    let related = related(device);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let is_it = |path: &str| {
        let metadata = std::fs::metadata(path);
        metadata
            .is_ok_and(|metadata| metadata.file_type().is_block_device() && related.contains(&number(metadata.rdev())))
    };
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS... - TYPE SOURCE OPTIONS (proc_pid_mountinfo(5)); btrfs has numbers of its
    // own, so the source is looked at too.
    let mountinfo = read("/proc/self/mountinfo");
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        let number = (major.parse().ok()?, minor.parse().ok()?);
        let point = fields.nth(1)?;
        let source = right.split(' ').nth(1)?;
        (related.contains(&number) || (source.starts_with('/') && is_it(source))).then(|| point.to_owned())
    });
    if let Some(point) = mount {
        return format!("mounted at {point}");
    }
    let swaps = read("/proc/swaps");
    if swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(is_it)
    {
        return "swap".to_owned();
    }
    let holders = related
        .iter()
        .filter_map(|device| std::fs::read_dir(sys_path(*device).join("holders")).ok());
    let holder = holders.flatten().flatten().next();
    match holder {
        Some(holder) => format!("part of {}", holder.file_name().to_string_lossy()),
        None => "by the kernel or a program that wants it for itself".to_owned(),
    }
}

/// A process that has this device, a partition of it or the disk it is on open for writing.
pub(crate) fn writer_of_device(rdev: u64) -> Option<String> {
    writer_of(&related(number(rdev)))
}

/// Whether a device is set read-only, as `blockdev --setro` does.
pub(crate) fn is_read_only(rdev: u64) -> bool {
    std::fs::read_to_string(sys_path(number(rdev)).join("ro")).is_ok_and(|ro| ro.trim() != "0")
}

/// A process that has this file open for writing, whatever name it opened. `identity` is its device and inode, `path` one of
/// its names.
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

/// The inode number of an open file, from its link in /proc (proc_pid_fdinfo(5)).
fn inode_of(file: &Path) -> Option<u64> {
    let number = file.file_name()?;
    let info = std::fs::read_to_string(file.parent()?.with_file_name("fdinfo").join(number)).ok()?;
    info.lines()
        .find_map(|line| line.strip_prefix("ino:"))?
        .trim()
        .parse()
        .ok()
}

fn writer_of(devices: &BTreeSet<Number>) -> Option<String> {
    writer(|named, file| {
        named.starts_with("/dev")
            && std::fs::metadata(file).is_ok_and(|metadata| {
                metadata.file_type().is_block_device() && devices.contains(&number(metadata.rdev()))
            })
    })
}

/// Another process that has something open for writing, as far as they can be looked at. `is_it` gets the name of an open
/// file, and the link in /proc that leads to it. It looks at none whose name it does not know: to look at a file of a
/// network file system that hangs would hang too.
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
    // What can't be read counts as writing.
    flags.is_none_or(|flags| flags & OFlag::O_ACCMODE.bits() != OFlag::O_RDONLY.bits())
}

/// Sectors written and discarded since the device is there; `None` where the kernel does not count them.
pub(super) fn written(device: Number) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(sys_path(device).join("stat")).ok()?;
    let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // Documentation/block/stat.rst.
    Some((*fields.get(6)?, fields.get(13).copied().unwrap_or(0)))
}
