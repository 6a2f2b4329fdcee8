//! The bin of a repository, for `vbk list --forgotten` and `vbk unforget`.

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::backup::Entry;
use vbk_repo::block::Hashing;
use vbk_repo::store::Forgotten;

use crate::listing::disk_names;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// A backup in the bin.
pub struct Binned {
    /// The backup.
    pub entry: Entry,
    /// Its record, and the times.
    pub forgotten: Forgotten,
}

/// JSON of one.
#[derive(Debug, Serialize)]
pub struct BinnedJson<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: Timestamp,
    size_bytes: u64,
    forgotten: Timestamp,
    /// Before that no prune removes it.
    kept_until: Timestamp,
}

impl<'a> From<&'a Binned> for BinnedJson<'a> {
    fn from(binned: &'a Binned) -> Self {
        let backup = &binned.entry.backup;
        Self {
            backup: backup.spec(),
            id: binned.entry.id.to_string(),
            guest: backup.guest.as_str(),
            time: backup.time.timestamp(),
            size_bytes: backup.size_bytes(),
            forgotten: binned.forgotten.removed,
            kept_until: binned.forgotten.kept_until,
        }
    }
}

/// Returns the backups in the bin that can be read, and logs the others.
pub fn decoded(hashing: Hashing, forgotten: Vec<Forgotten>) -> Vec<Binned> {
    let decode = |forgotten: Forgotten| {
        let record = &forgotten.record;
        match Entry::decode(hashing, &record.key, &record.bytes) {
            Ok(entry) => Some(Binned { entry, forgotten }),
            Err(error) => {
                tracing::warn!("in the bin, and can't be brought back: {error}");
                None
            }
        }
    };
    forgotten.into_iter().filter_map(decode).collect()
}

/// Table of backups in the bin.
pub fn table<'a>(all: impl IntoIterator<Item = &'a Binned>) -> Table {
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("TIME", Align::Left),
        ("DISKS", Align::Left),
        ("SIZE", Align::Right),
        ("ID", Align::Left),
        ("FORGOTTEN", Align::Left),
        ("STAYS UNTIL", Align::Left),
    ]);
    for Binned { entry, forgotten } in all {
        let backup = &entry.backup;
        table.row(vec![
            backup.guest.to_string(),
            backup.time.to_string(),
            disk_names(entry).join(","),
            units::size(backup.size_bytes()),
            entry.id.short(),
            units::time(forgotten.removed),
            match forgotten.kept_until > forgotten.removed {
                true => format!("{} or longer", units::time(forgotten.kept_until)),
                false => "the next prune".to_owned(),
            },
        ]);
    }
    table
}
