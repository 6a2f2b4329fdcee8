//! Holds the disks of a guest still while they are read, and releases them however the run ends.
//!
//! [`plan`] finds out what each disk is, and which method holds it still; it changes nothing. [`Plan::make`] makes all
//! snapshots, and [`Made::settle`] sees to it that there are all or none. [`Snapshots::watch`] guards them while they
//! are read; [`Snapshots::check`] says after the last byte whether they were good all the time; [`Snapshots::remove`]
//! removes them.
//!
//! A method is a file: `thick.rs`, `thin.rs`, `reflink.rs`, `live.rs` and `unused.rs` implement the promises of
//! `hold.rs`, and nothing else here knows one from the other. Each says in its head why what it reads can't be wrong,
//! and what a kill leaves of it.

mod error;
mod gauge;
mod guard;
mod hold;
mod kept;
mod leftovers;
mod live;
mod methods;
pub(crate) mod names;
mod notes;
mod options;
mod plan;
mod reflink;
mod remains;
mod remove;
mod size;
mod thick;
mod thin;
mod unused;
mod volume;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use vbk_repo::name::DiskName;

pub use self::error::SnapshotError;
pub use self::guard::Watch;
pub(crate) use self::hold::{Base, Content};
pub use self::hold::{Disk, HeldDisk, PlannedDisk};
use self::hold::{NewHold, ReadFrom, Tools};
pub use self::leftovers::{Cleaned, clean, give_up, leftovers};
pub use self::names::TAG;
pub use self::options::{Method, SnapshotOptions, SnapshotSize};
pub use self::plan::{Plan, plan};
pub(crate) use self::remains::Room;
pub use self::remains::{Directories, Leftover, State};
use crate::host::lvm;
use crate::host::run::Run;
use crate::observer::Observer;

/// Highest fill of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    /// The disk.
    pub disk: DiskName,
    /// 0 to 1, of a thick snapshot; of a thin one: of its pool's data.
    pub fill: f64,
    /// Bytes that were used of a thick snapshot; `None` for a thin one.
    pub used_bytes: Option<u64>,
}

/// All disks of a guest, held still. Dropping it releases them too, and only warns if that fails.
#[derive(Debug)]
pub struct Snapshots {
    tools: Tools,
    options: SnapshotOptions,
    disks: Vec<HeldDisk>,
}

/// Result of making a plan: all snapshots, or those before the one that failed.
#[derive(Debug)]
#[must_use]
pub struct Made {
    snapshots: Snapshots,
    result: Result<(), SnapshotError>,
}

impl Made {
    /// Looks for the snapshots, or removes those that exist if one failed. The guest need not stand still for this.
    pub fn settle(self) -> Result<Snapshots, SnapshotError> {
        let mut taken = self.snapshots;
        match self.result.and_then(|()| taken.find()) {
            Ok(()) => Ok(taken),
            Err(error) => match taken.remove() {
                Ok(()) => Err(error),
                Err(more) => Err(SnapshotError::Several(vec![error, more])),
            },
        }
    }
}

impl Plan {
    /// Holds the disks still. Snapshots follow each other as fast as lvm2 makes them; all exist before this returns,
    /// and nothing else is done. `run` is the run that they belong to.
    pub fn make(self, run: &Run, observer: &dyn Observer) -> Made {
        let mut taken = Snapshots {
            tools: Tools {
                programs: self.programs,
                run: run.clone(),
            },
            options: self.options,
            disks: Vec::new(),
        };
        let at = Timestamp::now();
        let mut result = Ok(());
        for (number, disk) in self.disks.into_iter().enumerate() {
            let new = NewHold { number, at, run };
            result = taken.take(disk, &new, observer);
            if result.is_err() {
                break;
            }
        }
        Made {
            snapshots: taken,
            result,
        }
    }
}

impl Snapshots {
    fn take(
        &mut self,
        mut planned: PlannedDisk,
        new: &NewHold<'_>,
        observer: &dyn Observer,
    ) -> Result<(), SnapshotError> {
        loop {
            let hold = planned.method.hold(&planned, new)?;
            let at = self.disks.len();
            // It is in the list before anything is made, so that it is released whatever happens.
            self.disks.push(HeldDisk {
                read: planned.disk.source.clone(),
                disk: planned.disk.clone(),
                snapshot: None,
                method: planned.method,
                hold,
                awaited: None,
            });
            let held = &mut self.disks[at];
            match held.hold.make(&self.tools, observer)? {
                Some(ReadFrom::Path(path)) => held.read = path,
                Some(ReadFrom::Volume { vg, name }) => held.awaited = Some((vg, name)),
                None => {
                    self.disks.pop();
                    planned.method = plan::without_snapshot(&planned.disk, &self.options)?;
                    continue;
                }
            }
            return Ok(());
        }
    }

    /// Finds the volumes that were made.
    fn find(&mut self) -> Result<(), SnapshotError> {
        let awaited = self.disks.iter().filter_map(|disk| disk.awaited.as_ref());
        let names: Vec<String> = awaited.map(|(vg, name)| lvm::named(vg, name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let found = lvm::volumes(&self.tools.programs, &names.join(" || "))?;
        for disk in &mut self.disks {
            let Some((vg, name)) = disk.awaited.take() else {
                continue;
            };
            let snapshot = found.iter().find(|volume| (&volume.vg, &volume.name) == (&vg, &name));
            let snapshot =
                snapshot.filter(|volume| volume.device.is_some() && names::is_ours(volume, self.tools.run.host_id()));
            let Some(snapshot) = snapshot else {
                return Err(SnapshotError::NotThere {
                    volume: format!("{vg}/{name}"),
                });
            };
            disk.read = snapshot.path.clone().into();
            disk.snapshot = Some(snapshot.clone());
        }
        Ok(())
    }

    /// The disks, in the order they were given.
    pub fn disks(&self) -> &[HeldDisk] {
        &self.disks
    }

    /// Returns whether a disk is read as it is, although another process may write to it.
    pub fn is_live(&self) -> bool {
        self.disks.iter().any(HeldDisk::is_live)
    }

    /// Starts the guard. When a snapshot is invalid or about to overflow it sets `stop`, and [`Watch::end`] says why.
    pub fn watch(&self, stop: Arc<AtomicBool>, observer: Arc<dyn Observer>) -> Result<Watch, SnapshotError> {
        let things = self.disks.iter().flat_map(|disk| disk.hold.watched());
        guard::watch(&self.tools.programs, &self.options, things.collect(), stop, observer)
    }

    /// Checks that everything that was read was of one moment. To be asked after the last byte was read, and before the
    /// record is written. It is also an error if a disk that no process used was written to meanwhile.
    pub fn check(&self) -> Result<(), SnapshotError> {
        self.disks.iter().try_for_each(|disk| disk.hold.check(&self.tools))
    }

    /// Highest fills of the snapshots, as far as they were looked at.
    pub fn peaks(&self) -> Vec<Peak> {
        let each = self.disks.iter().filter_map(|disk| {
            let watched = disk.hold.watched().into_iter().next()?;
            let (fill, used) = watched.gauge?.peak();
            Some(Peak {
                disk: disk.disk.name.clone(),
                fill,
                used_bytes: watched.thing.own_bytes(used),
            })
        });
        each.collect()
    }

    /// Keeps a disk's snapshot or copy when the rest is removed, as a base with this mark. What must outlive a reboot
    /// is noted in `cache`. Does nothing where there is neither.
    pub fn keep(&mut self, disk: &DiskName, mark: &str, cache: &Path) -> Result<(), SnapshotError> {
        match self.disks.iter_mut().find(|held| held.disk.name == *disk) {
            Some(held) => held.hold.keep(mark, cache, &self.tools),
            None => Ok(()),
        }
    }

    /// Removes all snapshots. One that can't be removed does not keep the others.
    pub fn remove(mut self) -> Result<(), SnapshotError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), SnapshotError> {
        let mut errors = Vec::new();
        for disk in self.disks.iter_mut().rev() {
            errors.extend(disk.hold.release(&self.tools).err());
        }
        errors.reverse();
        SnapshotError::all(errors)
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
