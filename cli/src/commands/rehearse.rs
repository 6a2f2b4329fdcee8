//! `vbk rehearse`

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use vbk::boot::BootError;
use vbk::boot::console::{ConsoleLog, Watch};
use vbk::boot::machine::Accelerator;
use vbk::boot::rehearsal::{Verdict, Wanted, watch};
use vbk_repo::ErrorKind;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::state::{Attempt, BootProof, Rehearsed, States};

use crate::args::RehearseArgs;
use crate::booting::{BootOptions, accelerator, check_whole, start};
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine::rehearsals_dir;
use crate::metrics::{Metrics, RehearsalRun};
use crate::signals;
use crate::terminal::{printable, units};
use crate::warnings::{warn_of_clock, warn_of_guess};

/// Time limits of a boot.
const LIMIT_WITH_KVM: Duration = Duration::from_secs(10 * 60);
const LIMIT_WITHOUT_KVM: Duration = Duration::from_secs(30 * 60);
/// Memory of a guest whose description asks for more: it may be hostile, and the host has other work.
const MEMORY_BYTES: u64 = 4 << 30;
/// Lines of the console that a failure shows.
const SHOWN_LINES: usize = 8;
/// Formats of screenshots.
const SCREENS: [&str; 2] = ["png", "ppm"];

#[derive(Serialize)]
struct Report<'a> {
    backup: Option<&'a str>,
    rehearsed: Option<Rehearsed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    screen: Option<PathBuf>,
}

/// Result of a boot, and what is kept of it.
struct Rehearsal {
    verdict: Verdict,
    rehearsed: Rehearsed,
    log: ConsoleLog,
    screen: Option<(Vec<u8>, &'static str)>,
}

/// Boots a backup, and notes if it came up.
pub fn run(context: &Context<'_>, args: &RehearseArgs) -> Result<Outcome> {
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    if let Some(pattern) = &args.expect {
        Watch::for_pattern(pattern).map_err(|error| Error::Usage(format!("--expect: {error}")))?;
    }
    let repository = context.repository()?;
    let view = context.view_to_read_of(&repository)?;
    let (catalogue, states) = (view.catalogue()?, view.states()?);
    let entry = match (&args.backup, args.rotate) {
        (Some(spec), _) => {
            check_whole(spec)?;
            let entry = catalogue.find(spec)?;
            warn_of_clock(&catalogue, spec, entry);
            Some(entry)
        }
        (None, Some(age)) => {
            let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
            due(&catalogue, &states, age.before(&now))
        }
        (None, None) => return Err(Error::Usage("name a backup, or give --rotate AGE".into())),
    };
    let Some(entry) = entry else {
        context.say("every guest was proven bootable within this time");
        context.json_result(&Report {
            backup: None,
            rehearsed: None,
            failure: None,
            console: None,
            screen: None,
        })?;
        return Ok(Outcome::Done);
    };
    let spec = entry.backup.spec();
    context.say(format_args!("booting {spec}"));
    let options = BootOptions {
        machine: &args.machine,
        save: None,
        vnc: None,
        is_kept_after_end: true,
        limit_bytes: Some(MEMORY_BYTES),
        scratch_bytes: args.machine.scratch_size,
        way: context.way_options(),
    };
    let cancelled = &mut || cancel.load(Ordering::SeqCst);
    let booted = match start(&repository, &view, entry, &options, cancelled) {
        Ok(booted) => booted,
        Err(error) => {
            let is_of_guest = !matches!(error, Error::Usage(_) | Error::Boot(BootError::NoQemu));
            if is_of_guest && error.kind() != ErrorKind::Interrupted {
                unstarted(context, args, entry, &cancel);
            }
            return Err(error);
        }
    };
    let rehearsal = rehearse(booted, args, &cancel)?;
    let failure = match &rehearsal.verdict {
        Verdict::Cancelled => return Err(vbk_repo::Error::Interrupted.into()),
        Verdict::Failed(why) => Some(why.as_str()),
        Verdict::Proven(_) => None,
    };
    let kept = keep(entry.backup.guest.as_str(), &rehearsal);
    let (console, screen) = kept.unwrap_or_else(|error| {
        tracing::warn!("the console was not kept: {}", error.text());
        (None, None)
    });
    let took = units::duration(Duration::from_millis(rehearsal.rehearsed.duration_ms));
    let with = match rehearsal.rehearsed.accelerator {
        vbk_repo::state::BootAccelerator::Kvm => "KVM",
        vbk_repo::state::BootAccelerator::Tcg | vbk_repo::state::BootAccelerator::Other => "TCG",
    };
    match (failure, rehearsal.rehearsed.proof) {
        (None, Some(proof)) => {
            let proof = match proof {
                BootProof::Login => "its console shows a login prompt",
                BootProof::Pattern => "its console shows the pattern",
                BootProof::Agent => "its guest agent answers",
                BootProof::Other => "it is up",
            };
            context.say(format_args!("{spec} is proven bootable: {proof} after {took} ({with})"));
        }
        (why, _) => {
            context.print(format_args!(
                "{spec} did not boot: {} after {took} ({with}). Its console ended with:\n",
                why.unwrap_or_default()
            ));
            for line in rehearsal.log.last_lines(SHOWN_LINES) {
                context.print(format_args!("  {}\n", printable::line(&line)));
            }
        }
    }
    if let Some(console) = &console {
        let screen = screen.as_ref().map(|path| format!(", screen {}", path.display()));
        context.say(format_args!(
            "console {}{}",
            console.display(),
            screen.unwrap_or_default()
        ));
    }
    context.json_result(&Report {
        backup: Some(&spec),
        rehearsed: Some(rehearsal.rehearsed),
        failure,
        console,
        screen,
    })?;
    let recorded = record(context, &spec, Attempt::Ended(rehearsal.rehearsed), &cancel);
    if recorded && states.is_unread(&spec) {
        warn_of_guess(&spec);
    }
    let rehearsed = rehearsal.rehearsed;
    let run = RehearsalRun {
        at: rehearsed.at,
        is_proven: rehearsed.proof.is_some(),
        duration_ms: rehearsed.duration_ms,
    };
    let counted = count(context, args, entry, run);
    Ok(match (failure, recorded && counted) {
        (Some(_), _) => Outcome::Damage,
        (None, true) => Outcome::Done,
        (None, false) => Outcome::Warnings,
    })
}

/// Notes that a guest could not be started, so that the other guests get their turn.
fn unstarted(context: &Context<'_>, args: &RehearseArgs, entry: &Entry, cancel: &AtomicBool) {
    let at = Timestamp::now();
    record(context, &entry.backup.spec(), Attempt::Unstarted(at), cancel);
    let run = RehearsalRun {
        at,
        is_proven: false,
        duration_ms: 0,
    };
    count(context, args, entry, run);
}

fn rehearse(mut booted: crate::booting::Booted, args: &RehearseArgs, cancel: &AtomicBool) -> Result<Rehearsal> {
    let guest = &mut booted.guest;
    let limit = match (args.timeout, guest.accelerator) {
        (Some(limit), _) => limit,
        (None, Accelerator::Kvm) => LIMIT_WITH_KVM,
        (None, Accelerator::Tcg) => LIMIT_WITHOUT_KVM,
    };
    let wanted = match &args.expect {
        Some(pattern) => Wanted::Pattern(pattern.clone()),
        None => Wanted::Any,
    };
    let (at, clock) = (Timestamp::now(), Instant::now());
    let mut log = ConsoleLog::default();
    let verdict = watch(guest, &wanted, limit, cancel, &mut log, &mut |_| {})?;
    let duration_ms = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
    // A QEMU that has ended has no screen.
    let screen = guest
        .screen()
        .inspect_err(|error| tracing::debug!("no screenshot: {error}"))
        .ok();
    let proof = match verdict {
        Verdict::Proven(proof) => Some(proof),
        Verdict::Failed(_) | Verdict::Cancelled => None,
    };
    Ok(Rehearsal {
        rehearsed: Rehearsed {
            at,
            proof,
            duration_ms,
            accelerator: accelerator(guest.accelerator),
        },
        verdict,
        log,
        screen,
    })
}

/// Returns the backup to rehearse: the newest one of the guest whose last rehearsal is the longest ago, of the guests without
/// a proof since `since`. By the last rehearsal and not the last proof: a guest that does not boot must not keep the others
/// from their turn.
fn due<'a>(catalogue: &'a Catalogue, states: &States, since: Timestamp) -> Option<&'a Entry> {
    let mut guests: HashMap<&str, (&Entry, Option<Timestamp>, Option<Timestamp>)> = HashMap::new();
    for entry in catalogue
        .entries()
        .iter()
        .filter(|entry| !entry.backup.images.is_empty())
    {
        let state = states.of(&entry.backup);
        let rehearsed = state.rehearsed;
        let tried = rehearsed.map(|rehearsed| rehearsed.at).max(state.unstarted);
        let proven = rehearsed.and_then(|rehearsed| rehearsed.proof.map(|_| rehearsed.at));
        let guest = entry.backup.guest.as_str();
        let (newest, last_tried, last_proven) = guests.entry(guest).or_insert((entry, None, None));
        if entry.backup.sequence >= newest.backup.sequence {
            *newest = entry;
        }
        *last_tried = (*last_tried).max(tried);
        *last_proven = (*last_proven).max(proven);
    }
    let due = guests
        .into_values()
        .filter(|(_, _, proven)| proven.is_none_or(|at| at < since));
    let first = due.min_by_key(|(entry, tried, _)| (*tried, entry.backup.guest.as_str()));
    first.map(|(entry, _, _)| entry)
}

/// Keeps the console and the screen in place of those of the guest's last rehearsal.
fn keep(guest: &str, rehearsal: &Rehearsal) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let Some(directory) = rehearsals_dir() else {
        return Ok((None, None));
    };
    let failed = |path: &Path| Error::io(format!("write {}", path.display()));
    let made = DirBuilder::new().mode(0o700).recursive(true).create(&directory);
    made.map_err(failed(&directory))?;
    let write = |path: &Path, bytes: &[u8]| {
        let draft = directory.join(format!(".{guest}.tmp"));
        files::write_by_draft(path, &draft, bytes, Mode::Private, Synced::Nothing).map_err(failed(path))
    };
    let console = directory.join(format!("{guest}.log"));
    write(&console, &rehearsal.log.bytes())?;
    for format in SCREENS {
        // Usually there is none.
        let _ = std::fs::remove_file(directory.join(format!("{guest}.{format}")));
    }
    let Some((bytes, format)) = &rehearsal.screen else {
        return Ok((Some(console), None));
    };
    let screen = directory.join(format!("{guest}.{format}"));
    write(&screen, bytes)?;
    Ok((Some(console), Some(screen)))
}

/// Adds the result to the metrics, if there is a file for them. Returns false if that was not possible; a warning says why.
fn count(context: &Context<'_>, args: &RehearseArgs, entry: &Entry, run: RehearsalRun) -> bool {
    let write = || {
        let path = match &args.metrics {
            Some(path) => Some(path.as_path()),
            None => context.config()?.metrics.as_deref(),
        };
        let Some(path) = path else {
            return Ok(());
        };
        let mut metrics = Metrics::at(path, context.repository_path()?)?;
        metrics.record_rehearsal(entry.backup.guest.as_str(), run);
        metrics.finish(|_| true)
    };
    let written: Result<()> = write();
    if let Err(error) = &written {
        tracing::warn!("the metrics were not written: {}", error.text());
    }
    written.is_ok()
}

/// Notes the result in the repository. Returns false if that was not possible; a warning says why.
fn record(context: &Context<'_>, spec: &str, attempt: Attempt, cancel: &AtomicBool) -> bool {
    if context.is_doubted() {
        return true;
    }
    let manager = context.manager("rehearse", false, cancel);
    let recorded = manager.and_then(|manager| Ok(manager.record_rehearsal(spec, attempt)?));
    match recorded {
        Ok(true) => true,
        Ok(false) => {
            tracing::warn!("the result was not noted: {spec} was forgotten meanwhile");
            false
        }
        Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => {
            tracing::warn!("the result was not noted, because this user can't write to the repository");
            false
        }
        Err(error) => {
            tracing::warn!("the result was not noted: {}", error.text());
            false
        }
    }
}
