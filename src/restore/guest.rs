//! Restores a whole guest: its disks onto new volumes, and its libvirt domain with their paths.
//!
//! [`GuestRestore::plan`] finds every foreseeable error before the first volume is made. [`RestorePlan::run`] makes the
//! volumes and writes them; if a disk fails, the volumes of this run are removed again. The domain is defined last,
//! when all disks are durable: a failure there leaves the restored disks as they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vbk_repo::backup::{Backup, Image};
use vbk_repo::name::GuestName;
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::store::StoreReader;

use super::{Damaged, Fill, Format, RestoreOptions, Restored, restore};
use crate::error::Result;
use crate::guest::domain::{DomainError, RestoredDomain, StoredDomain};
use crate::guest::files::{CONFIG_NAME, DISKS_NAME, DiskKind, Disks, NVRAM_NAME, volume_name_of};
use crate::guest::volumes::{NewVolume, Volumes, VolumesPlan, tags_of, volume_name};
use crate::host::program::Programs;
use crate::host::run::random_bytes;
use crate::observer::{Event, Observer};

/// A guest to restore, and the volume group for its disks.
pub struct GuestRestore<'a> {
    /// Store of the backup.
    pub store: Arc<dyn StoreReader>,
    /// The backup, with only the disks to be restored.
    pub backup: &'a Backup,
    /// Name of the restored guest; a name other than the backup's makes a second server.
    pub guest: &'a GuestName,
    /// The volume group.
    pub group: &'a str,
    /// A thin pool of the group, for thin volumes.
    pub pool: Option<&'a str>,
    /// Directory of the volume groups: `/dev`.
    pub devices: PathBuf,
    /// The domain must be defined afterwards.
    pub define: bool,
    /// Treatment of ranges that can't be read from the repository.
    pub damaged: Damaged,
    /// Number of threads.
    pub threads: usize,
    /// Programs of this host.
    pub programs: &'a Programs,
}

/// A restore that was checked and has not changed anything yet.
pub struct RestorePlan<'a> {
    restore: &'a GuestRestore<'a>,
    readers: Vec<ImageReader>,
    /// The volumes to make, in the order of the backup's disks.
    pub volumes: VolumesPlan,
    /// The domain, if one was stored and can be used.
    pub domain: Option<RestoredDomain>,
    /// Disks that were thin volumes become thick ones.
    pub becomes_thick: bool,
    /// Warnings: a sentence each.
    pub remarks: Vec<String>,
}

/// The disks of a restored guest.
#[derive(Debug)]
pub struct RestoredGuest {
    /// One result for each disk, in the backup's order.
    pub disks: Vec<Restored>,
}

impl<'a> GuestRestore<'a> {
    /// Reads the guest's description from the backup and decides which volumes to make. With `define`, a domain that
    /// libvirt would refuse is an error here, before anything is made; without it, a remark.
    pub fn plan(&'a self) -> Result<RestorePlan<'a>> {
        let resources = ReadResources::new(self.threads);
        let disks = self.described(&resources)?;
        let volumes = VolumesPlan {
            group: self.group.to_owned(),
            pool: self.pool.map(str::to_owned),
            volumes: self.new_volumes(disks.as_ref())?,
            tag_id: format!("{:016x}", u64::from_le_bytes(random_bytes()?)),
            devices: self.devices.clone(),
        };
        let mut remarks = Vec::new();
        let domain = match self.domain(&resources, &volumes) {
            Err(error) if !self.define => {
                remarks.push(format!("only the disks are restored, not the domain: {error}"));
                None
            }
            domain => domain?,
        };
        if self.define {
            let missing = || DomainError::NotKept(self.backup.spec());
            domain.as_ref().ok_or_else(missing)?.check_define(self.programs)?;
        }
        if let Some(domain) = &domain {
            remarks.extend(domain.unattached.iter().chain(&domain.not_restored).cloned());
        }
        let open = |image| ImageReader::open(Arc::clone(&self.store), Arc::clone(&resources), image);
        let readers = self.backup.images.iter().map(open);
        let was_thin = |disks: &Disks| disks.disks.iter().any(|disk| disk.kind == DiskKind::LvmThin);
        Ok(RestorePlan {
            restore: self,
            readers: readers.collect::<std::result::Result<_, _>>()?,
            volumes,
            domain,
            becomes_thick: self.pool.is_none() && disks.as_ref().is_some_and(was_thin),
            remarks,
        })
    }

    /// Returns a file that was stored with the backup.
    fn file(&self, resources: &Arc<ReadResources>, name: &str) -> Result<Option<Vec<u8>>> {
        let Ok(file) = self.backup.file(name) else {
            return Ok(None);
        };
        let reader = ImageReader::open(Arc::clone(&self.store), Arc::clone(resources), file)?;
        Ok(Some(reader.read_file(name)?))
    }

    /// Returns the description of the old disks, if a readable one exists.
    fn described(&self, resources: &Arc<ReadResources>) -> Result<Option<Disks>> {
        let bytes = self.file(resources, DISKS_NAME)?;
        Ok(bytes.and_then(|bytes| {
            let parsed = Disks::parse(&bytes);
            parsed
                .inspect_err(|error| tracing::warn!("new volumes are named after the paths of the disks: {error}"))
                .ok()
        }))
    }

    fn new_volumes(&self, disks: Option<&Disks>) -> Result<Vec<NewVolume>> {
        let (was, guest) = (self.backup.guest.as_str(), self.guest.as_str());
        let block_bytes = self.store.identity()?.block_size.into();
        let volume = |image: &Image| {
            let old = volume_name_of(image, disks);
            let described = disks.and_then(|disks| disks.of(&image.disk)?.volume.as_ref());
            Ok(NewVolume {
                name: volume_name(old.as_deref(), was, guest, image.disk.as_str())?,
                size_bytes: image.size_bytes,
                data_bytes: image.data_bytes,
                block_bytes,
                tags: described.map_or_else(Vec::new, |volume| tags_of(&volume.tags, was, guest)),
            })
        };
        self.backup.images.iter().map(volume).collect()
    }

    fn domain(&self, resources: &Arc<ReadResources>, volumes: &VolumesPlan) -> Result<Option<RestoredDomain>> {
        let Some(xml) = self.file(resources, CONFIG_NAME)? else {
            return Ok(None);
        };
        let stored = StoredDomain {
            xml,
            nvram: self.file(resources, NVRAM_NAME)?,
        };
        Ok(Some(RestoredDomain::new(stored, self.backup, self.guest, volumes)?))
    }
}

impl RestorePlan<'_> {
    /// Makes the volumes and restores all disks. On an error no volume of this run is left, unless a warning says so.
    pub fn run(&self, cancel: &AtomicBool, observer: &dyn Observer) -> Result<RestoredGuest> {
        let GuestRestore {
            backup,
            damaged,
            threads,
            programs,
            ..
        } = *self.restore;
        let disk = |(image, reader): (&Image, _)| DiskToWrite {
            name: image.disk.to_string(),
            label: format!("{}/{}", backup.spec(), image.disk),
            image: reader,
            data_bytes: image.data_bytes,
        };
        let disks: Vec<_> = backup.images.iter().zip(&self.readers).map(disk).collect();
        let options = RestoreOptions {
            label: String::new(),
            format: Format::Raw,
            changes: None,
            force: false,
            overwrite: false,
            fill: Fill::Device,
            damaged,
            threads,
        };
        let volumes = self.volumes.create(programs)?;
        let (volumes, restored) = write(volumes, &disks, &options, cancel, observer)?;
        if let Err(error) = volumes.keep() {
            observer.event(Event::Warning(&format!(
                "can't remove this run's tag from the restored volumes: {error}"
            )));
        }
        Ok(RestoredGuest { disks: restored })
    }

    /// Defines the domain in libvirt, without starting it. Does nothing if the guest has none. The XML is written to
    /// the directory `temporary`, and removed again.
    pub fn define(&self, temporary: &Path) -> Result<()> {
        let scratch = temporary.join(format!("vbk-{}.xml", self.volumes.tag_id));
        match &self.domain {
            Some(domain) => Ok(domain.define(self.restore.programs, &scratch)?),
            None => Ok(()),
        }
    }
}

/// An image to write onto one of the volumes.
struct DiskToWrite<'a> {
    /// Name of the disk.
    name: String,
    /// Backup and disk, for messages.
    label: String,
    /// The image.
    image: &'a ImageReader,
    /// Bytes of the image that are not zero.
    data_bytes: u64,
}

/// Writes the disks, one after the other, in the order of the volumes. Every byte of each volume is defined then, and
/// durable. Returns the results in the same order. On any failure the volumes of this run are removed again. Label and
/// fill of `options` are ignored: they follow from the disks and volumes.
fn write<'a>(
    volumes: Volumes<'a>,
    disks: &[DiskToWrite<'_>],
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(Volumes<'a>, Vec<Restored>)> {
    match write_all(&volumes, disks, options, cancel, observer) {
        Ok(restored) => Ok((volumes, restored)),
        Err(error) => {
            let left = volumes.left();
            if let Err(why) = volumes.remove() {
                observer.event(Event::Warning(&format!("{left}: {why}")));
            }
            Err(error)
        }
    }
}

fn write_all(
    volumes: &Volumes<'_>,
    disks: &[DiskToWrite<'_>],
    options: &RestoreOptions,
    cancel: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Vec<Restored>> {
    let plan = volumes.plan();
    let mut restored = Vec::new();
    for (disk, volume) in disks.iter().zip(&plan.volumes) {
        observer.event(Event::Disk {
            name: &disk.name,
            size_bytes: disk.image.size_bytes(),
        });
        let options = RestoreOptions {
            label: disk.label.clone(),
            format: Format::Raw,
            changes: None,
            fill: match volumes.read_zero() {
                true => Fill::Data,
                false => Fill::Device,
            },
            ..options.clone()
        };
        let path = plan.path_of(volume);
        let done = restore(disk.image, disk.data_bytes, &path, &options, cancel, observer)?;
        restored.push(done);
    }
    Ok(restored)
}

#[cfg(test)]
mod tests;
