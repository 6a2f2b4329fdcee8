//! No snapshot: the disk is read itself, because no process uses it. It is an error if it is written meanwhile.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vbk_repo::backup::SnapshotKind;

use super::SnapshotError;
use super::hold::{Disk, Hold, HoldMethod, NewHold, PlannedDisk, ReadFrom, Tools};
use super::options::SnapshotOptions;
use crate::host::device::DeviceNumber;
use crate::host::holders::{self, LastLook, OpenFiles};
use crate::host::loops;
use crate::observer::Observer;

/// The method. The last of all: it refuses a disk that is in use.
#[derive(Debug)]
pub(super) struct Unused;

impl HoldMethod for Unused {
    fn name(&self) -> &'static str {
        "unused"
    }

    fn kind(&self) -> Option<SnapshotKind> {
        None
    }

    fn suits(&self, disk: &Disk, options: &SnapshotOptions) -> Result<bool, SnapshotError> {
        let path = &disk.source;
        let look = || options.last_look.as_ref().map_or_else(OpenFiles::now, LastLook::get);
        let user = match user_of(path, disk.device, &look)? {
            None => None,
            Some(_) => holders::lasting(|| user_of(path, disk.device, &OpenFiles::now))?,
        };
        match user {
            None => Ok(true),
            Some(what) => Err(SnapshotError::InUse {
                path: path.clone(),
                what,
            }),
        }
    }

    fn hold(&self, planned: &PlannedDisk, _new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError> {
        Ok(Box::new(UnusedHold {
            path: planned.disk.source.clone(),
            mark: WriteMark::of(&planned.disk.source, planned.disk.device)?,
        }))
    }
}

#[derive(Debug)]
struct UnusedHold {
    path: PathBuf,
    mark: WriteMark,
}

impl Hold for UnusedHold {
    fn make(&mut self, _tools: &Tools, _observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError> {
        Ok(Some(ReadFrom::Path(self.path.clone())))
    }

    fn check(&self, _tools: &Tools) -> Result<(), SnapshotError> {
        self.mark.check(&self.path)
    }

    fn release(&mut self, _tools: &Tools) -> Result<(), SnapshotError> {
        Ok(())
    }
}

/// The user of a disk that may change its content; `None` if there is none, as far as this host can tell. `device` is
/// the number of a block device; `look` returns what is open.
pub(super) fn user_of(
    path: &Path,
    device: Option<DeviceNumber>,
    look: &dyn Fn() -> Arc<OpenFiles>,
) -> Result<Option<String>, SnapshotError> {
    match device {
        Some(device) => holders::user_of_device(path, device, look).map_err(SnapshotError::io("open", path)),
        None => user_of_file(path, look),
    }
}

fn user_of_file(path: &Path, look: &dyn Fn() -> Arc<OpenFiles>) -> Result<Option<String>, SnapshotError> {
    let found = std::fs::canonicalize(path).and_then(|path| Ok((std::fs::metadata(&path)?, path)));
    let (file, path) = found.map_err(SnapshotError::io("open", path))?;
    let identity = (file.dev(), file.ino());
    let shown = loops::showing_file(identity, true).map(|node| format!("shown by {}", node.display()));
    Ok(shown.or_else(|| holders::writer_of_file(&path, identity, &look())))
}

/// State of a disk that changes whenever the disk is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteMark {
    /// The kernel's count of writes; `None` where it keeps none.
    Device(DeviceNumber, Option<(u64, u64)>),
    /// The time of the last change, to the nanosecond.
    File(i64, i64),
}

impl WriteMark {
    fn of(path: &Path, device: Option<DeviceNumber>) -> Result<Self, SnapshotError> {
        match device {
            Some(device) => Ok(Self::Device(device, device.written())),
            None => {
                let file = std::fs::metadata(path).map_err(SnapshotError::io("open", path))?;
                Ok(Self::File(file.mtime(), file.mtime_nsec()))
            }
        }
    }

    /// An error if the disk was written since.
    fn check(self, path: &Path) -> Result<(), SnapshotError> {
        let device = match self {
            Self::Device(device, _) => Some(device),
            Self::File(..) => None,
        };
        let uncounted = matches!(self, Self::Device(_, None));
        let written = match uncounted {
            true => user_of(path, device, &OpenFiles::now)?.is_some(),
            false => Self::of(path, device)? != self,
        };
        match written {
            true => Err(SnapshotError::Written { path: path.to_owned() }),
            false => Ok(()),
        }
    }
}
