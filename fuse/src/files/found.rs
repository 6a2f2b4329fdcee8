//! What is found on the disks of a backup, and what becomes of each part.

use vbk_inside::partition::PartitionKind;
use vbk_inside::volumes::Volume;

use crate::drivers::FileSystem;

/// A volume, and whether the user asked for a disk that it is on. The others are examined for parts that belong to those.
pub(super) struct Found {
    pub(super) volume: Volume,
    pub(super) wanted: bool,
}

impl Found {
    /// Returns the name of the file that shows its content.
    pub(super) fn file(&self) -> String {
        format!("{}.img", self.volume.image)
    }
}

/// Tests for a partition type that holds boot code without a file system: BIOS boot, PReP, and Microsoft's reserved
/// one (UEFI 2.10, table 5.7).
pub(super) fn is_boot_code(volume: &Volume) -> bool {
    const BOOT: [&[u8; 16]; 3] = [
        b"Hah!IdontNeedEFI",
        &[
            0x38, 0x2d, 0x1a, 0x9e, 0x12, 0xc6, 0x16, 0x43, 0xaa, 0x26, 0x8b, 0x49, 0x52, 0x1e, 0x5a, 0x8b,
        ],
        &[
            0x16, 0xe3, 0xc9, 0xe3, 0x5c, 0x0b, 0xb8, 0x4d, 0x81, 0x7d, 0xf9, 0x2d, 0xf0, 0x02, 0x15, 0xae,
        ],
    ];
    match volume.kind {
        Some(PartitionKind::Gpt(kind)) => BOOT.contains(&&kind),
        Some(PartitionKind::Mbr(kind)) => kind == 0x41,
        None => false,
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

/// Adds a warning for a volume that bears the marks of several contents.
pub(super) fn with_doubts(volume: &Found, mut how: FileSystem) -> FileSystem {
    if let Ok(probed) = &volume.volume.probed
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
