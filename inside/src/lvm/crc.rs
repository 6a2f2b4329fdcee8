//! The two checksums of volume metadata.

/// Seed of every checksum of LVM (`INITIAL_CRC`, lib/misc/crc.h).
const LVM_SEED: u32 = 0xf597_a6cf;

/// CRC-32 of ISO 3309. By table: the text of a group may have megabytes.
static TABLE: [u32; 256] = table(0xedb8_8320);

const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (polynomial & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Computes `calc_crc` of LVM, which inverts nothing at the end.
pub(super) fn lvm(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)];
    bytes.iter().fold(LVM_SEED, step)
}

/// Computes `dm_bm_checksum` (drivers/md/persistent-data/dm-block-manager.c): CRC-32C without the last inversion, and
/// with a constant for each kind of block.
pub(super) fn persistent_data(bytes: &[u8], xor: u32) -> u32 {
    !crc32c::crc32c(bytes) ^ xor
}
