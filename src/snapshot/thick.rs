//! A snapshot with space of its own, for what the guest overwrites meanwhile.
//!
//! # Why an invalid snapshot can never become a backup
//!
//! 1. A thick snapshot that has no room for what the guest overwrites is made invalid by the kernel before the guest's
//!    write continues (`__invalidate_snapshot`, drivers/md/dm-snap.c). Until then all that was read of it was right.
//! 2. It stays invalid: the mark is in its header too, and neither more space nor another activation takes it back
//!    (seen: `lvextend` of an invalid snapshot leaves it invalid).
//! 3. Reads of an invalid snapshot fail with EIO, so most runs end there. A read that was on its way to the origin when
//!    the snapshot became invalid may bring bytes from after it.
//! 4. So the check is made after the last byte was read and before the record is written: with 2. a snapshot that is
//!    good then was good for every read before. If it can't be made, that is an error too.
//!
//! # What a kill leaves
//!
//! 1. Before `lvcreate`: nothing.
//! 2. During it: lvm2 runs in its own process group and ends as it would have; a power cut leaves nothing, or a plain
//!    volume that is known by the same name and tags (`names.rs`).
//! 3. After it: a snapshot whose tags, set with its first appearance, name this machine and this run. The run's lock is
//!    free by then, so `vbk snapshots --clean` and the next run remove it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vbk_repo::backup::SnapshotKind;

use super::gauge::{Fills, Gauge, Gauged, Label};
use super::hold::{Disk, Hold, HoldMethod, NewHold, PlannedDisk, ReadFrom, Tools};
use super::options::SnapshotOptions;
use super::remains::{Directories, Leftover};
use super::volume::{self, HeldVolume};
use super::{SnapshotError, size};
use crate::host::lvm::Extend;
use crate::host::lvm::status::{DmStatus, Space, status};
use crate::host::program::{ProgramError, Programs};
use crate::observer::Observer;

/// Unit of a thick snapshot's status.
const SECTOR_BYTES: u64 = 512;

/// The method.
#[derive(Debug)]
pub(super) struct Thick;

impl HoldMethod for Thick {
    fn name(&self) -> &'static str {
        "thick"
    }

    fn kind(&self) -> Option<SnapshotKind> {
        Some(SnapshotKind::Thick)
    }

    fn suits(&self, disk: &Disk, _options: &SnapshotOptions) -> Result<bool, SnapshotError> {
        let Some(volume) = &disk.volume else {
            return Ok(false);
        };
        volume::check_is_disk(volume)?;
        Ok(!volume.is_thin())
    }

    /// Gives the snapshots of each group their sizes, or says what room they need.
    fn reserve(
        &self,
        _programs: &Programs,
        disks: &mut [&mut PlannedDisk],
        options: &SnapshotOptions,
    ) -> Result<(), SnapshotError> {
        let mut groups: BTreeMap<String, Vec<&mut PlannedDisk>> = BTreeMap::new();
        for disk in disks {
            let vg = volume::origin_of(disk)?.vg.clone();
            groups.entry(vg).or_default().push(disk);
        }
        for (vg, members) in groups {
            let (mut wants, mut free_bytes, mut extent_bytes) = (Vec::new(), 0, 1);
            for member in &members {
                let volume = volume::origin_of(member)?;
                (free_bytes, extent_bytes) = (volume.vg_free_bytes, volume.vg_extent_bytes);
                let peak = options.peak_bytes.get(&member.disk.name).copied();
                wants.push(size::want(volume.size_bytes, extent_bytes, options.size, peak));
            }
            let parts = size::share_out(free_bytes / extent_bytes, &wants).map_err(|extents| {
                let names = members.iter().map(|member| member.disk.name.to_string());
                SnapshotError::NoRoom {
                    vg,
                    free_bytes,
                    need_bytes: extents.saturating_mul(extent_bytes),
                    disks: names.collect::<Vec<_>>().join(", "),
                }
            })?;
            for (member, extents) in members.into_iter().zip(parts) {
                member.space_bytes = Some(extents * extent_bytes);
            }
        }
        Ok(())
    }

    fn hold(&self, planned: &PlannedDisk, new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError> {
        let origin = volume::origin_of(planned)?;
        let space_bytes = planned.space_bytes.ok_or_else(|| volume::not_there(planned))?;
        let volume = HeldVolume::new(origin, new, Some(space_bytes / origin.vg_extent_bytes));
        Ok(Box::new(ThickHold {
            space: Arc::new(SnapshotSpace {
                device: volume.device(),
                vg: volume.vg().to_owned(),
                name: volume.name().to_owned(),
                origin: origin.full_name(),
                full_bytes: size::full_bytes(origin.size_bytes),
            }),
            gauge: Arc::default(),
            volume,
        }))
    }

    /// Lists those of thin snapshots too: one question to lvm2 finds both.
    fn leftovers(&self, programs: &Programs, directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
        volume::leftovers(programs, directories)
    }
}

#[derive(Debug)]
struct ThickHold {
    volume: HeldVolume,
    space: Arc<SnapshotSpace>,
    gauge: Arc<Gauge>,
}

impl Hold for ThickHold {
    fn make(&mut self, tools: &Tools, _observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError> {
        self.volume.make(tools)
    }

    fn check(&self, tools: &Tools) -> Result<(), SnapshotError> {
        self.gauge.note(self.space.look(&tools.programs)??);
        Ok(())
    }

    fn watched(&self) -> Vec<Gauged> {
        vec![Gauged {
            thing: self.space.clone(),
            gauge: Some(Arc::clone(&self.gauge)),
        }]
    }

    fn keep(&mut self, mark: &str, _cache: &Path, tools: &Tools) -> Result<(), SnapshotError> {
        self.volume.keep(mark, tools)
    }

    fn release(&mut self, tools: &Tools) -> Result<(), SnapshotError> {
        self.volume.release(tools)
    }
}

/// The snapshot's own space.
#[derive(Debug)]
struct SnapshotSpace {
    device: String,
    vg: String,
    name: String,
    /// `vg0/web1`
    origin: String,
    /// With so much it can't overflow.
    full_bytes: u64,
}

impl SnapshotSpace {
    fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }
}

impl Fills for SnapshotSpace {
    fn label(&self) -> Label {
        Label {
            device: self.device.clone(),
            noun: "snapshot",
            name: self.full_name(),
            part: "",
            is_shared: false,
        }
    }

    fn look(&self, programs: &Programs) -> Result<Result<Space, SnapshotError>, ProgramError> {
        Ok(match status(programs, &self.device)? {
            DmStatus::Snapshot(space) => Ok(space),
            _ => Err(SnapshotError::Invalid {
                volume: self.full_name(),
                origin: self.origin.clone(),
            }),
        })
    }

    fn own_bytes(&self, used: u64) -> Option<u64> {
        Some(used * SECTOR_BYTES)
    }

    fn can_overflow(&self, space: Space) -> bool {
        space.total.saturating_mul(SECTOR_BYTES) < self.full_bytes
    }

    /// By half.
    fn extend(&self, programs: &Programs, total: u64) -> Result<(), String> {
        volume::extend(programs, &self.vg, &self.name, &|free| {
            let have = total.saturating_mul(SECTOR_BYTES);
            let most = free.extents_of(self.full_bytes.saturating_sub(have));
            let extents = free.extents_of(have / 2).max(4).min(most).min(free.extents);
            (extents > 0).then_some(Extend::Data { extents })
        })
    }

    fn stopped(&self, percent: f64, why: String) -> SnapshotError {
        SnapshotError::Filling {
            volume: self.full_name(),
            origin: self.origin.clone(),
            vg: self.vg.clone(),
            percent,
            why,
        }
    }
}
