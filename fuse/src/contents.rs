//! The disks of a backup as devices, and what is inside them.

use std::io;
use std::sync::Arc;

use vbk_inside::device::{Device, SharedDevice};
use vbk_inside::volumes::{self, Disk, Secrets, Trees};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::name::DiskName;
use vbk_repo::reader::{ImageReader, ReadResources, Stream};
use vbk_repo::repository::View;

use crate::error::{Error, Result};

/// A disk of a backup. Reads ahead for sequential readers, so each reader opens its own.
pub(crate) struct BackedDisk(Stream);

impl BackedDisk {
    pub(crate) fn new(image: Arc<ImageReader>) -> Self {
        Self(Stream::new(image))
    }

    /// Opens a disk of a backup.
    pub(crate) fn open(view: &View, resources: &Arc<ReadResources>, image: &Image) -> Result<SharedDevice> {
        let reader = ImageReader::open(view.store(), Arc::clone(resources), image)?;
        Ok(Arc::new(Self::new(Arc::new(reader))))
    }
}

impl Device for BackedDisk {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(offset_bytes, buf) {
            Ok(len) if len == buf.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::other(error)),
        }
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

/// Opens the file systems inside a backup, without the kernel and without a right but reading the repository. With
/// `disk`, only those that have a part on that disk. Encrypted volumes are opened with `secrets`.
pub fn trees(
    view: &View,
    resources: &Arc<ReadResources>,
    entry: &Entry,
    disk: Option<&DiskName>,
    secrets: &Secrets,
) -> Result<Trees> {
    if let Some(disk) = disk {
        entry.backup.image(disk.as_str())?;
    }
    let is_wanted = |image: &Image| disk.is_none_or(|disk| *disk == image.disk);
    let mut disks = Vec::new();
    let mut wanted = Vec::new();
    for image in &entry.backup.images {
        match BackedDisk::open(view, resources, image) {
            Ok(device) => {
                wanted.push(is_wanted(image));
                disks.push(Disk {
                    name: image.disk.to_string(),
                    device,
                });
            }
            Err(error) if is_wanted(image) => return Err(error),
            Err(_) => {}
        }
    }
    let mut found = volumes::find(&disks, secrets);
    let is_wanted = |disks: &[usize]| disks.iter().any(|disk| wanted[*disk]);
    let failed = std::mem::take(&mut found.failed);
    if let Some((number, source)) = failed.into_iter().find(|(number, _)| wanted[*number]) {
        return Err(Error::Inspect {
            image: format!("{}/{}", entry.backup.spec(), disks[number].name),
            source,
        });
    }
    found.volumes.retain(|volume| is_wanted(&volume.disks));
    found.warnings.retain(|(disks, _)| is_wanted(disks));
    Ok(volumes::trees(&found))
}
