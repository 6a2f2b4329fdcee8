//! A restore that is only planned: describes the target, and writes nothing.

use std::path::Path;

use vbk_repo::reader::ImageReader;

use super::holds::{self, Holds};
use super::{Format, RestoreOptions};
use crate::disk::qcow2::Qcow2;
use crate::disk::target::{Looks, is_enough, look, room_in};
use crate::error::{Error, Result};

/// A target as a restore would find it.
#[derive(Debug)]
pub struct Preview {
    /// The target is a block device.
    pub is_device: bool,
    /// Size of an existing device or file.
    pub target_bytes: Option<u64>,
    /// Free bytes of the file system of a file.
    pub free_bytes: Option<u64>,
    /// User of the target and a way to end that use, if there is one.
    pub user: Option<String>,
    /// Identities of the disk on a device, for people: `GPT 1234-…`, `ext4 'data' on partition 1`.
    pub holds: Vec<String>,
    /// Error of a restore with these options.
    pub refusal: Option<Error>,
}

/// Describes what [`super::restore`] would find. `in_place` means a differential restore. An error means that nothing can be
/// said about the target.
pub fn preview(
    image: &ImageReader,
    data_bytes: u64,
    path: &Path,
    options: &RestoreOptions,
    in_place: bool,
) -> Result<Preview> {
    let data_bytes = file_bytes(options.format, image.size_bytes(), data_bytes);
    let mut looks: Looks = look(path, image.size_bytes(), data_bytes, options.force, in_place)?;
    let refusal = looks.refusal.take();
    if looks.is_device && options.format == Format::Qcow2 {
        return Err(Error::FormatNeedsFile {
            path: path.to_owned(),
            format: Qcow2::NAME,
        });
    }
    let holds = looks
        .old_disk()
        .map_or_else(Holds::default, |old| holds::compare(path, &old, image));
    Ok(Preview {
        is_device: looks.is_device,
        target_bytes: looks.size_bytes,
        free_bytes: looks.free_bytes,
        user: looks.user,
        holds: holds.found,
        refusal: refusal.or(holds.refusal.filter(|_| !options.force && !options.overwrite)),
    })
}

/// Returns the free bytes of the file system of a directory. Fails if they are fewer than `need_bytes`.
pub fn check_room(directory: &Path, need_bytes: u64) -> Result<u64> {
    let have_bytes = room_in(directory)?;
    is_enough(directory, have_bytes, need_bytes).map(|()| have_bytes)
}

/// Returns the bytes that a file of this format takes at most.
pub fn file_bytes(format: Format, size_bytes: u64, data_bytes: u64) -> u64 {
    match format {
        Format::Raw => data_bytes,
        Format::Qcow2 => Qcow2::file_bytes(size_bytes, data_bytes),
    }
}
