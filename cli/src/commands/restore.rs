//! `vbk restore`

mod create;
mod differential;
mod directory;
mod dry_run;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk::restore::{Damaged, DamagedRange, DiskChanges, Fill, Format, RestoreOptions, Restored, restore, stream};
use vbk_repo::backup::{Backup, Image};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::reader::{ImageReader, ReadResources};

use crate::args::{FileFormat, RestoreArgs, SkipDamaged};
use crate::context::{Context, stdout_is_terminal, threads};
use crate::exit::{Error, Outcome, Result};
use crate::restoring::{open_changes, print_behind};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

#[derive(Serialize)]
struct Report {
    backup: String,
    disk: String,
    target: PathBuf,
    size_bytes: u64,
    data_bytes: u64,
    duration_ms: u64,
    /// Ranges that could not be read back.
    damaged: Vec<RangeJson>,
    /// Bytes of a larger device after the end of the disk.
    behind_bytes: u64,
    /// Old signatures that were removed from there.
    wiped: Vec<WipedJson>,
    /// The disk has a GPT whose second header belongs at the end of the larger device.
    gpt_ends_early: bool,
}

/// A damaged range.
#[derive(Serialize)]
struct RangeJson {
    offset_bytes: u64,
    len_bytes: u64,
}

/// A signature that was removed.
#[derive(Serialize)]
struct WipedJson {
    what: &'static str,
    offset_bytes: u64,
    len_bytes: u64,
}

/// Restores a disk, or a whole guest.
pub fn run(context: &Context<'_>, args: &RestoreArgs) -> Result<Outcome> {
    match (&args.create_in, &args.target) {
        (Some(group), _) => create::run(context, args, group),
        (None, Some(target)) if directory::is_directory(target) => directory::run(context, args, target),
        (None, Some(target)) => disk(context, args, target),
        (None, None) => Err(Error::Usage("name a target, or a volume group with --create-in".into())),
    }
}

/// A disk to restore.
struct Disk<'a> {
    started: Instant,
    backup: &'a Backup,
    image: &'a Image,
    reader: ImageReader,
}

impl Disk<'_> {
    /// Names backup and disk, for messages.
    fn label(&self) -> String {
        format!("{}/{}", self.backup.spec(), self.image.disk)
    }
}

/// Returns the format of the files to write.
fn format_of(args: &RestoreArgs) -> Result<Format> {
    match (args.format, args.skip_damaged) {
        (Some(FileFormat::Qcow2), Some(SkipDamaged::Keep)) => Err(Error::Usage(
            "a qcow2 image has no old data to keep; --skip-damaged writes zeros".into(),
        )),
        (Some(FileFormat::Qcow2), _) => Ok(Format::Qcow2),
        (Some(FileFormat::Raw) | None, _) => Ok(Format::Raw),
    }
}

fn disk(context: &Context<'_>, args: &RestoreArgs, target: &Path) -> Result<Outcome> {
    let started = Instant::now();
    let to_stdout = target == Path::new("-");
    if target == Path::new("/dev/stdout") {
        return Err(Error::Usage(format!(
            "write - for standard output: vbk restore {} -",
            args.backup
        )));
    }
    if to_stdout {
        check_stdout(context, args)?;
    }
    let format = format_of(args)?;
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let image = choose(&entry.backup, &args.backup)?;
    let disk = Disk {
        started,
        backup: &entry.backup,
        image,
        reader: ImageReader::open(view.store_to_scan(), ReadResources::new(threads()), image)?,
    };
    if args.differential {
        return differential::run(context, args, &disk, target, &cancel);
    }
    if args.dry_run && to_stdout {
        return dry_run::to_stdout(context, &disk);
    }
    let progress = Progress::new(context.quiet(), image.size_bytes, Words::Plain);
    let label = disk.label();
    let damaged = damage_mode(args);
    if to_stdout {
        let mut out = std::io::stdout().lock();
        let lost = stream(&label, &Arc::new(disk.reader), damaged, &mut out, &cancel, &progress)?;
        progress.finish();
        return Ok(print_damaged(&label, &lost, "they are zeros"));
    }
    let (changes, mut known) = changes(args, &entry.id.to_string(), image)?;
    if args.format.is_none() && target.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2")) {
        tracing::warn!(
            "{} will be a raw image; --format qcow2 makes a qcow2 image",
            target.display()
        );
        known = Outcome::Warnings;
    }
    let options = RestoreOptions {
        label: label.clone(),
        format,
        changes,
        force: args.force,
        overwrite: args.overwrite,
        fill: Fill::Image,
        damaged,
        threads: threads(),
    };
    if args.dry_run {
        progress.finish();
        return Ok(known.worse(dry_run::disk(context, &disk, target, &options)?));
    }
    let restored = restore(&disk.reader, image.data_bytes, target, &options, &cancel, &progress)?;
    progress.finish();
    let took = started.elapsed();
    context.say(format_args!(
        "{label}: {} ({} of data) restored to {}{} in {}",
        units::size(image.size_bytes),
        units::size(image.data_bytes),
        target.display(),
        match format {
            Format::Raw => "",
            Format::Qcow2 => " (qcow2)",
        },
        units::duration(took)
    ));
    print_behind(context, restored.behind.as_ref(), target);
    let lost = match damaged {
        Damaged::Keep => "they are as they were at the target, or zeros in a new file",
        Damaged::Zeros | Damaged::Refuse => "they are zeros",
    };
    let outcome = known.worse(print_damaged(&label, &restored.damaged, lost));
    context.json_result(&Report::new(&disk, target, &restored, took))?;
    Ok(outcome)
}

/// Opens the file of --changes. The outcome is a warning if it may lack the last writes.
fn changes(args: &RestoreArgs, id: &str, image: &Image) -> Result<(Option<DiskChanges>, Outcome)> {
    let Some(path) = &args.changes else {
        return Ok((None, Outcome::Done));
    };
    let changes = open_changes(path, id, &[image])?;
    let outcome = match changes.is_closed() {
        true => Outcome::Done,
        false => {
            tracing::warn!(
                "{} is not complete: the mount that wrote it was killed, or could not close it. It holds what was written before \
                 the last sync, perhaps more, and a btrfs may have another UUID",
                path.display()
            );
            Outcome::Warnings
        }
    };
    let changes = DiskChanges::new(Arc::new(changes), image.disk.as_str());
    Ok((Some(changes), outcome))
}

/// An error if the disk can't go to standard output.
fn check_stdout(context: &Context<'_>, args: &RestoreArgs) -> Result<()> {
    let reason = if context.json() {
        "with - the disk itself goes to standard output, so --json is not possible"
    } else if args.changes.is_some() {
        "standard output gets the disk as it was backed up; --changes needs a device or a file"
    } else if args.differential {
        "standard output has no disk to compare with; --differential needs a device or a file"
    } else if args.format == Some(FileFormat::Qcow2) {
        "standard output gets the raw disk; --format qcow2 needs a file"
    } else if args.skip_damaged == Some(SkipDamaged::Keep) {
        "standard output has no old data to keep; --skip-damaged writes zeros"
    } else if stdout_is_terminal() {
        "standard output is a terminal; redirect it to a file or a program"
    } else {
        return Ok(());
    };
    Err(Error::Usage(reason.into()))
}

impl Report {
    fn new(disk: &Disk<'_>, target: &Path, restored: &Restored, took: Duration) -> Self {
        let Disk { backup, image, .. } = disk;
        let behind = restored.behind.as_ref();
        let wiped = behind.iter().flat_map(|behind| &behind.wiped);
        let wiped = wiped.map(|wiped| WipedJson {
            what: wiped.what,
            offset_bytes: wiped.offset_bytes,
            len_bytes: wiped.len_bytes,
        });
        Self {
            backup: backup.spec(),
            disk: image.disk.to_string(),
            target: target.to_owned(),
            size_bytes: image.size_bytes,
            data_bytes: image.data_bytes,
            duration_ms: units::milliseconds(took),
            damaged: ranges_json(&restored.damaged),
            behind_bytes: behind.map_or(0, |behind| behind.bytes),
            wiped: wiped.collect(),
            gpt_ends_early: behind.is_some_and(|behind| behind.gpt_ends_early),
        }
    }
}

fn damage_mode(args: &RestoreArgs) -> Damaged {
    match args.skip_damaged {
        None => Damaged::Refuse,
        Some(SkipDamaged::Zero) => Damaged::Zeros,
        Some(SkipDamaged::Keep) => Damaged::Keep,
    }
}

fn ranges_json(ranges: &[DamagedRange]) -> Vec<RangeJson> {
    let json = |range: &DamagedRange| RangeJson {
        offset_bytes: range.offset_bytes,
        len_bytes: range.len_bytes,
    };
    ranges.iter().map(json).collect()
}

/// Prints the ranges of a disk that could not be read back, and their present content.
fn print_damaged(label: &str, ranges: &[DamagedRange], instead: &str) -> Outcome {
    if ranges.is_empty() {
        return Outcome::Done;
    }
    let total = ranges.iter().map(|range| range.len_bytes).sum();
    for range in ranges {
        tracing::error!(
            "{label}: damaged at {} bytes, {}",
            range.offset_bytes,
            units::size(range.len_bytes)
        );
    }
    tracing::error!(
        "{label}: {} in {} could not be read back; {instead}. The rest is verified",
        units::size(total),
        units::count(ranges.len() as u64, "range")
    );
    Outcome::Damage
}

fn choose<'a>(backup: &'a Backup, spec: &BackupSpec) -> Result<&'a Image> {
    match (&spec.disk, &backup.images[..]) {
        (Some(disk), _) => Ok(backup.image(disk)?),
        (None, [only]) => Ok(only),
        (None, several) => {
            let names = several.iter().map(|image| format!("{}/{}", backup.spec(), image.disk));
            Err(Error::Usage(format!(
                "{} has several disks; name a directory for all of them, or one of {}",
                backup.spec(),
                names.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}
