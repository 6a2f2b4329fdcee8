//! `vbk prune`

use vbk_repo::store::PruneOptions;

use crate::args::PruneArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::pruning::{PRUNE, Task, prune, prune_sealed, would_prune, would_prune_sealed};
use crate::signals;

/// Removes blocks that no backup needs.
pub fn run(context: &Context<'_>, args: &PruneArgs) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let task = Task {
        options: PruneOptions {
            max_unused: args.max_unused,
            dry_run: args.dry_run,
            empty_bin: args.empty_bin,
        },
        no_wait: args.no_wait,
        cancel: &cancel,
        metrics: args.metrics.as_deref(),
    };
    let shown = match (args.dry_run, args.without_key) {
        (false, _) => None,
        (true, false) => would_prune(context, &task)?,
        (true, true) => would_prune_sealed(context, &task)?,
    };
    let (report, outcome) = match shown {
        Some(shown) => shown,
        None if args.without_key => prune_sealed(context, &task)?,
        None => prune(context, context.manager(PRUNE, args.no_wait, &cancel)?, &task)?,
    };
    context.json_result(&report)?;
    Ok(outcome)
}
