//! The disks of a backup as devices, and what is inside them.

use std::io;
use std::sync::Arc;

use vbk_inside::device::{Device, SharedDevice};
use vbk_inside::volumes::{self, Disk, Secrets, Trees, Volume, Volumes};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources, Stream};
use vbk_repo::repository::View;
use vbk_repo::store::StoreReader;

use crate::error::{Error, Result};

/// A disk of a backup. Reads ahead for sequential readers, so each reader opens its own.
pub(crate) struct BackedDisk(Stream);

impl BackedDisk {
    pub(crate) fn new(image: Arc<ImageReader>) -> Self {
        Self(Stream::new(image))
    }

    /// Opens a disk of a backup.
    pub(crate) fn open(
        store: Arc<dyn StoreReader>,
        resources: &Arc<ReadResources>,
        image: &Image,
    ) -> vbk_repo::Result<SharedDevice> {
        let reader = ImageReader::open(store, Arc::clone(resources), image)?;
        Ok(Arc::new(Self::new(Arc::new(reader))))
    }
}

impl Device for BackedDisk {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset_bytes, buf)
    }

    fn will_read(&self, offsets_bytes: &[u64]) {
        self.0.image().will_read(offsets_bytes);
    }

    fn size_bytes(&self) -> u64 {
        self.0.image().size_bytes()
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.0.image().next_data(offset_bytes).map_err(io::Error::other)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        if offset_bytes >= self.size_bytes() {
            return Ok(offset_bytes);
        }
        self.0.image().next_hole(offset_bytes).map_err(io::Error::other)
    }
}

/// What is inside the disks of a backup.
pub(crate) struct Contents {
    found: Volumes,
    /// For each disk, whether the user asked for it. The others are examined for parts that belong to it.
    wanted: Vec<bool>,
}

impl Contents {
    /// Examines all disks of a backup. Fails if one of the wanted ones can't be read.
    pub(crate) fn find(
        view: &View,
        resources: &Arc<ReadResources>,
        entry: &Entry,
        images: &[&Image],
        secrets: &Secrets,
    ) -> Result<Self> {
        let (mut disks, mut wanted) = (Vec::new(), Vec::new());
        for image in &entry.backup.images {
            let is_wanted = images.iter().any(|it| it.disk == image.disk);
            match BackedDisk::open(view.store(), resources, image) {
                Ok(device) => {
                    wanted.push(is_wanted);
                    disks.push(Disk {
                        name: image.disk.to_string(),
                        device,
                    });
                }
                Err(error) if is_wanted => return Err(error.into()),
                // It keeps its position, by which the guest names its disks.
                Err(error) => {
                    wanted.push(false);
                    disks.push(Disk::unreadable(
                        image.disk.to_string(),
                        image.size_bytes,
                        error.to_string(),
                    ));
                }
            }
        }
        let mut found = volumes::find(&disks, secrets);
        let mut failed = std::mem::take(&mut found.failed).into_iter();
        match failed.find(|(number, _)| wanted[*number]) {
            Some((number, source)) => Err(Error::Inspect {
                image: format!("{}/{}", entry.backup.spec(), disks[number].name),
                source,
            }),
            None => Ok(Self { found, wanted }),
        }
    }

    fn is_wanted(&self, disks: &[usize]) -> bool {
        disks.iter().any(|disk| self.wanted[*disk])
    }

    /// Returns the warnings about the wanted disks.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let warnings = self.found.warnings.iter();
        let wanted = warnings.filter(|(disks, _)| self.is_wanted(disks));
        wanted.map(|(_, text)| text.clone()).collect()
    }

    /// Returns all volumes, and whether each has a part on a wanted disk.
    pub(crate) fn into_volumes(self) -> impl Iterator<Item = (Volume, bool)> {
        let Self { found, wanted } = self;
        found.volumes.into_iter().map(move |volume| {
            let is_wanted = volume.disks.iter().any(|disk| wanted[*disk]);
            (volume, is_wanted)
        })
    }
}

/// Asks for the passphrases of the encrypted volumes in a backup, or on one disk of it. Opens no file system.
pub fn ask(
    view: &View,
    resources: &Arc<ReadResources>,
    entry: &Entry,
    disk: Option<&str>,
    secrets: &Secrets,
) -> Result<()> {
    if secrets.can_ask() {
        Contents::find(view, resources, entry, &wanted(entry, disk)?, secrets)?;
    }
    Ok(())
}

fn wanted<'a>(entry: &'a Entry, disk: Option<&str>) -> Result<Vec<&'a Image>> {
    Ok(match disk {
        Some(disk) => vec![entry.backup.image(disk)?],
        None => entry.backup.images.iter().collect(),
    })
}

/// Opens the file systems inside a backup, without the kernel and without a right but reading the repository. With
/// `disk`, only those that have a part on that disk. Encrypted volumes are opened with `secrets`.
pub fn trees(
    view: &View,
    resources: &Arc<ReadResources>,
    entry: &Entry,
    disk: Option<&str>,
    secrets: &Secrets,
) -> Result<Trees> {
    let contents = Contents::find(view, resources, entry, &wanted(entry, disk)?, secrets)?;
    let warnings = contents.warnings();
    let mut trees = volumes::trees(&contents.found, &|volume| contents.is_wanted(&volume.disks));
    trees.warnings = warnings;
    Ok(trees)
}
