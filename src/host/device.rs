//! Block devices by number, and their files in sysfs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use crate::sys;

/// Number of a block device, written `253:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    pub(crate) major: u64,
    pub(crate) minor: u64,
}

/// Limit for devices stacked on devices; real stacks are lower.
const MAX_DEPTH: usize = 16;

impl DeviceNumber {
    /// Returns the number of a block device; `None` for everything else.
    pub fn of_block_device(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        metadata
            .file_type()
            .is_block_device()
            .then(|| Self::from_raw(metadata.rdev()))
    }

    /// Returns the device that holds the bytes of a path: the device itself, or that of the file's file system. `None`
    /// for a file system without a device of its own, e.g. btrfs.
    pub(crate) fn beneath(path: &Path) -> Option<Self> {
        Self::of_block_device(path).or_else(|| {
            let device = Self::from_raw(std::fs::metadata(path).ok()?.dev());
            (device.major != 0).then_some(device)
        })
    }

    /// Splits the `st_rdev` or `st_dev` of stat(2).
    pub(crate) fn from_raw(number: u64) -> Self {
        Self {
            major: major(number),
            minor: minor(number),
        }
    }

    /// Returns the path of one of the device's files in sysfs, e.g. `dm/uuid`.
    pub(crate) fn sysfs(self, file: &str) -> PathBuf {
        Path::new("/sys/dev/block").join(self.to_string()).join(file)
    }

    /// Reads one of the device's files in sysfs, if it exists.
    pub fn attribute(self, file: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.sysfs(file)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Tests that the kernel lists it as a logical volume.
    pub(crate) fn is_logical_volume(self) -> bool {
        self.attribute("dm/uuid").is_some_and(|uuid| uuid.starts_with("LVM-"))
    }

    /// Tests that it is set read-only, e.g. by `blockdev --setro`.
    pub(crate) fn is_read_only(self) -> bool {
        self.attribute("ro").is_some_and(|ro| ro != "0")
    }

    /// Sectors written and discarded since the device appeared; `None` where the kernel does not count them.
    pub(crate) fn written(self) -> Option<(u64, u64)> {
        let stat = self.attribute("stat")?;
        let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
        // Documentation/block/stat.rst.
        Some((*fields.get(6)?, fields.get(13).copied().unwrap_or(0)))
    }

    /// Returns the device, its partitions, and the disk of which it is a partition.
    pub(crate) fn related(self) -> BTreeSet<Self> {
        let path = self.sysfs("");
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        let partitions = entries
            .map(|entry| entry.path())
            .filter(|path| path.join("partition").exists());
        let mut all: BTreeSet<Self> = partitions.filter_map(|path| Self::in_sysfs(&path)).collect();
        all.insert(self);
        if path.join("partition").exists()
            && let Ok(path) = std::fs::canonicalize(&path)
            && let Some(disk) = path.parent().and_then(Self::in_sysfs)
        {
            all.insert(disk);
        }
        all
    }

    /// Returns the devices at the bottom of its stack, e.g. the disks and partitions under a logical volume; the device
    /// itself if it stands on none.
    pub fn leaves(self) -> Vec<Self> {
        let mut leaves = Vec::new();
        self.collect_leaves(MAX_DEPTH, &mut leaves);
        leaves
    }

    fn collect_leaves(self, depth: usize, leaves: &mut Vec<Self>) {
        let slaves = std::fs::read_dir(self.sysfs("slaves")).into_iter().flatten().flatten();
        let beneath: Vec<Self> = slaves.filter_map(|slave| Self::in_sysfs(&slave.path())).collect();
        if beneath.is_empty() || depth == 0 {
            if !leaves.contains(&self) {
                leaves.push(self);
            }
            return;
        }
        for device in beneath {
            device.collect_leaves(depth - 1, leaves);
        }
    }

    /// Returns the number of the device with this directory in sysfs.
    pub(crate) fn in_sysfs(directory: &Path) -> Option<Self> {
        Self::parse(std::fs::read_to_string(directory.join("dev")).ok()?.trim_end())
    }

    /// Parses `253:4`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl From<(u32, u32)> for DeviceNumber {
    fn from((major, minor): (u32, u32)) -> Self {
        Self {
            major: major.into(),
            minor: minor.into(),
        }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Returns the size of a disk; the error is the rest of a sentence.
pub(crate) fn size_of(path: &Path) -> Result<u64, String> {
    // Before opening: opening a pipe could block for ever.
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("can't be examined: {error}"),
    })?;
    let kind = metadata.file_type();
    if kind.is_file() {
        // Known even if the file can't be opened.
        return Ok(metadata.len());
    }
    if !kind.is_block_device() {
        return Err("is neither a block device nor a file".to_owned());
    }
    let size_bytes = File::open(path).and_then(|device| size_of_file(&device));
    size_bytes.map_err(|error| format!("can't be opened: {error}"))
}

/// Returns the size of an open block device or regular file.
pub(crate) fn size_of_file(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    match metadata.file_type().is_block_device() {
        true => sys::device_size_bytes(file),
        false => Ok(metadata.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_no_device_number() {
        assert_eq!(DeviceNumber::of_block_device(Path::new("/dev/null")), None);
        assert_eq!(DeviceNumber::of_block_device(Path::new("/nowhere")), None);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        if let Some(device) = DeviceNumber::beneath(root) {
            assert!(device.attribute("size").is_some(), "{device}");
        }
    }

    #[test]
    fn a_device_alone_is_its_own_leaf() {
        let number = DeviceNumber::parse("4095:4000").expect("a number");
        assert_eq!(number.leaves(), [number]);
        assert_eq!(number.to_string(), "4095:4000");
        assert_eq!(DeviceNumber::parse("x:1"), None);
    }
}
