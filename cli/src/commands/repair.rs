//! `vbk repair`

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk::repair::offer_disk;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Entry;
use vbk_repo::block::{BlockSize, Hashing};
use vbk_repo::repair::{FetchError, Repair, repair_all};
use vbk_repo::repository::{Manager, Repository, Verified};
use vbk_repo::store::StoreManager;
use vbk_repo::verify::{Scope, VerifyReport, expected_bytes, verify};

use crate::args::RepairArgs;
use crate::context::{Context, Other, threads, waiting};
use crate::damage::{DamageJson, print_damage};
use crate::exit::{Error, Outcome, Result};
use crate::place;
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;
use crate::warnings::warn_of_guess;

#[derive(Serialize)]
struct Report<'a> {
    mended_tables: Vec<String>,
    damaged_tables: Vec<String>,
    accepted_changes: Vec<String>,
    mended_blocks: u64,
    mended_nodes: u64,
    damage: Vec<DamageJson<'a>>,
    damaged_records: Vec<String>,
}

/// Repairs the repository as far as possible.
pub fn run(context: &Context<'_>, args: &RepairArgs) -> Result<Outcome> {
    if let Some(message) = place::command_there(context.repository_path()?, "repair")? {
        return Err(Error::Usage(message));
    }
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let repository = match context.repository_to_write() {
        // The damage may be in the marker.
        Err(Error::Repository(error)) if error.kind() == ErrorKind::Corrupt => {
            Repository::open_damaged(context.repository_path()?).map_err(|_| error)?
        }
        repository => repository?,
    };
    context.check_newest(&repository)?;
    let tables = context.waiting(args.no_wait, &cancel, |wait| repository.mend(wait))?;
    // If the store could only be restored from an older view, that view is the newest state now.
    context.remember_mended(&repository);
    for what in &tables.done {
        context.say(format_args!("repaired: {what}"));
    }
    for what in &tables.left {
        context.print(format_args!("{what}\n"));
    }
    let writer = context.manager("repair", args.no_wait, &cancel)?;
    let identity = writer.identity().clone();
    let hashing = writer.store().hashing();
    let other = match &args.from {
        Some(path) => Some(open_other(context, path, args, hashing)?),
        None => None,
    };
    // The second copies are restored by now: a remaining difference is not a flipped bit.
    let accepted = writer.accept()?;
    for what in &accepted {
        context.print(format_args!(
            "accepted: records and notes were changed without the key: {what}\n"
        ));
    }
    // Others write while this reads.
    drop(writer);
    let repository = context.opened()?;
    let mut entries = Vec::new();
    let repaired = repair_all(
        hashing,
        &|change| write(&repository, &cancel, change),
        &mut || read_all(context, &repository, &mut entries, &cancel),
        &mut |repair| look(repair, args, other.as_ref(), identity.block_size, &cancel),
    )?;
    let writer = context.manager_again("repair", false, &cancel)?;
    record(&writer, &entries, &repaired.left)?;
    let found = &repaired.left;
    let records: Vec<_> = writer.catalogue()?.damaged().iter().map(ToString::to_string).collect();
    for record in &records {
        context.print(format_args!("{record}\n"));
    }
    print_damage(context, &found.damage);
    let got = format!(
        "{} restored in {}",
        units::count(repaired.blocks + repaired.nodes, "damaged block"),
        units::duration(clock.elapsed())
    );
    let good = found.damage.is_empty() && records.is_empty() && tables.left.is_empty();
    match good {
        true => context.say(format_args!(
            "{got}: all {} are good",
            units::count(found.read.backups, "backup")
        )),
        false => print_left(context, &got, found, records.len()),
    }
    context.json_result(&Report {
        mended_tables: tables.done,
        damaged_tables: tables.left,
        accepted_changes: accepted.clone(),
        mended_blocks: repaired.blocks,
        mended_nodes: repaired.nodes,
        damage: found.damage.iter().map(DamageJson::new).collect(),
        damaged_records: records,
    })?;
    Ok(match (good, accepted.as_slice()) {
        (true, []) => Outcome::Done,
        (true, _) => Outcome::Warnings,
        (false, _) => Outcome::Damage,
    })
}

/// Prints how much stays damaged, and the next steps.
fn print_left(context: &Context<'_>, got: &str, left: &VerifyReport, damaged_records: usize) {
    let hurt: HashSet<_> = left.damage.iter().map(|damage| &damage.backup).collect();
    context.print(format_args!(
        "{got}; {} in {} stay damaged. The next backup stores again what is still on the disks; --from and \
         --from-source look elsewhere\n",
        units::count(left.damage.len() as u64, "place"),
        units::count((hurt.len() + damaged_records) as u64, "backup"),
    ));
}

/// Reads and proves all backups of the newest view, and returns them in `entries`.
fn read_all(
    context: &Context<'_>,
    repository: &Repository,
    entries: &mut Vec<Entry>,
    cancel: &AtomicBool,
) -> Result<VerifyReport> {
    let view = context.view_of(repository)?;
    view.catalogue()?.entries().clone_into(entries);
    let progress = Progress::new(context.quiet(), expected_bytes(entries), Words::Plain);
    let report = verify(
        &*view.store_to_scan(),
        entries,
        &Scope::All,
        threads(),
        &|done| progress.set(done.bytes),
        cancel,
    );
    progress.finish();
    Ok(report?)
}

/// Opens the repository for a change, which is shown to readers when this returns.
fn write(
    repository: &Repository,
    cancel: &AtomicBool,
    change: &mut dyn FnMut(&dyn StoreManager) -> vbk_repo::Result<()>,
) -> vbk_repo::Result<()> {
    let writer = waiting(false, cancel, |wait| repository.manager("repair", wait))?;
    change(writer.store())?;
    // A view shows a change of records or notes, even if none has changed.
    writer.amend(&[], &[])
}

/// Opens the repository to fetch from.
fn open_other(context: &Context<'_>, path: &Path, args: &RepairArgs, hashing: Hashing) -> Result<Other> {
    let other = context.other(path, &args.from_keys.keys())?;
    match other.view.store().hashing() == hashing {
        true => Ok(other),
        false => Err(Error::Usage(format!(
            "{} has another key than this repository, so its blocks have other names and none can be fetched from there",
            path.display()
        ))),
    }
}

/// Looks for damaged blocks and nodes of manifests in every place that was named.
fn look(
    repair: &mut Repair<'_>,
    args: &RepairArgs,
    other: Option<&Other>,
    block_size: BlockSize,
    cancel: &AtomicBool,
) -> Result<()> {
    if let (Some(path), Some(other)) = (&args.from, other) {
        repair
            .from_repository(&*other.view.store(), cancel)
            .map_err(|error| match error {
                FetchError::From(source) => Error::Other {
                    path: path.clone(),
                    source,
                },
                FetchError::To(error) => error.into(),
            })?;
    }
    for (_, path) in &args.from_source {
        offer_disk(repair, path, block_size, cancel)?;
    }
    Ok(())
}

/// Records the last verification, which read every backup.
fn record(writer: &Manager, entries: &[Entry], report: &VerifyReport) -> Result<()> {
    let recorded = writer.record_verification(&Verified {
        entries,
        scope: &Scope::All,
        all_disks: true,
        report,
        at: jiff::Timestamp::now(),
        resets_unreadable: true,
    })?;
    recorded.protected.iter().for_each(|backup| warn_of_guess(backup));
    for stray in &recorded.removed {
        tracing::warn!("note {stray} could not be read and is removed; a backup may have lost its protection");
    }
    Ok(())
}
