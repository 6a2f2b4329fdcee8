//! The volumes of a backup: every partition of every disk. All are examined together, because a mirror or a btrfs may
//! span several disks.

use std::io;
use std::path::PathBuf;

use vbk_repo::backup::Image;
use vbk_repo::reader::ImageReader;

use crate::drivers::FileSystem;
use crate::listing::{Part, Whole, partition_name};
use crate::volumes::Window;
use vbk_inside::partition::{PartitionKind, TableKind, read_table};
use vbk_inside::probe::containers::{self, MdMember};
use vbk_inside::probe::{self, Probed, probe_all};

/// A disk of a backup, open for reading.
pub(super) struct Disk<'a> {
    pub(super) image: &'a Image,
    pub(super) reader: ImageReader,
    /// True if the user asked for this disk. The others are examined for parts that belong to it.
    pub(super) wanted: bool,
    /// Directory of its partitions, below the mount point.
    pub(super) parent: PathBuf,
    /// Path where it is mounted if it has no partitions.
    pub(super) whole: PathBuf,
}

/// A partition, or a disk without partitions.
pub(super) struct Found<'a> {
    reader: &'a ImageReader,
    offset_bytes: u64,
    size_bytes: u64,
    kind: Option<PartitionKind>,
    /// Content, or the reason why it can't be read.
    pub(super) probed: Result<Probed, String>,
    /// Membership in a RAID array.
    pub(super) member: Option<MdMember>,
    /// Part of it that holds the content: in a mirror, less than all of it.
    pub(super) window: Window,
    pub(super) wanted: bool,
    /// Path below the mount point.
    pub(super) name: PathBuf,
    /// Name of its image's file.
    pub(super) file: String,
}

impl Found<'_> {
    /// Returns the part of the image that holds the content.
    pub(super) fn content(&self) -> Part<'_> {
        Part {
            image: self.reader,
            offset_bytes: self.offset_bytes + self.window.offset_bytes,
            size_bytes: match self.window.size_bytes {
                0 => self.size_bytes,
                size_bytes => size_bytes,
            },
        }
    }

    /// Tests for a partition type that holds boot code without a file system: BIOS boot, PReP, and Microsoft's reserved
    /// one (UEFI 2.10, table 5.7).
    pub(super) fn is_boot_code(&self) -> bool {
        const BOOT: [&[u8; 16]; 3] = [
            b"Hah!IdontNeedEFI",
            &[
                0x38, 0x2d, 0x1a, 0x9e, 0x12, 0xc6, 0x16, 0x43, 0xaa, 0x26, 0x8b, 0x49, 0x52, 0x1e, 0x5a, 0x8b,
            ],
            &[
                0x16, 0xe3, 0xc9, 0xe3, 0x5c, 0x0b, 0xb8, 0x4d, 0x81, 0x7d, 0xf9, 0x2d, 0xf0, 0x02, 0x15, 0xae,
            ],
        ];
        match self.kind {
            Some(PartitionKind::Gpt(kind)) => BOOT.contains(&&kind),
            Some(PartitionKind::Mbr(kind)) => kind == 0x41,
            None => false,
        }
    }
}

/// Decision for a volume.
pub(super) enum Plan {
    Mount {
        how: FileSystem,
        /// The other devices of the file system, by index.
        others: Vec<usize>,
    },
    Skip {
        reason: String,
        may_hold_files: bool,
    },
}

/// Examines the partitions of a disk.
pub(super) fn inspect<'a>(disk: &'a Disk<'_>, warnings: &mut Vec<String>) -> io::Result<Vec<Found<'a>>> {
    let whole = Whole(&disk.reader);
    let table = read_table(&whole)?;
    let name = &disk.image.disk;
    warnings.extend(table.warnings.iter().map(|warning| format!("{name}: {warning}")));
    let found = |place: PathBuf, file: String, (offset_bytes, size_bytes), kind| Found {
        reader: &disk.reader,
        offset_bytes,
        size_bytes,
        kind,
        probed: Err(String::new()),
        member: None,
        window: Window::default(),
        wanted: disk.wanted,
        name: place,
        file,
    };
    let mut all: Vec<Found> = if table.kind == TableKind::None {
        let range = (0, disk.image.size_bytes);
        vec![found(disk.whole.clone(), format!("{name}.img"), range, None)]
    } else {
        let partitions = table.partitions.iter().map(|partition| {
            let range = (partition.offset_bytes, partition.size_bytes);
            let place = disk.parent.join(format!("p{}", partition.number));
            found(
                place,
                partition_name(disk.image, partition.number),
                range,
                Some(partition.kind),
            )
        });
        partitions.collect()
    };
    for found in &mut all {
        match look_into(found) {
            Ok(()) => {}
            // If a disk without partitions can't be read, the call fails; a partition is listed with the reason.
            Err(error) if found.kind.is_none() => return Err(error),
            Err(error) => found.probed = Err(error.to_string()),
        }
    }
    Ok(all)
}

/// Probes a volume; in a complete mirror, probes the content of the mirror.
fn look_into(found: &mut Found) -> io::Result<()> {
    let mut probed = probe_all(&found.content())?;
    if probed.content == probe::Content::MdMember {
        found.member = containers::md_member(&found.content())?;
        if let Some((offset_bytes, size_bytes)) = found.member.as_ref().and_then(|member| member.whole_data) {
            let window = Window {
                offset_bytes,
                size_bytes,
            };
            found.window = window;
            let inner = probe_all(&found.content())?;
            // A mirror of anything but a file system is reported as a mirror.
            match inner.content {
                probe::Content::FileSystem(_) => probed = inner,
                _ => found.window = Window::default(),
            }
        }
    }
    found.probed = Ok(probed);
    Ok(())
}

/// Adds a warning for a volume that bears the marks of several contents.
pub(super) fn with_doubts(volume: &Found, mut how: FileSystem) -> FileSystem {
    if let Ok(probed) = &volume.probed
        && !probed.also.is_empty()
    {
        let also: Vec<_> = probed.also.iter().map(ToString::to_string).collect();
        how.warn(format!(
            "mounted as {}, but the volume also bears the mark of another content: {}",
            how.kind,
            also.join(", ")
        ));
    }
    how
}
