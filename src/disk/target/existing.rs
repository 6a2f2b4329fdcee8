//! Existing targets of a differential restore: a block device, or a file that is changed in place.
//!
//! # On disk, step by step
//!
//! An ordinary restore writes a new file and renames it when it is whole. A differential restore writes over the only
//! copy, a device or a file alike:
//!
//! 1. Blocks that differ are written or zeroed, in any order. While that runs, and after a crash or an interruption, the
//!    target is neither the old disk nor the restored one: some blocks are new, the others old. A block that was being
//!    written may be any mix of both.
//! 2. A file gets the image's size. Until then the bytes after its end are the old ones.
//! 3. The target is synced. A loss of power before that may undo any of the writes.
//!
//! No state outside the target says how far a restore came. The next one compares all of the target again with the ids of
//! the image's blocks, so after a crash at any step it writes what is still missing, and that is all that is missing.

use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::in_use::{Used, user_of};
use super::place::{is_device, reopen};
use super::{Kind, MODE, Target, check_file, find, is_block_device, refuse_user};
use crate::disk::source::Source;
use crate::error::{Error, Result};
use crate::host::holders::{OpenFiles, user_of_device};

/// A target that was opened only for reading.
pub(crate) struct Looked {
    /// The target.
    pub(crate) source: Source,
    /// Its user, if there is one: its content may change at any moment.
    pub(crate) user: Option<String>,
}

impl Target {
    /// Opens a device or file to change it where it differs from an image, after all checks. Nothing is written yet, but
    /// a file loses its set-user-ID bit. A file needs `force`; with it, a device is written even if a program has it open.
    pub(crate) fn open_existing(path: &Path, size_bytes: u64, force: bool) -> Result<Self> {
        let place = find(path)?;
        let Some(found) = &place.found else {
            return Err(Error::NothingToCompare(path.to_owned()));
        };
        if is_block_device(found, path)? {
            return Self::open_device(path, found, size_bytes, force);
        }
        let identity = check_file(found, path)?;
        if !force {
            return Err(Error::TargetKept(path.to_owned()));
        }
        refuse_user(path, Used::InPlace(identity))?;
        let failed = || Error::target("open", path);
        let metadata = found.metadata().map_err(failed())?;
        // In a directory of another user the second name may be of a file that is not that user's.
        if metadata.nlink() > 1 {
            return Err(Error::HardLinked(path.to_owned()));
        }
        let buffered = reopen(found, true, OFlag::empty()).map_err(failed())?;
        if metadata.mode() & 0o7777 & !MODE != 0 {
            let mode = Permissions::from_mode(metadata.mode() & MODE);
            let set = buffered.set_permissions(mode);
            set.map_err(Error::target("set the mode of", path))?;
        }
        Ok(Self {
            path: path.to_owned(),
            direct: reopen(found, true, OFlag::O_DIRECT).ok(),
            buffered,
            kind: Kind::InPlace {
                place,
                identity,
                size_bytes,
            },
        })
    }

    /// Opens the target for reading, to compare it. Its writes are seen by the reads that follow them.
    pub(crate) fn reader(&self) -> Result<Source> {
        reader_of(&self.buffered)
    }
}

/// Opens a target only for reading, to say how far it differs from an image of `size_bytes`. It may be in use.
pub(crate) fn look_at(path: &Path, size_bytes: u64) -> Result<Looked> {
    let place = find(path)?;
    let Some(found) = &place.found else {
        return Err(Error::NothingToCompare(path.to_owned()));
    };
    let source = match is_block_device(found, path)? {
        true => reader_of(found)?,
        false => {
            check_file(found, path)?;
            reader_of(found)?
        }
    };
    let user = match is_device(found).map_err(Error::target("open", path))? {
        Some(_) if source.size_bytes() < size_bytes => {
            return Err(Error::TargetTooSmall {
                path: path.to_owned(),
                have_bytes: source.size_bytes(),
                need_bytes: size_bytes,
            });
        }
        Some(device) => {
            let user = user_of_device(&node_of(found), device, &OpenFiles::now).map_err(Error::target("open", path))?;
            match user {
                None => user_of(path, Used::Device { device, force: true })?,
                user => user,
            }
        }
        None => user_of(path, Used::InPlace(check_file(found, path)?))?,
    };
    Ok(Looked { source, user })
}

fn reader_of(held: &File) -> Result<Source> {
    Source::open(&node_of(held))
}

/// Returns a path that opens the file of a descriptor without looking up its name again.
fn node_of(held: &File) -> PathBuf {
    format!("/proc/self/fd/{}", held.as_raw_fd()).into()
}
