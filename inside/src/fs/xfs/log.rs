//! Log: whether it is clean, and its records from the tail to the head.
//!
//! The search for head and tail is that of `xlog_find_head` and `xlog_find_tail` (fs/xfs/xfs_log_recover.c), the
//! structures are those of libxfs/xfs_log_format.h. The log is a ring of basic blocks of 512 bytes. Each block begins
//! with the number of the round, the cycle, in which it was written; the bytes that were there are in the header of
//! the record.

use std::io;

use crate::device::{SharedDevice, be32, be64, le32};

use super::superblock::Superblock;
use super::volume::Volume;
use items::Replay;
use overlay::Overlay;
use transactions::committed;

pub(super) mod items;
pub(super) mod overlay;
pub(super) mod transactions;

#[cfg(test)]
mod tests;

/// Length of a basic block.
pub(super) const BASIC_BLOCK_BYTES: usize = 512;
/// `XLOG_HEADER_MAGIC_NUM`.
const MAGIC: u32 = 0xfeed_babe;
/// Longest record (`XLOG_MAX_RECORD_BSIZE`), in basic blocks.
const MAX_RECORD_BLOCKS: u64 = (256 << 10) / 512;
/// Records that may be under way at once (`XLOG_MAX_ICLOGS`).
const MAX_RECORDS_UNDER_WAY: u64 = 8;
/// Basic blocks whose cycles fit into one header (`XLOG_CYCLE_DATA_SIZE`).
const CYCLES_PER_HEADER: usize = 64;
/// Longest log (`XFS_MAX_LOG_BYTES` is just below 2 GiB).
const MAX_LOG_BYTES: u64 = 2 << 30;
/// `XLOG_UNMOUNT_TRANS`.
const UNMOUNT: u8 = 0x20;
/// Blocks read at once.
const READ_BLOCKS: u64 = 128;

/// Reason for not replaying a log.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The log or what it refers to makes no sense, or is too much.
    Because(String),
    /// The device can't be read.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        Self::Because(why.to_owned())
    }
}

/// Result of reading a log.
pub(super) type LogResult<T> = std::result::Result<T, Refusal>;

/// A log inside its file system.
pub(super) struct Log {
    device: SharedDevice,
    offset_bytes: u64,
    /// Length in basic blocks.
    blocks: u64,
    has_checksums: bool,
    metadata_uuid: [u8; 16],
    uuid: [u8; 16],
}

/// Part of a log that was not yet written to its final places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dirty {
    tail: u64,
    head: u64,
}

/// A record: its position and its content as it was before it got the cycles.
pub(super) struct Record {
    /// Sequence number of the record: cycle and basic block.
    pub lsn: u64,
    /// Number of operations in `data`.
    pub operations: u32,
    pub data: Vec<u8>,
}

struct Header {
    bytes: Vec<u8>,
    header_blocks: u64,
    data_blocks: u64,
}

impl Log {
    /// Returns the log of a volume; `None` if it is on another device.
    pub fn of(volume: &Volume) -> LogResult<Option<Self>> {
        let superblock: &Superblock = &volume.superblock;
        if superblock.log_start == 0 {
            return Ok(None);
        }
        let offset_bytes = volume.offset_of(superblock.log_start, superblock.log_blocks);
        let offset_bytes = offset_bytes.ok_or("the log is outside of the volume")?;
        let len_bytes = superblock.log_blocks << superblock.block_log;
        let end_bytes = offset_bytes + len_bytes;
        let lengths = MAX_RECORD_BLOCKS * 512..=MAX_LOG_BYTES;
        if !lengths.contains(&len_bytes) || end_bytes > volume.device.size_bytes() {
            return Err("the log has an invalid length".into());
        }
        Ok(Some(Self {
            device: volume.device.clone(),
            offset_bytes,
            blocks: len_bytes / BASIC_BLOCK_BYTES as u64,
            has_checksums: superblock.has_checksums,
            metadata_uuid: superblock.metadata_uuid,
            uuid: superblock.uuid,
        }))
    }

    /// Reads `count` blocks from `block`, around the end of the ring.
    fn read(&self, block: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize * BASIC_BLOCK_BYTES];
        let block = block % self.blocks;
        let first = count.min(self.blocks - block) as usize * BASIC_BLOCK_BYTES;
        let (before, after) = bytes.split_at_mut(first);
        self.device
            .read_at(self.offset_bytes + block * BASIC_BLOCK_BYTES as u64, before)?;
        if !after.is_empty() {
            self.device.read_at(self.offset_bytes, after)?;
        }
        Ok(bytes)
    }

    fn cycle(&self, block: u64) -> io::Result<u32> {
        Ok(cycle_of(&self.read(block, 1)?))
    }

    /// Finds the first block with `cycle` in a part whose last block has it (`xlog_find_cycle_start`).
    fn cycle_start(&self, mut first: u64, mut last: u64, cycle: u32) -> io::Result<u64> {
        let mut middle = first.midpoint(last);
        while middle != first && middle != last {
            match self.cycle(middle)? == cycle {
                true => last = middle,
                false => first = middle,
            }
            middle = first.midpoint(last);
        }
        Ok(last)
    }

    /// Returns the first of `count` blocks that has `cycle` (`xlog_find_verify_cycle`).
    fn find_cycle(&self, start: u64, count: u64, cycle: u32) -> io::Result<Option<u64>> {
        let mut at = start;
        while at < start + count {
            let step = READ_BLOCKS.min(start + count - at);
            let bytes = self.read(at, step)?;
            let found = bytes
                .chunks(BASIC_BLOCK_BYTES)
                .position(|block| cycle_of(block) == cycle);
            if let Some(found) = found {
                return Ok(Some(at + found as u64));
            }
            at += step;
        }
        Ok(None)
    }

    /// Returns the last block before `end` that begins a record, not looking before `start`.
    fn header_before(&self, start: u64, end: u64) -> io::Result<Option<u64>> {
        let mut end = end;
        while end > start {
            let from = end.saturating_sub(READ_BLOCKS).max(start);
            let bytes = self.read(from, end - from)?;
            let found = bytes
                .chunks(BASIC_BLOCK_BYTES)
                .rposition(|block| be32(block, 0) == MAGIC);
            if let Some(found) = found {
                return Ok(Some(from + found as u64));
            }
            end = from;
        }
        Ok(None)
    }

    fn header(&self, block: u64) -> LogResult<Header> {
        let bytes = self.read(block, 1)?;
        if be32(&bytes, 0) != MAGIC {
            return Err("a record has no magic number".into());
        }
        let uuid = &bytes[304..320];
        if uuid != self.uuid && uuid != self.metadata_uuid {
            return Err("the log belongs to another file system".into());
        }
        let version = be32(&bytes, 8);
        let (len, size) = (be32(&bytes, 12), be32(&bytes, 320));
        // Version 1 has no field for the size and only one header.
        let header_blocks = match version {
            1 => 1,
            2 | 3 if size <= 256 << 10 => size.div_ceil(32 << 10).max(1),
            _ => return Err("a record has an unknown version or size".into()),
        };
        let data_blocks = u64::from(len).div_ceil(BASIC_BLOCK_BYTES as u64);
        if data_blocks > u64::from(header_blocks) * CYCLES_PER_HEADER as u64 {
            return Err("a record is longer than its header says".into());
        }
        Ok(Header {
            bytes,
            header_blocks: header_blocks.into(),
            data_blocks,
        })
    }

    /// Moves `head` before a record that was not written whole (`xlog_find_verify_log_record`).
    fn before_partial_record(&self, head: u64) -> LogResult<u64> {
        let start = head.saturating_sub(MAX_RECORD_BLOCKS);
        let mut wrapped = 0;
        let mut found = self.header_before(start, head)?;
        if found.is_none() && start == 0 {
            let start = self.blocks.saturating_sub(MAX_RECORD_BLOCKS - head);
            found = self.header_before(start, self.blocks)?;
            wrapped = head;
        }
        let block = found.ok_or("no record before its head")?;
        let header = self.header(block)?;
        let end = if wrapped > 0 || block >= head {
            self.blocks + head
        } else {
            head
        };
        match end - block == header.header_blocks + header.data_blocks {
            true => Ok(head),
            false => Ok(block),
        }
    }

    /// Returns the block after the last record that was written whole; `None` if nothing was ever written.
    fn head(&self) -> LogResult<Option<u64>> {
        let scanned = MAX_RECORDS_UNDER_WAY * MAX_RECORD_BLOCKS;
        let (first_cycle, last_cycle) = (self.cycle(0)?, self.cycle(self.blocks - 1)?);
        if first_cycle == 0 {
            return Ok(None);
        }
        if last_cycle == 0 {
            if first_cycle != 1 {
                return Err("the log has no order".into());
            }
            let mut head = self.cycle_start(0, self.blocks - 1, 0)?;
            let start = head.saturating_sub(scanned);
            if let Some(found) = self.find_cycle(start, head - start, 0)? {
                head = found;
            }
            return self.before_partial_record(head).map(Some);
        }
        let (mut head, stop_cycle) = match first_cycle == last_cycle {
            true => (self.blocks, last_cycle.wrapping_sub(1)),
            false => (self.cycle_start(0, self.blocks - 1, last_cycle)?, last_cycle),
        };
        let scanned = scanned.min(self.blocks);
        if head >= scanned {
            if let Some(found) = self.find_cycle(head - scanned, scanned, stop_cycle)? {
                head = found;
            }
        } else {
            let at_end = scanned - head;
            let older = stop_cycle.wrapping_sub(1);
            if let Some(found) = self.find_cycle(self.blocks - at_end, at_end, older)? {
                head = found;
            } else if let Some(found) = self.find_cycle(0, head, stop_cycle)? {
                head = found;
            }
        }
        let head = self.before_partial_record(head)?;
        Ok(Some(head % self.blocks))
    }

    /// Finds the part of the log that is to be replayed; `None` if the file system was unmounted.
    pub fn dirty(&self) -> LogResult<Option<Dirty>> {
        let Some(mut head) = self.head()? else {
            return Ok(None);
        };
        let mut last = self.record_before(head)?;
        if self.is_unmount(last, head)? {
            return Ok(None);
        }
        let mut tail = self.tail_of(last)?;
        // Of the records that may have been under way, the first with a wrong checksum was torn, and all after it count
        // as never written (`xlog_verify_head`).
        let mut records = vec![last];
        while records.len() < MAX_RECORDS_UNDER_WAY as usize && records.last() != Some(&tail) {
            match self.record_before(last)? {
                block if records.contains(&block) => break,
                block => last = block,
            }
            records.push(last);
        }
        for at in (0..records.len()).rev() {
            match self.record(records[at]) {
                Ok(_) => {}
                Err(Refusal::Io(error)) => return Err(error.into()),
                Err(Refusal::Because(_)) => {
                    head = records[at];
                    let before = *records.get(at + 1).ok_or("its last records are damaged")?;
                    tail = self.tail_of(before)?;
                    break;
                }
            }
        }
        Ok(Some(Dirty { tail, head }))
    }

    /// Tests for the record of a clean unmount: the last before the head, with one operation.
    fn is_unmount(&self, block: u64, head: u64) -> LogResult<bool> {
        let header = self.header(block)?;
        let after = (block + header.header_blocks + header.data_blocks) % self.blocks;
        if after != head || be32(&header.bytes, 40) != 1 {
            return Ok(false);
        }
        let operation = self.read(block + header.header_blocks, 1)?;
        Ok(operation[9] & UNMOUNT != 0)
    }

    fn tail_of(&self, record: u64) -> LogResult<u64> {
        let tail = u64::from(be32(&self.header(record)?.bytes, 28));
        match tail < self.blocks {
            true => Ok(tail),
            false => Err("its tail is outside of it".into()),
        }
    }

    /// Returns the block of the last record that begins before `block` in the ring.
    fn record_before(&self, block: u64) -> LogResult<u64> {
        let start = block.saturating_sub(2 * MAX_RECORD_BLOCKS);
        let mut found = self.header_before(start, block)?;
        if found.is_none() && start == 0 {
            let start = self.blocks.saturating_sub(2 * MAX_RECORD_BLOCKS);
            found = self.header_before(start.max(block), self.blocks)?;
        }
        found.ok_or_else(|| "no record before its head".into())
    }

    /// Reads the record at `block` and puts back the bytes that the cycles replaced (`xlog_unpack_data`).
    fn record(&self, block: u64) -> LogResult<(Record, u64)> {
        let header = self.header(block)?;
        let headers = self.read(block, header.header_blocks)?;
        let mut data = self.read(block + header.header_blocks, header.data_blocks)?;
        let stored = le32(&header.bytes, 32);
        // Version 4 may leave the checksum at zero.
        if (stored != 0 || self.has_checksums) && !record_crc_holds(&headers, &data, be32(&header.bytes, 12), stored) {
            return Err("a record's checksum does not match".into());
        }
        // XLOG_FMT_LINUX_LE; the kernel refuses other machines' logs as well.
        if be32(&header.bytes, 300) != 1 {
            return Err("it was written by a machine of another byte order".into());
        }
        for (index, block) in data.chunks_mut(BASIC_BLOCK_BYTES).enumerate() {
            let (part, slot) = (index / CYCLES_PER_HEADER, index % CYCLES_PER_HEADER);
            // The first header has its array at 44, the others have theirs after one number.
            let at = if part == 0 { 44 } else { part * BASIC_BLOCK_BYTES + 4 } + slot * 4;
            let original = headers.get(at..at + 4).ok_or("a record is longer than its headers")?;
            block[..4].copy_from_slice(original);
        }
        data.truncate(be32(&header.bytes, 12) as usize);
        let record = Record {
            lsn: be64(&header.bytes, 16),
            operations: be32(&header.bytes, 40),
            data,
        };
        Ok((record, header.header_blocks + header.data_blocks))
    }

    /// Replays the dirty part in memory. Returns the changed blocks over the device, and a remark.
    pub fn replay(&self, superblock: &Superblock, dirty: Dirty) -> LogResult<(Overlay, String)> {
        let mut replay = Replay::new(superblock, Overlay::new(self.device.clone()));
        committed(self, dirty, &mut |transaction| replay.note(&transaction))?;
        committed(self, dirty, &mut |transaction| replay.apply(&transaction))?;
        let (transactions, unfinished) = (replay.transactions, replay.unfinished());
        let kib = (replay.overlay.len() * BASIC_BLOCK_BYTES).div_ceil(1024);
        let mut remark = format!("the log was replayed in memory ({transactions} transactions, {kib} KiB)");
        if unfinished > 0 {
            remark += &format!(
                "; {unfinished} operations were unfinished and stay so: space to be freed, or the last step of a \
                 change of extents or attributes"
            );
        }
        Ok((replay.overlay, remark))
    }

    /// Calls `each` for all records of the dirty part, oldest first.
    pub fn records(&self, dirty: Dirty, each: &mut dyn FnMut(Record) -> LogResult<()>) -> LogResult<()> {
        let mut left = (dirty.head + self.blocks - dirty.tail) % self.blocks;
        let mut at = dirty.tail;
        while left > 0 {
            let (record, len) = self.record(at)?;
            left = left.checked_sub(len).ok_or("a record passes its head")?;
            at = (at + len) % self.blocks;
            each(record)?;
        }
        Ok(())
    }
}

/// Returns the cycle at the start of a block; a header has it after its magic number (`xlog_get_cycle`).
fn cycle_of(block: &[u8]) -> u32 {
    match be32(block, 0) {
        MAGIC => be32(block, 4),
        cycle => cycle,
    }
}

/// Tests the checksum of a record: of its header without padding, of its further headers, of its data
/// (`xlog_cksum`). The length of the first depends on the machine.
fn record_crc_holds(headers: &[u8], data: &[u8], len: u32, stored: u32) -> bool {
    let data = data.get(..len as usize).unwrap_or(data);
    let mut sums = [328, 324].into_iter().map(|header_bytes| {
        let crc = crc32c::crc32c(&headers[..32]);
        let crc = crc32c::crc32c_append(crc, &[0; 4]);
        let mut crc = crc32c::crc32c_append(crc, &headers[36..header_bytes]);
        for more in headers.chunks_exact(BASIC_BLOCK_BYTES).skip(1) {
            crc = crc32c::crc32c_append(crc, &more[..4 + CYCLES_PER_HEADER * 4]);
        }
        crc32c::crc32c_append(crc, data)
    });
    crate::proven(sums.any(|sum| sum == stored))
}
