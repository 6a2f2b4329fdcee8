//! `vbk prune`

use vbk_repo::store::PruneOptions;

use crate::args::PruneArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::pruning::{PRUNE, prune, prune_sealed};
use crate::signals;

/// Removes blocks that no backup needs.
pub fn run(context: &Context<'_>, args: &PruneArgs) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let options = PruneOptions {
        max_unused: args.max_unused,
        dry_run: args.dry_run,
        empty_bin: args.empty_bin,
    };
    if args.without_key {
        return prune_sealed(context, options, args.no_wait, &cancel);
    }
    let writer = context.manager(PRUNE, args.no_wait, &cancel)?;
    prune(context, writer, options, args.no_wait, &cancel, None::<&()>)
}
