//! Names and tags of our snapshots, and the rule that decides whether a volume is one of them.

use jiff::Timestamp;
use vbk_repo::block::Hashing;
use vbk_repo::id::{BackupId, to_hex};
use vbk_repo::name::DiskName;

use crate::host::lvm::{self, Volume};
use crate::host::run;

/// Tag of every volume that vbk makes.
pub const TAG: &str = "vbk";
/// Tag of a snapshot that is kept as the base of change hints.
pub const TAG_BASE: &str = "vbk_base";
/// Prefix of the tag with a base's mark.
const BACKUP: &str = "vbk_backup_";
const HOST: &str = "vbk_host_";
const RUN: &str = "vbk_run_";
/// Prefix of our snapshots' names.
const PREFIX: &str = "vbk-";

/// Highest length of a device's name, with the suffix of a layer, e.g. `-cow`. The device mapper's limit is 127
/// (DM_NAME_LEN in linux/dm-ioctl.h), and lvm2 refuses a group and name of more than 125 together.
const MAX_DEVICE_NAME: usize = 120;

/// The tags of a snapshot of a run.
pub(super) fn tags(host_id: &str, run_id: &str) -> Vec<String> {
    vec![TAG.to_owned(), host_tag(host_id), run_tag(run_id)]
}

/// The tag of a machine.
pub fn host_tag(host_id: &str) -> String {
    lvm::as_tag(&format!("{HOST}{host_id}"))
}

/// The tag of a run.
pub(super) fn run_tag(run_id: &str) -> String {
    format!("{RUN}{run_id}")
}

/// The tags of a base, instead of the run's.
pub(super) fn base_tags(mark: &str) -> Vec<String> {
    vec![TAG_BASE.to_owned(), lvm::as_tag(&format!("{BACKUP}{mark}"))]
}

/// The mark of a base.
pub fn mark_of(volume: &Volume) -> Option<&str> {
    volume.tags.iter().find_map(|tag| tag.strip_prefix(BACKUP))
}

/// The run that made a volume.
pub(super) fn run_of(volume: &Volume) -> Option<&str> {
    let mut runs = volume.tags.iter().filter_map(|tag| tag.strip_prefix(RUN));
    runs.next().filter(|id| run::is_id(id))
}

/// Returns whether a volume is a snapshot that vbk made, on whatever machine. The name alone or the tag alone is not
/// enough: the administrator may use either for something else.
pub(super) fn is_snapshot_of_vbk(volume: &Volume) -> bool {
    let snapshot = volume.is_thick_snapshot() || volume.is_thin() || is_half_made(volume);
    snapshot && volume.has_tag(TAG) && volume.name.starts_with(PREFIX)
}

/// Returns whether a volume is what a power cut in the middle of lvcreate, or its failure, leaves of a thick snapshot:
/// lvm2 first makes the space, as a plain volume that has the snapshot's name and tags already, and joins it to the
/// origin in a second step (`lv_create_single`, lib/metadata/lv_manip.c). The name must be that of the run in its tag.
fn is_half_made(volume: &Volume) -> bool {
    let of_its_run = |run: &str| volume.name.ends_with(&format!("-{}", short(run)));
    volume.attr.starts_with('-') && volume.origin.is_empty() && run_of(volume).is_some_and(of_its_run)
}

/// The part of its run's id in a snapshot's name.
fn short(run_id: &str) -> &str {
    run_id.get(..8).unwrap_or(run_id)
}

/// Returns whether a volume is a snapshot that vbk made on this machine. Nothing else is ever removed.
pub(super) fn is_ours(volume: &Volume, host_id: &str) -> bool {
    is_snapshot_of_vbk(volume) && volume.has_tag(&host_tag(host_id))
}

/// `20261121T173000Z`
pub(super) fn stamp(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// A name for the snapshot of a volume: `vbk-<volume>-<time>-<run>`, with the volume's part cut where it would be too
/// long, and then the number of the disk in it. The time has milliseconds: a run may back up two guests that share a
/// volume, one after the other.
pub(super) fn snapshot_name(origin: &Volume, number: usize, at: Timestamp, run_id: &str) -> String {
    let time = at.strftime("%Y%m%dT%H%M%S%.3fZ");
    let name = |part: &str| format!("{PREFIX}{part}-{time}-{}", short(run_id));
    let fits = |name: &str| lvm::dm_name(&origin.vg, name, "cow").len() <= MAX_DEVICE_NAME;
    let whole = name(&origin.name);
    if fits(&whole) {
        return whole;
    }
    // Names of volumes are ASCII.
    let cut = |len: usize| name(&format!("{}.{number}", origin.name.get(..len).unwrap_or_default()));
    let cuts = (0..origin.name.len()).rev().map(cut);
    cuts.into_iter().find(|name| fits(name)).unwrap_or_else(|| cut(0))
}

/// Number of digits in the name of a base.
pub const BASE_DIGITS: usize = 32;

/// Name of the base that was read for a disk of a backup: [`BASE_DIGITS`] hexadecimal digits. The disk is part of it,
/// because a volume that was `vda` may be `vdb` by the next run, and the blocks that are taken over would be another
/// volume's.
pub fn base_name(backup: &BackupId, disk: &DiskName) -> String {
    let mut name = to_hex(&Hashing::Plain.content(format!("{backup}/{disk}").as_bytes()));
    name.truncate(BASE_DIGITS);
    name
}
