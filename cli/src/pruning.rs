//! Removing what no backup needs, for `vbk prune` and `vbk forget --prune`.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk_repo::repository::{Manager, Pruned};
use vbk_repo::store::{PruneOptions, Swept};

use crate::context::{Context, threads};
use crate::exit::{Outcome, Result};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a, T: Serialize> {
    dry_run: bool,
    backups: u64,
    #[serde(flatten)]
    swept: Swept,
    used_before_bytes: u64,
    used_after_bytes: u64,
    freed_bytes: u64,
    mark_ms: u64,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    forgotten: Option<&'a T>,
}

/// Prunes with an open writer and prints the result; `forgotten` is added to the JSON.
pub fn prune<T: Serialize>(
    context: &Context<'_>,
    writer: &mut Manager,
    options: PruneOptions,
    cancel: &AtomicBool,
    forgotten: Option<&T>,
) -> Result<Outcome> {
    let clock = Instant::now();
    let pruned = writer.prune(options, threads(), cancel, &|_| {})?;
    report(context, pruned, options, clock, forgotten)
}

/// The same without the key.
pub fn prune_sealed(
    context: &Context<'_>,
    options: PruneOptions,
    no_wait: bool,
    cancel: &AtomicBool,
) -> Result<Outcome> {
    let clock = Instant::now();
    let repository = context.locked_repository_to_write()?;
    let pruned = context.waiting(no_wait, cancel, |wait| {
        repository.prune_sealed(options, threads(), cancel, &|_| {}, wait)
    })?;
    report(context, pruned, options, clock, None::<&()>)
}

fn report<T: Serialize>(
    context: &Context<'_>,
    pruned: Pruned,
    options: PruneOptions,
    clock: Instant,
    forgotten: Option<&T>,
) -> Result<Outcome> {
    let swept = pruned.swept;
    let freed = pruned.used_before_bytes.saturating_sub(pruned.used_after_bytes);
    let left = swept.unused_bytes - swept.removed_bytes;
    let removed = format!(
        "{} ({}) of {}",
        units::count(swept.removed_blocks, "unused block"),
        units::size(swept.removed_bytes),
        units::size(swept.live_bytes + swept.unused_bytes),
    );
    if options.dry_run {
        context.say(format_args!(
            "{removed} would be removed; {} unused would stay",
            units::size(left)
        ));
    } else {
        context.say(format_args!(
            "{removed} removed, {} unused left; {} freed in {}, the repository takes {}",
            units::size(left),
            units::size(freed),
            units::duration(clock.elapsed()),
            units::size(pruned.used_after_bytes),
        ));
        // Less than half of it is free if readers hold the old files.
        if freed < swept.removed_bytes / 2 {
            context.say("running mounts, restores or verifications hold the rest; `vbk status` lists them");
        }
    }
    context.json_result(&Report {
        dry_run: options.dry_run,
        backups: pruned.backups,
        swept,
        used_before_bytes: pruned.used_before_bytes,
        used_after_bytes: pruned.used_after_bytes,
        freed_bytes: freed,
        mark_ms: units::milliseconds(pruned.marked),
        duration_ms: units::milliseconds(clock.elapsed()),
        forgotten,
    })?;
    Ok(Outcome::Done)
}
