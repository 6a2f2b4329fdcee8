//! Looks at a target as a restore would find it, and changes nothing: no file is made, and a device is opened only for
//! reading.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};
use vbk_inside::device::Device;

use super::in_use::{Used, user_of};
use super::place::{Place, is_device, reopen};
use super::{check_file, claim_device, find, is_block_device, refuse_user};
use crate::error::{Error, Result};
use crate::host::device::size_of_file;
use crate::host::holders::{OpenFiles, user_of_device};

/// A target before a restore.
pub(crate) struct Looks {
    /// Size of an existing device or file.
    pub(crate) size_bytes: Option<u64>,
    /// The target is a block device.
    pub(crate) is_device: bool,
    /// Free bytes of the file system of a file.
    pub(crate) free_bytes: Option<u64>,
    /// User of the target, if there is one.
    pub(crate) user: Option<String>,
    /// Error of a restore to this target.
    pub(crate) refusal: Option<Error>,
    /// Content of a device.
    held: Option<(File, u64)>,
}

impl Looks {
    /// Returns the disk that a device holds.
    pub(crate) fn old_disk(&self) -> Option<OldDisk<'_>> {
        self.held
            .as_ref()
            .map(|(file, size_bytes)| OldDisk::new(file, *size_bytes))
    }
}

/// The content of a device that a restore would overwrite.
pub(crate) struct OldDisk<'a> {
    file: &'a File,
    size_bytes: u64,
}

impl<'a> OldDisk<'a> {
    /// Makes the disk of an open device.
    pub(super) fn new(file: &'a File, size_bytes: u64) -> Self {
        Self { file, size_bytes }
    }
}

impl Device for OldDisk<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// Looks at the target of an image of `size_bytes` and `data_bytes`. With `in_place` an existing file is to be changed, and
/// not replaced. An error means that nothing can be said about the target.
pub(crate) fn look(path: &Path, size_bytes: u64, data_bytes: u64, force: bool, in_place: bool) -> Result<Looks> {
    let place = find(path)?;
    match &place.found {
        Some(found) if is_block_device(found, path)? => look_at_device(path, found, size_bytes, force),
        _ => look_at_file(&place, data_bytes, force, in_place),
    }
}

fn look_at_device(path: &Path, found: &File, size_bytes: u64, force: bool) -> Result<Looks> {
    let failed = || Error::target("open", path);
    let file = reopen(found, false, OFlag::empty()).map_err(failed())?;
    let have_bytes = size_of_file(&file).map_err(failed())?;
    let user = match is_device(found).map_err(failed())? {
        None => None,
        Some(device) => {
            let node: PathBuf = format!("/proc/self/fd/{}", found.as_raw_fd()).into();
            let user = user_of_device(&node, device, &OpenFiles::now).map_err(failed())?;
            match user {
                None => user_of(path, Used::Device { device, force: true })?,
                user => user,
            }
        }
    };
    Ok(Looks {
        size_bytes: Some(have_bytes),
        is_device: true,
        free_bytes: None,
        user,
        refusal: claim_device(path, found, size_bytes, force, false).err(),
        held: Some((file, have_bytes)),
    })
}

fn look_at_file(place: &Place, data_bytes: u64, force: bool, in_place: bool) -> Result<Looks> {
    let path = &place.path;
    let directory = place.open_directory()?;
    let free_bytes = room_of(&directory, &place.shown_directory())?;
    let (mut size_bytes, mut user) = (None, None);
    let refusal = match &place.found {
        None if in_place => Err(Error::NothingToCompare(path.clone())),
        None => check_new(place, &directory, data_bytes),
        Some(found) => {
            let used = match in_place {
                true => Used::InPlace(check_file(found, path)?),
                false => Used::File(check_file(found, path)?),
            };
            size_bytes = Some(found.metadata().map_err(Error::target("open", path))?.len());
            user = user_of(path, used)?;
            match (force, in_place) {
                (false, false) => Err(Error::TargetExists(path.clone())),
                (false, true) => Err(Error::TargetKept(path.clone())),
                (true, true) => refuse_user(path, used),
                (true, false) => refuse_user(path, used).and_then(|()| check_new(place, &directory, data_bytes)),
            }
        }
    };
    Ok(Looks {
        size_bytes,
        is_device: false,
        free_bytes: Some(free_bytes),
        user,
        refusal: refusal.err(),
        held: None,
    })
}

/// Fails if a new file can't be made in a directory.
fn check_new(place: &Place, directory: &File, data_bytes: u64) -> Result<()> {
    let shown = place.shown_directory();
    let node = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let allowed = access(node.as_str(), AccessFlags::W_OK | AccessFlags::X_OK);
    allowed.map_err(|errno| Error::target("create a file in", &shown)(errno.into()))?;
    check_room(directory, &shown, data_bytes)
}

/// Fails if the file system of a directory has less room than that.
pub(super) fn check_room(directory: &File, shown: &Path, need_bytes: u64) -> Result<()> {
    is_enough(shown, room_of(directory, shown)?, need_bytes)
}

/// Fails if a file system with so much free space, named by a directory on it, is too full.
pub(crate) fn is_enough(directory: &Path, have_bytes: u64, need_bytes: u64) -> Result<()> {
    match have_bytes < need_bytes {
        true => Err(Error::NoRoom {
            path: directory.to_owned(),
            have_bytes,
            need_bytes,
        }),
        false => Ok(()),
    }
}

/// Returns the free bytes of the file system of a directory.
pub(crate) fn room_in(directory: &Path) -> Result<u64> {
    let opened = File::open(directory).map_err(Error::target("open", directory))?;
    room_of(&opened, directory)
}

fn room_of(directory: &File, shown: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::fstatvfs(directory)
        .map_err(|errno| Error::target("create a file in", shown)(errno.into()))?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}
