//! The files of a backup in the mount: its record, its disks, the partitions of its disks, and the files that were
//! backed up with it, e.g. `config.xml`.

use std::io;
use std::sync::Arc;

use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::ImageReader;

use vbk_inside::device::Device;
use vbk_inside::partition::{PartitionTable, read_table};

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
    /// A part of the image with this number, or all of it; attached files are numbered after the disks.
    Image {
        image: usize,
        offset_bytes: u64,
    },
}

/// Lists the files of a backup. `open` opens its images. A disk whose partition table can't be read is still listed,
/// without its partitions; the flag is then false.
pub(crate) fn list(entry: &Entry, open: impl Fn(&Image) -> vbk_repo::Result<ImageReader>) -> (Vec<FileInfo>, bool) {
    let mut complete = true;
    let record = record_json(entry);
    let mut files = vec![FileInfo {
        name: RECORD_NAME.to_owned(),
        size_bytes: record.len() as u64,
        data_bytes: record.len() as u64,
        content: FileContent::Record,
    }];
    for (number, image) in entry.backup.images.iter().enumerate() {
        files.push(FileInfo {
            name: format!("{}.img", image.disk),
            size_bytes: image.size_bytes,
            data_bytes: image.data_bytes,
            content: FileContent::Image {
                image: number,
                offset_bytes: 0,
            },
        });
        let table = open(image)
            .map_err(|error| error.to_string())
            .and_then(|reader| read_table(&Whole(&reader)).map_err(|error| error.to_string()));
        let table = match table {
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
    // Their names differ from all those above: `Backup::check` made sure of that when the record was read.
    for (number, file) in (entry.backup.images.len()..).zip(&entry.backup.files) {
        files.push(FileInfo {
            name: file.disk.to_string(),
            size_bytes: file.size_bytes,
            data_bytes: file.data_bytes,
            content: FileContent::Image {
                image: number,
                offset_bytes: 0,
            },
        });
    }
    (files, complete)
}

fn partitions(number: usize, image: &Image, table: &PartitionTable) -> Vec<FileInfo> {
    let info = |partition: &vbk_inside::partition::Partition| FileInfo {
        name: partition_name(image, partition.number),
        size_bytes: partition.size_bytes,
        data_bytes: partition.size_bytes,
        content: FileContent::Image {
            image: number,
            offset_bytes: partition.offset_bytes,
        },
    };
    table.partitions.iter().map(info).collect()
}

/// Reads the partition table of a disk. An error means that the disk could not be read.
pub fn partition_table(image: &ImageReader) -> io::Result<PartitionTable> {
    read_table(&Whole(image))
}

/// Returns the name of a partition's file.
pub(crate) fn partition_name(image: &Image, number: u32) -> String {
    format!("{}.p{number}.img", image.disk)
}

/// Formats the record for people.
pub(crate) fn record_json(entry: &Entry) -> Arc<[u8]> {
    let mut text = serde_json::to_vec_pretty(&entry.backup).expect("a record has only strings and numbers in it");
    text.push(b'\n');
    text.into()
}

/// A whole image, for the partition and file system probes.
pub(crate) struct Whole<'a>(pub(crate) &'a ImageReader);

impl Device for Whole<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(offset_bytes, buf) {
            Ok(len) if len == buf.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// A part of an image, for the same probes.
pub(crate) struct Part<'a> {
    pub(crate) image: &'a ImageReader,
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
}

impl Device for Part<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = offset_bytes
            .checked_add(buf.len() as u64)
            .is_some_and(|end| end <= self.size_bytes);
        if !inside {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Whole(self.image).read_at(self.offset_bytes + offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
