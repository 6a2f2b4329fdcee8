//! The bin: records that were removed, until the prune after their time.
//!
//! A row of `meta`, written in the batch that removes the record:
//!
//! | key | value |
//! |---|---|
//! | `bin/`, generation of the removal (u64), the record's key | time of the removal, and time until which it must stay (seconds since 1970, i64); the record |
//!
//! The generation makes the row's name its own: a record that gets the key later, and is removed too, does not take its place.
//! The rows are names of what stays at a prune ([`crate::repository::Manager::prune`]), so removing one loses nothing before the
//! next prune.

use jiff::Timestamp;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::RocksStore;
use super::errors::failed;
use super::reader::RocksReader;
use crate::error::Result;
use crate::store::{Forgotten, Record, StoreReader};

const BIN: &[u8] = b"bin/";
/// Bytes of a generation, and of each time.
const NUMBER: usize = 8;

/// The generation of a removal.
fn came_with(key: &[u8]) -> Option<u64> {
    let number = key.strip_prefix(BIN)?.first_chunk()?;
    Some(u64::from_be_bytes(*number))
}

fn decode(key: &[u8], row: &[u8]) -> Option<Forgotten> {
    let (_, name) = key.strip_prefix(BIN)?.split_at_checked(NUMBER)?;
    let (removed, row) = row.split_first_chunk()?;
    let (kept_until, bytes) = row.split_first_chunk()?;
    let time = |bytes: &[u8; NUMBER]| Timestamp::from_second(i64::from_be_bytes(*bytes)).ok();
    Some(Forgotten {
        record: Record {
            key: String::from_utf8_lossy(name).into_owned(),
            bytes: bytes.to_vec(),
        },
        removed: time(removed)?,
        kept_until: time(kept_until)?,
    })
}

impl RocksReader {
    /// The rows of the bin, with their keys, in the order of their removal. Rows that can't be read are left out: they name
    /// nothing.
    fn bin(&self) -> Result<Vec<(Box<[u8]>, Forgotten)>> {
        let mut found = Vec::new();
        let start = IteratorMode::From(BIN, Direction::Forward);
        for row in self.db.iterator_cf(self.family("meta"), start) {
            let (key, row) = row.map_err(failed("read the bin"))?;
            if !key.starts_with(BIN) {
                break;
            }
            if let Some(forgotten) = decode(&key, &row) {
                found.push((key, forgotten));
            }
        }
        Ok(found)
    }

    pub(super) fn forgotten_records(&self) -> Result<Vec<Forgotten>> {
        Ok(self.bin()?.into_iter().map(|(_, forgotten)| forgotten).collect())
    }
}

impl RocksStore {
    /// Puts a record into the bin, in the batch that removes it. The caller holds `barrier`.
    pub(super) fn throw(&self, record: &Record, keep_secs: u64, batch: &mut WriteBatch) -> Result<()> {
        let generation = self.reader.generation()? + 1;
        let key = [BIN, &generation.to_be_bytes(), record.key.as_bytes()].concat();
        let removed = Timestamp::now().as_second();
        let kept_until = removed
            .saturating_add(i64::try_from(keep_secs).unwrap_or(i64::MAX))
            .min(Timestamp::MAX.as_second());
        let row = [&removed.to_be_bytes(), &kept_until.to_be_bytes(), &record.bytes[..]].concat();
        batch.put_cf(self.reader.family("meta"), key, row);
        Ok(())
    }

    /// Removes from the bin what need not stay after `time`, of what came there with the generation `up_to` or before.
    pub(super) fn empty_bin_until(&self, time: Timestamp, up_to: u64) -> Result<()> {
        let _one = self.barrier.lock();
        let mut batch = WriteBatch::default();
        let over = self.reader.bin()?.into_iter();
        let over = over.filter(|(key, forgotten)| forgotten.kept_until <= time && came_with(key) <= Some(up_to));
        for (key, _) in over {
            batch.delete_cf(self.reader.family("meta"), key);
        }
        match batch.is_empty() {
            true => Ok(()),
            false => self.write_logged("empty the bin", batch),
        }
    }
}
