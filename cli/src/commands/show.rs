//! `vbk show`

mod config;

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::backup::{Backup, Entry};
use vbk_repo::catalogue::ClockDoubt;
use vbk_repo::repository::View;
use vbk_repo::state::{State, States};

use crate::args::ShowArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::listing::describe_state;
use crate::terminal::output;
use crate::terminal::printable;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::warnings::{clock_doubt, warn_of_clock, warn_of_foreign_changes};
use crate::zone;

#[derive(Serialize)]
struct Report<'a> {
    backup: String,
    id: String,
    #[serde(flatten)]
    record: &'a Backup,
    state: State,
    /// Reason to doubt the backup's time or that of another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<ClockDoubt>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    state_unreadable: bool,
}

/// Shows a backup, or one disk of it.
pub fn run(context: &Context<'_>, args: &ShowArgs) -> Result<Outcome> {
    let view = context.view()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let mut entry = catalogue.find(&args.backup)?.clone();
    warn_of_clock(&catalogue, &args.backup, &entry);
    if let Some(disk) = &args.backup.disk {
        entry.backup = entry.backup.only(disk)?.into();
    }
    if let Some(name) = &args.file {
        return config::write_file(&view, &entry, name);
    }
    if args.config {
        return config::show(context, &view, &entry);
    }
    let backup = &entry.backup;
    let states = view.states()?;
    let clock = clock_doubt(&catalogue, backup);
    let about = describe(&view, &entry, &states, clock.as_ref());
    let table = disk_table(backup).fit(output::columns(), &["SKIPPED", "STORED", "NEW", "SNAPSHOT"]);
    context.print(format_args!("{about}\n{table}"));
    let state_unreadable = states.is_unread(&backup.spec());
    context.json_result(&Report {
        backup: backup.spec(),
        id: entry.id.to_string(),
        record: backup,
        state: states.of(backup),
        clock,
        state_unreadable,
    })?;
    Ok(match state_unreadable {
        true => Outcome::Damage,
        false => Outcome::Done,
    })
}

/// Describes the backup as a whole, and what is wrong with it.
fn describe(view: &View, entry: &Entry, states: &States, clock: Option<&ClockDoubt>) -> String {
    let backup = &entry.backup;
    let encrypted = match view.identity().key_check {
        Some(_) => "yes",
        None => "no",
    };
    let lines = [
        ("Backup", backup.spec()),
        ("Id", entry.id.to_string()),
        ("Guest", backup.guest.to_string()),
        ("Time", time(backup.time.timestamp())),
        (
            "Took",
            format!(
                "{} to read and store",
                units::duration(backup.duration().unsigned_abs())
            ),
        ),
        ("Consistency", backup.consistency.to_string()),
        ("Made by", format!("vbk {} on {}", backup.vbk_version, backup.host)),
        ("Block size", units::size(view.identity().block_size.into())),
        ("Encrypted", encrypted.to_owned()),
        ("State", describe_state(states, backup)),
    ];
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{:<13}{}\n", format!("{name}:"), printable::line(value)))
        .collect();
    if let Some(note) = states.of(backup).note {
        text.push_str(&format!("{:<13}{}\n", "Note:", printable::line(&note)));
    }
    if !backup.files.is_empty() {
        let names: Vec<_> = backup.files.iter().map(|file| file.disk.as_str()).collect();
        text.push_str(&format!("{:<13}{}\n", "Files:", names.join(", ")));
    }
    for image in backup.images.iter().filter(|image| image.hints_wrong) {
        text.push_str(&format!(
            "{:<13}the change hints of disk {} were wrong and were not used: the whole disk was read\n",
            "Warning:", image.disk
        ));
    }
    if let Some(doubt) = clock {
        text.push_str(&format!("{:<13}{doubt}\n", "Warning:"));
    }
    text
}

/// `2026-11-21 23:30:00 UTC`, and where this machine has another time, `2026-11-22 00:30:00 in Europe/Vienna`.
fn time(at: Timestamp) -> String {
    let utc = format!("{} UTC", units::time(at));
    let zone = zone::local();
    match zone::time(at, &zone) {
        local if local == units::time(at) => utc,
        local => format!("{utc}, {local} in {}", zone::name(&zone, at)),
    }
}

/// Lists the disks of a backup.
fn disk_table(backup: &Backup) -> Table {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("SKIPPED", Align::Right),
        ("SNAPSHOT", Align::Left),
        ("SOURCE", Align::Left),
    ]);
    for image in &backup.images {
        table.row(vec![
            image.disk.to_string(),
            units::size(image.size_bytes),
            units::size(image.data_bytes),
            units::size(image.new_bytes),
            units::size(image.stored_bytes),
            units::size(image.skipped_bytes),
            image.snapshot.map_or("none".to_owned(), |kind| kind.to_string()),
            image.source.clone(),
        ]);
    }
    table
}
