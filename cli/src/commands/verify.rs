//! `vbk verify`

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::{BackupSpec, Catalogue};
use vbk_repo::name::GuestName;
use vbk_repo::repository::{Kept, Repository, Verified, View};
use vbk_repo::state::{PartRead, Rotation, States};
use vbk_repo::verify::{MAX_PARTS, Scope, VerifyProgress, VerifyReport, expected_bytes, verify};

use crate::args::VerifyArgs;
use crate::context::{Context, threads};
use crate::damage::{DamageJson, print_damage};
use crate::exit::{Error, Outcome, Result};
use crate::metrics;
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;
use crate::warnings::{unreadable_notes, warn_of_guess};

#[derive(Serialize)]
struct Report<'a> {
    backups: u64,
    blocks: u64,
    bytes: u64,
    damage: Vec<DamageJson<'a>>,
    damaged_records: Vec<String>,
    damaged_tables: Vec<String>,
    #[serde(flatten)]
    rotation: Option<RotationJson>,
    duration_ms: u64,
}

/// Progress of a verification in parts.
#[derive(Serialize)]
struct RotationJson {
    /// Number of parts.
    parts: usize,
    /// Parts that were due and were read now.
    parts_due: usize,
    /// Parts that were never read.
    parts_unread: usize,
    /// Time since which every block was read; none as long as a part was never read.
    oldest_proof: Option<jiff::Timestamp>,
}

impl RotationJson {
    fn of(scope: &Scope) -> Option<Self> {
        let Scope::Parts { rotation, due } = scope else {
            return None;
        };
        let read = || rotation.parts.iter().flatten().map(|part| part.at);
        let parts_unread = rotation.parts.len() - read().count();
        Some(Self {
            parts: rotation.parts.len(),
            parts_due: due.len(),
            parts_unread,
            oldest_proof: read().min().filter(|_| parts_unread == 0),
        })
    }
}

/// Verifies backups.
pub fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<Outcome> {
    if args.without_key {
        return check_stored(context);
    }
    let clock = Instant::now();
    let started = jiff::Timestamp::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let repository = context.repository()?;
    let view = context.view_of(&repository)?;
    let (catalogue, states) = (view.catalogue()?, view.states()?);
    let entries = choose(&catalogue, &args.what)?;
    let mut scope = scope_of(args, &states.rotation, started)?;
    let expected = expected_bytes(&entries) as f64 * scope.share();
    let progress = Progress::new(context.quiet(), expected as u64, Words::Plain).of("the store's own files");
    // First: a server that does not let this client verify says so before all is read.
    let tables = repository.check_tables(view.number(), &cancel);
    progress.rename("");
    let report = tables.and_then(|tables| Ok((tables, read(&view, &entries, &scope, &progress, &cancel)?)));
    progress.finish();
    let (mut tables, report) = report?;
    let records = match args.what.is_empty() {
        true => damaged_records(&catalogue, &states),
        false => Vec::new(),
    };
    scope.set_read(PartRead {
        at: started,
        generation: view.number(),
    });
    let verified = Verified {
        entries: &entries,
        scope: &scope,
        all_disks: !args.what.iter().any(|what| what.contains('/')),
        report: &report,
        at: started,
        resets_unreadable: false,
    };
    let recorded = match record(context, &repository, &verified, &cancel) {
        // Only writers need the store's own files, so damage to them shows here.
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tables.push(format!("nothing can be written to the repository: {error}"));
            Ok(())
        }
        recorded => recorded,
    };
    for table in &tables {
        context.print(format_args!("{table}\n"));
    }
    print(context, &report, &records, tables.is_empty(), &scope, clock);
    if !tables.is_empty() {
        context.print("`vbk repair` restores the store's own files from their second copies and the newest view\n");
    }
    context.json_result(&Report {
        backups: report.read.backups,
        blocks: report.read.blocks,
        bytes: report.read.bytes,
        damage: report.damage.iter().map(DamageJson::new).collect(),
        damaged_records: records.clone(),
        damaged_tables: tables.clone(),
        rotation: RotationJson::of(&scope),
        duration_ms: units::milliseconds(clock.elapsed()),
    })?;
    let mut is_recorded = true;
    match recorded {
        Ok(()) => {}
        // A verification neither waits for another writer nor needs the right to write.
        Err(error) if report.damage.is_empty() && matches!(error.kind(), ErrorKind::Locked | ErrorKind::Denied) => {
            context.say(format_args!("the result was not recorded: {error}"));
        }
        Err(error) if report.damage.is_empty() && error.kind() == ErrorKind::NoSpace => {
            is_recorded = false;
            tracing::warn!("the result was not recorded: {error}");
        }
        Err(error) => tracing::warn!("the damage was not recorded, so `vbk list` will not show it: {error}"),
    }
    let damage = report.damage.len() + records.len() + tables.len();
    let is_written = metrics::record(context, args.metrics.as_deref(), &repository, |run| {
        run.verified(started, damage);
    });
    Ok(match (damage, is_written && is_recorded) {
        (0, true) => Outcome::Done,
        (0, false) => Outcome::Warnings,
        _ => Outcome::Damage,
    })
}

/// Reads what is in scope.
fn read(
    view: &View,
    entries: &[Entry],
    scope: &Scope,
    progress: &Progress,
    cancel: &AtomicBool,
) -> vbk_repo::Result<VerifyReport> {
    let told = |done: VerifyProgress| progress.set(done.bytes);
    verify(&*view.store_to_scan(), entries, scope, threads(), &told, cancel)
}

/// Describes the records and notes that can't be read, whichever backup they belong to.
fn damaged_records(catalogue: &Catalogue, states: &States) -> Vec<String> {
    let records = catalogue.damaged().iter().map(ToString::to_string);
    records.chain(unreadable_notes(states)).collect()
}

/// Records the result in the repository, unless it may not be the one that this host knows.
fn record(
    context: &Context<'_>,
    repository: &Repository,
    verified: &Verified<'_>,
    cancel: &AtomicBool,
) -> vbk_repo::Result<()> {
    if context.is_doubted() {
        return Ok(());
    }
    match repository.record_verification(verified, cancel)? {
        Kept::Recorded(recorded) => recorded.protected.iter().for_each(|backup| warn_of_guess(backup)),
        Kept::ForLater(writer) => context.say(format_args!(
            "{writer} writes to the repository, so the next command that writes records the result; until then `vbk list` does \
             not show it"
        )),
    }
    Ok(())
}

#[derive(Serialize)]
struct StoredReport {
    bytes: u64,
    damage: Vec<String>,
}

/// Checks everything that can be checked without a key.
fn check_stored(context: &Context<'_>) -> Result<Outcome> {
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let mut damage = Vec::new();
    let bytes = context
        .locked_repository()?
        .check_stored(&cancel, &mut |what| damage.push(what))?;
    for what in &damage {
        context.print(format_args!("{what}\n"));
    }
    let took = units::duration(clock.elapsed());
    match damage.len() {
        0 => context.say(format_args!(
            "{} read in {took}: all checksums are right",
            units::size(bytes)
        )),
        found => context.print(format_args!(
            "{} read in {took}: {found} damaged places\n",
            units::size(bytes)
        )),
    }
    let outcome = if damage.is_empty() {
        Outcome::Done
    } else {
        Outcome::Damage
    };
    context.json_result(&StoredReport { bytes, damage })?;
    Ok(outcome)
}

/// Decides which blocks are read.
fn scope_of(args: &VerifyArgs, rotation: &Rotation, now: jiff::Timestamp) -> Result<Scope> {
    if let Some(share) = args.sample {
        return Ok(Scope::sample(share, now));
    }
    let Some(age) = args.rotate else {
        return Ok(Scope::All);
    };
    let zoned = now.to_zoned(jiff::tz::TimeZone::UTC);
    let days = now.duration_since(age.before(&zoned)).as_hours() / 24;
    match usize::try_from(days) {
        Ok(days @ 1..=MAX_PARTS) => Ok(Scope::rotation(rotation.clone(), days, now)),
        _ => Err(Error::Usage(format!(
            "--rotate takes a time from 1d to {MAX_PARTS}d, e.g. 30d"
        ))),
    }
}

/// Returns the backups that are named, and all backups of the guests that are named; all backups if none are.
fn choose(catalogue: &Catalogue, what: &[String]) -> Result<Vec<Entry>> {
    if what.is_empty() {
        return Ok(catalogue.entries().to_vec());
    }
    let mut chosen = Vec::new();
    for what in what {
        match what.parse::<GuestName>() {
            Ok(guest) if catalogue.latest(&guest).is_some() || what.parse::<BackupSpec>().is_err() => {
                catalogue.check_guest(&guest)?;
                chosen.extend(catalogue.of(&guest).cloned());
            }
            _ => {
                let spec: BackupSpec = what.parse()?;
                let mut entry = catalogue.find(&spec)?.clone();
                if let Some(disk) = &spec.disk {
                    entry.backup = entry.backup.only(disk)?.into();
                }
                chosen.push(entry);
            }
        }
    }
    Ok(chosen)
}

fn print(
    context: &Context<'_>,
    report: &VerifyReport,
    records: &[String],
    has_all_files: bool,
    scope: &Scope,
    clock: Instant,
) {
    for record in records {
        context.print(format_args!("{record}\n"));
    }
    print_damage(context, &report.damage);
    let part = match scope {
        Scope::All => String::new(),
        Scope::Sample { share, .. } => format!(" in a sample of {}%", (share * 1000.0).round() / 10.0),
        Scope::Parts { rotation, due } => {
            let missing = rotation.parts.iter().filter(|part| part.is_none()).count();
            let left = match missing {
                0 => String::new(),
                missing => format!(", {missing} not read yet"),
            };
            format!(" in {} of {} parts{left}", due.len(), rotation.parts.len())
        }
    };
    let read = format!(
        "{} verified{part}, {} ({}) read in {}",
        units::count(report.read.backups, "backup"),
        units::count(report.read.blocks, "block"),
        units::size(report.read.bytes),
        units::duration(clock.elapsed())
    );
    if report.damage.is_empty() && records.is_empty() {
        match has_all_files {
            true => context.say(format_args!("{read}: all good")),
            false => context.print(format_args!(
                "{read}: the backups are good, the store's own files are not\n"
            )),
        }
        return;
    }
    let hurt: HashSet<_> = report.damage.iter().map(|damage| &damage.backup).collect();
    context.print(format_args!(
        "{read}: {} damaged in {}; everything else that was read is good. `vbk repair` restores blocks that it finds elsewhere\n",
        units::count(report.damage.len() as u64, "place"),
        units::count((hurt.len() + records.len()) as u64, "backup"),
    ));
}
