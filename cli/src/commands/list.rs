//! `vbk list`

use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::repository::View;
use vbk_repo::state::States;

use crate::args::ListArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::forgotten::{self, BinnedJson, decoded};
use crate::listing::{BackupJson, describe_state, disk_names};
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::warnings::{clock_doubt, unreadable_notes};

/// Lists backups.
pub fn run(context: &Context<'_>, args: &ListArgs) -> Result<Outcome> {
    let view = context.view()?;
    if args.forgotten {
        return list_bin(context, args, &view);
    }
    let (catalogue, states) = (view.catalogue()?, view.states()?);
    if let Some(guest) = &args.guest {
        catalogue.check_guest(guest)?;
    }
    let wanted = |guest| args.guest.as_ref().is_none_or(|only| only == guest);
    let entries: Vec<_> = catalogue
        .entries()
        .iter()
        .filter(|entry| wanted(&entry.backup.guest))
        .collect();
    match entries.is_empty() {
        true => context.say("no backups yet; `vbk backup GUEST DISK` makes the first"),
        false => context.print(table(&entries, &catalogue, &states)),
    }
    context.json_result(
        &entries
            .iter()
            .map(|entry| BackupJson::new(entry, &states, clock_doubt(&catalogue, &entry.backup)))
            .collect::<Vec<_>>(),
    )?;
    for error in catalogue.damaged() {
        tracing::warn!("not listed: {error}");
    }
    let notes = unreadable_notes(&states);
    for note in &notes {
        tracing::warn!("{note}");
    }
    Ok(match (catalogue.damaged(), notes.as_slice()) {
        ([], []) => Outcome::Done,
        _ => Outcome::Damage,
    })
}

/// Lists what can be brought back.
fn list_bin(context: &Context<'_>, args: &ListArgs, view: &View) -> Result<Outcome> {
    let mut bin = decoded(view.store().hashing(), view.forgotten()?);
    bin.retain(|binned| {
        args.guest
            .as_ref()
            .is_none_or(|only| *only == binned.entry.backup.guest)
    });
    match bin.is_empty() {
        true => context.say("nothing was forgotten that can be brought back"),
        false => context.print(forgotten::table(&bin)),
    }
    context.json_result(&bin.iter().map(BinnedJson::from).collect::<Vec<_>>())?;
    Ok(Outcome::Done)
}

fn table(entries: &[&Entry], catalogue: &Catalogue, states: &States) -> Table {
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("TIME", Align::Left),
        ("DISKS", Align::Left),
        ("SIZE", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("TOOK", Align::Right),
        ("ID", Align::Left),
        ("STATE", Align::Left),
    ]);
    for entry in entries {
        let backup = &entry.backup;
        table.row(vec![
            backup.guest.to_string(),
            backup.time.to_string(),
            disk_names(entry).join(","),
            units::size(backup.size_bytes()),
            units::size(backup.new_bytes()),
            units::size(backup.stored_bytes()),
            units::duration(backup.duration().unsigned_abs()),
            entry.id.short(),
            match clock_doubt(catalogue, backup) {
                None => describe_state(states, backup),
                Some(doubt) => format!("{}, {doubt}", describe_state(states, backup)),
            },
        ]);
    }
    table
}
