//! `vbk restore`

mod create;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk::restore::{Fill, RestoreOptions, restore, stream};
use vbk_repo::backup::{Backup, Image};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::reader::{ImageReader, ReadResources};

use crate::args::RestoreArgs;
use crate::context::{Context, stdout_is_terminal, threads};
use crate::exit::{Error, Outcome, Result};
use crate::progress::{Progress, Words};
use crate::{signals, units};

#[derive(Serialize)]
struct Report {
    backup: String,
    disk: String,
    target: PathBuf,
    size_bytes: u64,
    data_bytes: u64,
    duration_ms: u64,
}

/// Restores a disk, or a whole guest.
pub fn run(context: &Context<'_>, args: &RestoreArgs) -> Result<Outcome> {
    match (&args.create_in, &args.target) {
        (Some(group), _) => create::run(context, args, group),
        (None, Some(target)) => disk(context, args, target),
        (None, None) => Err(Error::Usage("name a target, or a volume group with --create-in".into())),
    }
}

fn disk(context: &Context<'_>, args: &RestoreArgs, target: &Path) -> Result<Outcome> {
    let clock = Instant::now();
    let to_stdout = target == Path::new("-");
    if to_stdout && context.json() {
        return Err(Error::Usage(
            "with - the disk itself goes to standard output, so there is no place for --json".into(),
        ));
    }
    if to_stdout && stdout_is_terminal() {
        return Err(Error::Usage(
            "standard output is a terminal; send it to a file or a program".into(),
        ));
    }
    let cancel = signals::cancel_flag_with_hangup().map_err(|error| Error::Other(error.to_string()))?;
    let view = context.repository()?.view()?;
    let catalogue = view.catalogue()?;
    crate::commands::warn_of_foreign_changes(&catalogue);
    let entry = catalogue.find(&args.backup)?;
    let image = choose(&entry.backup, &args.backup)?;
    let reader = ImageReader::open(view.store(), ReadResources::new(threads()), image)?;
    let progress = Progress::new(context.quiet(), image.size_bytes, Words::Plain);
    let label = format!("{}/{}", entry.backup.spec(), image.disk);
    if to_stdout {
        let mut out = std::io::stdout().lock();
        stream(&label, &Arc::new(reader), &mut out, &cancel, &progress)?;
        return Ok(Outcome::Done);
    }
    let options = RestoreOptions {
        label,
        force: args.force,
        fill: Fill::Image,
        threads: threads(),
    };
    restore(&reader, image.data_bytes, target, &options, &cancel, &progress)?;
    progress.finish();
    let took = clock.elapsed();
    context.say(format_args!(
        "{}/{}: {} ({} of data) restored to {} in {}",
        entry.backup.spec(),
        image.disk,
        units::size(image.size_bytes),
        units::size(image.data_bytes),
        target.display(),
        units::duration(took)
    ));
    context.json_result(&Report {
        backup: entry.backup.spec(),
        disk: image.disk.to_string(),
        target: target.to_owned(),
        size_bytes: image.size_bytes,
        data_bytes: image.data_bytes,
        duration_ms: milliseconds(took),
    })?;
    Ok(Outcome::Done)
}

fn choose<'a>(backup: &'a Backup, spec: &BackupSpec) -> Result<&'a Image> {
    match (&spec.disk, &backup.images[..]) {
        (Some(disk), _) => Ok(backup.image(disk)?),
        (None, [only]) => Ok(only),
        (None, several) => {
            let names = several.iter().map(|image| format!("{}/{}", backup.spec(), image.disk));
            Err(Error::Usage(format!(
                "{} has several disks; name one of {}",
                backup.spec(),
                names.collect::<Vec<_>>().join(", ")
            )))
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
