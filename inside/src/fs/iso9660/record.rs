//! A directory record (ECMA-119 9.1).

use crate::device::le32;

/// Length of the fields before the name.
const FIXED_BYTES: usize = 33;

const DIRECTORY: u8 = 0x02;
const ASSOCIATED: u8 = 0x04;
const CONTINUED: u8 = 0x80;

/// A directory record.
pub(super) struct Record(Vec<u8>);

impl Record {
    /// Takes the bytes of a whole record; `None` if its name does not fit in.
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let name_len = usize::from(*bytes.get(FIXED_BYTES - 1)?);
        (bytes.len() > FIXED_BYTES && name_len > 0 && FIXED_BYTES + name_len <= bytes.len()).then_some(Self(bytes))
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn attribute_blocks(&self) -> u8 {
        self.0[1]
    }

    pub(super) fn block(&self) -> u32 {
        le32(&self.0, 2)
    }

    pub(super) fn size_bytes(&self) -> u32 {
        le32(&self.0, 10)
    }

    pub(super) fn date(&self) -> [u8; 7] {
        std::array::from_fn(|at| self.0[18 + at])
    }

    pub(super) fn is_directory(&self) -> bool {
        self.0[25] & DIRECTORY != 0
    }

    /// Tests for the resource fork of another file.
    pub(super) fn is_associated(&self) -> bool {
        self.0[25] & ASSOCIATED != 0
    }

    /// Tests for a file with more extents, in the next record.
    pub(super) fn is_continued(&self) -> bool {
        self.0[25] & CONTINUED != 0
    }

    pub(super) fn is_interleaved(&self) -> bool {
        self.0[26] != 0
    }

    fn name_end(&self) -> usize {
        FIXED_BYTES + usize::from(self.0[FIXED_BYTES - 1])
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.0[FIXED_BYTES..self.name_end()]
    }

    /// Tests for the records of the directory itself and its parent.
    pub(super) fn is_dot(&self) -> bool {
        matches!(self.name(), [0 | 1])
    }

    /// Returns the bytes after the name, which are Rock Ridge's. They start at an even offset.
    pub(super) fn system_use(&self) -> &[u8] {
        self.0.get(self.name_end().next_multiple_of(2)..).unwrap_or_default()
    }
}
