//! Snapshots that are logical volumes: the part that thick and thin ones have in common.

use std::path::Path;

use super::hold::{NewHold, PlannedDisk, ReadFrom, Tools};
use super::remains::{Directories, Leftover, Remains, Room, State};
use super::{SnapshotError, names, remove};
use crate::host::lvm::{self, Extend, NewSnapshot, Volume};
use crate::host::program::{ProgramError, Programs};
use crate::host::run;

/// Refuses a volume that can't be a guest's disk or have a snapshot.
pub(super) fn check_is_disk(volume: &Volume) -> Result<(), SnapshotError> {
    let refuse = |what| {
        Err(SnapshotError::NotAGuestVolume {
            volume: volume.full_name(),
            what,
        })
    };
    if names::is_snapshot_of_vbk(volume) {
        return refuse("a snapshot that vbk made");
    }
    if volume.is_thick_snapshot() {
        return refuse("a snapshot, and there are no snapshots of snapshots");
    }
    if volume.attr.starts_with('O') {
        return refuse("an origin into which a snapshot is being merged");
    }
    // Pools and parts of other volumes, by the letters of lvs(8).
    let hidden = volume.role.split(',').any(|role| role == "private");
    if hidden
        || volume.path.is_empty()
        || volume
            .attr
            .starts_with(['t', 'T', 'e', 'd', 'D', 'i', 'I', 'l', 'p', 'c'])
    {
        return refuse("a pool or a part of another volume");
    }
    Ok(())
}

/// The volume of a disk that is planned to have a snapshot of it.
pub(super) fn origin_of(planned: &PlannedDisk) -> Result<&Volume, SnapshotError> {
    planned.disk.volume.as_ref().ok_or_else(|| not_there(planned))
}

/// Error for a disk of which lvm2 knows no volume.
pub(super) fn not_there(planned: &PlannedDisk) -> SnapshotError {
    SnapshotError::NotThere {
        volume: format!("of {}", planned.disk.source.display()),
    }
}

/// A snapshot that is a logical volume, and whether it is still the run's to remove.
#[derive(Debug)]
pub(super) struct HeldVolume {
    new: NewSnapshot,
    held: bool,
}

impl HeldVolume {
    /// `extents`: space of its own.
    pub(super) fn new(origin: &Volume, new: &NewHold<'_>, extents: Option<u64>) -> Self {
        let run = new.run;
        Self {
            new: NewSnapshot {
                vg: origin.vg.clone(),
                origin: origin.name.clone(),
                pool: Some(origin.pool.clone()).filter(|pool| !pool.is_empty()),
                name: names::snapshot_name(origin, new.number, new.at, run.id()),
                extents,
                tags: names::tags(run.host_id(), run.id()),
            },
            held: false,
        }
    }

    pub(super) fn vg(&self) -> &str {
        &self.new.vg
    }

    pub(super) fn name(&self) -> &str {
        &self.new.name
    }

    /// Name in the device mapper.
    pub(super) fn device(&self) -> String {
        lvm::dm_name(&self.new.vg, &self.new.name, "")
    }

    pub(super) fn make(&mut self, tools: &Tools) -> Result<Option<ReadFrom>, SnapshotError> {
        // Before it is made: an lvcreate that fails may have made it all the same.
        self.held = true;
        lvm::create(&tools.programs, &self.new)?;
        Ok(Some(ReadFrom::Volume {
            vg: self.new.vg.clone(),
            name: self.new.name.clone(),
        }))
    }

    /// Gives it the tags of a base instead of the run's, in one step.
    pub(super) fn keep(&mut self, mark: &str, tools: &Tools) -> Result<(), SnapshotError> {
        let run = [names::run_tag(tools.run.id())];
        let (vg, name) = (&self.new.vg, &self.new.name);
        lvm::change_tags(&tools.programs, vg, name, &run, &names::base_tags(mark))?;
        self.held = false;
        Ok(())
    }

    pub(super) fn release(&mut self, tools: &Tools) -> Result<(), SnapshotError> {
        match std::mem::take(&mut self.held) {
            true => remove::of_run(&tools.programs, &tools.run, &self.new.vg, &self.new.name),
            false => Ok(()),
        }
    }
}

/// Free space of a volume group.
pub(super) struct Free {
    pub extents: u64,
    pub extent_bytes: u64,
}

impl Free {
    /// Extents that so many bytes need.
    pub(super) fn extents_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.extent_bytes.max(1))
    }
}

/// Extends a volume by what `by` wants of the free space; `None`: it fits nothing.
pub(super) fn extend(
    programs: &Programs,
    vg: &str,
    name: &str,
    by: &dyn Fn(&Free) -> Option<Extend>,
) -> Result<(), String> {
    let text = |error: ProgramError| error.to_string();
    let (free_bytes, extent_bytes) = lvm::free_space(programs, vg).map_err(text)?;
    let free = Free {
        extents: free_bytes / extent_bytes.max(1),
        extent_bytes,
    };
    match by(&free) {
        Some(by) => lvm::extend(programs, vg, name, by).map_err(text),
        None => Err(format!("volume group {vg} has no room")),
    }
}

/// A snapshot whose run is over, or that is kept.
#[derive(Debug)]
pub(super) struct LeftVolume {
    volume: Box<Volume>,
    host_id: String,
}

impl LeftVolume {
    pub(super) fn new(volume: Volume, host_id: &str) -> Self {
        Self {
            volume: Box::new(volume),
            host_id: host_id.to_owned(),
        }
    }
}

impl Remains for LeftVolume {
    fn remove(&self, programs: &Programs) -> Result<bool, SnapshotError> {
        remove::remove_volume(programs, &self.host_id, &self.volume).map(|()| true)
    }

    fn room(&self) -> Option<Room> {
        pool_of(&self.volume)
    }

    fn volumes(&self) -> Vec<(&str, &str)> {
        let names = [&self.volume.origin, &self.volume.name, &self.volume.pool];
        names.map(|name| (self.volume.vg.as_str(), name.as_str())).into()
    }
}

/// The thin pool of a volume.
pub(super) fn pool_of(volume: &Volume) -> Option<Room> {
    (!volume.pool.is_empty()).then(|| Room::Pool {
        vg: volume.vg.clone(),
        pool: volume.pool.clone(),
    })
}

/// The snapshots that vbk made, on this machine and on others that share its volume groups.
pub(super) fn leftovers(programs: &Programs, directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
    let volumes = match lvm::volumes(programs, &format!("lv_tags={{{}}}", names::TAG)) {
        // No lvm2, no volumes.
        Err(ProgramError::Missing { .. }) => Vec::new(),
        result => result?,
    };
    let volumes = volumes.into_iter().filter(names::is_snapshot_of_vbk);
    Ok(volumes
        .map(|volume| leftover(volume, directories.runtime_dir, directories.host_id))
        .collect())
}

fn leftover(volume: Volume, runtime_dir: &Path, host_id: &str) -> Leftover {
    let run = names::run_of(&volume).map(str::to_owned);
    let state = match &run {
        _ if !names::is_ours(&volume, host_id) => State::OtherHost,
        _ if volume.has_tag(names::TAG_BASE) => State::Kept,
        Some(run) if run::is_running(runtime_dir, run) => State::InUse,
        Some(_) => State::LeftBehind,
        // All tags were set at once, so this one was taken.
        None => State::Unclear,
    };
    Leftover {
        name: volume.full_name(),
        of: match volume.origin.as_str() {
            "" => String::new(),
            origin => format!("{}/{origin}", volume.vg),
        },
        since: volume.since,
        fill: volume.data_fill.filter(|_| volume.is_thick_snapshot()),
        // The state of an invalid snapshot (lvs(8)).
        invalid: matches!(volume.attr.as_bytes().get(4), Some(b'I' | b'S')),
        info: run.as_deref().and_then(|run| run::info(runtime_dir, run)),
        run,
        state,
        remains: Box::new(LeftVolume::new(volume, host_id)),
    }
}
