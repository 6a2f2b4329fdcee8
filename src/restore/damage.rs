//! Damaged ranges of an image: the bytes of a block that can still be read, and the report of the others.

use parking_lot::Mutex;
use vbk_repo::ErrorKind;
use vbk_repo::block::PAGE_BYTES;
use vbk_repo::reader::ImageReader;

use super::Damaged;
use crate::error::{Error, Result};

/// A range of an image that can't be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRange {
    /// Offset of the range in the image.
    pub offset_bytes: u64,
    /// Length of the range.
    pub len_bytes: u64,
}

/// A part of a damaged block.
pub(super) enum Piece<'a> {
    /// Proved bytes.
    Good { offset_bytes: u64, bytes: &'a [u8] },
    /// Bytes that can't be read back.
    Lost { offset_bytes: u64, len_bytes: u64 },
}

/// Damage found by a restore so far.
pub(super) struct Damage<'a> {
    label: &'a str,
    wish: Damaged,
    ranges: Mutex<Vec<DamagedRange>>,
}

impl<'a> Damage<'a> {
    pub(super) fn new(label: &'a str, wish: Damaged) -> Self {
        Self {
            label,
            wish,
            ranges: Mutex::default(),
        }
    }

    pub(super) fn wish(&self) -> Damaged {
        self.wish
    }

    /// Returns the error, unless it is damage and the caller accepts damage. A transient failure of a disk or network
    /// does not count as damage: it would put zeros in place of good data.
    pub(super) fn accept(&self, offset_bytes: u64, error: vbk_repo::Error) -> Result<()> {
        match (self.wish, error.kind()) {
            (Damaged::Zeros | Damaged::Keep, ErrorKind::Corrupt) => Ok(()),
            _ => Err(Error::ReadImage {
                image: self.label.to_owned(),
                offset_bytes,
                source: error,
            }),
        }
    }

    /// Reads the readable pages of a range that failed with `error`; pages are proved one by one. Unreadable pages
    /// become zeros in `plain`, and are recorded.
    pub(super) fn rescue<'b>(
        &self,
        image: &ImageReader,
        offset_bytes: u64,
        plain: &'b mut [u8],
        error: vbk_repo::Error,
    ) -> Result<Vec<Piece<'b>>> {
        self.accept(offset_bytes, error)?;
        let mut pieces = Vec::new();
        for (at, page) in (offset_bytes..).step_by(PAGE_BYTES).zip(plain.chunks_mut(PAGE_BYTES)) {
            match image.read_at(at, page) {
                Ok(_) => pieces.push(Piece::Good {
                    offset_bytes: at,
                    bytes: page,
                }),
                Err(error) => {
                    self.accept(at, error)?;
                    page.fill(0);
                    let len_bytes = page.len() as u64;
                    self.note(at, len_bytes);
                    pieces.push(Piece::Lost {
                        offset_bytes: at,
                        len_bytes,
                    });
                }
            }
        }
        Ok(pieces)
    }

    pub(super) fn note(&self, offset_bytes: u64, len_bytes: u64) {
        let mut ranges = self.ranges.lock();
        ranges.push(DamagedRange {
            offset_bytes,
            len_bytes,
        });
    }

    /// Returns all damaged ranges in order; adjacent ones are merged.
    pub(super) fn into_ranges(self) -> Vec<DamagedRange> {
        let mut ranges = self.ranges.into_inner();
        ranges.sort_by_key(|range| range.offset_bytes);
        let mut merged: Vec<DamagedRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.offset_bytes + last.len_bytes == range.offset_bytes => {
                    last.len_bytes += range.len_bytes;
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_reported_as_one_and_in_order() {
        let damage = Damage::new("x", Damaged::Zeros);
        for (offset, len) in [(300, 50), (0, 100), (100, 100)] {
            damage.note(offset, len);
        }
        let range = |offset_bytes, len_bytes| DamagedRange {
            offset_bytes,
            len_bytes,
        };
        assert_eq!(damage.into_ranges(), [range(0, 200), range(300, 50)]);
    }

    #[test]
    fn only_damage_is_skipped_and_only_if_that_is_accepted() {
        let gone = || vbk_repo::Error::Store {
            kind: ErrorKind::Unavailable,
            doing: "read a block",
            message: String::new(),
        };
        let damaged = || vbk_repo::Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "read a block",
            message: String::new(),
        };
        assert!(Damage::new("x", Damaged::Zeros).accept(0, damaged()).is_ok());
        assert!(Damage::new("x", Damaged::Zeros).accept(0, gone()).is_err());
        assert!(Damage::new("x", Damaged::Refuse).accept(0, damaged()).is_err());
    }
}
