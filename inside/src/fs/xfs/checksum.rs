//! Checksums and UUIDs of metadata.

/// Computes the CRC-32C of `bytes` with the four bytes at `crc_at` taken as zeros (`xfs_start_cksum_safe`).
pub(super) fn crc_without(bytes: &[u8], crc_at: usize) -> Option<u32> {
    let (before, rest) = bytes.split_at_checked(crc_at)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    Some(crc32c::crc32c_append(crc, rest.get(4..)?))
}

/// Tests the little-endian CRC-32C at `crc_at`.
pub(super) fn crc_holds(bytes: &[u8], crc_at: usize) -> bool {
    let stored = bytes.get(crc_at..).and_then(|rest| rest.first_chunk::<4>());
    let stored = stored.map(|stored| u32::from_le_bytes(*stored));
    stored.is_some() && crate::proven(stored == crc_without(bytes, crc_at))
}

/// Writes a UUID with dashes.
pub(super) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parts = [&uuid[..4], &uuid[4..6], &uuid[6..8], &uuid[8..10], &uuid[10..]];
    parts.map(hex).join("-")
}

/// Writes the checksum of a block.
pub(in crate::fs::xfs) fn set_crc(bytes: &mut [u8], crc_at: usize) {
    if let Some(crc) = crc_without(bytes, crc_at) {
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}
