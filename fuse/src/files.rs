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

use vbk_inside::volumes::Secrets;
use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::View;

use crate::contents::Contents;
use crate::drivers::{Backing, Way};
use crate::error::{Error, Result};
use vbk_inside::btrfs::{Fsid, NewFsid};

use crate::volumes::{self, Access, Action, SectorSize, Volume, VolumeReport, WhenBusy};
use found::{Found, Plan};
use hidden::Hidden;

pub use hidden::{Served, clean_directories};

/// Directory below which the images for mounts of files are mounted.
pub const HIDDEN_ROOT: &str = "/run/vbk";

/// Options of a mount of files.
#[derive(Debug, Clone, Copy)]
pub struct FilesOptions<'a> {
    /// Directory for the file systems.
    pub dir: &'a Path,
    /// Users who may enter them.
    pub access: Access,
    /// Way of mounting. All but [`Way::AsItIs`] need images that can be written.
    pub way: Way,
    /// Passphrases for encrypted volumes.
    pub secrets: &'a Secrets,
}

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
    /// if the backup has several disks; a logical volume at `dir/VG-LV`. The file system of a disk without partitions is
    /// mounted at `dir` instead of `dir/pN`, or at `dir/DISK` if other users could reach it at `dir` and must not. Fails
    /// unless this process has the rights that the mount will need.
    ///
    /// `new_fsid` returns a random identity at each call: the kernel never sees a btrfs under its own.
    pub fn new(
        view: &View,
        resources: &Arc<ReadResources>,
        entry: &Entry,
        images: &[&Image],
        options: &FilesOptions<'_>,
        new_fsid: &dyn Fn() -> io::Result<Fsid>,
    ) -> Result<Self> {
        let (dir, access) = (options.dir, options.access);
        volumes::check_mount_point(dir)?;
        volumes::check_loop_rights()?;
        volumes::check_fuse()?;
        let hidden = Hidden::create(Path::new(HIDDEN_ROOT))?;
        let contents = Contents::find(view, resources, entry, images, options.secrets)?;
        let warnings = contents.warnings();
        let found: Vec<Found> = contents
            .into_volumes()
            .map(|(volume, wanted)| Found { volume, wanted })
            .collect();
        let planned = plans::plan(&found, options.way, new_fsid).map_err(|source| Error::Inspect {
            image: entry.backup.spec(),
            source,
        })?;
        let (mut plans, fsids) = planned;
        let on_frame = access == Access::Everyone || volumes::only_root_reaches(dir);
        let volumes = found.iter().enumerate().filter(|(_, found)| found.wanted);
        let volumes = volumes.filter_map(|(index, volume)| {
            let plan = plans.remove(&index)?;
            Some(to_mount(&found, volume, plan, hidden.path(), on_frame))
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

    /// Tests whether the mount writes to images: to replay a journal, or because programs may.
    pub fn needs_scratch(&self) -> bool {
        let writes = |volume: &Volume| match &volume.action {
            Action::Mount(how) => how.backing == Backing::Writable,
            Action::Skip { .. } => false,
        };
        self.volumes.iter().any(writes)
    }

    /// Returns the directory where another process is to mount the tree of this backup alone, flat.
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

/// Returns the volume to mount, with the paths of its images in the mount at `hidden`. `on_frame`: a disk without
/// partitions is mounted at the mount point itself.
fn to_mount(found: &[Found], volume: &Found, plan: Plan, hidden: &Path, on_frame: bool) -> Volume {
    let image = |found: &Found| hidden.join(found.file());
    let (action, others) = match plan {
        Plan::Mount { how, others } => (Action::Mount(how), others),
        Plan::Skip { reason, may_hold_files } => {
            let action = Action::Skip { reason, may_hold_files };
            (action, Vec::new())
        }
    };
    let others = others.iter().filter_map(|index| found.get(*index));
    let place = &volume.volume.place;
    Volume {
        name: match place.as_os_str().is_empty() && !on_frame {
            true => volume.volume.name.clone().into(),
            false => place.clone(),
        },
        image: image(volume),
        others: others.map(image).collect(),
        // A file system with larger blocks can be read in smaller sectors, but not the other way round.
        sector_size: SectorSize::B512,
        action,
    }
}
