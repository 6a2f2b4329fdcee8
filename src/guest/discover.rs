//! The guests of this host and their disks: guests of the configuration, domains of libvirt, and logical volumes with a
//! tag `vbk_guest=GUEST/DISK`. Whatever can't be backed up is reported with the reason, never left out silently.
//!
//! One name is one guest: the configuration takes precedence over libvirt, and libvirt over tags. If the configuration
//! names no disks for a guest, they come from libvirt, or from tags if libvirt does not have the guest.

mod make;
mod tags;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::name::{DiskName, GuestName};

use crate::host::device::size_of;
use crate::host::libvirt::{Domain, DomainDisk, Libvirt, LibvirtError, Medium};
use crate::host::program::{ProgramError, Programs};
use make::{configured_guest, libvirt_guest, settle, tagged_guest};
pub(crate) use tags::PREFIX as GUEST_TAG;
use tags::Tags;

/// The configuration's data about guests.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Guests of the configuration.
    pub guests: Vec<ConfiguredGuest>,
    /// Speed allocated to disks of other guests, in bytes per second.
    pub device_bytes_per_sec: Option<u64>,
}

/// The configuration's data about one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredGuest {
    /// Name of the guest.
    pub name: GuestName,
    /// Disks, if the configuration names them.
    pub disks: Option<Vec<(DiskName, PathBuf)>>,
    /// Disks that are not to be backed up.
    pub skip_disks: Vec<DiskName>,
    /// Name of its libvirt domain, if that differs.
    pub domain: Option<String>,
    /// Speed allocated to each of its disks, in bytes per second.
    pub device_bytes_per_sec: Option<u64>,
}

/// Source of the information that a guest exists, or about its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The configuration.
    #[serde(rename = "configuration")]
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
    /// Name.
    pub name: GuestName,
    /// Source that lists it.
    pub from: FoundBy,
    /// The disks to back up.
    pub disks: Vec<FoundDisk>,
    /// Disks that are not backed up.
    pub left_out: Vec<LeftOut>,
    /// Its libvirt domain, if this host has libvirt and libvirt has the domain.
    pub domain: Option<Domain>,
    /// True if libvirt reports it as running; `None` without an answer from libvirt.
    pub running: Option<bool>,
    /// Notes for the administrator, one sentence each.
    pub notes: Vec<String>,
}

/// A disk that can be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Name.
    pub name: DiskName,
    /// Path it is read from.
    pub path: PathBuf,
    /// Size; `None` if it can't be determined, e.g. of a disk that does not exist.
    pub size_bytes: Option<u64>,
    /// Reason why it can't be opened, which is one of the guest's notes too.
    pub unreadable: Option<String>,
    /// Speed allocated to it, in bytes per second, and the source of that number.
    pub speed: Option<(u64, FoundBy)>,
}

/// A disk that is not backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Name; not always a valid disk name.
    pub name: String,
    /// Reason, e.g. `is a qcow2 image; only raw ones can be backed up`.
    pub why: String,
    /// True if the administrator asked for it, or if the disk holds no data of the guest's own.
    pub is_meant: bool,
}

/// Result of a discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The guests, by name.
    pub guests: Vec<FoundGuest>,
    /// Failures of the discovery, one sentence each.
    pub notes: Vec<String>,
}

/// A guest can't be backed up by its name.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No source has the guest.
    #[error(
        "no guest {name} is known on this host{}; name its disks, or give it a section [guest.{name}] in the \
         configuration, or give its logical volumes tags as in `lvchange --addtag vbk_guest={name}/vda VG/LV`",
        also(.notes)
    )]
    Unknown {
        /// The name.
        name: GuestName,
        /// Failures of the sources.
        notes: Vec<String>,
    },
    /// The guest has no disk that can be backed up.
    #[error("guest {name} has no disk that can be backed up{}", also(.why))]
    NoDisks {
        /// The name.
        name: GuestName,
        /// Reason for each disk.
        why: Vec<String>,
    },
}

impl GuestError {
    /// Returns the kind of the error, by which a caller decides what to do.
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

/// Finds all guests. Failures go into the notes: a source that does not answer hides no guest of the others.
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
    let mut domains = domains(libvirt, names, &mut notes);
    let is_running = |domain: &Domain| running.as_ref().map(|running| running.contains(&domain.name));
    let mut guests = BTreeMap::new();
    // Guests that name a domain come first: that domain does not belong to a guest which only has the same name.
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
                "domain {name:?} is left out: {error}; a section [guest.NAME] with domain = {name:?} in the \
                 configuration gives it a name"
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

/// Reads the configurations of domains by name. One that can't be read is left out, with a note.
fn domains(libvirt: Libvirt<'_>, names: Vec<String>, notes: &mut Vec<String>) -> BTreeMap<String, Domain> {
    let mut domains = BTreeMap::new();
    for name in names {
        match libvirt.domain(&name) {
            Ok(domain) => {
                domains.insert(name, domain);
            }
            // It disappeared in the meantime.
            Err(LibvirtError::NoSuchDomain(_)) => {}
            Err(error) => {
                notes.push(format!("domain {name} is left out: {error}"));
                if matches!(error, LibvirtError::Program(ProgramError::TimedOut { .. })) {
                    // Every further query would take as long.
                    notes.push("libvirt does not answer; the rest of its domains are left out".to_owned());
                    break;
                }
            }
        }
    }
    domains
}

/// Finds one guest without querying any other.
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
    // The configuration may give this domain to another guest.
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

/// Returns the names, or none and a note. A host without libvirt gives no note.
fn listed(names: Result<Vec<String>, LibvirtError>, notes: &mut Vec<String>) -> Option<Vec<String>> {
    match names {
        Ok(names) => Some(names),
        Err(LibvirtError::Program(ProgramError::Missing { .. })) => None,
        Err(error) => {
            notes.push(format!("can't list libvirt's guests: {error}"));
            None
        }
    }
}

/// Returns the names of the running domains, or none and a note.
fn running(libvirt: Libvirt<'_>, notes: &mut Vec<String>) -> Option<Vec<String>> {
    let running = libvirt.running();
    let failed = |error| notes.push(format!("can't tell which guests run, and with which disks: {error}"));
    running.map_err(failed).ok()
}

/// Notes a domain that the configuration names and libvirt does not have.
fn check_domain(guest: &mut FoundGuest, configured: &ConfiguredGuest) {
    if let (Some(domain), None) = (&configured.domain, &guest.domain) {
        guest.notes.push(format!("libvirt has no domain {domain}"));
    }
}

/// Compares a guest's persistent configuration with its running domain. Of the disks from libvirt's configuration, one
/// that was moved is read from its present path, and one that is not raw any more is left out, because the data at its
/// configured path is stale. Disks from vbk's configuration stay, with a note. A disk that was attached in the meantime
/// is left out.
fn look_at_running(guest: &mut FoundGuest, configured: Option<&ConfiguredGuest>, libvirt: Libvirt<'_>) {
    let (Some(true), Some(domain)) = (guest.running, &guest.domain) else {
        return;
    };
    let now = match libvirt.running_domain(domain) {
        Ok(now) => now,
        Err(error) => {
            guest.notes.push(format!(
                "can't tell whether disks were attached or moved since it was started: {error}"
            ));
            return;
        }
    };
    let is_named = configured.is_some_and(|guest| guest.disks.is_some());
    for disk in now.disks {
        let was = domain.disks.iter().find(|was| was.target == disk.target);
        let is_left_out = guest.left_out.iter().any(|left_out| left_out.name == disk.target);
        if disk.is_drive || is_left_out || is_as_found(&guest.disks, was, &disk) {
            continue;
        }
        let known = position_of(&guest.disks, was, &disk.target);
        let known = known.map(|at| (at, guest.disks[at].path.display().to_string()));
        let mut left_out = |why| {
            guest.left_out.push(LeftOut {
                name: disk.target.clone(),
                why,
                is_meant: disk.read_only,
            });
        };
        match (known, &disk.medium) {
            (None, Medium::Raw(path)) => left_out(format!(
                "was attached while the guest was running ({}) and is not in its configuration; `virsh attach-disk \
                 --config` makes that permanent",
                path.display()
            )),
            (None, Medium::Other { why, .. }) => {
                left_out(format!("was attached while the guest was running, and {why}"))
            }
            (Some((_, known)), medium) if is_named => {
                let now = match medium {
                    Medium::Raw(path) => format!("is at {}", path.display()),
                    Medium::Other { why, .. } => why.clone(),
                };
                guest.notes.push(format!(
                    "disk {} of the running guest {now}; {known}, which the configuration names, is stale but backed up \
                     all the same",
                    disk.target
                ));
            }
            (Some((at, known)), Medium::Raw(path)) => {
                guest.notes.push(format!(
                    "disk {} was moved while the guest was running: it is read from {}, not from {known} as configured",
                    disk.target,
                    path.display()
                ));
                let known = &mut guest.disks[at];
                known.size_bytes = size_of(path).ok();
                known.path.clone_from(path);
            }
            (Some((at, known)), Medium::Other { why, .. }) => {
                left_out(format!(
                    "{why}; the guest runs with it now, and {known}, which its configuration names, is stale; if it is a \
                     snapshot of libvirt, `virsh blockcommit {} {} --active --pivot` ends it",
                    domain.name, disk.target
                ));
                guest.disks.remove(at);
            }
        }
    }
}

/// Returns whether a disk of a running domain is as its configuration has it, or is the same as one that was found.
fn is_as_found(found: &[FoundDisk], configured: Option<&DomainDisk>, running: &DomainDisk) -> bool {
    let is_known = |path: &Path| found.iter().any(|known| is_same(&known.path, path));
    configured.is_some_and(|configured| configured.medium == running.medium)
        || running.medium.path().is_some_and(is_known)
}

/// Finds a disk of a domain among those that were found: by its configured path, or else by its name.
fn position_of(found: &[FoundDisk], configured: Option<&DomainDisk>, target: &str) -> Option<usize> {
    let path = configured.and_then(|configured| configured.medium.path());
    let by_path = |known: &FoundDisk| path.is_some_and(|path| is_same(&known.path, path));
    let found_by_path = found.iter().position(by_path);
    found_by_path.or_else(|| found.iter().position(|known| known.name.as_str() == target))
}

/// Tests that two paths are the same disk.
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

#[cfg(test)]
mod tests;
