//! `vbk forget`, `vbk protect`, `vbk unprotect`

use std::collections::HashSet;

use jiff::tz::TimeZone;
use serde::Serialize;
use vbk::retention::{Candidate, Decision, KeepPolicy, decide};
use vbk_repo::catalogue::{BackupSpec, Catalogue};
use vbk_repo::name::GuestName;
use vbk_repo::state::{States, note_of};

use crate::args::{ForgetArgs, ProtectArgs};
use crate::commands::{prune, warn_of_clock};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::table::{Align, Table};
use crate::{signals, units};

/// What becomes of one backup, and why.
#[derive(Debug, Serialize)]
struct Verdict {
    backup: String,
    action: &'static str,
    reasons: Vec<String>,
}

/// How far ahead of the clock the newest backup may be without being from the future.
const CLOCK_SLACK: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

const KEEP: &str = "keep";
const FORGET: &str = "forget";

/// Forgets backups: those that are named, or those that a policy does not keep.
pub fn run(context: &Context<'_>, args: &ForgetArgs) -> Result<Outcome> {
    let zone = time_zone(args.time_zone.as_deref())?;
    let policies = Policies {
        given: args.keep.policy(),
        context,
    };
    if args.dry_run {
        let view = context.repository()?.view()?;
        let verdicts = judge(&view.catalogue()?, &view.states()?, args, &policies, &zone)?;
        print(context, &verdicts, true);
        context.json_result(&verdicts)?;
        return Ok(Outcome::Done);
    }
    let cancel = signals::cancel_flag().map_err(|error| Error::Other(error.to_string()))?;
    let writer = context.writer_that_removes(&format!("forget {}", args.what.join(" ")), args.no_wait, &cancel)?;
    let verdicts = judge(&writer.catalogue()?, &writer.states()?, args, &policies, &zone)?;
    let forgotten: Vec<String> = verdicts
        .iter()
        .filter(|verdict| verdict.action == FORGET)
        .map(|verdict| verdict.backup.clone())
        .collect();
    if !forgotten.is_empty() {
        writer.amend(&forgotten, &[])?;
    }
    print(context, &verdicts, false);
    if !args.prune {
        if !forgotten.is_empty() {
            context.say("`vbk prune` gives back the space that nothing else needs");
        }
        context.json_result(&verdicts)?;
        return Ok(Outcome::Done);
    }
    prune::with(
        context,
        &writer,
        prune::thrift(prune::MAX_UNUSED, false),
        &cancel,
        Some(&verdicts),
    )
}

/// What is kept of each guest: what options say of all, or else what the configuration says of it.
struct Policies<'a> {
    given: KeepPolicy,
    context: &'a Context<'a>,
}

impl Policies<'_> {
    fn of(&self, guest: &GuestName) -> Result<KeepPolicy> {
        if !self.given.is_empty() {
            return Ok(self.given);
        }
        let configured = self.context.config()?.guest(guest).keep;
        configured.filter(|policy| !policy.is_empty()).ok_or_else(|| {
            Error::Usage(format!(
                "say which backups of {guest} to keep, as in --keep-daily 7 --keep-weekly 4 or by `keep` in the \
                 configuration, or name the ones to forget, as in {guest}@2026-10-01"
            ))
        })
    }
}

fn time_zone(name: Option<&str>) -> Result<TimeZone> {
    match name {
        None => Ok(TimeZone::system()),
        Some(name) => TimeZone::get(name).map_err(|error| {
            Error::Usage(format!(
                "no time zone {name:?}: write one as Europe/Vienna or UTC ({error})"
            ))
        }),
    }
}

fn judge(
    catalogue: &Catalogue,
    states: &States,
    args: &ForgetArgs,
    policies: &Policies<'_>,
    zone: &TimeZone,
) -> Result<Vec<Verdict>> {
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
    if named.is_empty() {
        check_notes(states, &guests)?;
    }
    match (guests.as_slice(), named.as_slice()) {
        (_, [_, ..]) if !policies.given.is_empty() => Err(Error::Usage(
            "--keep-... goes with the name of a guest; a backup that is named is forgotten whatever it says".into(),
        )),
        ([guest, ..], [backup, ..]) => Err(Error::Usage(format!(
            "{guest} is a guest and {backup} a backup; name either guests, of which a policy keeps some, or the backups to \
             forget"
        ))),
        ([], [_, ..]) => named.iter().map(|what| judge_named(catalogue, states, what)).collect(),
        (_, []) => {
            // All of them first: nothing is forgotten of one if it can't be said for another.
            let policies = guests
                .iter()
                .map(|guest| policies.of(guest))
                .collect::<Result<Vec<_>>>()?;
            let guests = guests.iter().zip(&policies);
            Ok(guests
                .flat_map(|(guest, policy)| judge_guest(catalogue, states, guest, policy, zone))
                .collect())
        }
    }
}

/// An error if a note of these guests can't be read: a policy would forget what somebody protected.
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
    policy: &KeepPolicy,
    zone: &TimeZone,
) -> Vec<Verdict> {
    let candidates: Vec<_> = catalogue
        .of(guest)
        .map(|entry| {
            let state = states.of(&entry.backup);
            Candidate {
                time: entry.backup.time,
                sequence: entry.backup.sequence,
                protected: state.protected,
                good: state.damaged.is_none(),
            }
        })
        .collect();
    let verdict = |spec: String, decision: Decision| Verdict {
        backup: spec,
        action: if decision.keep { KEEP } else { FORGET },
        reasons: decision.reasons.iter().map(ToString::to_string).collect(),
    };
    // Several backups made in one second have the next ones as their times; they are not from the future.
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
    // A record that can't be read is in no list; its whole name takes it out of the repository.
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
            entry.backup.spec()
        }
    };
    if states.is_unread(&backup) {
        return Err(vbk_repo::Error::NoteDamaged { name: backup }.into());
    }
    if states.noted(&backup).protected {
        return Err(Error::Usage(format!(
            "{backup} is protected; `vbk unprotect {backup}` takes that away. Nothing was forgotten"
        )));
    }
    Ok(Verdict {
        backup,
        action: FORGET,
        reasons: vec!["named".into()],
    })
}

fn print(context: &Context<'_>, verdicts: &[Verdict], dry_run: bool) {
    let shown = |verdict: &&Verdict| dry_run || context.verbose() || verdict.action == FORGET;
    let mut table = Table::new(&[
        ("ACTION", Align::Left),
        ("BACKUP", Align::Left),
        ("BECAUSE", Align::Left),
    ]);
    for verdict in verdicts.iter().filter(shown) {
        table.row(vec![
            verdict.action.to_owned(),
            verdict.backup.clone(),
            verdict.reasons.join(", "),
        ]);
    }
    let count = |action| verdicts.iter().filter(|verdict| verdict.action == action).count() as u64;
    let (forget, keep) = (count(FORGET), count(KEEP));
    if (dry_run || forget > 0) && !context.quiet() {
        context.print(table);
    }
    let would = if dry_run { "would be forgotten" } else { "forgotten" };
    context.say(format_args!("{} {would}, {keep} kept", units::count(forget, "backup")));
}

#[derive(Serialize)]
struct Protected {
    backup: String,
    protected: bool,
}

/// Protects backups from every policy, or takes that away.
pub fn protect(context: &Context<'_>, args: &ProtectArgs, protect: bool) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(|error| Error::Other(error.to_string()))?;
    let word = if protect { "protect" } else { "unprotect" };
    let writer = context.writer(word, args.no_wait, &cancel)?;
    let (catalogue, states) = (writer.catalogue()?, writer.states()?);
    let mut notes = Vec::new();
    let mut done = HashSet::new();
    for spec in &args.backups {
        let key = catalogue.find(spec)?.backup.spec();
        let mut state = states.noted(&key);
        state.protected = protect;
        notes.push(note_of(&key, state));
        done.insert(key);
    }
    writer.amend(&[], &notes)?;
    let mut done: Vec<_> = done.into_iter().collect();
    done.sort();
    for key in &done {
        context.say(format_args!("{key} is {word}ed"));
    }
    let report = |backup: String| Protected {
        backup,
        protected: protect,
    };
    context.json_result(&done.into_iter().map(report).collect::<Vec<_>>())?;
    Ok(Outcome::Done)
}
