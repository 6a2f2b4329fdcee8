//! Chunks of a btrfs: the location of logical addresses on the devices.

use super::Superblock;
use crate::device::{le16, le64};

/// Limit above the stripes that a chunk can have: an item must fit into a tree block.
const MAX_STRIPES: usize = 2048;

/// Length of a key on disk (`struct btrfs_disk_key`).
pub(crate) const KEY_BYTES: usize = 17;
const CHUNK_BYTES: usize = 48;
const STRIPE_BYTES: usize = 32;
/// `BTRFS_CHUNK_ITEM_KEY`.
pub(crate) const CHUNK_ITEM: u8 = 228;

// `BTRFS_BLOCK_GROUP_*`.
const RAID0: u64 = 1 << 3;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;

/// Location of a range of logical addresses.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) len: u64,
    kind: u64,
    stripe_len: u64,
    sub_stripes: u64,
    /// Device number and offset of each stripe.
    pub(crate) stripes: Vec<(u64, u64)>,
}

impl Chunk {
    /// Parses the item of the chunk that starts at `start`; `None` if it contradicts itself.
    pub(crate) fn parse(start: u64, bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..CHUNK_BYTES)?;
        let count = usize::from(le16(head, 44)).min(MAX_STRIPES);
        let stripes = bytes.get(CHUNK_BYTES..CHUNK_BYTES + count * STRIPE_BYTES)?;
        let stripes: Vec<_> = stripes
            .chunks_exact(STRIPE_BYTES)
            .map(|it| (le64(it, 0), le64(it, 8)))
            .collect();
        let chunk = Self {
            start,
            len: le64(head, 0),
            kind: le64(head, 24),
            stripe_len: le64(head, 16),
            sub_stripes: u64::from(le16(head, 46)),
            stripes,
        };
        let sound = chunk.stripe_len.is_power_of_two() && !chunk.stripes.is_empty();
        sound.then_some(chunk)
    }

    fn bytes(&self) -> usize {
        CHUNK_BYTES + self.stripes.len() * STRIPE_BYTES
    }

    /// Returns the number of stripes that may be lost without losing data (`btrfs_raid_array`, `tolerated_failures`).
    pub(super) fn may_lose(&self) -> usize {
        match self.kind {
            kind if kind & (RAID1C4) != 0 => 3,
            kind if kind & (RAID1C3 | RAID6) != 0 => 2,
            kind if kind & (RAID1 | RAID10 | RAID5) != 0 => 1,
            // Both copies are on one device, so they exist together or not at all.
            _ => 0,
        }
    }

    /// Returns device and offset of each copy of the byte at `logical`. A tree block never crosses the edge of a
    /// stripe; other data may go on for [`Self::run_bytes`].
    pub(crate) fn copies(&self, logical: u64) -> Vec<(u64, u64)> {
        let Some(offset) = logical.checked_sub(self.start).filter(|offset| *offset < self.len) else {
            return Vec::new();
        };
        let (stripe, inside) = (offset / self.stripe_len, offset % self.stripe_len);
        let count = self.stripes.len() as u64;
        let at = |index: u64, row: u64| {
            let (devid, start) = *self.stripes.get(usize::try_from(index).ok()?)?;
            Some((
                devid,
                start
                    .checked_add(row.checked_mul(self.stripe_len)?)?
                    .checked_add(inside)?,
            ))
        };
        let whole = |(devid, start): &(u64, u64)| Some((*devid, start.checked_add(offset)?));
        let parity = |lost| {
            let data = count.checked_sub(lost).filter(|data| *data > 0)?;
            let row = stripe / data;
            at((stripe % data + row) % count, row)
        };
        match self.kind {
            kind if kind & (RAID1 | RAID1C3 | RAID1C4 | DUP) != 0 => self.stripes.iter().filter_map(whole).collect(),
            kind if kind & RAID0 != 0 => at(stripe % count, stripe / count).into_iter().collect(),
            kind if kind & RAID10 != 0 => {
                let copies = self.sub_stripes.clamp(1, count);
                let (groups, first) = (count / copies, stripe % (count / copies) * copies);
                (first..first + copies)
                    .filter_map(|index| at(index, stripe / groups))
                    .collect()
            }
            kind if kind & RAID5 != 0 => parity(1).into_iter().collect(),
            kind if kind & RAID6 != 0 => parity(2).into_iter().collect(),
            _ => self.stripes.first().and_then(whole).into_iter().collect(),
        }
    }

    /// Returns the number of bytes from `logical` on that lie in one piece on each device; 0 outside of the chunk.
    pub(crate) fn run_bytes(&self, logical: u64) -> u64 {
        let Some(offset) = logical.checked_sub(self.start).filter(|offset| *offset < self.len) else {
            return 0;
        };
        let left = self.len - offset;
        if self.kind & (RAID0 | RAID10 | RAID5 | RAID6) == 0 {
            return left;
        }
        left.min(self.stripe_len - offset % self.stripe_len)
    }

    /// Returns the pieces whose XOR is the data at `logical`: those of the other data stripes and of the parity P, in
    /// RAID5 and RAID6 (`raid56_parity_recover`, fs/btrfs/raid56.c). Empty for other profiles.
    pub(crate) fn parity(&self, logical: u64) -> Vec<(u64, u64)> {
        let lost = match self.kind {
            kind if kind & RAID5 != 0 => 1,
            kind if kind & RAID6 != 0 => 2,
            _ => return Vec::new(),
        };
        let count = self.stripes.len() as u64;
        let (Some(offset), Some(data)) = (logical.checked_sub(self.start), count.checked_sub(lost)) else {
            return Vec::new();
        };
        if data == 0 {
            return Vec::new();
        }
        let (stripe, inside) = (offset / self.stripe_len, offset % self.stripe_len);
        let row = stripe / data;
        let at = |index: u64| {
            let (devid, start) = *self.stripes.get(usize::try_from((index + row % count) % count).ok()?)?;
            let offset = row.checked_mul(self.stripe_len)?.checked_add(inside)?;
            Some((devid, start.checked_add(offset)?))
        };
        // Index `data` is the parity's.
        let others: Option<Vec<_>> = (0..=data).filter(|index| *index != stripe % data).map(at).collect();
        others.unwrap_or_default()
    }
}

/// Parses the chunks that the superblock itself describes: those of the chunk tree.
pub(crate) fn system_chunks(superblock: &Superblock) -> Vec<Chunk> {
    let mut rest = superblock.system_chunks();
    let mut chunks = Vec::new();
    while let Some((key, after)) = rest.split_at_checked(KEY_BYTES) {
        let Some(chunk) = Chunk::parse(le64(key, 9), after).filter(|_| key[8] == CHUNK_ITEM) else {
            break;
        };
        rest = after.get(chunk.bytes()..).unwrap_or_default();
        chunks.push(chunk);
    }
    chunks
}
