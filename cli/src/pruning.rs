//! Removing what no backup needs, for `vbk prune` and `vbk forget --prune`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::repository::{Manager, Pruned, Repository, Turn, Unfinished, View, WouldPrune};
use vbk_repo::store::{PruneOptions, Swept};

use crate::context::{Context, threads};
use crate::exit::{Outcome, Result};
use crate::metrics;
use crate::terminal::progress::Progress;
use crate::terminal::units;

pub use vbk_repo::repository::directory::lock::PRUNE;

/// The most that the store gives back by closing its log.
const LOG_BYTES: u64 = 16 << 20;

/// Work of a prune, on the progress line: before it removes anything, and then.
const MARKS: &str = "finding unused blocks";
const SWEEPS: &str = "removing unused blocks";

/// JSON of a prune, or of one that was only counted.
#[derive(Serialize)]
pub struct Report {
    dry_run: bool,
    backups: u64,
    #[serde(flatten)]
    swept: Swept,
    used_before_bytes: u64,
    used_after_bytes: u64,
    freed_bytes: u64,
    mark_ms: u64,
    duration_ms: u64,
    /// Stored since the newest view: see [`WouldPrune`].
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<Unfinished>,
}

/// A prune as it was asked for.
pub struct Task<'a> {
    pub options: PruneOptions,
    pub no_wait: bool,
    pub cancel: &'a AtomicBool,
    /// File of metrics, instead of that of the configuration.
    pub metrics: Option<&'a Path>,
}

/// Prunes with an open writer, and prints the result. Lets other writers in meanwhile, and continues after them.
pub fn prune(context: &Context<'_>, writer: Manager, task: &Task<'_>) -> Result<(Report, Outcome)> {
    let clock = Instant::now();
    let mut first = Some(writer);
    let progress = Progress::counting(context.quiet()).of(MARKS);
    let freed = |bytes| shown(&progress, bytes);
    let pruned = in_turns(|| {
        let again = || context.manager_again(PRUNE, task.no_wait, task.cancel);
        let mut writer = first.take().map_or_else(again, Ok)?;
        Ok(writer.prune_until_awaited(task.options, threads(), task.cancel, &freed)?)
    });
    progress.finish();
    let pruned = pruned?;
    let report = report(context, task, &pruned, clock);
    let outcome = record(context, &context.opened()?, task, &pruned);
    Ok((report, outcome))
}

/// The same without the key.
pub fn prune_sealed(context: &Context<'_>, task: &Task<'_>) -> Result<(Report, Outcome)> {
    let clock = Instant::now();
    let repository = context.locked_repository_to_write()?;
    let progress = Progress::counting(context.quiet()).of(MARKS);
    let freed = |bytes| shown(&progress, bytes);
    let pruned = in_turns(|| {
        context.waiting(task.no_wait, task.cancel, |wait| {
            repository.prune_sealed(task.options, threads(), task.cancel, &freed, wait)
        })
    });
    progress.finish();
    let pruned = pruned?;
    let report = report(context, task, &pruned, clock);
    let outcome = record(context, &repository, task, &pruned);
    Ok((report, outcome))
}

/// Shows what a prune would remove, out of what readers see: it waits for no other process. `None` if the repository is on another
/// host: there the server counts, which has the index at hand.
pub fn would_prune(context: &Context<'_>, task: &Task<'_>) -> Result<Option<(Report, Outcome)>> {
    let repository = context.repository()?;
    if repository.local_path().is_err() {
        return Ok(None);
    }
    let clock = Instant::now();
    let view = context.view_of(&repository)?;
    let would = repository.would_prune(&view, &HashSet::new(), task.options, threads(), task.cancel)?;
    let report = report_would(context, task, &would, clock);
    Ok(Some((report, record(context, &repository, task, &would.pruned))))
}

/// The same without the key.
pub fn would_prune_sealed(context: &Context<'_>, task: &Task<'_>) -> Result<Option<(Report, Outcome)>> {
    let repository = context.locked_repository()?;
    if repository.local_path().is_err() {
        return Ok(None);
    }
    let clock = Instant::now();
    let would = repository.would_prune_sealed(task.options, threads(), task.cancel)?;
    let report = report_would(context, task, &would, clock);
    Ok(Some((report, record(context, &repository, task, &would.pruned))))
}

/// The same as if some backups were forgotten, named as `GUEST@TIME`. Also for a repository on another host: its server could
/// count only what all its backups leave, so the index comes over the network. Is no figure for the metrics.
pub fn would_prune_without(
    context: &Context<'_>,
    (repository, view): (&Repository, &View),
    forgotten: &HashSet<String>,
    task: &Task<'_>,
) -> Result<Report> {
    let clock = Instant::now();
    let would = repository.would_prune(view, forgotten, task.options, threads(), task.cancel)?;
    Ok(report_would(context, task, &would, clock))
}

fn report_would(context: &Context<'_>, task: &Task<'_>, would: &WouldPrune, clock: Instant) -> Report {
    let unfinished = would.unfinished.filter(|unfinished| !unfinished.is_empty());
    let report = report(context, task, &would.pruned, clock);
    if let Some(unfinished) = unfinished {
        let size = units::size(unfinished.stored_bytes);
        context.say(match would.is_written {
            true => format!("{size} more were stored by the process that writes now, and are not counted"),
            false => {
                format!("{size} of the unused blocks were left by interrupted runs; the next backup may use them again")
            }
        });
    }
    Report { unfinished, ..report }
}

/// Shows the bytes that a prune has removed.
fn shown(progress: &Progress, removed_bytes: u64) {
    if removed_bytes > 0 {
        progress.rename(SWEEPS);
    }
    progress.set(removed_bytes);
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

fn report(context: &Context<'_>, task: &Task<'_>, pruned: &Pruned, clock: Instant) -> Report {
    let is_dry = task.options.dry_run;
    let swept = pruned.swept;
    let freed = match pruned.used_before_bytes.saturating_sub(pruned.used_after_bytes) {
        // The store's own log became shorter, and nothing else.
        freed if freed < LOG_BYTES && swept.removed_blocks + swept.removed_nodes == 0 => 0,
        freed => freed,
    };
    let left = swept.unused_bytes - swept.removed_bytes;
    let removed = format!(
        "{} ({}) of {}",
        units::count(swept.removed_blocks, "unused block"),
        units::size(swept.removed_bytes),
        units::size(swept.live_bytes + swept.unused_bytes),
    );
    if is_dry {
        context.say(format_args!(
            "{removed} would be removed; {} unused would stay",
            units::size(left)
        ));
    } else {
        let gained = match (freed, swept.removed_blocks + swept.removed_nodes) {
            (0, _) => "nothing freed".to_owned(),
            (freed, 0) => format!(
                "{} freed, which an interrupted prune or an ended reader had left",
                units::size(freed)
            ),
            (freed, _) => format!("{} freed", units::size(freed)),
        };
        context.say(format_args!(
            "{removed} removed, {} unused left; {gained} in {}, the repository takes {}",
            units::size(left),
            units::duration(clock.elapsed()),
            units::size(pruned.used_after_bytes),
        ));
        // Less than half of it is free if readers hold the old files.
        if freed < swept.removed_bytes / 2 {
            context.say("running mounts, restores or verifications hold the rest; `vbk status -v` lists them");
        }
    }
    Report {
        dry_run: is_dry,
        backups: pruned.backups,
        swept,
        used_before_bytes: pruned.used_before_bytes,
        used_after_bytes: pruned.used_after_bytes,
        freed_bytes: freed,
        mark_ms: units::milliseconds(pruned.marked),
        duration_ms: units::milliseconds(clock.elapsed()),
        unfinished: None,
    }
}

/// Adds the figures to the metrics.
fn record(context: &Context<'_>, repository: &Repository, task: &Task<'_>, pruned: &Pruned) -> Outcome {
    let swept = &pruned.swept;
    let is_written = metrics::record(context, task.metrics, repository, |run| match task.options.dry_run {
        true => run.left(swept.live_bytes, swept.unused_bytes),
        false => {
            run.left(swept.live_bytes, swept.unused_bytes - swept.removed_bytes);
            run.pruned(Timestamp::now());
        }
    });
    match is_written {
        true => Outcome::Done,
        false => Outcome::Warnings,
    }
}
