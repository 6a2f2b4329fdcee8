//! What a restore writes to: a new file that appears when it is whole, or a block device.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};

use crate::buffer::ALIGN;
use crate::error::{Error, Result};
use crate::snapshot::device::{lasting, loop_devices, writer_of_device, writer_of_file};
use crate::source::describe;
use crate::sys;

/// An open target. May be written by many threads at once, each its own range.
pub(crate) struct Target {
    path: PathBuf,
    /// O_DIRECT where that works: what is restored is seldom read again here.
    direct: Option<File>,
    buffered: File,
    kind: Kind,
}

enum Kind {
    Device,
    /// Written under another name, which is `None` once it has its own.
    File {
        part: Option<PathBuf>,
        replace: bool,
    },
}

impl Target {
    /// Opens a target for an image, after all checks; nothing of an existing target is changed yet. With `force` a file is
    /// replaced, and a device is written though a program has it open.
    pub(crate) fn open(path: &Path, size_bytes: u64, data_bytes: u64, force: bool) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                Self::open_device(path, size_bytes, metadata.rdev(), force)
            }
            Ok(metadata) if metadata.is_file() && !force => Err(Error::TargetExists(path.to_owned())),
            Ok(metadata) if metadata.is_file() => {
                // A link is followed: the file it names is replaced, not the link.
                let path = std::fs::canonicalize(path).map_err(Error::target("open", path))?;
                refuse_loop_backing(&path)?;
                // It would write on to the old file, which has no name any more, and all that would be lost.
                refuse_writer(
                    &path,
                    || writer_of_file(&path, &metadata),
                    "shut that down first, or move the file away to keep it",
                )?;
                Self::create_file(&path, size_bytes, data_bytes, Some(&metadata))
            }
            Ok(metadata) => Err(Error::NotADisk {
                path: path.to_owned(),
                what: describe(metadata.file_type()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.starts_with("/dev") => {
                // A mistyped volume must not become a file that fills up /dev.
                Err(Error::target("find device", path)(error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => match path.is_symlink() {
                true => Err(Error::DanglingLink(path.to_owned())),
                false => Self::create_file(path, size_bytes, data_bytes, None),
            },
            Err(error) => Err(Error::target("open", path)(error)),
        }
    }

    fn open_device(path: &Path, size_bytes: u64, rdev: u64, force: bool) -> Result<Self> {
        refuse_loop_sibling(path)?;
        let open = |flags: OFlag| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits())
                .open(path)
        };
        // O_EXCL without O_CREAT: the kernel refuses while the device, a partition of it or the disk it is on is
        // mounted, swap, or part of a volume group or array (open(2), block/bdev.c).
        let exclusive = match open(OFlag::O_EXCL | OFlag::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => open(OFlag::O_EXCL),
            result => result,
        };
        let direct = exclusive.map_err(|error| match error.raw_os_error() {
            Some(code) if code == Errno::EBUSY as i32 => Error::TargetInUse {
                path: path.to_owned(),
                what: device_user(path),
            },
            _ => Error::target("open", path)(error),
        })?;
        if !force {
            // QEMU does not claim the disks of a guest that runs.
            refuse_writer(
                path,
                || writer_of_device(rdev),
                "shut that down first; --force writes all the same",
            )?;
        }
        let have_bytes = sys::device_size_bytes(&direct).map_err(Error::target("open", path))?;
        if have_bytes < size_bytes {
            return Err(Error::TargetTooSmall {
                path: path.to_owned(),
                have_bytes,
                need_bytes: size_bytes,
            });
        }
        let buffered = open(OFlag::empty()).map_err(Error::target("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            direct: Some(direct),
            buffered,
            kind: Kind::Device,
        })
    }

    fn create_file(
        path: &Path,
        size_bytes: u64,
        data_bytes: u64,
        replaced: Option<&std::fs::Metadata>,
    ) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::NotADisk {
            path: path.to_owned(),
            what: "a directory",
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let stat = nix::sys::statvfs::statvfs(directory)
            .map_err(|errno| Error::target("create a file in", directory)(errno.into()))?;
        let have_bytes = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        if have_bytes < data_bytes {
            return Err(Error::NoRoom {
                path: directory.to_owned(),
                have_bytes,
                need_bytes: data_bytes,
            });
        }
        remove_leftovers(directory, name);
        let part = directory.join(part_name(std::process::id(), name));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let buffered = options.open(&part).map_err(Error::target("create", &part))?;
        // Tells the next restore that this one is at work.
        buffered.lock().map_err(Error::target("lock", &part))?;
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&part)
            .ok();
        let target = Self {
            path: path.to_owned(),
            direct,
            buffered,
            kind: Kind::File {
                part: Some(part.clone()),
                replace: replaced.is_some(),
            },
        };
        target
            .buffered
            .set_len(size_bytes)
            .map_err(Error::target("size", &part))?;
        if let Some(metadata) = replaced {
            std::os::unix::fs::fchown(&target.buffered, Some(metadata.uid()), Some(metadata.gid()))
                .and_then(|()| {
                    let mode = Permissions::from_mode(metadata.mode() & 0o7777);
                    target.buffered.set_permissions(mode)
                })
                .map_err(Error::target("set the owner of", &part))?;
        }
        Ok(target)
    }

    /// Writes at a multiple of 4096. `bytes` starts at an aligned address.
    pub(crate) fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let aligned = bytes.len() / ALIGN * ALIGN;
        let (body, tail) = bytes.split_at(aligned);
        let direct = match &self.direct {
            Some(file) => match file.write_all_at(body, offset_bytes) {
                // A file system that opens with O_DIRECT and then refuses to write.
                Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => false,
                result => {
                    result.map_err(Error::target("write", &self.path))?;
                    true
                }
            },
            None => false,
        };
        if !direct {
            self.buffered
                .write_all_at(body, offset_bytes)
                .map_err(Error::target("write", &self.path))?;
        }
        self.buffered
            .write_all_at(tail, offset_bytes + aligned as u64)
            .map_err(Error::target("write", &self.path))
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match self.kind {
            // Made of nothing but a hole.
            Kind::File { .. } => Ok(()),
            Kind::Device => {
                let aligned = len_bytes / ALIGN as u64 * ALIGN as u64;
                if aligned > 0 {
                    sys::zero_device_range(&self.buffered, offset_bytes, aligned)
                        .map_err(Error::target("zero a part of", &self.path))?;
                }
                let tail = vec![0; (len_bytes - aligned) as usize];
                self.buffered
                    .write_all_at(&tail, offset_bytes + aligned)
                    .map_err(Error::target("write", &self.path))
            }
        }
    }

    /// Makes a device read as zeros from `offset_bytes` to its end. A file ends there.
    pub(crate) fn zero_behind(&self, offset_bytes: u64) -> Result<()> {
        let Kind::Device = self.kind else {
            return Ok(());
        };
        let size_bytes = sys::device_size_bytes(&self.buffered).map_err(Error::target("size", &self.path))?;
        let aligned = offset_bytes.next_multiple_of(ALIGN as u64).min(size_bytes);
        let head = vec![0; aligned.saturating_sub(offset_bytes) as usize];
        self.buffered
            .write_all_at(&head, offset_bytes)
            .map_err(Error::target("write", &self.path))?;
        match size_bytes.saturating_sub(aligned) {
            0 => Ok(()),
            left => self.zero(aligned, left),
        }
    }

    /// Makes all of it durable, and a file visible under its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.buffered.sync_all().map_err(Error::target("sync", &self.path))?;
        if let Kind::File { part, replace } = &mut self.kind
            && let Some(from) = part
        {
            let flags = if *replace {
                RenameFlags::empty()
            } else {
                RenameFlags::RENAME_NOREPLACE
            };
            let renamed = match renameat2(AT_FDCWD, &*from, AT_FDCWD, &self.path, flags) {
                // Not every file system can refuse to replace; the check at the start has to do there.
                Err(Errno::EINVAL) => std::fs::rename(&*from, &self.path),
                Err(Errno::EEXIST) => return Err(Error::TargetExists(self.path.clone())),
                result => result.map_err(io::Error::from),
            };
            renamed.map_err(Error::target("name", &self.path))?;
            *part = None;
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)
                    .and_then(|directory| directory.sync_all())
                    .map_err(Error::target("sync", parent))?;
            }
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Kind::File { part: Some(part), .. } = &self.kind
            && let Err(error) = std::fs::remove_file(part)
        {
            tracing::warn!("can't remove the unfinished {}: {error}", part.display());
        }
    }
}

const PART_PREFIX: &str = ".vbk-part-";

/// The name of a file that is not whole yet: short enough for every file system, whatever the name it will get.
fn part_name(process: u32, name: &OsStr) -> String {
    let name: String = name.to_string_lossy().chars().take(50).collect();
    format!("{PART_PREFIX}{process}-{name}")
}

/// Removes what killed restores to the same name left. What can't be removed is of no harm but its size.
fn remove_leftovers(directory: &Path, name: &OsStr) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let process = found.strip_prefix(PART_PREFIX).and_then(|rest| rest.split('-').next());
        let same = process
            .and_then(|process| process.parse().ok())
            .is_some_and(|process| part_name(process, name) == found);
        if same && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn device_user(path: &Path) -> String {
    let canonical = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let source = Path::new(fields.next()?);
        let same = std::fs::canonicalize(source).is_ok_and(|source| source == canonical);
        same.then(|| fields.next().map(str::to_owned)).flatten()
    });
    match mounted {
        Some(point) => format!("mounted at {point}; `umount {point}` first"),
        None => {
            "by the kernel: mounted elsewhere, a mounted partition, swap, or part of a volume group or array".into()
        }
    }
}

/// Two that write to one disk destroy it.
fn refuse_writer(path: &Path, writer: impl Fn() -> Option<String>, advice: &str) -> Result<()> {
    match lasting(|| Ok::<_, Error>(writer()))? {
        None => Ok(()),
        Some(writer) => Err(Error::TargetInUse {
            path: path.to_owned(),
            what: format!("{writer}; {advice}"),
        }),
    }
}

/// A file that is a loop device's disk is in use, though nothing but sysfs says so.
fn refuse_loop_backing(path: &Path) -> Result<()> {
    refuse_loops(path, |_, backing| backing == path)
}

/// Two loop devices may show the same file, and the kernel does not see that they are one disk.
fn refuse_loop_sibling(device: &Path) -> Result<()> {
    let own = std::fs::canonicalize(device).map_err(Error::target("open", device))?;
    let own = own.file_name().unwrap_or_default().to_owned();
    let loops = loop_devices();
    let Some((_, shown)) = loops.iter().find(|(name, _)| *name == own) else {
        return Ok(());
    };
    refuse_loops(device, |name, backing| name != own && backing == shown)
}

fn refuse_loops(target: &Path, in_use: impl Fn(&OsStr, &Path) -> bool) -> Result<()> {
    match loop_devices().iter().find(|(name, backing)| in_use(name, backing)) {
        None => Ok(()),
        Some((name, _)) => {
            let name = name.to_string_lossy();
            Err(Error::TargetInUse {
                path: target.to_owned(),
                what: format!("loop device /dev/{name} shows it too; `losetup -d /dev/{name}` first"),
            })
        }
    }
}
