//! Makes a guest from the data of one source.

use std::path::{Path, PathBuf};

use vbk_repo::name::{DiskName, GuestName};

use crate::guest::discover::tags::TaggedDisk;
use crate::guest::discover::{ConfiguredGuest, FoundBy, FoundDisk, FoundGuest, Known, LeftOut, is_same};
use crate::host::device::size_of;
use crate::host::libvirt::{Domain, DomainDisk, Medium};

pub(super) fn configured_guest(
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
                "it has no disks, neither in libvirt nor by tags of volumes; name them in the configuration".to_owned(),
            );
            guest
        }
    };
    guest.from = FoundBy::Configured;
    guest
}

/// Applies the configuration's settings to a guest's disks, whatever their source.
pub(super) fn settle(guest: &mut FoundGuest, configured: &ConfiguredGuest) {
    let skipped = |name: &DiskName| configured.skip_disks.contains(name);
    for disk in guest.disks.extract_if(.., |disk| skipped(&disk.name)) {
        guest.left_out.push(LeftOut {
            name: disk.name.into(),
            why: "is skipped by the configuration".to_owned(),
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
}

/// Makes a guest whose disks the configuration names.
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
        let (size_bytes, unreadable) = examine(name, path);
        guest.notes.extend(unreadable.clone());
        guest.disks.push(FoundDisk {
            name: name.clone(),
            path: path.clone(),
            size_bytes,
            unreadable,
            speed: guest.domain.as_ref().and_then(|domain| allocated(domain, name, path)),
        });
    }
    let domain = guest.domain.iter();
    for disk in domain.flat_map(|domain| &domain.disks) {
        let path = disk.medium.path();
        if path.is_some_and(|path| guest.disks.iter().any(|known| is_same(&known.path, path))) {
            continue;
        }
        let named = guest.disks.iter().find(|known| known.name.as_str() == disk.target);
        match (named, path) {
            // E.g. after `virsh blockcopy --pivot`.
            (Some(known), Some(path)) if !disk.is_drive => guest.notes.push(format!(
                "disk {} is at {} according to libvirt, but {} is backed up, which the configuration names; if the \
                 disk was moved, correct the configuration",
                known.name,
                path.display(),
                known.path.display()
            )),
            // Only the author of the configuration knows where it is.
            (Some(_), _) => {}
            (None, _) => guest.left_out.push(LeftOut {
                name: disk.target.clone(),
                why: match &disk.medium {
                    Medium::Raw(_) => "is in libvirt, but not among the disks that the configuration names".to_owned(),
                    Medium::Other { why, .. } => why.clone(),
                },
                is_meant: disk.read_only || disk.is_drive,
            }),
        }
    }
    guest
}

fn allocated(domain: &Domain, name: &DiskName, path: &Path) -> Option<(u64, FoundBy)> {
    let by_path = |disk: &&DomainDisk| disk.medium.path().is_some_and(|at| is_same(at, path));
    let by_name = |disk: &&DomainDisk| disk.target == name.as_str();
    let disk = domain.disks.iter().find(by_path);
    let disk = disk.or_else(|| domain.disks.iter().find(by_name))?;
    disk.read_bytes_per_sec.map(|speed| (speed, FoundBy::Libvirt))
}

pub(super) fn libvirt_guest(name: GuestName, domain: Domain, running: Option<bool>, known: &Known) -> FoundGuest {
    let (mut disks, mut left_out, mut notes) = (Vec::new(), Vec::<LeftOut>::new(), Vec::new());
    for disk in &domain.disks {
        let path = match &disk.medium {
            Medium::Raw(path) => path,
            Medium::Other { why, .. } => {
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
        let (size_bytes, unreadable) = examine(&name, path);
        notes.extend(unreadable.clone());
        let speed = disk.read_bytes_per_sec.map(|speed| (speed, FoundBy::Libvirt));
        let configured = known.device_bytes_per_sec.map(|speed| (speed, FoundBy::Configured));
        disks.push(FoundDisk {
            name,
            path: path.clone(),
            size_bytes,
            unreadable,
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

pub(super) fn tagged_guest(name: GuestName, disks: Vec<TaggedDisk>, known: &Known) -> FoundGuest {
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
            // The right one can't be known, and a backup of the wrong one would look like a good one.
            guest.left_out.push(LeftOut {
                name: disk.name.into(),
                why: format!(
                    "belongs to several volumes by their tags: {}; remove the tag from all but one with `lvchange \
                     --deltag`",
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
                    "disk {}: {} does not exist; `lvchange --activate y {}` activates it",
                    disk.name,
                    volume.path.display(),
                    volume.full_name
                ));
            }
            guest.disks.push(FoundDisk {
                name: disk.name,
                path: volume.path,
                size_bytes: volume.size_bytes,
                unreadable: None,
                speed: known.device_bytes_per_sec.map(|speed| (speed, FoundBy::Configured)),
            });
        }
    }
    guest
}

/// Returns the size of a disk, or the reason why it has none.
fn examine(name: &DiskName, path: &Path) -> (Option<u64>, Option<String>) {
    match size_of(path) {
        Ok(size_bytes) => (Some(size_bytes), None),
        Err(what) => (None, Some(format!("disk {name}: {} {what}", path.display()))),
    }
}
