//! The files of a guest as the guest saw them: its file systems at the mount points of its own `/etc/fstab`.
//!
//! The root is the file system whose `/etc/fstab` names it as `/`; that may be a subvolume of a btrfs. All of fstab is
//! the guest's word: it decides which of the guest's own volumes is shown at which path, and nothing else.

mod composed;
mod fstab;
mod rest;

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{FileKind, FileTree, Node};
use crate::path::{Last, resolve};
use crate::volumes::{NamedTree, Trees};
use crate::walk::{Step, Walk};

use composed::Composed;
use fstab::{FstabEntry, Subvolume};
use rest::Rest;

#[cfg(test)]
mod tests;

/// Longest fstab that is read.
const MAX_FSTAB_BYTES: u64 = 1 << 20;
/// Subvolumes of a btrfs that installers use as the root: Ubuntu and Arch, Fedora, Debian, openSUSE before its first
/// rollback.
const ROOT_SUBVOLUMES: [&str; 5] = ["@", "root", "@rootfs", "@root", "@/.snapshots/1/snapshot"];
/// Entries of a btrfs that are looked at for a subvolume with a given number, and their depth.
const MAX_LOOKED_AT: usize = 4096;
const MAX_SUBVOLUME_DEPTH: usize = 4;

/// The composed files of a guest.
pub struct Guest {
    /// All files, from the guest's root.
    pub tree: Arc<dyn FileTree>,
    /// The mounted file systems in the order in which they were mounted; the root first.
    pub mounts: Vec<Mounted>,
    /// Numbers in [`Trees::trees`] of the file systems that the guest's fstab does not mount.
    pub unmounted: Vec<usize>,
    /// Numbers of the file systems of which the guest mounts only subvolumes, with the files besides those.
    pub rest: Vec<(usize, Arc<dyn FileTree>)>,
    /// Remarks for people on entries of fstab that could not be followed.
    pub remarks: Vec<String>,
}

/// A file system at its mount point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Number in [`Trees::trees`].
    pub volume: usize,
    /// Path of the mount point without links.
    pub point: Vec<u8>,
}

/// Reason why the files of a guest have no root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoot {
    /// No volume can be read.
    #[error("no file system that can be read{}", LeftOut(left_out))]
    NoVolumes {
        /// The volumes that can't be read.
        left_out: Vec<(String, String)>,
    },
    /// None of several file systems has an `/etc/fstab`.
    #[error("no volume is the root of a Linux system (no /etc/fstab); name one of the volumes {}", volumes.join(", "))]
    NoFstab {
        /// Names of the volumes, with their file systems.
        volumes: Vec<String>,
    },
    /// Several file systems could be the root.
    #[error("{} may be the root; name one of the volumes {}", candidates.join(" or "), volumes.join(", "))]
    Several {
        /// Names of the volumes that may be the root.
        candidates: Vec<String>,
        /// Names of all volumes, with their file systems.
        volumes: Vec<String>,
    },
}

struct LeftOut<'a>(&'a [(String, String)]);

impl fmt::Display for LeftOut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, why)) in self.0.iter().enumerate() {
            write!(f, "{} {name}: {why}", if number == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// A directory that may be the root of the guest.
struct Candidate {
    volume: usize,
    start: Node,
    entries: Vec<FstabEntry>,
    remark: Option<String>,
    claim: Claim,
}

/// Strength of the evidence that a directory is the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// It has an fstab.
    HasFstab,
    /// Its fstab names its volume as the root, but another subvolume of it, e.g. because it is a snapshot.
    NamesVolume,
    /// Its fstab names exactly it.
    NamesItself,
}

/// Composes the files of a guest from those of its volumes.
pub fn compose(found: &Trees) -> std::result::Result<Guest, NoRoot> {
    let trees = &found.trees;
    let root = find_root(found)?;
    let mut remarks: Vec<String> = root.remark.into_iter().collect();
    let mut composed = Composed::new(Arc::clone(&trees[root.volume].tree), root.start);
    let mut mounts = vec![Mounted {
        volume: root.volume,
        point: b"/".to_vec(),
    }];
    let mut starts = vec![(root.volume, root.start)];
    let mut entries: Vec<_> = root.entries.iter().filter(|entry| entry.is_of_a_disk()).collect();
    // Parents before their children, whatever the order in fstab: so does systemd. Of one mount point the last counts.
    entries.sort_by_key(|entry| {
        entry
            .point
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .count()
    });
    for entry in entries {
        if is_root(&entry.point) {
            continue;
        }
        match mount(&mut composed, trees, entry) {
            Ok(Some((mounted, start))) => {
                starts.push((mounted.volume, start));
                mounts.push(mounted);
            }
            Ok(None) => {}
            Err(why) => remarks.push(format!("{}: {why}", String::from_utf8_lossy(&entry.point))),
        }
    }
    let is_mounted = |volume: &usize| mounts.iter().any(|mounted| mounted.volume == *volume);
    Ok(Guest {
        unmounted: (0..trees.len()).filter(|volume| !is_mounted(volume)).collect(),
        rest: rest(trees, &starts),
        tree: Arc::new(composed),
        mounts,
        remarks,
    })
}

/// Returns what is in volumes of which only subvolumes are mounted, besides those.
fn rest(trees: &[NamedTree], starts: &[(usize, Node)]) -> Vec<(usize, Arc<dyn FileTree>)> {
    let mut rest: Vec<(usize, Arc<dyn FileTree>)> = Vec::new();
    for (volume, named) in trees.iter().enumerate() {
        let of_volume = starts.iter().filter(|(number, _)| *number == volume);
        let without: Vec<Node> = of_volume.map(|(_, start)| *start).collect();
        if !without.is_empty() && !without.contains(&named.tree.root()) {
            let tree = Arc::clone(&named.tree);
            rest.push((volume, Arc::new(Rest { tree, without })));
        }
    }
    rest
}

/// Mounts what an entry names; `None` if it is not in the backup and the guest can do without it.
fn mount(
    composed: &mut Composed,
    trees: &[NamedTree],
    entry: &FstabEntry,
) -> std::result::Result<Option<(Mounted, Node)>, String> {
    let Some(volume) = trees.iter().position(|named| is_named(entry, named)) else {
        return match entry.is_on_demand() {
            true => Ok(None),
            false => Err(format!("{} is none of the volumes that can be read", entry.spec)),
        };
    };
    let name = &trees[volume].name;
    let tree = &trees[volume].tree;
    let start = match entry.subvolume() {
        None => tree.default_root(),
        Some(subvolume) => find_subvolume(&**tree, &subvolume).map_err(|error| match subvolume {
            Subvolume::Path(path) => format!("subvolume {} of {name}: {error}", String::from_utf8_lossy(&path)),
            Subvolume::Number(number) => format!("subvolume {number} of {name}: {error}"),
        })?,
    };
    let at = resolve(composed, composed.root(), &entry.point, Last::Follow);
    let at = at.map_err(|error| format!("mount point of {name}: {error}"))?;
    if at.kind != FileKind::Directory {
        return Err(format!("mount point of {name}: {}", Error::NotADirectory));
    }
    composed
        .mount(at.node, Arc::clone(tree), start)
        .map_err(|error| format!("mount point of {name}: {error}"))?;
    Ok(Some((Mounted { volume, point: at.path }, start)))
}

fn is_root(point: &[u8]) -> bool {
    point.iter().all(|byte| *byte == b'/')
}

fn is_named(entry: &FstabEntry, named: &NamedTree) -> bool {
    let identity = named.tree.identity();
    entry.names(identity.uuid.as_deref(), identity.label.as_deref(), &named.names)
}

fn find_root(found: &Trees) -> std::result::Result<Candidate, NoRoot> {
    let trees = &found.trees;
    let volumes = || {
        trees
            .iter()
            .map(|named| format!("{} ({})", named.name, named.fs))
            .collect()
    };
    let mut candidates: Vec<_> = trees
        .iter()
        .enumerate()
        .flat_map(|(volume, named)| candidates(volume, named))
        .collect();
    let best = candidates.iter().map(|candidate| candidate.claim).max();
    candidates.retain(|candidate| Some(candidate.claim) == best);
    match (candidates.len(), &trees[..]) {
        (1, _) => Ok(candidates.remove(0)),
        (0, []) => Err(NoRoot::NoVolumes {
            left_out: found.left_out.clone(),
        }),
        (0, [only]) => Ok(Candidate {
            volume: 0,
            start: only.tree.root(),
            entries: Vec::new(),
            remark: None,
            claim: Claim::HasFstab,
        }),
        (0, _) => Err(NoRoot::NoFstab { volumes: volumes() }),
        _ => {
            let mut names: Vec<_> = candidates.iter().map(|it| trees[it.volume].name.clone()).collect();
            names.dedup();
            Err(NoRoot::Several {
                candidates: names,
                volumes: volumes(),
            })
        }
    }
}

/// Returns the directories of a volume that have an fstab: its root, and subvolumes that are roots by default or usually.
fn candidates(volume: usize, named: &NamedTree) -> Vec<Candidate> {
    let tree = &*named.tree;
    let (root, default) = (tree.root(), tree.default_root());
    let mut starts = vec![root];
    for path in ROOT_SUBVOLUMES {
        match resolve(tree, root, path.as_bytes(), Last::Keep) {
            Ok(found) if found.kind == FileKind::Directory && found.node.space != root.space => starts.push(found.node),
            _ => {}
        }
    }
    if !starts.contains(&default) {
        starts.push(default);
    }
    let mut candidates = Vec::new();
    for start in starts {
        let Ok(Some(text)) = read_small(&named.tree, start, b"etc/fstab", MAX_FSTAB_BYTES) else {
            continue;
        };
        let (entries, remark) = match text {
            Small::Bytes(bytes) => (fstab::parse(&bytes), None),
            Small::Unreadable(why) => (Vec::new(), Some(format!("/etc/fstab: {why}"))),
        };
        let root_entry = entries
            .iter()
            .rfind(|entry| is_root(&entry.point) && is_named(entry, named));
        let claim = match root_entry.map(FstabEntry::subvolume) {
            None => Claim::HasFstab,
            Some(None) if start == default => Claim::NamesItself,
            Some(Some(subvolume)) if find_subvolume(tree, &subvolume).is_ok_and(|node| node == start) => {
                Claim::NamesItself
            }
            Some(_) => Claim::NamesVolume,
        };
        candidates.push(Candidate {
            volume,
            start,
            entries,
            remark,
            claim,
        });
    }
    candidates
}

/// Finds a subvolume of a btrfs by its path from the top, or by its number.
fn find_subvolume(tree: &dyn FileTree, subvolume: &Subvolume) -> Result<Node> {
    let root = tree.root();
    match subvolume {
        Subvolume::Path(path) => {
            let found = resolve(tree, root, path, Last::Keep)?;
            match found.kind {
                FileKind::Directory => Ok(found.node),
                _ => Err(Error::NotADirectory),
            }
        }
        // BTRFS_FS_TREE_OBJECTID; 0 means the same.
        Subvolume::Number(0 | 5) => Ok(root),
        Subvolume::Number(number) => {
            let mut walk = Walk::new(tree, root);
            let mut looked_at = 0;
            while let Some(step) = walk.step() {
                looked_at += 1;
                match step {
                    Step::Found(node, FileKind::Directory) if node.space == *number => return Ok(node),
                    Step::Found(..) if walk.depth() + 1 >= MAX_SUBVOLUME_DEPTH => walk.skip(),
                    Step::Found(..) | Step::Failed(_) => {}
                }
                if looked_at == MAX_LOOKED_AT {
                    break;
                }
            }
            Err(Error::NotFound)
        }
    }
}

/// A small file that exists.
pub enum Small {
    /// Its content.
    Bytes(Vec<u8>),
    /// Reason why it can't be read.
    Unreadable(String),
}

/// Reads a file if it exists and has at most `limit_bytes`.
pub fn read_small(tree: &Arc<dyn FileTree>, root: Node, path: &[u8], limit_bytes: u64) -> Result<Option<Small>> {
    let found = match resolve(&**tree, root, path, Last::Follow) {
        Ok(found) if found.kind == FileKind::File => found,
        Ok(_) | Err(Error::NotFound | Error::NotADirectory) => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = || -> Result<Small> {
        let content = Arc::clone(tree).open(found.node)?;
        let size_bytes = content.size_bytes();
        if size_bytes > limit_bytes {
            return Ok(Small::Unreadable(format!("larger than {} KiB", limit_bytes >> 10)));
        }
        // Not longer than the limit, which fits.
        let mut bytes = vec![0; size_bytes as usize];
        content.read_at(0, &mut bytes)?;
        Ok(Small::Bytes(bytes))
    };
    Ok(Some(
        read().unwrap_or_else(|error| Small::Unreadable(error.to_string())),
    ))
}
