//! An attribute in a file record (`struct ATTR_RECORD` of layout.h).

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::runs::{Runs, Source};

const COMPRESSED: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;
/// Length of the header of an attribute in the record, and of one outside.
const RESIDENT_BYTES: usize = 24;
const NON_RESIDENT_BYTES: usize = 64;

/// An attribute, or a part of one whose list of runs is spread over several records.
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a>(&'a [u8]);

impl<'a> Attribute<'a> {
    /// Returns the attribute at the start of `bytes`, if there is a whole one.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = bytes.get(4..8).map(|len| le32(len, 0) as usize)?;
        let bytes = bytes.get(..len).filter(|bytes| bytes.len() >= RESIDENT_BYTES)?;
        let whole = bytes[8] == 0 || bytes.len() >= NON_RESIDENT_BYTES;
        (whole && le32(bytes, 0) != u32::MAX).then_some(Self(bytes))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn kind(&self) -> u32 {
        le32(self.0, 0)
    }

    /// Returns the name as little-endian UTF-16.
    pub(super) fn name(&self) -> Option<&'a [u8]> {
        let at = usize::from(le16(self.0, 10));
        self.0.get(at..at + usize::from(self.0[9]) * 2)
    }

    pub(super) fn is_resident(&self) -> bool {
        self.0[8] == 0
    }

    pub(super) fn is_compressed(&self) -> bool {
        le16(self.0, 12) & COMPRESSED != 0
    }

    pub(super) fn is_encrypted(&self) -> bool {
        le16(self.0, 12) & ENCRYPTED != 0
    }

    /// Returns the value of a resident attribute.
    pub(super) fn value(&self) -> Option<&'a [u8]> {
        let (len, at) = (le32(self.0, 16) as usize, usize::from(le16(self.0, 20)));
        self.0.get(at..at.checked_add(len)?).filter(|_| self.is_resident())
    }

    fn outside(&self, at: usize) -> u64 {
        if self.is_resident() { 0 } else { le64(self.0, at) }
    }

    /// Returns the number of the first cluster of the stream that this part describes.
    pub(super) fn first_cluster(&self) -> u64 {
        self.outside(16)
    }

    /// Returns the length of the stream; valid in its first part.
    pub(super) fn size_bytes(&self) -> u64 {
        if self.is_resident() {
            le32(self.0, 16).into()
        } else {
            self.outside(48)
        }
    }

    /// Returns the length of the stream's part that was written; valid in its first part.
    pub(super) fn initialized_bytes(&self) -> u64 {
        if self.is_resident() {
            self.size_bytes()
        } else {
            self.outside(56)
        }
    }

    /// Returns the logarithm of the number of clusters that are compressed together.
    pub(super) fn unit_log(&self) -> u8 {
        if self.is_resident() { 0 } else { self.0[34] }
    }

    /// Appends the runs of this part. Those before a damaged one are appended.
    pub(super) fn runs(&self, cluster_bytes: u64, clusters: u64, runs: &mut Runs) -> Result<()> {
        let bad = || Error::damaged("list of runs");
        let mut bytes = self.0.get(usize::from(le16(self.0, 32))..).ok_or_else(bad)?;
        let mut cluster = 0_i64;
        loop {
            let Some((head, rest)) = bytes.split_first().filter(|(head, _)| **head != 0) else {
                return Ok(());
            };
            let (len_bytes, offset_bytes) = (usize::from(head & 0xf), usize::from(head >> 4));
            let len = rest.get(..len_bytes).and_then(signed).ok_or_else(bad)?;
            let rest = &rest[len_bytes..];
            let offset = rest.get(..offset_bytes).and_then(signed).ok_or_else(bad)?;
            bytes = &rest[offset_bytes..];
            let size_bytes = u64::try_from(len).ok().filter(|len| *len > 0);
            let size_bytes = size_bytes
                .and_then(|len| len.checked_mul(cluster_bytes))
                .ok_or_else(bad)?;
            if offset_bytes == 0 {
                runs.push(Source::Zeros, size_bytes)?;
                continue;
            }
            cluster = cluster.checked_add(offset).ok_or_else(bad)?;
            let source = match u64::try_from(cluster) {
                Ok(cluster) if cluster < clusters => Source::Device(cluster * cluster_bytes),
                _ => Source::Nowhere,
            };
            runs.push(source, size_bytes)?;
        }
    }
}

/// Returns a little-endian number of 0 to 8 bytes with a sign.
fn signed(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) {
        0xff
    } else {
        0
    };
    let mut number = [fill; 8];
    number.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(number))
}
