//! From a passphrase to a volume's key: hashes, key derivation, the anti-forensic splitter, and a bound on the work that
//! a header may ask for.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use hmac::digest::Digest;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use whirlpool::Whirlpool;
use zeroize::{Zeroize, Zeroizing};

use super::Refused;

/// Longest key of a volume or a key slot, in bytes. The longest of a known cipher has 64 (two keys of 256 bits).
pub(super) const MAX_KEY_BYTES: usize = 128;
/// Most memory that a key slot may take: the most that cryptsetup lets an administrator ask for. By itself it takes 1 GiB
/// or less.
const MAX_ARGON2_KIB: u64 = 4 << 20;
/// Memory that the machine keeps for all else, besides that of a key slot.
const SPARE_KIB: u64 = 128 << 10;
/// Most work for one volume or one guest, in rounds of a hash and KiB passed over by Argon2. Each takes one to three microseconds, so a
/// hostile header costs a quarter of an hour at worst. A slot as cryptsetup makes it costs 1 to 30 million.
const MAX_WORK: u64 = 1 << 28;

/// A hash by its name in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Whirlpool,
}

/// Evaluates an expression with `$type` as the hash's type.
macro_rules! with_hash {
    ($hash:expr, $type:ident => $value:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $type = Sha1;
                $value
            }
            Hash::Sha224 => {
                type $type = Sha224;
                $value
            }
            Hash::Sha256 => {
                type $type = Sha256;
                $value
            }
            Hash::Sha384 => {
                type $type = Sha384;
                $value
            }
            Hash::Sha512 => {
                type $type = Sha512;
                $value
            }
            Hash::Ripemd160 => {
                type $type = Ripemd160;
                $value
            }
            Hash::Whirlpool => {
                type $type = Whirlpool;
                $value
            }
        }
    };
}

impl Hash {
    /// Returns the hash of a name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "sha1" => Hash::Sha1,
            "sha224" => Hash::Sha224,
            "sha256" => Hash::Sha256,
            "sha384" => Hash::Sha384,
            "sha512" => Hash::Sha512,
            "ripemd160" => Hash::Ripemd160,
            "whirlpool" => Hash::Whirlpool,
            _ => return None,
        })
    }

    /// Returns the hash of a name, or an error that names it.
    pub(super) fn known(name: &str) -> Result<Self, Refused> {
        Self::of_name(name).ok_or_else(|| Refused::Unsupported(format!("hash {}", super::printable(name))))
    }

    fn digest_bytes(self) -> usize {
        with_hash!(self, H => <H as Digest>::output_size())
    }

    /// Hashes the parts, one after the other.
    pub(super) fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        with_hash!(self, H => {
            let mut hash = H::new();
            for part in parts {
                hash.update(part);
            }
            Zeroizing::new(hash.finalize().to_vec())
        })
    }
}

/// Work that a header may still ask for.
pub(crate) struct Budget(u64);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(MAX_WORK)
    }

    /// Leaves no more than `work`.
    #[cfg(any(test, fuzzing))]
    pub(super) fn limit(&mut self, work: u64) {
        self.0 = self.0.min(work);
    }

    fn spend(&mut self, work: u64) -> Result<(), Refused> {
        self.0 = self.0.checked_sub(work).ok_or_else(|| {
            Refused::Unsupported(format!(
                "key derivation of {work} rounds, when {} are left of {MAX_WORK}",
                self.0
            ))
        })?;
        Ok(())
    }
}

/// Derivation of a key from a passphrase.
#[derive(Debug, Clone)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: u64,
    },
    Argon2 {
        algorithm: Algorithm,
        passes: u64,
        memory_kib: u64,
        lanes: u64,
    },
}

impl Kdf {
    /// Derives a key of `key_bytes`, at most [`MAX_KEY_BYTES`]. Lanes of Argon2 run one after the other.
    pub(super) fn derive(
        &self,
        passphrase: &[u8],
        salt: &[u8],
        key_bytes: usize,
        budget: &mut Budget,
    ) -> Result<Zeroizing<Vec<u8>>, Refused> {
        let mut key = Zeroizing::new(vec![0; key_bytes.min(MAX_KEY_BYTES)]);
        match *self {
            Kdf::Pbkdf2 { hash, iterations } => {
                let chains = key.len().div_ceil(hash.digest_bytes()) as u64;
                budget.spend(iterations.saturating_mul(chains))?;
                let rounds = u32::try_from(iterations).ok().filter(|rounds| *rounds > 0);
                let rounds = rounds.ok_or_else(|| Refused::Damaged(format!("PBKDF2 of {iterations} iterations")))?;
                with_hash!(hash, H => pbkdf2::pbkdf2_hmac::<H>(passphrase, salt, rounds, &mut key));
            }
            Kdf::Argon2 {
                algorithm,
                passes,
                memory_kib,
                lanes,
            } => {
                if memory_kib > MAX_ARGON2_KIB {
                    let text = format!("Argon2 with {memory_kib} KiB of memory; the limit is {MAX_ARGON2_KIB}");
                    return Err(Refused::Unsupported(text));
                }
                check_memory(memory_kib, available_kib())?;
                budget.spend(memory_kib.saturating_mul(passes))?;
                argon2(algorithm, [memory_kib, passes, lanes], passphrase, salt, &mut key)?;
            }
        }
        Ok(key)
    }
}

/// Returns the memory that the machine can give (proc_meminfo(5)); `None` if it does not say.
fn available_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Refuses what would make the machine swap, or kill processes: memory is promised before it is there.
pub(super) fn check_memory(asked_kib: u64, available_kib: Option<u64>) -> Result<(), Refused> {
    match available_kib {
        Some(available_kib) if asked_kib > available_kib.saturating_sub(SPARE_KIB) => {
            Err(Refused::Unsupported(format!(
                "Argon2 with {} MiB of memory, of which {} MiB are available",
                asked_kib.div_ceil(1024),
                available_kib / 1024
            )))
        }
        Some(_) | None => Ok(()),
    }
}

fn argon2(
    algorithm: Algorithm,
    costs: [u64; 3],
    passphrase: &[u8],
    salt: &[u8],
    key: &mut [u8],
) -> Result<(), Refused> {
    let [memory_kib, passes, lanes] = costs.map(|cost| u32::try_from(cost).unwrap_or(0));
    let invalid = |error: argon2::Error| Refused::Damaged(format!("Argon2: {error}"));
    let params = Params::new(memory_kib, passes, lanes, Some(key.len())).map_err(invalid)?;
    let blocks = params.block_count();
    let argon2 = Argon2::new(algorithm, Version::V0x13, params);
    // Own memory, because the crate's is not cleared.
    let mut memory = Zeroizing::new(Vec::new());
    if memory.try_reserve_exact(blocks).is_err() {
        let text = format!("Argon2 with {memory_kib} KiB of memory, which this machine does not give");
        return Err(Refused::Unsupported(text));
    }
    memory.resize(blocks, Block::new());
    argon2
        .hash_password_into_with_memory(passphrase, salt, key, memory.as_mut_slice())
        .map_err(invalid)
}

/// Merges the stripes of a key that the anti-forensic splitter wrote (LUKS1 specification 1.2.3, section 2.4). `None`
/// if `material` is shorter than its stripes.
pub(super) fn merge(hash: Hash, stripes: usize, key_bytes: usize, material: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(vec![0; key_bytes]);
    let material = material.get(..stripes.checked_mul(key_bytes)?)?;
    for (number, stripe) in material.chunks_exact(key_bytes).enumerate() {
        if number > 0 {
            diffuse(hash, &mut key);
        }
        for (byte, with) in key.iter_mut().zip(stripe) {
            *byte ^= with;
        }
    }
    Some(key)
}

fn diffuse(hash: Hash, key: &mut [u8]) {
    for (number, part) in (0u32..).zip(key.chunks_mut(hash.digest_bytes())) {
        let mut digest = hash.digest(&[&number.to_be_bytes(), part]);
        for (byte, with) in part.iter_mut().zip(digest.iter()) {
            *byte = *with;
        }
        digest.zeroize();
    }
}
