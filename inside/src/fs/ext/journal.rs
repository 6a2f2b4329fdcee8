//! The journal, jbd2: which blocks of the file system are newer in it. Nothing is written, and no content is kept: a
//! block is read from the journal when it is needed, and verified then.
//!
//! The format is that of include/linux/jbd2.h, the rules of what counts are those of `do_one_pass` in
//! fs/jbd2/recovery.c: the log ends at the first transaction without a valid commit block. All numbers are big-endian.

use std::collections::HashMap;
use std::ops::Range;

use super::checksum::{START, crc32_be, crc32c, crc32c_without};
use super::content::Blocks;
use super::fast_commit::{self, FastCommits};
use super::replayed::{Checksums, Copy, MAGIC, Replayed};
use super::superblock::{be32_at, be64_at};
use super::volume::Volume;
use crate::device::{be16, be32, be64};
use crate::error::{Error, Result};

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// REVOKE, 64BIT, ASYNC_COMMIT, CSUM_V2, CSUM_V3, FAST_COMMIT.
const INCOMPAT_KNOWN: u32 = 0x3f;

/// The block in the journal begins with zeros in place of the magic number (`JBD2_FLAG_ESCAPE`).
const FLAG_ESCAPED: u16 = 1;
const FLAG_SAME_UUID: u16 = 2;
const FLAG_LAST: u16 = 8;

/// Length of the fields at the start of each of the journal's blocks.
const HEADER_BYTES: usize = 12;
/// Most blocks that are replayed, with 32 bytes of memory for each: 8 GiB with blocks of 4 KiB. mke2fs makes journals
/// of 1 GiB by default at most.
const MAX_COPIES: usize = 1 << 21;
/// Most blocks of fast commits that are read: mke2fs makes a 64th of a journal for them. Padding alone could fill any
/// number of blocks, which may all be the same one.
const MAX_FAST_BLOCKS: u64 = 1 << 16;
/// Most blocks that are revoked, with about as much memory.
const MAX_REVOKED: usize = 1 << 21;

/// Result of reading a journal.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub replayed: Replayed,
    /// Number of blocks that the log holds, of which some are older states of others.
    pub blocks: usize,
    pub transactions: u32,
    /// Reason why the log may have gone on.
    pub cut: Option<String>,
    /// Changes after the last transaction that are not in the form of blocks.
    pub fast_commits: FastCommits,
    /// Reason why there may be more of them.
    pub fast_cut: Option<String>,
}

/// Reads the log of the journal whose content is in `blocks`.
pub(super) fn read(volume: &Volume, blocks: &Blocks) -> Result<Log> {
    let journal = Journal::open(volume, blocks)?;
    if journal.start == 0 {
        return Ok(Log::default());
    }
    Scan::new(&journal).run()
}

/// A journal: `struct journal_superblock_s`.
struct Journal<'a> {
    volume: &'a Volume,
    content: &'a Blocks,
    first: u64,
    /// Block after the last of the log, which goes on at the first.
    end: u64,
    /// Blocks of fast commits.
    fast: Range<u64>,
    start: u64,
    sequence: u32,
    compat: u32,
    incompat: u32,
    checksums: Checksums,
}

impl<'a> Journal<'a> {
    fn open(volume: &'a Volume, content: &'a Blocks) -> Result<Self> {
        let damaged = |what: &str| Err(Error::damaged(format!("journal: {what}")));
        let mut journal = Self {
            volume,
            content,
            first: 0,
            end: content.inode.size_bytes / volume.superblock.block_bytes,
            fast: 0..0,
            start: 0,
            sequence: 0,
            compat: 0,
            incompat: 0,
            checksums: Checksums::None,
        };
        let bytes = journal.block(0)?;
        let version = be32(&bytes, 4);
        if be32(&bytes, 0) != MAGIC || !matches!(version, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
            return damaged("no superblock");
        }
        if u64::from(be32(&bytes, 12)) != volume.superblock.block_bytes {
            return damaged("invalid block size");
        }
        let blocks = u64::from(be32(&bytes, 16));
        if blocks > journal.end {
            return damaged("shorter than its superblock says");
        }
        (journal.first, journal.sequence) = (be32(&bytes, 20).into(), be32(&bytes, 24));
        (journal.start, journal.end) = (be32(&bytes, 28).into(), blocks);
        if version == SUPERBLOCK_V2 {
            (journal.compat, journal.incompat) = (be32(&bytes, 36), be32(&bytes, 40));
            let seed = crc32c(START, &bytes[48..64]);
            journal.checksums = match journal.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) {
                0 => Checksums::None,
                INCOMPAT_CSUM_V2 => Checksums::V2(seed),
                _ => Checksums::V3(seed),
            };
        }
        let unknown = journal.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(Error::unsupported(format!(
                "journal with the unknown features {unknown:#x}"
            )));
        }
        let is_intact = match journal.checksums {
            Checksums::None => true,
            Checksums::V2(_) | Checksums::V3(_) => be32(&bytes, 252) == crc32c_without(START, &bytes[..1024], 252..256),
        };
        if !crate::proven(is_intact) {
            return damaged("wrong checksum of its superblock");
        }
        if journal.incompat & INCOMPAT_FAST_COMMIT != 0 {
            // JBD2_DEFAULT_FAST_COMMIT_BLOCKS, JBD2_MIN_JOURNAL_BLOCKS
            let stored = u64::from(be32(&bytes, 84));
            let fast = if stored == 0 { 256 } else { stored };
            journal.end = Some(journal.end.saturating_sub(fast))
                .filter(|it| *it >= 1024)
                .unwrap_or(journal.end);
            // One block after the log is not used (`journal_load_superblock`, fs/jbd2/journal.c).
            journal.fast = journal.end + 1..blocks;
        }
        let log = journal.first..journal.end;
        if journal.first == 0 || log.is_empty() || journal.start != 0 && !log.contains(&journal.start) {
            return damaged("invalid position of its log");
        }
        Ok(journal)
    }

    /// Returns the block of the volume that holds a block of the journal.
    fn position(&self, number: u64) -> Result<u64> {
        let run = self.content.run(self.volume, number)?;
        let block = run.block.map(|block| block + (number - run.first));
        block.ok_or_else(|| Error::damaged(format!("journal: hole at its block {number}")))
    }

    fn block(&self, number: u64) -> Result<Vec<u8>> {
        self.volume.block(self.position(number)?)
    }

    /// Returns the block of the log after some others.
    fn next(&self, number: u64, blocks: u64) -> u64 {
        let length = self.end - self.first;
        self.first + (number - self.first + blocks % length) % length
    }

    /// Tests the checksum at the end of a block of tags or revoked blocks.
    fn is_intact(&self, block: &[u8]) -> bool {
        let tail = block.len().saturating_sub(4);
        match self.checksums {
            Checksums::None => true,
            Checksums::V2(seed) | Checksums::V3(seed) => {
                let sum = crc32c_without(seed, block, tail..block.len());
                crate::proven(be32_at(block, tail) == Some(sum))
            }
        }
    }

    /// Reads the tags of a descriptor block: `journal_block_tag_t`, `journal_block_tag3_t`.
    fn tags(&self, block: &[u8]) -> Vec<Tag> {
        let is_64bit = self.incompat & INCOMPAT_64BIT != 0;
        let short = if is_64bit { 12 } else { 8 };
        let (tag_bytes, tail_bytes) = match self.checksums {
            Checksums::None => (short, 0),
            Checksums::V2(_) => (short + 2, 4),
            Checksums::V3(_) => (16, 4),
        };
        let mut tags = Vec::new();
        let mut at = HEADER_BYTES;
        while at + tag_bytes <= block.len().saturating_sub(tail_bytes) {
            let Some(bytes) = block.get(at..at + tag_bytes) else {
                break;
            };
            let high = if is_64bit { be32(bytes, 8) } else { 0 };
            let flags = be16(bytes, 6);
            tags.push(Tag {
                block: u64::from(be32(bytes, 0)) | u64::from(high) << 32,
                checksum: match self.checksums {
                    Checksums::None => 0,
                    Checksums::V2(_) => be16(bytes, 4).into(),
                    Checksums::V3(_) => be32(bytes, 12),
                },
                is_escaped: flags & FLAG_ESCAPED != 0,
            });
            at += tag_bytes + if flags & FLAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & FLAG_LAST != 0 {
                break;
            }
        }
        tags
    }

    /// Reads the fast commits on top of the last transaction.
    fn fast_commits(&self, next_sequence: u32) -> (FastCommits, Option<String>) {
        let mut scan = fast_commit::Scan::new(next_sequence, self.volume.superblock.inode_bytes);
        for number in self.fast.clone() {
            if number - self.fast.start == MAX_FAST_BLOCKS {
                return (scan.found, Some(format!("more than {MAX_FAST_BLOCKS} blocks of them")));
            }
            let block = self.block(number).map_err(|error| Some(error.to_string()));
            if let Err(end) = block.and_then(|block| scan.block(&block)) {
                return (scan.found, end);
            }
        }
        (scan.found, None)
    }
}

/// A tag: a block of the file system, of which the log has a copy.
struct Tag {
    block: u64,
    checksum: u32,
    is_escaped: bool,
}

/// State of walking through a log.
struct Scan<'a> {
    journal: &'a Journal<'a>,
    /// Copies of all transactions in the order of the log, each with the number of its transaction.
    copies: Vec<(u32, Copy)>,
    /// Copies of the transactions that are complete.
    committed: usize,
    /// Blocks that were freed, with the last transaction that says so. Older copies don't count.
    revoked: HashMap<u64, u32>,
    /// Those of the transaction that is being read.
    revoking: Vec<u64>,
    transactions: u32,
    /// Checksum of the transaction's blocks, in journals with COMPAT_CHECKSUM.
    checksum: u32,
    /// A block of the transaction has a wrong checksum: damage, or the rest of an earlier journal.
    is_suspect: bool,
    commit_seconds: u64,
}

impl<'a> Scan<'a> {
    fn new(journal: &'a Journal<'a>) -> Self {
        Self {
            journal,
            copies: Vec::new(),
            committed: 0,
            revoked: HashMap::new(),
            revoking: Vec::new(),
            transactions: 0,
            checksum: !0,
            is_suspect: false,
            commit_seconds: 0,
        }
    }

    fn sequence(&self) -> u32 {
        self.journal.sequence.wrapping_add(self.transactions)
    }

    fn run(mut self) -> Result<Log> {
        let journal = self.journal;
        let mut at = journal.start;
        // A log that is longer than its journal repeats itself.
        let mut left = journal.end - journal.first;
        let mut cut = None;
        while left > 0 {
            let block = match journal.block(at) {
                Ok(block) => block,
                Err(error) => {
                    cut = Some(error.to_string());
                    break;
                }
            };
            if be32(&block, 0) != MAGIC || be32(&block, 8) != self.sequence() {
                break;
            }
            at = journal.next(at, 1);
            left -= 1;
            match be32(&block, 4) {
                DESCRIPTOR => {
                    self.is_suspect |= !journal.is_intact(&block);
                    let tags = journal.tags(&block);
                    let count = tags.len() as u64;
                    if count > left {
                        break;
                    }
                    if let Err(error) = self.descriptor(&block, tags, at) {
                        cut = Some(error.to_string());
                        break;
                    }
                    at = journal.next(at, count);
                    left -= count;
                }
                REVOKE => {
                    self.is_suspect |= !journal.is_intact(&block);
                    self.revoke(&block);
                }
                COMMIT => match self.commit(&block) {
                    Ok(()) => {}
                    Err(reason) => {
                        cut = reason;
                        break;
                    }
                },
                _ => break,
            }
            if self.copies.len() > MAX_COPIES || self.revoked.len() + self.revoking.len() > MAX_REVOKED {
                return Err(Error::unsupported("journal of millions of blocks"));
            }
        }
        let (fast_commits, fast_cut) = match cut {
            None => journal.fast_commits(self.sequence()),
            Some(_) => Default::default(),
        };
        let log = self.finish(cut);
        Ok(Log {
            fast_commits,
            fast_cut,
            ..log
        })
    }

    /// Notes the copies that follow a descriptor block at `at`.
    fn descriptor(&mut self, block: &[u8], tags: Vec<Tag>, at: u64) -> Result<()> {
        let journal = self.journal;
        let sums_all = journal.compat & COMPAT_CHECKSUM != 0 && !self.is_suspect;
        if sums_all {
            self.checksum = crc32_be(self.checksum, block);
        }
        for (index, tag) in (0..).zip(tags) {
            let position = journal.position(journal.next(at, index))?;
            if sums_all {
                self.checksum = crc32_be(self.checksum, &journal.volume.block(position)?);
            }
            let copy = Copy {
                block: tag.block,
                offset_bytes: position.saturating_mul(journal.volume.superblock.block_bytes),
                sequence: self.sequence(),
                checksum: tag.checksum,
                is_escaped: tag.is_escaped,
            };
            self.copies.push((self.transactions, copy));
        }
        Ok(())
    }

    /// Notes the blocks that a revoke block names: `jbd2_journal_revoke_header_t`, whose count is in bytes.
    fn revoke(&mut self, block: &[u8]) {
        let end = be32_at(block, HEADER_BYTES)
            .map_or(0, |end| end as usize)
            .min(block.len());
        let records = block.get(HEADER_BYTES + 4..end).unwrap_or_default();
        if self.journal.incompat & INCOMPAT_64BIT != 0 {
            self.revoking
                .extend(records.chunks_exact(8).map(|record| be64(record, 0)));
        } else {
            self.revoking
                .extend(records.chunks_exact(4).map(|record| u64::from(be32(record, 0))));
        }
    }

    /// Completes a transaction: `struct commit_header`. The error ends the log, with the reason if it is not the
    /// regular end.
    fn commit(&mut self, block: &[u8]) -> std::result::Result<(), Option<String>> {
        let seconds = be64_at(block, 48).unwrap_or(0);
        let sum = be32_at(block, 16).unwrap_or(0);
        let (kind, bytes) = (block.get(12).copied(), block.get(13).copied());
        // Written by kernels without the checksum, or as JBD2_CRC32_CHKSUM of 4 bytes.
        let is_unused = (kind, bytes, sum) == (Some(0), Some(0), 0);
        let sums_match = self.journal.compat & COMPAT_CHECKSUM == 0
            || is_unused
            || (kind, bytes, sum) == (Some(1), Some(4), self.checksum);
        let is_intact = match self.journal.checksums {
            Checksums::None => true,
            Checksums::V2(seed) | Checksums::V3(seed) => sum == crc32c_without(seed, block, 16..20),
        };
        if self.is_suspect || !crate::proven(sums_match && is_intact) {
            // An older commit block is the rest of an earlier journal.
            let is_damage = seconds >= self.commit_seconds;
            let reason = || format!("wrong checksum in transaction {}", self.sequence());
            return Err(is_damage.then(reason));
        }
        for block in self.revoking.drain(..) {
            self.revoked.insert(block, self.transactions);
        }
        self.committed = self.copies.len();
        self.commit_seconds = seconds;
        self.checksum = !0;
        self.transactions += 1;
        Ok(())
    }

    fn finish(mut self, cut: Option<String>) -> Log {
        self.copies.truncate(self.committed);
        let revoked = self.revoked;
        let is_valid = |(transaction, copy): &(u32, Copy)| revoked.get(&copy.block).is_none_or(|it| it < transaction);
        self.copies.retain(is_valid);
        let blocks = self.copies.len();
        // The last copy of each block counts; sorting keeps their order.
        self.copies.sort_by_key(|(_, copy)| copy.block);
        let mut copies: Vec<Copy> = Vec::with_capacity(blocks);
        for (_, copy) in self.copies {
            match copies.last_mut() {
                Some(last) if last.block == copy.block => *last = copy,
                _ => copies.push(copy),
            }
        }
        Log {
            replayed: Replayed {
                copies,
                checksums: self.journal.checksums,
            },
            blocks,
            transactions: self.transactions,
            cut,
            ..Log::default()
        }
    }
}
