//! The bases of change hints: the snapshots and copies that were read for the backup before, kept so that the next run
//! can ask for the changes since.
//!
//! A thin volume's base is the snapshot itself, tagged `vbk_base` and `vbk_backup_<mark>`; a raw file's is the reflink
//! copy, with that mark in its name. A mark stands for a backup and the disk in it ([`base_name`]). Each disk has one
//! base, replaced by the next successful run.
//!
//! A base takes room as the guest overwrites the blocks that it shares with it. So none is kept in a pool or file
//! system that is rather full already, `snapshot::give_up` removes them between the runs, and a run that finds a pool
//! too full gives them up first.
//!
//! A base is used only if it names that disk of the guest's latest backup ([`may_skip`]). So volumes may change places
//! between two runs, and a run may end anywhere: one that failed leaves the old base, which is still that of the latest
//! backup; one that was killed between its commit and the new base leaves the old base too, which is not that of the
//! latest backup any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use jiff::Timestamp;
use vbk_repo::backup::Entry;
use vbk_repo::block::BlockSize;
use vbk_repo::name::DiskName;
use vbk_repo::state::States;

use crate::hints::decide::{Decision, Question, may_skip};
use crate::hints::thin::{self, ThinPair, ThinSnapshot};
use crate::hints::{ChangeHints, Hint, HintError, HintOptions, Unchanged, audit, extents};
use crate::host::lvm::Volume;
use crate::host::program::Programs;
use crate::host::run;
use crate::observer::{Event, Observer};
use crate::snapshot::names::base_name;
use crate::snapshot::{Base, Content, HeldDisk, Room, Snapshots};

/// All that finding and keeping bases needs to know of a guest and its run.
pub(crate) struct Wish<'a> {
    pub(crate) options: HintOptions,
    /// The guest's backups, oldest first.
    pub(crate) entries: &'a [Entry],
    pub(crate) states: &'a States,
    pub(crate) block_size: BlockSize,
    pub(crate) now: Timestamp,
    /// A directory that survives a reboot.
    pub(crate) marks: &'a Path,
    pub(crate) host_id: &'a str,
    /// From this fill of its pool on, 0 to 1, no base is kept.
    pub(crate) keep_below: f64,
}

/// The fill from which on no copy of a file is kept: a file system is seldom extended, and often fuller than a pool may
/// be.
const KEEP_COPIES_BELOW: f64 = 0.9;

/// Finds a hint for each disk. Where there is none, a note says why; where something is wrong, a warning.
pub(crate) fn hints(
    programs: &Programs,
    snapshots: &Snapshots,
    wish: &Wish<'_>,
    stop: &dyn Fn() -> bool,
    observer: &dyn Observer,
) -> BTreeMap<DiskName, Hint> {
    let mut hints = BTreeMap::new();
    if wish.options.hints == ChangeHints::Off {
        return hints;
    }
    for disk in snapshots.disks() {
        let name = &disk.disk.name;
        let full = |why: &str| format!("disk {name} is read in full: {why}");
        match hint(programs, disk, wish, stop) {
            _ if stop() => return hints,
            Ok(Ok(hint)) => {
                hints.insert(name.clone(), hint);
            }
            Ok(Err(reason)) => observer.event(Event::Note(&full(&reason))),
            Err(error) => observer.event(Event::Warning(&full(&error.to_string()))),
        }
    }
    hints
}

/// A hint, or the reason for which there is none. An error if something is wrong.
fn hint(
    programs: &Programs,
    disk: &HeldDisk,
    wish: &Wish<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Result<Hint, String>, HintError> {
    let bases = match disk.bases(programs, wish.host_id)? {
        Some(bases) if may_compare(&bases.now) => bases,
        Some(_) | None => {
            return Ok(Err(
                "there are change hints only for thin volumes, and for files on btrfs and XFS".to_owned(),
            ));
        }
    };
    let mut reason = "there is no base to compare with yet".to_owned();
    for base in bases.kept {
        let Some(mark) = &base.mark else {
            continue;
        };
        let question = Question {
            entries: wish.entries,
            states: wish.states,
            disk: &disk.disk.name,
            base: mark,
            now: wish.now,
            full_read_every: wish.options.full_read_every,
            trust_hints: wish.options.trust,
        };
        match may_skip(&question) {
            Decision::Full(why) => reason = why.to_string(),
            Decision::Use(entry) => {
                return Ok(Ok(Hint {
                    since: entry.id,
                    unchanged: compare(programs, &base.content, &bases.now, wish, stop)?,
                    seed: run::random().map_err(|error| HintError::NotComparable {
                        what: error.to_string(),
                    })?,
                    audit_one_in: audit::ONE_IN,
                }));
            }
        }
    }
    Ok(Err(reason))
}

fn may_compare(now: &Content) -> bool {
    match now {
        Content::ThinVolume(_) => true,
        Content::File(path) => extents::may_compare(path),
    }
}

fn compare(
    programs: &Programs,
    base: &Content,
    now: &Content,
    wish: &Wish<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Unchanged, HintError> {
    match (base, now) {
        (Content::File(base), Content::File(now)) => extents::unchanged(base, now, wish.block_size),
        (Content::ThinVolume(base), Content::ThinVolume(now)) => {
            let pair = ThinPair {
                vg: now.vg.clone(),
                pool: now.pool.clone(),
                base: thin_snapshot(base)?,
                new: thin_snapshot(now)?,
            };
            thin::unchanged(programs, wish.marks, &pair, wish.block_size, stop)
        }
        (Content::ThinVolume(_), Content::File(_)) | (Content::File(_), Content::ThinVolume(_)) => {
            Err(HintError::NotComparable {
                what: "the base and the disk are of different kinds".to_owned(),
            })
        }
    }
}

fn thin_snapshot(volume: &Volume) -> Result<ThinSnapshot, HintError> {
    let (Some(thin_id), Some(transaction)) = (volume.thin_id, volume.transaction) else {
        return Err(HintError::NotComparable {
            what: format!("LVM reports no thin id for {}", volume.full_name()),
        });
    };
    Ok(ThinSnapshot {
        thin_id,
        transaction,
        origin_uuid: volume.origin_uuid.clone(),
        // The second letter of lvs(8): r, or R for one that was only activated so.
        read_only: volume.attr.as_bytes().get(1) == Some(&b'r'),
        size_bytes: volume.size_bytes,
    })
}

/// After a backup: makes the snapshot or copy that was read the base of its disk, and removes the base before. Without
/// hints, removes all bases of the disks. A failure is a warning: the backup is complete.
pub(crate) fn replace(
    programs: &Programs,
    snapshots: &mut Snapshots,
    wish: &Wish<'_>,
    made: &Entry,
    observer: &dyn Observer,
) {
    let keep = wish.options.hints == ChangeHints::Auto;
    for at in 0..snapshots.disks().len() {
        let name = snapshots.disks()[at].disk.name.clone();
        let wrong = made.backup.image(name.as_str()).is_ok_and(|image| image.hints_wrong);
        let mark = (keep && !wrong).then(|| base_name(&made.id, &name));
        if let Err(what) = replace_one(programs, snapshots, at, wish, mark.as_deref(), observer) {
            observer.event(Event::Warning(&format!(
                "the base for change hints of disk {name}: {what}"
            )));
        }
    }
}

/// After a run that found hints wrong and then failed: removes the bases of those disks, so that none is compared with
/// again.
pub(crate) fn distrust(
    programs: &Programs,
    snapshots: &Snapshots,
    wish: &Wish<'_>,
    disks: &[String],
    observer: &dyn Observer,
) {
    for held in snapshots.disks() {
        let name = &held.disk.name;
        if !disks.iter().any(|disk| name.as_str() == disk) {
            continue;
        }
        let old = held.bases(programs, wish.host_id).map_err(|error| error.to_string());
        if let Err(what) = old.and_then(|old| remove_all(programs, old.map_or_else(Vec::new, |old| old.kept))) {
            observer.event(Event::Warning(&format!(
                "the base for change hints of disk {name}, which is wrong, stays: {what}"
            )));
        }
    }
}

fn replace_one(
    programs: &Programs,
    snapshots: &mut Snapshots,
    at: usize,
    wish: &Wish<'_>,
    mark: Option<&str>,
    observer: &dyn Observer,
) -> Result<(), String> {
    let disk = &snapshots.disks()[at];
    let old = disk.bases(programs, wish.host_id).map_err(|error| error.to_string())?;
    let Some(old) = old else {
        return Ok(());
    };
    // Nothing is kept of a disk without hints: a thick snapshot that stays fills up for nothing.
    let mark = mark.filter(|_| may_compare(&old.now));
    let too_full = match mark {
        Some(_) => too_full(programs, wish, &old.room)?,
        None => None,
    };
    let name = disk.disk.name.clone();
    if let Some(why) = &too_full {
        observer.event(Event::Note(&format!(
            "no base for change hints is kept of disk {name}: {why}; the next backup reads all of it"
        )));
    }
    if let Some(mark) = mark.filter(|_| too_full.is_none()) {
        // A pool keeps its changes of a snapshot in memory for a second, and a file system those of a copy: after a
        // power cut the base must be what was read.
        File::open(&disk.read)
            .and_then(|read| read.sync_all())
            .map_err(|error| format!("can't flush {}: {error}", disk.read.display()))?;
        snapshots
            .keep(&name, mark, wish.marks)
            .map_err(|error| error.to_string())?;
    }
    remove_all(programs, old.kept)
}

/// The reason for which a base would have too little room, if it would.
fn too_full(programs: &Programs, wish: &Wish<'_>, room: &Room) -> Result<Option<String>, String> {
    let below = match room {
        Room::Pool { .. } => wish.keep_below,
        Room::FileSystem { .. } => KEEP_COPIES_BELOW,
    };
    let fill = room.fill(programs).map_err(|error| error.to_string())?;
    Ok(fill.filter(|fill| *fill >= below).map(|fill| {
        format!(
            "{room} is {:.0} % full, and bases are kept below {:.0} %",
            fill * 100.0,
            below * 100.0
        )
    }))
}

fn remove_all(programs: &Programs, bases: Vec<Base>) -> Result<(), String> {
    for base in bases {
        base.remains.remove(programs).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
