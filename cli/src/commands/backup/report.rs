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

/// Waiting that is worth a word.
const WORTH_SAYING: Duration = Duration::from_secs(1);
/// Characters of a reason in a table, where the log says all of it.
const SHORT: usize = 60;

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

/// Returns the line for one backup. Waiting for another process that writes is not a part of its time.
pub fn last_line(summary: &BackupSummary, waited: Duration) -> String {
    let waited = match waited >= WORTH_SAYING {
        true => format!(", after {} of waiting", units::duration(waited)),
        false => String::new(),
    };
    format!(
        "{}: {} in {}{waited}",
        summary.entry.backup.spec(),
        amounts(&summary.counts),
        units::duration(Duration::from_millis(summary.entry.backup.duration_ms))
    )
}

/// `120 MiB read, 3 MiB new (1 MiB stored)`
fn amounts(counts: &Counts) -> String {
    format!(
        "{} read, {} new ({} stored)",
        units::size(counts.read_bytes),
        units::size(counts.new_bytes),
        units::size(counts.stored_bytes)
    )
}

/// Returns the sums of all backups that were made: [`amounts`].
pub fn sums(all: &[Done]) -> String {
    let mut sums = Counts::default();
    for summary in all.iter().filter_map(|done| done.result.as_ref().ok()) {
        sums += summary.counts;
    }
    amounts(&sums)
}

/// Returns the last line of a run over several guests: `3 guests backed up, 1 failed; 120 MiB read, ... in 12s`.
pub fn totals(all: &[Done], took: Duration) -> String {
    let failed = all.iter().filter(|done| done.result.is_err()).count();
    let made = units::count((all.len() - failed) as u64, "guest");
    let failed = match failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!("{made} backed up{failed}; {} in {}", sums(all), units::duration(took))
}

/// Returns a text that fits into a table, beside the whole of it.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}...", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// Returns the table of a run over several guests. With `quiet` it has only those that failed or had warnings. `says_why`: the reader
/// of the table does not see the log, and gets the whole reason.
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
                    false => shortened(&error.text()),
                },
            ],
        };
        table.row(row);
        rows += 1;
    }
    (rows > 0).then_some(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Error;

    fn failed(guest: &str, why: &str) -> Done {
        Done {
            guest: guest.parse().expect("a name"),
            result: Err(Error::Usage(why.to_owned())),
            is_begun: true,
            took: Duration::from_secs(1),
            warnings: 0,
        }
    }

    #[test]
    fn the_table_says_why_a_guest_failed_and_the_last_line_how_many() {
        let long = "a".repeat(100);
        let all = [failed("db1", "its disk is missing"), failed("web1", &long)];
        let beside = table(&all, false, false).expect("has rows").to_string();
        assert!(beside.contains("its disk is missing"), "{beside}");
        assert!(beside.contains(&format!("{}...\n", "a".repeat(60))), "{beside}");
        let alone = table(&all, true, true).expect("has rows").to_string();
        assert!(alone.contains(&long), "{alone}");
        assert_eq!(
            totals(&all, Duration::from_secs(72)),
            "0 guests backed up, 2 failed; 0 B read, 0 B new (0 B stored) in 1m12s"
        );
    }
}
