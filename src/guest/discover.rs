//! The guests of this host and their disks: those that the configuration names, the domains of libvirt, and logical
//! volumes with a tag `vbk_guest=GUEST/DISK`. What can't be backed up is named with the reason and never left out in
//! silence.
//!
//! A guest of one name is one guest: what the configuration says goes before libvirt, and libvirt before tags. A guest
//! whose configuration names no disks has those that libvirt or, where that does not know it, tags give it.

mod make;
mod tags;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::name::{DiskName, GuestName};

use crate::host::libvirt::{Domain, Libvirt, LibvirtError, Medium};
use crate::host::program::{ProgramError, Programs};
use crate::sys;
use make::{configured_guest, libvirt_guest, settle, tagged_guest};
pub use tags::PREFIX as GUEST_TAG;
use tags::Tags;

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
    let names = listed(libvirt.names(), &mut notes);
    let answers = names.is_some();
    let names = names.unwrap_or_default();
    let running = match names.is_empty() {
        true => Some(Vec::new()),
        false => running(libvirt, &mut notes),
    };
    let mut tags = Tags::read(programs);
    notes.append(&mut tags.notes);
    let mut domains = BTreeMap::new();
    for name in names {
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
    // Those that name a domain come first: it is not that of a guest which only has the same name.
    let (naming, others): (Vec<_>, Vec<_>) = known.guests.iter().partition(|guest| guest.domain.is_some());
    for configured in naming.into_iter().chain(others) {
        let domain = domains.remove(configured.domain.as_deref().unwrap_or(configured.name.as_str()));
        let is_running = domain.as_ref().and_then(is_running);
        let tagged = tags.guests.remove(&configured.name);
        let mut guest = configured_guest(configured, known, domain, is_running, tagged);
        if answers {
            check_domain(&mut guest, configured);
        }
        look_at_running(&mut guest, Some(configured), libvirt);
        settle(&mut guest, configured);
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
                let mut guest = libvirt_guest(name.clone(), domain, is_running, known);
                look_at_running(&mut guest, None, libvirt);
                guests.insert(name, guest);
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
    let names = listed(libvirt.names(), &mut notes);
    let is_listed = names.iter().flatten().any(|listed| listed == wanted);
    // The configuration may give this domain another name.
    let domain = match is_listed && !known.guests.iter().any(is_taken) {
        true => libvirt
            .domain(wanted)
            .map_err(|error| notes.push(format!("domain {wanted}: {error}")))
            .ok(),
        false => None,
    };
    let running = domain.as_ref().and_then(|domain| {
        let running = running(libvirt, &mut notes)?;
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
    if let (Some(configured), true) = (configured, names.is_some()) {
        check_domain(&mut guest, configured);
    }
    look_at_running(&mut guest, configured, libvirt);
    if let Some(configured) = configured {
        settle(&mut guest, configured);
    }
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
fn listed(names: Result<Vec<String>, LibvirtError>, notes: &mut Vec<String>) -> Option<Vec<String>> {
    match names {
        Ok(names) => Some(names),
        Err(LibvirtError::Program(ProgramError::Missing { .. })) => None,
        Err(error) => {
            notes.push(format!("libvirt was not asked for guests: {error}"));
            None
        }
    }
}

/// The names of the domains that run, or none and a note.
fn running(libvirt: Libvirt<'_>, notes: &mut Vec<String>) -> Option<Vec<String>> {
    let running = libvirt.running();
    let failed = |error| {
        notes.push(format!(
            "libvirt does not say which guests run, and with which disks: {error}"
        ))
    };
    running.map_err(failed).ok()
}

/// Notes a domain that the configuration names and libvirt, which answers, does not know.
fn check_domain(guest: &mut FoundGuest, configured: &ConfiguredGuest) {
    if let (Some(domain), None) = (&configured.domain, &guest.domain) {
        guest.notes.push(format!("libvirt has no domain {domain}"));
    }
}

/// Compares a guest with how it runs. Of disks that libvirt's configuration names, one that was moved is read where it is now,
/// and one that became something else is left out: what is in its old place is old. Disks that the configuration of vbk names
/// stay, with a note. A disk that was attached meanwhile is left out.
fn look_at_running(guest: &mut FoundGuest, configured: Option<&ConfiguredGuest>, libvirt: Libvirt<'_>) {
    let (Some(true), Some(domain)) = (guest.running, &guest.domain) else {
        return;
    };
    let now = match libvirt.running_domain(domain) {
        Ok(now) => now,
        Err(error) => {
            guest.notes.push(format!(
                "whether disks were attached or moved while it runs is not known: {error}"
            ));
            return;
        }
    };
    let is_named = configured.is_some_and(|guest| guest.disks.is_some());
    for disk in now.disks {
        let was = domain.disks.iter().find(|was| was.target == disk.target);
        let is_left_out = guest.left_out.iter().any(|left_out| left_out.name == disk.target);
        let path = disk.medium.path();
        let is_known = |path: &Path| guest.disks.iter().any(|known| is_same(&known.path, path));
        if disk.is_drive
            || is_left_out
            || was.is_some_and(|was| was.medium == disk.medium)
            || path.is_some_and(is_known)
        {
            continue;
        }
        let was = was.and_then(|was| was.medium.path());
        let by_path = |known: &FoundDisk| was.is_some_and(|was| is_same(&known.path, was));
        let found = guest.disks.iter().position(by_path);
        let found = found.or_else(|| guest.disks.iter().position(|known| known.name.as_str() == disk.target));
        let known = found.map(|at| (at, guest.disks[at].path.display().to_string()));
        let mut left_out = |why| {
            guest.left_out.push(LeftOut {
                name: disk.target.clone(),
                why,
                is_meant: disk.read_only,
            });
        };
        match (known, &disk.medium) {
            (None, Medium::Raw(path)) => left_out(format!(
                "was attached while it runs ({}) and is not in its configuration; `virsh attach-disk --config` makes it stay",
                path.display()
            )),
            (None, Medium::Other { why, .. }) => left_out(format!("was attached while it runs, and {why}")),
            (Some((_, known)), medium) if is_named => {
                let now = match medium {
                    Medium::Raw(path) => format!("is at {}", path.display()),
                    Medium::Other { why, .. } => why.clone(),
                };
                guest.notes.push(format!(
                    "while it runs, disk {} {now}; {known}, which the configuration names, is old, and backed up all the same",
                    disk.target
                ));
            }
            (Some((at, known)), Medium::Raw(path)) => {
                guest.notes.push(format!(
                    "disk {} is at {} while it runs, and at {known} in its configuration: it is read where it is now",
                    disk.target,
                    path.display()
                ));
                let known = &mut guest.disks[at];
                known.size_bytes = size_of(path).ok();
                known.path.clone_from(path);
            }
            (Some((at, known)), Medium::Other { why, .. }) => {
                left_out(format!(
                    "{why}; so it runs now, and {known}, which its configuration names, is old; if it is a snapshot of libvirt, \
                     `virsh blockcommit {} {} --active --pivot` ends it",
                    domain.name, disk.target
                ));
                guest.disks.remove(at);
            }
        }
    }
}

/// Whether two paths are one disk.
fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some(match found.file_type().is_block_device() {
            true => (0, found.rdev()),
            false => (found.dev(), found.ino()),
        })
    };
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
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
