//! ISO 9660, with Rock Ridge, or else Joliet.
//!
//! Facts: ECMA-119, SUSP and RRIP 1.12 (IEEE P1281, P1282), Microsoft's Joliet specification, and fs/isofs of the
//! kernel where those are silent. The first session of a disc is read.
//!
//! A node is the offset of a directory record, so that names of one file (hard links) are different nodes. Without Rock
//! Ridge and Joliet, names are in lower case and without version, as Linux mounts such a disc.

mod dates;
mod descriptors;
mod record;
mod rock;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::runs::{RunFile, Runs, Source};
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, is_name, utf16};
use descriptors::Descriptors;
use record::Record;
use rock::Rock;

/// A directory record does not cross the end of a sector.
const SECTOR_BYTES: u64 = 2048;
/// Most extents of a file: 16 TiB.
const MAX_EXTENTS: usize = 4096;

/// Most bytes of a directory: two million files with long names.
const MAX_DIRECTORY_BYTES: u64 = 256 << 20;

/// Form of the names in the tree that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// Rock Ridge; so many bytes come before its fields in each record.
    Rock(u8),
}

/// The files of an ISO 9660 volume.
pub struct Iso9660 {
    pages: Pages,
    block_bytes: u64,
    names: Names,
    root: Node,
    identity: Identity,
    remarks: Vec<String>,
}

/// Opens an ISO 9660 volume.
pub fn open(device: SharedDevice) -> Result<Iso9660> {
    let pages = Pages::new(device);
    let descriptors = Descriptors::read(&pages)?;
    let mut iso = Iso9660 {
        pages,
        block_bytes: descriptors.block_bytes,
        names: Names::Plain,
        root: node_at(descriptors.primary_root),
        identity: descriptors.identity,
        remarks: Vec::new(),
    };
    let skipped = iso.dot(iso.root).and_then(|dot| rock::skipped_bytes(&dot));
    match (skipped, descriptors.joliet_root) {
        (Ok(Some(skipped)), _) => iso.names = Names::Rock(skipped),
        (found, Some(joliet)) => {
            if found.is_err() {
                iso.remarks
                    .push("the primary directory tree is damaged; the Joliet tree is used".to_owned());
            }
            (iso.names, iso.root) = (Names::Joliet, node_at(joliet));
        }
        (found, None) => drop(found?),
    }
    Ok(iso)
}

fn node_at(offset_bytes: u64) -> Node {
    Node {
        space: 0,
        number: offset_bytes,
    }
}

/// The bytes of a directory.
struct Extent {
    start_bytes: u64,
    size_bytes: u64,
}

impl Iso9660 {
    /// Reads the record of a node.
    fn record(&self, node: Node) -> Result<Record> {
        if node.space != 0 {
            return Err(Error::NotFound);
        }
        let record = self.record_at(node.number)?;
        record.ok_or_else(|| Error::damaged(format!("directory record at {}", node.number)))
    }

    /// Reads the record at an offset; `None` if the rest of the sector is empty.
    fn record_at(&self, at: u64) -> Result<Option<Record>> {
        let left = SECTOR_BYTES - at % SECTOR_BYTES;
        let [len] = self.pages.array::<1>(at)?;
        if len == 0 {
            return Ok(None);
        }
        let bad = || Error::damaged(format!("directory record at {at}"));
        if u64::from(len) > left {
            return Err(bad());
        }
        let mut bytes = vec![0; len.into()];
        self.pages.read_at(at, &mut bytes)?;
        Record::parse(bytes).map(Some).ok_or_else(bad)
    }

    fn extent(&self, record: &Record) -> Result<Extent> {
        if record.is_interleaved() {
            return Err(Error::unsupported("interleaved file"));
        }
        // Both factors have at most 33 and 11 bits.
        let start_bytes = (u64::from(record.block()) + u64::from(record.attribute_blocks())) * self.block_bytes;
        Ok(Extent {
            start_bytes,
            size_bytes: record.size_bytes().into(),
        })
    }

    /// Returns the record `.` of a directory, in which Rock Ridge keeps the attributes of the top directory.
    fn dot(&self, directory: Node) -> Result<Record> {
        let record = self.record(directory)?;
        if !record.is_directory() {
            return Err(Error::NotADirectory);
        }
        let extent = self.extent(&record)?;
        self.record(node_at(extent.start_bytes))
    }

    fn rock(&self, record: &Record) -> Result<Rock> {
        match self.names {
            Names::Rock(skipped) => Rock::read(&self.pages, record, skipped, self.block_bytes),
            Names::Plain | Names::Joliet => Ok(Rock::default()),
        }
    }

    /// Calls `each` with the offset of every record of a directory until it breaks.
    fn each_record(&self, node: Node, each: &mut dyn FnMut(u64, Record) -> ControlFlow<()>) -> Result<()> {
        let record = self.record(node)?;
        if !record.is_directory() {
            return Err(Error::NotADirectory);
        }
        let extent = self.extent(&record)?;
        let mut at = extent.start_bytes;
        let end_bytes = extent.start_bytes + extent.size_bytes;
        let readable_bytes = self
            .pages
            .device()
            .size_bytes()
            .min(extent.start_bytes + MAX_DIRECTORY_BYTES);
        let mut failed = Ok(());
        while at < end_bytes.min(readable_bytes) {
            let next_sector = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
            match self.record_at(at) {
                Ok(Some(record)) => {
                    let len = record.len();
                    if each(at, record).is_break() {
                        return Ok(());
                    }
                    at += len;
                }
                Ok(None) => at = next_sector,
                Err(error) => {
                    failed = failed.and(Err(error));
                    at = next_sector;
                }
            }
        }
        if end_bytes > readable_bytes {
            failed = failed.and(Err(Error::damaged(format!(
                "end of the directory at {}",
                extent.start_bytes
            ))));
        }
        failed
    }

    /// Returns the name of a record, if the tree has no other for it.
    fn name(&self, record: &Record) -> Vec<u8> {
        let raw = record.name();
        if self.names == Names::Joliet {
            let units = raw.as_chunks().0.iter().map(|unit| u16::from_be_bytes(*unit));
            let mut name = utf16::to_utf8(units);
            name.truncate(name.strip_suffix(b";1").map_or(name.len(), <[u8]>::len));
            return name;
        }
        // As isofs_name_translate(): without version 1 and the dot of an empty extension.
        let name = raw.strip_suffix(b";1").unwrap_or(raw);
        let name = name.strip_suffix(b".").unwrap_or(name);
        let letters = name.iter().map(|byte| {
            if matches!(byte, b';' | b'/') {
                b'.'
            } else {
                byte.to_ascii_lowercase()
            }
        });
        letters.collect()
    }

    /// Returns the entry of a record; `None` if it is not shown.
    fn entry(&self, at: u64, record: &Record) -> Result<Option<Entry>> {
        if record.is_dot() || record.is_associated() {
            return Ok(None);
        }
        let rock = self.rock(record)?;
        if rock.is_relocated {
            return Ok(None);
        }
        let bad = || Error::damaged(format!("directory record at {at}: name"));
        let name = rock.name.unwrap_or_else(|| self.name(record));
        if !is_name(&name) {
            return Err(bad());
        }
        // A directory that was moved because of its depth: its own first record stands for it.
        if let Some(block) = rock.child_block {
            return Ok(Some(Entry {
                name,
                node: node_at(u64::from(block) * self.block_bytes),
                kind: Some(FileKind::Directory),
            }));
        }
        let kind = if record.is_directory() {
            FileKind::Directory
        } else {
            FileKind::File
        };
        Ok(Some(Entry {
            name,
            node: node_at(at),
            kind: Some(rock.attributes.and_then(|it| it.kind).unwrap_or(kind)),
        }))
    }

    /// Returns the parts of a file: its record may be followed by others with more of it.
    fn content(&self, node: Node, first: Record) -> Result<Runs> {
        let mut runs = Runs::default();
        let (mut at, mut record) = (node.number, first);
        for _ in 0..MAX_EXTENTS {
            let extent = self.extent(&record)?;
            let inside = self.pages.device().size_bytes().saturating_sub(extent.start_bytes);
            let size_bytes = extent.size_bytes.min(inside);
            runs.push(Source::Device(extent.start_bytes), size_bytes)?;
            runs.push(Source::Nowhere, extent.size_bytes - size_bytes)?;
            if !record.is_continued() {
                return Ok(runs);
            }
            at = at.saturating_add(record.len());
            record = match self.record_at(at)? {
                Some(record) => record,
                None => {
                    at = at.next_multiple_of(SECTOR_BYTES);
                    self.record(node_at(at))?
                }
            };
        }
        Err(Error::unsupported(format!("file in more than {MAX_EXTENTS} extents")))
    }

    /// Returns a node's own record and its Rock Ridge fields.
    fn described(&self, node: Node) -> Result<(Record, Rock)> {
        let record = if node == self.root {
            self.dot(node)?
        } else {
            self.record(node)?
        };
        let rock = self.rock(&record)?;
        Ok((record, rock))
    }
}

impl FileTree for Iso9660 {
    fn root(&self) -> Node {
        self.root
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let (record, rock) = self.described(node)?;
        let recorded = dates::short(&record.date());
        let modified = rock.modified.unwrap_or(recorded);
        let is_directory = record.is_directory();
        let mut stat = Stat {
            kind: if is_directory {
                FileKind::Directory
            } else {
                FileKind::File
            },
            mode: if is_directory { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            links: 1,
            size_bytes: 0,
            device: (0, 0),
            modified,
            changed: rock.changed.unwrap_or(modified),
            accessed: rock.accessed.unwrap_or(modified),
        };
        if let Some(attributes) = rock.attributes {
            (stat.mode, stat.links) = (attributes.mode, attributes.links.max(1));
            (stat.uid, stat.gid) = (attributes.uid, attributes.gid);
            stat.kind = attributes.kind.unwrap_or(stat.kind);
        }
        match stat.kind {
            FileKind::File => stat.size_bytes = self.content(node, record)?.size_bytes(),
            FileKind::Link => stat.size_bytes = rock.target().map_or(0, |target| target.len() as u64),
            FileKind::CharDevice | FileKind::BlockDevice => stat.device = rock.device.unwrap_or_default(),
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => {}
        }
        Ok(stat)
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let mut damaged = Ok(());
        // Only the first record of a file is an entry.
        let mut continues = false;
        let listed = self.each_record(directory, &mut |at, record| {
            if std::mem::replace(&mut continues, record.is_continued()) {
                return ControlFlow::Continue(());
            }
            match self.entry(at, &record) {
                Ok(Some(entry)) => each(entry),
                Ok(None) => ControlFlow::Continue(()),
                Err(error) => {
                    damaged = Err(error);
                    ControlFlow::Continue(())
                }
            }
        });
        listed.and(damaged)
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        if matches!(self.names, Names::Joliet) {
            return utf16::find(name, |each| self.list(directory, each));
        }
        let mut found = None;
        let listed = self.list(directory, &mut |entry| {
            if entry.name != name {
                return ControlFlow::Continue(());
            }
            found = Some(entry.node);
            ControlFlow::Break(())
        });
        match found {
            Some(node) => Ok(node),
            None => listed.and(Err(Error::NotFound)),
        }
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let (_, rock) = self.described(node)?;
        let is_link = rock.attributes.and_then(|it| it.kind) == Some(FileKind::Link);
        let target = rock.target().filter(|_| is_link);
        target.ok_or_else(|| Error::damaged(format!("directory record at {}: target of a link", node.number)))
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        let (record, rock) = self.described(node)?;
        let kind = rock.attributes.and_then(|it| it.kind);
        if record.is_directory() || kind.is_some_and(|kind| kind != FileKind::File) {
            return Err(Error::NotAFile);
        }
        if let Some(what) = rock.foreign {
            return Err(Error::unsupported(what));
        }
        let runs = self.content(node, record)?;
        let device = Arc::clone(self.pages.device());
        Ok(Arc::new(RunFile { device, runs }))
    }
}
