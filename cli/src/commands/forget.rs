//! `vbk forget`, `vbk protect`, `vbk unprotect`

mod held;
mod printed;
mod verdict;
mod whole;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::tz::TimeZone;
use serde::Serialize;
use vbk::retention::{Candidate, Decision, KeepPolicy, decide};
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::{BackupSpec, CLOCK_SLACK, Catalogue};
use vbk_repo::name::{BackupTime, GuestName};
use vbk_repo::repository::Change;
use vbk_repo::state::{States, note_of};
use vbk_repo::store::PruneOptions;

use self::held::Held;
use self::verdict::{Action, Said, Verdict, Why};
use crate::args::{ForgetArgs, ProtectArgs};
use crate::config::Keep;
use crate::context::{Context, PROTECT};
use crate::exit::{Error, Outcome, Result};
use crate::gone;
use crate::jumps::{Jump, Jumps};
use crate::pruning::{self, Task, prune, would_prune_without};
use crate::signals;
use crate::warnings::warn_of_clock;
use crate::zone;

/// JSON of the command.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    backups: &'a [Verdict],
    forgotten_total: usize,
    kept_total: usize,
    /// Result of `--prune`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<pruning::Report>,
}

/// Forgets backups: those that are named, or those that a policy does not keep.
pub fn run(context: &Context<'_>, args: &ForgetArgs) -> Result<Outcome> {
    let zone = zone::named_or_local(args.time_zone.as_deref())?;
    let policies = Policies {
        given: args.keep.policy(),
        context,
    };
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let task = Task {
        options: PruneOptions {
            max_unused: PruneOptions::MAX_UNUSED,
            dry_run: args.dry_run,
            empty_bin: false,
        },
        no_wait: args.no_wait,
        cancel: &cancel,
        metrics: args.metrics.as_deref(),
    };
    if args.dry_run {
        let repository = context.repository()?;
        let view = context.view_of(&repository)?;
        let store = view.store();
        let jumps = Jumps::of(&*store, args);
        let judged = judge(&view.catalogue()?, &view.states()?, args, &policies, &zone, &jumps)?;
        printed::print(context, args, &judged);
        let forgotten: HashSet<_> = judged.forgotten().into_iter().collect();
        let prune = || would_prune_without(context, (&repository, &view), &forgotten, &task);
        let prune = args.prune.then(prune).transpose()?;
        if args.prune && repository.local_path().is_err() && !forgotten.is_empty() {
            context.say(
                "the server keeps what its clients forget for the time that `vbk policy` says there, and its prune removes it \
                 after that",
            );
        }
        context.json_result(&judged.report(true, prune))?;
        return Ok(judged.outcome());
    }
    let writer = context.manager(&command(args), args.no_wait, &cancel)?;
    // Another host may protect a backup meanwhile, and then all is judged again.
    let judged = writer.change(|catalogue, states| {
        let jumps = Jumps::of(writer.store(), args);
        let judged = judge(catalogue, states, args, &policies, &zone, &jumps)?;
        let change = Change {
            forget: judged.forgotten(),
            ..Change::default()
        };
        Ok::<_, Error>((change, judged))
    })?;
    printed::print(context, args, &judged);
    if !args.guest.is_empty() {
        let bare: Vec<_> = judged.bare.iter().map(|(guest, _)| guest).collect();
        gone::leave(context, args.metrics.as_deref(), &bare);
    }
    if !args.prune {
        if !judged.forgotten().is_empty() {
            context.say("`vbk prune` gives back the space that nothing else needs; until then `vbk unforget` brings back what was forgotten");
        }
        context.json_result(&judged.report(false, None))?;
        return Ok(judged.outcome());
    }
    let (report, outcome) = prune(context, writer, &task)?;
    context.json_result(&judged.report(false, Some(report)))?;
    match outcome {
        Outcome::Done => Ok(judged.outcome()),
        outcome => Ok(outcome),
    }
}

/// The command in the list of the runs and in the writer's lock.
fn command(args: &ForgetArgs) -> String {
    let guests = args.guest.iter().map(ToString::to_string);
    let words: Vec<_> = args.what.iter().cloned().chain(guests).collect();
    match args.all && words.is_empty() {
        true => "forget --all".to_owned(),
        false => format!("forget {}", words.join(" ")),
    }
}

/// Decisions about the backups that a command concerns.
#[derive(Default)]
struct Judged {
    verdicts: Vec<Verdict>,
    /// Guests for which `keep` is not set.
    left_out: Vec<GuestName>,
    /// Backups whose times clients made up, it seems, and the times that count.
    doubted: Vec<(String, BackupTime)>,
    /// Guests of which no backup is forgotten, because little is left of what they had.
    jumped: Vec<Jump>,
    /// Backups that no rule keeps, and that have the last data of a disk.
    held: Vec<Held>,
    /// Guests that lose their last good backup, with the rest of the sentence about them.
    bare: Vec<(GuestName, &'static str)>,
    /// Protected backups of guests of which all are to be forgotten.
    protected: Vec<String>,
    /// Zone in which days begin, if rules were applied.
    zone: Option<String>,
}

impl Judged {
    fn forgotten(&self) -> Vec<String> {
        let forgotten = self.verdicts.iter().filter(|verdict| verdict.action == Action::Forget);
        forgotten.map(|verdict| verdict.backup.clone()).collect()
    }

    fn count(&self, action: Action) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.action == action).count()
    }

    fn report(&self, dry_run: bool, prune: Option<pruning::Report>) -> Report<'_> {
        Report {
            dry_run,
            backups: &self.verdicts,
            forgotten_total: self.count(Action::Forget),
            kept_total: self.count(Action::Keep),
            prune,
        }
    }

    fn outcome(&self) -> Outcome {
        let is_plain = self.left_out.is_empty() && self.jumped.is_empty();
        match is_plain && self.doubted.is_empty() && self.protected.is_empty() {
            true => Outcome::Done,
            false => Outcome::Warnings,
        }
    }
}

/// Policy of each guest: the options apply to all guests and override the configuration.
struct Policies<'a> {
    given: KeepPolicy,
    context: &'a Context<'a>,
}

impl Policies<'_> {
    /// Returns the policy of a guest; `None` if none is set.
    fn of(&self, guest: &GuestName) -> Result<Option<Keep>> {
        match self.given.is_empty() {
            true => Ok(self.context.config()?.guest(guest).keep),
            false => Ok(Some(Keep::Rules(self.given))),
        }
    }
}

fn no_policy(guest: &GuestName) -> Error {
    Error::Usage(format!(
        "choose which backups of {guest} to keep, e.g. --keep-daily 7 --keep-weekly 4 or `keep` in the configuration, or \
         name those to forget, e.g. {guest}@2026-10-01T02-00-00Z"
    ))
}

fn judge(
    catalogue: &Catalogue,
    states: &States,
    args: &ForgetArgs,
    policies: &Policies<'_>,
    zone: &TimeZone,
    jumps: &Jumps<'_>,
) -> Result<Judged> {
    if !args.guest.is_empty() {
        return match policies.given.is_empty() {
            true => whole::judge(catalogue, states, &args.guest),
            false => Err(Error::Usage(
                "--guest GUEST --all forgets all backups of the guest; leave --keep-... out, or write `vbk forget GUEST \
                 --keep-...` to apply rules"
                    .into(),
            )),
        };
    }
    let mut judged = Judged::default();
    let mut guests = Vec::new();
    let mut named = Vec::new();
    for what in &args.what {
        match what.parse::<GuestName>() {
            Ok(guest) if !what.contains('@') && catalogue.latest(&guest).is_some() => guests.push(guest),
            Ok(guest) if !what.contains('@') && what.parse::<BackupSpec>().is_err() => {
                catalogue.check_guest(&guest)?;
            }
            _ => named.push(what.as_str()),
        }
    }
    if args.all {
        guests = catalogue.guests().into_iter().cloned().collect();
    }
    // All policies first: nothing is forgotten of one guest if another named guest has none.
    let mut kept = Vec::new();
    for guest in &guests {
        match policies.of(guest)? {
            Some(keep) => kept.push((guest.clone(), keep)),
            None if args.all => judged.left_out.push(guest.clone()),
            // The match below reports the greater mistake.
            None if !named.is_empty() => {}
            None => return Err(no_policy(guest)),
        }
    }
    if named.is_empty() {
        let guests: Vec<_> = kept.iter().map(|(guest, _)| guest.clone()).collect();
        check_notes(states, &guests)?;
    }
    match (guests.as_slice(), named.as_slice()) {
        (_, [_, ..]) if !policies.given.is_empty() => Err(Error::Usage(
            "--keep-... applies to a guest; a named backup is forgotten whatever the rules say".into(),
        )),
        ([guest, ..], [backup, ..]) => Err(Error::Usage(format!(
            "{guest} is a guest and {backup} is a backup; name either guests, to apply a policy, or the backups to forget"
        ))),
        ([], [_, ..]) => {
            let verdicts = named.iter().map(|what| judge_named(catalogue, states, what));
            judged.verdicts = verdicts.collect::<Result<_>>()?;
            // One backup may have been named twice, also in two ways.
            let mut seen = HashSet::new();
            judged.verdicts.retain(|verdict| seen.insert(verdict.backup.clone()));
            check_last(catalogue, states, &mut judged, args.last_too)?;
            Ok(judged)
        }
        (_, []) => {
            judged.zone = Some(zone::name(zone, jiff::Timestamp::now()));
            for (guest, keep) in &kept {
                let doubted = catalogue.of(guest).filter_map(|entry| {
                    let counted = catalogue.counted_time(&entry.backup);
                    (counted != entry.backup.time).then(|| (entry.backup.spec(), counted))
                });
                judged.doubted.extend(doubted);
                let mut verdicts = judge_guest(catalogue, states, guest, keep, zone);
                let forgets = verdicts.iter().any(|verdict| verdict.action == Action::Forget);
                if let Some(jump) = forgets.then(|| jumps.find(catalogue, guest)).transpose()?.flatten() {
                    for verdict in &mut verdicts {
                        let guest = guest.to_string();
                        verdict.action = Action::Keep;
                        verdict.reasons = vec![Why::Said(Said::ChangedTooMuch { guest })];
                    }
                    judged.jumped.push(jump);
                } else if !jumps.are_meant() {
                    judged.held.extend(held::hold(catalogue, states, guest, &mut verdicts));
                }
                judged.verdicts.extend(verdicts);
            }
            Ok(judged)
        }
    }
}

/// Fails if a guest would be left without a good backup and --last-too is not given. Notes such guests in `judged`.
fn check_last(catalogue: &Catalogue, states: &States, judged: &mut Judged, is_meant: bool) -> Result<()> {
    let goes: HashSet<String> = judged.verdicts.iter().map(|verdict| verdict.backup.clone()).collect();
    let mut guests = BTreeMap::<&GuestName, Vec<&Verdict>>::new();
    for verdict in &judged.verdicts {
        let entry = catalogue
            .entries()
            .iter()
            .find(|entry| entry.backup.spec() == verdict.backup);
        // An unreadable record is not in the list, and was useless anyway.
        if let Some(entry) = entry {
            guests.entry(&entry.backup.guest).or_default().push(verdict);
        }
    }
    for guest in guests.into_keys() {
        let good = |entry: &&Entry| states.of(&entry.backup).damaged.is_none();
        let stays = |entry: &&Entry| !goes.contains(&entry.backup.spec());
        let was_good = catalogue.of(guest).rfind(good);
        if catalogue.of(guest).filter(stays).any(|entry| good(&entry)) {
            continue;
        }
        let left = match catalogue.of(guest).any(|entry| stays(&entry)) {
            true => "no good backup",
            false => "no backup",
        };
        match was_good {
            Some(last) if !is_meant => {
                return Err(Error::Usage(format!(
                    "{} is the last good backup of {guest}, which would be left with {left}; --last-too forgets it anyway. \
                     Nothing was forgotten",
                    last.backup.spec()
                )));
            }
            _ => judged.bare.push((guest.clone(), left)),
        }
    }
    Ok(())
}

/// Fails if a note of these guests can't be read: the policy could forget a protected backup.
fn check_notes(states: &States, guests: &[GuestName]) -> Result<()> {
    let is_of_theirs = |backup: &&str| {
        let guest = backup.split_once('@').map_or(*backup, |(guest, _)| guest);
        guests.iter().any(|one| one.as_str() == guest)
    };
    let name = match (states.unread().find(is_of_theirs), states.strays()) {
        (Some(backup), _) => backup,
        (None, [stray, ..]) => stray,
        (None, []) => return Ok(()),
    };
    Err(vbk_repo::Error::NoteDamaged { name: name.to_owned() }.into())
}

fn judge_guest(
    catalogue: &Catalogue,
    states: &States,
    guest: &GuestName,
    keep: &Keep,
    zone: &TimeZone,
) -> Vec<Verdict> {
    let Keep::Rules(policy) = keep else {
        let verdict = |entry: &Entry| Verdict {
            backup: entry.backup.spec(),
            action: Action::Keep,
            reasons: vec![Why::Said(Said::KeepAll)],
        };
        return catalogue.of(guest).map(verdict).collect();
    };
    let mut times = BTreeSet::new();
    let candidates: Vec<_> = catalogue
        .of(guest)
        .map(|entry| {
            let state = states.of(&entry.backup);
            let mut time = catalogue.counted_time(&entry.backup);
            while !times.insert(time) {
                time = time.next();
            }
            Candidate {
                time,
                sequence: entry.backup.sequence,
                protected: state.protected,
                good: state.damaged.is_none(),
            }
        })
        .collect();
    let verdict = |spec: String, decision: Decision| Verdict {
        backup: spec,
        action: match decision.keep {
            true => Action::Keep,
            false => Action::Forget,
        },
        reasons: decision.reasons.into_iter().map(Why::Rule).collect(),
    };
    // Several backups made in one second get the next seconds as their times; they are not from the future.
    let now = jiff::Timestamp::now();
    let newest = candidates.last().map(|candidate| candidate.time.timestamp());
    let now = newest
        .filter(|newest| newest.duration_since(now) < CLOCK_SLACK)
        .map_or(now, |newest| newest.max(now));
    let decisions = decide(&candidates, policy, now, zone);
    let of = catalogue.of(guest).map(|entry| entry.backup.spec());
    of.zip(decisions)
        .map(|(spec, decision)| verdict(spec, decision))
        .collect()
}

fn judge_named(catalogue: &Catalogue, states: &States, what: &str) -> Result<Verdict> {
    // An unreadable record is not in the list; its whole name removes it from the repository.
    let damaged = catalogue.damaged().iter().any(|error| match error {
        vbk_repo::Error::RecordDamaged { backup, .. } => backup == what,
        _ => false,
    });
    let backup = match damaged {
        true => what.to_owned(),
        false => {
            let spec: BackupSpec = what.parse()?;
            if spec.disk.is_some() {
                return Err(Error::Usage(format!(
                    "{what}: a backup is forgotten with all its disks; name it without /DISK"
                )));
            }
            let entry = catalogue.find(&spec)?;
            warn_of_clock(catalogue, &spec, entry);
            check_whole(&spec, entry)?;
            entry.backup.spec()
        }
    };
    if states.is_unread(&backup) {
        return Err(vbk_repo::Error::NoteDamaged { name: backup }.into());
    }
    if states.noted(&backup).protected {
        return Err(Error::Usage(format!(
            "{backup} is protected; run `vbk unprotect {backup}` first. Nothing was forgotten"
        )));
    }
    Ok(Verdict {
        backup,
        action: Action::Forget,
        reasons: vec![Why::Said(Said::Named)],
    })
}

/// Fails if a backup is named by a part of its name. The same part may soon match a newer backup, and forgetting can't be
/// undone.
fn check_whole(spec: &BackupSpec, entry: &Entry) -> Result<()> {
    let (text, name) = (spec.to_string(), entry.backup.spec());
    match text == name || text == entry.id.to_string() || text.ends_with("@latest") {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{text} is only a part of a backup's name; `vbk forget` needs the whole name: {name}. Nothing was forgotten"
        ))),
    }
}

#[derive(Serialize)]
struct ProtectReport {
    backups: Vec<Protected>,
}

#[derive(Serialize)]
struct Protected {
    backup: String,
    protected: bool,
}

/// Protects backups from every policy, or removes the protection.
pub fn protect(context: &Context<'_>, args: &ProtectArgs, protect: bool) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let word = if protect { PROTECT } else { "unprotect" };
    let writer = context.manager(word, args.no_wait, &cancel)?;
    let done = writer.change(|catalogue, states| {
        let (mut change, mut done) = (Change::default(), BTreeSet::new());
        for spec in &args.backups {
            let key = catalogue.find(spec)?.backup.spec();
            let mut state = states.noted(&key);
            state.protected = protect;
            change.notes.push(note_of(&key, state));
            done.insert(key);
        }
        Ok::<_, Error>((change, done))
    })?;
    for key in &done {
        context.say(format_args!("{key} is {word}ed"));
    }
    let report = |backup: String| Protected {
        backup,
        protected: protect,
    };
    context.json_result(&ProtectReport {
        backups: done.into_iter().map(report).collect(),
    })?;
    Ok(Outcome::Done)
}
