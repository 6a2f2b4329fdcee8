//! The volumes on the disks of a guest, whatever lies between them and the disks: partitions, arrays, volume groups,
//! encryption.
//!
//! All disks are examined together, because a mirror, a volume group or a btrfs may span several of them. Nothing is
//! written, and nothing becomes known to the kernel: so names and UUIDs that this host has too do no harm.

mod find;
mod mirror;
mod trees;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::device::{Device, SharedDevice};
use crate::fs::FileTree;
use crate::luks::{self, Budget, Header, VolumeKey};
use crate::partition::PartitionKind;
use crate::probe::containers::MdMember;
use crate::probe::{Content, Probed};

pub use find::find;
pub use trees::trees;

/// A disk of a guest.
#[derive(Clone)]
pub struct Disk {
    /// Name in the backup: `vda`. It has no slash.
    pub name: String,
    /// Its content.
    pub device: SharedDevice,
}

impl Disk {
    /// Makes a disk that can't be opened. It keeps its position among the guest's disks, by which the guest names the
    /// following ones.
    pub fn unreadable(name: String, size_bytes: u64, reason: String) -> Self {
        let device = Arc::new(Unreadable { size_bytes, reason });
        Self { name, device }
    }
}

struct Unreadable {
    size_bytes: u64,
    reason: String,
}

impl Device for Unreadable {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other(self.reason.clone()))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// A passphrase, byte for byte: a newline at the end counts.
pub type Passphrase = Zeroizing<Vec<u8>>;

/// Asks a person for the passphrase of a volume, which is named for people; `None` leaves the volume closed.
pub type Ask = Box<dyn Fn(&str) -> Option<Passphrase> + Send + Sync>;

/// Most keys, and passphrases that opened nothing, that are remembered: each costs about 200 bytes.
const MAX_KEYS: usize = 4096;

/// Passphrases for encrypted volumes. Each is tried on each volume, once: what it gave is remembered, so that the next
/// backup of the same volume opens at once. Keys are cleared when this is dropped.
#[derive(Default)]
pub struct Secrets {
    passphrases: Mutex<Vec<Passphrase>>,
    ask: Option<Ask>,
    /// By the fingerprints of key slots and passphrase; `None` where the passphrase is another volume's.
    keys: Mutex<HashMap<Vec<u8>, Option<VolumeKey>>>,
}

impl Secrets {
    /// Holds passphrases that are known.
    pub fn new(passphrases: Vec<Passphrase>) -> Self {
        Self {
            passphrases: Mutex::new(passphrases),
            ..Self::default()
        }
    }

    /// Asks when an encrypted volume is found that no passphrase known so far opens.
    pub fn asking(ask: Ask) -> Self {
        Self {
            ask: Some(ask),
            ..Self::default()
        }
    }

    /// Tests whether a person can be asked.
    pub fn can_ask(&self) -> bool {
        self.ask.is_some()
    }

    /// Opens a volume with each passphrase until one fits, and asks for one if none does.
    pub(crate) fn open(
        &self,
        volume: &str,
        header: &Header,
        device: &SharedDevice,
        budget: &mut Budget,
    ) -> crate::Result<Option<SharedDevice>> {
        for passphrase in self.passphrases() {
            if let Some(key) = self.key(header, device, &passphrase, budget)? {
                return header.open(Arc::clone(device), &key).map(Some);
            }
        }
        let Some(ask) = &self.ask else {
            return Ok(None);
        };
        while let Some(passphrase) = ask(volume) {
            if let Some(key) = self.key(header, device, &passphrase, budget)? {
                self.passphrases.lock().push(passphrase);
                return header.open(Arc::clone(device), &key).map(Some);
            }
        }
        Ok(None)
    }

    fn key(
        &self,
        header: &Header,
        device: &SharedDevice,
        passphrase: &[u8],
        budget: &mut Budget,
    ) -> crate::Result<Option<VolumeKey>> {
        let fingerprint = header.fingerprint(&**device, passphrase);
        let known = || self.keys.lock().get(&fingerprint).cloned();
        if let Some(key) = known() {
            return Ok(key);
        }
        let _one_at_a_time = luks::derive_alone();
        // Another thread may just have opened the same volume of another backup.
        if let Some(key) = known() {
            return Ok(key);
        }
        let key = header.find_key(&**device, passphrase, budget)?;
        let mut keys = self.keys.lock();
        if keys.len() >= MAX_KEYS {
            keys.clear();
        }
        keys.insert(fingerprint, key.clone());
        Ok(key)
    }

    /// Returns the passphrases known so far, with those that were asked for.
    pub fn passphrases(&self) -> Vec<Passphrase> {
        self.passphrases.lock().clone()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passphrases", self.passphrases.lock().len())
    }
}

/// A volume that holds no other volume that could be opened: a partition, a disk without partitions, a logical volume,
/// the plain side of an encrypted volume.
pub struct Volume {
    /// Name of its image, without `.img`: `vda`, `vda.p1`, `vda.p1-raid`, `vda.p3-luks`, `vg0-root`. Unique in the guest.
    pub image: String,
    /// Name for people, unique in the guest: `p1`, `vda.p1`, `vg0-root`.
    pub name: String,
    /// Directory in a mount of the guest's files: `p1`, `vda/p1`, `vg0-root`; empty for the only disk, if it has no
    /// partitions.
    pub place: PathBuf,
    /// Numbers of the disks that hold it.
    pub disks: Vec<usize>,
    /// Its content.
    pub device: SharedDevice,
    /// Purpose of its partition.
    pub kind: Option<PartitionKind>,
    /// Kind of its content, or the reason why it can't be read or opened.
    pub probed: Result<Probed, String>,
    /// Membership in an array of Linux RAID. [`Self::device`] is the array's data, if this member has all of it.
    pub member: Option<MdMember>,
    /// Names by which the guest may call it: [`NamedTree::names`].
    pub names: Vec<String>,
}

impl Volume {
    /// Tests for a partition type that holds boot code without a file system: BIOS boot, PReP, and Microsoft's reserved
    /// one (UEFI 2.10, table 5.7).
    pub fn is_boot_code(&self) -> bool {
        const BOOT: [&[u8; 16]; 3] = [
            b"Hah!IdontNeedEFI",
            &[
                0x38, 0x2d, 0x1a, 0x9e, 0x12, 0xc6, 0x16, 0x43, 0xaa, 0x26, 0x8b, 0x49, 0x52, 0x1e, 0x5a, 0x8b,
            ],
            &[
                0x16, 0xe3, 0xc9, 0xe3, 0x5c, 0x0b, 0xb8, 0x4d, 0x81, 0x7d, 0xf9, 0x2d, 0xf0, 0x02, 0x15, 0xae,
            ],
        ];
        match self.kind {
            Some(PartitionKind::Gpt(kind)) => BOOT.contains(&&kind),
            Some(PartitionKind::Mbr(kind)) => kind == 0x41,
            None => false,
        }
    }

    /// Tests for a volume that may hold files of the user, or others that could not be opened.
    pub(crate) fn may_hold_files(&self) -> bool {
        match &self.probed {
            Ok(probed) if probed.content == Content::Unknown => !self.is_boot_code(),
            Ok(probed) => probed.content.may_hold_files(),
            Err(_) => true,
        }
    }
}

/// The volumes of a guest.
#[derive(Default)]
pub struct Volumes {
    /// All that hold no opened one.
    pub volumes: Vec<Volume>,
    /// Warnings about partition tables and volume groups, with the numbers of the disks.
    pub warnings: Vec<(Vec<usize>, String)>,
    /// Numbers of the disks whose partitions can't be read, with the reason.
    pub failed: Vec<(usize, io::Error)>,
    /// Every read succeeded. Otherwise a later search may find more, e.g. because the store was away.
    pub is_complete: bool,
}

/// The files of one volume.
#[derive(Clone)]
pub struct NamedTree {
    /// Name of the volume among those of the guest: `p1`, `vda.p1`, `vg0-root`. It has no slash.
    pub name: String,
    /// File system, for people: `ext4`, `XFS`.
    pub fs: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Names by which the guest's `/etc/fstab` may call the volume, besides those of [`FileTree::identity`]:
    /// `/dev/vg0/root`, `/dev/mapper/vg0-root`, `/dev/vda1`, `PARTUUID=…`.
    pub names: Vec<String>,
    /// Its files.
    pub tree: Arc<dyn FileTree>,
}

/// The file systems inside a backup.
#[derive(Clone, Default)]
pub struct Trees {
    /// Those that can be read.
    pub trees: Vec<NamedTree>,
    /// Names of volumes that can't be read, with the reason.
    pub left_out: Vec<(String, String)>,
    /// One of those may hold files of the user.
    pub is_incomplete: bool,
    /// Warnings about partition tables and volume groups.
    pub warnings: Vec<String>,
}
