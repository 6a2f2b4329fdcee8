//! Fast commits: the newest changes of a journal, written as records of inodes, extents and names after its log. They
//! are kept in memory and laid over the inodes and directories whenever those are read.
//!
//! The format is that of fs/ext4/fast_commit.h. The rules of what counts are those of `ext4_fc_replay_scan`: commits
//! count up to the first that is not complete. The kernel does not record the times and link counts of directories in
//! which names change, so that these are the old ones here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::checksum::crc32c;
use super::ranges::{Ranges, Run};
use super::superblock::OLD_INODE_BYTES;
use crate::device::{le16, le32};
use crate::fs::is_name;

// `ext4_fc_tl`: a tag and the length of its value.
const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

/// Longest extent with content; longer ones are allocated but not written (`EXT_INIT_MAX_LEN`).
const MAX_WRITTEN_BLOCKS: u64 = 1 << 15;
/// Most records that are replayed, with about 150 bytes of memory for each beside their own. mke2fs gives fast commits a
/// 64th of the journal: 16 MiB of the largest one, which hold 100,000 new files.
const MAX_RECORDS: usize = 1 << 19;
/// Most bytes of all records.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// Inodes and names that are newer in fast commits.
#[derive(Debug, Default)]
pub(super) struct FastCommits {
    inodes: HashMap<u32, Changed>,
    names: HashMap<u32, Names>,
    pub commits: u32,
}

/// Changes of an inode.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// `struct ext4_inode` up to its extra fields. Its block map does not count.
    pub record: Option<Box<[u8]>>,
    pub ranges: Arc<Ranges>,
}

/// Changes of the names in one directory.
pub(super) type Names = BTreeMap<Vec<u8>, Name>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// Name of this inode.
    Of(u32),
    /// No longer the name of this inode.
    NotOf(u32),
    Removed,
}

impl FastCommits {
    pub fn inode(&self, number: u32) -> Option<&Changed> {
        self.inodes.get(&number)
    }

    pub fn names(&self, directory: u32) -> Option<&Names> {
        self.names.get(&directory)
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Inode(number, record) => {
                let changed = self.inodes.entry(number).or_default();
                // Another generation is another file, which got the number of a removed one.
                let generation = |record: &[u8]| le32(record, 0x64);
                if changed
                    .record
                    .as_ref()
                    .is_some_and(|old| generation(old) != generation(&record))
                {
                    changed.ranges = Arc::default();
                }
                changed.record = Some(record);
            }
            Change::Range(number, run) => {
                let changed = self.inodes.entry(number).or_default();
                Arc::make_mut(&mut changed.ranges).set(run);
            }
            Change::Link(directory, name, inode) => {
                self.names.entry(directory).or_default().insert(name, Name::Of(inode));
            }
            Change::Unlink(directory, name, inode) => {
                let names = self.names.entry(directory).or_default();
                let removed = match names.get(&name) {
                    None => Name::NotOf(inode),
                    // The name has gone to another inode (`__ext4_unlink`).
                    Some(Name::Of(other)) if *other != inode => return,
                    Some(Name::NotOf(other)) if *other == inode => return,
                    Some(_) => Name::Removed,
                };
                names.insert(name, removed);
            }
        }
    }
}

/// A change that counts when its commit is complete.
enum Change {
    Inode(u32, Box<[u8]>),
    Range(u32, Run),
    Link(u32, Vec<u8>, u32),
    Unlink(u32, Vec<u8>, u32),
}

/// Reason why the commits end. Without a text it is regular: what follows is older, or was never written.
pub(super) type End = Option<String>;

/// Reader of the blocks after the log, in their order.
pub(super) struct Scan {
    pub found: FastCommits,
    /// Number of the transaction that would have been next.
    sequence: u32,
    inode_bytes: usize,
    is_first: bool,
    pending: Vec<Change>,
    records: usize,
    record_bytes: usize,
    checksum: u32,
}

impl Scan {
    /// Starts before the first block.
    pub fn new(sequence: u32, inode_bytes: usize) -> Self {
        Self {
            found: FastCommits::default(),
            sequence,
            inode_bytes,
            is_first: true,
            pending: Vec::new(),
            records: 0,
            record_bytes: 0,
            checksum: 0,
        }
    }

    /// Reads a block.
    pub fn block(&mut self, block: &[u8]) -> Result<(), End> {
        if std::mem::take(&mut self.is_first) && !block.starts_with(&HEAD.to_le_bytes()) {
            return Err(None);
        }
        let mut rest = block;
        while let Some((head, from)) = rest.split_at_checked(4) {
            let (tag, length) = (le16(head, 0), usize::from(le16(head, 2)));
            let value = from.get(..length).filter(|value| self.is_valid(tag, value.len()));
            let value = value.ok_or(None)?;
            if tag == TAIL {
                self.tail(&rest[..8], value)?;
            } else {
                self.checksum = crc32c(self.checksum, &rest[..4 + length]);
                self.tag(tag, value)?;
            }
            rest = &from[length..];
        }
        Ok(())
    }

    /// `ext4_fc_value_len_isvalid`
    fn is_valid(&self, tag: u16, length: usize) -> bool {
        match tag {
            ADD_RANGE => length == 16,
            DEL_RANGE => length == 12,
            CREAT | LINK | UNLINK => length > 8,
            INODE => (4 + OLD_INODE_BYTES..=4 + self.inode_bytes).contains(&length),
            PAD => true,
            TAIL => length >= 8,
            HEAD => length == 8,
            _ => false,
        }
    }

    fn tag(&mut self, tag: u16, value: &[u8]) -> Result<(), End> {
        self.record_bytes += value.len();
        if tag != PAD && self.record_bytes > MAX_RECORD_BYTES {
            return Err(Some(format!("more than {} MiB of records", MAX_RECORD_BYTES >> 20)));
        }
        let change = match tag {
            // `struct ext4_fc_head`
            HEAD => {
                return match (le32(value, 0), le32(value, 4)) {
                    (_, sequence) if sequence != self.sequence => Err(None),
                    (0, _) => Ok(()),
                    (unknown, _) => Err(Some(format!("unknown features {unknown:#x}"))),
                };
            }
            // `struct ext4_fc_inode`
            INODE => Change::Inode(le32(value, 0), value[4..].into()),
            // `struct ext4_fc_add_range`, with a `struct ext4_extent`
            ADD_RANGE => {
                let (first, length) = (u64::from(le32(value, 4)), u64::from(le16(value, 8)));
                let block = u64::from(le32(value, 12)) | u64::from(le16(value, 10)) << 32;
                let is_written = length <= MAX_WRITTEN_BLOCKS;
                let length = if is_written {
                    length
                } else {
                    length - MAX_WRITTEN_BLOCKS
                };
                let block = is_written.then_some(block);
                let end = first + length;
                Change::Range(le32(value, 0), Run { first, end, block })
            }
            // `struct ext4_fc_del_range`
            DEL_RANGE => {
                let first = u64::from(le32(value, 4));
                let (end, block) = (first + u64::from(le32(value, 8)), None);
                Change::Range(le32(value, 0), Run { first, end, block })
            }
            // `struct ext4_fc_dentry_info`
            CREAT | LINK | UNLINK => {
                let (directory, inode, name) = (le32(value, 0), le32(value, 4), value[8..].to_vec());
                if !is_name(&name) {
                    return Err(Some("invalid name".to_owned()));
                }
                match tag {
                    UNLINK => Change::Unlink(directory, name, inode),
                    _ => Change::Link(directory, name, inode),
                }
            }
            _ => return Ok(()),
        };
        if let Change::Range(_, run) = &change
            && run.first >= run.end
        {
            return Err(Some("empty extent".to_owned()));
        }
        self.records += 1;
        if self.records > MAX_RECORDS {
            return Err(Some(format!("more than {MAX_RECORDS} records")));
        }
        self.pending.push(change);
        Ok(())
    }

    /// `struct ext4_fc_tail`: completes a commit. The checksum covers all tags since the last one, and this one without
    /// itself.
    fn tail(&mut self, covered: &[u8], value: &[u8]) -> Result<(), End> {
        let (sequence, checksum) = (le32(value, 0), le32(value, 4));
        if sequence != self.sequence {
            return Err(None);
        }
        if !crate::proven(checksum == crc32c(self.checksum, covered)) {
            return Err(Some("wrong checksum".to_owned()));
        }
        self.checksum = 0;
        self.found.commits += 1;
        for change in self.pending.drain(..) {
            self.found.apply(change);
        }
        Ok(())
    }
}
