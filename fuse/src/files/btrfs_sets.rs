//! Groups the volumes of a backup that form one btrfs, and chooses the identity under which the kernel sees it.

use std::collections::{BTreeMap, HashMap};
use std::io;

use super::found::{Found, Plan, with_doubts};
use crate::drivers::{Way, how_to_mount};
use vbk_inside::btrfs::{Fsid, Layout, NewFsid, Superblock, examine};
use vbk_inside::device::Device;
use vbk_inside::probe::{Content, FsType};

/// Plans each btrfs, and each device of one.
pub(super) fn plan(
    found: &[Found],
    way: Way,
    new_fsid: &dyn Fn() -> io::Result<Fsid>,
) -> io::Result<(HashMap<usize, Plan>, Vec<NewFsid>)> {
    let mut plans = HashMap::new();
    let mut fsids = Vec::new();
    let mut groups: BTreeMap<_, Vec<(usize, Superblock)>> = BTreeMap::new();
    for (index, volume) in found.iter().enumerate() {
        let is_btrfs = |content| content == Content::FileSystem(FsType::Btrfs);
        if !volume
            .volume
            .probed
            .as_ref()
            .is_ok_and(|probed| is_btrfs(probed.content))
        {
            continue;
        }
        match Superblock::read(&*volume.volume.device)? {
            // Several with one device each and the same identity are copies, each a file system of its own.
            Ok(superblock) if superblock.device_count() == 1 => {
                let key = (superblock.fsid(), superblock.metadata_uuid(), Some(index));
                groups.insert(key, vec![(index, superblock)]);
            }
            Ok(superblock) => {
                let key = (superblock.fsid(), superblock.metadata_uuid(), None);
                groups.entry(key).or_default().push((index, superblock));
            }
            Err(why) => {
                plans.insert(index, refuse(why));
            }
        }
    }
    for devices in groups.into_values() {
        plan_set(found, &devices, (way, new_fsid), &mut plans, &mut fsids)?;
    }
    Ok((plans, fsids))
}

fn refuse(why: &str) -> Plan {
    Plan::Skip {
        reason: format!("Btrfs file system: {why}"),
        may_hold_files: true,
    }
}

fn plan_set(
    found: &[Found],
    devices: &[(usize, Superblock)],
    (way, new_fsid): (Way, &dyn Fn() -> io::Result<Fsid>),
    plans: &mut HashMap<usize, Plan>,
    fsids: &mut Vec<NewFsid>,
) -> io::Result<()> {
    let layout = match look_at(found, devices)? {
        Ok(layout) => layout,
        Err(why) => {
            plans.extend(devices.iter().map(|(index, _)| (*index, refuse(&why))));
            return Ok(());
        }
    };
    let (members, strangers): (Vec<_>, Vec<_>) = devices
        .iter()
        .partition(|(_, superblock)| layout.devices.contains(&superblock.devid()));
    for (index, _) in strangers {
        plans.insert(*index, refuse("this device was removed from it"));
    }
    let Some((first, superblock)) = members.iter().find(|(index, _)| found[*index].wanted) else {
        return Ok(());
    };
    let mut how = match how_to_mount(FsType::Btrfs, &*found[*first].volume.device, way)? {
        Ok(how) => with_doubts(&found[*first], how),
        Err(why) => {
            plans.insert(*first, refuse(&why));
            return Ok(());
        }
    };
    let has_log = members.iter().any(|(_, superblock)| superblock.has_log());
    how.replay_log(has_log, way);
    if !layout.missing.is_empty() {
        how.options.push_str(",degraded");
        how.warn(format!(
            "mounted degraded: {} not in the backup; the other devices have a copy of everything",
            numbers(&layout.missing)
        ));
    }
    let fsid = new_fsid()?;
    for (index, member) in &members {
        let volume = &found[*index];
        fsids.push(NewFsid {
            file: volume.file(),
            fsid,
        });
        if index != first {
            let skip = Plan::Skip {
                reason: format!("device {} of the btrfs on {}", member.devid(), found[*first].file()),
                may_hold_files: false,
            };
            plans.insert(*index, skip);
        }
    }
    tracing::debug!(old = %superblock.fsid(), new = %fsid, seed = superblock.is_seed(), "btrfs under another identity");
    let others = members
        .iter()
        .map(|(index, _)| *index)
        .filter(|index| index != first)
        .collect();
    plans.insert(*first, Plan::Mount { how, others });
    Ok(())
}

/// Reads what the file system records about its devices; the inner error says why it is not mounted.
fn look_at(found: &[Found], devices: &[(usize, Superblock)]) -> io::Result<Result<Layout, String>> {
    for (at, (index, superblock)) in devices.iter().enumerate() {
        let mut before = devices[..at].iter();
        if let Some((twin, _)) = before.find(|(_, other)| other.devid() == superblock.devid()) {
            return Ok(Err(format!(
                "its device {} is in the backup twice, as {} and {}; restore the disks that belong together to files \
                 and mount those",
                superblock.devid(),
                found[*twin].file(),
                found[*index].file(),
            )));
        }
    }
    let pairs: Vec<_> = devices
        .iter()
        .map(|(index, it)| (it, &*found[*index].volume.device as &dyn Device))
        .collect();
    Ok(match examine(&pairs)? {
        Ok(layout) if !layout.missing.is_empty() && !layout.complete => Err(format!(
            "{} not in the backup, and some data is on no other device; `btrfs restore` gets files out of the images \
             that `vbk mount DIR` shows",
            numbers(&layout.missing)
        )),
        other => other,
    })
}

/// Formats the device numbers: `its devices 2, 3 are`.
fn numbers(devices: &[u64]) -> String {
    let list: Vec<_> = devices.iter().map(u64::to_string).collect();
    match list.as_slice() {
        [one] => format!("its device {one} is"),
        _ => format!("its devices {} are", list.join(", ")),
    }
}
