//! `vbk copy`

mod sealed;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::Zoned;
use parking_lot::Mutex;
use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Backup;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::copy::{self, Copied, CopyError, CopyOptions, Plan, Sent, Step};
use vbk_repo::name::matches;
use vbk_repo::repository::{Repository, Reserve, View};

use crate::args::CopyArgs;
use crate::context::{Context, Other, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    dry_run: bool,
    /// Backups that were copied, or would be.
    copied: Vec<CopiedJson>,
    /// Backups that were there already.
    present: u64,
    failed: Vec<FailedJson>,
    damaged_records: Vec<String>,
    sent_blocks: u64,
    /// Not known without the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
    stored_bytes: u64,
    /// Blocks that were looked for and found there.
    found_blocks: u64,
    duration_ms: u64,
}

#[derive(Serialize)]
struct CopiedJson {
    backup: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_blocks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
}

#[derive(Serialize)]
struct FailedJson {
    backup: String,
    error: String,
}

/// Copies backups from one repository to another.
pub fn run(context: &Context<'_>, args: &CopyArgs) -> Result<Outcome> {
    context.check_no_repo()?;
    if args.without_key {
        return sealed::run(context, args);
    }
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let from = context.other(&args.from, &args.keys.keys())?;
    let (global, sources) = context.options_at(&args.to);
    let to = Context::new(&global, sources);
    let copied = into(&to, &from, args, &cancel);
    // Also after a failed run, which may have stored something.
    to.remember();
    copied.map(|outcome| match outcome {
        Outcome::Done if to.is_doubted() => Outcome::Warnings,
        outcome => outcome,
    })
}

fn into(to: &Context<'_>, from: &Other, args: &CopyArgs, cancel: &Arc<AtomicBool>) -> Result<Outcome> {
    let clock = Instant::now();
    let repository = to.repository_to_write_with(from.repository.keys())?;
    let view = to.view_of(&repository)?;
    let side = |view: &View| (view.identity().id.clone(), view.identity().block_size);
    let ((their_id, theirs), (our_id, ours)) = (side(&from.view), side(&view));
    copy::check((&their_id, theirs), (&our_id, ours)).map_err(|error| explain(error, args))?;
    let catalogue = from.view.catalogue().map_err(|error| of_source(error, args))?;
    check_guests(&catalogue, args)?;
    let oldest = args.since.map(|age| age.before(&Zoned::now()));
    let wanted = |backup: &Backup| {
        let is_named = args.guests.is_empty() || args.guests.iter().any(|name| matches(name, backup.guest.as_str()));
        is_named && oldest.is_none_or(|oldest| backup.time.timestamp() >= oldest)
    };
    let mut plan = Plan::new(&catalogue, &view.catalogue()?, &wanted);
    let mut run = Run {
        to,
        args,
        copied: Mutex::default(),
        clock,
        guessed: Mutex::default(),
    };
    for record in catalogue.damaged() {
        tracing::error!("{}: {record}", args.from.display());
    }
    if args.dry_run {
        run.show(&plan);
        return run.report(&catalogue, &plan.taken, plan.present, Copied::default());
    }
    let (mut present, mut taken) = (plan.present, plan.taken.clone());
    let mut done = Copied::default();
    if !plan.missing.is_empty() {
        let writer = to.writer(&repository, "copy", args.no_wait, cancel)?;
        // Another writer may have added some of them since.
        if writer.store().generation()? != view.standing().generation.unwrap_or_default() {
            let there = writer.catalogue()?;
            plan = Plan::new(&catalogue, &there, &wanted);
        }
        (present, taken) = (plan.present, plan.taken.clone());
        done = run.copy(from, &writer, plan, &repository, cancel)?;
    }
    run.report(&catalogue, &taken, present, done)
}

/// Fails if a guest that was named has no backup.
fn check_guests(catalogue: &Catalogue, args: &CopyArgs) -> Result<()> {
    let guests = catalogue.guests();
    let unknown = |name: &&String| !guests.iter().any(|guest| matches(name, guest.as_str()));
    let Some(unknown) = args.guests.iter().find(unknown) else {
        return Ok(());
    };
    let known: Vec<_> = guests.iter().map(|guest| guest.as_str()).collect();
    Err(Error::NotThere(format!(
        "no guest {unknown:?} in {}; its guests: {}",
        args.from.display(),
        known.join(", ")
    )))
}

/// Names the repository that failed, if it is not the one that is written to.
fn of_source(error: vbk_repo::Error, args: &CopyArgs) -> Error {
    Error::Other {
        path: args.from.clone(),
        source: error,
    }
}

fn explain(error: CopyError, args: &CopyArgs) -> Error {
    match error {
        CopyError::From(error) => of_source(error, args),
        CopyError::To(error) => error.into(),
        CopyError::Same { .. } => Error::Usage(format!(
            "{} and {} are the same repository, or one is a copy of the other's files; nothing was copied",
            args.from.display(),
            args.to.display()
        )),
        CopyError::OtherKey => Error::Usage(format!(
            "{} and {} do not have the same key, so nothing can be copied without it; nothing was copied. `vbk init DIRECTORY --like {}` \
             makes a repository that fits",
            args.from.display(),
            args.to.display(),
            args.from.display()
        )),
        CopyError::NoSums => Error::Usage(format!(
            "{} or {} was made by an older vbk and has no sums, by which a copy without the key tells damage; nothing was copied. \
             Leave --without-key out, or copy once with the key to a new repository",
            args.from.display(),
            args.to.display()
        )),
        CopyError::BlockSizes { from, to } => Error::Usage(format!(
            "{} has blocks of {} and {} of {}; nothing was copied. `vbk init DIRECTORY --like {}` makes a repository that fits",
            args.from.display(),
            units::size(from),
            args.to.display(),
            units::size(to),
            args.from.display()
        )),
    }
}

struct Run<'a> {
    to: &'a Context<'a>,
    args: &'a CopyArgs,
    clock: Instant,
    copied: Mutex<Vec<CopiedJson>>,
    /// Number of copies that are protected because it could not be read whether they should be.
    guessed: Mutex<u64>,
}

impl Run<'_> {
    /// Shows what would be copied.
    fn show(&mut self, plan: &Plan) {
        let copied = self.copied.get_mut();
        for entry in &plan.missing {
            self.to.say(format_args!("would copy {}", entry.backup.spec()));
            copied.push(CopiedJson {
                backup: entry.backup.spec(),
                sent_blocks: None,
                stored_bytes: None,
            });
        }
    }

    fn copy(
        &self,
        from: &Other,
        writer: &vbk_repo::repository::Writer,
        plan: Plan,
        repository: &Repository,
        cancel: &AtomicBool,
    ) -> Result<Copied> {
        let total = plan.missing.iter().map(|entry| entry.backup.data_bytes()).sum();
        let progress = Progress::new(self.to.quiet(), total, Words::Plain);
        let done_bytes = Mutex::new(0);
        let observer = |step: Step<'_>| match step {
            Step::Begun(backup) => tracing::info!("copying {}", backup.spec()),
            Step::Read(bytes) => progress.add(bytes),
            Step::Guessed(backup) => {
                *self.guessed.lock() += 1;
                progress.suspend(|| {
                    tracing::warn!(
                        "{} is protected in {}, because its note can't be read and it may have been",
                        backup.spec(),
                        self.args.to.display()
                    );
                });
            }
            Step::Copied(backup, sent) => {
                let mut done = done_bytes.lock();
                *done += backup.data_bytes();
                progress.set(*done);
                progress.suspend(|| self.note(backup, sent));
            }
            Step::Failed(backup, error) => {
                let mut done = done_bytes.lock();
                *done += backup.data_bytes();
                progress.set(*done);
                progress.suspend(|| tracing::error!("{} can't be copied: {error}", backup.spec()));
            }
        };
        let reserve = self.args.reserve.unwrap_or(Reserve::Default);
        let options = CopyOptions {
            threads: threads(),
            cancel,
            observer: &observer,
            check_room: &|| repository.check_reserve(reserve),
        };
        let copied = copy::copy(&*from.view.store_to_scan(), writer, plan, options);
        progress.finish();
        copied.map_err(|error| explain(error, self.args))
    }

    fn note(&self, backup: &Backup, sent: Sent) {
        self.to.say(format_args!(
            "copied {}: {} ({}) sent",
            backup.spec(),
            units::count(sent.blocks, "block"),
            units::size(sent.stored_bytes)
        ));
        self.copied.lock().push(CopiedJson {
            backup: backup.spec(),
            sent_blocks: Some(sent.blocks),
            stored_bytes: Some(sent.stored_bytes),
        });
    }

    fn report(self, catalogue: &Catalogue, taken: &[String], present: u64, done: Copied) -> Result<Outcome> {
        for taken in taken {
            tracing::error!(
                "{taken} was not copied: {} has another backup of this guest and time",
                self.args.to.display()
            );
        }
        let of_plan = taken.iter().map(|backup| FailedJson {
            backup: backup.clone(),
            error: "another backup of this guest and time is there".into(),
        });
        let ended = Ended {
            copied: self.copied.into_inner(),
            present,
            is_damaged: is_damage(&done.failed),
            failed: failed_json(&done.failed).chain(of_plan).collect(),
            damaged_records: catalogue.damaged().iter().map(ToString::to_string).collect(),
            sent: done.sent,
            sent_bytes: Some(done.sent.plain_bytes),
            found_blocks: done.found_blocks,
            unpublished: done.unpublished,
            is_guessed: *self.guessed.lock() > 0,
        };
        ended.report(self.to, self.args, self.clock)
    }
}

fn failed_json(failed: &[(String, vbk_repo::Error)]) -> impl Iterator<Item = FailedJson> {
    failed.iter().map(|(backup, error)| FailedJson {
        backup: backup.clone(),
        error: error.to_string(),
    })
}

fn is_damage(failed: &[(String, vbk_repo::Error)]) -> bool {
    failed.iter().any(|(_, error)| error.kind() == ErrorKind::Corrupt)
}

/// What came of a copy, with the key or without it.
struct Ended {
    copied: Vec<CopiedJson>,
    present: u64,
    failed: Vec<FailedJson>,
    /// One of those is damaged where it comes from.
    is_damaged: bool,
    damaged_records: Vec<String>,
    sent: Sent,
    sent_bytes: Option<u64>,
    found_blocks: u64,
    unpublished: Option<vbk_repo::Error>,
    /// Whether a copy should be protected could not be read.
    is_guessed: bool,
}

impl Ended {
    fn report(self, to: &Context<'_>, args: &CopyArgs, clock: Instant) -> Result<Outcome> {
        let took: Duration = clock.elapsed();
        let failed = self.failed.len() + self.damaged_records.len();
        let (count, present) = (units::count(self.copied.len() as u64, "backup"), self.present);
        match args.dry_run {
            true => to.say(format_args!("{count} would be copied, {present} are there already")),
            false => to.say(format_args!(
                "{count} copied, {present} were there already{}; {} ({}) sent in {}",
                match failed {
                    0 => String::new(),
                    failed => format!(", {failed} can't be copied"),
                },
                units::count(self.sent.blocks, "block"),
                units::size(self.sent.stored_bytes),
                units::duration(took),
            )),
        }
        if let Some(error) = &self.unpublished {
            tracing::warn!("the copies are stored, but will not be listed before the next backup or copy: {error}");
        }
        let is_damaged = self.is_damaged || !self.damaged_records.is_empty();
        to.json_result(&Report {
            from: args.from.display().to_string(),
            to: args.to.display().to_string(),
            dry_run: args.dry_run,
            copied: self.copied,
            present,
            failed: self.failed,
            damaged_records: self.damaged_records,
            sent_blocks: self.sent.blocks,
            sent_bytes: self.sent_bytes,
            stored_bytes: self.sent.stored_bytes,
            found_blocks: self.found_blocks,
            duration_ms: units::milliseconds(took),
        })?;
        Ok(match failed {
            _ if is_damaged => Outcome::Damage,
            0 if self.is_guessed || self.unpublished.is_some() => Outcome::Warnings,
            0 => Outcome::Done,
            _ => Outcome::Failed,
        })
    }
}
