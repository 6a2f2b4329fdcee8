//! The files that describe a guest and are backed up with it: the storage of its disks, its domain, its NVRAM.
//!
//! | file | content |
//! |---|---|
//! | [`CONFIG_NAME`] | the domain, as `virsh dumpxml --inactive --security-info` prints it |
//! | [`NVRAM_NAME`] | the UEFI variables, byte for byte |
//! | [`DISKS_NAME`] | [`Disks`] as JSON |
//!
//! A repository may come from another host, so these files are checked before anything in them is passed to a
//! command.

use serde::{Deserialize, Serialize};
use vbk_repo::ErrorKind;
use vbk_repo::backup::Image;
use vbk_repo::name::DiskName;

use crate::host::lvm::Volume;
use crate::host::lvm::names::{self, NameError};
use crate::snapshot::PlannedDisk;

/// Name of the file with the domain.
pub const CONFIG_NAME: &str = "config.xml";
/// Name of the file with the UEFI variables.
pub const NVRAM_NAME: &str = "nvram.fd";
/// Name of the file with the storage of the disks.
pub const DISKS_NAME: &str = "disks.json";

/// Newest format of [`Disks`] that this vbk reads. Unknown fields are ignored.
pub(crate) const DISKS_FORMAT: u32 = 1;

/// Largest number of disks in a description. A guest can't have as many: a longer list is malicious.
const MAX_DISKS: usize = 1024;

/// The storage of a guest's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// Format of this file: `DISKS_FORMAT`.
    pub format: u32,
    /// Every disk, in the order of the backup.
    pub disks: Vec<DiskInfo>,
}

/// The storage of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// Name in the backup.
    pub name: DiskName,
    /// Path it was read from, as configured.
    pub source: String,
    /// Size.
    pub size_bytes: u64,
    /// Kind of storage.
    pub kind: DiskKind,
    /// The logical volume, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeInfo>,
}

/// Kind of a disk's storage.
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
    /// Volume group.
    pub vg: String,
    /// Name.
    pub lv: String,
    /// UUID assigned by lvm2.
    pub uuid: String,
    /// Size, a whole number of extents.
    pub size_bytes: u64,
    /// Segment type, e.g. `linear` or `thin`.
    pub segtype: String,
    /// Number of devices across which each segment is striped.
    pub stripes: u32,
    /// Thin pool that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Tags.
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

/// Error for a description of a guest's disks that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestFilesError {
    /// The stored description is not in vbk's format.
    #[error("the stored {DISKS_NAME} can't be used: {0}")]
    Bad(String),
    /// lvm2 does not allow a name in it.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl GuestFilesError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bad(_) => ErrorKind::Unsupported,
            Self::Name(_) => ErrorKind::Invalid,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, GuestFilesError>;

impl Disks {
    /// Describes the disks of a backup's plan.
    pub(crate) fn of_plan(planned: &[PlannedDisk]) -> Self {
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

    /// Returns the file to store in the backup.
    pub(crate) fn to_file(&self) -> (DiskName, Vec<u8>) {
        let mut text = serde_json::to_vec_pretty(self).expect("disks hold only strings and numbers");
        text.push(b'\n');
        (DISKS_NAME.parse().expect("the constant is a valid name"), text)
    }

    /// Parses a stored description. Every name in the result is safe to pass to lvm2.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let disks: Self = serde_json::from_slice(bytes).map_err(|error| GuestFilesError::Bad(error.to_string()))?;
        if disks.format > DISKS_FORMAT {
            return Err(GuestFilesError::Bad(format!(
                "it has format {}, but this vbk reads formats up to {DISKS_FORMAT}",
                disks.format
            )));
        }
        if disks.disks.len() > MAX_DISKS {
            return Err(GuestFilesError::Bad(format!(
                "it lists {} disks, more than {MAX_DISKS}",
                disks.disks.len()
            )));
        }
        for volume in disks.disks.iter().filter_map(|disk| disk.volume.as_ref()) {
            names::check_group(&volume.vg)?;
            names::check_volume(&volume.lv)?;
            if let Some(pool) = &volume.pool {
                names::check("thin pool", pool)?;
            }
        }
        Ok(disks)
    }

    /// Returns the description of a disk.
    pub fn of(&self, name: &DiskName) -> Option<&DiskInfo> {
        self.disks.iter().find(|disk| disk.name == *name)
    }
}

/// Returns the name of the logical volume that a disk was: from its description, or else from the path that it was read
/// from.
pub fn volume_name_of(image: &Image, disks: Option<&Disks>) -> Option<String> {
    if let Some(disk) = disks.and_then(|disks| disks.of(&image.disk)) {
        return disk.volume.as_ref().map(|volume| volume.lv.clone());
    }
    let (group, name) = image.source.strip_prefix("/dev/")?.split_once('/')?;
    let is_volume = group != "mapper" && group != "disk" && !name.contains('/');
    is_volume.then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
