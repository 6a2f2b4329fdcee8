//! `vbk restore BACKUP DIRECTORY`: all disks of a guest as files in a directory, and the files that describe it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk::restore::preview::{check_room, file_bytes, preview};
use vbk::restore::{Damaged, Fill, Format, RestoreOptions, Restored, restore};
use vbk_repo::backup::{Backup, Image};
use vbk_repo::reader::{ImageReader, ReadResources};

use super::dry_run::{DryRunJson, FoundJson};
use super::{Disk, Report, damage_mode, format_of, print_damaged};
use crate::args::RestoreArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

#[derive(Serialize)]
struct WholeReport {
    backup: String,
    target: PathBuf,
    disks: Vec<Report>,
    files: Vec<Report>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct DryRunReport {
    backup: String,
    target: PathBuf,
    dry_run: bool,
    makes_directory: bool,
    disks: Vec<DryRunJson>,
    files: Vec<DryRunJson>,
    /// Message of the error of a restore for which the file system has too little room.
    refused: Option<String>,
}

/// Returns whether a target means a directory to put files into: it is one, or ends like one.
pub fn is_directory(target: &Path) -> bool {
    target.is_dir() || target.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// Restores the disks and files of a backup, or one disk of it, as files in a directory, which is made if it is missing.
pub fn run(context: &Context<'_>, args: &RestoreArgs, directory: &Path) -> Result<Outcome> {
    let started = Instant::now();
    if args.differential || args.changes.is_some() {
        return Err(Error::Usage(format!(
            "{} is a directory; --differential and --changes are for one disk, and need its device or file",
            directory.display()
        )));
    }
    let format = format_of(args)?;
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let backup = &*entry.backup;
    let (images, files): (Vec<&Image>, &[Image]) = match &args.backup.disk {
        Some(disk) => (vec![backup.image(disk)?], &[]),
        None => (backup.images.iter().collect(), &backup.files),
    };
    let extension = match format {
        Format::Qcow2 => "qcow2",
        Format::Raw => "img",
    };
    // The names that a mount shows.
    let mut plan: Vec<_> = images
        .into_iter()
        .map(|image| (image, directory.join(format!("{}.{extension}", image.disk)), format))
        .collect();
    let disks = plan.len();
    plan.extend(
        files
            .iter()
            .map(|file| (file, directory.join(file.disk.as_str()), Format::Raw)),
    );
    let open = |image| ImageReader::open(view.store_to_scan(), ReadResources::new(threads()), image);
    let need_bytes = plan
        .iter()
        .map(|(image, _, format)| file_bytes(*format, image.size_bytes, image.data_bytes));
    let need_bytes = need_bytes.sum();
    if args.dry_run {
        let parts = plan.into_iter().map(|(image, target, format)| {
            let disk = Disk {
                started,
                backup,
                image,
                reader: open(image)?,
            };
            let options = options(args, &disk, format);
            Ok((disk, target, options))
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        return dry_run(context, backup, directory, parts, (disks, need_bytes));
    }
    check_targets(args, &plan)?;
    let made = Made::new(directory)?;
    check_room(directory, need_bytes)?;
    let total = plan.iter().map(|(image, ..)| image.size_bytes).sum();
    let progress = Progress::new(context.quiet(), total, Words::Plain);
    let (mut reports, mut outcome) = (Vec::new(), Outcome::Done);
    for (image, target, format) in plan {
        let disk = Disk {
            started: Instant::now(),
            backup,
            image,
            reader: open(image)?,
        };
        let options = options(args, &disk, format);
        let restored = restore(&disk.reader, image.data_bytes, &target, &options, &cancel, &progress)?;
        outcome = outcome.worse(tell(context, &progress, &disk, &target, &restored, options.damaged));
        reports.push(Report::new(&disk, &target, &restored, disk.started.elapsed()));
    }
    progress.finish();
    made.keep();
    let files = reports.split_off(disks);
    let took = started.elapsed();
    context.say(last_line(backup, directory, (disks, files.len()), took));
    context.json_result(&WholeReport {
        backup: backup.spec(),
        target: directory.to_owned(),
        disks: reports,
        files,
        duration_ms: units::milliseconds(took),
    })?;
    Ok(outcome)
}

/// Fails if a file exists, before anything is written.
fn check_targets(args: &RestoreArgs, plan: &[(&Image, PathBuf, Format)]) -> Result<()> {
    let exists = |(_, target, _): &&(&Image, PathBuf, Format)| target.symlink_metadata().is_ok();
    match plan.iter().find(exists).filter(|_| !args.force) {
        Some((_, target, _)) => Err(vbk::Error::TargetExists(target.clone()).into()),
        None => Ok(()),
    }
}

fn options(args: &RestoreArgs, disk: &Disk<'_>, format: Format) -> RestoreOptions {
    RestoreOptions {
        label: disk.label(),
        format,
        changes: None,
        force: args.force,
        overwrite: args.overwrite,
        fill: Fill::Image,
        damaged: damage_mode(args),
        threads: threads(),
    }
}

/// A directory that was made for the restore, and is removed again if nothing gets into it.
struct Made<'a>(Option<&'a Path>);

impl<'a> Made<'a> {
    fn new(directory: &'a Path) -> Result<Self> {
        check_parent(directory)?;
        match std::fs::create_dir(directory) {
            Ok(()) => Ok(Self(Some(directory))),
            Err(_) if directory.is_dir() => Ok(Self(None)),
            Err(error) => Err(Error::io(format!("create {}", directory.display()))(error)),
        }
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // A directory with files in it stays.
        if let Some(directory) = self.0 {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Fails if a directory can't be made because its parent is missing.
fn check_parent(directory: &Path) -> Result<()> {
    match parent_of(directory) {
        parent if parent.is_dir() => Ok(()),
        parent => Err(Error::NotThere(format!(
            "the parent directory {} does not exist; is its file system mounted? Nothing was written",
            parent.display()
        ))),
    }
}

fn parent_of(directory: &Path) -> &Path {
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => directory,
    }
}

/// Describes the restore of all disks and files. In a directory that would be made, only the room can refuse it.
fn dry_run(
    context: &Context<'_>,
    backup: &Backup,
    directory: &Path,
    parts: Vec<(Disk<'_>, PathBuf, RestoreOptions)>,
    (disks, need_bytes): (usize, u64),
) -> Result<Outcome> {
    let is_new = !directory.is_dir();
    if is_new {
        check_parent(directory)?;
    }
    let room = check_room(if is_new { parent_of(directory) } else { directory }, need_bytes);
    let (mut outcome, mut all) = (Outcome::Done, Vec::new());
    for (disk, target, options) in &parts {
        let found = match is_new {
            true => FoundJson::in_new_directory(room.as_ref().ok().copied()),
            false => FoundJson::new(&preview(&disk.reader, disk.image.data_bytes, target, options, false)?),
        };
        let planned = DryRunJson::new(disk, target, found);
        planned.say(context);
        outcome = outcome.worse(planned.outcome());
        all.push(planned);
    }
    let refused = room.err().map(|error| error.to_string());
    if is_new {
        context.say(format_args!("the directory {} would be made", directory.display()));
    }
    if let Some(why) = &refused {
        outcome = outcome.worse(Outcome::Failed);
        context.say(format_args!("this restore would be refused: {why}"));
    }
    let files = all.split_off(disks);
    context.json_result(&DryRunReport {
        backup: backup.spec(),
        target: directory.to_owned(),
        dry_run: true,
        makes_directory: is_new,
        disks: all,
        files,
        refused,
    })?;
    Ok(outcome)
}

fn tell(
    context: &Context<'_>,
    progress: &Progress,
    disk: &Disk<'_>,
    target: &Path,
    restored: &Restored,
    damaged: Damaged,
) -> Outcome {
    let mut outcome = Outcome::Done;
    progress.suspend(|| {
        context.say(format_args!(
            "{}: {} ({} of data) restored to {}",
            disk.label(),
            units::size(disk.image.size_bytes),
            units::size(disk.image.data_bytes),
            target.display()
        ));
        let instead = match damaged {
            Damaged::Keep => "they are as they were in the file, or zeros in a new one",
            Damaged::Zeros | Damaged::Refuse => "they are zeros",
        };
        outcome = print_damaged(&disk.label(), &restored.damaged, instead);
    });
    outcome
}

fn last_line(backup: &Backup, directory: &Path, (disks, files): (usize, usize), took: Duration) -> String {
    let files = match files {
        0 => String::new(),
        files => format!(" and {}", units::count(files as u64, "file")),
    };
    format!(
        "{}: {}{files} restored to {} in {}",
        backup.spec(),
        units::count(disks as u64, "disk"),
        directory.display(),
        units::duration(took)
    )
}
