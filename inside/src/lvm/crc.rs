//! The two checksums of volume metadata, by table: the text of a group may have megabytes.

/// Seed of every checksum of LVM (`INITIAL_CRC`, lib/misc/crc.h).
const LVM_SEED: u32 = 0xf597_a6cf;

static ISO: [u32; 256] = table(0xedb8_8320);
static CASTAGNOLI: [u32; 256] = table(0x82f6_3b78);

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

fn crc(table: &[u32; 256], seed: u32, bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ table[usize::from((crc as u8) ^ byte)];
    bytes.iter().fold(seed, step)
}

/// Computes `calc_crc` of LVM, which inverts nothing at the end.
pub(super) fn lvm(bytes: &[u8]) -> u32 {
    crc(&ISO, LVM_SEED, bytes)
}

/// Computes `dm_bm_checksum` (drivers/md/persistent-data/dm-block-manager.c): CRC-32C without the last inversion, and
/// with a constant for each kind of block.
pub(super) fn persistent_data(bytes: &[u8], xor: u32) -> u32 {
    crc(&CASTAGNOLI, !0, bytes) ^ xor
}
