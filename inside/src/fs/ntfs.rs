//! NTFS, versions 1.2 to 3.1, with compressed and sparse files, hard links, symbolic links and junctions.
//!
//! Facts: the documentation of the Linux-NTFS project, and the structures that ntfs-3g (`layout.h`) and the kernel
//! (fs/ntfs3/ntfs.h) name. The log is not replayed, which [`FileTree::remarks`] says where it matters: its records are
//! operations of several undocumented versions, not blocks, and Windows writes metadata back within seconds.
//!
//! Names are the Win32 ones; their DOS doubles and the system's files (`$MFT` and its like) are hidden. Owners, security
//! descriptors and alternate streams are not shown. Encrypted files, and those that a filter of Windows stores in its
//! own way (WOF, deduplication, clouds), are listed but can't be opened.
//!
//! A node is a file reference: a record number and its sequence number.

mod attribute;
mod compressed;
mod index;
mod log;
mod record;
mod reparse;
mod stream;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::device::{SharedDevice, le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::runs::RunFile;
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, utf16};
use attribute::Attribute;
use compressed::CompressedFile;
use record::Record;
use reparse::Special;
use stream::{Stream, Streams};

/// Interprets bytes as a compressed unit and as what makes a file special.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_stream(bytes: &[u8]) {
    if let Ok(plain) = compressed::decompress(bytes, 1 << 16) {
        assert_eq!(plain.len(), 1 << 16);
    }
    let _ = (reparse::parse(bytes), reparse::parse_interix(bytes));
}

// Numbers of system files (`FILE_*` of layout.h).
const MFT: u64 = 0;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
/// Records below this one are the system's.
const FIRST_USER_RECORD: u64 = 16;

// Types of attributes (`AT_*`).
const STANDARD_INFORMATION: u32 = 0x10;
const ATTRIBUTE_LIST: u32 = 0x20;
const FILE_NAME: u32 = 0x30;
const VOLUME_NAME: u32 = 0x60;
const VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const REPARSE_POINT: u32 = 0xc0;

/// Namespace of a name that is the DOS double of another one (`FILE_NAME_DOS`).
const DOS: u8 = 2;
/// `FILE_ATTR_SYSTEM`.
const FILE_SYSTEM: u32 = 0x4;
/// `VOLUME_IS_DIRTY`.
const DIRTY: u16 = 0x1;
/// Most bytes of a volume's name: 128 UTF-16 units.
const MAX_LABEL_BYTES: u64 = 256;

/// Geometry of a volume.
#[derive(Clone, Copy)]
struct Boot {
    cluster_bytes: u64,
    /// Length of the volume in clusters.
    clusters: u64,
    record_bytes: usize,
    mft_at: u64,
    mirror_at: u64,
    serial: u64,
}

impl Boot {
    fn parse(sector: &[u8; 512], device_bytes: u64) -> Result<Self> {
        let bad = |what: &str| Error::damaged(format!("boot sector: {what}"));
        if sector[3..11] != *b"NTFS    " {
            return Err(bad("no mark of NTFS"));
        }
        let sector_bytes = u64::from(le16(sector, 11));
        // Above 64 KiB, the number is a negative power of two (Windows 10).
        let cluster_sectors = match sector[13] {
            few @ 0..=0x80 => u64::from(few),
            power => 1_u64.checked_shl(256 - u32::from(power)).unwrap_or(0),
        };
        let cluster_bytes = sector_bytes.saturating_mul(cluster_sectors);
        if !matches!(sector_bytes, 256 | 512 | 1024 | 2048 | 4096)
            || !cluster_sectors.is_power_of_two()
            || cluster_bytes > 2 << 20
        {
            return Err(bad("size of a sector or cluster"));
        }
        let record_bytes = match i8::from_le_bytes([sector[0x40]]) {
            clusters @ 1.. => u64::from(clusters.unsigned_abs()) * cluster_bytes,
            power => 1_u64.checked_shl(power.unsigned_abs().into()).unwrap_or(0),
        };
        if !record_bytes.is_power_of_two() || !(512..=64 << 10).contains(&record_bytes) {
            return Err(bad("size of a file record"));
        }
        let at = |field| le64(sector, field).saturating_mul(cluster_bytes);
        Ok(Self {
            cluster_bytes,
            // A volume that was cut short is readable as far as it goes.
            clusters: (le64(sector, 0x28).saturating_mul(sector_bytes).min(device_bytes)).div_ceil(cluster_bytes),
            record_bytes: record_bytes as usize,
            mft_at: at(0x30),
            mirror_at: at(0x38),
            serial: le64(sector, 0x48),
        })
    }
}

/// The files of an NTFS volume.
pub struct Ntfs {
    streams: Streams,
    boot: Boot,
    root: Node,
    upcase: Vec<u16>,
    label: Option<String>,
    remarks: Vec<String>,
}

/// Opens an NTFS volume.
pub fn open(device: SharedDevice) -> Result<Ntfs> {
    let pages = Pages::new(device);
    let mut remarks = Vec::new();
    let boot = read_boot(&pages, &mut remarks)?;
    let streams = Streams::open(pages, boot, &mut remarks)?;
    let root = streams.record(ROOT)?;
    let upcase = index::read_upcase(&streams);
    let mut ntfs = Ntfs {
        root: node_of(root.reference()),
        streams,
        boot,
        upcase,
        label: None,
        remarks,
    };
    ntfs.read_volume();
    Ok(ntfs)
}

/// Reads the boot sector, or its copy in the last sector.
fn read_boot(pages: &Pages, remarks: &mut Vec<String>) -> Result<Boot> {
    let size_bytes = pages.device().size_bytes();
    let read = |at| pages.array(at).and_then(|sector| Boot::parse(&sector, size_bytes));
    read(0).or_else(|error| {
        let boot = size_bytes
            .checked_sub(512)
            .map(read)
            .unwrap_or_else(|| Err(Error::NotFound));
        let boot = boot.map_err(|_| error)?;
        remarks.push("the boot sector is damaged; opened by the copy in the last sector".to_owned());
        Ok(boot)
    })
}

fn node_of(reference: u64) -> Node {
    Node {
        space: 0,
        number: reference,
    }
}

/// Returns a count of 100 ns since 1601 as a time; 1970 if it is out of range.
fn timestamp(ticks: u64) -> Timestamp {
    /// From 1601 to 1970.
    const EPOCH_TICKS: i128 = 11_644_473_600 * 10_000_000;
    let nanos = (i128::from(ticks) - EPOCH_TICKS) * 100;
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Ntfs {
    /// Reads the label and the dirty flag. A volume without them is readable too.
    fn read_volume(&mut self) {
        let Ok(record) = self.streams.record(VOLUME) else {
            self.remarks.push("the file $Volume is damaged".to_owned());
            return;
        };
        let resident = |kind| {
            let stream = self.streams.stream(&record, kind, &[])?;
            stream.read_all(&self.streams, MAX_LABEL_BYTES)
        };
        if let Ok(name) = resident(VOLUME_NAME) {
            let name = String::from_utf8_lossy(&utf16::to_utf8(utf16::units(&name))).into_owned();
            self.label = Some(name).filter(|name| !name.is_empty());
        }
        let flags = resident(VOLUME_INFORMATION).ok();
        let flags = flags.and_then(|bytes| Some(le16(bytes.get(10..12)?, 0)));
        if flags.is_some_and(|flags| flags & DIRTY != 0) {
            self.remarks
                .push("the volume is marked dirty: it was not unmounted cleanly, or needs a check".to_owned());
        }
        match log::is_clean(&self.streams) {
            Ok(true) => {}
            Ok(false) => self
                .remarks
                .push("the log was not replayed: the last changes may be missing or incomplete".to_owned()),
            Err(_) => self.remarks.push("the file $LogFile is damaged".to_owned()),
        }
    }

    fn record(&self, node: Node) -> Result<Record> {
        if node.space != 0 {
            return Err(Error::NotFound);
        }
        self.streams.record_of(node.number)
    }

    /// Returns the attributes that `$STANDARD_INFORMATION` has: the times and the flags of DOS.
    fn standard(&self, record: &Record) -> Result<Vec<u8>> {
        let bad = || Error::damaged(format!("file record {}: no standard information", record.number));
        let info = self
            .streams
            .stream(record, STANDARD_INFORMATION, &[])
            .map_err(|_| bad())?;
        let info = info.read_all(&self.streams, 256)?;
        if info.len() < 36 { Err(bad()) } else { Ok(info) }
    }

    /// Returns the meaning of a reparse point, or of one of Interix's special files.
    fn special(&self, record: &Record, flags: u32) -> Result<Special> {
        match self.streams.stream(record, REPARSE_POINT, &[]) {
            Ok(stream) => {
                let bytes = stream.read_all(&self.streams, reparse::MAX_REPARSE_BYTES)?;
                return reparse::parse(&bytes);
            }
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        if flags & FILE_SYSTEM == 0 || record.is_directory() {
            return Ok(Special::None);
        }
        let stream = match self.streams.stream(record, DATA, &[]) {
            Err(Error::NotFound) => return Ok(Special::None),
            stream => stream?,
        };
        if stream.size_bytes > reparse::MAX_INTERIX_BYTES {
            return Ok(Special::None);
        }
        let bytes = stream.read_all(&self.streams, reparse::MAX_INTERIX_BYTES);
        Ok(bytes.map_or(Special::None, |bytes| reparse::parse_interix(&bytes)))
    }
}

impl FileTree for Ntfs {
    fn root(&self) -> Node {
        self.root
    }

    fn identity(&self) -> Identity {
        Identity {
            uuid: Some(format!("{:016X}", self.boot.serial)),
            label: self.label.clone(),
        }
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let record = self.record(node)?;
        let info = self.standard(&record)?;
        let time = |at| timestamp(le64(&info, at));
        let special = self.special(&record, le32(&info, 32)).unwrap_or(Special::None);
        let mut stat = Stat {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            links: self.streams.links(&record),
            size_bytes: 0,
            device: (0, 0),
            modified: time(8),
            changed: time(16),
            accessed: time(24),
        };
        match special {
            Special::Link(target) => {
                (stat.kind, stat.mode, stat.size_bytes) = (FileKind::Link, 0o777, target.len() as u64);
            }
            Special::Device(kind, major, minor) => (stat.kind, stat.device) = (kind, (major, minor)),
            Special::Other(kind) => stat.kind = kind,
            Special::None | Special::Foreign(_) if record.is_directory() => {
                (stat.kind, stat.mode, stat.links) = (FileKind::Directory, 0o755, 1);
            }
            Special::None | Special::Foreign(_) => {
                // A file of the format's first versions may have no data at all.
                let data = self.streams.size_bytes(&record, DATA);
                stat.size_bytes = match data {
                    Err(Error::NotFound) => 0,
                    data => data?,
                };
            }
        }
        Ok(stat)
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let record = self.record(directory)?;
        index::list(&self.streams, &record, each)
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let record = self.record(directory)?;
        match index::find(&self.streams, &record, name, &self.upcase) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Error::NotFound),
            Err(Error::NotADirectory) => Err(Error::NotADirectory),
            // The damaged part of the tree may be another one than the entry's.
            Err(_) => utf16::find(name, |each| self.list(directory, each)),
        }
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let record = self.record(node)?;
        let info = self.standard(&record)?;
        match self.special(&record, le32(&info, 32))? {
            Special::Link(target) => Ok(target),
            _ => Err(Error::damaged(format!("file record {}: not a link", record.number))),
        }
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        let record = self.record(node)?;
        if record.is_directory() {
            return Err(Error::NotAFile);
        }
        let info = self.standard(&record)?;
        match self.special(&record, le32(&info, 32))? {
            Special::None => {}
            Special::Foreign(what) => return Err(Error::unsupported(what)),
            Special::Link(_) | Special::Device(..) | Special::Other(_) => return Err(Error::NotAFile),
        }
        let stream = match self.streams.stream(&record, DATA, &[]) {
            Err(Error::NotFound) => Stream::default(),
            stream => stream?,
        };
        if stream.is_encrypted() {
            return Err(Error::unsupported("encrypted file"));
        }
        if let Some(bytes) = stream.resident {
            return Ok(Arc::new(bytes));
        }
        let device = Arc::clone(self.streams.pages.device());
        if stream.unit_bytes > 0 {
            return Ok(Arc::new(CompressedFile::new(device, stream)?));
        }
        let runs = stream.initialized()?;
        Ok(Arc::new(RunFile { device, runs }))
    }
}
