//! The volumes on the disks of a guest, whatever lies between them and the disks: partitions, arrays, volume groups,
//! encryption.

use std::sync::Arc;

use crate::fs::FileTree;

/// The files of one volume.
#[derive(Clone)]
pub struct NamedTree {
    /// Name of the volume among those of the guest: `p1`, `vda.p1`, `vg0-root`. It has no slash.
    pub name: String,
    /// File system, for people: `ext4`, `XFS`.
    pub fs: String,
    /// Names by which the guest's `/etc/fstab` may call the volume, besides those of [`FileTree::identity`]:
    /// `/dev/vg0/root`, `/dev/mapper/vg0-root`, `/dev/vda1`, `PARTUUID=…`.
    pub names: Vec<String>,
    /// Its files.
    pub tree: Arc<dyn FileTree>,
}

/// The file systems inside a backup.
#[derive(Clone, Default)]
pub struct Trees {
    /// Those that can be read.
    pub trees: Vec<NamedTree>,
    /// Names of volumes that can't be read, with the reason.
    pub left_out: Vec<(String, String)>,
    /// Warnings about partition tables and volume groups.
    pub warnings: Vec<String>,
}
