//! Gives a domain another name, another identity and other disks. All else stays, byte for byte.
//!
//! Replaces only the ranges of the text that change, so that elements unknown to this vbk are never lost. Elements and attributes are those of <https://libvirt.org/formatdomain.html>.
//!
//! Not changed, because only the administrator knows the right values: fixed ports of graphics, host devices, shared
//! directories, and the `interfaceid` of Open vSwitch ports.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use quick_xml::escape::escape;
use roxmltree::Document;
use vbk_repo::ErrorKind;

use crate::host::libvirt::xml::{self, Element, Span};

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
    let document = parse(xml)?;
    let scan = Scan::of(&document)?;
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
    for disk in &scan.disks {
        match disk.new_path(plan) {
            Some(path) => edits.extend(disk.edits(path)?),
            None if is_second && disk.is_own() => {
                return Err(RenameError::DiskLeft {
                    target: disk.target().to_owned(),
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
    let document = parse(xml)?;
    let scan = Scan::of(&document)?;
    let disks = scan.disks.iter();
    Ok(Identity {
        disks: disks
            .map(|disk| (disk.source_name().map(str::to_owned), disk.target().to_owned()))
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
    let document = parse(xml)?;
    let scan = Scan::of(&document)?;
    let placed: Vec<_> = scan.disks.iter().filter_map(|disk| disk.new_path(plan)).collect();
    let new = plan.disks.values().filter(|path| !placed.contains(&path.as_path()));
    let disks = scan.disks.iter();
    let kept = disks.filter(|disk| disk.new_path(plan).is_none() && disk.is_own());
    Ok(Unplaced {
        new: new.cloned().collect(),
        kept: kept
            .map(|disk| (disk.target().to_owned(), disk.old().to_owned()))
            .collect(),
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

fn parse(xml: &str) -> Result<Document<'_>> {
    xml::parse(xml).map_err(RenameError::NotADomain)
}

/// The parts of a domain that identify it or belong to it alone.
#[derive(Debug)]
struct Scan<'a> {
    name: Span,
    uuid: Option<Span>,
    /// libvirt requires that the UUID in the BIOS tables is the domain's.
    bios_uuids: Vec<Span>,
    generation: Option<Span>,
    macs: Vec<Span>,
    /// Without CD and floppy drives.
    disks: Vec<Disk<'a>>,
    nvram: Option<Span>,
}

impl<'a> Scan<'a> {
    fn of(document: &'a Document<'_>) -> Result<Self> {
        let root = Some(Element::root(document)).filter(|root| root.is_named("domain"));
        let all = |path| root.map_or_else(Vec::new, |root| root.all(path)).into_iter();
        // The first one counts, as in libvirt.
        let first = |path| all(path).find_map(Element::content);
        let no_name = || RenameError::NotADomain("it has no domain with a name".into());
        let entries = all("sysinfo/system/entry").filter(|entry| entry.is("name", "uuid"));
        Ok(Self {
            name: first("name").ok_or_else(no_name)?,
            uuid: first("uuid"),
            bios_uuids: entries.filter_map(Element::content).collect(),
            generation: first("genid"),
            macs: all("devices/interface/mac")
                .filter_map(|mac| mac.value("address"))
                .collect(),
            disks: all("devices/disk").map(Disk).filter(Disk::is_disk).collect(),
            nvram: all("os/nvram/source")
                .find_map(|source| source.value("file"))
                .or_else(|| first("os/nvram").filter(|path| !path.value.is_empty())),
        })
    }
}

#[derive(Debug)]
struct Disk<'a>(Element<'a>);

impl<'a> Disk<'a> {
    fn is_disk(&self) -> bool {
        matches!(self.0.attribute("device"), None | Some("disk" | "lun"))
    }

    /// Tests that no other server may use it: it is neither empty nor read-only nor shareable.
    fn is_own(&self) -> bool {
        let is = |child| self.0.child(child).is_some();
        is("source") && !is("readonly") && !is("shareable")
    }

    fn target(&self) -> &'a str {
        let target = self.0.child("target").and_then(|target| target.attribute("dev"));
        target.unwrap_or_default()
    }

    fn source_name(&self) -> Option<&'a str> {
        let source = self.0.child("source")?;
        let keys = ["file", "dev", "name", "volume", "dir"];
        keys.into_iter().find_map(|key| source.attribute(key))
    }

    /// Describes its source, for a message.
    fn old(&self) -> &'a str {
        self.source_name().unwrap_or("a source of another kind")
    }

    fn new_path<'p>(&self, plan: &'p RenamePlan) -> Option<&'p Path> {
        let by_source = self.source_name().and_then(|name| plan.disks.get(name));
        by_source
            .or_else(|| plan.disks.get(self.target()))
            .map(PathBuf::as_path)
    }

    /// Makes the edits that turn it into a block device.
    fn edits(&self, path: &Path) -> Result<Vec<Edit>> {
        let dev = format!("dev='{}'", escape(text_of(path)?));
        let kind = match self.0.value("type") {
            Some(kind) => (kind.range, "block".to_owned()),
            // The default type is file.
            None => {
                let after = self.0.range().start + "<disk".len();
                (after..after, " type='block'".to_owned())
            }
        };
        // A disk without a source is an empty drive; there is nothing to replace.
        let Some(source) = self.0.child("source") else {
            return Ok(vec![kind]);
        };
        let paths = ["file", "dev"].into_iter().find_map(|key| source.attribute_range(key));
        let source = match paths {
            Some(attribute) => (attribute, dev),
            None => (source.range(), format!("<source {dev}/>")),
        };
        Ok(vec![kind, source])
    }
}

#[cfg(test)]
mod tests;
