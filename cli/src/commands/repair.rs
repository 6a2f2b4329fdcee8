//! `vbk repair`

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk::repair::offer_disk;
use vbk_repo::ErrorKind;
use vbk_repo::repair::Repair;
use vbk_repo::repository::{Manager, Repository};
use vbk_repo::state::{note_of, note_without};
use vbk_repo::verify::{VerifyReport, verify};

use crate::args::RepairArgs;
use crate::commands::verify::{DamageJson, Suspects, new_bytes, print_damage, warn_of_guess};
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    mended_tables: Vec<String>,
    damaged_tables: Vec<String>,
    accepted_changes: Vec<String>,
    mended_blocks: u64,
    mended_segments: u64,
    damage: Vec<DamageJson<'a>>,
    damaged_records: Vec<String>,
}

/// Puts right what can be put right.
pub fn run(context: &Context<'_>, args: &RepairArgs) -> Result<Outcome> {
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let repository = match context.repository_to_write() {
        // Its marker may be what is damaged.
        Err(Error::Repository(error)) if error.kind() == ErrorKind::Corrupt => {
            Repository::open_damaged(context.repository_path()?).map_err(|_| error)?
        }
        repository => repository?,
    };
    context.check_newest(&repository)?;
    let mended = context.waiting(args.no_wait, &cancel, |wait| repository.mend(wait))?;
    // Of a store that could only be put right from an older view, that view is the newest state now.
    context.remember_mended(&repository);
    for what in &mended.done {
        context.say(format_args!("put right: {what}"));
    }
    for what in &mended.left {
        context.print(format_args!("{what}\n"));
    }
    let tables = mended;
    let writer = context.manager("repair", args.no_wait, &cancel)?;
    // The second copies are back by now: what still differs is not a flipped bit.
    let accepted = writer.accept()?;
    for what in &accepted {
        context.print(format_args!(
            "accepted: records and notes were changed without the key: {what}\n"
        ));
    }
    let (mut found, mut suspects) = read_all(context, &writer, &cancel)?;
    let mut mended = (0, 0);
    // A segment that comes back may name blocks that are damaged too, so there may be more to get after the first turn.
    loop {
        let turn = mend(context, &writer, args, &found, &cancel)?;
        mended = (mended.0 + turn.0, mended.1 + turn.1);
        if turn == (0, 0) {
            break;
        }
        let before = found.bad_segments;
        (found, suspects) = read_all(context, &writer, &cancel)?;
        if turn.1 == 0 || found.bad_segments == before {
            break;
        }
    }
    note(&writer, &found, &suspects)?;
    let records: Vec<_> = writer.catalogue()?.damaged().iter().map(ToString::to_string).collect();
    for record in &records {
        context.print(format_args!("{record}\n"));
    }
    print_damage(context, &found.damage);
    let got = format!(
        "{} got back in {}",
        units::count(mended.0 + mended.1, "damaged block"),
        units::duration(clock.elapsed())
    );
    let good = found.damage.is_empty() && records.is_empty() && tables.left.is_empty();
    if good {
        context.say(format_args!(
            "{got}: all {} are good",
            units::count(found.read.backups, "backup")
        ));
    } else {
        let hurt: HashSet<_> = found.damage.iter().map(|damage| &damage.backup).collect();
        context.print(format_args!(
            "{got}; {} in {} stay damaged. The next backup stores anew what is still on the disks; --from and \
             --from-source look elsewhere\n",
            units::count(found.damage.len() as u64, "place"),
            units::count((hurt.len() + records.len()) as u64, "backup"),
        ));
    }
    context.json_result(&Report {
        mended_tables: tables.done,
        damaged_tables: tables.left,
        accepted_changes: accepted.clone(),
        mended_blocks: mended.0,
        mended_segments: mended.1,
        damage: found.damage.iter().map(DamageJson::new).collect(),
        damaged_records: records,
    })?;
    Ok(match (good, accepted.as_slice()) {
        (true, []) => Outcome::Done,
        (true, _) => Outcome::Warnings,
        (false, _) => Outcome::Damage,
    })
}

fn read_all(context: &Context<'_>, writer: &Manager, cancel: &AtomicBool) -> Result<(VerifyReport, Suspects)> {
    let catalogue = writer.catalogue()?;
    let entries = catalogue.entries();
    let progress = Progress::new(context.quiet(), new_bytes(entries), Words::Plain);
    let suspects = Suspects::of(writer.store())?;
    let report = verify(
        writer.store(),
        entries,
        &|id| suspects.is_read(id),
        threads(),
        &|done| progress.set(done.bytes),
        cancel,
    );
    progress.finish();
    Ok((report?, suspects))
}

/// Looks everywhere for what is damaged; gives how many blocks and segments were got back.
fn mend(
    context: &Context<'_>,
    writer: &Manager,
    args: &RepairArgs,
    found: &VerifyReport,
    cancel: &AtomicBool,
) -> Result<(u64, u64)> {
    if found.bad_blocks.is_empty() && found.bad_segments.is_empty() {
        return Ok((0, 0));
    }
    let mut repair = Repair::start(writer.store(), found)?;
    if let Some(path) = &args.from {
        from_repository(context, &mut repair, path)?;
    }
    for (_, path) in &args.from_source {
        offer_disk(&mut repair, path, writer.identity().block_size, cancel)?;
    }
    let mended = repair.mended();
    repair.finish()?;
    Ok(mended)
}

fn from_repository(context: &Context<'_>, repair: &mut Repair<'_>, path: &Path) -> Result<()> {
    let view = context.repository_at(path)?.view()?;
    Ok(repair.from_repository(&*view.store())?)
}

/// Every backup was read: each is either proven or damaged.
fn note(writer: &Manager, found: &VerifyReport, suspects: &Suspects) -> Result<()> {
    let now = jiff::Timestamp::now();
    let hurt: HashSet<&str> = found.damage.iter().map(|damage| damage.backup.as_str()).collect();
    let states = writer.states()?;
    let mut notes: Vec<_> = writer
        .catalogue()?
        .entries()
        .iter()
        .map(|entry| {
            let key = entry.backup.spec();
            let mut state = states.noted(&key);
            let is_hurt = hurt.contains(key.as_str());
            state.damaged = is_hurt.then_some(now);
            state.proven = if is_hurt { state.proven } else { Some(now) };
            warn_of_guess(&states, &key);
            note_of(&key, state)
        })
        .collect();
    for stray in states.strays() {
        tracing::warn!("note {stray} could not be read and is removed; what it said of a backup is lost");
        notes.push(note_without(stray));
    }
    suspects.pardon(writer, found)?;
    Ok(writer.amend(&[], &notes)?)
}
