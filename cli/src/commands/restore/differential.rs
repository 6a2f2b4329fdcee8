//! `vbk restore --differential`: only what differs, or only how much that is.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vbk::restore::differential::{Difference, DifferentialOptions, Updated, compare, restore};
use vbk::restore::preview::preview;
use vbk::restore::{Damaged, Fill, Format, RestoreOptions, Restored};
use vbk_repo::ErrorKind;

use super::dry_run::{FoundJson, say_found};
use super::{Disk, Report, damage_mode, print_damaged};
use crate::args::RestoreArgs;
use crate::context::{Context, threads};
use crate::exit::{Outcome, Result};
use crate::restoring::print_behind;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

#[derive(Serialize)]
struct DifferentialJson {
    #[serde(flatten)]
    report: Report,
    dry_run: bool,
    compared_bytes: u64,
    /// Bytes of the blocks that differed.
    differing_bytes: u64,
    /// Those of them with data in the backup.
    differing_data_bytes: u64,
    /// Those of them that are zeros in the backup.
    differing_zero_bytes: u64,
    /// 0 with --dry-run.
    written_bytes: u64,
    /// Bytes of the target that could not be read.
    unreadable_bytes: u64,
    /// Size of a file before, if it was not the disk's.
    resized_from_bytes: Option<u64>,
    /// With --dry-run: the message of the error of the restore.
    refused: Option<String>,
}

/// Makes a device or file the same as a disk, or compares them.
pub(super) fn run(
    context: &Context<'_>,
    args: &RestoreArgs,
    disk: &Disk<'_>,
    target: &Path,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let progress = Progress::new(context.quiet(), disk.image.size_bytes, Words::Plain);
    let label = disk.label();
    let options = DifferentialOptions {
        label: label.clone(),
        force: args.force,
        overwrite: args.overwrite,
        damaged: damage_mode(args),
        threads: threads(),
    };
    let updated = match args.dry_run {
        true => compare(&disk.reader, target, &options, cancel, &progress)?,
        false => restore(&disk.reader, target, &options, cancel, &progress).inspect_err(|error| {
            if error.kind() == ErrorKind::Interrupted {
                tracing::error!(
                    "{} is restored in part: neither the old disk nor the new one. The same command completes it",
                    target.display()
                );
            }
        })?,
    };
    progress.finish();
    let took = disk.started.elapsed();
    let Updated {
        difference,
        damaged,
        behind,
    } = updated;
    let differing_bytes = difference.data_bytes + difference.zero_bytes;
    let (compared, differing) = (units::size(difference.compared_bytes), units::size(differing_bytes));
    let kinds = format!(
        "{} of data, {} of zeros",
        units::size(difference.data_bytes),
        units::size(difference.zero_bytes)
    );
    let (shown, duration) = (target.display(), units::duration(took));
    context.say(match args.dry_run {
        true => format!(
            "{label}: {compared} compared with {shown} in {duration}, {differing} would be written ({kinds}); nothing was \
             written"
        ),
        false => format!("{label}: {compared} compared with {shown}, {differing} written ({kinds}) in {duration}"),
    });
    print_unreadable(context, &difference, target);
    print_size(context, &difference, target, args.dry_run);
    print_behind(context, behind.as_ref(), target);
    let found = match args.dry_run {
        true => FoundJson::new(&preview(
            &disk.reader,
            disk.image.data_bytes,
            target,
            &as_restore(&options),
            true,
        )?),
        false => FoundJson::default(),
    };
    say_found(context, target, &found);
    let lost = match (options.damaged, args.dry_run) {
        (_, true) => "they could not be compared",
        (Damaged::Keep, false) => "they are as they were at the target",
        (Damaged::Zeros | Damaged::Refuse, false) => "they are zeros",
    };
    let outcome = print_damaged(&label, &damaged, lost).worse(found.outcome());
    let restored = Restored { damaged, behind };
    context.json_result(&DifferentialJson {
        report: Report::new(disk, target, &restored, took),
        dry_run: args.dry_run,
        compared_bytes: difference.compared_bytes,
        differing_bytes,
        differing_data_bytes: difference.data_bytes,
        differing_zero_bytes: difference.zero_bytes,
        written_bytes: if args.dry_run { 0 } else { differing_bytes },
        unreadable_bytes: difference.unreadable_bytes,
        resized_from_bytes: difference.resized_from_bytes,
        refused: found.refused().map(str::to_owned),
    })?;
    Ok(match progress.warnings() {
        1.. if outcome == Outcome::Done => Outcome::Warnings,
        _ => outcome,
    })
}

/// Returns the options of a restore of which only the target is looked at.
fn as_restore(options: &DifferentialOptions) -> RestoreOptions {
    RestoreOptions {
        label: options.label.clone(),
        format: Format::Raw,
        changes: None,
        force: options.force,
        overwrite: options.overwrite,
        fill: Fill::Image,
        damaged: options.damaged,
        threads: options.threads,
    }
}

fn print_unreadable(context: &Context<'_>, difference: &Difference, target: &Path) {
    if difference.unreadable_bytes > 0 {
        context.say(format_args!(
            "{}: {} could not be read and count as different",
            target.display(),
            units::size(difference.unreadable_bytes)
        ));
    }
}

/// Describes the change of a file's size.
fn print_size(context: &Context<'_>, difference: &Difference, target: &Path, dry_run: bool) {
    let new = difference.compared_bytes;
    let Some(old) = difference.resized_from_bytes else {
        return;
    };
    let done = match (new > old, dry_run) {
        (true, false) => "was enlarged",
        (true, true) => "would be enlarged",
        (false, false) => "was truncated",
        (false, true) => "would be truncated",
    };
    context.say(format_args!(
        "{} {done} from {} to the size of the disk, {}",
        target.display(),
        units::size(old),
        units::size(new)
    ));
}
