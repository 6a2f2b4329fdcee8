//! The bin of a repository, for `vbk list --forgotten` and `vbk unforget`.

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::backup::Entry;
use vbk_repo::block::Hashing;
use vbk_repo::state::States;
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
    /// Words of the administrator about it.
    pub note: Option<String>,
}

/// JSON of one.
#[derive(Debug, Serialize)]
pub struct BinnedJson<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: Timestamp,
    size_bytes: u64,
    note: Option<&'a str>,
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
            note: binned.note.as_deref(),
            forgotten: binned.forgotten.removed,
            kept_until: binned.forgotten.kept_until,
        }
    }
}

/// Returns the backups in the bin that can be read, and logs the others.
pub fn decoded(hashing: Hashing, forgotten: Vec<Forgotten>, states: &States) -> Vec<Binned> {
    let decode = |forgotten: Forgotten| {
        let record = &forgotten.record;
        match Entry::decode(hashing, &record.key, &record.bytes) {
            Ok(entry) => Some(Binned {
                note: states.of_forgotten(&entry).note,
                entry,
                forgotten,
            }),
            Err(error) => {
                tracing::warn!("in the bin, and can't be brought back: {error}");
                None
            }
        }
    };
    forgotten.into_iter().filter_map(decode).collect()
}

/// Table of backups in the bin.
pub fn table(all: &[Binned]) -> Table {
    let mut columns = vec![
        ("GUEST", Align::Left),
        ("TIME", Align::Left),
        ("DISKS", Align::Left),
        ("SIZE", Align::Right),
        ("ID", Align::Left),
        ("FORGOTTEN", Align::Left),
        ("STAYS UNTIL", Align::Left),
    ];
    let has_notes = all.iter().any(|binned| binned.note.is_some());
    if has_notes {
        columns.push(("NOTE", Align::Left));
    }
    let mut table = Table::new(&columns);
    for Binned { entry, forgotten, note } in all {
        let backup = &entry.backup;
        let mut row = vec![
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
        ];
        if has_notes {
            row.push(note.clone().unwrap_or_default());
        }
        table.row(row);
    }
    table
}
