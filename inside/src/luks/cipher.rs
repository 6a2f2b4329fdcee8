//! Ciphers of dm-crypt: a block cipher, a mode and a rule for initialization vectors, by the name that the kernel gives
//! them, e.g. `aes-xts-plain64` (drivers/md/dm-crypt.c). No authentication: what an attacker wrote decrypts to garbage.

use aes::{Aes128, Aes192, Aes256};
use cipher::array::Array;
use cipher::consts::U16;
use cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use serpent::Serpent;
use twofish::Twofish;

use super::key::Hash;

/// Unit of dm-crypt's sector numbers, whatever the volume's own sectors.
pub(super) const SECTOR_BYTES: usize = 512;
/// All ciphers here have blocks of 128 bits.
const BLOCK_BYTES: usize = 16;

/// Length of a run of blocks that are decrypted together: a multiple of what AES-NI takes at once, and one sector at
/// least, so that its buffer is on the stack.
const RUN_BYTES: usize = SECTOR_BYTES;

/// A cipher with its key. Sectors are whole: `bytes` is a multiple of `sector_bytes`, itself one of 512.
pub(super) trait SectorCipher: Send + Sync {
    /// Encrypts sectors in place. `first` is the number of the first in units of 512 bytes.
    fn encrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]);

    /// Decrypts sectors in place.
    fn decrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]);
}

/// Calls a generic function for the cipher of a name and a length of keys; `None` if there is none.
macro_rules! with_cipher {
    ($name:expr, $key_bytes:expr, $make:ident, $($argument:expr),*) => {
        match ($name, $key_bytes) {
            ("aes", 16) => $make::<Aes128>($($argument),*),
            ("aes", 24) => $make::<Aes192>($($argument),*),
            ("aes", 32) => $make::<Aes256>($($argument),*),
            ("serpent", 16 | 24 | 32) => $make::<Serpent>($($argument),*),
            ("twofish", 16 | 24 | 32) => $make::<Twofish>($($argument),*),
            _ => None,
        }
    };
}

/// Makes the cipher of a name; `None` if the name, or the length of the key, is none that this module knows.
pub(super) fn cipher(name: &str, key: &[u8]) -> Option<Box<dyn SectorCipher>> {
    let mut parts = name.splitn(3, '-');
    let (cipher, mode, iv) = (parts.next()?, parts.next()?, parts.next()?);
    let iv = iv_rule(cipher, iv, key)?;
    match mode {
        // Half of the key encrypts the tweaks (IEEE 1619).
        "xts" if key.len().is_multiple_of(2) => with_cipher!(cipher, key.len() / 2, xts, key, iv),
        "cbc" => with_cipher!(cipher, key.len(), cbc, key, iv),
        _ => None,
    }
}

/// Tests that [`cipher`] knows a name with keys of a length.
pub(super) fn is_known(name: &str, key_bytes: usize) -> bool {
    cipher(name, &vec![0; key_bytes]).is_some()
}

/// Rules for initialization vectors (`crypt_iv_operations` in dm-crypt.c).
enum Iv {
    Plain,
    Plain64,
    Plain64Be,
    /// The number of the sector, encrypted by the key's hash.
    Essiv(Box<dyn EncryptBlock>),
}

impl Iv {
    fn of(&self, sector: u64) -> [u8; BLOCK_BYTES] {
        let wide = u128::from(sector);
        match self {
            Iv::Plain => (wide & 0xffff_ffff).to_le_bytes(),
            Iv::Plain64 => wide.to_le_bytes(),
            Iv::Plain64Be => wide.to_be_bytes(),
            Iv::Essiv(cipher) => cipher.encrypted(wide.to_le_bytes()),
        }
    }
}

fn iv_rule(cipher: &str, name: &str, key: &[u8]) -> Option<Iv> {
    Some(match name {
        "plain" => Iv::Plain,
        "plain64" => Iv::Plain64,
        "plain64be" => Iv::Plain64Be,
        _ => {
            let key = Hash::of_name(name.strip_prefix("essiv:")?)?.digest(&[key]);
            Iv::Essiv(with_cipher!(cipher, key.len(), essiv, &key)?)
        }
    })
}

trait EncryptBlock: Send + Sync {
    fn encrypted(&self, block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES];
}

struct Essiv<C>(C);

fn essiv<C: Cipher>(key: &[u8]) -> Option<Box<dyn EncryptBlock>> {
    Some(Box::new(Essiv(C::new_from_slice(key).ok()?)))
}

impl<C: Cipher> EncryptBlock for Essiv<C> {
    fn encrypted(&self, block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
        encrypted(&self.0, block)
    }
}

/// A block cipher of 128 bits.
trait Cipher: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt + KeyInit + Send + Sync + 'static {}

impl<C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt + KeyInit + Send + Sync + 'static> Cipher for C {}

fn encrypted<C: Cipher>(cipher: &C, block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    let mut block = Array::from(block);
    cipher.encrypt_block(&mut block);
    block.into()
}

/// Returns the whole blocks of `bytes`; sectors have no other.
fn blocks(bytes: &mut [u8]) -> &mut [Array<u8, U16>] {
    Array::slice_as_chunks_mut(bytes).0
}

fn xor(block: &mut Array<u8, U16>, with: [u8; BLOCK_BYTES]) {
    let sum = u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes(with);
    *block = sum.to_ne_bytes().into();
}

/// Calls `each` with the vector of every sector and its bytes.
fn sectors(iv: &Iv, sector_bytes: usize, first: u64, bytes: &mut [u8], each: impl Fn([u8; BLOCK_BYTES], &mut [u8])) {
    let mut number = first;
    for sector in bytes.chunks_exact_mut(sector_bytes) {
        each(iv.of(number), sector);
        // A header may start anywhere: the kernel's sector_t wraps too.
        number = number.wrapping_add((sector_bytes / SECTOR_BYTES) as u64);
    }
}

/// XTS (IEEE 1619). Sectors are multiples of a block, so nothing is stolen.
struct Xts<C> {
    data: C,
    tweak: C,
    iv: Iv,
}

fn xts<C: Cipher>(key: &[u8], iv: Iv) -> Option<Box<dyn SectorCipher>> {
    let (data, tweak) = key.split_at(key.len() / 2);
    Some(Box::new(Xts {
        data: C::new_from_slice(data).ok()?,
        tweak: C::new_from_slice(tweak).ok()?,
        iv,
    }))
}

impl<C: Cipher> Xts<C> {
    fn run(&self, iv: [u8; BLOCK_BYTES], sector: &mut [u8], work: impl Fn(&C, &mut [Array<u8, U16>])) {
        let mut tweak = u128::from_le_bytes(encrypted(&self.tweak, iv));
        let mut tweaks = [[0; BLOCK_BYTES]; RUN_BYTES / BLOCK_BYTES];
        for run in sector.chunks_mut(RUN_BYTES) {
            let blocks = blocks(run);
            for (block, at) in blocks.iter_mut().zip(&mut tweaks) {
                *at = tweak.to_le_bytes();
                xor(block, *at);
                // Multiplies by x in GF(2^128), without a branch on the key's bits.
                tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
            }
            work(&self.data, blocks);
            for (block, at) in blocks.iter_mut().zip(&tweaks) {
                xor(block, *at);
            }
        }
    }
}

impl<C: Cipher> SectorCipher for Xts<C> {
    fn encrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]) {
        sectors(&self.iv, sector_bytes, first, bytes, |iv, sector| {
            self.run(iv, sector, |cipher, blocks| cipher.encrypt_blocks(blocks));
        });
    }

    fn decrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]) {
        sectors(&self.iv, sector_bytes, first, bytes, |iv, sector| {
            self.run(iv, sector, |cipher, blocks| cipher.decrypt_blocks(blocks));
        });
    }
}

/// CBC, each sector a chain of its own.
struct Cbc<C> {
    data: C,
    iv: Iv,
}

fn cbc<C: Cipher>(key: &[u8], iv: Iv) -> Option<Box<dyn SectorCipher>> {
    Some(Box::new(Cbc {
        data: C::new_from_slice(key).ok()?,
        iv,
    }))
}

impl<C: Cipher> SectorCipher for Cbc<C> {
    fn encrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]) {
        sectors(&self.iv, sector_bytes, first, bytes, |iv, sector| {
            let mut before = iv;
            for block in blocks(sector) {
                xor(block, before);
                self.data.encrypt_block(block);
                before = (*block).into();
            }
        });
    }

    fn decrypt(&self, sector_bytes: usize, first: u64, bytes: &mut [u8]) {
        sectors(&self.iv, sector_bytes, first, bytes, |iv, sector| {
            let mut before = iv;
            let mut chain = [[0; BLOCK_BYTES]; RUN_BYTES / BLOCK_BYTES];
            for run in sector.chunks_mut(RUN_BYTES) {
                let blocks = blocks(run);
                for (block, at) in blocks.iter().zip(&mut chain) {
                    *at = std::mem::replace(&mut before, (*block).into());
                }
                self.data.decrypt_blocks(blocks);
                for (block, at) in blocks.iter_mut().zip(&chain) {
                    xor(block, *at);
                }
            }
        });
    }
}
