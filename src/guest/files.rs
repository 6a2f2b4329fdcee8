//! The files that describe a guest and are kept with its backup: what its disks were made of, its domain, its NVRAM.
//!
//! | file | what |
//! |---|---|
//! | [`CONFIG_NAME`] | the domain, as `virsh dumpxml --inactive --security-info` prints it |
//! | [`NVRAM_NAME`] | the UEFI variables, byte for byte |
//! | [`DISKS_NAME`] | [`Disks`] as JSON |
//!
//! A repository may come from elsewhere: what is read back here is checked before it gets near a command line.

use serde::{Deserialize, Serialize};
use vbk_repo::ErrorKind;
use vbk_repo::backup::Image;
use vbk_repo::name::DiskName;

use crate::host::lvm::Volume;
use crate::snapshot::PlannedDisk;

/// The name of the domain's file.
pub const CONFIG_NAME: &str = "config.xml";
/// The name of the NVRAM's file.
pub const NVRAM_NAME: &str = "nvram.fd";
/// The name of the file about the disks.
pub const DISKS_NAME: &str = "disks.json";

/// The newest format of [`Disks`] that this vbk reads. Fields that are not known are ignored.
pub const DISKS_FORMAT: u32 = 1;

/// More disks than a guest can have; a list that is longer was made to annoy.
const MAX_DISKS: usize = 1024;
/// VG and LV names: `NAME_LEN` of lvm2 (lib/metadata/metadata-exported.h), with its end.
const MAX_LVM_NAME_BYTES: usize = 127;
/// What lvm2 keeps for itself: lvm(8), "Valid names".
const RESERVED_LV_NAMES: [&str; 4] = [".", "..", "snapshot", "pvmove"];
const RESERVED_IN_LV_NAMES: [&str; 14] = [
    "_cdata", "_cmeta", "_corig", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata", "_tmeta",
    "_vdata", "_vorigin", "_wcorig",
];

/// What a guest's disks were made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// Layout of this file: [`DISKS_FORMAT`].
    pub format: u32,
    /// Every disk, in the order of the backup.
    pub disks: Vec<DiskInfo>,
}

/// What one disk was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Its name in the backup.
    pub name: DiskName,
    /// Where it was, as it was named.
    pub source: String,
    /// Its size.
    pub size_bytes: u64,
    /// What it was.
    pub kind: DiskKind,
    /// The logical volume, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeInfo>,
}

/// What a disk can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// A logical volume with space of its own.
    LvmThick,
    /// A logical volume in a thin pool.
    LvmThin,
    /// A raw file.
    File,
    /// Another block device.
    Device,
}

/// A logical volume, as lvs(8) reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its volume group.
    pub vg: String,
    /// Its name.
    pub lv: String,
    /// lvm2's own UUID.
    pub uuid: String,
    /// Its size, a whole number of extents.
    pub size_bytes: u64,
    /// The type of its segments, as `linear` or `thin`.
    pub segtype: String,
    /// Over how many devices each segment goes.
    pub stripes: u32,
    /// The thin pool it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl VolumeInfo {
    fn of(volume: &Volume) -> Self {
        Self {
            vg: volume.vg.clone(),
            lv: volume.name.clone(),
            uuid: volume.uuid.clone(),
            size_bytes: volume.size_bytes,
            segtype: volume.segtype.clone(),
            stripes: volume.stripes,
            pool: Some(volume.pool.clone()).filter(|pool| !pool.is_empty() && volume.is_thin()),
            tags: volume.tags.clone(),
        }
    }
}

/// Why a description of a guest's disks can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestFilesError {
    /// What was stored is not what vbk stores.
    #[error("the stored {DISKS_NAME} can't be used: {0}")]
    Bad(String),
    /// A name that lvm2 would not take, or take for something else.
    #[error("{what} name {name:?} {reason}")]
    BadLvmName {
        /// `volume group`, `logical volume` or `thin pool`.
        what: &'static str,
        /// The refused name.
        name: String,
        /// What is wrong with it, as the rest of a sentence.
        reason: &'static str,
    },
}

impl GuestFilesError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bad(_) => ErrorKind::Unsupported,
            Self::BadLvmName { .. } => ErrorKind::Invalid,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, GuestFilesError>;

impl Disks {
    /// Describes disks as they were found when their backup was planned.
    pub fn of_plan(planned: &[PlannedDisk]) -> Self {
        let disks = planned.iter().map(|PlannedDisk { disk, .. }| DiskInfo {
            name: disk.name.clone(),
            source: disk.source.display().to_string(),
            size_bytes: disk.size_bytes,
            kind: match &disk.volume {
                Some(volume) if volume.is_thin() => DiskKind::LvmThin,
                Some(_) => DiskKind::LvmThick,
                None if disk.is_file() => DiskKind::File,
                None => DiskKind::Device,
            },
            volume: disk.volume.as_ref().map(VolumeInfo::of),
        });
        Self {
            format: DISKS_FORMAT,
            disks: disks.collect(),
        }
    }

    /// The file that is kept with the backup.
    pub fn to_file(&self) -> (DiskName, Vec<u8>) {
        let mut text = serde_json::to_vec_pretty(self).expect("disks have only strings and numbers in them");
        text.push(b'\n');
        (DISKS_NAME.parse().expect("a name that is written above"), text)
    }

    /// Reads what was stored. Every name in it can be given to lvm2.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let disks: Self = serde_json::from_slice(bytes).map_err(|error| GuestFilesError::Bad(error.to_string()))?;
        if disks.format > DISKS_FORMAT {
            return Err(GuestFilesError::Bad(format!(
                "it has format {}, this vbk reads up to {DISKS_FORMAT}",
                disks.format
            )));
        }
        if disks.disks.len() > MAX_DISKS {
            return Err(GuestFilesError::Bad(format!("it has {} disks", disks.disks.len())));
        }
        for volume in disks.disks.iter().filter_map(|disk| disk.volume.as_ref()) {
            check_group_name(&volume.vg)?;
            check_volume_name(&volume.lv)?;
            if let Some(pool) = &volume.pool {
                check_lvm_name("thin pool", pool)?;
            }
        }
        Ok(disks)
    }

    /// A disk's description.
    pub fn of(&self, name: &DiskName) -> Option<&DiskInfo> {
        self.disks.iter().find(|disk| disk.name == *name)
    }
}

/// The name of the logical volume that a disk was: as it was described, or else from the path that it was read from.
pub fn volume_name_of(image: &Image, disks: Option<&Disks>) -> Option<String> {
    if let Some(disk) = disks.and_then(|disks| disks.of(&image.disk)) {
        return disk.volume.as_ref().map(|volume| volume.lv.clone());
    }
    let (group, name) = image.source.strip_prefix("/dev/")?.split_once('/')?;
    let is_volume = group != "mapper" && group != "disk" && !name.contains('/');
    is_volume.then(|| name.to_owned())
}

/// Refuses names of volume groups that lvm2 would not take, or take for an option.
pub fn check_group_name(name: &str) -> Result<()> {
    check_lvm_name("volume group", name)
}

/// Refuses names of logical volumes that lvm2 would not take, or take for an option.
pub fn check_volume_name(name: &str) -> Result<()> {
    check_lvm_name("logical volume", name)?;
    let reserved = RESERVED_LV_NAMES.contains(&name) || RESERVED_IN_LV_NAMES.iter().any(|part| name.contains(part));
    match reserved {
        true => Err(GuestFilesError::BadLvmName {
            what: "logical volume",
            name: name.to_owned(),
            reason: "is one that lvm2 keeps for itself",
        }),
        false => Ok(()),
    }
}

/// The characters are those of lvm(8), "Valid names".
pub(crate) fn check_lvm_name(what: &'static str, name: &str) -> Result<()> {
    let is_good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'_' | b'.' | b'-');
    let reason = match name {
        "" => "is empty",
        "." | ".." => "is a directory's",
        _ if name.starts_with('-') => "begins with a dash",
        _ if name.len() > MAX_LVM_NAME_BYTES => "is longer than 127 bytes",
        _ if !name.bytes().all(is_good) => "has other characters than a-z A-Z 0-9 + _ . - in it",
        _ => return Ok(()),
    };
    Err(GuestFilesError::BadLvmName {
        what,
        name: name.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests;
