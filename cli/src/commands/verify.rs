//! `vbk verify`

use std::collections::HashSet;
use std::time::Instant;

use serde::Serialize;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::verify::{Damage, VerifyReport, verify};

use crate::args::VerifyArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::progress::{Progress, Words};
use crate::{signals, units};

/// Places that are printed without -v; --json has all of them.
const SHOWN: usize = 50;

#[derive(Serialize)]
struct Report<'a> {
    backups: u64,
    blocks: u64,
    bytes: u64,
    damage: Vec<DamageJson<'a>>,
    damaged_records: Vec<String>,
}

#[derive(Serialize)]
struct DamageJson<'a> {
    backup: &'a str,
    disk: &'a str,
    offset_bytes: u64,
    len_bytes: u64,
    what: &'a str,
}

/// Verifies backups.
pub fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<Outcome> {
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(|error| Error::Other(error.to_string()))?;
    let view = context.repository()?.view()?;
    let catalogue = view.catalogue()?;
    let entries = choose(&catalogue, args)?;
    // What was new in each backup is what is stored, near enough for a bar.
    let total = entries.iter().map(|entry| entry.backup.new_bytes()).sum();
    let progress = Progress::new(context.quiet(), total, Words::Plain);
    let report = verify(
        &*view.store(),
        &entries,
        threads(),
        &|done| progress.set(done.bytes),
        &cancel,
    );
    progress.finish();
    let report = report?;
    let records: Vec<_> = match args.backups.as_slice() {
        [] => catalogue.damaged().iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    print(context, &report, &records, clock);
    context.json_result(&Report {
        backups: report.read.backups,
        blocks: report.read.blocks,
        bytes: report.read.bytes,
        damage: report.damage.iter().map(DamageJson::new).collect(),
        damaged_records: records.clone(),
    })?;
    Ok(match (report.damage.as_slice(), records.as_slice()) {
        ([], []) => Outcome::Done,
        _ => Outcome::Damage,
    })
}

fn choose(catalogue: &Catalogue, args: &VerifyArgs) -> Result<Vec<Entry>> {
    if args.backups.is_empty() {
        return Ok(catalogue.entries().to_vec());
    }
    args.backups
        .iter()
        .map(|spec| {
            let mut entry = catalogue.find(spec)?.clone();
            if let Some(disk) = &spec.disk {
                entry.backup.images = vec![entry.backup.image(disk)?.clone()];
            }
            Ok(entry)
        })
        .collect()
}

fn print(context: &Context<'_>, report: &VerifyReport, records: &[String], clock: Instant) {
    for record in records {
        context.print(format_args!("{record}\n"));
    }
    let shown = if context.verbose() { usize::MAX } else { SHOWN };
    for damage in report.damage.iter().take(shown) {
        context.print(format_args!(
            "{}/{}: {} at {} ({} bytes): {}\n",
            damage.backup,
            damage.disk,
            units::size(damage.len_bytes),
            units::size(damage.offset_bytes),
            damage.offset_bytes,
            damage.what
        ));
    }
    if report.damage.len() > shown {
        context.print(format_args!(
            "... and {} more; -v shows all\n",
            report.damage.len() - shown
        ));
    }
    let read = format!(
        "{} verified, {} ({}) read in {}",
        units::count(report.read.backups, "backup"),
        units::count(report.read.blocks, "block"),
        units::size(report.read.bytes),
        units::duration(clock.elapsed())
    );
    if report.damage.is_empty() && records.is_empty() {
        context.say(format_args!("{read}: all good"));
        return;
    }
    let hurt: HashSet<_> = report.damage.iter().map(|damage| &damage.backup).collect();
    context.print(format_args!(
        "{read}: {} damaged in {}; everything else is good\n",
        units::count(report.damage.len() as u64, "place"),
        units::count((hurt.len() + records.len()) as u64, "backup"),
    ));
}

impl<'a> DamageJson<'a> {
    fn new(damage: &'a Damage) -> Self {
        Self {
            backup: &damage.backup,
            disk: &damage.disk,
            offset_bytes: damage.offset_bytes,
            len_bytes: damage.len_bytes,
            what: &damage.what,
        }
    }
}
