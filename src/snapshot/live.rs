//! No snapshot: the disk is read as it is, because the user asked for that, although another process may write to it.

use std::path::PathBuf;

use vbk_repo::backup::SnapshotKind;

use super::SnapshotError;
use super::hold::{Disk, Hold, HoldMethod, NewHold, PlannedDisk, ReadFrom, Tools};
use super::options::SnapshotOptions;
use super::unused;
use crate::host::device::DeviceNumber;
use crate::host::holders::OpenFiles;
use crate::observer::{Event, Observer};

/// The method.
#[derive(Debug)]
pub(super) struct Live;

impl HoldMethod for Live {
    fn name(&self) -> &'static str {
        "live"
    }

    fn kind(&self) -> Option<SnapshotKind> {
        None
    }

    fn is_live(&self) -> bool {
        true
    }

    fn suits(&self, _disk: &Disk, options: &SnapshotOptions) -> Result<bool, SnapshotError> {
        Ok(options.live)
    }

    fn hold(&self, planned: &PlannedDisk, _new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError> {
        Ok(Box::new(LiveHold {
            path: planned.disk.source.clone(),
            device: planned.disk.device,
        }))
    }
}

#[derive(Debug)]
struct LiveHold {
    path: PathBuf,
    device: Option<DeviceNumber>,
}

impl Hold for LiveHold {
    fn make(&mut self, _tools: &Tools, observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError> {
        if let Ok(Some(user)) = unused::user_of(&self.path, self.device, &OpenFiles::now) {
            observer.event(Event::Warning(&format!(
                "{} is in use ({user}) and read as it is; its parts may be of different moments",
                self.path.display()
            )));
        }
        Ok(Some(ReadFrom::Path(self.path.clone())))
    }

    /// Nothing to check: the backup is recorded as one that was read live.
    fn check(&self, _tools: &Tools) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn release(&mut self, _tools: &Tools) -> Result<(), SnapshotError> {
        Ok(())
    }
}
