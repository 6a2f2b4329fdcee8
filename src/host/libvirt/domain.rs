//! The parts of a domain's description that backups need. Format: <https://libvirt.org/formatdomain.html>.

use std::path::{Path, PathBuf};

use crate::host::libvirt::LibvirtError;
use crate::host::libvirt::xml::{self, Element};

/// Limit of disks of one domain. QEMU can't attach as many, and searches for two disks with the same path compare each
/// with all others.
const MAX_DISKS: usize = 1024;

/// A guest as libvirt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Name. May have characters that are not allowed in a guest's name.
    pub name: String,
    /// UUID in libvirt's form.
    pub uuid: String,
    /// All disks, CD drives included.
    pub disks: Vec<DomainDisk>,
    /// Path of the file with its UEFI variables.
    pub nvram: Option<PathBuf>,
    /// The whole description.
    pub xml: String,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// Name of the disk in libvirt: `vda`.
    pub target: String,
    /// Location of its bytes.
    pub medium: Medium,
    /// True for a CD or floppy drive, loaded or empty.
    pub is_drive: bool,
    /// True if the guest can only read it.
    pub read_only: bool,
    /// Read limit of the guest, in bytes per second: the smaller of its limits on reading and on reading plus writing.
    pub read_bytes_per_sec: Option<u64>,
}

/// Storage of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A block device or a raw file, which can be backed up.
    Raw(PathBuf),
    /// Storage that can't be backed up.
    Other {
        /// Reason, e.g. `is a CD drive`.
        why: String,
        /// Path of the block device or file, if it is in one.
        path: Option<PathBuf>,
    },
}

impl Medium {
    /// Returns the path of the block device or file, raw or not.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Raw(path) => Some(path),
            Self::Other { path, .. } => path.as_deref(),
        }
    }
}

impl Domain {
    /// Parses a description from `virsh dumpxml`.
    pub fn parse(xml: &str) -> Result<Self, LibvirtError> {
        let failed = |domain: &str, what: String| LibvirtError::Description {
            domain: domain.to_owned(),
            what,
        };
        let document = xml::parse(xml).map_err(|what| failed("a domain", what))?;
        let root = Element::root(&document);
        if !root.is_named("domain") {
            return Err(failed("a domain", format!("it is a <{}>", root.name())));
        }
        let text_of = |name| root.child(name).and_then(Element::trimmed);
        // Spaces around a name are part of it.
        let name = root.child("name").map(Element::text);
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or_else(|| failed("a domain", "it has no name".to_owned()))?;
        let uuid = text_of("uuid").ok_or_else(|| failed(&name, "it has no UUID".to_owned()))?;
        let disks: Vec<_> = root.all("devices/disk").into_iter().map(disk).collect();
        if disks.len() > MAX_DISKS {
            return Err(failed(
                &name,
                format!("it has {} disks, more than {MAX_DISKS}", disks.len()),
            ));
        }
        Ok(Self {
            name,
            uuid,
            disks,
            nvram: root.child("os").and_then(nvram),
            xml: xml.to_owned(),
        })
    }
}

fn disk(disk: Element<'_>) -> DomainDisk {
    let target = disk.child("target").and_then(|target| target.attribute("dev"));
    DomainDisk {
        target: target.unwrap_or_default().to_owned(),
        medium: medium(disk).map_or_else(
            |why| Medium::Other {
                why,
                path: path_of(disk).ok(),
            },
            Medium::Raw,
        ),
        is_drive: disk.is("device", "cdrom") || disk.is("device", "floppy"),
        read_only: disk.child("readonly").is_some(),
        read_bytes_per_sec: disk.child("iotune").and_then(speed),
    }
}

/// Returns the path of a disk that can be backed up, or the reason why it can't.
fn medium(disk: Element<'_>) -> Result<PathBuf, String> {
    match disk.attribute("device") {
        None | Some("disk") => {}
        Some("cdrom") => return Err("is a CD drive".to_owned()),
        Some("floppy") => return Err("is a floppy drive".to_owned()),
        Some("lun") => return Err("is a SCSI device passed through to the guest".to_owned()),
        Some(other) => return Err(format!("is a {other}")),
    }
    match disk.attribute("type") {
        None | Some("block" | "file") => {}
        Some("network") => {
            let protocol = disk.child("source").and_then(|source| source.attribute("protocol"));
            return Err(format!(
                "is on the network ({})",
                protocol.unwrap_or("unknown protocol")
            ));
        }
        Some("volume") => {
            return Err("is a volume of a storage pool; name its path as one of the guest's disks".to_owned());
        }
        Some(other) => return Err(format!("is of type {other}")),
    }
    // Without a driver element, libvirt treats a disk as raw unless it is configured to probe.
    match disk.child("driver").and_then(|driver| driver.attribute("type")) {
        None | Some("raw") => {}
        Some(format) => return Err(format!("is a {format} image; only raw ones can be backed up")),
    }
    path_of(disk)
}

fn path_of(disk: Element<'_>) -> Result<PathBuf, String> {
    let attribute = match disk.attribute("type") {
        Some("block") => "dev",
        _ => "file",
    };
    let path = disk.child("source").and_then(|source| source.attribute(attribute));
    match path {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        Some(path) => Err(format!("has a path that is not absolute: {path:?}")),
        None => Err("is empty".to_owned()),
    }
}

/// Returns the limit that applies to reading; 0 means none.
fn speed(iotune: Element<'_>) -> Option<u64> {
    let limits = ["read_bytes_sec", "total_bytes_sec"];
    let limit = |name| iotune.child(name)?.trimmed()?.parse::<u64>().ok();
    limits.into_iter().filter_map(limit).filter(|&limit| limit > 0).min()
}

/// Returns the path of the UEFI variables, which is the element's text or, since libvirt 8.5, a source like that of a
/// disk.
fn nvram(os: Element<'_>) -> Option<PathBuf> {
    let nvram = os.child("nvram")?;
    let source = nvram.child("source");
    let path = match source {
        Some(source) => source
            .attribute("file")
            .or_else(|| source.attribute("dev"))
            .map(str::to_owned),
        None => nvram.trimmed(),
    };
    path.filter(|path| path.starts_with('/')).map(PathBuf::from)
}
