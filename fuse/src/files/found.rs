//! What is found on the disks of a backup, and what becomes of each part.

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
