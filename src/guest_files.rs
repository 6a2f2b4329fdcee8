//! The files that describe a guest and are kept with its backup: what its disks were made of, its domain, its NVRAM.
//!
//! | file | what |
//! |---|---|
//! | [`CONFIG_NAME`] | the domain, as `virsh dumpxml --inactive --security-info` prints it |
//! | [`NVRAM_NAME`] | the UEFI variables, byte for byte |
//! | [`DISKS_NAME`] | [`Disks`] as JSON |
//!
//! A repository may come from elsewhere: what is read back here is checked before it gets near a command line.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vbk_repo::ErrorKind;
use vbk_repo::backup::Image;
use vbk_repo::name::DiskName;

use crate::lvm;
use crate::program::{ProgramError, Programs};

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

/// Why a guest's disks can't be described, or a description not be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestFilesError {
    /// lvm2 did not answer.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A disk can't be looked at.
    #[error("can't look at {path}: {source}")]
    Look {
        /// The disk.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
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
            Self::Program(error) => error.kind(),
            Self::Look { source, .. } => ErrorKind::of_io(source),
            Self::Bad(_) => ErrorKind::Unsupported,
            Self::BadLvmName { .. } => ErrorKind::Invalid,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, GuestFilesError>;

/// Puts the files of a backup together: always [`DISKS_NAME`], the others if they are given.
pub fn files(disks: &Disks, config: Option<Vec<u8>>, nvram: Option<Vec<u8>>) -> Vec<(DiskName, Vec<u8>)> {
    let mut text = serde_json::to_vec_pretty(disks).expect("disks have only strings and numbers in them");
    text.push(b'\n');
    let all = [(CONFIG_NAME, config), (NVRAM_NAME, nvram), (DISKS_NAME, Some(text))];
    let named = all.into_iter().filter_map(|(name, bytes)| {
        let name = name.parse().expect("a name that is written above");
        Some((name, bytes?))
    });
    named.collect()
}

impl Disks {
    /// Describes disks as they are now. Asks `lvs` of those that are logical volumes. `sys` is `/sys`, or what stands
    /// for it in a test.
    pub fn look(programs: &Programs, sys: &Path, disks: &[(DiskName, &Path, u64)]) -> Result<Self> {
        let look = |(name, path, size_bytes): &(DiskName, &Path, u64)| {
            let (kind, volume) = look_at(programs, sys, path)?;
            Ok(DiskInfo {
                name: name.clone(),
                source: path.display().to_string(),
                size_bytes: *size_bytes,
                kind,
                volume,
            })
        };
        Ok(Self {
            format: DISKS_FORMAT,
            disks: disks.iter().map(look).collect::<Result<_>>()?,
        })
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

fn look_at(programs: &Programs, sys: &Path, path: &Path) -> Result<(DiskKind, Option<VolumeInfo>)> {
    let metadata = std::fs::metadata(path).map_err(|source| GuestFilesError::Look {
        path: path.display().to_string(),
        source,
    })?;
    if !metadata.file_type().is_block_device() {
        return Ok((DiskKind::File, None));
    }
    let device = metadata.rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // lvm2 gives its devices a UUID that begins so (libdm, UUID_PREFIX); other devices have none, or another.
    let uuid = std::fs::read_to_string(sys.join(format!("dev/block/{major}:{minor}/dm/uuid")));
    if !uuid.is_ok_and(|uuid| uuid.starts_with("LVM-")) {
        return Ok((DiskKind::Device, None));
    }
    let volume = ask(programs, path)?;
    let kind = match volume.pool {
        Some(_) => DiskKind::LvmThin,
        None => DiskKind::LvmThick,
    };
    Ok((kind, Some(volume)))
}

#[derive(Deserialize)]
struct Row {
    vg_name: String,
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    segtype: String,
    stripes: String,
    pool_lv: String,
    lv_tags: String,
}

fn ask(programs: &Programs, path: &Path) -> Result<VolumeInfo> {
    let path = path.display().to_string();
    let fields = "vg_name,lv_name,lv_uuid,lv_size,segtype,stripes,pool_lv,lv_tags";
    let wrong = |what: String| ProgramError::Answer {
        command: format!("lvs {path}"),
        what,
    };
    // A volume with segments of several types has a row for each.
    let rows: Vec<Row> = lvm::report(programs, "lvs", fields, &["--", &path])?;
    let row = rows
        .into_iter()
        .next()
        .ok_or_else(|| wrong("it names no volume".into()))?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong(format!("{text:?} is no number")));
    let tags = row.lv_tags.split(',').filter(|tag| !tag.is_empty());
    Ok(VolumeInfo {
        size_bytes: number(&row.lv_size)?,
        stripes: u32::try_from(number(&row.stripes)?).unwrap_or(u32::MAX),
        pool: Some(row.pool_lv.clone()).filter(|pool| !pool.is_empty() && row.segtype == "thin"),
        tags: tags.map(str::to_owned).collect(),
        vg: row.vg_name,
        lv: row.lv_name,
        uuid: row.lv_uuid,
        segtype: row.segtype,
    })
}

#[cfg(test)]
mod tests;
