//! A snapshot in the thin pool of its volume. It takes no space until the guest overwrites something, and then the
//! pool's.
//!
//! A thin snapshot is good as long as the pool is: a pool that is full fails the guest's writes before it harms a
//! snapshot. So the guard watches the pool, and the run ends before the pool is full. What a kill leaves is the same as
//! of a thick snapshot (`thick.rs`), but never a plain volume: the pool makes a thin snapshot in one step.
//!
//! # Bases
//!
//! The snapshot itself is kept, with the tags `vbk_base` and `vbk_backup_<mark>` instead of the run's, changed in one
//! step: a kill leaves it the run's, and the next run removes it, or a base.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vbk_repo::backup::SnapshotKind;

use super::gauge::{Fills, Gauge, Gauged, Label};
use super::hold::{Base, Bases, Content, Disk, HeldDisk, Hold, HoldMethod, NewHold, PlannedDisk, ReadFrom, Tools};
use super::options::SnapshotOptions;
use super::volume::{self, HeldVolume, LeftVolume};
use super::{SnapshotError, names};
use crate::host::lvm::status::{DmStatus, Space, status};
use crate::host::lvm::{self, Extend, Volume};
use crate::host::program::{ProgramError, Programs};
use crate::observer::Observer;

/// A block of a thin pool's metadata (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
const METADATA_BLOCK_BYTES: u64 = 4096;
/// The most that a pool's metadata can use (the same).
const MAX_METADATA_BYTES: u64 = 15 << 30;

/// The parts of a pool, and the options of lvextend(8) that extend them.
const DATA: &str = "data";
const EXTEND_DATA: &str = "-L+SIZE";
const METADATA: &str = "metadata";
const EXTEND_METADATA: &str = "--poolmetadatasize +SIZE";

/// The method. `Thick` lists its leftovers.
#[derive(Debug)]
pub(super) struct Thin;

impl HoldMethod for Thin {
    fn name(&self) -> &'static str {
        "thin"
    }

    fn kind(&self) -> Option<SnapshotKind> {
        Some(SnapshotKind::Thin)
    }

    fn suits(&self, disk: &Disk, _options: &SnapshotOptions) -> Result<bool, SnapshotError> {
        let Some(volume) = &disk.volume else {
            return Ok(false);
        };
        volume::check_is_disk(volume)?;
        Ok(volume.is_thin())
    }

    /// Refuses a pool that is nearly full: it is not filled further.
    fn reserve(
        &self,
        programs: &Programs,
        disks: &mut [&mut PlannedDisk],
        options: &SnapshotOptions,
    ) -> Result<(), SnapshotError> {
        let volumes = disks.iter().filter_map(|planned| planned.disk.volume.as_ref());
        let names: BTreeMap<(String, String), String> = volumes
            .map(|volume| {
                (
                    (volume.vg.clone(), volume.pool.clone()),
                    lvm::named(&volume.vg, &volume.pool),
                )
            })
            .collect();
        let pools = lvm::volumes(programs, &names.into_values().collect::<Vec<_>>().join(" || "))?;
        for pool in &pools {
            check_pool(pool, options.stop_at)?;
        }
        for planned in disks {
            let volume = planned.disk.volume.as_ref();
            let pool = volume.and_then(|volume| {
                pools
                    .iter()
                    .find(|pool| (&pool.vg, &pool.name) == (&volume.vg, &volume.pool))
            });
            planned.pool = pool.cloned();
        }
        Ok(())
    }

    fn hold(&self, planned: &PlannedDisk, new: &NewHold<'_>) -> Result<Box<dyn Hold>, SnapshotError> {
        let pool = planned.pool.as_ref().ok_or_else(|| volume::not_there(planned))?;
        Ok(Box::new(ThinHold {
            volume: HeldVolume::new(volume::origin_of(planned)?, new, None),
            pool: Pool {
                vg: pool.vg.clone(),
                name: pool.name.clone(),
            },
            chunk_bytes: pool.chunk_bytes,
            gauge: Arc::default(),
        }))
    }

    fn bases(&self, disk: &HeldDisk, programs: &Programs, host_id: &str) -> Result<Option<Bases>, SnapshotError> {
        let Some(snapshot) = &disk.snapshot else {
            return Ok(None);
        };
        let Some(room) = volume::pool_of(snapshot) else {
            return Ok(None);
        };
        let mut volumes = lvm::volumes(programs, &format!("lv_tags={{{}}}", names::TAG_BASE))?;
        volumes.retain(|volume| {
            volume.vg_uuid == snapshot.vg_uuid
                && !volume.origin_uuid.is_empty()
                && volume.origin_uuid == snapshot.origin_uuid
                && volume.has_tag(&names::host_tag(host_id))
        });
        let kept = volumes.into_iter().map(|volume| Base {
            mark: names::mark_of(&volume).map(str::to_owned),
            content: Content::ThinVolume(Box::new(volume.clone())),
            remains: Box::new(LeftVolume::new(volume, host_id)),
        });
        Ok(Some(Bases {
            now: Content::ThinVolume(Box::new(snapshot.clone())),
            room,
            kept: kept.collect(),
        }))
    }
}

fn check_pool(pool: &Volume, stop_at: f64) -> Result<(), SnapshotError> {
    // Volume health: failed, metadata read-only (lvs(8)).
    if matches!(pool.attr.as_bytes().get(8), Some(b'F' | b'M')) {
        return Err(SnapshotError::PoolFailed { pool: pool.full_name() });
    }
    let fills = [
        (DATA, pool.data_fill, EXTEND_DATA),
        (METADATA, pool.metadata_fill, EXTEND_METADATA),
    ];
    for (what, fill, option) in fills {
        if let Some(fill) = fill.filter(|fill| *fill >= stop_at) {
            return Err(SnapshotError::PoolFull {
                pool: pool.full_name(),
                what,
                percent: fill * 100.0,
                stop_percent: stop_at * 100.0,
                option,
            });
        }
    }
    Ok(())
}

#[derive(Debug)]
struct ThinHold {
    volume: HeldVolume,
    pool: Pool,
    chunk_bytes: u64,
    gauge: Arc<Gauge>,
}

impl Hold for ThinHold {
    fn make(&mut self, tools: &Tools, _observer: &dyn Observer) -> Result<Option<ReadFrom>, SnapshotError> {
        self.volume.make(tools)
    }

    fn check(&self, tools: &Tools) -> Result<(), SnapshotError> {
        match status(&tools.programs, &self.volume.device())? {
            DmStatus::Thin => Ok(()),
            _ => Err(self.pool.failed()),
        }
    }

    fn watched(&self) -> Vec<Gauged> {
        let data = Gauged {
            thing: Arc::new(PoolData {
                pool: self.pool.clone(),
                chunk_bytes: self.chunk_bytes,
            }),
            gauge: Some(Arc::clone(&self.gauge)),
        };
        let metadata = Gauged {
            thing: Arc::new(PoolMetadata(self.pool.clone())),
            gauge: None,
        };
        vec![data, metadata]
    }

    fn keep(&mut self, mark: &str, _cache: &Path, tools: &Tools) -> Result<(), SnapshotError> {
        self.volume.keep(mark, tools)
    }

    fn release(&mut self, tools: &Tools) -> Result<(), SnapshotError> {
        self.volume.release(tools)
    }
}

#[derive(Debug, Clone)]
struct Pool {
    vg: String,
    name: String,
}

impl Pool {
    fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    fn label(&self, part: &'static str) -> Label {
        Label {
            device: lvm::dm_name(&self.vg, &self.name, "tpool"),
            noun: "thin pool",
            name: self.full_name(),
            part,
            is_shared: true,
        }
    }

    fn failed(&self) -> SnapshotError {
        SnapshotError::PoolFailed { pool: self.full_name() }
    }

    /// Space of its data and of its metadata; the error says that it has failed.
    fn spaces(&self, programs: &Programs) -> Result<Result<(Space, Space), SnapshotError>, ProgramError> {
        Ok(match status(programs, &lvm::dm_name(&self.vg, &self.name, "tpool"))? {
            DmStatus::Pool { data, metadata, full } => {
                let used = if full { data.total } else { data.used };
                Ok((Space { used, ..data }, metadata))
            }
            _ => Err(self.failed()),
        })
    }

    fn stopped(&self, what: &'static str, option: &'static str, percent: f64, why: String) -> SnapshotError {
        SnapshotError::PoolFilling {
            pool: self.full_name(),
            what,
            percent,
            why,
            option,
        }
    }
}

#[derive(Debug)]
struct PoolData {
    pool: Pool,
    chunk_bytes: u64,
}

impl Fills for PoolData {
    fn label(&self) -> Label {
        self.pool.label(DATA)
    }

    fn look(&self, programs: &Programs) -> Result<Result<Space, SnapshotError>, ProgramError> {
        Ok(self.pool.spaces(programs)?.map(|(data, _)| data))
    }

    /// By a tenth.
    fn extend(&self, programs: &Programs, total: u64) -> Result<(), String> {
        volume::extend(programs, &self.pool.vg, &self.pool.name, &|free| {
            let have = total.saturating_mul(self.chunk_bytes);
            let extents = free.extents_of(have / 10).max(1).min(free.extents);
            (extents > 0).then_some(Extend::Data { extents })
        })
    }

    fn stopped(&self, percent: f64, why: String) -> SnapshotError {
        self.pool.stopped(DATA, EXTEND_DATA, percent, why)
    }
}

#[derive(Debug)]
struct PoolMetadata(Pool);

impl Fills for PoolMetadata {
    fn label(&self) -> Label {
        self.0.label(METADATA)
    }

    fn look(&self, programs: &Programs) -> Result<Result<Space, SnapshotError>, ProgramError> {
        Ok(self.0.spaces(programs)?.map(|(_, metadata)| metadata))
    }

    /// By half.
    fn extend(&self, programs: &Programs, total: u64) -> Result<(), String> {
        volume::extend(programs, &self.0.vg, &self.0.name, &|free| {
            let have = total.saturating_mul(METADATA_BLOCK_BYTES);
            let most = free.extents_of(MAX_METADATA_BYTES.saturating_sub(have));
            // The spare metadata of the group grows with it.
            let extents = free.extents_of(have / 2).max(1).min(free.extents / 2).min(most);
            (extents > 0).then_some(Extend::PoolMetadata {
                bytes: extents * free.extent_bytes,
            })
        })
    }

    fn stopped(&self, percent: f64, why: String) -> SnapshotError {
        self.0.stopped(METADATA, EXTEND_METADATA, percent, why)
    }
}
