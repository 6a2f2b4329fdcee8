//! Prints what `vbk forget` decided.

use super::{Action, Judged, Verdict};
use crate::args::ForgetArgs;
use crate::context::Context;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// Prints the decisions: with --dry-run those that were asked for, otherwise what was forgotten.
pub fn print(context: &Context<'_>, args: &ForgetArgs, judged: &Judged) {
    let dry_run = args.dry_run;
    let verdicts = judged.verdicts.as_slice();
    let shown = |verdict: &&Verdict| match verdict.action {
        Action::Forget => !args.kept,
        Action::Keep => args.kept || !args.forgotten && (dry_run || context.verbose()),
    };
    let mut table = Table::new(&[
        ("ACTION", Align::Left),
        ("BACKUP", Align::Left),
        ("BECAUSE", Align::Left),
    ]);
    for verdict in verdicts.iter().filter(shown) {
        let reasons: Vec<_> = verdict.reasons.iter().map(ToString::to_string).collect();
        table.row(vec![
            verdict.action.to_string(),
            verdict.backup.clone(),
            reasons.join(", "),
        ]);
    }
    let (forget, keep) = (judged.count(Action::Forget), judged.count(Action::Keep));
    if (dry_run || forget > 0) && !context.quiet() {
        context.print(table);
    }
    let would = if dry_run { "would be forgotten" } else { "forgotten" };
    let zone = judged
        .zone
        .as_ref()
        .map(|zone| format!("; days begin at midnight in {zone}"));
    // Of a guest whose backups are named, others may stay that were not looked at.
    let kept = (judged.zone.is_some() || keep > 0).then(|| format!(", {keep} kept"));
    context.say(format_args!(
        "{} {would}{}{}",
        units::count(forget as u64, "backup"),
        kept.unwrap_or_default(),
        zone.unwrap_or_default()
    ));
    for backup in &judged.protected {
        tracing::warn!("{backup} stays: it is protected, and `vbk unprotect {backup}` removes the protection");
    }
    for (guest, left) in &judged.bare {
        match dry_run {
            true => context.say(format_args!("{guest} would be left with {left}")),
            false => context.say(format_args!("{guest} has {left} now")),
        }
    }
    for (backup, counted) in &judged.doubted {
        tracing::warn!(
            "the repository received {backup} at {} from a client that may only add: that time counts for the rules, and not the \
             client's",
            units::time(counted.timestamp())
        );
    }
    for held in &judged.held {
        context.say(held);
    }
    for jump in &judged.jumped {
        tracing::warn!("{jump}");
    }
    if !judged.left_out.is_empty() {
        let guests: Vec<_> = judged.left_out.iter().map(ToString::to_string).collect();
        tracing::warn!(
            "keep is not set for {}, so all their backups stay: set `keep` in the configuration, e.g. {{ daily = 7, weekly \
             = 4 }} or \"all\"",
            guests.join(", ")
        );
    }
}
