//! A record of the master file table, and the fixups that protect it.

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};

use super::Attribute;

/// A fixup protects so many bytes, whatever the size of a sector is (`NTFS_BLOCK_SIZE`).
const STRIDE_BYTES: usize = 512;

const IN_USE: u16 = 0x1;
const DIRECTORY: u16 = 0x2;

/// Lower bits of a file reference: the number of the record. The upper 16 are its sequence number.
const NUMBER_MASK: u64 = (1 << 48) - 1;

/// Returns the number of the record in a file reference.
pub(super) fn number(reference: u64) -> u64 {
    reference & NUMBER_MASK
}

/// Puts the bytes back that the fixups replaced in a record or index block; false if its writing was not completed.
pub(super) fn fix_up(bytes: &mut [u8], magic: &[u8; 4]) -> bool {
    if bytes.len() < STRIDE_BYTES || !bytes.starts_with(magic) {
        return false;
    }
    let (at, count) = (usize::from(le16(bytes, 4)), usize::from(le16(bytes, 6)));
    let strides = bytes.len() / STRIDE_BYTES;
    if count != strides + 1 {
        return false;
    }
    let Some(array) = bytes.get(at..at + count * 2).map(<[u8]>::to_vec) else {
        return false;
    };
    let (mark, replaced) = array.split_at(2);
    for (stride, replaced) in bytes.chunks_exact_mut(STRIDE_BYTES).zip(replaced.chunks_exact(2)) {
        let end = &mut stride[STRIDE_BYTES - 2..];
        if end != mark {
            return false;
        }
        end.copy_from_slice(replaced);
    }
    true
}

/// A record of the master file table that is in use.
pub(super) struct Record {
    pub(super) number: u64,
    bytes: Vec<u8>,
}

impl Record {
    pub(super) fn parse(number: u64, mut bytes: Vec<u8>) -> Result<Self> {
        if !fix_up(&mut bytes, b"FILE") {
            return Err(Error::damaged(format!("file record {number}")));
        }
        let record = Self { number, bytes };
        if record.flags() & IN_USE == 0 {
            return Err(Error::NotFound);
        }
        Ok(record)
    }

    fn flags(&self) -> u16 {
        le16(&self.bytes, 22)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.flags() & DIRECTORY != 0
    }

    /// Returns the number of names, DOS doubles among them.
    pub(super) fn names(&self) -> u16 {
        le16(&self.bytes, 18)
    }

    pub(super) fn reference(&self) -> u64 {
        u64::from(le16(&self.bytes, 16)) << 48 | self.number
    }

    /// Returns the reference of the record that this one extends; 0 if it extends none.
    pub(super) fn base(&self) -> u64 {
        le64(&self.bytes, 32)
    }

    /// Returns the attributes in this record, up to the end or to a damaged one.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Attribute<'_>> {
        let mut at = usize::from(le16(&self.bytes, 20));
        let used = (le32(&self.bytes, 24) as usize).min(self.bytes.len());
        std::iter::from_fn(move || {
            let rest = self.bytes.get(at..used)?;
            let attribute = Attribute::parse(rest)?;
            at += attribute.len();
            Some(attribute)
        })
    }
}
