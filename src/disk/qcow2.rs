//! Writes a qcow2 image from start to end: never changes one, and reads none.
//!
//! The file, in clusters of 64 KiB (QEMU, docs/interop/qcow2.rst, version 3; all numbers are big-endian):
//!
//! | clusters | content | written |
//! |---|---|---|
//! | 0 | header | last |
//! | 1.. | L1 table: offsets of the L2 tables | at the end |
//! | after it | data, and an L2 table for each 512 MiB of the disk that has data: offsets of its clusters | in order of the writes |
//! | then | refcount blocks: each cluster is used once | at the end |
//! | last | refcount table: offsets of the refcount blocks | at the end |
//!
//! A cluster of zeros is not stored, and neither is an L2 table without entries: the offset 0 reads as zeros. L2 entries
//! are written as soon as their data is, so memory holds only the L1 table, 16 KiB per TiB of disk.
//!
//! The header comes last, so an unfinished file is not taken for an image. It is also still without its final name
//! ([`Target::finish`]).

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vbk_repo::block::is_zero;

use crate::disk::target::Target;
use crate::error::{Error, Result};

/// Bytes of a cluster, QEMU's default: also the unit in which blocks are proved, so each part of a damaged block is a
/// whole number of clusters.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of an L2 table, which fills one cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Refcounts in a refcount block, of 2^4 bits each.
const REFCOUNTS: u64 = (CLUSTER * 8) >> REFCOUNT_ORDER;
const REFCOUNT_ORDER: u32 = 4;
/// Bit 63 of an entry: the refcount of the cluster is exactly one.
const COPIED: u64 = 1 << 63;
/// L2 tables that QEMU accepts: an L1 table of 32 MiB (block/qcow2.h, QCOW_MAX_L1_SIZE), for 2 EiB.
const MAX_TABLES: u64 = (32 << 20) / 8;
/// QEMU counts a disk in sectors (block/qcow2.c, qcow2_do_open).
const SECTOR: u64 = 512;
const VERSION: u32 = 3;
const HEADER_BYTES: u32 = 104;

/// A qcow2 image on its way to a file. Many threads may write to it at once.
pub(crate) struct Qcow2<'a> {
    target: &'a Target,
    size_bytes: u64,
    /// Offset of the first cluster that is free, as are all after it.
    end: AtomicU64,
    /// Offsets of the L2 tables; 0 for one that is not needed so far.
    tables: Mutex<Vec<u64>>,
}

impl<'a> Qcow2<'a> {
    /// Name of the format.
    pub(crate) const NAME: &'static str = "qcow2";

    /// Estimates the size of the file for a disk with `data_bytes` of data. The file should have that size from the start:
    /// a write past the end of a file would keep the others waiting (fs/ext4/file.c, ext4_dio_write_checks).
    pub(crate) fn file_bytes(size_bytes: u64, data_bytes: u64) -> u64 {
        let tables = data_bytes / L2_ENTRIES + size_bytes.div_ceil(CLUSTER * L2_ENTRIES) * 8;
        data_bytes.saturating_add(tables).saturating_add(8 * CLUSTER)
    }

    /// Begins an image for a disk of `size_bytes`, in a file that reads as zeros.
    pub(crate) fn begin(target: &'a Target, size_bytes: u64) -> Result<Self> {
        if size_bytes > MAX_TABLES * L2_ENTRIES * CLUSTER {
            let too_large = std::io::ErrorKind::FileTooLarge;
            return Err(Error::target("write a disk of that size to", target.path())(
                too_large.into(),
            ));
        }
        let size_bytes = size_bytes.next_multiple_of(SECTOR);
        // A disk without bytes has one entry too: QEMU wants a table.
        let tables = size_bytes.div_ceil(CLUSTER * L2_ENTRIES).max(1);
        let table_bytes = (tables * 8).next_multiple_of(CLUSTER);
        Ok(Self {
            target,
            size_bytes,
            end: AtomicU64::new(CLUSTER + table_bytes),
            tables: Mutex::new(vec![0; tables as usize]),
        })
    }

    /// Writes at an offset of the disk, a multiple of 64 KiB, each cluster once. `bytes` starts at an aligned address and
    /// has only whole clusters, except at the end of the disk.
    pub(crate) fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let mut first = offset_bytes / CLUSTER;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            // Up to the end of the L2 table.
            let room = (L2_ENTRIES - first % L2_ENTRIES) * CLUSTER;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.write_in_table(first, now)?;
            first += now.len() as u64 / CLUSTER;
            bytes = later;
        }
        Ok(())
    }

    fn write_in_table(&self, first: u64, bytes: &[u8]) -> Result<()> {
        let is_data: Vec<bool> = bytes.chunks(CLUSTER as usize).map(|chunk| !is_zero(chunk)).collect();
        let count = is_data.iter().filter(|is_data| **is_data).count() as u64;
        if count == 0 {
            return Ok(());
        }
        let mut free = self.take(count);
        let mut entries = Vec::with_capacity(is_data.len() * 8);
        // Neighbours go to the file with one write.
        let mut number = 0;
        for run in is_data.chunk_by(|one, next| one == next) {
            let start = number * CLUSTER as usize;
            number += run.len();
            if run[0] {
                let end = (number * CLUSTER as usize).min(bytes.len());
                self.target.write(free, &bytes[start..end])?;
            }
            for is_data in run {
                let entry = if *is_data { free | COPIED } else { 0 };
                entries.extend(entry.to_be_bytes());
                free += if *is_data { CLUSTER } else { 0 };
            }
        }
        let table = self.table((first / L2_ENTRIES) as usize);
        self.target.write_buffered(table + first % L2_ENTRIES * 8, &entries)
    }

    /// Takes free clusters, which follow each other. Returns the offset of the first.
    fn take(&self, count: u64) -> u64 {
        self.end.fetch_add(count * CLUSTER, Ordering::SeqCst)
    }

    /// Returns the offset of an L2 table. A new one reads as zeros, because nothing was written there.
    fn table(&self, number: usize) -> u64 {
        let mut tables = self.tables.lock();
        if tables[number] == 0 {
            tables[number] = self.take(1);
        }
        tables[number]
    }

    /// Writes the tables and the header. The caller then finishes the target.
    pub(crate) fn finish(self) -> Result<()> {
        let tables = self.tables.into_inner();
        let used = self.end.into_inner() / CLUSTER;
        let counts = Refcounts::of(used);
        for number in 0..counts.blocks {
            let first = number * REFCOUNTS;
            let ones = counts.clusters(used).saturating_sub(first).min(REFCOUNTS);
            let mut block = vec![0; CLUSTER as usize];
            for refcount in block.chunks_exact_mut(2).take(ones as usize) {
                refcount.copy_from_slice(&1_u16.to_be_bytes());
            }
            self.target.write_buffered((used + number) * CLUSTER, &block)?;
        }
        let table_offset = (used + counts.blocks) * CLUSTER;
        self.target.set_len(counts.clusters(used) * CLUSTER)?;
        let blocks = (used..used + counts.blocks).map(|cluster| cluster * CLUSTER);
        let mut table: Vec<u8> = blocks.flat_map(u64::to_be_bytes).collect();
        table.resize((counts.table * CLUSTER) as usize, 0);
        self.target.write_buffered(table_offset, &table)?;

        let entry = |offset: &u64| if *offset == 0 { 0 } else { offset | COPIED };
        let l1: Vec<u8> = tables.iter().flat_map(|offset| entry(offset).to_be_bytes()).collect();
        self.target.write_buffered(CLUSTER, &l1)?;

        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend(b"QFI\xfb");
        header.extend(VERSION.to_be_bytes());
        // No backing file: its offset and length.
        header.extend([0; 8 + 4]);
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size_bytes.to_be_bytes());
        // No encryption.
        header.extend([0; 4]);
        header.extend((tables.len() as u32).to_be_bytes());
        header.extend(CLUSTER.to_be_bytes());
        header.extend(table_offset.to_be_bytes());
        header.extend((counts.table as u32).to_be_bytes());
        // No internal snapshots: their number and the offset of their table. No incompatible, compatible or autoclear
        // features.
        header.extend([0; 4 + 8 + 3 * 8]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_BYTES.to_be_bytes());
        // The list of header extensions ends with zeros, which follow in any case.
        self.target.write_buffered(0, &header)
    }
}

/// Clusters of the refcount structures, which count themselves too.
struct Refcounts {
    blocks: u64,
    table: u64,
}

impl Refcounts {
    /// Plans the structures for a file that has `used` clusters without them.
    fn of(used: u64) -> Self {
        let mut counts = Self { blocks: 0, table: 0 };
        // Both only grow, and a block counts far more clusters than it adds: this ends after a few rounds.
        loop {
            let blocks = counts.clusters(used).div_ceil(REFCOUNTS);
            let table = (blocks * 8).div_ceil(CLUSTER);
            if (blocks, table) == (counts.blocks, counts.table) {
                return counts;
            }
            counts = Self { blocks, table };
        }
    }

    /// Returns the clusters of the whole file.
    fn clusters(&self, used: u64) -> u64 {
        used + self.blocks + self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_count_themselves() {
        for used in [
            2,
            REFCOUNTS - 3,
            REFCOUNTS - 2,
            REFCOUNTS - 1,
            REFCOUNTS,
            1 << 28,
            8192 * REFCOUNTS,
            1 << 40,
        ] {
            let counts = Refcounts::of(used);
            assert!(counts.blocks * REFCOUNTS >= counts.clusters(used), "{used} clusters");
            assert!(
                (counts.blocks - 1) * REFCOUNTS < counts.clusters(used),
                "{used} clusters"
            );
            assert!(counts.table * L2_ENTRIES >= counts.blocks, "{used} clusters");
        }
    }
}
