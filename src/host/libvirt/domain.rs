//! What a domain's description says that backups need. The format: <https://libvirt.org/formatdomain.html>.

use std::path::{Path, PathBuf};

use crate::host::libvirt::LibvirtError;
use crate::host::libvirt::xml::{self, Element};

/// Disks of one domain. QEMU can't attach as many; each disk is compared with all others by those who look for two of the
/// same path.
const MAX_DISKS: usize = 1024;

/// A guest as libvirt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its name. May have characters that a guest's name may not.
    pub name: String,
    /// Its UUID, as libvirt writes it.
    pub uuid: String,
    /// All that it has as disks, CD drives among them.
    pub disks: Vec<DomainDisk>,
    /// The file with the variables of its UEFI.
    pub nvram: Option<PathBuf>,
    /// The whole description.
    pub xml: String,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// What libvirt calls it: `vda`.
    pub target: String,
    /// Where its bytes are.
    pub medium: Medium,
    /// It is a drive for CDs or floppies, whatever is in it.
    pub is_drive: bool,
    /// The guest can only read it.
    pub read_only: bool,
    /// What the guest may read of it, in bytes per second: the smaller of its limits on reading and on both ways.
    pub read_bytes_per_sec: Option<u64>,
}

/// What a disk is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A block device or a raw file: what can be backed up.
    Raw(PathBuf),
    /// Something else.
    Other {
        /// What, as in `is a CD drive`.
        why: String,
        /// The block device or file that it is in, if it is in one.
        path: Option<PathBuf>,
    },
}

impl Medium {
    /// The block device or file that it is in, raw or not.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Raw(path) => Some(path),
            Self::Other { path, .. } => path.as_deref(),
        }
    }
}

impl Domain {
    /// Reads a description as `virsh dumpxml` gives it.
    pub fn parse(xml: &str) -> Result<Self, LibvirtError> {
        let failed = |domain: &str, what: String| LibvirtError::Description {
            domain: domain.to_owned(),
            what,
        };
        let root = xml::parse(xml).map_err(|what| failed("a domain", what))?;
        if root.name != "domain" {
            return Err(failed("a domain", format!("it is a <{}>", root.name)));
        }
        let text_of = |name| root.child(name).and_then(Element::trimmed);
        // With the spaces around it that it may have: those are part of it.
        let name = root.child("name").map(|name| name.text.as_str());
        let name = name
            .filter(|name| !name.is_empty())
            .ok_or_else(|| failed("a domain", "it has no name".to_owned()))?;
        let uuid = text_of("uuid").ok_or_else(|| failed(name, "it has no UUID".to_owned()))?;
        let devices = root.all("devices").flat_map(|devices| &devices.children);
        let disks: Vec<_> = devices.filter(|device| device.name == "disk").map(disk).collect();
        if disks.len() > MAX_DISKS {
            return Err(failed(
                name,
                format!("it has {} disks, more than {MAX_DISKS}", disks.len()),
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            disks,
            nvram: root.child("os").and_then(nvram),
            xml: xml.to_owned(),
        })
    }
}

fn disk(disk: &Element) -> DomainDisk {
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

/// The path of what can be backed up, or why it can't.
fn medium(disk: &Element) -> Result<PathBuf, String> {
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
    // Without a driver element libvirt takes a disk for raw, unless it was told to guess.
    match disk.child("driver").and_then(|driver| driver.attribute("type")) {
        None | Some("raw") => {}
        Some(format) => return Err(format!("is a {format} image; only raw ones can be backed up")),
    }
    path_of(disk)
}

fn path_of(disk: &Element) -> Result<PathBuf, String> {
    let attribute = match disk.attribute("type") {
        Some("block") => "dev",
        _ => "file",
    };
    let path = disk.child("source").and_then(|source| source.attribute(attribute));
    match path {
        Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(PathBuf::from(path)),
        Some(path) => Err(format!("has a path that is not absolute: {path:?}")),
        None => Err("has nothing in it".to_owned()),
    }
}

/// The limits that concern reading; 0 is none.
fn speed(iotune: &Element) -> Option<u64> {
    let limits = ["read_bytes_sec", "total_bytes_sec"];
    let limit = |name| iotune.child(name)?.trimmed()?.parse::<u64>().ok();
    limits.into_iter().filter_map(limit).filter(|&limit| limit > 0).min()
}

/// Written as text, or since libvirt 8.5 as the source of a disk.
fn nvram(os: &Element) -> Option<PathBuf> {
    let nvram = os.child("nvram")?;
    let source = nvram.child("source");
    let path = match source {
        Some(source) => source.attribute("file").or_else(|| source.attribute("dev")),
        None => nvram.trimmed(),
    };
    path.filter(|path| path.starts_with('/')).map(PathBuf::from)
}
