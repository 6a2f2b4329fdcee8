//! The libvirt domain of a restored guest: the XML that was kept with its backup, rewritten for the new volumes.
//!
//! Trusts nothing it reads: the repository may come from elsewhere, so the path that the XML names for UEFI variables is
//! refused unless it looks like one.

use std::path::{Path, PathBuf};

use vbk_repo::ErrorKind;
use vbk_repo::backup::Backup;
use vbk_repo::name::GuestName;

use crate::guest::files::CONFIG_NAME;
use crate::guest::volumes::VolumesPlan;
use crate::host::libvirt::define::{DefineError, define, is_defined};
use crate::host::libvirt::rename::{Identity, RenameError, RenamePlan, identity, mac_like, rewrite, unplaced, uuid_of};
use crate::host::program::Programs;
use crate::host::run::{RunError, random_bytes};

/// Endings of libvirt's files of UEFI variables.
const NVRAM_ENDINGS: [&str; 4] = [".fd", ".bin", ".img", ".qcow2"];

/// The files of a backup that describe its domain.
#[derive(Debug, Clone)]
pub struct StoredDomain {
    /// The libvirt XML.
    pub xml: Vec<u8>,
    /// The UEFI variables, if they were kept.
    pub nvram: Option<Vec<u8>>,
}

/// A domain for restored disks.
#[derive(Debug, Clone)]
pub struct RestoredDomain {
    /// Its name.
    pub name: String,
    /// Its XML, with the paths of the new volumes.
    pub xml: String,
    /// Path and content of its UEFI variables.
    pub nvram: Option<(PathBuf, Vec<u8>)>,
    /// Restored disks that the domain does not have, a sentence each.
    pub unattached: Vec<String>,
    /// Disks of the domain that are not restored, a sentence each.
    pub not_restored: Vec<String>,
}

/// Reasons why there is no domain, or why it can't be defined.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The stored file is not text.
    #[error("the stored {CONFIG_NAME} is not UTF-8")]
    NotUtf8,
    /// The stored XML can't be rewritten.
    #[error(transparent)]
    Rename(#[from] RenameError),
    /// There are no random numbers for a new UUID or MAC address.
    #[error(transparent)]
    Random(#[from] RunError),
    /// libvirt could not be asked.
    #[error(transparent)]
    Define(#[from] DefineError),
    /// The backup has no domain.
    #[error("no {CONFIG_NAME} is kept with {0}, so there is no domain to define; leave --define out")]
    NotKept(String),
    /// The domain would start with an old disk in the place of a restored one.
    #[error("{0}; leave --define out, write it into the XML that is printed, and define that by hand")]
    Unattached(String),
    /// libvirt has a domain of this name.
    #[error(
        "libvirt has a domain {0} already; restore with --as another name, or `virsh undefine --keep-nvram {0}` first if \
         it is lost"
    )]
    Defined(String),
    /// The path of the UEFI variables may be that of another program's file.
    #[error(
        "the stored domain keeps its UEFI variables in {}, whose name is not that of such a file ({}); leave --define out \
         and do that by hand", .0.display(), NVRAM_ENDINGS.join(", ")
    )]
    NvramName(PathBuf),
    /// There are UEFI variables at the path already.
    #[error("{0} exists; move it away, or restore with --as another name")]
    NvramExists(PathBuf),
    /// The directory for the UEFI variables is missing.
    #[error("the directory for the UEFI variables, {0}, does not exist; create it first")]
    NvramDirectory(PathBuf),
}

impl DomainError {
    /// Returns whether the domain can't be defined as it was asked for, although every part of the work succeeded.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::Rename(_) | Self::Random(_) | Self::Define(_))
    }

    /// Returns what the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Rename(error) => error.kind(),
            Self::Random(error) => error.kind(),
            Self::Define(error) => error.kind(),
            Self::NotUtf8
            | Self::NotKept(_)
            | Self::Unattached(_)
            | Self::Defined(_)
            | Self::NvramName(_)
            | Self::NvramExists(_)
            | Self::NvramDirectory(_) => ErrorKind::Invalid,
        }
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, DomainError>;

impl RestoredDomain {
    /// Rewrites the domain of `backup` for the guest `guest` on `volumes`, which are in the order of the backup's disks.
    /// Under another name it becomes a second server, with a new UUID and new MAC addresses.
    pub fn new(stored: StoredDomain, backup: &Backup, guest: &GuestName, volumes: &VolumesPlan) -> Result<Self> {
        let xml = String::from_utf8(stored.xml).map_err(|_| DomainError::NotUtf8)?;
        let was = identity(&xml)?;
        let plan = rename_plan(&was, backup, guest, volumes)?;
        let unplaced = unplaced(&xml, &plan)?;
        let targets: Vec<_> = was.disks.iter().map(|(_, target)| target.as_str()).collect();
        let targets = targets.join(", ");
        let unattached = paths_of(backup, volumes)
            .filter(|(_, path)| unplaced.new.contains(path))
            .map(|(image, path)| {
                format!(
                    "disk {} of the backup ({}), new at {}, is none of the disks of the stored domain ({targets})",
                    image.disk,
                    image.source,
                    path.display()
                )
            })
            .collect();
        let not_restored = unplaced
            .kept
            .iter()
            .map(|(target, old)| format!("disk {target} of the domain is not restored, and stays {old}"))
            .collect();
        let nvram = plan.nvram.clone().or(was.nvram);
        Ok(Self {
            xml: rewrite(&xml, &plan)?,
            name: plan.name,
            nvram: nvram.zip(stored.nvram),
            unattached,
            not_restored,
        })
    }

    /// Checks whether libvirt can get the domain once its disks exist. Changes nothing.
    pub fn check_define(&self, programs: &Programs) -> Result<()> {
        if !self.unattached.is_empty() {
            return Err(DomainError::Unattached(self.unattached.join("; ")));
        }
        if is_defined(programs, &self.name)? {
            return Err(DomainError::Defined(self.name.clone()));
        }
        let Some((path, _)) = &self.nvram else {
            return Ok(());
        };
        // A repository may come from elsewhere, and what root writes under a name like authorized_keys counts.
        if !is_nvram_name(path) {
            return Err(DomainError::NvramName(path.clone()));
        }
        if path.exists() {
            return Err(DomainError::NvramExists(path.clone()));
        }
        if !path.parent().is_some_and(Path::is_dir) {
            return Err(DomainError::NvramDirectory(path.clone()));
        }
        Ok(())
    }

    /// Defines the domain in libvirt, without starting it. `scratch` is a new file, which is removed again.
    pub fn define(&self, programs: &Programs, scratch: &Path) -> Result<()> {
        let nvram = self.nvram.as_ref().map(|(path, bytes)| (path.as_path(), &bytes[..]));
        Ok(define(programs, &self.xml, nvram, scratch)?)
    }
}

/// Returns the changes to the domain.
fn rename_plan(was: &Identity, backup: &Backup, guest: &GuestName, volumes: &VolumesPlan) -> Result<RenamePlan> {
    let mut plan = RenamePlan {
        name: was.name.clone(),
        ..RenamePlan::default()
    };
    if *guest != backup.guest {
        guest.as_str().clone_into(&mut plan.name);
        plan.uuid = Some(uuid_of(random_bytes()?));
        for mac in &was.macs {
            plan.macs.push(mac_like(mac, random_bytes()?));
        }
        let nvram = was.nvram.as_ref();
        plan.nvram = nvram.map(|path| path.with_file_name(format!("{guest}_VARS.fd")));
    }
    for (image, path) in paths_of(backup, volumes) {
        let is_known = |(source, _): &(Option<String>, String)| source.as_deref() == Some(image.source.as_str());
        // A disk that goes by another name in the backup than in the domain is known by its path alone.
        let key = if was.disks.iter().any(is_known) {
            &image.source
        } else {
            image.disk.as_str()
        };
        plan.disks.insert(key.to_owned(), path);
    }
    Ok(plan)
}

/// Returns the disks of a backup with the paths of their new volumes.
fn paths_of<'a>(
    backup: &'a Backup,
    volumes: &'a VolumesPlan,
) -> impl Iterator<Item = (&'a vbk_repo::backup::Image, PathBuf)> {
    let paths = volumes.volumes.iter().map(|volume| volumes.path_of(volume));
    backup.images.iter().zip(paths)
}

/// Returns whether a path may be that of UEFI variables, and is not one that a program of the host reads as its own.
fn is_nvram_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let ends = |name: &str| NVRAM_ENDINGS.iter().any(|ending| name.ends_with(ending));
    path.is_absolute() && name.is_some_and(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nvram_path_must_have_the_name_of_a_variable_file() {
        for (path, is_good) in [
            ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", true),
            ("/srv/web1/vars.4m.qcow2", true),
            ("/root/.ssh/authorized_keys", false),
            ("/etc/cron.d/web1", false),
            ("/etc/systemd/system/x.service", false),
            ("web1_VARS.fd", false),
            ("/", false),
        ] {
            assert_eq!(is_nvram_name(Path::new(path)), is_good, "{path}");
        }
    }
}
