//! Holds the disks of a guest still while they are read, and lets go of them however the run ends.
//!
//! [`plan`] finds out what each disk is and changes nothing; [`Plan::make`] makes all snapshots, and [`Made::settle`] sees
//! to it that there are all or none;
//! [`Snapshots::watch`] guards them while they are read; [`Snapshots::check`] says after the last byte whether they were
//! good all the time; [`Snapshots::remove`] removes them.
//!
//! # Why an invalid snapshot can never become a backup
//!
//! 1. A thick snapshot that has no room for what the guest overwrites is made invalid by the kernel before the guest's
//!    write goes on (`__invalidate_snapshot`, drivers/md/dm-snap.c). Until then all that was read of it was right.
//! 2. It stays invalid: the mark is in its header too, and neither more space nor another activation takes it back
//!    (seen: `lvextend` of an invalid snapshot leaves it invalid).
//! 3. Reads of an invalid snapshot fail with EIO, so most runs end there. A read that was on its way to the origin when
//!    the snapshot became invalid may bring bytes from after it.
//! 4. So [`Snapshots::check`] is asked after the last byte was read and before the record is written: with 2. a snapshot
//!    that is good then was good for every read before. If it can't be asked, that is an error too.
//!
//! # What a kill leaves
//!
//! 1. Before `lvcreate`: nothing.
//! 2. During it: lvm2 runs in its own process group and ends as it would have; a power cut
//!    leaves nothing, or a plain volume that is known by the same name and tags (`snapshot/names.rs`).
//! 3. After it: a snapshot whose tags, set with its first appearance, name this machine and this run. The run's lock is
//!    free by then, so `vbk snapshots --clean` and the next run remove it ([`clean`]). Copies of files:
//!    `snapshot/reflink.rs`.

mod error;
mod guard;
mod kept;
mod leftovers;
pub(crate) mod names;
mod plan;
mod reflink;
mod remove;
mod size;
mod unused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use vbk_repo::backup::SnapshotKind;
use vbk_repo::name::DiskName;

pub use self::error::SnapshotError;
pub use self::guard::Watch;
pub use self::leftovers::{Cleaned, Directories, Leftover, State, clean, give_up, leftovers, pool_fill};
pub use self::names::{TAG, TAG_BASE, host_tag, mark_of};
pub use self::plan::{Hold, Plan, PlannedDisk, plan};
pub use self::reflink::{bases as copies_kept_of, fill_beside};
pub use self::remove::remove_volume;
use crate::host::lvm::status::{DmStatus, Space, status};
use crate::host::lvm::{self, Volume};
use crate::host::program::Programs;
use crate::host::run::Run;
use crate::observer::{Event, Observer};

/// The unit of a thick snapshot's status.
const SECTOR_BYTES: u64 = 512;

/// Space for what the guest changes while a thick snapshot is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SnapshotSize {
    /// A share of the origin's size: 0.2 for 20 %.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

/// How disks are held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// By what each disk is.
    #[default]
    Auto,
    /// Not at all: disks that are in use are refused, unless they are to be read live.
    None,
}

/// What may be chosen about snapshots.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotOptions {
    /// Space of thick snapshots; `None`: twice what the last runs used, or 20 % of the origin, as far as there is room.
    pub size: Option<SnapshotSize>,
    /// The most that the last runs used of each disk's thick snapshot.
    pub peak_bytes: BTreeMap<DiskName, u64>,
    /// From this fill on, 0 to 1, snapshots and pools are extended; `None`: never.
    pub extend_at: Option<f64>,
    /// From this fill on the run is stopped.
    pub stop_at: f64,
    /// Read disks that are in use as they are.
    pub live: bool,
    /// How disks are held still.
    pub method: Method,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            size: None,
            peak_bytes: BTreeMap::new(),
            extend_at: Some(0.6),
            stop_at: 0.9,
            live: false,
            method: Method::Auto,
        }
    }
}

/// A disk that is held still, and where to read it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldDisk {
    /// Its name.
    pub name: DiskName,
    /// The disk, as it was given.
    pub source: PathBuf,
    /// What to read.
    pub read: PathBuf,
    /// What `read` is; `None` for the disk itself.
    pub kind: Option<SnapshotKind>,
    /// It is read as it is, although somebody may write to it.
    pub live: bool,
    /// The snapshot, where it is a logical volume.
    pub snapshot: Option<Volume>,
}

/// How full a snapshot was at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Peak {
    /// The disk.
    pub disk: DiskName,
    /// 0 to 1, of a thick snapshot; of a thin one: of its pool's data.
    pub fill: f64,
    /// What was used of a thick snapshot; `None` for a thin one.
    pub used_bytes: Option<u64>,
}

/// All disks of a guest, held still. Dropping it lets go of them too, and only warns if that fails.
#[derive(Debug)]
pub struct Snapshots {
    programs: Programs,
    run: Run,
    options: SnapshotOptions,
    disks: Vec<HeldDisk>,
    /// In the order of the disks.
    held: Vec<Held>,
}

/// What holds a disk.
#[derive(Debug)]
enum Held {
    Thick(Thick),
    Thin(Thin),
    Copy(reflink::Copy),
    Unused(unused::WriteMark),
    Nothing,
}

#[derive(Debug)]
struct Thick {
    vg: String,
    name: String,
    origin: Volume,
    gauge: Arc<Gauge>,
}

#[derive(Debug)]
struct Thin {
    vg: String,
    name: String,
    pool: Volume,
    gauge: Arc<Gauge>,
}

/// The highest that was seen.
#[derive(Debug, Default)]
struct Gauge(Mutex<(f64, u64)>);

impl Gauge {
    fn note(&self, space: Space) {
        let mut peak = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *peak = (peak.0.max(space.fill()), peak.1.max(space.used));
    }

    fn peak(&self) -> (f64, u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was made of a plan: all snapshots, or those before the one that failed.
#[derive(Debug)]
#[must_use]
pub struct Made {
    snapshots: Snapshots,
    result: Result<(), SnapshotError>,
}

impl Made {
    /// What need not be done while the guest stands still: looks for the snapshots, or removes what there is of them.
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
    /// Holds the disks still. Snapshots follow each other as fast as lvm2 makes them; all are there before this returns,
    /// and nothing else is done. `run` is what they live in.
    pub fn make(self, run: &Run, observer: &dyn Observer) -> Made {
        let mut taken = Snapshots {
            programs: self.programs,
            run: run.clone(),
            options: self.options,
            disks: Vec::new(),
            held: Vec::new(),
        };
        let at = Timestamp::now();
        let mut result = Ok(());
        for (number, disk) in self.disks.into_iter().enumerate() {
            result = taken.take(number, disk, at, observer);
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
        number: usize,
        disk: PlannedDisk,
        at: Timestamp,
        observer: &dyn Observer,
    ) -> Result<(), SnapshotError> {
        let mut held = HeldDisk {
            name: disk.name,
            read: disk.source.clone(),
            source: disk.source,
            kind: disk.hold.kind(),
            live: disk.hold == Hold::Live,
            snapshot: None,
        };
        let mut new = None;
        let holder = match (disk.hold, disk.volume, disk.pool) {
            (Hold::Thick { .. }, Some(origin), _) => {
                let snapshot = new.insert(plan::new_snapshot(&origin, disk.hold, number, at, &self.run));
                Held::Thick(Thick {
                    vg: snapshot.vg.clone(),
                    name: snapshot.name.clone(),
                    origin,
                    gauge: Arc::default(),
                })
            }
            (Hold::Thin, Some(origin), Some(pool)) => {
                let snapshot = new.insert(plan::new_snapshot(&origin, disk.hold, number, at, &self.run));
                Held::Thin(Thin {
                    vg: snapshot.vg.clone(),
                    name: snapshot.name.clone(),
                    pool,
                    gauge: Arc::default(),
                })
            }
            (Hold::Thick { .. } | Hold::Thin, _, _) => {
                return Err(SnapshotError::NotThere {
                    volume: format!("of {}", held.source.display()),
                });
            }
            (Hold::Reflink, ..) => match reflink::Copy::create(&self.run, &held.source, at)? {
                Some(copy) => {
                    held.read = copy.by_descriptor();
                    Held::Copy(copy)
                }
                None => {
                    tracing::info!("{} can't share its extents with a copy", held.source.display());
                    held.kind = None;
                    held.live = plan::bare(&held.source, None, &self.options)? == Hold::Live;
                    match held.live {
                        true => Held::Nothing,
                        false => Held::Unused(unused::WriteMark::of(&held.source, None)?),
                    }
                }
            },
            (Hold::Unused, ..) => Held::Unused(unused::WriteMark::of(&held.source, disk.device)?),
            (Hold::Live, ..) => {
                if let Ok(Some(user)) = unused::user_of(&held.source, disk.device) {
                    observer.event(Event::Warning(&format!(
                        "{} is in use ({user}) and read as it is; its parts may be of different moments",
                        held.source.display()
                    )));
                }
                Held::Nothing
            }
        };
        // Noted before it is made: an lvcreate that fails may have made it all the same.
        self.disks.push(held);
        self.held.push(holder);
        match new {
            Some(snapshot) => Ok(lvm::create(&self.programs, &snapshot)?),
            None => Ok(()),
        }
    }

    /// Finds what was made.
    fn find(&mut self) -> Result<(), SnapshotError> {
        let names: Vec<String> = self.volumes().map(|(_, vg, name)| lvm::named(vg, name)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let found = lvm::volumes(&self.programs, &names.join(" || "))?;
        let wanted: Vec<_> = self
            .volumes()
            .map(|(at, vg, name)| (at, vg.to_owned(), name.to_owned()))
            .collect();
        for (at, vg, name) in wanted {
            let snapshot = found.iter().find(|volume| (&volume.vg, &volume.name) == (&vg, &name));
            let snapshot =
                snapshot.filter(|volume| volume.device.is_some() && names::is_ours(volume, self.run.host_id()));
            let Some(snapshot) = snapshot else {
                return Err(SnapshotError::NotThere {
                    volume: format!("{vg}/{name}"),
                });
            };
            self.disks[at].read = snapshot.path.clone().into();
            self.disks[at].snapshot = Some(snapshot.clone());
        }
        Ok(())
    }

    /// Number of the disk, group and name of what is held by lvm2.
    fn volumes(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        self.held.iter().enumerate().filter_map(|(at, held)| match held {
            Held::Thick(Thick { vg, name, .. }) | Held::Thin(Thin { vg, name, .. }) => {
                Some((at, vg.as_str(), name.as_str()))
            }
            Held::Copy(_) | Held::Unused(_) | Held::Nothing => None,
        })
    }

    /// The disks, in the order they were given.
    pub fn disks(&self) -> &[HeldDisk] {
        &self.disks
    }

    /// Whether a disk is read as it is although somebody may write to it.
    pub fn is_live(&self) -> bool {
        self.disks.iter().any(|disk| disk.live)
    }

    /// Asked after the last byte was read: whether all that was read was of one moment (see the head of this file). It is
    /// also an error if a disk that nobody used was written meanwhile.
    pub fn check(&self) -> Result<(), SnapshotError> {
        for (disk, held) in self.disks.iter().zip(&self.held) {
            match held {
                Held::Thick(thick) => self.check_thick(thick)?,
                Held::Thin(thin) => self.check_thin(thin)?,
                Held::Unused(mark) => mark.check(&disk.source)?,
                Held::Copy(_) | Held::Nothing => {}
            }
        }
        Ok(())
    }

    fn check_thick(&self, thick: &Thick) -> Result<(), SnapshotError> {
        match status(&self.programs, &lvm::dm_name(&thick.vg, &thick.name, ""))? {
            DmStatus::Snapshot(space) => {
                thick.gauge.note(space);
                Ok(())
            }
            _ => Err(SnapshotError::Invalid {
                volume: format!("{}/{}", thick.vg, thick.name),
                origin: thick.origin.full_name(),
            }),
        }
    }

    fn check_thin(&self, thin: &Thin) -> Result<(), SnapshotError> {
        match status(&self.programs, &lvm::dm_name(&thin.vg, &thin.name, ""))? {
            DmStatus::Thin => Ok(()),
            _ => Err(SnapshotError::PoolFailed {
                pool: thin.pool.full_name(),
            }),
        }
    }

    /// How full the snapshots were at most, as far as they were looked at.
    pub fn peaks(&self) -> Vec<Peak> {
        let each = self.disks.iter().zip(&self.held).filter_map(|(disk, held)| {
            let (gauge, thick) = match held {
                Held::Thick(thick) => (&thick.gauge, true),
                Held::Thin(thin) => (&thin.gauge, false),
                Held::Copy(_) | Held::Unused(_) | Held::Nothing => return None,
            };
            let (fill, used) = gauge.peak();
            Some(Peak {
                disk: disk.name.clone(),
                fill,
                used_bytes: thick.then_some(used * SECTOR_BYTES),
            })
        });
        each.collect()
    }

    /// Keeps what holds a disk still when the rest is removed, as a base with this mark: a snapshot gets tags that say so
    /// instead of the run's, in one step, and a copy another name, which is noted in `cache`. Does nothing where there is
    /// neither.
    pub fn keep(&mut self, disk: &DiskName, mark: &str, cache: &Path) -> Result<(), SnapshotError> {
        let at = self.disks.iter().position(|held| held.name == *disk);
        let Some(held) = at.and_then(|at| self.held.get_mut(at)) else {
            return Ok(());
        };
        if let Held::Thick(Thick { vg, name, .. }) | Held::Thin(Thin { vg, name, .. }) = held {
            let run = [names::run_tag(self.run.id())];
            lvm::change_tags(&self.programs, vg, name, &run, &names::base_tags(mark))?;
        }
        // From here on it is not the run's any more, whatever happens.
        match std::mem::replace(held, Held::Nothing) {
            Held::Copy(copy) => copy.keep(mark, cache),
            _ => Ok(()),
        }
    }

    /// Removes all snapshots. One that can't be removed does not keep the others.
    pub fn remove(mut self) -> Result<(), SnapshotError> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), SnapshotError> {
        let mut errors = Vec::new();
        while let Some(held) = self.held.pop() {
            let removed = match held {
                Held::Thick(Thick { vg, name, .. }) | Held::Thin(Thin { vg, name, .. }) => {
                    remove::of_run(&self.programs, &self.run, &vg, &name)
                }
                Held::Copy(copy) => copy.remove(),
                Held::Unused(_) | Held::Nothing => Ok(()),
            };
            errors.extend(removed.err());
        }
        errors.reverse();
        SnapshotError::all(errors)
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
