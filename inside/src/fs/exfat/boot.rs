//! The boot region (3.1): the geometry of an exFAT volume, twice, with checksums.

use crate::device::{le16, le32};
use crate::error::{Error, Result};
use crate::fs::pages::Pages;

/// Sectors of the boot region that the checksum covers, which is in the sector after them (3.4).
const COVERED_SECTORS: u64 = 11;
/// First sector of the copy.
const COPY_SECTOR: u64 = 12;
/// `VolumeFlags`: the second table is in use; the volume was not unmounted.
const SECOND_TABLE: u16 = 0x1;
const DIRTY: u16 = 0x2;

/// Geometry of a volume. Offsets are in bytes.
pub(super) struct Boot {
    pub(super) cluster_bytes: u64,
    clusters: u64,
    clusters_at: u64,
    pub(super) table_at: u64,
    pub(super) root_cluster: u32,
    pub(super) serial: u32,
    pub(super) dirty: bool,
}

impl Boot {
    /// Reads the boot region, or its copy if that is damaged, with a remark.
    pub(super) fn read(pages: &Pages) -> Result<(Self, Option<String>)> {
        let error = match Self::read_region(pages, 0) {
            Ok(boot) => return Ok((boot, None)),
            Err(error) => error,
        };
        // The size of a sector is not known if the first one is damaged.
        let copies = [512, 1024, 2048, 4096].map(|sector_bytes| COPY_SECTOR * sector_bytes);
        let copy = copies.into_iter().find_map(|at| Self::read_region(pages, at).ok());
        let remark = "the boot region is damaged; opened by its copy in sector 12";
        copy.map(|boot| (boot, Some(remark.to_owned()))).ok_or(error)
    }

    fn read_region(pages: &Pages, at: u64) -> Result<Self> {
        let sector = pages.array::<512>(at)?;
        let bad = |what: &str| Error::damaged(format!("boot region at {at}: {what}"));
        if sector[3..11] != *b"EXFAT   " {
            return Err(bad("no mark of exFAT"));
        }
        let (sector_log, cluster_log) = (u32::from(sector[108]), u32::from(sector[109]));
        if !(9..=12).contains(&sector_log) || sector_log + cluster_log > 25 {
            return Err(bad("size of a sector or cluster"));
        }
        let sector_bytes = 1_u64 << sector_log;
        let mut region = vec![0; (COVERED_SECTORS * sector_bytes) as usize];
        pages.read_at(at, &mut region)?;
        let stored = pages.array::<4>(at + COVERED_SECTORS * sector_bytes)?;
        if !crate::proven(checksum(&region) == le32(&stored, 0)) {
            return Err(bad("checksum"));
        }
        let flags = le16(&sector, 106);
        let table_bytes = u64::from(le32(&sector, 84)) * sector_bytes;
        let second = flags & SECOND_TABLE != 0 && sector[110] == 2;
        let clusters = u64::from(le32(&sector, 92));
        if table_bytes / 4 < clusters + 2 {
            return Err(bad("number of clusters"));
        }
        Ok(Self {
            cluster_bytes: sector_bytes << cluster_log,
            clusters,
            clusters_at: u64::from(le32(&sector, 88)) * sector_bytes,
            table_at: u64::from(le32(&sector, 80)) * sector_bytes + if second { table_bytes } else { 0 },
            root_cluster: le32(&sector, 96),
            serial: le32(&sector, 100),
            dirty: flags & DIRTY != 0,
        })
    }

    /// Returns the offset of a cluster.
    pub(super) fn cluster_at(&self, number: u32) -> Option<u64> {
        let index = u64::from(number)
            .checked_sub(2)
            .filter(|index| *index < self.clusters)?;
        Some(self.clusters_at + index * self.cluster_bytes)
    }

    /// Returns the cluster around an offset.
    pub(super) fn cluster_of(&self, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.clusters_at)? / self.cluster_bytes;
        u32::try_from(index + 2).ok().filter(|_| index < self.clusters)
    }

    /// Returns the end of the last cluster.
    pub(super) fn end_bytes(&self) -> u64 {
        self.clusters_at + self.clusters * self.cluster_bytes
    }
}

/// Checksum of a boot region, without the fields that change while the volume is mounted (figure 1).
pub(super) fn checksum(region: &[u8]) -> u32 {
    let covered = region
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 106 | 107 | 112));
    covered.fold(0, |sum: u32, (_, byte)| {
        sum.rotate_right(1).wrapping_add(u32::from(*byte))
    })
}
