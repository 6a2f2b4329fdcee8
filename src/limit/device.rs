//! Block devices by their numbers, and what sysfs tells of them.

use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// The number of a block device, written `253:4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    major: u64,
    minor: u64,
}

/// Devices stand on devices; nobody builds more floors than that.
const MAX_DEPTH: usize = 16;

impl DeviceNumber {
    /// That of a block device; `None` for everything else.
    pub fn of_block_device(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        metadata
            .file_type()
            .is_block_device()
            .then(|| Self::from_raw(metadata.rdev()))
    }

    /// That of the device which the bytes behind a path are on: itself, or that of its file system. `None` for a file
    /// system without a device of its own, as btrfs.
    pub fn beneath(path: &Path) -> Option<Self> {
        Self::of_block_device(path).or_else(|| {
            let device = Self::from_raw(std::fs::metadata(path).ok()?.dev());
            (device.major != 0).then_some(device)
        })
    }

    fn from_raw(number: u64) -> Self {
        Self {
            major: major(number),
            minor: minor(number),
        }
    }

    /// A file of the device in sysfs, as `dm/uuid`.
    pub fn sysfs(self, file: &str) -> PathBuf {
        Path::new("/sys/dev/block").join(self.to_string()).join(file)
    }

    /// The content of a file of the device in sysfs, if there is one.
    pub fn attribute(self, file: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.sysfs(file)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// The devices that it stands on in the end, as the disks and partitions under a logical volume; itself, if it stands
    /// on none.
    pub fn leaves(self) -> Vec<Self> {
        let mut leaves = Vec::new();
        self.collect_leaves(MAX_DEPTH, &mut leaves);
        leaves
    }

    fn collect_leaves(self, depth: usize, leaves: &mut Vec<Self>) {
        let slaves = std::fs::read_dir(self.sysfs("slaves")).into_iter().flatten().flatten();
        let numbers = slaves.filter_map(|slave| std::fs::read_to_string(slave.path().join("dev")).ok());
        let beneath: Vec<Self> = numbers.filter_map(|number| Self::parse(number.trim_end())).collect();
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

    /// Reads `253:4`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_has_no_number_of_one() {
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
