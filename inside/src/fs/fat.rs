//! FAT12, FAT16 and FAT32, with long names.
//!
//! Facts: Microsoft's "FAT: General Overview of On-Disk Format" 1.03 (fatgen103), and linux/msdos_fs.h where that is
//! silent.
//!
//! FAT has no owners, modes, links or holes. Its times are those of a local clock without a zone; they are returned as
//! if that clock had shown UTC. A file has no number: a node is the offset of its directory entry.

mod boot;
mod directory;
mod names;

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
use boot::{Boot, Width};
use directory::Raw;

pub(in crate::fs) use directory::timestamp;

/// The top directory has no entry; its node is the offset of the boot sector, where no entry can be.
const ROOT: Node = Node { space: 0, number: 0 };

/// Most bytes of a directory (`FAT_MAX_DIR_SIZE`): 65,536 entries.
const MAX_DIRECTORY_BYTES: u64 = 2 << 20;

/// The files of a FAT volume.
pub struct Fat {
    pages: Pages,
    boot: Boot,
    /// Offset of the table that is read first, and of the one that is read where that one can't be.
    tables: [u64; 2],
    label: Option<String>,
    remarks: Vec<String>,
}

/// Opens a FAT volume.
pub fn open(device: SharedDevice) -> Result<Fat> {
    let pages = Pages::new(device);
    let (boot, remark) = Boot::read(&pages)?;
    let mut remarks: Vec<String> = remark.into_iter().collect();
    if boot.dirty {
        remarks.push("the volume was not unmounted cleanly".to_owned());
    }
    let mut fat = Fat {
        tables: boot.tables(),
        pages,
        boot,
        label: None,
        remarks,
    };
    fat.choose_table();
    fat.label = fat.find_label().or_else(|| fat.boot.label.clone());
    Ok(fat)
}

impl Fat {
    /// Prefers the second table if the first one does not start with the media byte, as each table must.
    fn choose_table(&mut self) {
        let starts_well = |at| {
            self.pages
                .array::<2>(at)
                .is_ok_and(|start| start == [self.boot.media, 0xff])
        };
        let [first, second] = self.tables;
        if !starts_well(first) && second != first && starts_well(second) {
            self.tables = [second, first];
            self.remarks
                .push("the first file allocation table is damaged; the second one is used".to_owned());
        }
    }

    /// Returns the parts of a directory.
    fn directory(&self, node: Node) -> Result<(Runs, Result<()>)> {
        let first = match (node == ROOT, self.boot.root_cluster) {
            (true, None) => {
                let mut runs = Runs::default();
                runs.push(Source::Device(self.boot.root_at), self.boot.root_bytes)?;
                return Ok((runs, Ok(())));
            }
            (true, Some(cluster)) => cluster,
            (false, _) => {
                let raw = self.raw(node)?;
                if !raw.is_directory() {
                    return Err(Error::NotADirectory);
                }
                raw.first_cluster(self.boot.width)
            }
        };
        Ok(chain(self, first, MAX_DIRECTORY_BYTES))
    }

    fn raw(&self, node: Node) -> Result<Raw> {
        if node.space != 0 || !node.number.is_multiple_of(ENTRY_BYTES) {
            return Err(Error::NotFound);
        }
        let raw = Raw(self.pages.array(node.number)?);
        if raw.is_end() || raw.is_deleted() || raw.is_label() {
            return Err(Error::NotFound);
        }
        Ok(raw)
    }

    fn find_label(&self) -> Option<String> {
        let mut label = None;
        let root = self.directory(ROOT).ok()?;
        let _ = each_entry(&self.pages, root, &mut |_, raw| {
            let raw = Raw(*raw);
            if raw.is_deleted() || raw.is_long() || !raw.is_label() {
                return ControlFlow::Continue(());
            }
            label = names::label(&raw.0[..11]);
            ControlFlow::Break(())
        });
        label
    }
}

impl Clusters for Fat {
    fn cluster_bytes(&self) -> u64 {
        self.boot.cluster_bytes
    }

    fn cluster_at(&self, cluster: u32) -> Option<u64> {
        self.boot.cluster_at(cluster)
    }

    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = match self.boot.width {
            Width::Fat12 => u64::from(cluster) * 3 / 2,
            Width::Fat16 => u64::from(cluster) * 2,
            Width::Fat32 => u64::from(cluster) * 4,
        };
        let mut bytes = [0; 4];
        let len = if matches!(self.boot.width, Width::Fat32) { 4 } else { 2 };
        let [first, second] = self.tables;
        self.pages
            .read_at(first + at, &mut bytes[..len])
            .or_else(|_| self.pages.read_at(second + at, &mut bytes[..len]))?;
        let value = le32(&bytes, 0);
        // The last value of each width that is a cluster; one more is the mark of a bad cluster.
        let (next, last) = match self.boot.width {
            Width::Fat12 if cluster % 2 == 1 => (value >> 4, 0xff6),
            Width::Fat12 => (value & 0xfff, 0xff6),
            Width::Fat16 => (value, 0xfff6),
            Width::Fat32 => (value & 0x0fff_ffff, 0x0fff_fff6),
        };
        if next > last + 1 {
            return Ok(None);
        }
        Ok(Some(next))
    }
}

impl FileTree for Fat {
    fn root(&self) -> Node {
        ROOT
    }

    fn identity(&self) -> Identity {
        let serial = self.boot.serial;
        Identity {
            uuid: (serial != 0).then(|| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
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
        Ok(self.raw(node)?.stat())
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let mut long = names::LongName::default();
        let mut damaged = Ok(());
        each_entry(&self.pages, self.directory(directory)?, &mut |at, raw| {
            let raw = Raw(*raw);
            if raw.is_deleted() {
                long.clear();
                return ControlFlow::Continue(());
            }
            if raw.is_long() {
                long.add(&raw.0);
                return ControlFlow::Continue(());
            }
            let name = long.take(&raw.0[..11]);
            if raw.is_label() || raw.is_dot() {
                return ControlFlow::Continue(());
            }
            let name = name.unwrap_or_else(|| names::short(&raw.0));
            if !crate::fs::is_name(&name) {
                damaged = Err(Error::damaged(format!("directory entry at {at}: name")));
                return ControlFlow::Continue(());
            }
            let is_directory = raw.is_directory();
            each(Entry {
                name,
                node: Node { space: 0, number: at },
                kind: Some(if is_directory {
                    FileKind::Directory
                } else {
                    FileKind::File
                }),
            })
        })
        .and(damaged)
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
        let raw = self.raw(node)?;
        if raw.is_directory() {
            return Err(Error::NotAFile);
        }
        let size_bytes = u64::from(raw.size_bytes());
        let mut runs = Runs::default();
        if size_bytes > 0 {
            let (parts, walked) = chain(&*self, raw.first_cluster(self.boot.width), size_bytes);
            if let Err(error @ Error::Unsupported(_)) = walked {
                return Err(error);
            }
            runs = parts;
        }
        // After a damaged link of the chain, the content is lost; before it, it is not.
        runs.resize(size_bytes, Source::Nowhere)?;
        let device = Arc::clone(self.pages.device());
        Ok(Arc::new(RunFile { device, runs }))
    }
}
