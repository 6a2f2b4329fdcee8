//! Finds out what each disk is, and chooses the method that will hold it still. Changes nothing.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use vbk_repo::name::DiskName;

use super::hold::{Disk, HoldMethod, PlannedDisk};
use super::options::{Method, SnapshotOptions};
use super::{SnapshotError, methods};
use crate::host::device::DeviceNumber;
use crate::host::lvm::{self, Volume};
use crate::host::program::Programs;
use crate::sys;

/// The method for each disk of a guest. Nothing has been made yet.
#[derive(Debug)]
pub struct Plan {
    pub(super) programs: Programs,
    pub(super) options: SnapshotOptions,
    pub(super) disks: Vec<PlannedDisk>,
}

/// Finds out what the disks are, chooses a method for each, and checks that there is room. Creates nothing. Asks lvm2
/// only if there are block devices.
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
        // What lvm2 has below its volumes: a snapshot's space, the front of a pool, the origin's own device.
        if volume.is_none() && what.device.is_some_and(|device| device.is_logical_volume()) {
            return Err(SnapshotError::NotAGuestVolume {
                volume: path.display().to_string(),
                what: "a pool or a part of another volume",
            });
        }
        let disk = Disk {
            name: name.clone(),
            source: path.clone(),
            size_bytes: what.size_bytes.or(volume.map(|volume| volume.size_bytes)).unwrap_or(0),
            volume: volume.cloned(),
            device: what.device,
        };
        planned.push(PlannedDisk {
            method: method_of(&disk, options)?,
            disk,
            pool: None,
            space_bytes: None,
        });
    }
    reserve(programs, &mut planned, options)?;
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
            // share, another one may have it open.
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
        // The reader will report the error; lvm2 knows the size too.
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

/// The first method that suits a disk.
fn method_of(disk: &Disk, options: &SnapshotOptions) -> Result<&'static dyn HoldMethod, SnapshotError> {
    match options.method {
        Method::Auto => first_of(disk, options, &|_| true),
        Method::None => without_snapshot(disk, options),
    }
}

/// The method for a disk that is read itself.
pub(super) fn without_snapshot(
    disk: &Disk,
    options: &SnapshotOptions,
) -> Result<&'static dyn HoldMethod, SnapshotError> {
    first_of(disk, options, &|method| method.kind().is_none())
}

fn first_of(
    disk: &Disk,
    options: &SnapshotOptions,
    may: &dyn Fn(&dyn HoldMethod) -> bool,
) -> Result<&'static dyn HoldMethod, SnapshotError> {
    for method in methods::ALL {
        if may(method) && method.suits(disk, options)? {
            return Ok(method);
        }
    }
    // The last method takes the disk, or says why it can't be read.
    Err(SnapshotError::NotADisk {
        path: disk.source.clone(),
    })
}

/// Lets each method find room for its disks.
fn reserve(programs: &Programs, disks: &mut [PlannedDisk], options: &SnapshotOptions) -> Result<(), SnapshotError> {
    for method in methods::ALL {
        let its_own = disks.iter_mut().filter(|disk| disk.method.name() == method.name());
        let mut its_own: Vec<&mut PlannedDisk> = its_own.collect();
        if !its_own.is_empty() {
            method.reserve(programs, &mut its_own, options)?;
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
