//! A disk that is read without a snapshot because nobody uses it: who does after all, and whether it was written meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::SnapshotError;
use crate::host::device::DeviceNumber;
use crate::host::holders;
use crate::host::loops;

/// Who uses a disk so that its content may change; `None` if nobody does, as far as this host can tell. `device` is that of a
/// block device.
pub(super) fn user_of(path: &Path, device: Option<DeviceNumber>) -> Result<Option<String>, SnapshotError> {
    match device {
        Some(device) => holders::user_of_device(path, device).map_err(SnapshotError::io("open", path)),
        None => user_of_file(path),
    }
}

fn user_of_file(path: &Path) -> Result<Option<String>, SnapshotError> {
    let found = std::fs::canonicalize(path).and_then(|path| Ok((std::fs::metadata(&path)?, path)));
    let (file, path) = found.map_err(SnapshotError::io("open", path))?;
    let identity = (file.dev(), file.ino());
    let shown = loops::showing_file(identity, true).map(|node| format!("shown by {}", node.display()));
    Ok(shown.or_else(|| holders::writer_of_file(&path, identity)))
}

/// State of a disk that changes whenever the disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMark {
    /// The kernel's count of writes; `None` where it keeps none.
    Device(DeviceNumber, Option<(u64, u64)>),
    /// The time of the last change, to the nanosecond.
    File(i64, i64),
}

impl WriteMark {
    pub(super) fn of(path: &Path, device: Option<DeviceNumber>) -> Result<Self, SnapshotError> {
        match device {
            Some(device) => Ok(Self::Device(device, device.written())),
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
