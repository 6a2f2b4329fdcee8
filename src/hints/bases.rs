//! The bases of change hints: what was read for the backup before, kept so that the next run can ask what has changed
//! since.
//!
//! A thin volume's base is the snapshot itself, tagged `vbk_base` and `vbk_backup_<mark>`; a raw file's is the reflink
//! copy, with that mark in its name. A mark stands for a backup and the disk in it ([`base_name`]). There is one base
//! for each disk, replaced by the next successful run.
//!
//! A base takes room as the guest overwrites what it shares with it. So none is kept where the pool or file system is
//! rather full already, `snapshot::give_up` takes them away between the runs, and a run that finds a pool too full gives
//! them up first.
//!
//! A base is believed only if it names that disk of the guest's latest backup ([`may_skip`]). So it does not matter which
//! volumes are which disks by then, or where a run ends: one
//! that failed leaves the old base, which is still that of the latest backup; one that was killed between its commit and
//! the new base leaves the old base too, and that one is not of the latest backup any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use vbk_repo::backup::{Entry, SnapshotKind};
use vbk_repo::block::BlockSize;
use vbk_repo::name::DiskName;
use vbk_repo::state::States;

use crate::hints::decide::{Decision, Question, may_skip};
use crate::hints::thin::{self, ThinPair, ThinSnapshot};
use crate::hints::{ChangeHints, Hint, HintError, HintOptions, Unchanged, audit, extents};
use crate::host::lvm::{self, Volume};
use crate::host::program::Programs;
use crate::host::run;
use crate::observer::{Event, Observer};
use crate::snapshot::names::base_name;
use crate::snapshot::{
    HeldDisk, Snapshots, TAG_BASE, copies_kept_of, fill_beside, host_tag, mark_of, pool_fill, remove_volume,
};

/// What is asked of hints, and what it takes to answer.
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

/// The same for copies of files: a file system is seldom extended, and often fuller than a pool may be.
const KEEP_COPIES_BELOW: f64 = 0.9;

/// What need not be read of each disk. Where nothing is known a note says why; where something is wrong, a warning.
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
        let full = |why: &str| format!("disk {} is read in full: {why}", disk.name);
        match hint(programs, disk, wish, stop) {
            _ if stop() => return hints,
            Ok(Ok(hint)) => {
                hints.insert(disk.name.clone(), hint);
            }
            Ok(Err(reason)) => observer.event(Event::Note(&full(&reason))),
            Err(error) => observer.event(Event::Warning(&full(&error.to_string()))),
        }
    }
    hints
}

/// A hint, or why there is none, which is an error only if there should be one.
fn hint(
    programs: &Programs,
    disk: &HeldDisk,
    wish: &Wish<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Result<Hint, String>, HintError> {
    let bases: Vec<(Base, String)> = match (disk.kind, &disk.snapshot) {
        (Some(SnapshotKind::Thin), Some(snapshot)) => {
            let volumes = volumes_kept_of(programs, snapshot, wish.host_id)?;
            let named = volumes.into_iter().filter_map(|volume| {
                let mark = mark_of(&volume)?.to_owned();
                Some((Base::Thin(Box::new(volume)), mark))
            });
            named.collect()
        }
        (Some(SnapshotKind::Reflink), _) if extents::may_compare(&disk.read) => {
            let copies = copies_kept_of(&disk.source).into_iter();
            copies.map(|(path, mark)| (Base::Copy(path), mark)).collect()
        }
        _ => {
            return Ok(Err(
                "there are change hints only for thin volumes, and for files on btrfs and XFS".to_owned(),
            ));
        }
    };
    let mut reason = "there is no base to compare with yet".to_owned();
    for (base, mark) in bases {
        let question = Question {
            entries: wish.entries,
            states: wish.states,
            disk: &disk.name,
            base: &mark,
            now: wish.now,
            full_read_every: wish.options.full_read_every,
            trust_hints: wish.options.trust,
        };
        match may_skip(&question) {
            Decision::Full(why) => reason = why.to_string(),
            Decision::Use(entry) => {
                return Ok(Ok(Hint {
                    since: entry.id,
                    unchanged: compare(programs, &base, disk, wish, stop)?,
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

enum Base {
    Thin(Box<Volume>),
    Copy(PathBuf),
}

fn compare(
    programs: &Programs,
    base: &Base,
    disk: &HeldDisk,
    wish: &Wish<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Unchanged, HintError> {
    match (base, &disk.snapshot) {
        (Base::Copy(path), _) => extents::unchanged(path, &disk.read, wish.block_size),
        (Base::Thin(base), Some(new)) => {
            let pair = ThinPair {
                vg: new.vg.clone(),
                pool: new.pool.clone(),
                base: thin_snapshot(base)?,
                new: thin_snapshot(new)?,
            };
            thin::unchanged(programs, wish.marks, &pair, wish.block_size, stop)
        }
        (Base::Thin(_), None) => Err(HintError::NotComparable {
            what: "the disk has no snapshot any more".to_owned(),
        }),
    }
}

fn thin_snapshot(volume: &Volume) -> Result<ThinSnapshot, HintError> {
    let (Some(thin_id), Some(transaction)) = (volume.thin_id, volume.transaction) else {
        return Err(HintError::NotComparable {
            what: format!("LVM does not say the thin id of {}", volume.full_name()),
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

/// The kept snapshots of the volume that `snapshot` is one of.
fn volumes_kept_of(programs: &Programs, snapshot: &Volume, host_id: &str) -> Result<Vec<Volume>, HintError> {
    let mut volumes = lvm::volumes(programs, &format!("lv_tags={{{TAG_BASE}}}"))?;
    volumes.retain(|volume| {
        volume.vg_uuid == snapshot.vg_uuid
            && !volume.origin_uuid.is_empty()
            && volume.origin_uuid == snapshot.origin_uuid
            && volume.has_tag(&host_tag(host_id))
    });
    Ok(volumes)
}

/// After a backup: what was read for it becomes the base of each disk, and the base before goes. Without hints, all bases of
/// the disks go. What fails is a warning: the backup is there.
pub(crate) fn replace(
    programs: &Programs,
    snapshots: &mut Snapshots,
    wish: &Wish<'_>,
    made: &Entry,
    observer: &dyn Observer,
) {
    let keep = wish.options.hints == ChangeHints::Auto;
    let disks = snapshots.disks().to_vec();
    for disk in disks {
        let wrong = made
            .backup
            .image(disk.name.as_str())
            .is_ok_and(|image| image.hints_wrong);
        let mark = (keep && !wrong).then(|| base_name(&made.id, &disk.name));
        if let Err(what) = replace_one(programs, snapshots, wish, &disk, mark.as_deref(), observer) {
            observer.event(Event::Warning(&format!(
                "the base for change hints of disk {}: {what}",
                disk.name
            )));
        }
    }
}

/// After a run that found hints wrong and then failed: the bases of those disks must not be compared with again.
pub(crate) fn distrust(
    programs: &Programs,
    snapshots: &Snapshots,
    wish: &Wish<'_>,
    disks: &[String],
    observer: &dyn Observer,
) {
    for disk in snapshots
        .disks()
        .iter()
        .filter(|disk| disks.iter().any(|name| disk.name.as_str() == name))
    {
        if let Err(what) = old_bases(programs, wish, disk).and_then(|old| remove_all(programs, wish, old)) {
            let name = &disk.name;
            observer.event(Event::Warning(&format!(
                "the base for change hints of disk {name}, which is wrong, stays: {what}"
            )));
        }
    }
}

fn replace_one(
    programs: &Programs,
    snapshots: &mut Snapshots,
    wish: &Wish<'_>,
    disk: &HeldDisk,
    mark: Option<&str>,
    observer: &dyn Observer,
) -> Result<(), String> {
    let old = old_bases(programs, wish, disk)?;
    // Of what has no hints nothing may be kept: a thick snapshot that stays fills up for nothing.
    let can_be_compared = match disk.kind {
        Some(SnapshotKind::Thin) => true,
        Some(SnapshotKind::Reflink) => extents::may_compare(&disk.read),
        Some(SnapshotKind::Thick) | None => false,
    };
    let too_full = match mark {
        Some(_) if can_be_compared => too_full(programs, wish, disk)?,
        _ => None,
    };
    if let Some(why) = &too_full {
        observer.event(Event::Note(&format!(
            "no base for change hints is kept of disk {}: {why}; the next backup reads all of it",
            disk.name
        )));
    }
    if let Some(mark) = mark.filter(|_| can_be_compared && too_full.is_none()) {
        // A pool keeps what it knows of a snapshot in memory for a second, a file system what it knows of a copy: after a
        // power cut the base must be what was read.
        File::open(&disk.read)
            .and_then(|read| read.sync_all())
            .map_err(|error| format!("can't flush {}: {error}", disk.read.display()))?;
        snapshots
            .keep(&disk.name, mark, wish.marks)
            .map_err(|error| error.to_string())?;
    }
    remove_all(programs, wish, old)
}

/// Why a base of a disk would have too little room, if it would.
fn too_full(programs: &Programs, wish: &Wish<'_>, disk: &HeldDisk) -> Result<Option<String>, String> {
    let (what, fill, below) = match &disk.snapshot {
        Some(snapshot) => {
            let fill = pool_fill(programs, &snapshot.vg, &snapshot.pool).map_err(|error| error.to_string())?;
            (
                format!("thin pool {}/{}", snapshot.vg, snapshot.pool),
                fill,
                wish.keep_below,
            )
        }
        None => (
            "its file system".to_owned(),
            fill_beside(&disk.source),
            KEEP_COPIES_BELOW,
        ),
    };
    Ok(fill.filter(|fill| *fill >= below).map(|fill| {
        format!(
            "{what} is {:.0} % full, and bases are kept below {:.0} %",
            fill * 100.0,
            below * 100.0
        )
    }))
}

fn old_bases(programs: &Programs, wish: &Wish<'_>, disk: &HeldDisk) -> Result<Vec<Base>, String> {
    Ok(match (disk.kind, &disk.snapshot) {
        (Some(SnapshotKind::Thin), Some(snapshot)) => {
            let volumes = volumes_kept_of(programs, snapshot, wish.host_id).map_err(|error| error.to_string())?;
            volumes.into_iter().map(|volume| Base::Thin(Box::new(volume))).collect()
        }
        (Some(SnapshotKind::Reflink), _) => {
            let copies = copies_kept_of(&disk.source).into_iter();
            copies.map(|(path, _)| Base::Copy(path)).collect()
        }
        _ => Vec::new(),
    })
}

fn remove_all(programs: &Programs, wish: &Wish<'_>, bases: Vec<Base>) -> Result<(), String> {
    for base in bases {
        match base {
            Base::Thin(volume) => {
                remove_volume(programs, wish.host_id, &volume).map_err(|error| error.to_string())?;
            }
            Base::Copy(path) => {
                std::fs::remove_file(&path).map_err(|error| format!("can't remove {}: {error}", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
