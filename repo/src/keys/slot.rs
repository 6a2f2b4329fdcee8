//! A key slot: the master key, wrapped with one passphrase, key file or recovery key. Describes the content of a slot's
//! file, not its location.
//!
//! ```text
//! wrapping key = derived from argon2id(passphrase), the key file's key or the recovery key, each for its own purpose
//! wrapped      = the master key, sealed by crate::cipher under the name of all other fields of the slot
//! checksum     = BLAKE3 of all fields, which distinguishes a damaged slot from a wrong key
//! ```
//!
//! The checksum contains no secret and stops no attacker. The name under which the master key is sealed does: an
//! attacker who changes a field and corrects the checksum gets a slot that opens with no secret.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::block::{derive, keyed_hash};
use crate::cipher::{Cipher, SALT_BYTES, TAG_BYTES, random};
use crate::error::{Error, ErrorKind, Result};
use crate::name;

/// Newest slot format that this vbk reads, and the one that it writes.
const FORMAT: u32 = 1;

/// Size limit of a slot's file.
pub(super) const MAX_BYTES: u64 = 64 * 1024;

/// Key that marks the hash as a checksum; it is public.
const CHECKSUM_KEY: &[u8; 32] = b"vbk checksum of a key slot, v1  ";

/// Kind of a slot, by the secret that opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase that a person remembers.
    Passphrase,
    /// A key file.
    KeyFile,
    /// A key on paper.
    Recovery,
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key file",
            Self::Recovery => "recovery key",
        })
    }
}

/// Cost of each guess of a passphrase: the parameters of argon2id (RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassphraseCost {
    /// Memory in KiB, at least 8 for each lane.
    pub memory_kib: u32,
    /// Number of passes over the memory.
    pub passes: u32,
    /// Number of lanes of the memory. They are computed one after the other here.
    pub lanes: u32,
}

impl Default for PassphraseCost {
    /// 256 MiB, three passes, one lane.
    fn default() -> Self {
        Self {
            memory_kib: 256 * 1024,
            passes: 3,
            lanes: 1,
        }
    }
}

impl PassphraseCost {
    /// Upper limit: a slot comes from disk, and must not exhaust the machine's memory or run for a day.
    pub const MAX: Self = Self {
        memory_kib: 1024 * 1024,
        passes: 16,
        lanes: 16,
    };

    fn params(self) -> std::result::Result<Params, String> {
        let Self {
            memory_kib,
            passes,
            lanes,
        } = self;
        if memory_kib > Self::MAX.memory_kib || passes > Self::MAX.passes || lanes > Self::MAX.lanes {
            return Err(format!(
                "its passphrase costs {memory_kib} KiB, {passes} passes, {lanes} lanes; the limits are {}, {}, {}",
                Self::MAX.memory_kib,
                Self::MAX.passes,
                Self::MAX.lanes
            ));
        }
        Params::new(memory_kib, passes, lanes, Some(32))
            .map_err(|error| format!("its passphrase's cost is invalid: {error}"))
    }
}

/// The secret that opens a slot.
pub(super) enum Secret<'a> {
    Passphrase(&'a str),
    KeyFile(&'a [u8; 32]),
    Recovery(&'a [u8; 32]),
}

impl Secret<'_> {
    pub(super) fn kind(&self) -> SlotKind {
        match self {
            Self::Passphrase(_) => SlotKind::Passphrase,
            Self::KeyFile(_) => SlotKind::KeyFile,
            Self::Recovery(_) => SlotKind::Recovery,
        }
    }
}

/// Parameters that turn a passphrase into a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stretch {
    cost: PassphraseCost,
    #[serde(with = "hex")]
    salt: [u8; 16],
}

/// An intact slot: its fields are in their ranges and match its checksum.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slot {
    format: u32,
    pub(super) name: String,
    pub(super) kind: SlotKind,
    pub(super) created: Timestamp,
    /// Present only in the slot of a passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argon2id: Option<Stretch>,
    #[serde(with = "hex")]
    salt: [u8; SALT_BYTES],
    #[serde(with = "hex")]
    wrapped: [u8; 32 + TAG_BYTES],
    #[serde(with = "hex")]
    checksum: [u8; 32],
}

impl Slot {
    /// Wraps the master key. `cost` matters only for a passphrase.
    pub(super) fn wrap(
        name: &str,
        created: Timestamp,
        secret: &Secret<'_>,
        master: &[u8; 32],
        cost: PassphraseCost,
    ) -> Result<Self> {
        name::check("key", name)?;
        let kind = secret.kind();
        let argon2id = match kind {
            SlotKind::Passphrase => Some(Stretch { cost, salt: random()? }),
            SlotKind::KeyFile | SlotKind::Recovery => None,
        };
        let mut slot = Self {
            format: FORMAT,
            name: name.to_owned(),
            kind,
            created,
            argon2id,
            salt: [0; SALT_BYTES],
            wrapped: [0; 32 + TAG_BYTES],
            checksum: [0; 32],
        };
        let (salt, mut key) = slot.wrapping_cipher(secret)?.fresh(&slot.bound())?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(slot.wrapped.len()));
        sealed.extend_from_slice(master);
        key.seal(0, &mut sealed)?;
        slot.salt = salt;
        slot.wrapped.copy_from_slice(&sealed);
        slot.checksum = slot.sum();
        Ok(slot)
    }

    /// Returns the master key; `None` if the secret is not the slot's. Takes a passphrase's time and memory.
    pub(super) fn unwrap(&self, secret: &Secret<'_>) -> Result<Option<Zeroizing<[u8; 32]>>> {
        if secret.kind() != self.kind {
            return Ok(None);
        }
        let key = self.wrapping_cipher(secret)?.reopen(&self.bound(), &self.salt);
        let mut bytes = Zeroizing::new(self.wrapped.to_vec());
        if key.open(0, &mut bytes).is_none() {
            return Ok(None);
        }
        let mut master = Zeroizing::new([0; 32]);
        master.copy_from_slice(&bytes);
        Ok(Some(master))
    }

    /// Returns the content of the slot's file.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a slot has only plain fields");
        text.push(b'\n');
        text
    }

    /// Reads the slot called `name`; the error describes the damage.
    pub(super) fn from_json(name: &str, bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable = |error: serde_json::Error| format!("it can't be read ({error})");
        let Format { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(format!("it has format {format}, but this vbk reads format {FORMAT}"));
        }
        let slot: Self = serde_json::from_slice(bytes).map_err(unreadable)?;
        if slot.checksum != slot.sum() {
            return Err("its checksum does not match".to_owned());
        }
        if slot.name != name || name::check("key", name).is_err() {
            return Err(format!("it belongs to a key named {:?}", slot.name));
        }
        match (slot.kind, &slot.argon2id) {
            (SlotKind::Passphrase, Some(stretch)) => stretch.cost.params().map(|_| slot),
            (SlotKind::KeyFile | SlotKind::Recovery, None) => Ok(slot),
            (kind, _) => Err(format!("it does not have the fields of a {kind}")),
        }
    }

    fn wrapping_cipher(&self, secret: &Secret<'_>) -> Result<Cipher> {
        Ok(Cipher::new(match secret {
            Secret::Passphrase(passphrase) => {
                let stretch = self
                    .argon2id
                    .as_ref()
                    .expect("the slot of a passphrase has them: from_json, wrap");
                derive("vbk 2026-11-21 v1 slot passphrase", &*stretch.key(passphrase)?)
            }
            Secret::KeyFile(key) => derive("vbk 2026-11-21 v1 slot key file", key),
            Secret::Recovery(key) => derive("vbk 2026-11-21 v1 slot recovery key", key),
        }))
    }

    /// Returns the fields under whose name the master key is sealed. As a JSON list, so no two sets of fields give the
    /// same bytes.
    fn bound(&self) -> Vec<u8> {
        let fields = (
            "vbk key slot",
            self.format,
            &self.name,
            self.kind,
            self.created,
            &self.argon2id,
        );
        serde_json::to_vec(&fields).expect("a slot has only plain fields")
    }

    fn sum(&self) -> [u8; 32] {
        keyed_hash(CHECKSUM_KEY, &[&self.bound(), &self.salt, &self.wrapped])
    }

    /// Returns the slot with a checksum that matches, as an attacker would write it.
    #[cfg(test)]
    pub(super) fn forge(bytes: &[u8]) -> Vec<u8> {
        let mut slot: Self = serde_json::from_slice(bytes).expect("a slot");
        slot.checksum = slot.sum();
        slot.to_json()
    }
}

impl Stretch {
    fn key(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>> {
        let params = self.cost.params().map_err(|what| Error::BadKey { what })?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &self.salt, &mut *key)
            .map_err(|error| Error::Store {
                // The parameters were checked, so only a lack of memory can be the cause.
                kind: ErrorKind::Unavailable,
                doing: "stretch a passphrase",
                message: error.to_string(),
            })?;
        Ok(key)
    }
}

/// Bytes as hexadecimal digits in JSON.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&crate::id::to_hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
        (text.len() == 2 * N)
            .then(|| text.as_bytes().chunks_exact(2).map(byte).collect::<Option<Vec<u8>>>())
            .flatten()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| D::Error::custom(format_args!("not {} hexadecimal digits", 2 * N)))
    }
}
