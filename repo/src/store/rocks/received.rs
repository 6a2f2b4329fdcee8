//! When records were committed, by the clock of the store's own host.
//!
//! A row of `meta` for each record, written in the batch of its commit and removed with it: `received/` and the record's key; the
//! time (seconds since 1970, i64), and 1 if the record's own time does not count. Records of an older vbk have none.

use jiff::Timestamp;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use super::errors::failed;
use super::reader::RocksReader;
use crate::error::Result;
use crate::store::Received;

const RECEIVED: &[u8] = b"received/";

fn row_of(key: &str) -> Vec<u8> {
    [RECEIVED, key.as_bytes()].concat()
}

fn decode(row: &[u8]) -> Option<Received> {
    let (time, is_doubted) = row.split_first_chunk()?;
    Some(Received {
        time: Timestamp::from_second(i64::from_be_bytes(*time)).ok()?,
        is_doubted: is_doubted == [1],
    })
}

impl RocksReader {
    /// The times of all records, in the order of their keys. A row that can't be read counts as missing.
    pub(super) fn received_in(&self, options: ReadOptions) -> Result<Vec<(String, Received)>> {
        let start = IteratorMode::From(RECEIVED, Direction::Forward);
        let mut all = Vec::new();
        for row in self.db.iterator_cf_opt(self.family("meta"), options, start) {
            let (key, row) = row.map_err(failed("list the backups"))?;
            let Some(key) = key.strip_prefix(RECEIVED) else {
                break;
            };
            all.extend(decode(&row).map(|received| (String::from_utf8_lossy(key).into_owned(), received)));
        }
        Ok(all)
    }

    pub(super) fn received_of(&self, key: &str, options: &ReadOptions) -> Result<Option<Received>> {
        let row = self.db.get_cf_opt(self.family("meta"), row_of(key), options);
        Ok(row.map_err(failed("list the backups"))?.and_then(|row| decode(&row)))
    }

    pub(super) fn note_received(&self, key: &str, doubts_time: bool, batch: &mut WriteBatch) {
        let now = Timestamp::now().as_second();
        let row = [&now.to_be_bytes()[..], &[u8::from(doubts_time)]].concat();
        batch.put_cf(self.family("meta"), row_of(key), row);
    }

    pub(super) fn drop_received(&self, key: &str, batch: &mut WriteBatch) {
        batch.delete_cf(self.family("meta"), row_of(key));
    }
}
