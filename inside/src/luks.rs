//! The plain side of a LUKS volume, versions 1 and 2, in user space: no device mapper, no kernel key ring.
//!
//! Formats are those of the LUKS1 On-Disk Format Specification 1.2.3 and the LUKS2 On-Disk Format Specification 1.1.1;
//! ciphers are those of dm-crypt. A volume with integrity, with a detached header, or amid reencryption is refused by
//! name, and so is a header that asks for more work than a bound: a guest's administrator may have made it to attack.
//!
//! Keys are cleared when they are dropped, and no error or debug output holds one.

mod cipher;
mod key;
mod plain;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use zeroize::Zeroizing;

use crate::device::{Device, SharedDevice, read_array, read_inside};
use crate::error::{Error, Result};
pub(crate) use key::Budget;
use key::{Hash, Kdf, MAX_KEY_BYTES};
use plain::Plain;

/// Stripes of the anti-forensic splitter (`LUKS_STRIPES`); cryptsetup makes and takes no other number.
const STRIPES: u32 = 4000;
/// Lengths of a digest that cryptsetup checks: of LUKS1 or of a longer hash. A shorter one would fit any key.
const DIGEST_BYTES: std::ops::RangeInclusive<usize> = 20..=64;

/// The key of a volume.
pub(crate) type VolumeKey = Zeroizing<Vec<u8>>;

/// Waits until no other key of the process is being derived: each slot may take up to 4 GiB of memory.
pub(crate) fn derive_alone() -> MutexGuard<'static, ()> {
    static DERIVING: Mutex<()> = Mutex::new(());
    DERIVING.lock()
}

/// A reason for which a part of a header is not used.
#[derive(Debug, Clone)]
enum Refused {
    Damaged(String),
    Unsupported(String),
}

impl Refused {
    fn of(self, part: &str) -> Self {
        match self {
            Refused::Damaged(text) => Refused::Damaged(format!("{part}: {text}")),
            Refused::Unsupported(text) => Refused::Unsupported(format!("{part}: {text}")),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Damaged(text) => Error::damaged(text),
            Refused::Unsupported(text) => Error::unsupported(text),
        }
    }
}

/// The header of a LUKS volume. It tells the volume's names even where the volume itself can't be opened.
#[derive(Debug, Clone)]
pub struct Header {
    version: u8,
    uuid: String,
    label: Option<String>,
    segment: std::result::Result<Segment, Refused>,
    digest: std::result::Result<Digest, Refused>,
    /// Key slots in use, by their numbers.
    slots: Vec<(u32, std::result::Result<Slot, Refused>)>,
    remark: Option<String>,
}

/// The encrypted data.
#[derive(Debug, Clone)]
struct Segment {
    encryption: String,
    offset_bytes: u64,
    /// All up to the end of the device, if `None`.
    size_bytes: Option<u64>,
    sector_bytes: usize,
    /// Number of the first sector for the cipher.
    first: u64,
}

/// A digest by which the volume's key is known.
#[derive(Debug, Clone)]
struct Digest {
    kdf: Kdf,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

/// A copy of the volume's key, encrypted by a key that is derived from a passphrase.
#[derive(Debug, Clone)]
struct Slot {
    priority: u64,
    /// Length of the volume's key.
    key_bytes: usize,
    splitter: Hash,
    kdf: Kdf,
    salt: Vec<u8>,
    area: Area,
}

/// Encrypted stripes of a key slot.
#[derive(Debug, Clone)]
struct Area {
    encryption: String,
    /// Length of the key that encrypts the area.
    key_bytes: usize,
    offset_bytes: u64,
    size_bytes: u64,
}

/// Reads the header of a LUKS volume. Of the two copies of LUKS2, the valid and newer one counts.
pub fn header(device: &SharedDevice) -> Result<Header> {
    let device = &**device;
    // A start that can't be read may still have a second copy.
    let start: [u8; 8] = read_array(device, 0).ok().flatten().unwrap_or_default();
    if start.starts_with(v1::MAGIC_REENCRYPTING) {
        return Err(Error::unsupported("LUKS volume whose reencryption is not finished"));
    }
    if v1::version(&start) == Some(1) {
        let bytes = read_array(device, 0)?.ok_or_else(|| Error::damaged("LUKS header that passes the end"))?;
        return Ok(v1::parse(&bytes));
    }
    v2::read(device)
}

impl Header {
    /// Returns the version of the format: 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Returns the UUID by which `/etc/crypttab` finds the volume; empty if it is damaged.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Returns the label. LUKS1 has none.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Returns format and cipher, e.g. `LUKS2 aes-xts-plain64`.
    pub fn describe(&self) -> String {
        match &self.segment {
            Ok(segment) => format!("LUKS{} {}", self.version, printable(&segment.encryption)),
            Err(_) => format!("LUKS{}", self.version),
        }
    }

    /// Returns remarks for people: that the first header is damaged and its copy was used, or that the copy is.
    pub fn remarks(&self) -> Vec<String> {
        self.remark.iter().cloned().collect()
    }

    /// Returns an error if the volume can't be opened, whatever the passphrase.
    pub fn check(&self) -> Result<()> {
        self.segment.clone()?;
        self.digest.clone()?;
        if self.slots.is_empty() {
            return Err(Error::unsupported("LUKS volume without a key slot"));
        }
        Ok(())
    }

    /// Returns the plain side of the volume: readable, and writable if `device` is. `None` if the passphrase opens no
    /// key slot. All bytes of the passphrase count, also a line feed at its end.
    ///
    /// Tries the key slots by their priority; those that cryptsetup ignores come last. A slot may take seconds, and up to
    /// 4 GiB of memory; all slots together a quarter of an hour at worst. If no slot opens, and one of them could not be tried,
    /// the reason is the error: the passphrase may be right. Waits for other volumes that are being opened.
    pub fn unlock(&self, device: SharedDevice, passphrase: &[u8]) -> Result<Option<SharedDevice>> {
        let _one_at_a_time = derive_alone();
        let key = self.find_key(&*device, passphrase, &mut Budget::new())?;
        key.map(|key| self.open(device, &key)).transpose()
    }

    /// Returns the volume's key, if the passphrase is that of a slot. The caller holds [`derive_alone`].
    pub(crate) fn find_key(
        &self,
        device: &dyn Device,
        passphrase: &[u8],
        budget: &mut Budget,
    ) -> Result<Option<VolumeKey>> {
        self.check()?;
        let segment = self.segment.clone()?;
        if device.size_bytes() <= segment.offset_bytes {
            return Err(Error::damaged("LUKS volume that ends before its data"));
        }
        self.key(device, passphrase, budget)
    }

    /// Returns the plain side of the volume by its key.
    pub(crate) fn open(&self, device: SharedDevice, key: &VolumeKey) -> Result<SharedDevice> {
        self.segment.clone()?.open(device, key)
    }

    /// Returns a hash of all by which a passphrase gives a key: the header, and what the key slots hold, which another
    /// backup may have lost.
    pub(crate) fn fingerprint(&self, device: &dyn Device, passphrase: &[u8]) -> Vec<u8> {
        let header = format!("{self:?}");
        let lengths = [header.len(), passphrase.len()].map(|length| (length as u64).to_le_bytes());
        let slots = self.slots.iter().filter_map(|(_, slot)| slot.as_ref().ok());
        let materials: Vec<_> = slots.filter_map(|slot| slot.material(device).ok()).collect();
        let mut parts = vec![lengths.as_flattened(), header.as_bytes(), passphrase];
        parts.extend(materials.iter().map(|material| material.as_slice()));
        Hash::Sha256.digest(&parts).to_vec()
    }

    fn key(&self, device: &dyn Device, passphrase: &[u8], budget: &mut Budget) -> Result<Option<VolumeKey>> {
        let digest = self.digest.clone()?;
        let mut slots: Vec<_> = self.slots.iter().collect();
        slots.sort_by_key(|(number, slot)| {
            let priority = slot.as_ref().map_or(0, |slot| slot.priority);
            (std::cmp::Reverse(priority), *number)
        });
        let mut failed = None;
        for (number, slot) in slots {
            let part = format!("key slot {number}");
            let slot = slot.clone().map_err(|refused| refused.of(&part).into());
            match slot.and_then(|slot| slot.key(device, passphrase, &digest, budget, &part)) {
                Ok(Some(key)) => return Ok(Some(key)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// Opens a volume whatever its header is, with little work for a key, and returns its plain side.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(device: &SharedDevice) -> Option<SharedDevice> {
    let header = header(device).ok()?;
    let _ = (header.uuid(), header.label(), header.describe(), header.remarks());
    let mut budget = Budget::new();
    budget.limit(3000);
    let key = header
        .check()
        .and_then(|()| header.key(&**device, b"passphrase", &mut budget));
    let key = key.ok().flatten().unwrap_or_else(|| Zeroizing::new(vec![0; 64]));
    header.segment.ok()?.open(Arc::clone(device), &key).ok()
}

impl Segment {
    fn open(&self, device: SharedDevice, key: &[u8]) -> Result<SharedDevice> {
        let cipher = cipher::cipher(&self.encryption, key);
        let cipher = cipher.ok_or_else(|| unknown_cipher(&self.encryption, key.len()))?;
        Ok(Arc::new(Plain::new(
            device,
            self.offset_bytes,
            self.size_bytes.unwrap_or(u64::MAX),
            self.sector_bytes,
            self.first,
            cipher,
        )))
    }
}

fn unknown_cipher(name: &str, key_bytes: usize) -> Refused {
    Refused::Unsupported(format!("cipher {} with a key of {key_bytes} bytes", printable(name)))
}

impl Slot {
    /// Returns the volume's key, if the passphrase is that of this slot.
    fn key(
        &self,
        device: &dyn Device,
        passphrase: &[u8],
        digest: &Digest,
        budget: &mut Budget,
        part: &str,
    ) -> Result<Option<VolumeKey>> {
        let candidate = self.candidate(device, passphrase, budget);
        let Some(key) = candidate.map_err(|error| named(error, part))? else {
            return Ok(None);
        };
        let found = digest.is_of(&key, budget).map_err(|refused| refused.of(part))?;
        Ok(found.then_some(key))
    }

    /// Reads the encrypted stripes of the key.
    fn material(&self, device: &dyn Device) -> Result<Zeroizing<Vec<u8>>> {
        if !(1..=MAX_KEY_BYTES).contains(&self.key_bytes) {
            return Err(Error::damaged(format!("key of {} bytes", self.key_bytes)));
        }
        // Areas are encrypted in whole sectors.
        let length = (STRIPES as usize * self.key_bytes).next_multiple_of(cipher::SECTOR_BYTES);
        let mut material = Zeroizing::new(vec![0; length]);
        let area = &self.area;
        if (length as u64) > area.size_bytes || !read_inside(device, area.offset_bytes, &mut material)? {
            return Err(Error::damaged("area that passes the end"));
        }
        Ok(material)
    }

    /// Returns the key that the passphrase gives: the volume's, or garbage.
    fn candidate(&self, device: &dyn Device, passphrase: &[u8], budget: &mut Budget) -> Result<Option<VolumeKey>> {
        let area = &self.area;
        if !(1..=MAX_KEY_BYTES).contains(&area.key_bytes) {
            return Err(Error::damaged(format!("key of {} bytes", area.key_bytes)));
        }
        if !cipher::is_known(&area.encryption, area.key_bytes) {
            return Err(unknown_cipher(&area.encryption, area.key_bytes).into());
        }
        // Read before the work, so that a damaged area costs none.
        let mut material = self.material(device)?;
        let key = self.kdf.derive(passphrase, &self.salt, area.key_bytes, budget)?;
        let Some(cipher) = cipher::cipher(&area.encryption, &key) else {
            return Err(unknown_cipher(&area.encryption, area.key_bytes).into());
        };
        cipher.decrypt(cipher::SECTOR_BYTES, 0, &mut material);
        Ok(key::merge(self.splitter, STRIPES as usize, self.key_bytes, &material))
    }
}

fn named(error: Error, part: &str) -> Error {
    match error {
        Error::Damaged(text) => Error::damaged(format!("{part}: {text}")),
        Error::Unsupported(text) => Error::unsupported(format!("{part}: {text}")),
        other @ (Error::Io(_) | Error::NotFound | Error::NotADirectory | Error::NotAFile) => other,
    }
}

impl Digest {
    fn is_of(&self, key: &[u8], budget: &mut Budget) -> std::result::Result<bool, Refused> {
        if !DIGEST_BYTES.contains(&self.digest.len()) {
            return Err(Refused::Damaged(format!("digest of {} bytes", self.digest.len())));
        }
        let digest = self.kdf.derive(key, &self.salt, self.digest.len(), budget)?;
        Ok(constant_time_eq::constant_time_eq(&digest, &self.digest))
    }
}

/// Returns the text of a field that ends at a NUL or its own end; `None` if it is empty or not printable ASCII.
fn text(field: &[u8]) -> Option<String> {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_text = !text.is_empty() && text.iter().all(u8::is_ascii_graphic);
    is_text.then(|| String::from_utf8_lossy(text).into_owned())
}

/// Returns a name from a header as it may be shown: short, and without control characters.
fn printable(name: &str) -> String {
    const MAX_CHARS: usize = 64;
    name.chars().filter(|char| !char.is_control()).take(MAX_CHARS).collect()
}
