//! Compares two images by their manifests. Reads no blocks, and no segments that both share.
//!
//! The unit of comparison is a block: one changed byte makes the whole block count as different. Memory: the pages of
//! both (128 KiB for 1 TiB of disk and blocks of 1 MiB) and 16 pairs of segments (2 MiB), however much differs.

use std::fmt;

use crate::backup::Image;
use crate::block::BlockIndex;
use crate::error::{Error, Result};
use crate::manifest::{Manifest, SEGMENT_SLOTS, segment_count};
use crate::slots::{read_manifest, read_segments};
use crate::store::StoreReader;

/// Segments that are read of each image in one call: one round trip to the store for 16 GiB of disk.
const BATCH_SEGMENTS: usize = 16;

/// A range of bytes that differs in one way. Two ranges of one kind never touch: adjacent blocks are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedRange {
    /// Offset on the disk: at a block's start, or for a grown or cut range the end of the shorter image.
    pub offset_bytes: u64,
    /// Length of the range.
    pub len_bytes: u64,
    /// Kind of the difference.
    pub kind: ChangeKind,
}

/// Kind of difference of the second image from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// Blocks whose bytes differ.
    Changed,
    /// Blocks that are now all zeros.
    Zeroed,
    /// Blocks that were all zeros.
    FromZero,
    /// Range that only the second image has; zeros count too.
    Grown,
    /// Range that only the first image has; zeros count too.
    Cut,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Changed => "changed",
            Self::Zeroed => "zeroed",
            Self::FromZero => "from-zero",
            Self::Grown => "grown",
            Self::Cut => "cut",
        })
    }
}

/// Amount by which two images differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageDiff {
    /// Size of the first image.
    pub before_bytes: u64,
    /// Size of the second image.
    pub after_bytes: u64,
    /// Bytes in ranges of kind [`ChangeKind::Changed`].
    pub changed_bytes: u64,
    /// Bytes in ranges of kind [`ChangeKind::Zeroed`].
    pub zeroed_bytes: u64,
    /// Bytes in ranges of kind [`ChangeKind::FromZero`].
    pub from_zero_bytes: u64,
    /// Bytes in ranges of kind [`ChangeKind::Grown`].
    pub grown_bytes: u64,
    /// Bytes in ranges of kind [`ChangeKind::Cut`].
    pub cut_bytes: u64,
    /// Number of ranges.
    pub ranges: u64,
}

impl ImageDiff {
    /// Returns the bytes in ranges of all kinds.
    pub fn total_bytes(&self) -> u64 {
        self.changed_bytes + self.zeroed_bytes + self.from_zero_bytes + self.grown_bytes + self.cut_bytes
    }

    fn of(&mut self, kind: ChangeKind) -> &mut u64 {
        match kind {
            ChangeKind::Changed => &mut self.changed_bytes,
            ChangeKind::Zeroed => &mut self.zeroed_bytes,
            ChangeKind::FromZero => &mut self.from_zero_bytes,
            ChangeKind::Grown => &mut self.grown_bytes,
            ChangeKind::Cut => &mut self.cut_bytes,
        }
    }
}

/// Compares two images of one repository, and passes the differences to `each` from the start of the disk to its end.
///
/// On an error `each` has seen only a part of them. Images with blocks of different sizes can't be compared: the error
/// has kind Invalid. Within one repository all block sizes are equal.
pub fn diff(
    store: &dyn StoreReader,
    before: &Image,
    after: &Image,
    each: &mut dyn FnMut(ChangedRange),
) -> Result<ImageDiff> {
    let before = read_manifest(store, before.manifest)?;
    let after = read_manifest(store, after.manifest)?;
    if before.block_size() != after.block_size() {
        return Err(Error::OtherBlockSize {
            before: before.block_size().bytes(),
            after: after.block_size().bytes(),
        });
    }
    let mut merger = Merger {
        each,
        open: None,
        found: ImageDiff {
            before_bytes: before.size_bytes(),
            after_bytes: after.size_bytes(),
            ..ImageDiff::default()
        },
    };
    let both_bytes = before.size_bytes().min(after.size_bytes());
    let both_segments = segment_count(before.block_size(), both_bytes) as usize;
    let mut batch = Vec::new();
    for number in 0..both_segments {
        if before.segment(number)? != after.segment(number)? {
            batch.push(number);
        }
        if batch.len() == BATCH_SEGMENTS || number + 1 == both_segments {
            compare(
                store,
                [&before, &after],
                &std::mem::take(&mut batch),
                both_bytes,
                &mut merger,
            )?;
        }
    }
    if after.size_bytes() > both_bytes {
        merger.add(both_bytes, after.size_bytes() - both_bytes, ChangeKind::Grown);
    } else if before.size_bytes() > both_bytes {
        merger.add(both_bytes, before.size_bytes() - both_bytes, ChangeKind::Cut);
    }
    Ok(merger.finish())
}

/// Compares the segments in `numbers`, which must ascend, up to the end of the shorter image.
fn compare(
    store: &dyn StoreReader,
    images: [&Manifest; 2],
    numbers: &[usize],
    both_bytes: u64,
    merger: &mut Merger,
) -> Result<()> {
    let both = numbers.iter().flat_map(|&number| images.map(|image| (image, number)));
    let wanted = both.map(|(image, number)| Ok((image.segment(number)?, image.slots_in(number))));
    let mut read = read_segments(store, &wanted.collect::<Result<Vec<_>>>()?).into_iter();
    let block_size = images[0].block_size();
    for &number in numbers {
        let (Some(first), Some(second)) = (read.next(), read.next()) else {
            break;
        };
        // One segment may have more slots; those are past the end of the other image.
        for (place, (old, new)) in first?.slots.iter().zip(&second?.slots).enumerate() {
            let kind = match (old, new) {
                _ if old == new => continue,
                (None, _) => ChangeKind::FromZero,
                (_, None) => ChangeKind::Zeroed,
                (Some(_), Some(_)) => ChangeKind::Changed,
            };
            let index = BlockIndex((number * SEGMENT_SLOTS + place) as u64);
            let len = block_size.len_of(index, both_bytes) as u64;
            merger.add(block_size.offset_of(index), len, kind);
        }
    }
    Ok(())
}

/// Merges ranges of one kind that touch.
struct Merger<'a> {
    each: &'a mut dyn FnMut(ChangedRange),
    open: Option<ChangedRange>,
    found: ImageDiff,
}

impl Merger<'_> {
    fn add(&mut self, offset_bytes: u64, len_bytes: u64, kind: ChangeKind) {
        *self.found.of(kind) += len_bytes;
        if let Some(open) = &mut self.open
            && open.kind == kind
            && open.offset_bytes + open.len_bytes == offset_bytes
        {
            open.len_bytes += len_bytes;
            return;
        }
        self.give();
        self.open = Some(ChangedRange {
            offset_bytes,
            len_bytes,
            kind,
        });
    }

    fn give(&mut self) {
        if let Some(range) = self.open.take() {
            self.found.ranges += 1;
            (self.each)(range);
        }
    }

    fn finish(mut self) -> ImageDiff {
        self.give();
        self.found
    }
}

#[cfg(test)]
mod tests;
