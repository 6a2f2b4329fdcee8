//! exFAT.
//!
//! Facts: Microsoft's "exFAT file system specification" 1.00. Sections are named where a fact is not obvious.
//!
//! exFAT has no owners, modes or links. Times without a zone are returned as if their clock had shown UTC. A file has no
//! number: a node is the offset of its directory entry.

mod boot;
mod entries;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::device::{SharedDevice, le32};
use crate::error::{Error, Result};
use crate::fs::chain::{Clusters, ENTRY_BYTES, chain, each_entry};
use crate::fs::pages::Pages;
use crate::fs::runs::{RunFile, Runs, Source};
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, utf16};
use boot::Boot;
use entries::{LABEL, Set};

/// The top directory has no entry; its node is the offset of the boot sector, where no entry can be.
const ROOT: Node = Node { space: 0, number: 0 };

/// Space of the nodes whose directory is one piece (`NoFatChain`): an entry set that starts in a cluster continues in
/// the cluster behind it, not in the next one of the chain.
const IN_ONE_PIECE: u64 = 1;

/// Most bytes of a directory (7.4).
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;

/// The files of an exFAT volume.
pub struct Exfat {
    pages: Pages,
    boot: Boot,
    label: Option<String>,
    remarks: Vec<String>,
}

/// Opens an exFAT volume.
pub fn open(device: SharedDevice) -> Result<Exfat> {
    let pages = Pages::new(device);
    let (boot, remark) = Boot::read(&pages)?;
    let mut remarks: Vec<String> = remark.into_iter().collect();
    if boot.dirty {
        remarks.push("the volume was not unmounted cleanly".to_owned());
    }
    let mut exfat = Exfat {
        pages,
        boot,
        label: None,
        remarks,
    };
    exfat.label = exfat.find_label();
    Ok(exfat)
}

impl Exfat {
    /// Returns the parts of a directory with the damage at the end of its chain, and the space of the nodes in it.
    fn directory(&self, node: Node) -> Result<((Runs, Result<()>), u64)> {
        if node == ROOT {
            return Ok((chain(self, self.boot.root_cluster, MAX_DIRECTORY_BYTES), 0));
        }
        let set = self.set(node)?;
        if !set.is_directory() {
            return Err(Error::NotADirectory);
        }
        let (mut runs, walked) = self.parts(&set, set.size_bytes().min(MAX_DIRECTORY_BYTES));
        runs.truncate(set.size_bytes());
        let space = if set.in_one_piece() { IN_ONE_PIECE } else { 0 };
        Ok(((runs, walked), space))
    }

    /// Returns the parts of a file or directory, as far as they are known.
    fn parts(&self, set: &Set, limit_bytes: u64) -> (Runs, Result<()>) {
        if limit_bytes == 0 {
            return (Runs::default(), Ok(()));
        }
        if !set.in_one_piece() {
            return chain(self, set.first_cluster(), limit_bytes);
        }
        let mut runs = Runs::default();
        let bad = || Error::damaged(format!("file that starts at cluster {}", set.first_cluster()));
        let Some(at) = self.boot.cluster_at(set.first_cluster()) else {
            return (runs, Err(bad()));
        };
        let len = limit_bytes.min(self.boot.end_bytes().saturating_sub(at));
        let pushed = runs.push(Source::Device(at), len);
        (runs, pushed.and(if len < limit_bytes { Err(bad()) } else { Ok(()) }))
    }

    /// Returns the offset of the entry after the one at `at`.
    fn after(&self, at: u64, space: u64) -> Result<u64> {
        let next = at.saturating_add(ENTRY_BYTES);
        let cluster = self.boot.cluster_of(at).ok_or(Error::NotFound)?;
        if self.boot.cluster_of(next) == Some(cluster) || space == IN_ONE_PIECE {
            return Ok(next);
        }
        let following = self.next(cluster)?.and_then(|cluster| self.boot.cluster_at(cluster));
        following.ok_or_else(|| Error::damaged(format!("directory entry at {at}")))
    }

    /// Reads the entry set of a node.
    fn set(&self, node: Node) -> Result<Set> {
        if node.space > IN_ONE_PIECE
            || !node.number.is_multiple_of(ENTRY_BYTES)
            || self.boot.cluster_of(node.number).is_none()
        {
            return Err(Error::NotFound);
        }
        let mut at = node.number;
        let mut set = Set::start(self.pages.array(at)?).ok_or(Error::NotFound)?;
        while set.lacks() > 0 {
            at = self.after(at, node.space)?;
            set.add(self.pages.array(at)?);
        }
        set.check(node.number)?;
        Ok(set)
    }

    fn find_label(&self) -> Option<String> {
        let mut label = None;
        let (root, _) = self.directory(ROOT).ok()?;
        let _ = each_entry(&self.pages, root, &mut |_, entry| {
            if entry[0] != LABEL {
                return ControlFlow::Continue(());
            }
            let units = utf16::units(&entry[2..24]).take(entry[1].into());
            label = String::from_utf8(utf16::to_utf8(units))
                .ok()
                .filter(|label| !label.is_empty());
            ControlFlow::Break(())
        });
        label
    }
}

impl Clusters for Exfat {
    fn cluster_bytes(&self) -> u64 {
        self.boot.cluster_bytes
    }

    fn cluster_at(&self, cluster: u32) -> Option<u64> {
        self.boot.cluster_at(cluster)
    }

    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = self.boot.table_at + u64::from(cluster) * 4;
        let next = le32(&self.pages.array::<4>(at)?, 0);
        Ok((next != u32::MAX).then_some(next))
    }
}

impl FileTree for Exfat {
    fn root(&self) -> Node {
        ROOT
    }

    fn identity(&self) -> Identity {
        let serial = self.boot.serial;
        Identity {
            uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
            label: self.label.clone(),
        }
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        if node == ROOT {
            // The top directory has no times.
            return Ok(Stat::of_directory(Timestamp::UNIX_EPOCH));
        }
        Ok(self.set(node)?.stat())
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let (parts, space) = self.directory(directory)?;
        let mut open: Option<(u64, Set)> = None;
        let mut damaged = Ok(());
        let listed = each_entry(&self.pages, parts, &mut |at, entry| {
            if let Some(set) = Set::start(*entry) {
                // A set that another one interrupts is damaged.
                if let Some((at, _)) = open.replace((at, set)) {
                    damaged = Err(entries::bad(at));
                }
            } else if let Some((_, set)) = &mut open {
                set.add(*entry);
            }
            let Some((at, set)) = open.take_if(|(_, set)| set.lacks() == 0) else {
                return ControlFlow::Continue(());
            };
            let name = set.check(at).and_then(|()| set.name(at));
            match name {
                Ok(name) => each(Entry {
                    name,
                    node: Node { space, number: at },
                    kind: Some(if set.is_directory() {
                        FileKind::Directory
                    } else {
                        FileKind::File
                    }),
                }),
                Err(error) => {
                    damaged = Err(error);
                    ControlFlow::Continue(())
                }
            }
        });
        listed.and(damaged)
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        utf16::find(name, |each| self.list(directory, each))
    }

    fn read_link(&self, _: Node) -> Result<Vec<u8>> {
        Err(Error::unsupported("symbolic link"))
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        if node == ROOT {
            return Err(Error::NotAFile);
        }
        let set = self.set(node)?;
        if set.is_directory() {
            return Err(Error::NotAFile);
        }
        // What was never written is zero, whatever its clusters hold.
        let valid_bytes = set.valid_bytes();
        let (mut runs, walked) = self.parts(&set, valid_bytes);
        if let Err(error @ Error::Unsupported(_)) = walked {
            return Err(error);
        }
        runs.resize(valid_bytes, Source::Nowhere)?;
        runs.resize(set.size_bytes(), Source::Zeros)?;
        let device = Arc::clone(self.pages.device());
        Ok(Arc::new(RunFile { device, runs }))
    }
}
