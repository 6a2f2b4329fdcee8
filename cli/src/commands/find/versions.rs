//! The versions of files in the backups of a guest.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use vbk_inside::compare::content_hash;
use vbk_inside::fs::{FileKind, FileTree, Node, Stat};

/// Versions of all paths together that are kept in memory, about 300 bytes each.
const MAX_VERSIONS: usize = 500_000;

/// A file as it was in one backup.
pub struct Seen {
    pub stat: Stat,
    pub target: Option<Vec<u8>>,
    hash: Option<[u8; 32]>,
}

/// Attributes that tell versions apart.
#[derive(PartialEq, Eq)]
struct Key {
    kind: FileKind,
    size_bytes: u64,
    target: Option<Vec<u8>>,
    device: (u32, u32),
    hash: Option<[u8; 32]>,
    /// None if the content alone counts.
    attributes: Option<(u16, u32, u32, Timestamp, Timestamp)>,
}

impl Seen {
    /// Reads the attributes of a file, and its content if that is to tell versions apart.
    pub fn of(tree: &Arc<dyn FileTree>, node: Node, by_content: bool) -> vbk_inside::Result<Self> {
        let stat = tree.stat(node)?;
        let target = match stat.kind {
            FileKind::Link => Some(tree.read_link(node)?),
            _ => None,
        };
        let hash = match stat.kind {
            FileKind::File if by_content => Some(content_hash(&*Arc::clone(tree).open(node)?)?),
            _ => None,
        };
        Ok(Self { stat, target, hash })
    }

    fn key(&self) -> Key {
        let stat = &self.stat;
        let is_directory = stat.kind == FileKind::Directory;
        Key {
            kind: stat.kind,
            // Of a directory, this is the size of its list.
            size_bytes: if is_directory { 0 } else { stat.size_bytes },
            target: self.target.clone(),
            device: stat.device,
            hash: self.hash,
            attributes: match self.hash {
                Some(_) => None,
                None => Some((stat.mode, stat.uid, stat.gid, stat.modified, stat.changed)),
            },
        }
    }
}

/// A version, and the backups that have it, by their numbers in the order of the search.
pub struct Version {
    pub seen: Seen,
    pub backups: Vec<usize>,
}

/// All versions of all paths that were found.
#[derive(Default)]
pub struct Versions {
    paths: BTreeMap<Vec<u8>, Vec<Version>>,
    count: usize,
}

impl Versions {
    /// Adds what one backup has at a path; an error if that is too much.
    pub fn add(&mut self, path: Vec<u8>, seen: Seen, backup: usize) -> Result<(), String> {
        let versions = self.paths.entry(path).or_default();
        let key = seen.key();
        if let Some(known) = versions.iter_mut().find(|known| known.seen.key() == key) {
            if known.backups.last() != Some(&backup) {
                known.backups.push(backup);
            }
            return Ok(());
        }
        if self.count == MAX_VERSIONS {
            return Err(format!(
                "more than {MAX_VERSIONS} versions match; search for a narrower pattern"
            ));
        }
        self.count += 1;
        versions.push(Version {
            seen,
            backups: vec![backup],
        });
        Ok(())
    }

    /// Notes that one backup has the same disks as another.
    pub fn repeat(&mut self, other: usize, backup: usize) {
        for version in self.paths.values_mut().flatten() {
            if version.backups.contains(&other) {
                version.backups.push(backup);
            }
        }
    }

    /// Returns the number of versions.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns all paths in order, with their versions.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[Version])> {
        self.paths.iter().map(|(path, versions)| (&path[..], &versions[..]))
    }
}

/// Describes runs of consecutive backups, the newest first: `a to c, e`.
pub fn runs(numbers: &[usize], name: impl Fn(usize) -> String) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let texts = runs.into_iter().map(|(newest, oldest)| match newest == oldest {
        true => name(newest),
        false => format!("{} to {}", name(oldest), name(newest)),
    });
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_backups_are_one_run() {
        let text = |numbers: &[usize]| runs(numbers, |number| number.to_string());
        assert_eq!(text(&[0]), "0");
        assert_eq!(text(&[0, 1, 2, 5, 7, 8]), "2 to 0, 5, 8 to 7");
    }
}
