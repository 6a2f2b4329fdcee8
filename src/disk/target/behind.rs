//! The space after an image on a larger device. Its bytes stay, except for signatures: the kernel, mdadm, LVM or ZFS
//! would find one and treat the device as what it was before.
//!
//! | signature | location |
//! |---|---|
//! | second header of a GPT | last sector, of 512 or 4096 bytes |
//! | Linux RAID 0.90, 1.0 | last 64 KiB to 128 KiB, last 8 KiB to 12 KiB (mdadm, super0.c and super1.c) |
//! | DDF, Intel, NVIDIA, LSI, Promise, Adaptec, Highpoint RAID | last sectors (util-linux, libblkid/src/superblocks) |
//! | ZFS labels | the last two of 256 KiB (OpenZFS, vdev_label.c) |
//! | DRBD | last 4 KiB |
//! | NTFS boot sector | last sector; ntfs3 falls back on it |
//! | bcachefs | 1 MiB and 1 MiB before the end, and the start |
//! | Btrfs superblocks | 64 KiB, 64 MiB, 256 GiB |
//! | LVM, MD 1.1 and 1.2, LUKS, XFS, ext, swap, ISO 9660, bcache | the first 5 MiB, after a small image |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A signature that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wiped {
    /// Kind of the signature.
    pub what: &'static str,
    /// Offset on the device.
    pub offset_bytes: u64,
    /// Bytes that were zeroed.
    pub len_bytes: u64,
}

/// A location where a signature may be.
struct Spot {
    what: &'static str,
    /// Start of the range to zero.
    start: u64,
    len: u64,
    /// Offset of the mark in the range.
    mark_at: u64,
    marks: &'static [&'static [u8]],
}

const SECTOR: u64 = 512;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const MD: &[&[u8]] = &[&[0xfc, 0x4e, 0x2b, 0xa9], &[0xa9, 0x2b, 0x4e, 0xfc]];
const GPT: &[&[u8]] = &[b"EFI PART"];
const ZFS: &[&[u8]] = &[&[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]];
const BTRFS: &[&[u8]] = &[b"_BHRfS_M"];
const BCACHE: &[&[u8]] = &[
    &[
        0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
    ],
    &[
        0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef,
    ],
];
const LUKS: &[&[u8]] = &[b"LUKS\xba\xbe", b"SKUL\xba\xbe"];

/// Distances from the end, in sectors, of the metadata of Promise controllers.
const PROMISE: [u64; 13] = [63, 255, 256, 16, 399, 591, 675, 735, 911, 974, 991, 951, 3087];

/// Zeroes the signatures after `end_bytes` on a device of `size_bytes`. A signature that begins before `end_bytes`
/// belongs to the image.
pub(super) fn wipe(device: &File, end_bytes: u64, size_bytes: u64) -> io::Result<Vec<Wiped>> {
    let mut wiped: Vec<Wiped> = Vec::new();
    for spot in spots(size_bytes) {
        let start = spot.start.max(end_bytes);
        let end = (spot.start + spot.len).min(size_bytes);
        if spot.start + spot.mark_at < end_bytes || start >= end || !has_mark(device, &spot, size_bytes)? {
            continue;
        }
        device.write_all_at(&vec![0; (end - start) as usize], start)?;
        wiped.push(Wiped {
            what: spot.what,
            offset_bytes: start,
            len_bytes: end - start,
        });
    }
    wiped.sort_by_key(|wiped| wiped.offset_bytes);
    Ok(wiped)
}

fn has_mark(device: &File, spot: &Spot, size_bytes: u64) -> io::Result<bool> {
    let at = spot.start + spot.mark_at;
    let len = spot.marks.iter().map(|mark| mark.len()).max().unwrap_or(0);
    let mut bytes = vec![0; len.min(size_bytes.saturating_sub(at) as usize)];
    device.read_exact_at(&mut bytes, at)?;
    Ok(spot.marks.iter().any(|mark| bytes.starts_with(mark)))
}

fn spots(size: u64) -> Vec<Spot> {
    let mut spots = at_the_start();
    spots.extend(at_the_end(size));
    // A device may be too small for some of them.
    spots.retain(|spot| spot.start + spot.mark_at < size);
    spots
}

fn spot(what: &'static str, start: u64, len: u64, mark_at: u64, marks: &'static [&'static [u8]]) -> Spot {
    Spot {
        what,
        start,
        len,
        mark_at,
        marks,
    }
}

/// Returns the spots at fixed distances from the start.
fn at_the_start() -> Vec<Spot> {
    let mut spots = vec![
        spot("XFS", 0, SECTOR, 0, &[b"XFSB"]),
        spot("GPT", SECTOR, SECTOR, 0, GPT),
        spot("GPT", 4 * KIB, SECTOR, 0, GPT),
        spot("ext2/3/4", KIB, KIB, 0x38, &[&[0x53, 0xef]]),
        spot("Linux RAID 1.1", 0, 4 * KIB, 0, MD),
        spot("Linux RAID 1.2", 4 * KIB, 4 * KIB, 0, MD),
        spot("bcache", 4 * KIB, 4 * KIB, 24, BCACHE),
        spot("bcachefs", MIB + 4 * KIB, 4 * KIB, 24, BCACHE),
        spot("ISO 9660", 32 * KIB, 2 * KIB, 1, &[b"CD001"]),
        spot("LUKS", 0, 4 * KIB, 0, LUKS),
    ];
    spots.extend((0..4).map(|sector| spot("LVM", sector * SECTOR, SECTOR, 0, &[b"LABELONE"])));
    // The second header, whose offset depends on the size of the first (cryptsetup, luks2_disk_metadata.c).
    spots.extend((14..=22).map(|bits| spot("LUKS", 1 << bits, 4 * KIB, 0, LUKS)));
    for page in [4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB] {
        spots.push(spot("swap", page - 10, 10, 0, &[b"SWAPSPACE2", b"SWAP-SPACE"]));
    }
    for copy in [64 * KIB, 64 * MIB, 256 << 30] {
        spots.push(spot("Btrfs", copy, 4 * KIB, 0x40, BTRFS));
    }
    for label in [0, 256 * KIB] {
        spots.extend(zfs_label(label));
    }
    spots
}

/// Returns the spots at fixed distances from the end.
fn at_the_end(size: u64) -> Vec<Spot> {
    let mut spots = Vec::new();
    let mut add = |what, distance: u64, len, mark_at, marks| {
        if let Some(start) = size.checked_sub(distance) {
            spots.push(spot(what, start, len, mark_at, marks));
        }
    };
    for sector in [SECTOR, 4 * KIB] {
        add("second header of a GPT", sector, sector, 0, GPT);
    }
    add("second boot sector of NTFS", SECTOR, SECTOR, 3, &[b"NTFS    "]);
    add(
        "DRBD",
        4 * KIB,
        4 * KIB,
        60,
        &[
            &[0x83, 0x74, 0x02, 0x6b],
            &[0x83, 0x74, 0x02, 0x6c],
            &[0x83, 0x74, 0x02, 0x6d],
            &[0x83, 0x74, 0x02, 0x6e],
        ],
    );
    for distance in [SECTOR, 257 * SECTOR] {
        add("DDF RAID", distance, SECTOR, 0, &[&[0xde, 0x11, 0xde, 0x11]]);
    }
    add("Intel RAID", 2 * SECTOR, SECTOR, 0, &[b"Intel Raid ISM Cfg Sig. "]);
    add("NVIDIA RAID", 2 * SECTOR, SECTOR, 0, &[b"NVIDIA  "]);
    add("LSI RAID", SECTOR, SECTOR, 0, &[b"$XIDE$"]);
    add("Adaptec RAID", SECTOR, SECTOR, 0, &[&[0x37, 0xfc, 0x4d, 0x1e]]);
    add(
        "Highpoint RAID",
        11 * SECTOR,
        SECTOR,
        0,
        &[&[0xf3, 0x16, 0x78, 0x5a], &[0xfd, 0x16, 0x78, 0x5a]],
    );
    for sectors in PROMISE {
        add(
            "Promise RAID",
            sectors * SECTOR,
            SECTOR,
            0,
            &[b"Promise Technology, Inc."],
        );
    }
    // Rounded down to 64 KiB, and 64 KiB before that.
    if let Some(start) = (size & !(64 * KIB - 1)).checked_sub(64 * KIB) {
        spots.push(spot("Linux RAID 0.90", start, 4 * KIB, 0, MD));
    }
    // 8 KiB before the end, rounded down to 4 KiB.
    if let Some(start) = (size / SECTOR).checked_sub(16) {
        spots.push(spot("Linux RAID 1.0", (start & !7) * SECTOR, 4 * KIB, 0, MD));
    }
    if let Some(start) = (size & !(4 * KIB - 1)).checked_sub(MIB) {
        spots.push(spot("bcachefs", start, 4 * KIB, 24, BCACHE));
    }
    let label_end = size & !(256 * KIB - 1);
    for distance in [512 * KIB, 256 * KIB] {
        if let Some(start) = label_end.checked_sub(distance) {
            spots.extend(zfs_label(start));
        }
    }
    spots
}

/// Returns the uberblocks of a label, of 1 KiB or more each, in its second half; ZFS does not use a label without one.
fn zfs_label(start: u64) -> impl Iterator<Item = Spot> {
    (0..128).map(move |number| spot("ZFS", start + 128 * KIB + number * KIB, KIB, 0, ZFS))
}

/// Tests that an image has a GPT, whose second header should be at the end of a larger device.
pub(super) fn has_gpt(device: &File, image_bytes: u64) -> io::Result<bool> {
    for sector in [SECTOR, 4 * KIB] {
        let mut mark = [0; 8];
        if sector + 8 <= image_bytes {
            device.read_exact_at(&mut mark, sector)?;
            if mark == *b"EFI PART" {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
