//! Compressed extents: zlib, LZO and zstd, with at most 128 KiB before and after.

use std::io::Read;

use super::item::Compression;
use super::lzo;
use crate::device::le32;

/// Limit of an extent, compressed and not (`BTRFS_MAX_COMPRESSED`, `BTRFS_MAX_UNCOMPRESSED`).
pub(super) const MAX_EXTENT_BYTES: u64 = 128 << 10;

/// Unpacks an extent to `len_bytes`, [`MAX_EXTENT_BYTES`] at most. A shorter content is filled up with zeros, as the
/// kernel does. `None` if the packed bytes are invalid.
pub(super) fn unpack(compression: Compression, packed: &[u8], len_bytes: u64, sector_bytes: usize) -> Option<Vec<u8>> {
    let len = usize::try_from(len_bytes.min(MAX_EXTENT_BYTES)).ok()?;
    let mut out = match compression {
        Compression::None => packed.get(..len.min(packed.len()))?.to_vec(),
        Compression::Zlib => {
            // The extent may be cut before the end of the stream, e.g. by a truncation of the file.
            match miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, len) {
                Ok(out) => out,
                Err(error) if error.status == miniz_oxide::inflate::TINFLStatus::HasMoreOutput => error.output,
                Err(_) => return None,
            }
        }
        Compression::Lzo => unpack_lzo(packed, len, sector_bytes)?,
        Compression::Zstd => {
            let mut decoder = ruzstd::decoding::FrameDecoder::new();
            decoder.set_max_window_size(MAX_EXTENT_BYTES);
            let reader = ruzstd::decoding::StreamingDecoder::new_with_decoder(packed, decoder).ok()?;
            let mut out = Vec::with_capacity(len);
            reader.take(len as u64).read_to_end(&mut out).ok()?;
            out
        }
    };
    out.resize(len, 0);
    Some(out)
}

/// Unpacks the segments of fs/btrfs/lzo.c: a length of all, then of each segment, which holds a sector of the content.
/// No segment's length crosses the end of a sector.
fn unpack_lzo(packed: &[u8], len: usize, sector_bytes: usize) -> Option<Vec<u8>> {
    const LENGTH_BYTES: usize = 4;
    let total = usize::try_from(le32(packed.first_chunk::<LENGTH_BYTES>()?, 0)).ok()?;
    let packed = packed.get(..total)?;
    let mut out = Vec::with_capacity(len);
    let mut at = LENGTH_BYTES;
    while at < total && out.len() < len {
        let left = sector_bytes - at % sector_bytes;
        if left < LENGTH_BYTES {
            at += left;
            continue;
        }
        let segment = usize::try_from(le32(packed.get(at..)?.first_chunk::<LENGTH_BYTES>()?, 0)).ok()?;
        at += LENGTH_BYTES;
        let end = at.checked_add(segment)?;
        lzo::unpack(packed.get(at..end)?, &mut out, sector_bytes)?;
        at = end;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fs::btrfs::fuzz_extent as fuzz;
    use crate::fuzzing;

    const CASES: u32 = 500;

    fn plain() -> Vec<u8> {
        let far = (0..20_000_u32).map(|number| (number.wrapping_mul(number) >> 9) as u8);
        let near = (0..20_000_u32).map(|number| (number % 97 + number / 1000) as u8);
        far.chain(near).collect()
    }

    /// Streams that are valid.
    fn packed() -> [Vec<u8>; 2] {
        let zstd = ruzstd::encoding::compress_to_vec(&*plain(), ruzstd::encoding::CompressionLevel::Fastest);
        [miniz_oxide::deflate::compress_to_vec_zlib(&plain(), 6), zstd]
    }

    #[test]
    fn valid_streams_are_unpacked_and_filled_up() {
        for (kind, packed) in [Compression::Zlib, Compression::Zstd].into_iter().zip(packed()) {
            let len = plain().len();
            let out = unpack(kind, &packed, len as u64 + 10, 4096).unwrap();
            assert_eq!((&out[..len], &out[len..]), (&plain()[..], &[0; 10][..]));
            let out = unpack(kind, &packed, 5000, 4096).unwrap();
            assert_eq!(out, plain()[..5000]);
            assert_eq!(unpack(kind, &packed[..packed.len() / 2], len as u64, 4096), None);
        }
    }

    #[test]
    fn seeds() {
        for (name, packed) in ["zlib", "zstd"].iter().zip(packed()) {
            fuzzing::seed("btrfs-extent", name, &packed);
        }
        // One segment of a literal run of three bytes.
        let lzo = [15, 0, 0, 0, 7, 0, 0, 0, 20, b'a', b'b', b'c', 17, 0, 0];
        assert!(unpack(Compression::Lzo, &lzo, 3, 4096).is_some_and(|plain| plain == b"abc"));
        fuzzing::seed("btrfs-extent", "lzo", &lzo);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(CASES))]

        #[test]
        fn any_bytes_unpack_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&bytes);
            fuzz(&[&[0x28, 0xb5, 0x2f, 0xfd][..], &bytes].concat());
            fuzz(&[&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x38][..], &bytes].concat());
            fuzz(&[&[0x78, 0x9c][..], &bytes].concat());
            let mut lzo = (bytes.len() as u32 + 8).to_le_bytes().to_vec();
            lzo.extend((bytes.len() as u32).to_le_bytes());
            lzo.extend(&bytes);
            fuzz(&lzo);
        }

        #[test]
        fn a_changed_stream_unpacks_or_fails(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            near_the_start in any::<bool>(),
        ) {
            for mut packed in packed() {
                let end = if near_the_start { 200 } else { packed.len() };
                for (at, byte) in &changes {
                    packed[at.index(end)] = *byte;
                }
                fuzz(&packed);
            }
        }
    }
}
