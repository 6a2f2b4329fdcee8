//! The decision for each volume of a backup: its mount options, or why it is not mounted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use super::btrfs_sets;
use super::found::{Found, Plan, with_doubts};
use crate::drivers::{Backing, Way, how_to_mount};
use vbk_inside::btrfs::{Fsid, NewFsid};
use vbk_inside::fs::xfs;
use vbk_inside::probe::containers;
use vbk_inside::probe::{self, FsType};

/// Decides how each volume is mounted, or why it is not. `new_fsid` returns a random identity at each call; the second
/// result lists the file systems that got one.
pub(super) fn plan(
    found: &[Found],
    way: Way,
    new_fsid: &dyn Fn() -> io::Result<Fsid>,
) -> io::Result<(HashMap<usize, Plan>, Vec<NewFsid>)> {
    let (mut plans, fsids) = btrfs_sets::plan(found, way, new_fsid)?;
    for (index, volume) in found.iter().enumerate() {
        if let Some(newer) = newer_member(found, volume) {
            let skip = Plan::Skip {
                reason: format!("out-of-date member of the RAID array that {} is of", newer.file()),
                may_hold_files: false,
            };
            plans.insert(index, skip);
        } else if let Some(first) = earlier_member(&found[..index], volume).filter(|_| way == Way::Writable) {
            // Two writers would destroy it.
            let skip = Plan::Skip {
                reason: format!("member of the RAID array that {} is of", first.file()),
                may_hold_files: false,
            };
            plans.insert(index, skip);
        } else if let Entry::Vacant(free) = plans.entry(index) {
            free.insert(plan_alone(volume, way)?);
        }
    }
    Ok((plans, fsids))
}

/// Finds a member of the same array that has recorded later events.
fn newer_member<'a>(found: &'a [Found], volume: &Found) -> Option<&'a Found> {
    let member = volume.volume.member.as_ref()?;
    found.iter().find(|other| {
        let theirs = other.volume.member.as_ref();
        theirs.is_some_and(|theirs| theirs.array == member.array && theirs.events > member.events)
    })
}

/// Finds another member of the same array before this one.
fn earlier_member<'a>(before: &'a [Found], volume: &Found) -> Option<&'a Found> {
    let array = volume.volume.member.as_ref()?.array;
    before
        .iter()
        .find(|other| other.volume.member.as_ref().is_some_and(|it| it.array == array))
}

fn plan_alone(volume: &Found, way: Way) -> io::Result<Plan> {
    let skip = |reason, may_hold_files| Ok(Plan::Skip { reason, may_hold_files });
    let probed = match &volume.volume.probed {
        Ok(probed) => probed,
        Err(error) => return skip(error.clone(), true),
    };
    match probed.content {
        probe::Content::FileSystem(fs) => mount(volume, fs, way),
        content => {
            let described = containers::describe(content, &volume.volume.device)?;
            let plain = content.why_not_mountable().unwrap_or_default();
            let harmless = content == probe::Content::Unknown && volume.volume.is_boot_code();
            let reason = if harmless {
                "boot code".to_owned()
            } else {
                described.unwrap_or(plain.to_owned())
            };
            skip(reason, content.may_hold_files() && !harmless)
        }
    }
}

/// Plans a file system by its superblock alone.
fn mount(volume: &Found, fs: FsType, way: Way) -> io::Result<Plan> {
    Ok(match how_to_mount(fs, &*volume.volume.device, way)? {
        Ok(mut how) => {
            if fs == FsType::Xfs && how.backing == Backing::Writable && xfs::has_dirty_log(&volume.volume.device) {
                how.repaired = Some("its log was replayed".to_owned());
            }
            Plan::Mount {
                how: with_doubts(volume, how),
                others: Vec::new(),
            }
        }
        Err(why) => Plan::Skip {
            reason: format!("{fs} file system: {why}"),
            may_hold_files: true,
        },
    })
}
