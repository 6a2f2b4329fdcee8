//! Lists the snapshots and copies that outlive their runs, and removes those that are not needed.

use std::collections::BTreeMap;

use super::remains::{Directories, Leftover, Room, State};
use super::{SnapshotError, methods, notes};
use crate::host::lvm::suspended;
use crate::host::program::Programs;
use crate::host::run;

/// Result of a cleaning.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Names of the snapshots and copies that were removed.
    pub removed: Vec<String>,
    /// Names of those that could not be removed, and the errors.
    pub failed: Vec<(String, SnapshotError)>,
    /// A sentence about devices of snapshots and their origins that are suspended.
    pub suspended: Option<String>,
}

impl Cleaned {
    fn note(&mut self, name: String, removed: Result<bool, SnapshotError>) {
        match removed {
            Ok(true) => self.removed.push(name),
            // Another process is at it.
            Ok(false) => {}
            Err(error) => self.failed.push((name, error)),
        }
    }
}

/// Lists the snapshots that vbk made, on this machine and on others that share its volume groups; the copies of files
/// that runs since the last reboot noted; and those that are kept.
pub fn leftovers(programs: &Programs, directories: Directories<'_>) -> Result<Vec<Leftover>, SnapshotError> {
    let mut all = Vec::new();
    for method in methods::ALL {
        all.extend(method.leftovers(programs, directories)?);
    }
    Ok(all)
}

/// Removes what runs of this machine left behind, and with `kept` also the bases of change hints. Each removal looks
/// again at what it removes.
pub fn clean(programs: &Programs, directories: Directories<'_>, kept: bool) -> Result<Cleaned, SnapshotError> {
    let found = leftovers(programs, directories)?;
    let volumes = found.iter().filter(|left| left.state != State::OtherHost);
    let volumes: Vec<(&str, &str)> = volumes.flat_map(|left| left.remains.volumes()).collect();
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
        let removed = left.remains.remove(programs);
        cleaned.note(left.name, removed);
    }
    // The list of what could not be removed stays.
    for dir in run::dead(directories.runtime_dir) {
        if notes::of(&dir).is_empty()
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            tracing::debug!("can't remove {}: {error}", dir.display());
        }
    }
    Ok(cleaned)
}

/// Removes the bases of change hints in thin pools and file systems whose fill is `above` or more, 0 to 1; with `pool`,
/// in that one alone, e.g. `vg0/pool`. A base takes ever more room as the guest overwrites the blocks that it shares
/// with it, and no run watches that between two backups.
pub fn give_up(
    programs: &Programs,
    directories: Directories<'_>,
    above: f64,
    pool: Option<&str>,
) -> Result<Cleaned, SnapshotError> {
    let mut cleaned = Cleaned::default();
    let mut fills: BTreeMap<Room, Option<f64>> = BTreeMap::new();
    for left in leftovers(programs, directories)? {
        let Some(room) = left.remains.room().filter(|_| left.state == State::Kept) else {
            continue;
        };
        if pool.is_some_and(|pool| !room.is_pool(pool)) {
            continue;
        }
        let fill = match fills.get(&room) {
            Some(fill) => *fill,
            None => room.fill(programs)?,
        };
        fills.insert(room, fill);
        if fill.is_none_or(|fill| fill < above) {
            continue;
        }
        let removed = left.remains.remove(programs);
        cleaned.note(left.name, removed);
    }
    Ok(cleaned)
}
