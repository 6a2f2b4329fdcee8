//! Removes snapshots that vbk made, and nothing else.

use std::time::Duration;

use super::{SnapshotError, names};
use crate::host::lvm::{self, Volume};
use crate::host::program::{ProgramError, Programs};
use crate::host::run::Run;

/// Pauses before the next tries: a device that udev or a program is just looking at is busy for a moment.
const PAUSES_MS: [u64; 6] = [100, 200, 400, 800, 1600, 3200];

/// Removes a volume that a run made.
pub(super) fn of_run(programs: &Programs, run: &Run, vg: &str, name: &str) -> Result<(), SnapshotError> {
    let tag = names::run_tag(run.id());
    remove(programs, vg, name, &|volume| {
        names::is_ours(volume, run.host_id()) && volume.has_tag(&tag)
    })
}

/// Removes a snapshot of this machine's vbk: one that was kept, or one of a run that is over. It is an error if the
/// volume of that name is not, at that moment, a snapshot with our tags and that UUID.
pub fn remove_volume(programs: &Programs, host_id: &str, volume: &Volume) -> Result<(), SnapshotError> {
    remove(programs, &volume.vg, &volume.name, &|now| {
        names::is_ours(now, host_id) && now.uuid == volume.uuid && now.tags == volume.tags
    })
}

/// Looks at the volume again before each try, because names are used again and tags change; and lvm2 compares its UUID
/// and tags once more under its lock. A volume that does not exist any more counts as removed.
fn remove(programs: &Programs, vg: &str, name: &str, may_go: &dyn Fn(&Volume) -> bool) -> Result<(), SnapshotError> {
    let volume = || format!("{vg}/{name}");
    let mut pauses = PAUSES_MS.iter();
    let mut is_done = false;
    loop {
        let tried = match lvm::volume(programs, vg, name) {
            Ok(None) => return Ok(()),
            // Another volume of that name, or other tags, when lvm2 looked.
            Ok(Some(now)) if is_done || !may_go(&now) => return Err(SnapshotError::NotOurs { volume: volume() }),
            Ok(Some(now)) => lvm::remove(programs, &now, &tags_to_select(&now)),
            Err(error) => Err(error),
        };
        let source = match tried {
            Ok(()) => {
                is_done = true;
                continue;
            }
            Err(error) => error,
        };
        // A program that hangs or is not installed is not tried again.
        let again = matches!(source, ProgramError::Failed { .. });
        match pauses.next() {
            Some(pause) if again => std::thread::sleep(Duration::from_millis(*pause)),
            _ => {
                return Err(SnapshotError::NotRemoved {
                    volume: volume(),
                    source,
                });
            }
        }
    }
}

/// The tags by which a volume is ours, as far as a selection of lvm2 takes them without quotes. The UUID is selected
/// too.
fn tags_to_select(volume: &Volume) -> Vec<&str> {
    let is_plain = |tag: &str| tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let ours = volume.tags.iter().map(String::as_str);
    ours.filter(|tag| tag.starts_with(names::TAG) && is_plain(tag))
        .collect()
}
