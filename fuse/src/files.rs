//! The file systems of one backup: examines its disks, and mounts their content from images that another process
//! serves.
//!
//! It must be another process, because mount(2) reads from the images, and a process that waits for its own answers
//! can't be killed: its other threads end at once, the waiting one never gets its answer, and as long as it waits the
//! kernel keeps open the connection whose end would wake it.

mod btrfs_sets;
mod found;
mod hidden;
mod plans;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::View;

use crate::error::{Error, Result};
use vbk_inside::btrfs::{Fsid, NewFsid};

use crate::volumes::{self, Access, Action, SectorSize, Volume, VolumeReport, WhenBusy};
use found::{Disk, Found, Plan};
use hidden::Hidden;

pub use hidden::clean_directories;

/// Directory below which the images for mounts of files are mounted.
pub const HIDDEN_ROOT: &str = "/run/vbk";

/// A prepared mount of files: the volumes to mount, and the directory for the images.
pub struct FilesPlan {
    hidden: Hidden,
    dir: PathBuf,
    access: Access,
    volumes: Vec<Volume>,
    fsids: Vec<NewFsid>,
    warnings: Vec<String>,
}

impl FilesPlan {
    /// Examines the given images of a backup, to mount their file systems below `dir`: at `dir/pN`, or at `dir/DISK/pN`
    /// if the backup has several disks. The file system of a disk without partitions is mounted at `dir` instead of
    /// `dir/pN`, or at `dir/DISK` if other users could reach it at `dir` and must not. Fails unless this process has
    /// the rights that the mount will need.
    ///
    /// `new_fsid` returns a random identity at each call: the kernel never sees a btrfs under its own.
    pub fn new(
        view: &View,
        resources: &Arc<ReadResources>,
        entry: &Entry,
        images: &[&Image],
        (dir, access): (&Path, Access),
        new_fsid: &dyn Fn() -> io::Result<Fsid>,
    ) -> Result<Self> {
        volumes::check_mount_point(dir)?;
        volumes::check_loop_rights()?;
        volumes::check_fuse()?;
        let hidden = Hidden::create(Path::new(HIDDEN_ROOT))?;
        let place = hidden
            .path()
            .join(entry.backup.guest.as_str())
            .join(entry.backup.time.to_string());
        let alone = entry.backup.images.len() == 1;
        let on_frame = alone && (access == Access::Everyone || volumes::only_root_reaches(dir));
        let disks = open_disks(view, resources, entry, images, on_frame)?;
        let (found, warnings) = inspect_all(entry, &disks)?;
        let planned = plans::plan(&found, new_fsid).map_err(|source| Error::Inspect {
            image: entry.backup.spec(),
            source,
        })?;
        let (mut plans, fsids) = planned;
        let volumes = found.iter().enumerate().filter(|(_, volume)| volume.wanted);
        let volumes = volumes.filter_map(|(index, volume)| {
            let plan = plans.remove(&index)?;
            Some(to_mount(&found, volume, plan, &place))
        });
        let volumes = volumes.collect();
        Ok(Self {
            hidden,
            dir: dir.to_owned(),
            access,
            volumes,
            fsids,
            warnings,
        })
    }

    /// Returns the file systems that the tree of images must show under another identity.
    pub fn fsids(&self) -> &[NewFsid] {
        &self.fsids
    }

    /// Returns the directory where another process is to mount the tree of images, with at least this backup in it.
    pub fn hidden(&self) -> &Path {
        self.hidden.path()
    }

    /// Returns the warnings about the disks' partition tables.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Mounts the file systems, after the images were mounted. If nothing could be mounted, nothing stays mounted,
    /// neither here nor at [`Self::hidden`]; the reports give the reasons.
    pub fn mount(self) -> Result<Vec<VolumeReport>> {
        let hidden = self.hidden.path();
        let undo = || {
            if let Err(error) = volumes::unmount(hidden, WhenBusy::Detach) {
                tracing::warn!("can't undo the mount at {}: {error}", hidden.display());
            }
        };
        let reports = volumes::mount_volumes(&self.dir, hidden, &self.volumes, self.access).inspect_err(|_| undo())?;
        let mounted = |report: &VolumeReport| matches!(report.outcome, volumes::Outcome::Mounted { .. });
        if !reports.iter().any(mounted) {
            volumes::unmount(&self.dir, WhenBusy::Detach)?;
        }
        Ok(reports)
    }
}

/// Opens all disks of a backup. One that the user did not ask for is left out if it can't be opened. `on_frame`: a disk
/// without partitions is mounted at the mount point itself.
fn open_disks<'a>(
    view: &View,
    resources: &Arc<ReadResources>,
    entry: &'a Entry,
    images: &[&Image],
    on_frame: bool,
) -> Result<Vec<Disk<'a>>> {
    let alone = entry.backup.images.len() == 1;
    let mut disks = Vec::new();
    for image in &entry.backup.images {
        let wanted = images.iter().any(|it| it.disk == image.disk);
        let reader = match ImageReader::open(view.store(), Arc::clone(resources), image) {
            Ok(reader) => reader,
            Err(error) if wanted => return Err(error.into()),
            Err(_) => continue,
        };
        let own = PathBuf::from(image.disk.as_str());
        disks.push(Disk {
            image,
            reader,
            wanted,
            parent: if alone { PathBuf::new() } else { own.clone() },
            whole: if on_frame { PathBuf::new() } else { own },
        });
    }
    Ok(disks)
}

/// Finds the volumes on the disks, and the warnings about those that the user asked for.
fn inspect_all<'a>(entry: &Entry, disks: &'a [Disk<'_>]) -> Result<(Vec<Found<'a>>, Vec<String>)> {
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for disk in disks {
        let mut said = Vec::new();
        match found::inspect(disk, &mut said) {
            Ok(volumes) => found.extend(volumes),
            Err(_) if !disk.wanted => continue,
            Err(source) => {
                return Err(Error::Inspect {
                    image: format!("{}/{}", entry.backup.spec(), disk.image.disk),
                    source,
                });
            }
        }
        if disk.wanted {
            warnings.extend(said);
        }
    }
    Ok((found, warnings))
}

/// Returns the volume to mount, with the paths of its images in the mount at `place`.
fn to_mount(found: &[Found], volume: &Found, plan: Plan, place: &Path) -> Volume {
    let image = |volume: &Found| place.join(&volume.file);
    let (action, others) = match plan {
        Plan::Mount { how, others } => (Action::Mount(how), others),
        Plan::Skip { reason, may_hold_files } => {
            let action = Action::Skip { reason, may_hold_files };
            (action, Vec::new())
        }
    };
    let others = others.iter().filter_map(|index| found.get(*index));
    Volume {
        name: volume.name.clone(),
        image: image(volume),
        window: volume.window,
        others: others.map(|other| (image(other), other.window)).collect(),
        // A file system with larger blocks can be read in smaller sectors, but not the other way round.
        sector_size: SectorSize::B512,
        action,
    }
}
