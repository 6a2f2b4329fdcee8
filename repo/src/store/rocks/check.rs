//! Checks the store without a key: reads every row, so that RocksDB verifies its checksums, compares the index with the blocks,
//! proves content as far as that can be done ([`Door`]), and looks whether everything is there that backups need.
//!
//! It reports damage by ids, sequence numbers and file names: what is in an encrypted repository has no other name without
//! the key. Memory: a few blocks for each thread.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rocksdb::IteratorMode;

use super::errors::{failed, is_damage};
use super::reader::{RocksReader, scan};
use super::rows::{IndexRow, part_key, part_number, sequence_of};
use super::sessions::roots_of;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::pool;
use crate::store::door::Door;
use crate::store::proof::Proved;
use crate::store::{Identity, Located, Note, Record, StoreReader, Stored};

/// Damage beyond this number is counted but not named.
const NAMED: u64 = 1000;

/// Damage that was found.
struct Findings<'a> {
    count: u64,
    each: &'a mut dyn FnMut(String),
}

impl Findings<'_> {
    fn add(&mut self, what: String) {
        self.count += 1;
        if self.count <= NAMED {
            (self.each)(what);
        }
    }

    fn finish(self) {
        if self.count > NAMED {
            (self.each)(format!("and {} more", self.count - NAMED));
        }
    }
}

/// A block as its rows give it.
struct Found {
    id: BlockId,
    sequence: u64,
    located: Located,
    stored: Stored,
}

impl Found {
    /// Reads part 0; `None` if it is cut off.
    fn of(sequence: u64, part: &[u8]) -> Option<Self> {
        let (id, row, header) = IndexRow::of_part_zero(sequence, part)?;
        Some(Self {
            id,
            sequence,
            located: row.located(),
            stored: Stored {
                header: header.to_vec(),
                pages: Vec::new(),
                base: row.base,
            },
        })
    }

    /// Adds the part after 0 with this number. The parts between were pages of zeros.
    fn add(&mut self, part: usize, bytes: &[u8]) {
        self.stored.pages.resize(part.saturating_sub(1), Vec::new());
        self.stored.pages.push(bytes.to_vec());
    }
}

/// What a scan of the blocks comes upon.
enum Event {
    Block(Found),
    Damage(String),
}

impl RocksReader {
    /// Reads everything. Passes each damage to `each`; returns the bytes that could be read.
    pub fn check(&self, threads: usize, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        let mut findings = Findings { count: 0, each };
        let checked = self.check_all(threads, cancel, &mut findings);
        findings.finish();
        checked
    }

    fn check_all(&self, threads: usize, cancel: &AtomicBool, findings: &mut Findings<'_>) -> Result<u64> {
        let identity = match self.identity() {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                findings.add(error.to_string());
                None
            }
            identity => Some(identity?),
        };
        let door = identity.as_ref().map(Door::of);
        let mut bytes = self.check_small(door.as_ref(), findings)?;
        bytes += self.check_blocks(door.as_ref(), threads, cancel, findings)?;
        self.check_index(cancel, findings)?;
        if let Some(identity) = &identity {
            self.check_complete(identity, cancel, findings)?;
        }
        Ok(bytes)
    }

    /// Reads everything but blocks and their index.
    fn check_small(&self, door: Option<&Door>, findings: &mut Findings<'_>) -> Result<u64> {
        let mut bytes = 0;
        for family in ["meta", "backups", "notes", "nodes"] {
            let rows = self
                .db
                .iterator_cf_opt(self.family(family), scan(), IteratorMode::Start);
            for row in rows {
                let (key, value) = match row {
                    Ok(row) => row,
                    Err(error) if is_damage(&error) => {
                        findings.add(format!("{family}: {error}"));
                        continue;
                    }
                    Err(error) => return Err(failed("read")(error)),
                };
                bytes += (key.len() + value.len()) as u64;
                let checked = door.map_or(Ok(()), |door| check_row(door, family, &key, &value));
                if let Err(error) = checked {
                    findings.add(format!("{family}: {error}"));
                }
            }
        }
        Ok(bytes)
    }

    fn check_blocks(
        &self,
        door: Option<&Door>,
        threads: usize,
        cancel: &AtomicBool,
        findings: &mut Findings<'_>,
    ) -> Result<u64> {
        let damage = Mutex::new(Vec::new());
        let check = |mut found: Found| -> Result<()> {
            let Some(door) = door else {
                return Ok(());
            };
            let pages = door.whole(found.id, found.located).pages.len();
            let pages = pages.max(found.stored.pages.len());
            found.stored.pages.resize(pages, Vec::new());
            let Err(error) = door.check_stored(found.id, found.located, found.stored, self) else {
                return Ok(());
            };
            // The rows of a block that is no longer in the index are removed one by one, and no backup has a difference whose base
            // was removed: what is missing for a backup is found below.
            let row = self.usable_rows(&[found.id])?.pop().flatten();
            if row.is_some_and(|row| row.sequence == found.sequence) {
                damage.lock().push(format!("block {}: {error}", found.sequence));
            }
            Ok(())
        };
        let scan = |send: &mut dyn FnMut(Found) -> bool| {
            self.scan_blocks(cancel, &mut |event| {
                damage.lock().drain(..).for_each(|what| findings.add(what));
                match event {
                    Event::Block(found) => send(found),
                    Event::Damage(what) => {
                        findings.add(what);
                        true
                    }
                }
            })
        };
        let bytes = pool::feed("vbk-check", threads, 2 * threads, scan, &check)?;
        damage.into_inner().into_iter().for_each(|what| findings.add(what));
        Ok(bytes)
    }

    /// Reads all rows of blocks in their order, until `each` returns false. Returns their bytes.
    fn scan_blocks(&self, cancel: &AtomicBool, each: &mut dyn FnMut(Event) -> bool) -> Result<u64> {
        let mut rows = self.db.raw_iterator_cf_opt(self.family("blocks"), scan());
        let (mut bytes, mut next) = (0, 0);
        rows.seek(part_key(0, 0));
        loop {
            let mut building: Option<Found> = None;
            while let Some((key, value)) = rows.item() {
                if cancel.load(Ordering::SeqCst) {
                    return Err(Error::Interrupted);
                }
                bytes += (key.len() + value.len()) as u64;
                let (sequence, part) = (sequence_of(key), part_number(key));
                if building.as_ref().is_none_or(|found| found.sequence != sequence) {
                    if let Some(found) = building.take()
                        && !each(Event::Block(found))
                    {
                        return Ok(bytes);
                    }
                    building = Found::of(sequence, value).filter(|_| part == 0);
                } else if let Some(found) = &mut building {
                    found.add(part, value);
                }
                next = sequence + 1;
                rows.next();
            }
            let Err(error) = rows.status() else {
                if let Some(found) = building {
                    each(Event::Block(found));
                }
                return Ok(bytes);
            };
            if !is_damage(&error) {
                return Err(failed("read the blocks")(error));
            }
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            if !each(Event::Damage(format!("block {next} or near it: {error}"))) {
                return Ok(bytes);
            }
            // Continue after the block that could not be read completely.
            next += 1;
            rows.seek(part_key(next, 0));
        }
    }

    fn check_index(&self, cancel: &AtomicBool, findings: &mut Findings<'_>) -> Result<()> {
        let barrier = self.barrier()?;
        let result = self.index(BlockId([0; 32]), &mut |id, row| {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            let header = self.db.get_pinned_cf(self.family("blocks"), part_key(row.sequence, 0));
            let what = match header {
                Ok(_) if row.sequence >= barrier => "is at a place where nothing was stored".to_owned(),
                Ok(Some(header)) if header.starts_with(&row.part_zero(id)) => return Ok(()),
                Ok(Some(header)) if header.starts_with(&id.0) => "gives other lengths than the index".to_owned(),
                Ok(Some(_)) => "belongs to another block".to_owned(),
                Ok(None) => "is missing".to_owned(),
                Err(error) => error.to_string(),
            };
            findings.add(format!("block {} ({id}): its header {what}", row.sequence));
            Ok(())
        });
        match result {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                findings.add(format!("index: {error}"));
                Ok(())
            }
            result => result,
        }
    }

    /// Looks whether everything is there that backups need, by the heads of manifests.
    fn check_complete(&self, identity: &Identity, cancel: &AtomicBool, findings: &mut Findings<'_>) -> Result<()> {
        let mut proved = Proved::default();
        let records = match self.records() {
            // Found before.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(()),
            records => records?,
        };
        for record in records {
            if cancel.load(Ordering::SeqCst) {
                return Err(Error::Interrupted);
            }
            match proved.prove(self, &roots_of(identity.is_encrypted(), &record.bytes)) {
                Ok(()) => {}
                Err(Error::Missing { blocks, nodes }) => findings.add(format!(
                    "backup {}: {} of its blocks and {} parts of its manifests are missing or damaged",
                    record.key,
                    blocks.len(),
                    nodes.len()
                )),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    findings.add(format!("backup {}: {error}", record.key));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Checks a row of a family that does not keep blocks.
fn check_row(door: &Door, family: &str, key: &[u8], value: &[u8]) -> Result<()> {
    let name = || String::from_utf8_lossy(key).into_owned();
    match family {
        "nodes" => {
            let id = <[u8; 32]>::try_from(key).map_err(|_| Error::Store {
                kind: ErrorKind::Corrupt,
                doing: "read the manifests",
                message: "the key of a row is not the id of a node".into(),
            })?;
            door.check_node(NodeId(id), value)
        }
        "backups" => door.check_record(&Record {
            key: name(),
            bytes: value.to_vec(),
        }),
        "notes" => door.check_notes(&[Note {
            name: name(),
            value: Some(value.to_vec()),
        }]),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
