//! What else is left of a guest that has no backup in the repository any more.

use std::path::Path;

use vbk::guest::discover::discover;
use vbk_repo::name::GuestName;

use crate::context::Context;
use crate::exit::Result;
use crate::machine;
use crate::metrics::Metrics;

/// Removes the metrics of guests that are gone: from this file, or that of the configuration. Tells of those that the next run
/// would back up again.
pub fn leave(context: &Context<'_>, metrics: Option<&Path>, gone: &[&GuestName]) {
    if gone.is_empty() {
        return;
    }
    let config = context.config();
    let metrics = metrics.or_else(|| config.as_ref().ok().and_then(|config| config.metrics.as_deref()));
    if let Some(path) = metrics
        && path.exists()
        && let Err(error) = remove_metrics(context, path, gone)
    {
        tracing::warn!("the metrics still have {}: {}", gone[0], error.text());
    }
    let Ok(config) = config else {
        return;
    };
    for found in discover(&machine::programs(), &config.known_guests()).guests {
        if gone.contains(&&found.name) && !config.excludes(&found.name) {
            context.say(format_args!(
                "{} is still a guest of this host, so `vbk backup --all` backs it up again; `exclude` in the configuration \
                 leaves it out",
                found.name
            ));
        }
    }
}

fn remove_metrics(context: &Context<'_>, path: &Path, gone: &[&GuestName]) -> Result<()> {
    Metrics::at(path, context.repository_path()?)?.finish(|guest| gone.iter().all(|gone| gone.as_str() != guest))
}
