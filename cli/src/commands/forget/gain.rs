//! What a prune would give back after a forget that is only tried.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::repository::View;
use vbk_repo::unused::{Unused, unused_without};

use super::{Judged, Verdict};
use crate::context::{Context, threads};
use crate::exit::Result;
use crate::terminal::units;

/// JSON of `vbk forget --dry-run --prune`; the names are those of `vbk prune`.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    #[serde(flatten)]
    unused: Unused,
    forgotten: &'a [Verdict],
}

/// Prints how much a prune would find unused. `is_elsewhere`: the repository is on another host.
pub fn print(
    context: &Context<'_>,
    view: &View,
    judged: &Judged,
    is_elsewhere: bool,
    cancel: &AtomicBool,
) -> Result<()> {
    let store = view.store();
    let now = Timestamp::now();
    let bin = store.forgotten()?.into_iter();
    let bin = bin.filter(|binned| binned.kept_until > now).map(|binned| binned.record);
    let forgotten: HashSet<_> = judged.forgotten().into_iter().collect();
    let unused = unused_without(
        &*store,
        &view.catalogue()?,
        &forgotten,
        bin.collect(),
        threads(),
        cancel,
    )?;
    context.say(format_args!(
        "a prune would then remove at most {} ({}) of {}",
        units::count(unused.unused_blocks, "unused block"),
        units::size(unused.unused_bytes),
        units::size(unused.live_bytes + unused.unused_bytes),
    ));
    if is_elsewhere && !forgotten.is_empty() {
        context.say("the server keeps what its clients forget for the time that `vbk policy` says there, and its prune removes it after that");
    }
    context.json_result(&Report {
        dry_run: true,
        unused,
        forgotten: &judged.verdicts,
    })
}
