//! Transactions, put together from the operations of the log's records (`xlog_recover_process_ophdr`,
//! `xlog_recover_add_to_trans`, fs/xfs/xfs_log_recover.c).

use std::collections::HashMap;

use crate::device::{be32, le16, le32};

use super::{Dirty, Log, LogResult, Record};

/// Bound of the transactions that are not committed yet. One checkpoint has an eighth of the log at most
/// (`XLOG_CIL_SPACE_LIMIT`), and few are under way at once.
const MAX_PENDING_BYTES: usize = 256 << 20;
/// `XLOG_MAX_REGIONS_IN_ITEM`.
const MAX_REGIONS: u16 = 257;
/// Length of `struct xfs_trans_header`.
const HEADER_BYTES: usize = 16;
/// `XFS_TRANS_HEADER_MAGIC`.
const HEADER_MAGIC: u32 = 0x5452_414e;
/// Length of `struct xlog_op_header`.
const OPERATION_BYTES: usize = 12;

// Flags of an operation.
const START: u8 = 1;
const COMMIT: u8 = 2;
const CONTINUE: u8 = 4;
const WAS_CONTINUED: u8 = 8;
const END: u8 = 0x10;
const UNMOUNT: u8 = 0x20;

/// A logged change of one object: its description and the changed bytes.
#[derive(Debug, Default)]
pub(in crate::fs::xfs) struct Item {
    regions: Vec<Vec<u8>>,
    expected: usize,
}

impl Item {
    /// Returns the number of the kind (`XFS_LI_*`).
    pub fn kind(&self) -> u16 {
        self.description().get(..2).map_or(0, |bytes| le16(bytes, 0))
    }

    /// Returns the description, the first region.
    pub fn description(&self) -> &[u8] {
        self.region(0).unwrap_or_default()
    }

    /// Returns a region.
    pub fn region(&self, index: usize) -> Option<&[u8]> {
        self.regions.get(index).map(Vec::as_slice)
    }
}

/// A transaction.
#[derive(Debug, Default)]
pub(in crate::fs::xfs) struct Transaction {
    /// Sequence number of the record in which it started.
    pub lsn: u64,
    pub items: Vec<Item>,
    header: Vec<u8>,
    bytes: usize,
}

/// Calls `each` for every committed transaction of the dirty part, in the order of their commits. Others count as never
/// made.
pub(in crate::fs::xfs) fn committed(
    log: &Log,
    dirty: Dirty,
    each: &mut dyn FnMut(Transaction) -> LogResult<()>,
) -> LogResult<()> {
    let mut pending = Pending::default();
    log.records(dirty, &mut |record| pending.add(&record, each))
}

/// Transactions without their commit.
#[derive(Default)]
pub(super) struct Pending {
    transactions: HashMap<u32, Transaction>,
    bytes: usize,
}

impl Pending {
    /// Adds the operations of a record.
    pub fn add(&mut self, record: &Record, each: &mut dyn FnMut(Transaction) -> LogResult<()>) -> LogResult<()> {
        let mut rest = record.data.as_slice();
        for _ in 0..record.operations {
            let (head, after) = rest
                .split_first_chunk::<OPERATION_BYTES>()
                .ok_or("a record has fewer operations than it says")?;
            let len = be32(head, 4) as usize;
            let (data, after) = after.split_at_checked(len).ok_or("an operation passes its record")?;
            rest = after;
            self.operation(be32(head, 0), head[9], data, record.lsn, each)?;
        }
        Ok(())
    }

    fn operation(
        &mut self,
        id: u32,
        flags: u8,
        data: &[u8],
        lsn: u64,
        each: &mut dyn FnMut(Transaction) -> LogResult<()>,
    ) -> LogResult<()> {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            // The rest of a transaction that began before the tail, or slack.
            if flags & START != 0 {
                let new = Transaction {
                    lsn,
                    ..Transaction::default()
                };
                self.transactions.insert(id, new);
                self.count(HEADER_BYTES * 8)?;
            }
            return Ok(());
        };
        let mut kind = flags & !END;
        if kind & WAS_CONTINUED != 0 {
            kind &= !CONTINUE;
        }
        let before = transaction.bytes;
        match kind {
            0 | CONTINUE => transaction.add(data)?,
            WAS_CONTINUED => transaction.extend(data)?,
            COMMIT => {
                let whole = self.transactions.remove(&id).unwrap_or_default();
                self.bytes = self.bytes.saturating_sub(whole.bytes + HEADER_BYTES * 8);
                return each(whole);
            }
            UNMOUNT => {
                self.transactions.remove(&id);
                return Ok(());
            }
            _ => return Err("an operation has unknown flags".into()),
        }
        let grown = transaction.bytes - before;
        self.count(grown)
    }

    fn count(&mut self, bytes: usize) -> LogResult<()> {
        self.bytes += bytes;
        match self.bytes > MAX_PENDING_BYTES {
            true => Err("its transactions have more than 256 MiB".into()),
            false => Ok(()),
        }
    }
}

impl Transaction {
    /// Adds a region: the header first, then of each item the description and the regions that it announces.
    fn add(&mut self, data: &[u8]) -> LogResult<()> {
        if data.is_empty() {
            return Ok(());
        }
        if self.header.is_empty() {
            if data.len() > HEADER_BYTES || data.len() < 4 || le32(data, 0) != HEADER_MAGIC {
                return Err("a transaction has no header".into());
            }
            self.header = data.to_vec();
            return Ok(());
        }
        let needs_item = self.items.last().is_none_or(|item| item.regions.len() >= item.expected);
        if needs_item {
            let expected = data.get(2..4).map_or(0, |bytes| le16(bytes, 0));
            if expected == 0 || expected > MAX_REGIONS {
                return Err("an item has an invalid number of regions".into());
            }
            self.items.push(Item {
                regions: Vec::new(),
                expected: expected.into(),
            });
            self.bytes += size_of::<Item>();
        }
        if let Some(item) = self.items.last_mut() {
            item.regions.push(data.to_vec());
        }
        self.bytes += data.len() + size_of::<Vec<u8>>();
        Ok(())
    }

    /// Adds to the last region the part that did not fit into the record before.
    fn extend(&mut self, data: &[u8]) -> LogResult<()> {
        let Some(item) = self.items.last_mut() else {
            if self.header.len() + data.len() > HEADER_BYTES {
                return Err("a transaction has a header too long".into());
            }
            self.header.extend_from_slice(data);
            return Ok(());
        };
        if let Some(region) = item.regions.last_mut() {
            region.extend_from_slice(data);
            self.bytes += data.len();
        }
        Ok(())
    }
}
