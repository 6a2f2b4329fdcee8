//! `vbk copy --without-key`

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use jiff::Zoned;
use vbk_repo::copy::{CopyOptions, SealedBackup, SealedCopied, SealedPlan, Step, check_sealed, copy_sealed};
use vbk_repo::repository::{Repository, Reserve, SealedView, SealedWriter};

use super::{CopiedJson, Ended, explain, failed_json, is_damage, of_source};
use crate::args::CopyArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

/// Digits of a hidden key that are shown.
const SHOWN_DIGITS: usize = 12;

/// Copies sealed backups from one repository to another.
pub fn run(context: &Context<'_>, args: &CopyArgs) -> Result<Outcome> {
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let from = context.other_locked(&args.from, &args.keys.keys())?;
    let view = from.sealed_view().map_err(|error| of_source(error, args))?;
    let (global, sources) = context.options_at(&args.to);
    let to = Context::new(&global, sources);
    let repository = to.locked_repository_to_write()?;
    let writer = to.waiting(args.no_wait, &cancel, |wait| repository.sealed_writer("copy", wait))?;
    check_sealed(&view, &writer).map_err(|error| explain(error, args))?;
    let theirs = view.store.listing(false).map_err(|error| of_source(error, args))?;
    let oldest = args.since.map(|age| age.before(&Zoned::now()));
    let plan = SealedPlan::new(theirs, &writer.store.listing(false)?, oldest);
    let present = plan.present;
    let copied = match args.dry_run {
        true => show(&to, &plan),
        false => copy(&to, args, (&view, &writer), plan, &repository, &cancel)?,
    };
    report(&to, args, copied, present, clock)
}

/// Shows what would be copied.
fn show(to: &Context<'_>, plan: &SealedPlan) -> SealedCopied {
    let mut copied = SealedCopied::default();
    for backup in &plan.missing {
        to.say(format_args!("would copy {}", name(backup)));
        copied.copied.push((backup.record.key.clone(), Default::default()));
    }
    copied
}

fn copy(
    to: &Context<'_>,
    args: &CopyArgs,
    (view, writer): (&SealedView, &SealedWriter),
    plan: SealedPlan,
    repository: &Repository,
    cancel: &AtomicBool,
) -> Result<SealedCopied> {
    // How much will be read is not known without the key.
    let progress = Progress::new(to.quiet(), 0, Words::Plain);
    let reserve = args.reserve.unwrap_or(Reserve::Default);
    let options = CopyOptions {
        threads: threads(),
        cancel,
        observer: &|step| {
            if let Step::Read(bytes) = step {
                progress.add(bytes);
            }
        },
        check_room: &|| repository.check_reserve(reserve),
    };
    let copied = copy_sealed(view, writer, plan, options, &mut |backup, done| {
        progress.suspend(|| match done {
            Ok(sent) => to.say(format_args!(
                "copied {}: {} ({}) sent",
                name(backup),
                units::count(sent.blocks, "block"),
                units::size(sent.stored_bytes)
            )),
            Err(error) => tracing::error!("{} can't be copied: {error}", name(backup)),
        });
    });
    progress.finish();
    copied.map_err(|error| explain(error, args))
}

/// Describes a backup whose name is sealed.
fn name(backup: &SealedBackup) -> String {
    let key = backup.record.key.get(..SHOWN_DIGITS).unwrap_or(&backup.record.key);
    match backup.received {
        Some(time) => format!("sealed backup {key} of {}", units::time(time)),
        None => format!("sealed backup {key}"),
    }
}

fn report(to: &Context<'_>, args: &CopyArgs, done: SealedCopied, present: u64, clock: Instant) -> Result<Outcome> {
    let copied = done.copied.iter().map(|(backup, sent)| CopiedJson {
        backup: backup.clone(),
        sent_blocks: (!args.dry_run).then_some(sent.blocks),
        stored_bytes: (!args.dry_run).then_some(sent.stored_bytes),
    });
    let ended = Ended {
        copied: copied.collect(),
        present,
        is_damaged: is_damage(&done.failed),
        failed: failed_json(&done.failed).collect(),
        damaged_records: Vec::new(),
        sent: done.sent,
        sent_bytes: None,
        found_blocks: done.found_blocks,
        unpublished: done.unpublished,
        is_guessed: false,
    };
    ended.report(to, args, clock)
}
