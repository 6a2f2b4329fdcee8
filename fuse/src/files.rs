//! The file systems of one backup: mounts its images out of sight, and then what is in them where the user wants it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::Repository;

use crate::error::{Error, Result};
use crate::listing::{Part, Whole, partition_name};
use crate::loopdev::SectorSize;
use crate::partition::{TableKind, read_table};
use crate::probe::probe;
use crate::session::{Session, SessionOptions};
use crate::tree::ImageFs;
use crate::volumes::{self, Content, Volume, VolumeReport, WhenBusy};

/// Where the images behind mounts of files are mounted.
pub const HIDDEN_ROOT: &str = "/run/vbk";

/// The mounted file systems of a backup.
pub struct MountedFiles {
    /// Serves them.
    pub session: Session,
    /// What became of each partition, or of the whole disk if it has none.
    pub volumes: Vec<VolumeReport>,
    /// What should be known about the disks' partition tables.
    pub warnings: Vec<String>,
}

/// Mounts the file systems of the given images of a backup below `dir`: at `dir/pN`, or at `dir/DISK/pN` if the backup
/// has several disks; the file system of a disk without partitions takes the place of `pN`'s directory. Needs root.
/// When nothing could be mounted, nothing stays mounted: the reports tell why.
pub fn mount_files(
    repository: Repository,
    entry: &Entry,
    images: &[&Image],
    dir: &Path,
    threads: usize,
) -> Result<MountedFiles> {
    volumes::check_mount_point(dir)?;
    volumes::check_fuse()?;
    volumes::check_loop_rights()?;
    let resources = ReadResources::new(threads);
    let store = repository.view()?.store();
    let hidden = Hidden::create()?;
    let hidden = hidden.path.as_path();
    let place = hidden
        .join(entry.backup.guest.as_str())
        .join(entry.backup.time.to_string());
    let mut found = Vec::new();
    let mut warnings = Vec::new();
    for image in images {
        let reader = ImageReader::open(Arc::clone(&store), Arc::clone(&resources), image)?;
        let parent = match entry.backup.images.len() {
            1 => PathBuf::new(),
            _ => image.disk.as_str().into(),
        };
        let label = format!("{}/{}", entry.backup.spec(), image.disk);
        let inspected = inspect(image, &reader, &parent, &place, &mut warnings);
        found.extend(inspected.map_err(|source| Error::Inspect { image: label, source })?);
    }
    drop(store);
    let tree = ImageFs::open(repository, Some(entry.id), resources)?;
    let options = SessionOptions {
        allow_other: false,
        threads,
    };
    let session = Session::mount(Arc::new(tree), hidden, options)?;
    let undo = || {
        if let Err(error) = volumes::unmount(hidden, WhenBusy::Detach) {
            tracing::warn!("can't undo the mount at {}: {error}", hidden.display());
        }
    };
    let volumes = volumes::mount_volumes(dir, hidden, &found).inspect_err(|_| undo())?;
    let mounted = |report: &VolumeReport| matches!(report.outcome, volumes::Outcome::Mounted { .. });
    if !volumes.iter().any(mounted) {
        volumes::unmount(dir, WhenBusy::Detach)?;
    }
    Ok(MountedFiles {
        session,
        volumes,
        warnings,
    })
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
