//! Mounts one file system: attaches its images to loop devices, calls mount(2), and puts an error into words.

use std::path::{Path, PathBuf};

use vbk_repo::mounts::{self, Mount};

use super::ntfs3g;
use super::teardown;
use super::{Action, Outcome, Volume, VolumeReport};
use crate::drivers::{FileSystem, JOURNAL_WARNING};
use crate::sys::{self, Errno, Writable};
use crate::volumes::error::Result;
use crate::volumes::loopdev::{self, LoopDevice};

/// Mounts a volume at `point`, which must exist if the volume has a file system.
pub(super) fn mount_volume(point: &Path, volume: &Volume) -> VolumeReport {
    let (fs, outcome) = match &volume.action {
        Action::Skip { reason, may_hold_files } => {
            let skipped = Outcome::Skipped {
                reason: reason.clone(),
                may_hold_files: *may_hold_files,
            };
            (None, skipped)
        }
        Action::Mount(how) => (Some(how.kind.clone()), mount_file_system(point, volume, how)),
    };
    VolumeReport {
        name: volume.name.clone(),
        fs,
        outcome,
    }
}

fn skipped(reason: String) -> Outcome {
    Outcome::Skipped {
        reason,
        may_hold_files: true,
    }
}

fn mount_file_system(point: &Path, volume: &Volume, how: &FileSystem) -> Outcome {
    let devices = match attach(volume, how) {
        Ok(devices) => devices,
        Err(error) => {
            return skipped(match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            });
        }
    };
    let outcome = mount_devices(&devices, point, how);
    let is_ours = |backing: &PathBuf| *backing == volume.image || volume.others.contains(backing);
    if matches!(outcome, Outcome::Skipped { .. }) {
        for device in devices {
            if how.kind == "btrfs" {
                device.forget_btrfs();
            }
            // The kernel clears it after the last close; wait, so that the image is free when this returns.
            let attached = loopdev::Attached::of_number(device.number());
            drop(device);
            if let Some(attached) = attached.filter(|it| is_ours(&it.backing)) {
                attached.wait_cleared(teardown::LOOP_WAIT);
            }
        }
    }
    outcome
}

fn attach(volume: &Volume, how: &FileSystem) -> Result<Vec<LoopDevice>> {
    let images = std::iter::once(&volume.image).chain(&volume.others);
    images
        .map(|image| LoopDevice::attach(image, how.backing, volume.sector_size))
        .collect()
}

fn mount_devices(devices: &[LoopDevice], point: &Path, how: &FileSystem) -> Outcome {
    let mut options = how.options.clone();
    for device in devices.iter().skip(1) {
        options.push_str(&format!(",device={}", device.node().display()));
    }
    let root = default_subvolume(devices, point, &how.kind, &options);
    let mounted = |data: &str, how: &FileSystem| {
        let comma = if data.is_empty() { "" } else { "," };
        Outcome::Mounted {
            options: format!("{}{comma}{data}", flags(how.read_write)),
            warning: how.warning.clone(),
            repaired: how.repaired.clone(),
            root: root.clone(),
        }
    };
    let first = match try_mount(devices, point, how, &options) {
        Ok(()) => return mounted(&options, how),
        Err(errno) => errno,
    };
    if how.kind == "ntfs3" && first == Errno::ENODEV {
        return mount_in_user_space(devices, point, how);
    }
    let Some(data) = how.without_journal.as_deref().filter(|_| may_be_the_journal(first)) else {
        return skipped(reason(&how.kind, first));
    };
    let mut how = FileSystem {
        read_write: false,
        repaired: None,
        ..how.clone()
    };
    match try_mount(devices, point, &how, data) {
        Ok(()) => {
            how.warn(format!("mounted with {data}: {JOURNAL_WARNING}"));
            mounted(data, &how)
        }
        // Refused for another reason. With a clean journal the first error says more; with a dirty one only the second
        // does.
        Err(second) if first == Errno::EROFS => skipped(reason(&how.kind, second)),
        Err(_) => skipped(reason(&how.kind, first)),
    }
}

/// Returns the options that mount(2) takes as flags.
fn flags(read_write: bool) -> &'static str {
    match read_write {
        true => "rw,nodev,nosuid",
        false => "ro,nodev,nosuid,noexec",
    }
}

/// Tests for an error with which a file system may fail on a read-only device because its journal must be replayed
/// (xfs: EROFS; seen on 6.18) or can't be read (the others).
fn may_be_the_journal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EROFS | Errno::EIO | Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG
    )
}

/// Mounts NTFS where the kernel has no ntfs3.
fn mount_in_user_space(devices: &[LoopDevice], point: &Path, how: &FileSystem) -> Outcome {
    let Some(program) = ntfs3g::program() else {
        return skipped(
            "this kernel has no ntfs3 file system (`modprobe ntfs3`?), and ntfs-3g is not installed; install the \
             package ntfs-3g and mount again"
                .to_owned(),
        );
    };
    let Some(device) = devices.first() else {
        return skipped("no loop device is attached".to_owned());
    };
    match ntfs3g::mount(program, &device.node(), point, flags(how.read_write)) {
        Ok(()) if shows(devices, point) => Outcome::Mounted {
            options: flags(how.read_write).to_owned(),
            warning: how.warning.clone(),
            repaired: None,
            root: None,
        },
        Ok(()) => skipped("ntfs-3g reported success, but mounted nothing".to_owned()),
        Err(why) => skipped(format!("this kernel has no ntfs3 file system, and ntfs-3g says: {why}")),
    }
}

fn try_mount(devices: &[LoopDevice], point: &Path, how: &FileSystem, data: &str) -> std::result::Result<(), Errno> {
    let device = devices.first().ok_or(Errno::ENODEV)?;
    let writable = if how.read_write {
        Writable::WithPrograms
    } else {
        Writable::No
    };
    sys::mount(&device.node(), point, &how.kind, writable, data)?;
    if shows(devices, point) {
        return Ok(());
    }
    // Never expected: another device's file system was mounted.
    if let Err(error) = sys::unmount(point, true) {
        tracing::warn!(point = %point.display(), %error, "can't unmount a file system of another device");
    }
    Err(Errno::EEXIST)
}

/// Returns the topmost file system at `point` if it reads from one of our devices. Looks at the kernel's table and does
/// not ask the file system. The kernel lists a btrfs over several devices with any one of them.
fn top_mount(devices: &[LoopDevice], point: &Path) -> Option<Mount> {
    let mounts = mounts::read().ok()?;
    let top = mounts.into_iter().rfind(|mount| mount.mount_point == point)?;
    let ours = devices.iter().any(|device| top.is_on_loop(device.number()));
    ours.then_some(top)
}

fn shows(devices: &[LoopDevice], point: &Path) -> bool {
    top_mount(devices, point).is_some()
}

/// Finds the default subvolume of the guest's superblock, from which the guest boots, by mounting it for a moment. Must
/// run before the rest is mounted, because one file system can't stand twice on one directory. A default that no longer
/// exists can't be mounted and is no loss.
fn default_subvolume(devices: &[LoopDevice], point: &Path, fs: &str, options: &str) -> Option<PathBuf> {
    if fs != "btrfs" {
        return None;
    }
    let options: Vec<_> = options
        .split(',')
        .filter(|option| !option.starts_with("subvolid="))
        .collect();
    sys::mount(
        &devices.first()?.node(),
        point,
        "btrfs",
        Writable::No,
        &options.join(","),
    )
    .ok()?;
    let default = top_mount(devices, point);
    if let Err(error) = sys::unmount(point, true) {
        tracing::warn!(point = %point.display(), %error, "can't unmount the default subvolume");
    }
    let root = default?.root;
    let root = root.strip_prefix("/").unwrap_or(&root).to_owned();
    (!root.as_os_str().is_empty()).then_some(root)
}

/// Puts into words why the kernel refused to mount a file system.
fn reason(fs: &str, errno: Errno) -> String {
    match errno {
        Errno::ENODEV => format!("this kernel has no {fs} file system (`modprobe {fs}`?)"),
        Errno::EINVAL => format!(
            "the kernel does not accept it as {fs}: damaged, or with features newer than this kernel (see `dmesg`)"
        ),
        Errno::EUCLEAN | Errno::EBADMSG => {
            format!("the {fs} file system is damaged (see `dmesg`)")
        }
        Errno::EIO => format!(
            "reading the {fs} file system failed: damaged, or the backup can't be read (see vbk's log and `dmesg`)"
        ),
        Errno::EROFS => format!("the {fs} file system needs repair first, and backups are read-only"),
        Errno::EEXIST => format!("the kernel showed another device's {fs} file system, which was unmounted at once"),
        Errno::ENOENT => format!("parts of the {fs} file system are on other disks"),
        Errno::EOPNOTSUPP => format!("the {fs} file system uses features that this kernel lacks"),
        Errno::ENOMEM => "there is not enough memory to mount it".to_owned(),
        Errno::EPERM | Errno::EACCES => "vbk may not mount it (CAP_SYS_ADMIN)".to_owned(),
        other => format!("mounting {fs} failed: {}", other.desc()),
    }
}
