//! The checksums of ext4 and its journal. The kernel chains CRC-32C without inverting it at either end: the result of
//! one piece is the seed of the next (`ext4_chksum`, fs/ext4/ext4.h).

use crc::{CRC_16_MODBUS, CRC_32_MPEG_2, Crc, Table};

static CRC32_BE: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_MPEG_2);
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Seed of a checksum that continues no other.
pub(super) const START: u32 = !0;

/// Continues a CRC-32C over `bytes` (`crc32c_le` of the kernel).
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    // The crate inverts at both ends.
    !crc32c::crc32c_append(!seed, bytes)
}

/// Continues a CRC-32C over a block in which the checksum's own field counts as zero.
pub(super) fn crc32c_without(seed: u32, bytes: &[u8], field: std::ops::Range<usize>) -> u32 {
    let zeros = [0; 8];
    let before = bytes.get(..field.start).unwrap_or_default();
    let after = bytes.get(field.end..).unwrap_or_default();
    let middle = crc32c(
        crc32c(seed, before),
        zeros.get(..field.len()).expect("no checksum has more than 8 bytes"),
    );
    crc32c(middle, after)
}

/// Continues a big-endian CRC-32 (`crc32_be` of the kernel), the checksum of whole transactions.
pub(super) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32_BE.digest_with_initial(seed);
    digest.update(bytes);
    digest.finalize()
}

/// Computes the CRC-16 of group descriptors (`crc16` of the kernel, seed ~0) over pieces.
pub(super) fn crc16(pieces: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}
