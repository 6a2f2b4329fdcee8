//! Logical volumes of LVM2, read in user space: each is a device, and neither the host's kernel nor its LVM sees them.
//!
//! A physical volume has a label, and areas with the text that describes the whole group; [`assemble`] takes the newest
//! text of each group and builds its volumes. Reading needs no activation: what LVM would tell device mapper is
//! computed here.
//!
//! | segment type | reading | writing |
//! |---|---|---|
//! | linear, striped, raid0 | yes | yes |
//! | mirror, pvmove, raid1 | from a complete copy | to all copies |
//! | raid4, raid5, raid6, raid10 | yes, also without one device | no |
//! | thin, snapshot | yes | no |
//! | cache with mode writethrough | yes, from the origin | no |
//! | cache with mode writeback, writecache, integrity, vdo | no | no |
//!
//! Writing to a volume that has a snapshot of the old kind changes the snapshot too: nothing is copied to its store.

mod build;
mod crc;
mod group;
mod label;
mod map;
mod raid;
mod snapshot;
mod stripes;
mod text;
mod thin;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use build::{Builder, Members};
use group::GroupText;
use label::Metadata;

use crate::device::SharedDevice;

pub use label::{Area, PhysicalVolume, physical_volume};

/// A group of volumes.
pub struct Group {
    /// Name. Two groups of one guest may have the same one.
    pub name: String,
    /// UUID in the form of LVM's commands.
    pub uuid: String,
    /// Volumes that the guest's own system shows, in the order of the metadata.
    pub volumes: Vec<LogicalVolume>,
    /// Numbers of its physical volumes among those that were given.
    pub members: Vec<usize>,
    /// Remarks for people on how the group was read: `metadata area 1 of physical volume … is out of date`.
    pub remarks: Vec<String>,
}

/// A logical volume.
pub struct LogicalVolume {
    /// Name: letters, digits, and `+_.-`.
    pub name: String,
    /// Size; that of the origin for a snapshot.
    pub size_bytes: u64,
    /// The content, or the reason why it can't be read: a phrase for people.
    pub device: Result<SharedDevice, String>,
}

/// Builds the groups of all physical volumes of a guest, on whichever of its disks they are.
pub fn assemble(members: Vec<(PhysicalVolume, SharedDevice)>) -> Vec<Group> {
    // The newest text of each group counts, on whichever physical volume it is.
    let mut texts: BTreeMap<String, &Metadata> = BTreeMap::new();
    for metadata in members.iter().filter_map(|(volume, _)| volume.metadata.as_ref()) {
        let newest = texts.entry(metadata.summary.uuid.clone()).or_insert(metadata);
        if metadata.summary.seqno > newest.summary.seqno {
            *newest = metadata;
        }
    }
    let (mut by_uuid, mut twice) = (HashMap::new(), Vec::new());
    for (number, (volume, _)) in members.iter().enumerate() {
        if by_uuid.contains_key(&volume.uuid) {
            twice.push(&volume.uuid);
        } else {
            by_uuid.insert(volume.uuid.clone(), number);
        }
    }
    let found = Members {
        devices: members.iter().map(|(_, device)| SharedDevice::clone(device)).collect(),
        by_uuid,
    };
    let mut groups = Vec::new();
    for metadata in texts.into_values() {
        // The same bytes were parsed when the physical volume was read.
        let Ok(text) = GroupText::parse(&metadata.text) else {
            continue;
        };
        let mut builder = Builder::new(&text, &found);
        for (volume, _) in &members {
            remark_on(&mut builder, volume, metadata, twice.contains(&&volume.uuid));
        }
        let volumes = builder.volumes();
        let of_group = |uuid: &str| builder.group.members.values().any(|member| member.uuid == uuid);
        let numbered = members.iter().enumerate();
        let own = numbered.filter(|(_, (volume, _))| of_group(&volume.uuid));
        groups.push(Group {
            members: own.map(|(number, _)| number).collect(),
            volumes,
            remarks: builder.remarks,
            name: text.summary.name,
            uuid: text.summary.uuid,
        });
    }
    groups
}

/// Remarks on a physical volume of a group.
fn remark_on(builder: &mut Builder, volume: &PhysicalVolume, newest: &Metadata, is_twice: bool) {
    let uuid = &volume.uuid;
    let mut in_group = builder.group.members.values().filter(|member| member.uuid == *uuid);
    let member = in_group.next();
    let own = volume.metadata.as_ref().map(|metadata| &metadata.summary);
    let own = own.filter(|own| own.uuid == newest.summary.uuid);
    if member.is_none() {
        if own.is_some() {
            builder.remark(format!("physical volume {uuid} is no longer part of the group"));
        }
        return;
    }
    if member.is_some_and(|member| member.missing) {
        builder.remark(format!(
            "physical volume {uuid} was missing in the guest; its content may be out of date"
        ));
    }
    for remark in &volume.remarks {
        builder.remark(remark.clone());
    }
    if let Some(own) = own.filter(|own| own.seqno < newest.summary.seqno) {
        builder.remark(format!(
            "physical volume {uuid} has metadata of change {}; the newest are of {}",
            own.seqno, newest.summary.seqno
        ));
    }
    if own.is_some_and(|own| own.seqno == newest.summary.seqno)
        && volume
            .metadata
            .as_ref()
            .is_some_and(|metadata| metadata.text != newest.text)
    {
        builder.remark(format!("physical volume {uuid} has other metadata of the same change"));
    }
    if is_twice {
        builder.remark(format!(
            "physical volume {uuid} exists more than once; the first is used"
        ));
    }
}

/// Parses the text of a group.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_text(text: &[u8]) {
    let _ = GroupText::parse(text);
}

/// Opens volumes of a thin pool by its metadata, which are its data too.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_thin(metadata: &SharedDevice) -> Vec<SharedDevice> {
    let Ok(pool) = thin::Pool::open(SharedDevice::clone(metadata), SharedDevice::clone(metadata)) else {
        return Vec::new();
    };
    let pool = std::sync::Arc::new(pool);
    let numbers = [0, 1, 2, 7, 100, 0xff_ffff].into_iter();
    let opened = numbers.flat_map(|device| [1 << 30, u64::MAX].map(|size_bytes| (device, size_bytes)));
    let opened = opened.filter_map(|(device, size_bytes)| {
        let thin = thin::Thin::open(std::sync::Arc::clone(&pool), device, size_bytes, None).ok()?;
        Some(std::sync::Arc::new(thin) as SharedDevice)
    });
    opened.collect()
}

/// Opens a snapshot of the old kind by its store, which is its origin too.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_snapshot(store: &SharedDevice) -> Option<SharedDevice> {
    let (origin, store) = (SharedDevice::clone(store), SharedDevice::clone(store));
    let opened = snapshot::Snapshot::open(origin, store, &snapshot::Room::default());
    opened
        .ok()?
        .ok()
        .map(|snapshot| std::sync::Arc::new(snapshot) as SharedDevice)
}
