//! Which snapshots of vbk's exist and why, and the removal of those that nobody needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{SnapshotError, kept, names, reflink, remove};
use crate::host::lvm::{self, Volume, suspended};
use crate::host::program::{ProgramError, Programs};
use crate::host::run::{self, RunInfo};

/// A snapshot or copy that vbk made.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftover {
    /// `vg0/vbk-web1-...`, or the path of a copy.
    pub name: String,
    /// What it is of, as `vg0/web1`; empty if unknown.
    pub of: String,
    /// Since when, as far as known.
    pub since: Option<Timestamp>,
    /// How full it is, 0 to 1; of a thick snapshot only.
    pub fill: Option<f64>,
    /// It has overflowed and is of no use.
    pub invalid: bool,
    /// The run that made it.
    pub run: Option<String>,
    /// What that run says of itself, where it still can be read.
    pub info: Option<RunInfo>,
    /// Why it is there.
    pub state: State,
    thing: Thing,
}

#[derive(Debug, Clone, PartialEq)]
enum Thing {
    Volume(Box<Volume>),
    Copy(PathBuf),
    /// A copy that is kept.
    Base(PathBuf),
}

/// Why a snapshot is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its run is at work.
    InUse,
    /// Its run ended without removing it.
    LeftBehind,
    /// Kept on purpose as the base of change hints.
    Kept,
    /// Another machine's vbk made it; only that one removes it.
    OtherHost,
    /// Somebody has taken tags from it; vbk leaves it alone.
    Unclear,
}

/// What a cleaning did.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Names of what was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<(String, SnapshotError)>,
    /// A sentence about devices of snapshots and their origins that are suspended.
    pub suspended: Option<String>,
}

impl Cleaned {
    fn note(&mut self, name: String, removed: Result<(), SnapshotError>) {
        match removed {
            Ok(()) => self.removed.push(name),
            Err(error) => self.failed.push((name, error)),
        }
    }
}

/// Where to look for what vbk made.
#[derive(Debug, Clone, Copy)]
pub struct Directories<'a> {
    /// What the runs note, as `/run/vbk`.
    pub runtime_dir: &'a Path,
    /// What is to survive a reboot and may be lost, as `/var/cache/vbk`.
    pub cache: &'a Path,
    /// This machine.
    pub host_id: &'a str,
}

impl Leftover {
    /// Its volume and those that a change of it suspends, as group and name.
    fn volumes(&self) -> Vec<(&str, &str)> {
        match &self.thing {
            Thing::Volume(volume) => {
                let names = [&volume.origin, &volume.name, &volume.pool];
                names.map(|name| (volume.vg.as_str(), name.as_str())).into()
            }
            Thing::Copy(_) | Thing::Base(_) => Vec::new(),
        }
    }
}

/// Lists the snapshots that vbk made, on this machine and on others that share its volume groups; the copies of files
/// that runs since the last reboot noted; and those that are kept.
pub fn leftovers(programs: &Programs, directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
    let Directories {
        runtime_dir,
        cache,
        host_id,
    } = directories;
    // In this order: a run is locked before it makes anything, so whatever is listed belongs to a run that is alive, or
    // one that is over.
    let volumes = match lvm::volumes(programs, &format!("lv_tags={{{}}}", names::TAG)) {
        // No lvm2, no volumes.
        Err(ProgramError::Missing { .. }) => Vec::new(),
        result => result?,
    };
    let volumes = volumes.into_iter().filter(names::is_snapshot_of_vbk);
    let mut all: Vec<Leftover> = volumes.map(|volume| of_volume(volume, runtime_dir, host_id)).collect();
    for dir in run::all(runtime_dir) {
        let copies = reflink::noted(&dir);
        all.extend(copies.into_iter().filter_map(|path| of_copy(path, runtime_dir)));
    }
    let copies = kept::all(cache).into_iter().filter(|kept| reflink::is_base(&kept.copy));
    all.extend(copies.map(of_base));
    Ok(all)
}

fn of_volume(volume: Volume, runtime_dir: &Path, host_id: &str) -> Leftover {
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
        thing: Thing::Volume(Box::new(volume)),
    }
}

/// When a copy was made; it is not written to afterwards.
fn made(path: &Path) -> Option<Timestamp> {
    let modified = std::fs::symlink_metadata(path).and_then(|copy| copy.modified());
    Timestamp::try_from(modified.ok()?).ok()
}

fn of_base(kept: kept::Kept) -> Leftover {
    Leftover {
        name: kept.copy.display().to_string(),
        of: kept.source.display().to_string(),
        since: made(&kept.copy),
        fill: None,
        invalid: false,
        run: None,
        info: None,
        state: State::Kept,
        thing: Thing::Base(kept.copy),
    }
}

fn of_copy(path: PathBuf, runtime_dir: &Path) -> Option<Leftover> {
    let run = path.file_name().and_then(reflink::run_of)?.to_owned();
    path.symlink_metadata().ok()?;
    Some(Leftover {
        name: path.display().to_string(),
        of: String::new(),
        since: made(&path),
        fill: None,
        invalid: false,
        state: match run::is_running(runtime_dir, &run) {
            true => State::InUse,
            false => State::LeftBehind,
        },
        info: run::info(runtime_dir, &run),
        run: Some(run),
        thing: Thing::Copy(path),
    })
}

/// Removes what runs of this machine left behind, and with `kept` also what is kept as the base of change hints. Each
/// removal looks again at what it removes.
pub fn clean(programs: &Programs, directories: Directories<'_>, kept: bool) -> Result<Cleaned, SnapshotError> {
    let found = leftovers(programs, directories)?;
    let volumes = found.iter().filter(|left| left.state != State::OtherHost);
    let volumes: Vec<(&str, &str)> = volumes.flat_map(Leftover::volumes).collect();
    let mut cleaned = Cleaned {
        suspended: suspended::report(programs, &volumes),
        ..Cleaned::default()
    };
    for left in found {
        match left.state {
            State::LeftBehind => {}
            State::Kept if kept => {}
            State::Kept | State::InUse | State::OtherHost | State::Unclear => continue,
        }
        let removed = match &left.thing {
            Thing::Volume(volume) => remove::remove_volume(programs, directories.host_id, volume),
            Thing::Copy(path) if reflink::is_left(path, directories.runtime_dir) => reflink::remove_file(path),
            // It was a moment ago: another cleaning is at it.
            Thing::Copy(_) => continue,
            Thing::Base(path) => reflink::remove_file(path),
        };
        cleaned.note(left.name, removed);
    }
    // The list of what could not be removed stays.
    for dir in run::dead(directories.runtime_dir) {
        if reflink::noted(&dir).is_empty()
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            tracing::debug!("can't remove {}: {error}", dir.display());
        }
    }
    Ok(cleaned)
}

/// Gives up what is kept as the base of change hints where it could fill what it lies in: in thin pools and file systems
/// that are full from `above` on, 0 to 1; with `pool`, in that one alone, as `vg0/pool`. A base takes ever more room as the
/// guest overwrites what it shares with it, and nobody else watches that between two runs.
pub fn give_up(
    programs: &Programs,
    directories: Directories<'_>,
    above: f64,
    pool: Option<&str>,
) -> Result<Cleaned, SnapshotError> {
    let mut cleaned = Cleaned::default();
    let mut fills: BTreeMap<String, Option<f64>> = BTreeMap::new();
    for left in leftovers(programs, directories)? {
        if left.state != State::Kept {
            continue;
        }
        let removed = match &left.thing {
            Thing::Volume(volume) => {
                let name = format!("{}/{}", volume.vg, volume.pool);
                if volume.pool.is_empty() || pool.is_some_and(|pool| pool != name) {
                    continue;
                }
                let fill = match fills.get(&name) {
                    Some(fill) => *fill,
                    None => pool_fill(programs, &volume.vg, &volume.pool)?,
                };
                fills.insert(name, fill);
                if fill.is_none_or(|fill| fill < above) {
                    continue;
                }
                remove::remove_volume(programs, directories.host_id, volume)
            }
            Thing::Base(path) if pool.is_none() && reflink::fill_beside(path).is_some_and(|fill| fill >= above) => {
                reflink::remove_file(path)
            }
            Thing::Base(_) | Thing::Copy(_) => continue,
        };
        cleaned.note(left.name, removed);
    }
    Ok(cleaned)
}

/// How full a thin pool is, data or metadata, 0 to 1; `None` if it is not active.
pub fn pool_fill(programs: &Programs, vg: &str, pool: &str) -> Result<Option<f64>, SnapshotError> {
    let pool = lvm::volume(programs, vg, pool)?;
    let fills = pool
        .map(|pool| [pool.data_fill, pool.metadata_fill])
        .unwrap_or_default();
    Ok(fills.into_iter().flatten().reduce(f64::max))
}
