//! Puts plain bytes into a store as an image, for the tests of this crate.

use crate::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use crate::block::{BlockIndex, BlockSize, is_zero};
use crate::codec::{Compression, Sealer};
use crate::store::StoreWriter;
use crate::writer::ImageWriter;

/// Stores an image, without a record.
pub(crate) fn store_image(store: &dyn StoreWriter, disk: &str, plain: &[u8]) -> Image {
    let block_size = store.identity().expect("identity").block_size;
    let writer = ImageWriter::create(store, block_size, plain.len() as u64);
    let mut sealer = Sealer::new(Compression::Zstd(1)).expect("a sealer");
    for (index, block) in (0..).zip(plain.chunks(block_size.bytes())) {
        let slot = if is_zero(block) {
            None
        } else {
            let hashes = store.hashing().block(block);
            let sealed = sealer.seal(block, &hashes).expect("seals");
            store.put(vec![sealed]).expect("puts");
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
