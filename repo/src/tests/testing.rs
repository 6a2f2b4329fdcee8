//! Puts plain bytes into a store as an image, for the tests of this crate.

use std::collections::HashSet;
use std::sync::Arc;

use crate::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use crate::block::{BlockIndex, BlockSize, Hashing, is_zero};
use crate::codec::{Compression, Sealer};
use crate::differences::{New, bases, seal};
use crate::id::NodeId;
use crate::manifest::{Full, SegmentSlots, Slot};
use crate::slots::SlotReader;
use crate::store::StoreWriter;
use crate::writer::{Base, ImageWriter};

/// Stores an image, without a record.
pub(crate) fn store_image(store: &dyn StoreWriter, disk: &str, plain: &[u8]) -> Image {
    store_image_after(store, disk, plain, None)
}

/// An image whose segments are all read when they are needed.
pub(crate) struct Before<'a>(pub(crate) SlotReader<'a>);

impl Base for Before<'_> {
    fn reader(&self) -> &SlotReader<'_> {
        &self.0
    }

    fn segment(&self, number: usize) -> Option<Arc<SegmentSlots>> {
        let read = self.0.segments(number..number + 1).pop()?;
        read.ok().map(Arc::new)
    }
}

/// Stores an image by comparison with an earlier one, without a record.
pub(crate) fn store_image_after(store: &dyn StoreWriter, disk: &str, plain: &[u8], before: Option<&Image>) -> Image {
    store_image_with(store, disk, plain, before, false)
}

/// The same, and its new blocks as differences from those of the earlier image.
pub(crate) fn store_image_over(store: &dyn StoreWriter, disk: &str, plain: &[u8], before: &Image) -> Image {
    store_image_with(store, disk, plain, Some(before), true)
}

fn store_image_with(
    store: &dyn StoreWriter,
    disk: &str,
    plain: &[u8],
    before: Option<&Image>,
    has_differences: bool,
) -> Image {
    let block_size = store.identity().expect("identity").block_size;
    let before = before.map(|image| SlotReader::open(store, image.manifest).expect("opens"));
    let slots = match &before {
        Some(reader) if has_differences => (0..reader.manifest().segments())
            .flat_map(|number| reader.segment(number).expect("reads"))
            .collect(),
        _ => Vec::new(),
    };
    let before = before.map(|reader| Arc::new(Before(reader)) as Arc<dyn Base>);
    let writer = ImageWriter::after(store, block_size, plain.len() as u64, before);
    let mut sealer = Sealer::new(Compression::Zstd(1)).expect("a sealer");
    for (index, block) in (0_u64..).zip(plain.chunks(block_size.bytes())) {
        let slot = if is_zero(block) {
            None
        } else {
            let hashes = store.hashing().block(block);
            let new = New {
                plain: block,
                hashes: &hashes,
                before: slots.get(index as usize).copied().flatten(),
            };
            let is_new = !has_differences || store.locate(&[hashes.id]).expect("locates")[0].is_none();
            if is_new {
                let bases = bases(store, &HashSet::new(), &[new]).expect("reads");
                store
                    .put(seal(&mut sealer, 1, &[new], &bases).expect("seals"))
                    .expect("puts");
            }
            Some(hashes.id)
        };
        writer.set(BlockIndex(index), &[slot]).expect("sets");
    }
    Image {
        data_bytes: plain.len() as u64,
        ..Image::new(
            disk.parse().expect("a name"),
            "test",
            plain.len() as u64,
            writer.finish().expect("finishes"),
        )
    }
}

/// Returns the name and the bytes of a full segment, of which one slot at least is not zero.
pub(crate) fn segment(hashing: Hashing, slots: &[Slot]) -> (NodeId, Vec<u8>) {
    Full::of(slots).expect("not zero").encode(hashing)
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut noise = seed | 1;
    let mut byte = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    };
    (0..len).map(|_| byte()).collect()
}

/// Bytes of all kinds: text, noise and runs of zeros of many lengths.
pub(crate) fn mixed_bytes(seed: u32, len: usize) -> Vec<u8> {
    let mut noise = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let run = (noise >> 8) as usize % 200_000 + 1;
        match noise >> 30 {
            0 => bytes.extend(std::iter::repeat_n(0, run)),
            1 => bytes.extend((0..run).map(|i| b"abcdefghij"[i % 10])),
            _ => bytes.extend((0..run).map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })),
        }
    }
    bytes.truncate(len);
    bytes
}

/// Small blocks, so that small images have many.
pub(crate) const SMALL: BlockSize = BlockSize::MIN;

/// Returns a record that looks newly made.
pub(crate) fn backup(guest: &str, time: &str, images: Vec<Image>) -> Backup {
    Backup {
        format: RECORD_FORMAT,
        guest: guest.parse().expect("a name"),
        time: time.parse().expect("a time"),
        sequence: 0,
        duration_ms: 0,
        host: String::new(),
        vbk_version: String::new(),
        consistency: Consistency::Live,
        images,
        files: Vec::new(),
    }
}
