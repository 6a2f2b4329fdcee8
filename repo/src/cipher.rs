//! Encryption: the only file that uses the AEAD, which is AES-256-GCM.
//!
//! A sealed thing has one or more parts: a block consists of its header and its rows of pages, a node or a record of
//! a single part. Every thing has a key of its own, and its parts are numbered:
//!
//! ```text
//! part key = BLAKE3 keyed with the cipher's key, over name || salt     salt: 24 random bytes, stored with the thing
//! sealed   = AES-256-GCM(part key, nonce = 8 zero bytes || part number, big-endian, no associated data)
//! ```
//!
//! # Why a nonce is never used twice under a key
//!
//! GCM loses all its protection, for everything under the key, when two messages share a key and a nonce.
//! 1. A [`SealKey`] comes only from [`Cipher::fresh`], which draws a new salt. Two things share a part key only if they
//!    have the same name and the same 192-bit salt: after 2^64 things of one name the probability is 2^-65. So neither
//!    the number of blocks nor the number of times that a block is sealed needs a limit.
//! 2. A `SealKey` refuses a part number that it has sealed before. So within a thing every nonce is used once.
//! 3. Reading a thing gives an [`OpenKey`], which can't seal: a stored salt is never used for other bytes.
//!
//! # Binding of parts to their position
//!
//! The name identifies the thing (kind and id), and the salt has a fixed length and comes last, so no two pairs of name
//! and salt hash the same bytes. A part therefore opens only at its position in its own thing: a part of another thing,
//! of an older sealing of the same thing, or with another number does not authenticate.

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

use crate::block::keyed_hash;
use crate::error::{Error, Result};

/// Bytes of the random salt that is stored with every sealed thing.
pub(crate) const SALT_BYTES: usize = 24;

/// Bytes that sealing adds to a part.
pub(crate) const TAG_BYTES: usize = 16;

/// Derives the keys of sealed things. Its own key is zeroed when it is dropped.
#[derive(Clone)]
pub(crate) struct Cipher {
    key: Zeroizing<[u8; 32]>,
}

impl Cipher {
    /// Returns a cipher with a key that must be used for nothing else.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key: key.into() }
    }

    /// Returns the salt and the key for a thing to be sealed. `name` is its kind and id.
    pub(crate) fn fresh(&self, name: &[u8]) -> Result<([u8; SALT_BYTES], SealKey)> {
        let salt = random()?;
        let key = SealKey {
            key: self.part_key(name, &salt),
            sealed: BTreeSet::new(),
        };
        Ok((salt, key))
    }

    /// Returns the key that opens a thing sealed under this name and salt.
    pub(crate) fn reopen(&self, name: &[u8], salt: &[u8; SALT_BYTES]) -> OpenKey {
        OpenKey {
            key: self.part_key(name, salt),
        }
    }

    fn part_key(&self, name: &[u8], salt: &[u8; SALT_BYTES]) -> LessSafeKey {
        let key = Zeroizing::new(keyed_hash(&self.key, &[name, salt]));
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("any 32 bytes are a key of AES-256"))
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher(..)")
    }
}

/// Seals the parts of one thing, each once.
#[derive(Debug)]
pub(crate) struct SealKey {
    key: LessSafeKey,
    sealed: BTreeSet<u32>,
}

impl SealKey {
    /// Seals a part in place and appends the tag; spare capacity for [`TAG_BYTES`] saves a copy. Refuses a part that
    /// was sealed before.
    pub(crate) fn seal(&mut self, part: u32, bytes: &mut Vec<u8>) -> Result<()> {
        if !self.sealed.insert(part) {
            return Err(failed(format!("part {part} has been sealed before")));
        }
        self.key
            .seal_in_place_append_tag(nonce(part), Aad::empty(), bytes)
            .map_err(|_| failed(format!("the cipher refused {} bytes", bytes.len())))
    }
}

/// Opens the parts of one thing. May be used by many threads at once.
#[derive(Debug)]
pub(crate) struct OpenKey {
    key: LessSafeKey,
}

impl OpenKey {
    /// Opens a part in place and strips the tag. If it does not authenticate, `bytes` is emptied and the result is
    /// `None`.
    pub(crate) fn open(&self, part: u32, bytes: &mut Vec<u8>) -> Option<()> {
        match self.key.open_in_place(nonce(part), Aad::empty(), bytes) {
            Ok(plain) => {
                let len = plain.len();
                bytes.truncate(len);
                Some(())
            }
            Err(_) => {
                bytes.zeroize();
                None
            }
        }
    }
}

fn nonce(part: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&part.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn failed(message: String) -> Error {
    Error::Internal {
        doing: "encrypt",
        message,
    }
}

/// Returns random bytes from the kernel. A generator in this process would not do: a cloned virtual machine would
/// repeat its state.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::io("read", "/dev/urandom")(std::io::Error::other(error)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_part_is_sealed_once() {
        let (_, mut key) = Cipher::new([1; 32]).fresh(b"block").expect("fresh");
        key.seal(7, &mut vec![1; 10]).expect("seals");
        key.seal(0, &mut vec![1; 10]).expect("seals");
        let again = key.seal(7, &mut vec![2; 10]).expect_err("refused");
        assert_eq!(again.kind(), crate::ErrorKind::Internal);
    }

    #[test]
    fn equal_bytes_of_equal_name_never_look_equal() {
        let cipher = Cipher::new([1; 32]);
        let seal = || {
            let mut bytes = vec![5; 100];
            let (salt, mut key) = cipher.fresh(b"block").expect("fresh");
            key.seal(0, &mut bytes).expect("seals");
            (salt, bytes)
        };
        let ((salt, bytes), (other_salt, other_bytes)) = (seal(), seal());
        assert!(salt != other_salt && bytes != other_bytes);
    }

    #[test]
    fn what_is_shorter_than_a_tag_does_not_open() {
        let key = Cipher::new([1; 32]).reopen(b"block", &[0; SALT_BYTES]);
        for len in 0..=TAG_BYTES {
            assert_eq!(key.open(0, &mut vec![0; len]), None);
        }
    }

    #[test]
    fn the_layout_is_aes_256_gcm_under_a_key_of_name_and_salt() {
        // Ensures that sealed bytes of older repositories still open: the layout as the top of this module describes
        // it.
        let cipher = Cipher::new([1; 32]);
        let (salt, mut key) = cipher.fresh(b"name").expect("fresh");
        let mut bytes = b"plain".to_vec();
        key.seal(0x0102_0304, &mut bytes).expect("seals");
        let part_key = keyed_hash(&[1; 32], &[&[b"name", &salt[..]].concat()]);
        let direct = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &part_key).expect("a key"));
        let nonce = Nonce::assume_unique_for_key([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(
            direct.open_in_place(nonce, Aad::empty(), &mut bytes).expect("opens"),
            b"plain"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn only_the_same_part_name_salt_and_key_open(
            plain in prop::collection::vec(any::<u8>(), 0..3000),
            key: [u8; 32],
            name in prop::collection::vec(any::<u8>(), 0..50),
            other_name in prop::collection::vec(any::<u8>(), 0..50),
            part: u32,
            other_part: u32,
            place: prop::sample::Index,
            flip in 1..=255_u8,
        ) {
            prop_assume!(part != other_part && name != other_name);
            let cipher = Cipher::new(key);
            let (salt, mut sealer) = cipher.fresh(&name)?;
            let mut sealed = plain.clone();
            sealer.seal(part, &mut sealed)?;
            let mut other_sealed = plain.clone();
            sealer.seal(other_part, &mut other_sealed)?;
            prop_assert_eq!(sealed.len(), plain.len() + TAG_BYTES);
            let opener = cipher.reopen(&name, &salt);

            let mut opened = sealed.clone();
            prop_assert_eq!(opener.open(part, &mut opened), Some(()));
            prop_assert_eq!(&opened, &plain);

            let refused = |opener: &OpenKey, part, bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                opener.open(part, &mut bytes).is_none() && bytes.is_empty()
            };
            prop_assert!(refused(&opener, other_part, &sealed));
            prop_assert!(refused(&opener, part, &other_sealed));
            prop_assert!(refused(&cipher.reopen(&other_name, &salt), part, &sealed));
            let mut other_salt = salt;
            other_salt[place.index(SALT_BYTES)] ^= flip;
            prop_assert!(refused(&cipher.reopen(&name, &other_salt), part, &sealed));
            let mut other_key = key;
            other_key[place.index(32)] ^= flip;
            prop_assert!(refused(&Cipher::new(other_key).reopen(&name, &salt), part, &sealed));
            let mut damaged = sealed.clone();
            damaged[place.index(sealed.len())] ^= flip;
            prop_assert!(refused(&opener, part, &damaged));
            prop_assert!(refused(&opener, part, &sealed[..place.index(sealed.len())]));
        }
    }
}
