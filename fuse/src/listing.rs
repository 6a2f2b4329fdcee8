//! The files of a backup in the mount: its record, its disks, their partitions, the volumes inside those, and the files
//! that were backed up with it, e.g. `config.xml`.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use vbk_inside::device::{Device, SharedDevice};
use vbk_inside::partition::{PartitionTable, read_table};
use vbk_inside::volumes::{Disk, Volumes};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::ImageReader;

/// Name of the file with the backup's record.
pub(crate) const RECORD_NAME: &str = "backup.json";

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileInfo {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    /// Bytes outside zero blocks, as far as known.
    pub(crate) data_bytes: u64,
    pub(crate) content: FileContent,
}

/// Content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileContent {
    Record,
    /// The image with this number; attached files are numbered after the disks.
    Image(usize),
    /// A part of a disk.
    Partition {
        disk: usize,
        offset_bytes: u64,
    },
    /// A volume inside the disks, of this name: [`vbk_inside::volumes::Volume::image`].
    Volume(String),
}

/// The disks of a backup, by their numbers in it.
pub(crate) struct OpenDisks {
    pub(crate) disks: Vec<Disk>,
}

impl OpenDisks {
    /// Opens the disks of a backup. One that can't be opened keeps its number, and can't be read.
    pub(crate) fn open<E: std::fmt::Display>(entry: &Entry, open: impl Fn(usize) -> Result<SharedDevice, E>) -> Self {
        let mut disks = Vec::new();
        for (number, image) in entry.backup.images.iter().enumerate() {
            let name = image.disk.to_string();
            disks.push(match open(number) {
                Ok(device) => Disk { name, device },
                Err(error) => Disk::unreadable(name, image.size_bytes, error.to_string()),
            });
        }
        Self { disks }
    }
}

/// Lists the files of a backup. A disk whose partition table can't be read is still listed, without its partitions; the
/// flag is then false.
pub(crate) fn list(entry: &Entry, open: &OpenDisks, inside: &Volumes) -> (Vec<FileInfo>, bool) {
    let mut complete = true;
    let record = record_json(entry);
    let mut files = vec![FileInfo {
        name: RECORD_NAME.to_owned(),
        size_bytes: record.len() as u64,
        data_bytes: record.len() as u64,
        content: FileContent::Record,
    }];
    for ((number, image), disk) in entry.backup.images.iter().enumerate().zip(&open.disks) {
        files.push(image_file(number, image, format!("{}.img", image.disk)));
        let table = match read_table(&*disk.device) {
            Ok(table) => table,
            Err(error) => {
                let backup = entry.backup.spec();
                tracing::warn!("{backup}/{}: can't show its partitions: {error}", image.disk);
                complete = false;
                continue;
            }
        };
        for warning in &table.warnings {
            tracing::info!("{}/{}: {warning}", entry.backup.spec(), image.disk);
        }
        files.extend(partitions(number, image, &table));
    }
    let mut names: HashSet<String> = files.iter().map(|file| file.name.clone()).collect();
    names.extend(entry.backup.files.iter().map(|file| file.disk.to_string()));
    for volume in &inside.volumes {
        let name = format!("{}.img", volume.image);
        if names.insert(name.clone()) {
            files.push(FileInfo {
                name,
                size_bytes: volume.device.size_bytes(),
                data_bytes: volume.device.size_bytes(),
                content: FileContent::Volume(volume.image.clone()),
            });
        }
    }
    // Their names differ from those of the disks and partitions: `Backup::check` made sure of that when the record was
    // read.
    for (number, file) in (entry.backup.images.len()..).zip(&entry.backup.files) {
        files.push(image_file(number, file, file.disk.to_string()));
    }
    (files, complete)
}

fn image_file(number: usize, image: &Image, name: String) -> FileInfo {
    FileInfo {
        name,
        size_bytes: image.size_bytes,
        data_bytes: image.data_bytes,
        content: FileContent::Image(number),
    }
}

fn partitions(number: usize, image: &Image, table: &PartitionTable) -> Vec<FileInfo> {
    let info = |partition: &vbk_inside::partition::Partition| FileInfo {
        name: format!("{}.p{}.img", image.disk, partition.number),
        size_bytes: partition.size_bytes,
        data_bytes: partition.size_bytes,
        content: FileContent::Partition {
            disk: number,
            offset_bytes: partition.offset_bytes,
        },
    };
    table.partitions.iter().map(info).collect()
}

/// Reads the partition table of a disk. An error means that the disk could not be read.
pub fn partition_table(image: &ImageReader) -> io::Result<PartitionTable> {
    read_table(&Whole(image))
}

/// Formats the record for people.
pub(crate) fn record_json(entry: &Entry) -> Arc<[u8]> {
    let mut text = serde_json::to_vec_pretty(&*entry.backup).expect("a record has only strings and numbers in it");
    text.push(b'\n');
    text.into()
}

/// A whole image, for the partition probe.
struct Whole<'a>(&'a ImageReader);

impl Device for Whole<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}
