//! The boot sector: the geometry of a FAT volume.

use crate::device::{le16, le32};
use crate::error::{Error, Result};
use crate::fs::pages::Pages;

use super::names;

/// Offset of the copy of the boot sector, in sectors of 512 bytes; Windows looks nowhere else (FAT32 only).
const BACKUP_SECTOR: u64 = 6;
/// Most clusters of a FAT12 (`MAX_FAT12`).
const MAX_FAT12_CLUSTERS: u64 = 0xff4;
/// Most clusters of a FAT16 (`MAX_FAT16`).
const MAX_FAT16_CLUSTERS: u64 = 0xfff4;
/// Most clusters of a FAT32 (`MAX_FAT32`).
const MAX_FAT32_CLUSTERS: u64 = 0x0fff_fff6;

/// Width of a number in the file allocation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// Geometry of a volume. Offsets are in bytes.
pub(super) struct Boot {
    pub(super) width: Width,
    pub(super) cluster_bytes: u64,
    /// Number of clusters; the first has the number 2.
    clusters: u64,
    clusters_at: u64,
    table_at: u64,
    table_bytes: u64,
    /// Tables that are kept alike.
    tables: u64,
    /// Top directory of FAT12 and FAT16, which lies before the clusters.
    pub(super) root_at: u64,
    pub(super) root_bytes: u64,
    /// Top directory of FAT32.
    pub(super) root_cluster: Option<u32>,
    pub(super) media: u8,
    pub(super) serial: u32,
    pub(super) label: Option<String>,
    pub(super) dirty: bool,
}

impl Boot {
    /// Reads the boot sector, or its copy if that is damaged, with a remark.
    pub(super) fn read(pages: &Pages) -> Result<(Self, Option<String>)> {
        let first = pages.array(0).and_then(|sector| Self::parse(&sector));
        let error = match first {
            Ok(boot) => return Ok((boot, None)),
            Err(error) => error,
        };
        let copy = pages.array(BACKUP_SECTOR * 512).and_then(|sector| Self::parse(&sector));
        match copy {
            Ok(boot) if boot.width == Width::Fat32 => {
                let remark = "the boot sector is damaged; opened by the copy in sector 6";
                Ok((boot, Some(remark.to_owned())))
            }
            _ => Err(error),
        }
    }

    fn parse(sector: &[u8; 512]) -> Result<Self> {
        let bad = |what: &str| Error::damaged(format!("boot sector: {what}"));
        let sector_bytes = u64::from(le16(sector, 11));
        let cluster_sectors = u64::from(sector[13]);
        if !matches!(sector_bytes, 512 | 1024 | 2048 | 4096) || !cluster_sectors.is_power_of_two() {
            return Err(bad("size of a sector or cluster"));
        }
        let sectors = match le16(sector, 19) {
            0 => u64::from(le32(sector, 32)),
            sectors => u64::from(sectors),
        };
        let (reserved, tables) = (u64::from(le16(sector, 14)), u64::from(sector[16]));
        let is_fat32 = le16(sector, 22) == 0;
        let table_sectors = match le16(sector, 22) {
            0 => u64::from(le32(sector, 36)),
            sectors => u64::from(sectors),
        };
        if reserved == 0 || tables == 0 || table_sectors == 0 {
            return Err(bad("no file allocation table"));
        }
        // None of these sums exceeds 2^53.
        let table_bytes = table_sectors * sector_bytes;
        let table_at = reserved * sector_bytes;
        let root_at = table_at + tables * table_bytes;
        let root_bytes = (u64::from(le16(sector, 17)) * 32).next_multiple_of(sector_bytes);
        let clusters_at = root_at + root_bytes;
        let cluster_bytes = cluster_sectors * sector_bytes;
        let data_bytes = (sectors * sector_bytes)
            .checked_sub(clusters_at)
            .ok_or_else(|| bad("the tables exceed the volume"))?;
        let clusters = data_bytes / cluster_bytes;
        let width = match clusters {
            _ if is_fat32 => Width::Fat32,
            0..=MAX_FAT12_CLUSTERS => Width::Fat12,
            _ => Width::Fat16,
        };
        let (bits, most) = match width {
            Width::Fat12 => (12, MAX_FAT12_CLUSTERS),
            Width::Fat16 => (16, MAX_FAT16_CLUSTERS),
            Width::Fat32 => (32, MAX_FAT32_CLUSTERS),
        };
        if clusters > most {
            return Err(bad("number of clusters"));
        }
        // The serial number and the label follow the fields of each kind.
        let tail = if is_fat32 { 64 } else { 36 };
        let flags = le16(sector, 40);
        let mut boot = Self {
            width,
            cluster_bytes,
            clusters: clusters.min((table_bytes * 8 / bits).saturating_sub(2)),
            clusters_at,
            table_at,
            table_bytes,
            tables,
            root_at,
            root_bytes,
            root_cluster: is_fat32.then(|| le32(sector, 44)),
            media: sector[21],
            serial: le32(sector, tail + 3),
            label: names::label(&sector[tail + 7..tail + 18]),
            dirty: sector[tail + 1] & 1 != 0,
        };
        // BPB_ExtFlags: bit 7 says that only one table is kept, the lower bits say which.
        if is_fat32 && flags & 0x80 != 0 && u64::from(flags & 0xf) < tables {
            boot.table_at += u64::from(flags & 0xf) * table_bytes;
            boot.tables = 1;
        }
        Ok(boot)
    }

    /// Returns the offsets of the first table and of the second; the same one if there is no second.
    pub(super) fn tables(&self) -> [u64; 2] {
        let second = if self.tables > 1 { self.table_bytes } else { 0 };
        [self.table_at, self.table_at + second]
    }

    /// Returns the offset of a cluster.
    pub(super) fn cluster_at(&self, number: u32) -> Option<u64> {
        let index = u64::from(number)
            .checked_sub(2)
            .filter(|index| *index < self.clusters)?;
        Some(self.clusters_at + index * self.cluster_bytes)
    }
}
