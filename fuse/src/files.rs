//! The file systems of one backup: looks into its disks, and mounts what is in them from images that another process
//! serves.
//!
//! Another process, because mount(2) reads from the images, and a process that serves what it waits for can't be killed:
//! its other threads are gone at once, the waiting one never gets its answer, and as long as it waits the kernel keeps
//! the connection that could tell it so.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::View;

use crate::error::{Error, Result};
use crate::listing::{Part, Whole, partition_name};
use crate::loopdev::SectorSize;
use crate::partition::{TableKind, read_table};
use crate::probe::probe;
use crate::volumes::{self, Content, Volume, VolumeReport, WhenBusy};

/// Where the images behind mounts of files are mounted.
pub const HIDDEN_ROOT: &str = "/run/vbk";

/// A mount of files in the making: what there is to mount, and the place for the images.
pub struct FilesPlan {
    hidden: Hidden,
    dir: PathBuf,
    volumes: Vec<Volume>,
    warnings: Vec<String>,
}

impl FilesPlan {
    /// Looks into the given images of a backup, to mount their file systems below `dir`: at `dir/pN`, or at
    /// `dir/DISK/pN` if the backup has several disks; the file system of a disk without partitions takes the place of
    /// `pN`'s directory. Fails unless this process has the rights that it will need.
    pub fn new(
        view: &View,
        resources: &Arc<ReadResources>,
        entry: &Entry,
        images: &[&Image],
        dir: &Path,
    ) -> Result<Self> {
        volumes::check_mount_point(dir)?;
        volumes::check_loop_rights()?;
        volumes::check_fuse()?;
        let hidden = Hidden::create()?;
        let place = hidden
            .path
            .join(entry.backup.guest.as_str())
            .join(entry.backup.time.to_string());
        let mut plan = Self {
            hidden,
            dir: dir.to_owned(),
            volumes: Vec::new(),
            warnings: Vec::new(),
        };
        for image in images {
            let reader = ImageReader::open(view.store(), Arc::clone(resources), image)?;
            let parent = match entry.backup.images.len() {
                1 => PathBuf::new(),
                _ => image.disk.as_str().into(),
            };
            let inspected = inspect(image, &reader, &parent, &place, &mut plan.warnings);
            plan.volumes.extend(inspected.map_err(|source| Error::Inspect {
                image: format!("{}/{}", entry.backup.spec(), image.disk),
                source,
            })?);
        }
        Ok(plan)
    }

    /// Where the tree of images, with at least this backup in it, is to be mounted by another process.
    pub fn hidden(&self) -> &Path {
        &self.hidden.path
    }

    /// What should be known about the disks' partition tables.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Mounts the file systems, now that the images are there. When nothing could be mounted, nothing stays mounted,
    /// neither here nor at [`Self::hidden`]: the reports tell why.
    pub fn mount(self) -> Result<Vec<VolumeReport>> {
        let hidden = &self.hidden.path;
        let undo = || {
            if let Err(error) = volumes::unmount(hidden, WhenBusy::Detach) {
                tracing::warn!("can't undo the mount at {}: {error}", hidden.display());
            }
        };
        let reports = volumes::mount_volumes(&self.dir, hidden, &self.volumes).inspect_err(|_| undo())?;
        let mounted = |report: &VolumeReport| matches!(report.outcome, volumes::Outcome::Mounted { .. });
        if !reports.iter().any(mounted) {
            volumes::unmount(&self.dir, WhenBusy::Detach)?;
        }
        Ok(reports)
    }
}

fn inspect(
    image: &Image,
    reader: &ImageReader,
    parent: &Path,
    place: &Path,
    warnings: &mut Vec<String>,
) -> std::io::Result<Vec<Volume>> {
    let whole = Whole(reader);
    let table = read_table(&whole)?;
    warnings.extend(
        table
            .warnings
            .iter()
            .map(|warning| format!("{}: {warning}", image.disk)),
    );
    let volume = |name: PathBuf, file: String, content| Volume {
        name,
        image: place.join(file),
        // A file system with larger blocks can be read in smaller sectors, but not the other way round.
        sector_size: SectorSize::B512,
        content,
    };
    if table.kind == TableKind::None {
        let content = content(&probe(&whole)?);
        return Ok(vec![volume(parent.to_owned(), format!("{}.img", image.disk), content)]);
    }
    let partitions = table.partitions.iter().map(|partition| {
        let part = Part {
            image: reader,
            offset_bytes: partition.offset_bytes,
            size_bytes: partition.size_bytes,
        };
        let name = parent.join(format!("p{}", partition.number));
        // What can't be read is listed with the reason, and does not stop the others.
        let content = match probe(&part) {
            Ok(found) => content(&found),
            Err(error) => Content::NotMountable(error.to_string()),
        };
        volume(name, partition_name(image, partition.number), content)
    });
    Ok(partitions.collect())
}

fn content(found: &crate::probe::Content) -> Content {
    match found {
        crate::probe::Content::FileSystem(kind) => Content::FileSystem(kind.kernel_name().to_owned()),
        other => Content::NotMountable(other.why_not_mountable().unwrap_or("not a file system").to_owned()),
    }
}

/// A directory for the images that only its owner may enter, with a name of its own.
struct Hidden {
    path: PathBuf,
}

impl Hidden {
    fn create() -> Result<Self> {
        let make = |path: &Path, recursive| {
            let mut private = fs::DirBuilder::new();
            let made = private.mode(0o700).recursive(recursive).create(path);
            made.map_err(|source| Error::Runtime {
                path: path.to_owned(),
                source,
            })
        };
        let root = Path::new(HIDDEN_ROOT);
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let own = root.join(format!("files-{}-{stamp:x}", std::process::id()));
        let path = own.join("images");
        make(root, true)?;
        make(&own, false)?;
        make(&path, false)?;
        Ok(Self { path })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // As long as something is mounted there this fails and is right to; unmounting then removes them.
        let _ = fs::remove_dir(&self.path);
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// How old a directory without a mount must be: a younger one may be about to get it.
const STARTING: Duration = Duration::from_secs(60);

/// Removes the directories that mounts left below [`HIDDEN_ROOT`] which were killed before they mounted anything.
/// Never more than empty directories.
pub fn clean_directories(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|directory| directory.modified());
        let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > STARTING));
        if old && entry.file_name().to_string_lossy().starts_with("files-") {
            // With a mount on it, it is busy and stays.
            let _ = fs::remove_dir(entry.path().join("images"));
            let _ = fs::remove_dir(entry.path());
        }
    }
}
