//! How much of a disk's earlier image is still in a later one: of a disk that was encrypted, wiped or replaced, nearly nothing is.
//!
//! It is found by the manifests, and not by figures that the client wrote. Segments are compared by their names; they are read
//! only if those alone do not show that enough is the same.

use std::ops::AddAssign;

use crate::backup::Image;
use crate::error::Result;
use crate::manifest::{Manifest, Segment};
use crate::slots::{read_manifest, read_segments};
use crate::store::StoreReader;

/// Segments from which on their names may be enough, and the share of equal names that is.
const MANY: u64 = 64;
const MANY_SAME: f64 = 0.5;

/// Segments that are read of each image in one call.
const BATCH_SEGMENTS: usize = 16;

/// Blocks of an earlier image, and those among them that are at their places in a later one. Blocks of zeros do not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of blocks of the earlier image.
    pub before_bytes: u64,
    /// Bytes of those that are the same in the later one.
    pub same_bytes: u64,
}

impl Kept {
    /// Returns the share that is the same; 1 if there was nothing.
    pub fn share(&self) -> f64 {
        match self.before_bytes {
            0 => 1.0,
            before => self.same_bytes as f64 / before as f64,
        }
    }
}

impl AddAssign for Kept {
    fn add_assign(&mut self, other: Self) {
        self.before_bytes += other.before_bytes;
        self.same_bytes += other.same_bytes;
    }
}

/// Compares two images of one disk. If half of many segments have the same names, the figures are those of whole segments. An
/// image with another block size has nothing that is the same.
pub fn kept(store: &dyn StoreReader, before: &Image, after: &Image) -> Result<Kept> {
    let before = read_manifest(store, before.manifest)?;
    let after = read_manifest(store, after.manifest)?;
    let (mut rough, mut many) = (Kept::default(), 0);
    let mut all = Vec::new();
    let segment_bytes = u64::from(before.block_size()) * crate::manifest::SEGMENT_SLOTS as u64;
    for (at, old) in segments(&before)?
        .into_iter()
        .enumerate()
        .filter(|(_, old)| *old != Segment::ZERO)
    {
        let new = same_place(&before, &after, at)?.unwrap_or(Segment::ZERO);
        many += 1;
        rough.before_bytes += segment_bytes;
        if new == old {
            rough.same_bytes += segment_bytes;
        }
        all.push((at, old, new));
    }
    if many >= MANY && rough.share() >= MANY_SAME {
        return Ok(rough);
    }
    let mut found = Kept::default();
    let block_bytes = u64::from(before.block_size());
    for batch in all.chunks(BATCH_SEGMENTS) {
        let wanted: Vec<_> = batch
            .iter()
            .flat_map(|&(at, old, new)| [(old, before.slots_in(at)), (new, slots_of(&after, at))])
            .collect();
        let mut read = read_segments(store, &wanted).into_iter();
        while let (Some(old), Some(new)) = (read.next(), read.next()) {
            let (old, new) = (old?.slots, new?.slots);
            for (slot, old) in old.iter().enumerate().filter(|(_, old)| old.is_some()) {
                found.before_bytes += block_bytes;
                if new.get(slot) == Some(old) {
                    found.same_bytes += block_bytes;
                }
            }
        }
    }
    Ok(found)
}

fn segments(manifest: &Manifest) -> Result<Vec<Segment>> {
    (0..manifest.segments())
        .map(|number| manifest.segment(number))
        .collect()
}

/// Returns the number of slots of a segment; 0 if the image does not reach it.
fn slots_of(manifest: &Manifest, number: usize) -> usize {
    match number < manifest.segments() {
        true => manifest.slots_in(number),
        false => 0,
    }
}

/// Returns the segment of the later image at the same place.
fn same_place(before: &Manifest, after: &Manifest, number: usize) -> Result<Option<Segment>> {
    match after.block_size() == before.block_size() && slots_of(after, number) > 0 {
        true => after.segment(number).map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests;
