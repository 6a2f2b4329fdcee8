//! `vbk stats`

use serde::Serialize;
use vbk_repo::repository::directory::activity;
use vbk_repo::repository::{DiskUsage, Unfinished};
use vbk_repo::stats::{Stats, stats};

use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    stats: &'a Stats,
    dedup_ratio: f64,
    compression_ratio: f64,
    growth_bytes_per_day: u64,
    disk: DiskUsage,
    /// Blocks that were stored since the newest view; missing if they are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<Unfinished>,
    /// A process writes to the repository now, and stored them.
    #[serde(skip)]
    is_written: bool,
}

/// Prints the content of the repository and its size on disk.
pub fn run(context: &Context<'_>) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let repository = context.repository()?;
    let view = context.view_of(&repository)?;
    let now = jiff::Timestamp::now();
    let found = stats(&*view.store(), &view.catalogue()?, threads(), now, &cancel)?;
    let report = Report {
        dedup_ratio: ratio(found.data_bytes, found.unique.plain_bytes),
        compression_ratio: ratio(found.unique.plain_bytes, found.unique.stored_bytes),
        growth_bytes_per_day: found.recent_stored_bytes / found.recent_days,
        disk: repository.disk_usage()?,
        // The writer first: blocks of one that ends in between are those of a writer.
        is_written: activity::status(&repository).is_ok_and(|status| status.writer.is_some()),
        unfinished: repository.unfinished(view.number(), &mut |_| ()),
        stats: &found,
    };
    context.print(describe(&report));
    if !found.guests.is_empty() {
        context.print(format_args!("\n{}", guest_table(&found)));
    }
    context.json_result(&report)?;
    Ok(Outcome::Done)
}

fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 1.0 } else { of as f64 / to as f64 }
}

/// `: 1.9 times smaller`; nothing where that says nothing.
fn smaller(ratio: f64) -> String {
    match ratio {
        ..1.05 => String::new(),
        ..10.0 => format!(": {ratio:.1} times smaller"),
        _ => format!(": {ratio:.0} times smaller"),
    }
}

/// Describes the repository as a whole.
fn describe(report: &Report<'_>) -> String {
    let found = report.stats;
    let mut lines = vec![
        (
            "Backups",
            format!(
                "{} of {}",
                units::count(found.backups, "backup"),
                units::count(found.guests.len() as u64, "guest")
            ),
        ),
        (
            "Logical",
            format!(
                "{} ({} non-zero)",
                units::size(found.logical_bytes),
                units::size(found.data_bytes)
            ),
        ),
        (
            "Unique",
            format!(
                "{} in {} (each stored once{})",
                units::size(found.unique.plain_bytes),
                units::count(found.unique.blocks, "block"),
                smaller(report.dedup_ratio)
            ),
        ),
        (
            "Stored",
            format!(
                "{} (compressed{})",
                units::size(found.unique.stored_bytes),
                smaller(report.compression_ratio)
            ),
        ),
        (
            "Unreferenced",
            match found.unreferenced.blocks {
                0 => "none".to_owned(),
                blocks => format!(
                    "{} in {}; `vbk prune` gives the space back",
                    units::size(found.unreferenced.stored_bytes),
                    units::count(blocks, "block")
                ),
            },
        ),
    ];
    if let Some(unfinished) = report.unfinished.filter(|unfinished| !unfinished.is_empty()) {
        let what = match report.is_written {
            true => "of the backup that runs now",
            false => "left by interrupted runs; the next backup uses what it needs of them, `vbk prune` frees the rest",
        };
        let (size, blocks) = (
            units::size(unfinished.stored_bytes),
            units::count(unfinished.blocks, "block"),
        );
        lines.push(("Unfinished", format!("{size} in {blocks}, {what}")));
    }
    lines.extend([
        ("On disk", units::size(report.disk.total_bytes)),
        (
            "Growth",
            match (found.backups, found.recent_days) {
                (0, _) => "no backups yet".to_owned(),
                (_, 1) => format!(
                    "{} by the listed backups of the last day",
                    units::size(report.growth_bytes_per_day)
                ),
                (_, days) => format!(
                    "{} a day by the listed backups of the last {}",
                    units::size(report.growth_bytes_per_day),
                    units::count(days, "day")
                ),
            },
        ),
    ]);
    lines
        .iter()
        .map(|(name, value)| format!("{:<14}{value}\n", format!("{name}:")))
        .collect()
}

/// Lists the guests and their shares.
fn guest_table(found: &Stats) -> Table {
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("BACKUPS", Align::Right),
        ("LOGICAL", Align::Right),
        ("UNIQUE", Align::Right),
        ("STORED", Align::Right),
        ("EXCLUSIVE", Align::Right),
    ]);
    for guest in &found.guests {
        table.row(vec![
            guest.guest.clone(),
            guest.backups.to_string(),
            units::size(guest.logical_bytes),
            units::size(guest.unique.plain_bytes),
            units::size(guest.unique.stored_bytes),
            units::size(guest.own.stored_bytes),
        ]);
    }
    table
}
