//! `vbk backup`

mod attached;
mod dry;
mod monitoring;
mod nightly;
mod notices;
mod plan;
mod queue;
mod reload;
mod report;

mod workers;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use vbk::backup::BackupSummary;
use vbk::backup::guest::Host;
use vbk::host::program::Programs;
use vbk::host::run::Run;
use vbk::limit::{LimitOptions, requests};
use vbk_repo::ErrorKind;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::name::{BackupTime, GuestName};
use vbk_repo::repository::{Repository, Reserve, Unfinished};

use self::monitoring::Monitoring;
use self::plan::{Common, Job, Planned};
use self::queue::Queue;
use self::workers::{Results, Workers};
use crate::args::BackupArgs;
use crate::commands::backup::nightly::{Deadline, NightlyLock};
use crate::config::Config;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::notify::Notifier;
use crate::place;
use crate::signals;
use crate::terminal::{log, units};
use crate::warnings::warn_of_foreign_changes;

/// Result for one guest.
pub struct Done {
    /// The guest.
    pub guest: GuestName,
    /// Its backup, or why there is none.
    pub result: Result<BackupSummary>,
    /// The backup was begun before the run ended.
    pub is_begun: bool,
    /// Duration of the attempt.
    pub took: Duration,
    /// Number of warnings.
    pub warnings: u64,
}

/// Result of a run.
struct Ended {
    done: Vec<Done>,
    /// Warnings that concern no single guest.
    warnings: u64,
    /// All guests that this host knows. `None` if they could not all be listed.
    known: Option<Vec<GuestName>>,
    /// Blocks that guests which were not backed up left for the next run; `None` if that is not known.
    kept: Option<Unfinished>,
    /// Held until every report is written.
    _lock: Option<NightlyLock>,
}

/// Backs up one guest or all.
pub fn run(context: &Context<'_>, args: &BackupArgs) -> Result<Outcome> {
    let (clock, started) = (Instant::now(), Timestamp::now());
    let programs = machine::programs();
    if args.dry_run {
        return dry::run(context, args, &programs);
    }
    let config = context.config();
    let known = config.as_ref().ok();
    let metrics = args
        .metrics
        .as_deref()
        .or(known.and_then(|config| config.metrics.as_deref()));
    // Without a repository the run fails, and has no figures.
    let metrics = metrics.zip(context.repository_path().ok());
    let notices = known.map(|config| &config.notices);
    let mut monitoring = Monitoring::new(&programs, metrics, notices, started);
    let ended = config.and_then(|config| back_up(context, config, args, &programs, started, &mut monitoring));
    let Ended {
        mut done,
        mut warnings,
        known,
        kept,
        _lock,
    } = match ended {
        Ok(ended) => ended,
        Err(error) => {
            let repository = repository_after(context, &error);
            monitoring.nothing_was_done(args.guest.as_ref(), &error, repository.as_ref(), clock.elapsed());
            return Err(error);
        }
    };
    done.sort_by(|one, other| one.guest.cmp(&other.guest));
    if args.all {
        monitoring.not_begun(&done);
        let failed = done.iter().filter(|done| done.result.is_err()).count();
        let warned = warnings + monitoring.warnings > 0 || done.iter().any(|done| done.warnings > 0);
        monitoring.record_whole(failed, failed == 0 && !warned);
    }
    // A guest that could not be found this time still exists, and its alarm waits for the next success.
    let is_known = |name: &str| {
        let known = known.as_ref().filter(|_| args.all);
        known.is_none_or(|known| known.iter().any(|guest| guest.as_str() == name))
    };
    monitoring.note(context.opened_already());
    if args.all {
        monitoring.tell(&done, warnings, context.opened_already(), clock.elapsed());
    }
    warnings += monitoring.finish(is_known);
    match args.all {
        true => all_done(context, &done, warnings, kept, clock.elapsed()),
        false => one_done(context, done, warnings, kept),
    }
}

/// Makes the backups. Fails only if none was begun.
fn back_up(
    context: &Context<'_>,
    config: &Config,
    args: &BackupArgs,
    programs: &Programs,
    started: Timestamp,
    monitoring: &mut Monitoring<'_>,
) -> Result<Ended> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let reload = reload::on_hangup(config.path.clone(), !args.disks.is_empty())?;
    let notifier = Notifier::from_environment();
    let lock = match args.all {
        true => Some(NightlyLock::take(&machine::runtime_dir()?, started)?),
        false => None,
    };
    let deadline = Deadline::start(args.time_limit, cancel.clone())?;
    let command = command(args);
    let run = Run::begin(&machine::runtime_dir()?, &machine::host_id(), &command).map_err(vbk::Error::from)?;
    let jobs = args.jobs.or(config.jobs).filter(|_| args.all).unwrap_or(1) as usize;
    let common = Common {
        context,
        args,
        programs,
        limits: LimitOptions {
            cache: Some(machine::cache_dir()),
            requests: Some(run.dir().join(requests::FILE)),
            // An option overrides the configuration, also one that is changed during the run.
            reload: Some(reload).filter(|_| args.politeness.read_limit.is_none()),
            ..LimitOptions::default()
        },
        jobs,
    };
    let Planned {
        jobs: mut planned,
        found,
        notes,
    } = common.all()?;
    for note in &notes {
        tracing::warn!("{note}");
    }
    if planned.is_empty() {
        return Err(no_guests(&notes));
    }
    monitoring.guests = planned.len();
    run.note_guests(planned.iter().map(|job| job.guest.to_string()).collect())
        .map_err(vbk::Error::from)?;
    let repository = context.repository_to_write()?;
    repository.check_reserve(args.reserve.unwrap_or(Reserve::Default))?;
    let writer = context.writer(&repository, &command, args.no_wait, &cancel);
    let writer = writer.map_err(|error| {
        deadline.reason_for(
            error,
            "all of it was spent waiting for another process that writes to the repository",
        )
    })?;
    notifier.ready();
    let catalogue = writer.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    if let (Some(guest), Some(time)) = (&args.guest, args.time) {
        check_time(&catalogue, guest, time)?;
    }
    let queue = Queue::at(&machine::cache_dir());
    queue.sort(&mut planned, &catalogue);
    let host = Host::new(programs.clone(), run, &machine::cache_dir());
    let workers = Workers {
        context,
        writer: &writer,
        host: &host,
        monitoring,
        cancel: &cancel,
        deadline: &deadline,
        notifier: &notifier,
        is_all: args.all,
    };
    let Results { mut done, warnings } = workers.run(planned, jobs)?;
    let failed = done.iter().filter(|done| done.result.is_err()).count();
    let guests = units::count(done.len() as u64, "guest");
    notifier.status(&format!("{} of {guests} backed up", done.len() - failed));
    notifier.stopping();
    if args.all {
        queue.remember(&done);
    }
    // What no barrier covered is gone when the store is closed.
    drop(writer);
    let kept = match done.iter().any(|done| done.result.is_err()) {
        true => kept(&repository),
        false => None,
    };
    for done in &mut done {
        note_kept(done, kept);
    }
    Ok(Ended {
        done,
        kept,
        warnings: warnings + notes.len() as u64,
        known: Some(found).filter(|_| notes.is_empty()),
        _lock: lock,
    })
}

/// Returns the repository for the reports of a run that ended before it opened one: unless the repository itself is the reason, or is
/// on another host, for which a run may wait long.
fn repository_after(context: &Context<'_>, error: &Error) -> Option<Repository> {
    if let Some(repository) = context.opened_already() {
        return Some(repository.clone());
    }
    let is_other = matches!(
        error,
        Error::Engine(_) | Error::Usage(_) | Error::NoGuests(_) | Error::Busy(_) | Error::Io { .. }
    );
    let path = context.repository_path().ok()?;
    if !is_other || place::is_address(path) {
        return None;
    }
    context.opened_without_question(&context.locked_repository().ok()?)
}

/// Returns what a run that ended early has left for the next one.
fn kept(repository: &Repository) -> Option<Unfinished> {
    let view = repository.view().ok()?;
    let kept = repository.unfinished(view.number(), &mut |_| ())?;
    Some(kept)
}

/// Adds what is kept for the next run to the error of a full repository.
fn note_kept(done: &mut Done, kept: Option<Unfinished>) {
    if let Err(Error::Engine(vbk::Error::RepositoryFull { kept_bytes, source, .. })) = &mut done.result {
        tracing::info!("{}: {source}", done.guest);
        *kept_bytes = kept.map(|kept| kept.stored_bytes);
    }
}

/// `176 MiB in 176 blocks are kept for the next run, ...`; `None` if there is nothing.
fn describe(kept: Option<Unfinished>) -> Option<String> {
    let kept = kept.filter(|kept| !kept.is_empty())?;
    Some(format!(
        "{} in {} are kept, and are not stored again by the next run; `vbk prune` removes what it does not need",
        units::size(kept.stored_bytes),
        units::count(kept.blocks, "block"),
    ))
}

/// Fails unless a backup with this time is the newest of its guest: it would be `latest`, and be told of as made with a wrong
/// clock.
fn check_time(catalogue: &Catalogue, guest: &GuestName, time: BackupTime) -> Result<()> {
    if time.timestamp() > Timestamp::now() {
        return Err(Error::Usage(format!("--time {time} is in the future")));
    }
    match catalogue.of(guest).map(|entry| entry.backup.time).max() {
        Some(latest) if latest >= time => Err(Error::Usage(format!(
            "--time {time} is not later than {guest}@{latest}: images are imported the oldest first, and before the guest is backed \
             up here. Another name for the guest is free of that"
        ))),
        _ => Ok(()),
    }
}

/// The command in the list of the runs and in the writer's lock.
fn command(args: &BackupArgs) -> String {
    match &args.guest {
        Some(guest) => format!("backup {guest}"),
        None => "backup --all".to_owned(),
    }
}

/// The error of a run that found no guest to back up.
fn no_guests(notes: &[String]) -> Error {
    Error::NoGuests(match notes {
        [] => "this host has no known guests, or all are excluded; `vbk guests --help` explains how guests are found"
            .to_owned(),
        _ => format!("no guest was found; nothing was backed up ({})", notes.join("; ")),
    })
}

fn one_done(context: &Context<'_>, mut done: Vec<Done>, warnings: u64, kept: Option<Unfinished>) -> Result<Outcome> {
    let done = done.pop().expect("one guest was planned");
    let summary = match (done.result, describe(kept)) {
        (Err(error), Some(text)) if error.kind() == ErrorKind::Interrupted => return Err(Error::Interrupted(text)),
        (Err(Error::TimeOver(_)), Some(text)) => {
            return Err(Error::TimeOver(format!("the time limit was reached; {text}")));
        }
        (result, _) => result?,
    };
    context.say(report::last_line(&summary, context.waited()));
    let warnings = done.warnings + warnings;
    context.json_result(&report::Report::new(&summary, warnings))?;
    Ok(match warnings {
        0 => Outcome::Done,
        _ => Outcome::Warnings,
    })
}

fn all_done(
    context: &Context<'_>,
    done: &[Done],
    warnings: u64,
    kept: Option<Unfinished>,
    took: Duration,
) -> Result<Outcome> {
    if let Some(table) = report::table(done, context.quiet(), !log::is_beside_output()) {
        context.print(table);
    }
    context.say(report::totals(done, took));
    let text = describe(kept);
    context.json_result(&report::AllReport::new(done, warnings, kept, took))?;
    let interrupted = |done: &Done| matches!(&done.result, Err(error) if error.kind() == ErrorKind::Interrupted);
    if done.iter().any(interrupted) {
        return Err(match text {
            Some(text) => Error::Interrupted(text),
            None => vbk::Error::Interrupted.into(),
        });
    }
    if let Some(text) = text {
        context.say(text);
    }
    Ok(match done.iter().filter(|done| done.result.is_ok()).count() {
        0 => Outcome::Failed,
        good if good < done.len() || warnings > 0 || done.iter().any(|done| done.warnings > 0) => Outcome::Warnings,
        _ => Outcome::Done,
    })
}
