//! A target of a restore: a new file that appears when it is complete, a block device, or an existing file that is
//! changed in place.
//!
//! A target is opened once. Every other descriptor is made from that one (`/proc/self/fd`), and a name is used only
//! together with a descriptor of its directory: the owner of that directory may replace its entries at any moment.

mod behind;
mod existing;
mod in_use;
mod look;
mod place;

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{getegid, geteuid};

pub use self::behind::Wiped;
pub(crate) use self::existing::{Looked, look_at};
use self::in_use::{Used, user_of};
use self::look::check_room;
pub(crate) use self::look::{Looks, OldDisk, is_enough, look, room_in};
use self::place::{Identity, Part, Place, identity_of, is_device, reopen};
use crate::disk::buffer::ALIGN;
use crate::disk::source::describe;
use crate::error::{Error, Result};
use crate::host::device::DeviceNumber;
use crate::host::holders::{Claim, claim_of};
use crate::sys;

/// Mode bits that a disk image keeps: with another owner's set-user-ID bit, the guest's bytes would become a program.
const MODE: u32 = 0o777;

/// An open target. Many threads may write to it at once, each to its own range.
pub(crate) struct Target {
    path: PathBuf,
    /// O_DIRECT, if that works: restored data is seldom read again on this host.
    direct: Option<File>,
    buffered: File,
    kind: Kind,
}

enum Kind {
    Device {
        device: DeviceNumber,
        size_bytes: u64,
        force: bool,
        /// Claims the device, so that nothing is mounted from it in the meantime.
        _claim: File,
    },
    /// Written under a temporary name; `part` is `None` once it has its own.
    File {
        place: Place,
        part: Option<Part>,
        /// File to be replaced.
        old: Option<File>,
    },
    /// An existing file that is changed in place: see [`existing`].
    InPlace {
        place: Place,
        identity: Identity,
        /// Size that it gets at the end.
        size_bytes: u64,
    },
}

/// The space after an image on a larger device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Length; its bytes are unchanged except for signatures that were wiped.
    pub bytes: u64,
    /// Signatures that were wiped.
    pub wiped: Vec<Wiped>,
    /// True if the image has a GPT, whose second header is not at the end of the device.
    pub gpt_ends_early: bool,
}

impl Target {
    /// Opens a target for an image, after all checks; an existing target is not changed yet. With `force`, a file is
    /// replaced, and a device is written even if a program has it open.
    pub(crate) fn open(path: &Path, size_bytes: u64, data_bytes: u64, force: bool) -> Result<Self> {
        let place = find(path)?;
        match &place.found {
            Some(found) if is_block_device(found, path)? => Self::open_device(path, found, size_bytes, force),
            _ => Self::new_file(place, size_bytes, data_bytes, force),
        }
    }

    /// Opens a target for an image file of the named format, which will have about `need_bytes`: see
    /// [`Target::set_len`]. A device is refused.
    pub(crate) fn create(path: &Path, format: &'static str, need_bytes: u64, force: bool) -> Result<Self> {
        let place = find(path)?;
        match &place.found {
            Some(found) if is_block_device(found, path)? => Err(Error::FormatNeedsFile {
                path: path.to_owned(),
                format,
            }),
            _ => Self::new_file(place, need_bytes, need_bytes, force),
        }
    }

    fn new_file(place: Place, size_bytes: u64, data_bytes: u64, force: bool) -> Result<Self> {
        let Some(found) = &place.found else {
            return Self::create_file(place, None, size_bytes, data_bytes);
        };
        let path = &place.path;
        let identity = check_file(found, path)?;
        if !force {
            return Err(Error::TargetExists(path.clone()));
        }
        // A process would continue to write to it without a name, and all those writes would be lost.
        refuse_user(path, Used::File(identity))?;
        let old = found.try_clone().map_err(Error::target("open", path))?;
        Self::create_file(place, Some(old), size_bytes, data_bytes)
    }

    fn open_device(path: &Path, found: &File, size_bytes: u64, force: bool) -> Result<Self> {
        let Claimed {
            device,
            claim,
            have_bytes,
        } = claim_device(path, found, size_bytes, force, true)?;
        Ok(Self {
            path: path.to_owned(),
            direct: reopen(&claim, true, OFlag::O_DIRECT).ok(),
            buffered: reopen(&claim, true, OFlag::empty()).map_err(Error::target("open", path))?,
            kind: Kind::Device {
                device,
                size_bytes: have_bytes,
                force,
                _claim: claim,
            },
        })
    }

    fn create_file(place: Place, old: Option<File>, size_bytes: u64, data_bytes: u64) -> Result<Self> {
        let path = place.path.clone();
        let (part, buffered) = Part::create(&place)?;
        // From here on, the file is removed when this is dropped.
        let target = Self {
            path: path.clone(),
            direct: reopen(&buffered, true, OFlag::O_DIRECT).ok(),
            buffered,
            kind: Kind::File {
                place,
                part: Some(part),
                old,
            },
        };
        let Kind::File {
            place,
            part: Some(part),
            old,
        } = &target.kind
        else {
            return Ok(target);
        };
        check_room(part.directory(), &place.shown_directory(), data_bytes)?;
        target.set_len(size_bytes)?;
        if let Some(old) = old {
            // Tried now, and not only after hours of writing. Until the file is complete, it belongs to the caller
            // alone.
            give_to_owner_of(old, &target.buffered)
                .and_then(|()| fchown(&target.buffered, Some(geteuid().as_raw()), Some(getegid().as_raw())))
                .and_then(|()| target.buffered.set_permissions(Permissions::from_mode(0o600)))
                .map_err(Error::target("set the owner of", &path))?;
        }
        Ok(target)
    }

    /// Returns the disk that a device holds; `None` for a file, which is replaced or changed only with `force`.
    pub(crate) fn old_disk(&self) -> Option<OldDisk<'_>> {
        match self.kind {
            Kind::Device { size_bytes, .. } => Some(OldDisk::new(&self.buffered, size_bytes)),
            Kind::File { .. } | Kind::InPlace { .. } => None,
        }
    }

    /// Returns the path as given, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes at a multiple of 4096. `bytes` starts at an aligned address.
    pub(crate) fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let aligned = bytes.len() / ALIGN * ALIGN;
        let (body, tail) = bytes.split_at(aligned);
        let direct = match &self.direct {
            Some(file) => match file.write_all_at(body, offset_bytes) {
                // The file system opens with O_DIRECT and then refuses to write.
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

    /// Sets the size of a new file.
    pub(crate) fn set_len(&self, size_bytes: u64) -> Result<()> {
        self.buffered
            .set_len(size_bytes)
            .map_err(Error::target("size", &self.path))
    }

    /// Writes anywhere, through the page cache: for a few bytes of metadata.
    pub(crate) fn write_buffered(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        self.buffered
            .write_all_at(bytes, offset_bytes)
            .map_err(Error::target("write", &self.path))
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        match self.kind {
            // The file was created as one hole.
            Kind::File { .. } => Ok(()),
            Kind::InPlace { .. } => self.punch(offset_bytes, len_bytes),
            Kind::Device { .. } => {
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

    /// Makes a range of a file a hole. Writes zeros where the file system does not support that.
    fn punch(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // File offsets fit i64 (off_t).
        match fallocate(&self.buffered, flags, offset_bytes as i64, len_bytes as i64) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            result => return result.map_err(|errno| Error::target("zero a part of", &self.path)(errno.into())),
        }
        let zeros = vec![0; 1 << 20];
        let end = offset_bytes.saturating_add(len_bytes);
        for at in (offset_bytes..end).step_by(zeros.len()) {
            let len = zeros.len().min((end - at) as usize);
            self.write_buffered(at, &zeros[..len])?;
        }
        Ok(())
    }

    /// Leaves a range as it was before the restore: in a device or a file that is changed in place unchanged, in a file copied from the file that it
    /// replaces. Beyond the end of that file, and in a new file, the range reads as zeros.
    pub(crate) fn keep(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let Kind::File { old: Some(old), .. } = &self.kind else {
            return Ok(());
        };
        let old = reopen(old, false, OFlag::empty()).map_err(Error::target("read", &self.path))?;
        let mut buffer = vec![0; 1 << 20];
        let end = offset_bytes.saturating_add(len_bytes);
        let mut at = offset_bytes;
        while at < end {
            let wanted = buffer.len().min((end - at) as usize);
            let read = old.read_at(&mut buffer[..wanted], at);
            let read = read.map_err(Error::target("read", &self.path))?;
            if read == 0 {
                break;
            }
            self.buffered
                .write_all_at(&buffer[..read], at)
                .map_err(Error::target("write", &self.path))?;
            at += read as u64;
        }
        Ok(())
    }

    /// Makes a device read as zeros from `offset_bytes` to its end. For a file, `offset_bytes` is the end, so nothing
    /// is done.
    pub(crate) fn zero_behind(&self, offset_bytes: u64) -> Result<()> {
        let Kind::Device { size_bytes, .. } = self.kind else {
            return Ok(());
        };
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

    /// Wipes the signatures after an image of `image_bytes` on a larger device; `None` if nothing follows the image.
    pub(crate) fn wipe_behind(&self, image_bytes: u64) -> Result<Option<Behind>> {
        let Kind::Device { size_bytes, .. } = self.kind else {
            return Ok(None);
        };
        if size_bytes == image_bytes {
            return Ok(None);
        }
        let failed = || Error::target("wipe old signatures of", &self.path);
        Ok(Some(Behind {
            bytes: size_bytes - image_bytes,
            wiped: behind::wipe(&self.buffered, image_bytes, size_bytes).map_err(failed())?,
            gpt_ends_early: behind::has_gpt(&self.buffered, image_bytes).map_err(failed())?,
        }))
    }

    /// Fails if another process has started to use the target, e.g. a guest.
    pub(crate) fn check_alone(&self) -> Result<()> {
        let (used, left) = match &self.kind {
            Kind::Device { device, force, .. } => (
                Used::Device {
                    device: *device,
                    force: *force,
                },
                "its content is now neither the old disk nor the restored one. End that use, and restore again",
            ),
            Kind::File { old: Some(old), .. } => {
                let identity = identity_of(old).map_err(Error::target("examine", &self.path))?;
                (Used::File(identity), "the file is unchanged")
            }
            Kind::File { old: None, .. } => return Ok(()),
            Kind::InPlace { identity, .. } => (
                Used::InPlace(*identity),
                "its content is now neither the old file nor the restored one. End that use, and restore again",
            ),
        };
        match user_of(&self.path, used)? {
            None => Ok(()),
            Some(what) => Err(Error::TargetTaken {
                path: self.path.clone(),
                what,
                left,
            }),
        }
    }

    /// Makes the content durable, and a file visible under its name.
    ///
    /// 1. The content is synced. A crash before that leaves the unfinished file, or a device that is partly written.
    /// 2. The file is renamed to its final name, if the file with that name is the one found at the start. A crash
    ///    leaves the old file or the new.
    /// 3. The directory is synced.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Kind::File { old: Some(old), .. } = &self.kind {
            give_to_owner_of(old, &self.buffered).map_err(Error::target("set the owner of", &self.path))?;
        }
        if let Kind::InPlace { size_bytes, .. } = self.kind {
            self.set_len(size_bytes)?;
        }
        self.buffered.sync_all().map_err(Error::target("sync", &self.path))?;
        self.check_alone()?;
        let exchanged = || Error::TargetExchanged {
            path: self.path.clone(),
            what: "is another file than it was at the start",
        };
        if let Kind::InPlace { place, identity, .. } = &self.kind
            && place.identity() != Some(*identity)
        {
            return Err(exchanged());
        }
        if let Kind::File { place, part, old } = &mut self.kind
            && let Some(written) = part
        {
            if let Some(old) = old {
                let was = identity_of(old).map_err(Error::target("examine", &self.path))?;
                if place.identity().is_some_and(|now| now != was) {
                    return Err(exchanged());
                }
            }
            written.rename(place, old.is_some())?;
            let directory = written.directory().sync_all();
            *part = None;
            directory.map_err(Error::target("sync", place.shown_directory()))?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Kind::File { part: Some(part), .. } = &self.kind {
            part.remove();
        }
    }
}

/// A device that nothing else holds.
struct Claimed {
    device: DeviceNumber,
    /// Holds it.
    claim: File,
    have_bytes: u64,
}

/// Claims a device after all checks that do not depend on its content, for writing or only to look at it.
fn claim_device(path: &Path, found: &File, size_bytes: u64, force: bool, write: bool) -> Result<Claimed> {
    let failed = || Error::target("open", path);
    let Some(device) = is_device(found).map_err(failed())? else {
        return Err(failed()(io::ErrorKind::NotFound.into()));
    };
    if device.is_read_only() {
        return Err(Error::TargetReadOnly(path.to_owned()));
    }
    // O_EXCL without O_CREAT: the kernel refuses while the device, a partition of it or the disk it is on is
    // mounted, swap, or part of a volume group or array (open(2), block/bdev.c).
    let claim = reopen(found, write, OFlag::O_EXCL).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::EBUSY as i32 => Error::TargetInUse {
            path: path.to_owned(),
            what: claim_text(&claim_of(device)),
        },
        _ => failed()(error),
    })?;
    refuse_user(path, Used::Device { device, force })?;
    let have_bytes = sys::device_size_bytes(&claim).map_err(failed())?;
    if have_bytes < size_bytes {
        return Err(Error::TargetTooSmall {
            path: path.to_owned(),
            have_bytes,
            need_bytes: size_bytes,
        });
    }
    Ok(Claimed {
        device,
        claim,
        have_bytes,
    })
}

/// Finds a target and the file that now has its name. A missing device is an error.
fn find(path: &Path) -> Result<Place> {
    match Place::find(path) {
        // A mistyped volume name must not become a file that fills up /dev.
        Ok(place) if place.found.is_none() && path.starts_with("/dev") => {
            Err(Error::target("find device", path)(io::ErrorKind::NotFound.into()))
        }
        result => result,
    }
}

fn is_block_device(found: &File, path: &Path) -> Result<bool> {
    let metadata = found.metadata().map_err(Error::target("open", path))?;
    Ok(metadata.file_type().is_block_device())
}

/// Returns device and inode of a regular file; an error for another kind of file.
fn check_file(found: &File, path: &Path) -> Result<Identity> {
    let metadata = found.metadata().map_err(Error::target("open", path))?;
    match metadata.is_file() {
        true => Ok((metadata.dev(), metadata.ino())),
        false => Err(Error::NotADisk {
            path: path.to_owned(),
            what: describe(metadata.file_type()),
        }),
    }
}

/// Fails if the target is in use: two writers destroy a disk.
fn refuse_user(path: &Path, used: Used) -> Result<()> {
    match user_of(path, used)? {
        None => Ok(()),
        Some(what) => Err(Error::TargetInUse {
            path: path.to_owned(),
            what,
        }),
    }
}

fn give_to_owner_of(old: &File, new: &File) -> io::Result<()> {
    let metadata = old.metadata()?;
    fchown(new, Some(metadata.uid()), Some(metadata.gid()))?;
    new.set_permissions(Permissions::from_mode(metadata.mode() & MODE))
}

fn claim_text(claim: &Claim) -> String {
    match claim {
        Claim::Mounted(point) => format!("{claim}; `umount {}` first", point.display()),
        Claim::Unknown => "by the kernel: mounted in another namespace, or held by a program".to_owned(),
        Claim::Swap | Claim::PartOf(_) => claim.to_string(),
    }
}
