//! Checks the store without a key: reads every row, so that RocksDB verifies its checksums, and compares the index with
//! the blocks. Proves nothing about content, and reports damage by sequence numbers and file names.

use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::IteratorMode;

use super::reader::{RocksReader, failed, is_damage, scan};
use super::rows::{HEADER_AT, part_key, sequence_of};
use crate::error::{Error, Result};
use crate::id::BlockId;

/// Damage beyond this number is counted but not named.
const NAMED: u64 = 1000;

impl RocksReader {
    /// Reads everything. Passes each damage to `each`; returns the bytes that could be read.
    pub fn check(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        let mut bytes = 0;
        for family in ["meta", "backups", "notes", "nodes"] {
            for row in self
                .db
                .iterator_cf_opt(self.family(family), scan(), IteratorMode::Start)
            {
                match row {
                    Ok((key, value)) => bytes += (key.len() + value.len()) as u64,
                    Err(error) if is_damage(&error) => each(format!("{family}: {error}")),
                    Err(error) => return Err(failed("read")(error)),
                }
            }
        }
        bytes += self.check_blocks(cancel, each)?;
        self.check_index(cancel, each)?;
        Ok(bytes)
    }

    fn check_blocks(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        let mut rows = self.db.raw_iterator_cf_opt(self.family("blocks"), scan());
        let (mut bytes, mut found, mut next) = (0, 0, 0);
        rows.seek(part_key(0, 0));
        loop {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            while let Some((key, value)) = rows.item() {
                bytes += (key.len() + value.len()) as u64;
                next = sequence_of(key) + 1;
                rows.next();
            }
            let Err(error) = rows.status() else {
                return Ok(bytes);
            };
            if !is_damage(&error) {
                return Err(failed("read the blocks")(error));
            }
            found += 1;
            if found <= NAMED {
                each(format!("block {next} or near it: {error}"));
            } else if found == NAMED + 1 {
                each("and more".into());
            }
            // Continue after the block that could not be read completely.
            next += 1;
            rows.seek(part_key(next, 0));
        }
    }

    fn check_index(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<()> {
        let mut found = 0;
        let barrier = self.barrier()?;
        let result = self.index(BlockId([0; 32]), &mut |id, row| {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            let header = self.db.get_pinned_cf(self.family("blocks"), part_key(row.sequence, 0));
            let what = match header {
                Ok(_) if row.sequence >= barrier => "is at a place where nothing was stored".to_owned(),
                Ok(Some(row)) if row.len() >= HEADER_AT && row[..32] == id.0 => return Ok(()),
                Ok(Some(_)) => "belongs to another block".to_owned(),
                Ok(None) => "is missing".to_owned(),
                Err(error) => error.to_string(),
            };
            found += 1;
            if found <= NAMED {
                each(format!("block {} ({id}): its header {what}", row.sequence));
            }
            Ok(())
        });
        match result {
            Err(error) if error.kind() == crate::ErrorKind::Corrupt => {
                each(format!("index: {error}"));
                Ok(())
            }
            result => result,
        }
    }
}
