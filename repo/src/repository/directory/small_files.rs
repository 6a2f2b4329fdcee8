//! The small files of a store, which RocksDB reads as it opens: `CURRENT`, `MANIFEST` and logs.
//!
//! RocksDB's small files, above all `MANIFEST`, exist twice anyway: in the store and in the view. But RocksDB does not
//! notice all damage to them. A record whose damaged length points past the end of the file counts as the end of the
//! records, so RocksDB shows an older state; and a record of certain types that RocksDB never writes makes it hang. So
//! a view has the hash of its list of files ([`View::check`]), and the store's list is compared with that of the view
//! ([`check_store`]).

use std::fs;
use std::path::Path;

use super::files::{content, hash_of_bytes, is_there};
use super::views::View;
use crate::error::{Error, Result};

/// RocksDB's log format (log_format.h), in which `MANIFEST` and logs are written, has blocks that no record crosses,
/// and records that start with CRC, length (u16, little-endian) and type.
const LOG_BLOCK_BYTES: usize = 32 << 10;
const LOG_HEADER_BYTES: usize = 7;

/// Fails if RocksDB would read something else in the store's small files than it wrote. `view` is the newest one.
pub(crate) fn check_store(store: &Path, view: Option<&View>) -> Result<()> {
    let current = store.join("CURRENT");
    let text = String::from_utf8(content(&current)?.unwrap_or_default()).unwrap_or_default();
    let manifest = text.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-"));
    match manifest {
        Some(name) if is_there(&store.join(name))? => {}
        _ => return Err(damaged(&current)),
    }
    for entry in fs::read_dir(store).map_err(Error::io("list", store))? {
        let path = entry.map_err(Error::io("list", store))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_manifest = name.starts_with("MANIFEST-");
        if !is_manifest && !name.ends_with(".log") {
            continue;
        }
        let bytes = content(&path)?.ok_or_else(|| damaged(&path))?;
        // RocksDB only appends to MANIFEST, so the file begins with its content at the time of the view.
        let begins_well = match view.filter(|_| is_manifest) {
            None => true,
            Some(View::Directory(view)) => bytes.starts_with(&content(&view.join(name))?.unwrap_or_default()),
            Some(View::File(record, _)) if record.manifest == name => {
                let part = usize::try_from(record.length)
                    .ok()
                    .and_then(|length| bytes.get(..length));
                part.is_some_and(|part| hash_of_bytes(part) == record.hash)
            }
            Some(View::File(..)) => true,
        };
        if !begins_well || has_strange_record(&bytes) {
            return Err(damaged(&path));
        }
    }
    Ok(())
}

fn damaged(path: &Path) -> Error {
    Error::FileDamaged { path: path.to_owned() }
}

/// Returns whether a record has a type that RocksDB does not write here: some of them would make RocksDB hang.
fn has_strange_record(bytes: &[u8]) -> bool {
    for block in bytes.chunks(LOG_BLOCK_BYTES) {
        let mut rest = block;
        while let Some((&[_, _, _, _, low, high, kind], after)) = rest.split_first_chunk::<LOG_HEADER_BYTES>() {
            let len = usize::from(u16::from_le_bytes([low, high]));
            match kind {
                // Preallocated space that was not used.
                0 if len == 0 => break,
                // Complete records, and the first, middle and last piece of one.
                1..=4 => rest = after.get(len..).unwrap_or_default(),
                _ => return true,
            }
        }
    }
    false
}
