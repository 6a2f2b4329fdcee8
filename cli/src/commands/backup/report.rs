//! The output of `vbk backup`: lines, tables and JSON.

use std::time::Duration;

use serde::Serialize;
use vbk::backup::BackupSummary;
use vbk::observer::Counts;
use vbk_repo::backup::{Consistency, Image};
use vbk_repo::repository::Unfinished;

use super::Done;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// JSON of one backup.
#[derive(Serialize)]
pub struct Report<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: jiff::Timestamp,
    consistency: Consistency,
    size_bytes: u64,
    #[serde(flatten)]
    counts: Counts,
    duration_ms: u64,
    disks: &'a [Image],
    files: &'a [Image],
    warnings: u64,
}

impl<'a> Report<'a> {
    /// Describes a backup.
    pub fn new(summary: &'a BackupSummary, warnings: u64) -> Self {
        let made = &summary.entry.backup;
        Self {
            backup: made.spec(),
            id: summary.entry.id.to_string(),
            guest: made.guest.as_str(),
            time: made.time.timestamp(),
            consistency: made.consistency,
            size_bytes: made.size_bytes(),
            counts: summary.counts,
            duration_ms: made.duration_ms,
            disks: &made.images,
            files: &made.files,
            warnings,
        }
    }
}

/// JSON of a run over several guests.
#[derive(Serialize)]
pub struct AllReport<'a> {
    guests: Vec<GuestReport<'a>>,
    failed: usize,
    /// Warnings that concern no single guest, e.g. about leftovers that could not be removed.
    warnings: u64,
    /// Blocks that the failed guests left for the next run.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<Unfinished>,
    duration_ms: u64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum GuestReport<'a> {
    Made(Box<Report<'a>>),
    Failed {
        guest: &'a str,
        error: String,
        kind: &'static str,
    },
}

impl<'a> AllReport<'a> {
    /// Describes a run; `all` is sorted by name.
    pub fn new(all: &'a [Done], warnings: u64, unfinished: Option<Unfinished>, took: Duration) -> Self {
        let guest = |done: &'a Done| match &done.result {
            Ok(summary) => GuestReport::Made(Box::new(Report::new(summary, done.warnings))),
            Err(error) => GuestReport::Failed {
                guest: done.guest.as_str(),
                error: error.message(),
                kind: error.word(),
            },
        };
        Self {
            guests: all.iter().map(guest).collect(),
            warnings,
            unfinished,
            failed: all.iter().filter(|done| done.result.is_err()).count(),
            duration_ms: units::milliseconds(took),
        }
    }
}

/// Returns the line for one backup.
pub fn last_line(summary: &BackupSummary, took: Duration) -> String {
    let counts = &summary.counts;
    format!(
        "{}: {} read, {} new ({} stored) in {}",
        summary.entry.backup.spec(),
        units::size(counts.read_bytes),
        units::size(counts.new_bytes),
        units::size(counts.stored_bytes),
        units::duration(took)
    )
}

/// Returns the table of a run over several guests. With `quiet` it has only those that failed or had warnings. `says_why`: the reader
/// of the table does not see the log.
pub fn table(all: &[Done], quiet: bool, says_why: bool) -> Option<Table> {
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("RESULT", Align::Left),
        ("READ", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("TOOK", Align::Right),
        ("WHY", Align::Left),
    ]);
    let mut rows = 0;
    for done in all {
        let row = match &done.result {
            Ok(_) if quiet && done.warnings == 0 => continue,
            Ok(summary) => {
                let counts = &summary.counts;
                vec![
                    done.guest.to_string(),
                    if done.warnings == 0 { "done" } else { "warnings" }.to_owned(),
                    units::size(counts.read_bytes),
                    units::size(counts.new_bytes),
                    units::size(counts.stored_bytes),
                    units::duration(done.took),
                    String::new(),
                ]
            }
            Err(error) => vec![
                done.guest.to_string(),
                "FAILED".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                units::duration(done.took),
                match says_why {
                    true => error.text(),
                    false => "see above".to_owned(),
                },
            ],
        };
        table.row(row);
        rows += 1;
    }
    (rows > 0).then_some(table)
}
