//! Gives a domain another name, another identity and other disks. All else stays, byte for byte.
//!
//! The XML is scanned once for the ranges to change, and these are replaced in the text itself, so that elements
//! unknown to this vbk are never lost. Elements and attributes are those of <https://libvirt.org/formatdomain.html>.
//!
//! Not changed, because only the administrator knows the right values: fixed ports of graphics, host devices, shared
//! directories, and the `interfaceid` of Open vSwitch ports.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use quick_xml::Reader;
use quick_xml::escape::{escape, unescape};
use quick_xml::events::{BytesStart, Event};
use vbk_repo::ErrorKind;

use crate::host::libvirt::xml::attributes_of;

/// Changes to a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenamePlan {
    /// New name. If it differs from the present name, the result is a second server: see [`RenameError::DiskLeft`].
    pub name: String,
    /// New UUID; `None` keeps the present one.
    pub uuid: Option<String>,
    /// New addresses of its network cards, in order; empty keeps the present ones.
    pub macs: Vec<String>,
    /// New block devices of its disks, by the old source path or by the target's name, e.g. `vda`. The path wins.
    pub disks: BTreeMap<String, PathBuf>,
    /// New path of its NVRAM, if it has one; `None` keeps the present path.
    pub nvram: Option<PathBuf>,
}

/// Identity and parts of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name.
    pub name: String,
    /// UUID, if it has one already.
    pub uuid: Option<String>,
    /// Addresses of the network cards that have one.
    pub macs: Vec<String>,
    /// Disks, without CD and floppy drives: the source, if it is a path or has a name, and the target's name.
    pub disks: Vec<(Option<String>, String)>,
    /// Path of the NVRAM.
    pub nvram: Option<PathBuf>,
}

/// A failure to change a domain's description.
#[derive(Debug, thiserror::Error)]
pub enum RenameError {
    /// The text is not XML, or not a domain's.
    #[error("the stored configuration is not a domain of libvirt: {0}")]
    NotADomain(String),
    /// The number of addresses differs from the number of network cards.
    #[error("the domain has {cards} network cards, and {given} addresses were given")]
    Macs {
        /// Cards with an address.
        cards: usize,
        /// Addresses given.
        given: usize,
    },
    /// A second server would write to a disk of the first.
    #[error(
        "disk {target} of the domain ({old}) is not in the backup, and two servers must not write to one disk; write \
         the XML to a file with `vbk show BACKUP --file config.xml`, remove the disk from it, and define it by hand"
    )]
    DiskLeft {
        /// Name of the disk's target.
        target: String,
        /// Source of the disk.
        old: String,
    },
    /// The new path can't be written in XML.
    #[error("path {0} is not UTF-8, and libvirt's XML can't name it")]
    Path(PathBuf),
}

impl RenameError {
    /// Returns the kind of the error, by which a caller decides what to do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotADomain(_) => ErrorKind::Unsupported,
            Self::Macs { .. } | Self::DiskLeft { .. } | Self::Path(_) => ErrorKind::Invalid,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, RenameError>;

/// Changes the XML of a domain according to `plan` and keeps all else. The VM generation ID is emptied so that libvirt
/// generates a new one: a guest that reads it then knows that it was set back in time.
pub fn rewrite(xml: &str, plan: &RenamePlan) -> Result<String> {
    let scan = Scan::of(xml)?;
    let is_second = scan.name.value != plan.name;
    let mut edits = vec![(scan.name.range.clone(), escape(&plan.name).into_owned())];
    if let Some(uuid) = &plan.uuid {
        let uuids = scan.uuid.iter().chain(&scan.bios_uuids);
        edits.extend(uuids.map(|uuid_was| (uuid_was.range.clone(), escape(uuid).into_owned())));
    }
    edits.extend(scan.generation.iter().map(|id| (id.range.clone(), String::new())));
    if !plan.macs.is_empty() {
        if plan.macs.len() != scan.macs.len() {
            return Err(RenameError::Macs {
                cards: scan.macs.len(),
                given: plan.macs.len(),
            });
        }
        let macs = scan.macs.iter().zip(&plan.macs);
        edits.extend(macs.map(|(was, mac)| (was.range.clone(), escape(mac).into_owned())));
    }
    for disk in scan.disks.iter().filter(|disk| disk.is_disk) {
        match disk.new_path(plan) {
            Some(path) => edits.extend(disk.edits(path)?),
            None if is_second && disk.source.is_some() && !disk.is_shared => {
                return Err(RenameError::DiskLeft {
                    target: disk.target.clone(),
                    old: disk.old().to_owned(),
                });
            }
            None => {}
        }
    }
    if let (Some(was), Some(path)) = (&scan.nvram, &plan.nvram) {
        edits.push((was.range.clone(), escape(text_of(path)?).into_owned()));
    }
    Ok(apply(xml, edits))
}

/// Returns the identity and the parts of a domain.
pub fn identity(xml: &str) -> Result<Identity> {
    let scan = Scan::of(xml)?;
    let disks = scan.disks.iter().filter(|disk| disk.is_disk);
    Ok(Identity {
        disks: disks
            .map(|disk| (disk.source_name().map(str::to_owned), disk.target.clone()))
            .collect(),
        name: scan.name.value,
        uuid: scan.uuid.map(|uuid| uuid.value),
        macs: scan.macs.into_iter().map(|mac| mac.value).collect(),
        nvram: scan.nvram.map(|nvram| nvram.value.into()),
    })
}

/// Disks that a plan and a domain do not have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unplaced {
    /// New block devices that match no disk of the domain.
    pub new: Vec<PathBuf>,
    /// Target and source of the disks that stay unchanged, without read-only and shared ones.
    pub kept: Vec<(String, String)>,
}

/// Finds the disks of a plan and of a domain that [`rewrite`] would leave out.
pub fn unplaced(xml: &str, plan: &RenamePlan) -> Result<Unplaced> {
    let scan = Scan::of(xml)?;
    let disks: Vec<_> = scan.disks.iter().filter(|disk| disk.is_disk).collect();
    let placed: Vec<_> = disks.iter().filter_map(|disk| disk.new_path(plan)).collect();
    let new = plan.disks.values().filter(|path| !placed.contains(&path.as_path()));
    let kept = disks
        .iter()
        .filter(|disk| disk.new_path(plan).is_none() && disk.source.is_some() && !disk.is_shared);
    Ok(Unplaced {
        new: new.cloned().collect(),
        kept: kept.map(|disk| (disk.target.clone(), disk.old().to_owned())).collect(),
    })
}

/// Makes a random UUID (version 4, RFC 9562) from random bytes.
pub fn uuid_of(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0F | 0x40;
    random[8] = random[8] & 0x3F | 0x80;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

/// Makes another address of the same vendor, `52:54:00` with QEMU.
pub fn mac_like(old: &str, random: [u8; 3]) -> String {
    let maker: Vec<&str> = old.split(':').take(3).collect();
    let is_maker = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let maker = match maker.len() == 3 && maker.iter().all(is_maker) {
        true => maker.join(":"),
        false => "52:54:00".to_owned(),
    };
    let [a, b, c] = random;
    format!("{maker}:{a:02x}:{b:02x}:{c:02x}")
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| RenameError::Path(path.to_owned()))
}

type Edit = (Range<usize>, String);

fn apply(xml: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut text = String::with_capacity(xml.len() + 256);
    let mut done = 0;
    for (range, new) in edits {
        text.push_str(&xml[done..range.start]);
        text.push_str(&new);
        done = range.end;
    }
    text.push_str(&xml[done..]);
    text
}

/// A range of the XML: the value of an attribute, or the text between two tags.
#[derive(Debug, Clone)]
struct Span {
    range: Range<usize>,
    /// The text with XML's escapes decoded.
    value: String,
}

#[derive(Debug)]
struct Scan {
    name: Span,
    uuid: Option<Span>,
    /// libvirt requires that the UUID in the BIOS tables is the domain's.
    bios_uuids: Vec<Span>,
    generation: Option<Span>,
    macs: Vec<Span>,
    disks: Vec<Disk>,
    nvram: Option<Span>,
}

#[derive(Debug, Default)]
struct Disk {
    /// Offset of its tag.
    start: usize,
    kind: Option<Span>,
    is_disk: bool,
    /// True if it is read-only or shareable.
    is_shared: bool,
    source: Option<DiskSource>,
    target: String,
}

#[derive(Debug, Default)]
struct DiskSource {
    /// Range of the whole element.
    whole: Range<usize>,
    /// `file="..."` or `dev="..."`.
    path: Option<Span>,
    /// Name of a source that is neither a file nor a device.
    name: Option<String>,
}

impl Disk {
    fn source_name(&self) -> Option<&str> {
        let source = self.source.as_ref()?;
        let path = source.path.as_ref().map(|path| path.value.as_str());
        path.or(source.name.as_deref())
    }

    /// Describes its source, for a message.
    fn old(&self) -> &str {
        self.source_name().unwrap_or("a source of another kind")
    }

    fn new_path<'a>(&self, plan: &'a RenamePlan) -> Option<&'a Path> {
        let by_source = self.source_name().and_then(|name| plan.disks.get(name));
        by_source.or_else(|| plan.disks.get(&self.target)).map(PathBuf::as_path)
    }

    /// Makes the edits that turn it into a block device.
    fn edits(&self, path: &Path) -> Result<Vec<Edit>> {
        let dev = format!("dev='{}'", escape(text_of(path)?));
        let kind = match &self.kind {
            Some(kind) => (kind.range.clone(), "block".to_owned()),
            // The default type is file.
            None => {
                let after = self.start + "<disk".len();
                (after..after, " type='block'".to_owned())
            }
        };
        let source = match &self.source {
            Some(DiskSource { path: Some(path), .. }) => (path.range.clone(), dev),
            Some(source) => (source.whole.clone(), format!("<source {dev}/>")),
            // A disk without a source is an empty drive; there is nothing to replace.
            None => return Ok(vec![kind]),
        };
        Ok(vec![kind, source])
    }
}

/// An open element.
struct Open {
    tag: Range<usize>,
    /// Length of the path without it.
    outer_len: usize,
    /// True for the entry of `sysinfo` that holds the UUID.
    is_uuid_entry: bool,
}

struct Walk<'a> {
    xml: &'a str,
    /// Names of the open elements, e.g. `domain/devices/disk`.
    path: String,
    open: Vec<Open>,
    name: Option<Span>,
    found: Scan,
}

impl Scan {
    fn of(xml: &str) -> Result<Self> {
        let nothing = Span {
            range: 0..0,
            value: String::new(),
        };
        let mut walk = Walk {
            xml,
            path: String::new(),
            open: Vec::new(),
            name: None,
            found: Self {
                name: nothing,
                uuid: None,
                bios_uuids: Vec::new(),
                generation: None,
                macs: Vec::new(),
                disks: Vec::new(),
                nvram: None,
            },
        };
        let mut reader = Reader::from_str(xml);
        loop {
            let before = offset(reader.buffer_position());
            let event = reader.read_event();
            let event = event.map_err(|error| RenameError::NotADomain(error.to_string()))?;
            let tag = before..offset(reader.buffer_position());
            match event {
                Event::Start(start) => walk.start(&start, tag)?,
                Event::Empty(empty) => {
                    walk.start(&empty, tag.clone())?;
                    walk.end(tag, true)?;
                }
                Event::End(_) => walk.end(tag, false)?,
                Event::Eof => break,
                _ => {}
            }
        }
        match (walk.open.is_empty(), walk.name) {
            (false, _) => Err(RenameError::NotADomain("it ends too early".into())),
            (true, None) => Err(RenameError::NotADomain("it has no domain with a name".into())),
            (true, Some(name)) => Ok(Self { name, ..walk.found }),
        }
    }
}

fn offset(position: u64) -> usize {
    usize::try_from(position).expect("an offset into a text in memory")
}

impl Walk<'_> {
    fn start(&mut self, element: &BytesStart<'_>, tag: Range<usize>) -> Result<()> {
        let outer_len = self.path.len();
        if outer_len > 0 {
            self.path.push('/');
        }
        self.path.push_str(&String::from_utf8_lossy(element.name().as_ref()));
        let mut is_uuid_entry = false;
        match self.path.as_str() {
            "domain/devices/interface/mac" => {
                self.found.macs.extend(self.attribute(element, "address")?);
            }
            "domain/devices/disk" => {
                let device = self.attribute(element, "device")?;
                let kind = self.attribute(element, "type")?;
                self.found.disks.push(Disk {
                    start: tag.start,
                    kind,
                    is_disk: device.is_none_or(|device| matches!(device.value.as_str(), "disk" | "lun")),
                    ..Disk::default()
                });
            }
            "domain/devices/disk/source" => {
                let mut source = DiskSource {
                    whole: tag.clone(),
                    ..DiskSource::default()
                };
                for key in ["dev", "file"] {
                    if let Some(mut path) = self.attribute(element, key)? {
                        // The range includes the attribute's name, the equals sign and both quotes.
                        path.range = self.with_key(key, &path.range)?;
                        source.path = Some(path);
                    }
                }
                for key in ["name", "volume", "dir"] {
                    source.name = source.name.or(self.attribute(element, key)?.map(|name| name.value));
                }
                if let Some(disk) = self.found.disks.last_mut() {
                    disk.source = Some(source);
                }
            }
            "domain/devices/disk/target" => {
                let target = self.attribute(element, "dev")?;
                if let (Some(disk), Some(target)) = (self.found.disks.last_mut(), target) {
                    disk.target = target.value;
                }
            }
            "domain/devices/disk/readonly" | "domain/devices/disk/shareable" => {
                if let Some(disk) = self.found.disks.last_mut() {
                    disk.is_shared = true;
                }
            }
            "domain/os/nvram/source" => self.found.nvram = self.attribute(element, "file")?,
            "domain/sysinfo/system/entry" => {
                let name = self.attribute(element, "name")?;
                is_uuid_entry = name.is_some_and(|name| name.value == "uuid");
            }
            _ => {}
        }
        self.open.push(Open {
            tag,
            outer_len,
            is_uuid_entry,
        });
        Ok(())
    }

    fn end(&mut self, tag: Range<usize>, is_empty: bool) -> Result<()> {
        let Some(open) = self.open.pop() else {
            return Err(RenameError::NotADomain("it ends twice".into()));
        };
        if !is_empty {
            let content = open.tag.end..tag.start;
            match self.path.as_str() {
                // The first one counts, as in libvirt.
                "domain/name" if self.name.is_none() => self.name = Some(self.content(content)?),
                "domain/uuid" if self.found.uuid.is_none() => self.found.uuid = Some(self.content(content)?),
                "domain/genid" => self.found.generation = Some(self.content(content)?),
                "domain/sysinfo/system/entry" if open.is_uuid_entry => {
                    self.found.bios_uuids.push(self.content(content)?);
                }
                // An element with a <source> was handled already.
                "domain/os/nvram" if self.found.nvram.is_none() => {
                    self.found.nvram = Some(self.content(content)?).filter(|path| !path.value.is_empty());
                }
                "domain/devices/disk/source" => {
                    let source = self.found.disks.last_mut().and_then(|disk| disk.source.as_mut());
                    if let Some(source) = source {
                        source.whole = open.tag.start..tag.end;
                    }
                }
                _ => {}
            }
        }
        self.path.truncate(open.outer_len);
        Ok(())
    }

    /// Returns the text between two tags.
    fn content(&self, range: Range<usize>) -> Result<Span> {
        let value = unescape(&self.xml[range.clone()]).map_err(|error| RenameError::NotADomain(error.to_string()))?;
        let value = value.trim().to_owned();
        Ok(Span { range, value })
    }

    /// Finds an attribute, and the range of its value in the text.
    fn attribute(&self, element: &BytesStart<'_>, key: &str) -> Result<Option<Span>> {
        let bad = |what: &dyn std::fmt::Display| RenameError::NotADomain(what.to_string());
        for attribute in attributes_of(element) {
            let attribute = attribute.map_err(|error| bad(&error))?;
            if attribute.key.as_ref() != key.as_bytes() {
                continue;
            }
            // The reader borrows from the text, so the distance of the two pointers is the offset.
            let start = (attribute.value.as_ptr() as usize).checked_sub(self.xml.as_ptr() as usize);
            let range = start.map(|start| start..start + attribute.value.len());
            let range = range.filter(|range| self.xml.get(range.clone()).map(str::as_bytes) == Some(&attribute.value));
            let range = range.ok_or_else(|| bad(&"an attribute's value is not part of the text"))?;
            let value = unescape(&self.xml[range.clone()]).map_err(|error| bad(&error))?;
            return Ok(Some(Span {
                value: value.into_owned(),
                range,
            }));
        }
        Ok(None)
    }

    /// Returns the range from an attribute's name to the quote after its value.
    fn with_key(&self, key: &str, value: &Range<usize>) -> Result<Range<usize>> {
        let before = &self.xml[..value.start];
        let start = before
            .rfind('=')
            .and_then(|sign| before[..sign].trim_end().strip_suffix(key));
        let start = start
            .ok_or_else(|| RenameError::NotADomain(format!("an attribute {key} is malformed")))?
            .len();
        Ok(start..value.end + 1)
    }
}

#[cfg(test)]
mod tests;
