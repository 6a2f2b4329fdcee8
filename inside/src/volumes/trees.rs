//! The files of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{NamedTree, Trees, Volume, Volumes};
use crate::btrfs::{Fsid, Superblock};
use crate::device::SharedDevice;
use crate::fs::{FileTree, btrfs, exfat, ext, fat, iso9660, ntfs, xfs};
use crate::probe::containers::describe;
use crate::probe::{Content, FsType};

/// Opens the file systems of the wanted volumes, each with its reader. Of the members of a mirror, and of the devices of
/// a btrfs, the first bears the name.
pub fn trees(found: &Volumes, is_wanted: &dyn Fn(&Volume) -> bool) -> Trees {
    let mut trees = Trees {
        warnings: found.warnings.iter().map(|(_, text)| text.clone()).collect(),
        ..Trees::default()
    };
    let mut firsts = BTreeMap::new();
    for volume in found.volumes.iter().filter(|volume| is_wanted(volume)) {
        let set = Set::of(volume);
        if let Some(first) = set.as_ref().and_then(|set| firsts.get(set)) {
            trees
                .left_out
                .push((volume.name.clone(), format!("belongs to {first}")));
            continue;
        }
        if let Some(set) = &set {
            firsts.insert(set.clone(), volume.name.clone());
        }
        let is_spread = matches!(set, Some(Set::Btrfs(_)));
        let belongs = |it: &&Volume| it.image == volume.image || is_spread && Set::of(it) == set;
        let devices = found.volumes.iter().filter(belongs);
        let devices = devices.map(|it| Arc::clone(&it.device)).collect();
        match open(volume, devices) {
            Ok((fs, tree)) => trees.trees.push(NamedTree {
                name: volume.name.clone(),
                fs: fs.to_string(),
                size_bytes: volume.device.size_bytes(),
                names: volume.names.clone(),
                tree,
            }),
            Err(why) => {
                trees.is_incomplete |= volume.may_hold_files();
                trees.left_out.push((volume.name.clone(), why));
            }
        }
    }
    trees
}

/// Volumes that show the same files: several have one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    /// Members of the array with this UUID.
    Mirror([u8; 16]),
    /// Devices of the btrfs with this identity.
    Btrfs(Fsid),
}

impl Set {
    fn of(volume: &Volume) -> Option<Self> {
        let probed = volume.probed.as_ref().ok()?;
        if probed.content == Content::FileSystem(FsType::Btrfs) {
            let superblock = Superblock::read(&*volume.device).ok()?.ok()?;
            if superblock.device_count() > 1 {
                return Some(Self::Btrfs(superblock.fsid()));
            }
        }
        volume.member.as_ref().map(|member| Self::Mirror(member.array))
    }
}

fn open(volume: &Volume, devices: Vec<SharedDevice>) -> Result<(FsType, Arc<dyn FileTree>), String> {
    let content = volume.probed.as_ref().map_err(String::clone)?.content;
    let Content::FileSystem(fs) = content else {
        let described = describe(content, &volume.device).ok().flatten();
        return Err(described.unwrap_or_else(|| content.to_string()));
    };
    let device = Arc::clone(&volume.device);
    let opened: crate::Result<Arc<dyn FileTree>> = match fs {
        FsType::Ext2 | FsType::Ext3 | FsType::Ext4 => ext::open(device).map(|tree| Arc::new(tree) as _),
        FsType::Xfs => xfs::open(device).map(|tree| Arc::new(tree) as _),
        FsType::Btrfs => btrfs::open(devices).map(|tree| Arc::new(tree) as _),
        FsType::Ntfs => ntfs::open(device).map(|tree| Arc::new(tree) as _),
        FsType::Vfat => fat::open(device).map(|tree| Arc::new(tree) as _),
        FsType::Exfat => exfat::open(device).map(|tree| Arc::new(tree) as _),
        FsType::Iso9660 => iso9660::open(device).map(|tree| Arc::new(tree) as _),
        _ => {
            return Err(format!(
                "{fs} file system, which vbk can't read itself; `vbk mount BACKUP --files DIR` mounts it"
            ));
        }
    };
    opened
        .map(|tree| (fs, tree))
        .map_err(|error| format!("{fs} file system, {error}"))
}
