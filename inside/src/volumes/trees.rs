//! The files of volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{NamedTree, Trees, Volume, Volumes};
use crate::fs::FileTree;
use crate::probe::containers::describe;
use crate::probe::{Content, FsType};

/// Opens the file systems of the wanted volumes, each with its reader. Of the members of a mirror, and of the devices of a btrfs,
/// the first bears the name.
pub fn trees(found: &Volumes, is_wanted: &dyn Fn(&Volume) -> bool) -> Trees {
    let mut trees = Trees {
        warnings: found.warnings.iter().map(|(_, text)| text.clone()).collect(),
        ..Trees::default()
    };
    let mut arrays = BTreeMap::new();
    for volume in found.volumes.iter().filter(|volume| is_wanted(volume)) {
        let twin = volume.member.as_ref().map(|member| member.array);
        if let Some(first) = twin.and_then(|array| arrays.insert(array, volume.name.clone())) {
            trees.left_out.push((volume.name.clone(), format!("mirror of {first}")));
            continue;
        }
        match open(volume) {
            Ok((fs, tree)) => trees.trees.push(NamedTree {
                name: volume.name.clone(),
                fs: fs.to_string(),
                names: volume.names.clone(),
                tree,
            }),
            Err(why) => trees.left_out.push((volume.name.clone(), why)),
        }
    }
    trees
}

fn open(volume: &Volume) -> Result<(FsType, Arc<dyn FileTree>), String> {
    let content = volume.probed.as_ref().map_err(String::clone)?.content;
    let Content::FileSystem(fs) = content else {
        let described = describe(content, &*volume.device).ok().flatten();
        return Err(described.unwrap_or_else(|| content.to_string()));
    };
    Err(format!(
        "{fs} file system, which can be mounted only: `vbk mount BACKUP --files DIR`"
    ))
}
