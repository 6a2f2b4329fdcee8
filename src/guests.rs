//! The guests of this host and their disks: those that the configuration names, the domains of libvirt, and logical
//! volumes with a tag `vbk_guest=GUEST/DISK`. What can't be backed up is named with the reason and never left out in
//! silence.
//!
//! A guest of one name is one guest: what the configuration says goes before libvirt, and libvirt before tags. A guest
//! whose configuration names no disks has those that libvirt or, where that does not know it, tags give it.

mod tags;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::name::{DiskName, GuestName};

use crate::libvirt::{Domain, DomainDisk, Libvirt, LibvirtError, Medium};
use crate::program::{ProgramError, Programs};
use crate::sys;
use tags::{TaggedDisk, Tags};

/// What the configuration says of guests.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The guests it names.
    pub guests: Vec<ConfiguredGuest>,
    /// The speed that disks of other guests were allocated, in bytes per second.
    pub device_bytes_per_sec: Option<u64>,
}

/// What the configuration says of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredGuest {
    /// The guest.
    pub name: GuestName,
    /// Its disks, if it says which.
    pub disks: Option<Vec<(DiskName, PathBuf)>>,
    /// Disks that are not to be backed up.
    pub skip_disks: Vec<DiskName>,
    /// What libvirt calls it, if not by its name.
    pub domain: Option<String>,
    /// The speed that its disks were allocated, in bytes per second each.
    pub device_bytes_per_sec: Option<u64>,
}

/// Who says that there is a guest, or which disks it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The configuration.
    Configured,
    /// libvirt.
    Libvirt,
    /// Tags of logical volumes.
    Tags,
}

impl std::fmt::Display for FoundBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Configured => "configuration",
            Self::Libvirt => "libvirt",
            Self::Tags => "tags",
        })
    }
}

/// A guest of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGuest {
    /// Its name.
    pub name: GuestName,
    /// Who says that it is there.
    pub from: FoundBy,
    /// The disks to back up.
    pub disks: Vec<FoundDisk>,
    /// Disks that are not backed up.
    pub left_out: Vec<LeftOut>,
    /// What libvirt knows of it, where that is there and knows it.
    pub domain: Option<Domain>,
    /// Whether libvirt says that it runs; `None` where libvirt does not say.
    pub running: Option<bool>,
    /// What somebody should know, one sentence each.
    pub notes: Vec<String>,
}

/// A disk that can be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Its name.
    pub name: DiskName,
    /// Where it is read.
    pub path: PathBuf,
    /// How large it is; `None` where that can't be seen, as for a disk that is not there.
    pub size_bytes: Option<u64>,
    /// The speed it was allocated, in bytes per second, and who says so.
    pub speed: Option<(u64, FoundBy)>,
}

/// A disk that is not backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What it is called; not always a name that a disk may have.
    pub name: String,
    /// Why, as in `is a qcow2 image; only raw ones can be backed up`.
    pub why: String,
    /// Whether somebody asked for that, or it holds nothing of the guest's own.
    pub is_meant: bool,
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The guests, by name.
    pub guests: Vec<FoundGuest>,
    /// What could not be found out, one sentence each.
    pub notes: Vec<String>,
}

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nobody knows it.
    #[error(
        "no guest {name} is known on this host{}; name its disks, or give it a section [guest.{name}] in the \
         configuration, or give its logical volumes tags as in `lvchange --addtag vbk_guest={name}/vda VG/LV`",
        also(.notes)
    )]
    Unknown {
        /// The name.
        name: GuestName,
        /// What could not be asked.
        notes: Vec<String>,
    },
    /// It has no disk that can be backed up.
    #[error("guest {name} has no disk that can be backed up{}", also(.why))]
    NoDisks {
        /// The name.
        name: GuestName,
        /// What is wrong with each.
        why: Vec<String>,
    },
}

impl GuestError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::NoDisks { .. } => ErrorKind::Invalid,
        }
    }
}

fn also(notes: &[String]) -> String {
    notes.iter().map(|note| format!(" ({note})")).collect()
}

/// Finds all guests. What fails is in the notes: one source that does not answer hides no guest of the others.
pub fn discover(programs: &Programs, known: &Known) -> Found {
    let mut notes = Vec::new();
    let libvirt = Libvirt::new(programs);
    let mut names = listed(libvirt.names(), &mut notes);
    let running = if names.is_empty() {
        Some(Vec::new())
    } else {
        libvirt.running().ok()
    };
    let mut tags = Tags::read(programs);
    notes.append(&mut tags.notes);
    let mut domains = BTreeMap::new();
    for name in std::mem::take(&mut names) {
        match libvirt.domain(&name) {
            Ok(domain) => {
                domains.insert(name, domain);
            }
            // It was there a moment ago.
            Err(LibvirtError::NoSuchDomain(_)) => {}
            Err(error) => {
                notes.push(format!("domain {name} is left out: {error}"));
                if matches!(error, LibvirtError::Program(ProgramError::TimedOut { .. })) {
                    // Every other one would take as long.
                    notes.push("libvirt does not answer; the rest of its domains are left out".to_owned());
                    break;
                }
            }
        }
    }
    let is_running = |domain: &Domain| running.as_ref().map(|running| running.contains(&domain.name));
    let mut guests = BTreeMap::new();
    for configured in &known.guests {
        let domain = domains.remove(configured.domain.as_deref().unwrap_or(configured.name.as_str()));
        let is_running = domain.as_ref().and_then(is_running);
        let guest = configured_guest(
            configured,
            known,
            domain,
            is_running,
            tags.guests.remove(&configured.name),
        );
        guests.insert(configured.name.clone(), guest);
    }
    for (name, domain) in domains {
        let is_running = is_running(&domain);
        match GuestName::new(name.as_str()) {
            Ok(name) if guests.contains_key(&name) => notes.push(format!(
                "domain {name} is left out: the configuration gives that name to another domain"
            )),
            Ok(name) => {
                tags.guests.remove(&name);
                guests.insert(name.clone(), libvirt_guest(name, domain, is_running, known));
            }
            Err(error) => notes.push(format!(
                "domain {name:?} is left out: {error}; a section [guest.NAME] with domain = {name:?} in the configuration \
                 gives it a name"
            )),
        }
    }
    for (name, disks) in tags.guests {
        guests.insert(name.clone(), tagged_guest(name, disks, known));
    }
    Found {
        guests: guests.into_values().collect(),
        notes,
    }
}

/// Finds one guest, and asks for no other.
pub fn resolve(programs: &Programs, known: &Known, name: &GuestName) -> Result<FoundGuest, GuestError> {
    let configured = known.guests.iter().find(|guest| guest.name == *name);
    let libvirt = Libvirt::new(programs);
    let mut notes = Vec::new();
    let wanted = configured
        .and_then(|guest| guest.domain.as_deref())
        .unwrap_or(name.as_str());
    let is_taken = |guest: &ConfiguredGuest| guest.name != *name && guest.domain.as_deref() == Some(wanted);
    let domain = match listed(libvirt.names(), &mut notes)
        .iter()
        .any(|listed| listed == wanted)
    {
        // The configuration gives this domain another name.
        true if known.guests.iter().any(is_taken) => None,
        true => match libvirt.domain(wanted) {
            Ok(domain) => Some(domain),
            Err(error) => {
                notes.push(format!("domain {wanted}: {error}"));
                None
            }
        },
        false => None,
    };
    let running = domain.as_ref().and_then(|domain| {
        let running = libvirt.running().ok()?;
        Some(running.contains(&domain.name))
    });
    let has_disks = configured.is_some_and(|guest| guest.disks.is_some());
    let mut tagged = None;
    if domain.is_none() && !has_disks {
        let mut tags = Tags::read(programs);
        notes.append(&mut tags.notes);
        tagged = tags.guests.remove(name);
    }
    let mut guest = match (configured, domain, tagged) {
        (Some(configured), domain, tagged) => configured_guest(configured, known, domain, running, tagged),
        (None, Some(domain), _) => libvirt_guest(name.clone(), domain, running, known),
        (None, None, Some(disks)) => tagged_guest(name.clone(), disks, known),
        (None, None, None) => {
            return Err(GuestError::Unknown {
                name: name.clone(),
                notes,
            });
        }
    };
    guest.notes.append(&mut notes);
    if guest.disks.is_empty() {
        let left_out = guest.left_out.iter().map(|disk| format!("{} {}", disk.name, disk.why));
        return Err(GuestError::NoDisks {
            name: guest.name,
            why: left_out.chain(guest.notes).collect(),
        });
    }
    Ok(guest)
}

/// The names, or none and a note; where there is no libvirt there is nothing to say.
fn listed(names: Result<Vec<String>, LibvirtError>, notes: &mut Vec<String>) -> Vec<String> {
    match names {
        Ok(names) => names,
        Err(LibvirtError::Program(ProgramError::Missing { .. })) => Vec::new(),
        Err(error) => {
            notes.push(format!("libvirt was not asked for guests: {error}"));
            Vec::new()
        }
    }
}

fn configured_guest(
    configured: &ConfiguredGuest,
    known: &Known,
    domain: Option<Domain>,
    running: Option<bool>,
    tagged: Option<Vec<TaggedDisk>>,
) -> FoundGuest {
    let name = configured.name.clone();
    let mut guest = match (&configured.disks, domain, tagged) {
        (Some(disks), domain, _) => of_paths(name, disks, domain, running),
        (None, Some(domain), _) => libvirt_guest(name, domain, running, known),
        (None, None, Some(disks)) => tagged_guest(name, disks, known),
        (None, None, None) => {
            let mut guest = of_paths(name, &[], None, None);
            guest.notes.push(
                "it has no disks: name them in the configuration; neither libvirt nor tags of volumes give it any"
                    .to_owned(),
            );
            guest
        }
    };
    guest.from = FoundBy::Configured;
    if let (Some(domain), None) = (&configured.domain, &guest.domain) {
        guest.notes.push(format!("libvirt has no domain {domain}"));
    }
    let skipped = |name: &DiskName| configured.skip_disks.contains(name);
    for disk in guest.disks.extract_if(.., |disk| skipped(&disk.name)) {
        guest.left_out.push(LeftOut {
            name: disk.name.into(),
            why: "is skipped, as the configuration says".to_owned(),
            is_meant: true,
        });
    }
    for disk in &mut guest.left_out {
        disk.is_meant |= configured
            .skip_disks
            .iter()
            .any(|skipped| skipped.as_str() == disk.name);
    }
    for skipped in &configured.skip_disks {
        if !guest.left_out.iter().any(|disk| disk.name == skipped.as_str()) {
            guest.notes.push(format!("it has no disk {skipped} to skip"));
        }
    }
    if let Some(speed) = configured.device_bytes_per_sec {
        for disk in &mut guest.disks {
            disk.speed = Some((speed, FoundBy::Configured));
        }
    }
    guest
}

/// A guest whose disks the configuration names.
fn of_paths(
    name: GuestName,
    disks: &[(DiskName, PathBuf)],
    domain: Option<Domain>,
    running: Option<bool>,
) -> FoundGuest {
    let mut guest = FoundGuest {
        name,
        from: FoundBy::Configured,
        disks: Vec::new(),
        left_out: Vec::new(),
        domain,
        running,
        notes: Vec::new(),
    };
    for (name, path) in disks {
        let size_bytes = match size_of(path) {
            Ok(size_bytes) => Some(size_bytes),
            Err(what) => {
                guest.notes.push(format!("disk {name}: {} {what}", path.display()));
                None
            }
        };
        guest.disks.push(FoundDisk {
            name: name.clone(),
            path: path.clone(),
            size_bytes,
            speed: guest.domain.as_ref().and_then(|domain| allocated(domain, name, path)),
        });
    }
    if let Some(domain) = &guest.domain {
        let is_named = |target: &str, path: &Path| {
            let is_it = |disk: &FoundDisk| disk.name.as_str() == target || disk.path == path;
            guest.disks.iter().any(is_it)
        };
        for disk in &domain.disks {
            if let Medium::Raw(path) = &disk.medium
                && !is_named(&disk.target, path)
            {
                guest.left_out.push(LeftOut {
                    name: disk.target.clone(),
                    why: "is known to libvirt, and not one of the disks that the configuration names".to_owned(),
                    is_meant: disk.read_only,
                });
            }
        }
    }
    guest
}

fn allocated(domain: &Domain, name: &DiskName, path: &Path) -> Option<(u64, FoundBy)> {
    let by_path = |disk: &&DomainDisk| matches!(&disk.medium, Medium::Raw(at) if at == path);
    let by_name = |disk: &&DomainDisk| disk.target == name.as_str();
    let disk = domain.disks.iter().find(by_path);
    let disk = disk.or_else(|| domain.disks.iter().find(by_name))?;
    disk.read_bytes_per_sec.map(|speed| (speed, FoundBy::Libvirt))
}

fn libvirt_guest(name: GuestName, domain: Domain, running: Option<bool>, known: &Known) -> FoundGuest {
    let (mut disks, mut left_out, mut notes) = (Vec::new(), Vec::<LeftOut>::new(), Vec::new());
    for disk in &domain.disks {
        let path = match &disk.medium {
            Medium::Raw(path) => path,
            Medium::Other(why) => {
                left_out.push(LeftOut {
                    name: disk.target.clone(),
                    why: why.clone(),
                    is_meant: disk.is_drive,
                });
                continue;
            }
        };
        let name = match DiskName::new(disk.target.as_str()) {
            Ok(name) => name,
            Err(error) => {
                left_out.push(LeftOut {
                    name: disk.target.clone(),
                    why: format!("has a name that can't be used: {error}"),
                    is_meant: false,
                });
                continue;
            }
        };
        if disks.iter().any(|disk: &FoundDisk| disk.name == name) {
            left_out.push(LeftOut {
                name: disk.target.clone(),
                why: "is the second disk of this name".to_owned(),
                is_meant: false,
            });
            continue;
        }
        let size_bytes = match size_of(path) {
            Ok(size_bytes) => Some(size_bytes),
            Err(what) => {
                notes.push(format!("disk {name}: {} {what}", path.display()));
                None
            }
        };
        let speed = disk.read_bytes_per_sec.map(|speed| (speed, FoundBy::Libvirt));
        let configured = known.device_bytes_per_sec.map(|speed| (speed, FoundBy::Configured));
        disks.push(FoundDisk {
            name,
            path: path.clone(),
            size_bytes,
            speed: configured.or(speed),
        });
    }
    FoundGuest {
        name,
        from: FoundBy::Libvirt,
        disks,
        left_out,
        domain: Some(domain),
        running,
        notes,
    }
}

fn tagged_guest(name: GuestName, disks: Vec<TaggedDisk>, known: &Known) -> FoundGuest {
    let mut guest = FoundGuest {
        name,
        from: FoundBy::Tags,
        disks: Vec::new(),
        left_out: Vec::new(),
        domain: None,
        running: None,
        notes: Vec::new(),
    };
    for disk in disks {
        if disk.volumes.len() > 1 {
            // Which one is meant can't be known, and a backup of the wrong one would look like a good one.
            guest.left_out.push(LeftOut {
                name: disk.name.into(),
                why: format!(
                    "is what several volumes are tagged as: {}; take the tag from all but one with `lvchange --deltag`",
                    disk.volumes
                        .iter()
                        .map(|volume| volume.full_name.as_str())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                is_meant: false,
            });
        } else if let Some(volume) = disk.volumes.into_iter().next() {
            if !volume.path.exists() {
                guest.notes.push(format!(
                    "disk {}: {} does not exist; `lvchange --activate y {}` makes it",
                    disk.name,
                    volume.path.display(),
                    volume.full_name
                ));
            }
            guest.disks.push(FoundDisk {
                name: disk.name,
                path: volume.path,
                size_bytes: volume.size_bytes,
                speed: known.device_bytes_per_sec.map(|speed| (speed, FoundBy::Configured)),
            });
        }
    }
    guest
}

/// The size of a disk, or what is wrong with it.
pub fn size_of(path: &Path) -> Result<u64, String> {
    // Before opening: to open a pipe could wait for ever.
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("can't be looked at: {error}"),
    })?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(metadata.len());
    }
    if !kind.is_block_device() {
        return Err("is neither a block device nor a file".to_owned());
    }
    let size_bytes = File::open(path).and_then(|device| sys::device_size_bytes(&device));
    size_bytes.map_err(|error| format!("can't be opened: {error}"))
}

#[cfg(test)]
mod tests;
