//! `vbk list`

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::{Catalogue, ClockDoubt};
use vbk_repo::name::{GuestName, matches};
use vbk_repo::repository::View;
use vbk_repo::state::States;

use crate::args::{ListArgs, OrderArg};
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::forgotten::{self, BinnedJson, decoded};
use crate::listing::{BackupJson, describe_state, disk_names, is_in_state};
use crate::period::Period;
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;
use crate::warnings::unreadable_notes;
use crate::zone;

/// Columns that a narrow terminal does not show, the first to go first.
const DISPENSABLE: [&str; 5] = ["DISKS", "ID", "TOOK", "NEW", "SIZE"];

/// A backup with the reason to doubt its time.
type Listed<'a> = (&'a Entry, Option<ClockDoubt>);

/// JSON of the list, with the sums of its last line.
#[derive(Serialize)]
struct Report<T: Serialize> {
    backups: Vec<T>,
    backups_total: usize,
    guests_total: usize,
    /// Bytes that these backups added to the store. Not known of forgotten ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
}

/// Lists backups.
pub fn run(context: &Context<'_>, args: &ListArgs) -> Result<Outcome> {
    let now = Timestamp::now();
    let zone = args.local.then(zone::local);
    let period = Period::new(
        args.since.as_ref(),
        args.until.as_ref(),
        now,
        zone.clone().unwrap_or(TimeZone::UTC),
    )?;
    let view = context.view()?;
    if args.forgotten {
        return list_bin(context, args, &view, &period);
    }
    let (catalogue, states) = (view.catalogue()?, view.states()?);
    let guests = match args.guests.as_slice() {
        [] => None,
        patterns => Some(catalogue.guests_like(patterns)?),
    };
    let listed = chosen(&catalogue, &states, args, guests.as_ref(), &period, now);
    match (listed.is_empty(), catalogue.entries().is_empty()) {
        (true, true) => context.say(match view.forgotten().is_ok_and(|bin| !bin.is_empty()) {
            true => "no backups; `vbk list --forgotten` lists those that `vbk unforget` can bring back",
            false => "no backups yet; `vbk backup GUEST DISK` makes the first",
        }),
        (true, false) => context.say("no backup is like that; `vbk list` lists all"),
        (false, _) => {
            let table = table(&listed, &states, zone.as_ref());
            context.print(table.fit(output::columns(), &DISPENSABLE));
            let zone = zone
                .as_ref()
                .map(|zone| format!("; LOCAL is {}", zone::name(zone, now)));
            context.say(format_args!("{}{}", sum(&listed), zone.unwrap_or_default()));
        }
    }
    if context.json() {
        let json = listed
            .iter()
            .map(|(entry, doubt)| BackupJson::new(entry, &states, doubt.as_ref(), zone.as_ref()));
        context.json_result(&Report {
            backups: json.collect(),
            backups_total: listed.len(),
            guests_total: guests_of(listed.iter().map(|(entry, _)| *entry)),
            stored_bytes: Some(stored_bytes(&listed)),
        })?;
    }
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

/// Returns the backups that the options choose, in their order.
fn chosen<'a>(
    catalogue: &'a Catalogue,
    states: &States,
    args: &ListArgs,
    guests: Option<&BTreeSet<&GuestName>>,
    period: &Period,
    now: Timestamp,
) -> Vec<Listed<'a>> {
    let all = catalogue.entries().iter().zip(catalogue.doubts(now));
    let mut listed: Vec<Listed<'_>> = all
        .filter(|(Entry { backup, .. }, doubt)| {
            let has_state = |word: &_| is_in_state(states, backup, doubt.as_ref(), *word);
            guests.is_none_or(|guests| guests.contains(&backup.guest))
                && period.contains(backup.time.timestamp())
                && (args.state.is_empty() || args.state.iter().any(has_state))
        })
        .collect();
    if let Some(last) = args.last {
        keep_last(&mut listed, last, |(entry, _)| &entry.backup.guest);
    }
    if args.by == OrderArg::Time {
        listed.sort_by(|(one, _), (other, _)| {
            let key = |entry: &Entry| entry.backup.time;
            (key(one), &one.backup.guest).cmp(&(key(other), &other.backup.guest))
        });
    }
    listed
}

/// Keeps the last ones of each guest.
fn keep_last<T>(listed: &mut Vec<T>, last: u32, guest_of: impl Fn(&T) -> &GuestName) {
    let mut left = HashMap::<GuestName, u32>::new();
    for one in listed.iter() {
        *left.entry(guest_of(one).clone()).or_default() += 1;
    }
    listed.retain(|one| {
        let left = left.get_mut(guest_of(one)).expect("was counted");
        *left -= 1;
        *left < last
    });
}

/// `501 backups of 5 guests, which stored 12 GiB`
fn sum(listed: &[Listed<'_>]) -> String {
    format!(
        "{}, which stored {}",
        count(listed.iter().map(|(entry, _)| *entry)),
        units::size(stored_bytes(listed))
    )
}

fn stored_bytes(listed: &[Listed<'_>]) -> u64 {
    let stored = listed.iter().map(|(entry, _)| entry.backup.stored_bytes());
    stored.fold(0, u64::saturating_add)
}

/// Returns the number of guests that these are backups of.
fn guests_of<'a>(entries: impl Iterator<Item = &'a Entry>) -> usize {
    entries.map(|entry| &entry.backup.guest).collect::<BTreeSet<_>>().len()
}

/// `501 backups of 5 guests`
fn count<'a>(entries: impl Iterator<Item = &'a Entry> + Clone) -> String {
    let guests = guests_of(entries.clone());
    format!(
        "{} of {}",
        units::count(entries.count() as u64, "backup"),
        units::count(guests as u64, "guest")
    )
}

/// Lists what can be brought back.
fn list_bin(context: &Context<'_>, args: &ListArgs, view: &View, period: &Period) -> Result<Outcome> {
    let mut bin = decoded(view.store().hashing(), view.forgotten()?, &view.states()?);
    bin.retain(|binned| {
        let backup = &binned.entry.backup;
        let is_like =
            |pattern: &GuestName| *pattern == backup.guest || matches(pattern.as_str(), backup.guest.as_str());
        (args.guests.is_empty() || args.guests.iter().any(is_like)) && period.contains(backup.time.timestamp())
    });
    if let Some(last) = args.last {
        bin.sort_by_key(|binned| binned.entry.backup.order());
        keep_last(&mut bin, last, |binned| &binned.entry.backup.guest);
    }
    if args.by == OrderArg::Time {
        bin.sort_by_key(|binned| binned.entry.backup.time);
    }
    match bin.is_empty() {
        true => context.say("nothing was forgotten that can be brought back"),
        false => {
            context.print(forgotten::table(&bin).fit(output::columns(), &DISPENSABLE));
            context.say(count(bin.iter().map(|binned| &binned.entry)));
        }
    }
    context.json_result(&Report {
        backups: bin.iter().map(BinnedJson::from).collect(),
        backups_total: bin.len(),
        guests_total: guests_of(bin.iter().map(|binned| &binned.entry)),
        stored_bytes: None,
    })?;
    Ok(Outcome::Done)
}

fn table(listed: &[Listed<'_>], states: &States, zone: Option<&TimeZone>) -> Table {
    let mut columns = vec![("GUEST", Align::Left), ("TIME", Align::Left)];
    columns.extend(zone.map(|_| ("LOCAL", Align::Left)));
    columns.extend([
        ("DISKS", Align::Left),
        ("SIZE", Align::Right),
        ("NEW", Align::Right),
        ("STORED", Align::Right),
        ("TOOK", Align::Right),
        ("ID", Align::Left),
        ("STATE", Align::Left),
    ]);
    let note_of = |entry: &Entry| states.noted(&entry.backup.spec()).note;
    let has_notes = listed.iter().any(|(entry, _)| note_of(entry).is_some());
    if has_notes {
        columns.push(("NOTE", Align::Left));
    }
    let mut table = Table::new(&columns);
    for (entry, doubt) in listed {
        let backup = &entry.backup;
        let state = describe_state(states, backup);
        let mut row = vec![backup.guest.to_string(), backup.time.to_string()];
        row.extend(zone.map(|zone| zone::time(backup.time.timestamp(), zone)));
        row.extend([
            disk_names(entry).join(","),
            units::size(backup.size_bytes()),
            units::size(backup.new_bytes()),
            units::size(backup.stored_bytes()),
            units::duration(backup.duration().unsigned_abs()),
            entry.id.short(),
            match doubt {
                None => state,
                Some(doubt) => format!("{state}, {doubt}"),
            },
        ]);
        if has_notes {
            row.push(note_of(entry).unwrap_or_default());
        }
        table.row(row);
    }
    table
}
