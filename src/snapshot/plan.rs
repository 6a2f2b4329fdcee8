//! Finds out what each disk is, and what will hold it still. Changes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::backup::SnapshotKind;
use vbk_repo::name::DiskName;

use super::{Method, SnapshotError, SnapshotOptions, names, reflink, size, unused};
use crate::host::device::DeviceNumber;
use crate::host::holders;
use crate::host::lvm::{self, NewSnapshot, Volume};
use crate::host::program::Programs;
use crate::host::run::Run;
use crate::sys;

/// What will hold a disk still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Hold {
    /// An LVM snapshot with space of its own.
    Thick {
        /// That space.
        size_bytes: u64,
    },
    /// A snapshot in its thin pool.
    Thin,
    /// A copy that shares extents, if the file system can.
    Reflink,
    /// Nothing: nobody uses the disk. It is an error if somebody writes to it before it is read.
    Unused,
    /// Nothing: it is read as it is.
    Live,
}

impl Hold {
    /// What is recorded of it; `None` for what is read itself.
    pub fn kind(self) -> Option<SnapshotKind> {
        match self {
            Self::Thick { .. } => Some(SnapshotKind::Thick),
            Self::Thin => Some(SnapshotKind::Thin),
            Self::Reflink => Some(SnapshotKind::Reflink),
            Self::Unused | Self::Live => None,
        }
    }
}

/// A disk, what it is, and what will hold it still.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedDisk {
    /// Its name.
    pub name: DiskName,
    /// The path, as it was given.
    pub source: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// What will hold it still.
    pub hold: Hold,
    /// The logical volume that it is.
    pub volume: Option<Volume>,
    /// The thin pool of that volume.
    pub pool: Option<Volume>,
    pub(super) device: Option<DeviceNumber>,
}

impl PlannedDisk {
    /// Whether it is a file, and no block device.
    pub fn is_file(&self) -> bool {
        self.device.is_none()
    }
}

/// What would be done to hold a guest's disks still. Nothing has been done yet.
#[derive(Debug)]
pub struct Plan {
    pub(super) programs: Programs,
    pub(super) options: SnapshotOptions,
    pub(super) disks: Vec<PlannedDisk>,
}

/// Finds out what the disks are, and whether there is room for what will hold them still. Creates nothing. Asks lvm2 only
/// if there are block devices.
pub fn plan(
    programs: &Programs,
    disks: &[(DiskName, PathBuf)],
    options: &SnapshotOptions,
) -> Result<Plan, SnapshotError> {
    let mut seen = Vec::new();
    for (name, path) in disks {
        seen.push((name, path, look(programs, path)?));
    }
    let devices: Vec<DeviceNumber> = seen.iter().filter_map(|(_, _, seen)| seen.device).collect();
    for (at, (second, path, what)) in seen.iter().enumerate() {
        let first = seen[..at]
            .iter()
            .find(|(_, _, other)| what.device.is_some() && other.device == what.device);
        if let Some((first, ..)) = first {
            return Err(SnapshotError::SameDevice {
                first: first.to_string(),
                second: second.to_string(),
                path: (*path).clone(),
            });
        }
    }
    let volumes = volumes_at(programs, &devices)?;
    let mut planned = Vec::new();
    for (name, path, what) in seen {
        let volume = volumes
            .iter()
            .find(|volume| what.device.is_some() && volume.device == what.device);
        let hold = match (what.device, volume) {
            // What lvm2 has below its volumes: a snapshot's space, the front of a pool, the origin's own device.
            (Some(device), None) if device.is_logical_volume() => {
                return Err(SnapshotError::NotAGuestVolume {
                    volume: path.display().to_string(),
                    what: "a pool or a part of another volume",
                });
            }
            _ if options.method == Method::None => bare(path, what.device, options)?,
            (Some(_), Some(volume)) => by_volume(volume)?,
            (Some(_), None) => bare(path, what.device, options)?,
            (None, _) if reflink::may_work(path) => Hold::Reflink,
            (None, _) => bare(path, None, options)?,
        };
        planned.push(PlannedDisk {
            name: name.clone(),
            source: path.clone(),
            size_bytes: what.size_bytes.or(volume.map(|volume| volume.size_bytes)).unwrap_or(0),
            hold,
            volume: volume.cloned(),
            pool: None,
            device: what.device,
        });
    }
    look_at_pools(programs, &mut planned, options)?;
    share_out(&mut planned, options)?;
    Ok(Plan {
        programs: programs.clone(),
        options: options.clone(),
        disks: planned,
    })
}

struct Seen {
    /// `None` for a file.
    device: Option<DeviceNumber>,
    size_bytes: Option<u64>,
}

fn look(programs: &Programs, path: &Path) -> Result<Seen, SnapshotError> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            // A volume that is not active has no device. It is not activated here: in a group that several machines
            // share, another one may have it open, and nobody named it.
            if error.kind() == std::io::ErrorKind::NotFound
                && let Some((vg, lv)) = volume_name(path)
                && let Ok(Some(volume)) = lvm::volume(programs, &vg, &lv)
            {
                return Err(SnapshotError::NotActive {
                    volume: volume.full_name(),
                });
            }
            return Err(SnapshotError::io("open", path)(error));
        }
    };
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(Seen {
            device: None,
            size_bytes: Some(metadata.len()),
        });
    }
    if !kind.is_block_device() {
        return Err(SnapshotError::NotADisk { path: path.to_owned() });
    }
    let size = std::fs::File::open(path).and_then(|file| sys::device_size_bytes(&file));
    Ok(Seen {
        device: Some(DeviceNumber::from_raw(metadata.rdev())),
        // Who reads it will say what is wrong; lvm2 knows the size too.
        size_bytes: size.ok(),
    })
}

/// The group and name in `/dev/vg0/web1` or `/dev/mapper/vg0-web1`.
fn volume_name(path: &Path) -> Option<(String, String)> {
    let path = path.to_str()?.strip_prefix("/dev/")?;
    let Some(mapped) = path.strip_prefix("mapper/") else {
        let (vg, lv) = path.split_once('/')?;
        return Some((vg.to_owned(), lv.to_owned()));
    };
    // The only dash that is not doubled.
    let marked = mapped.replace("--", "\0");
    let (vg, lv) = marked.split_once('-')?;
    Some((vg.replace('\0', "-"), lv.replace('\0', "-")))
}

fn volumes_at(programs: &Programs, devices: &[DeviceNumber]) -> Result<Vec<Volume>, SnapshotError> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let each = devices
        .iter()
        .map(|device| format!("(lv_kernel_major={} && lv_kernel_minor={})", device.major, device.minor));
    match lvm::volumes(programs, &each.collect::<Vec<_>>().join(" || ")) {
        // A machine without lvm2 has other disks, and a user who may read some of them may not ask it.
        Err(_) if !devices.iter().any(|device| device.is_logical_volume()) => Ok(Vec::new()),
        result => Ok(result?),
    }
}

fn by_volume(volume: &Volume) -> Result<Hold, SnapshotError> {
    let refuse = |what| {
        Err(SnapshotError::NotAGuestVolume {
            volume: volume.full_name(),
            what,
        })
    };
    if names::is_snapshot_of_vbk(volume) {
        return refuse("a snapshot that vbk made");
    }
    if volume.is_thick_snapshot() {
        return refuse("a snapshot, and there are no snapshots of snapshots");
    }
    if volume.attr.starts_with('O') {
        return refuse("an origin into which a snapshot is being merged");
    }
    // Pools and parts of other volumes, by the letters of lvs(8).
    let hidden = volume.role.split(',').any(|role| role == "private");
    if hidden
        || volume.path.is_empty()
        || volume
            .attr
            .starts_with(['t', 'T', 'e', 'd', 'D', 'i', 'I', 'l', 'p', 'c'])
    {
        return refuse("a pool or a part of another volume");
    }
    Ok(match volume.is_thin() {
        true => Hold::Thin,
        // Its size comes when all disks of the group are known.
        false => Hold::Thick { size_bytes: 0 },
    })
}

/// What is read itself.
pub(super) fn bare(
    path: &Path,
    device: Option<DeviceNumber>,
    options: &SnapshotOptions,
) -> Result<Hold, SnapshotError> {
    if options.live {
        return Ok(Hold::Live);
    }
    match holders::lasting(|| unused::user_of(path, device))? {
        None => Ok(Hold::Unused),
        Some(what) => Err(SnapshotError::InUse {
            path: path.to_owned(),
            what,
        }),
    }
}

/// A pool that is nearly full is not filled further.
fn look_at_pools(
    programs: &Programs,
    disks: &mut [PlannedDisk],
    options: &SnapshotOptions,
) -> Result<(), SnapshotError> {
    let thin = disks.iter().filter(|disk| disk.hold == Hold::Thin);
    let names: BTreeMap<(String, String), String> = thin
        .filter_map(|disk| disk.volume.as_ref())
        .map(|volume| {
            (
                (volume.vg.clone(), volume.pool.clone()),
                lvm::named(&volume.vg, &volume.pool),
            )
        })
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let pools = lvm::volumes(programs, &names.into_values().collect::<Vec<_>>().join(" || "))?;
    for pool in &pools {
        // Volume health: failed, metadata read-only (lvs(8)).
        if matches!(pool.attr.as_bytes().get(8), Some(b'F' | b'M')) {
            return Err(SnapshotError::PoolFailed { pool: pool.full_name() });
        }
        let fills = [
            ("data", pool.data_fill, "-L+SIZE"),
            ("metadata", pool.metadata_fill, "--poolmetadatasize +SIZE"),
        ];
        for (what, fill, option) in fills {
            if let Some(fill) = fill.filter(|fill| *fill >= options.stop_at) {
                return Err(SnapshotError::PoolFull {
                    pool: pool.full_name(),
                    what,
                    percent: fill * 100.0,
                    stop_percent: options.stop_at * 100.0,
                    option,
                });
            }
        }
    }
    for disk in disks.iter_mut().filter(|disk| disk.hold == Hold::Thin) {
        let volume = disk.volume.as_ref();
        let pool = volume.and_then(|volume| {
            pools
                .iter()
                .find(|pool| (&pool.vg, &pool.name) == (&volume.vg, &volume.pool))
        });
        disk.pool = pool.cloned();
    }
    Ok(())
}

/// Gives the thick snapshots of each group their sizes, or says what room they need.
fn share_out(disks: &mut [PlannedDisk], options: &SnapshotOptions) -> Result<(), SnapshotError> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, disk) in disks.iter().enumerate() {
        if let (Hold::Thick { .. }, Some(volume)) = (disk.hold, &disk.volume) {
            groups.entry(volume.vg.clone()).or_default().push(at);
        }
    }
    for (vg, members) in groups {
        let volumes = members
            .iter()
            .filter_map(|at| disks[*at].volume.as_ref().map(|volume| (*at, volume)));
        let (mut wants, mut free_bytes, mut extent_bytes) = (Vec::new(), 0, 1);
        for (at, volume) in volumes {
            (free_bytes, extent_bytes) = (volume.vg_free_bytes, volume.vg_extent_bytes);
            let peak = options.peak_bytes.get(&disks[at].name).copied();
            wants.push(size::want(volume.size_bytes, extent_bytes, options.size, peak));
        }
        let parts = size::share_out(free_bytes / extent_bytes, &wants).map_err(|extents| SnapshotError::NoRoom {
            vg,
            free_bytes,
            need_bytes: extents.saturating_mul(extent_bytes),
            disks: members
                .iter()
                .map(|at| disks[*at].name.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        for (at, extents) in members.into_iter().zip(parts) {
            disks[at].hold = Hold::Thick {
                size_bytes: extents * extent_bytes,
            };
        }
    }
    Ok(())
}

impl Plan {
    /// The disks, in the order they were given.
    pub fn disks(&self) -> &[PlannedDisk] {
        &self.disks
    }
}

/// The snapshot to make of a volume.
pub(super) fn new_snapshot(volume: &Volume, hold: Hold, number: usize, at: Timestamp, run: &Run) -> NewSnapshot {
    NewSnapshot {
        vg: volume.vg.clone(),
        origin: volume.name.clone(),
        pool: Some(volume.pool.clone()).filter(|pool| !pool.is_empty()),
        name: names::snapshot_name(volume, number, at, run.id()),
        extents: match hold {
            Hold::Thick { size_bytes } => Some(size_bytes / volume.vg_extent_bytes),
            _ => None,
        },
        tags: names::tags(run.host_id(), run.id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_volume_in_two_ways() {
        let of = |path: &str| volume_name(Path::new(path)).map(|(vg, lv)| format!("{vg} {lv}"));
        assert_eq!(of("/dev/vg0/web1-root").as_deref(), Some("vg0 web1-root"));
        assert_eq!(of("/dev/mapper/vg--0-web1--root").as_deref(), Some("vg-0 web1-root"));
        assert_eq!(of("/dev/sda"), None);
        assert_eq!(of("/srv/vg0/x"), None);
    }
}
