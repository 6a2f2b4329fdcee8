//! A disk that is read without a snapshot because nobody uses it: who does after all, and whether it was written meanwhile.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::SnapshotError;
use super::device::{self, Number};

/// Who uses a disk so that its content may change; `None` if nobody does, as far as this host can tell. `device` is that of a
/// block device.
pub(super) fn user_of(path: &Path, device: Option<Number>) -> Result<Option<String>, SnapshotError> {
    match device {
        Some(device) => device::user_of(path, device),
        None => user_of_file(path),
    }
}

fn user_of_file(path: &Path) -> Result<Option<String>, SnapshotError> {
    let found = std::fs::canonicalize(path).and_then(|path| Ok((std::fs::metadata(&path)?, path)));
    let (file, path) = found.map_err(SnapshotError::io("open", path))?;
    Ok(writable_loop(&file).or_else(|| device::writer_of_file(&path, &file)))
}

/// A loop device that shows a file and can be written to. The kernel has the file open then, and no process.
fn writable_loop(file: &Metadata) -> Option<String> {
    let shows = |(name, backing): &(OsString, PathBuf)| {
        let ro = std::fs::read_to_string(Path::new("/sys/block").join(name).join("ro"));
        let shown = std::fs::metadata(backing);
        ro.map_or(true, |ro| ro.trim() == "0")
            && shown.is_ok_and(|shown| (shown.dev(), shown.ino()) == (file.dev(), file.ino()))
    };
    let (name, _) = device::loop_devices().into_iter().find(shows)?;
    Some(format!("shown by /dev/{}", name.to_string_lossy()))
}

/// What changes when a disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// What the kernel counts; `None` where it does not.
    Device(Number, Option<(u64, u64)>),
    /// The time of the last change, to the nanosecond.
    File(i64, i64),
}

impl Mark {
    pub(super) fn of(path: &Path, device: Option<Number>) -> Result<Self, SnapshotError> {
        match device {
            Some(device) => Ok(Self::Device(device, device::written(device))),
            None => {
                let file = std::fs::metadata(path).map_err(SnapshotError::io("open", path))?;
                Ok(Self::File(file.mtime(), file.mtime_nsec()))
            }
        }
    }

    /// An error if the disk was written since.
    pub(super) fn check(self, path: &Path) -> Result<(), SnapshotError> {
        let device = match self {
            Self::Device(device, _) => Some(device),
            Self::File(..) => None,
        };
        let uncounted = matches!(self, Self::Device(_, None));
        let written = match uncounted {
            true => user_of(path, device)?.is_some(),
            false => Self::of(path, device)? != self,
        };
        match written {
            true => Err(SnapshotError::Written { path: path.to_owned() }),
            false => Ok(()),
        }
    }
}
