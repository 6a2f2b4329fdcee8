//! Removing what no backup needs, for `vbk prune` and `vbk forget --prune`.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use vbk_repo::repository::{Manager, Pruned, Turn};
use vbk_repo::store::{PruneOptions, Swept};

use crate::context::{Context, threads};
use crate::exit::{Outcome, Result};
use crate::terminal::units;

pub use vbk_repo::repository::directory::lock::PRUNE;

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

/// Prunes with an open writer and prints the result; `forgotten` is added to the JSON. Lets other writers in meanwhile, and
/// continues after them.
pub fn prune<T: Serialize>(
    context: &Context<'_>,
    writer: Manager,
    options: PruneOptions,
    no_wait: bool,
    cancel: &AtomicBool,
    forgotten: Option<&T>,
) -> Result<Outcome> {
    let clock = Instant::now();
    let mut first = Some(writer);
    let pruned = in_turns(|| {
        let again = || context.manager_again(PRUNE, no_wait, cancel);
        let mut writer = first.take().map_or_else(again, Ok)?;
        Ok(writer.prune_until_awaited(options, threads(), cancel, &|_| {})?)
    })?;
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
    let pruned = in_turns(|| {
        context.waiting(no_wait, cancel, |wait| {
            repository.prune_sealed(options, threads(), cancel, &|_| {}, wait)
        })
    })?;
    report(context, pruned, options, clock, None::<&()>)
}

/// Repeats a prune that lets others in until it is done. Between two turns nothing of it holds the repository.
fn in_turns(mut turn: impl FnMut() -> Result<Turn>) -> Result<Pruned> {
    let mut before = Before::default();
    loop {
        match turn()? {
            Turn::Done(pruned) => return Ok(before.with(pruned)),
            Turn::GaveWay {
                swept,
                used_before_bytes,
            } => before.add(swept, used_before_bytes),
        }
        tracing::warn!("another process waits to write to the repository; the prune continues after it");
    }
}

/// What the earlier turns of a prune removed.
#[derive(Default)]
struct Before {
    removed: Swept,
    used_before_bytes: Option<u64>,
}

impl Before {
    fn add(&mut self, swept: Swept, used_before_bytes: Option<u64>) {
        self.removed.removed_blocks += swept.removed_blocks;
        self.removed.removed_bytes += swept.removed_bytes;
        self.removed.removed_nodes += swept.removed_nodes;
        self.used_before_bytes = self.used_before_bytes.or(used_before_bytes);
    }

    /// Returns the result of all turns.
    fn with(&self, last: Pruned) -> Pruned {
        let removed = &self.removed;
        Pruned {
            swept: Swept {
                unused_blocks: last.swept.unused_blocks + removed.removed_blocks,
                unused_bytes: last.swept.unused_bytes + removed.removed_bytes,
                removed_blocks: last.swept.removed_blocks + removed.removed_blocks,
                removed_bytes: last.swept.removed_bytes + removed.removed_bytes,
                removed_nodes: last.swept.removed_nodes + removed.removed_nodes,
                ..last.swept
            },
            used_before_bytes: self.used_before_bytes.unwrap_or(last.used_before_bytes),
            ..last
        }
    }
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
