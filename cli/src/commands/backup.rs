//! `vbk backup`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk::backup::{BackupPlan, BackupSummary, DiskPlan, backup};
use vbk::limit::speed::{DeviceSpeed, SpeedSource};
use vbk::limit::{LimitedDisk, Limiter};
use vbk::observer::{Counts, Observer};
use vbk::source::Source;
use vbk_repo::backup::{Consistency, Image};
use vbk_repo::name::DiskName;
use vbk_repo::repository::Reserve;

use crate::args::{BackupArgs, DiskArg};
use crate::context::{Context, host, threads};
use crate::exit::{Error, Outcome, Result};
use crate::progress::{Progress, Words};
use crate::{signals, units};

/// What one disk alone is called, as guests call their first virtio disk.
const ONLY_DISK: &str = "vda";

#[derive(Serialize)]
struct Report<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: jiff::Timestamp,
    size_bytes: u64,
    #[serde(flatten)]
    counts: Counts,
    duration_ms: u64,
    disks: &'a [Image],
}

/// Backs a guest up.
pub fn run(context: &Context<'_>, args: &BackupArgs) -> Result<Outcome> {
    let clock = Instant::now();
    let mut disks = name_disks(&args.disks)?;
    for (_, path) in &mut disks {
        // As it is recorded: somebody may look for it in a year. Links stay, their names tell more.
        *path = std::path::absolute(&path).map_err(|error| Error::Other(format!("{}: {error}", path.display())))?;
    }
    let cancel = signals::cancel_flag().map_err(|error| Error::Other(error.to_string()))?;
    // Before the wait for another writer: a wrong path is told at once.
    let mut total = 0;
    for (_, path) in &disks {
        total += Source::open(path)?.size_bytes();
    }
    let repository = context.repository()?;
    repository.check_reserve(args.reserve.unwrap_or(Reserve::Default))?;
    let writer = context.waiting(args.no_wait, &cancel, |wait| {
        repository.writer(&format!("backup {}", args.guest), wait)
    })?;
    let limiter = limiter(context, args, &disks)?;
    let plan = BackupPlan {
        guest: args.guest.clone(),
        disks: disks
            .into_iter()
            .map(|(name, path)| DiskPlan {
                pace: limiter.as_ref().map(|limiter| limiter.pace(&name)).unwrap_or_default(),
                name,
                source: path.clone(),
                read: path,
                snapshot: None,
            })
            .collect(),
        files: Vec::new(),
        consistency: Consistency::Live,
        compression: args.compression,
        host: host(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: jiff::Timestamp::now(),
        threads: threads(),
    };
    let progress = Progress::new(context.quiet(), total, Words::Backup);
    let summary = backup(&writer, &plan, &|| Ok(()), &cancel, &progress as &dyn Observer);
    progress.finish();
    let summary = summary?;
    context.say(last_line(&summary, clock.elapsed()));
    let made = &summary.entry.backup;
    context.json_result(&Report {
        backup: made.spec(),
        id: summary.entry.id.to_string(),
        guest: made.guest.as_str(),
        time: made.time.timestamp(),
        size_bytes: made.size_bytes(),
        counts: summary.counts,
        duration_ms: made.duration_ms,
        disks: &made.images,
    })?;
    Ok(match progress.warnings() {
        0 => Outcome::Done,
        _ => Outcome::Warnings,
    })
}

/// Limits the reading, if that was asked for.
fn limiter(context: &Context<'_>, args: &BackupArgs, disks: &[(DiskName, PathBuf)]) -> Result<Option<Limiter>> {
    let polite = &args.politeness;
    let Some(limit) = polite.read_limit else {
        return Ok(None);
    };
    let speed = polite.device_speed.map(|bytes_per_sec| DeviceSpeed {
        bytes_per_sec,
        source: SpeedSource::Option,
    });
    let disks = disks.iter().map(|(name, path)| LimitedDisk {
        name: name.clone(),
        origin: path.clone(),
        read: path.clone(),
        limit,
        speed,
    });
    let limiter = Limiter::start(&args.guest, disks.collect(), &polite.options(), jiff::Timestamp::now())?;
    for line in limiter.describe() {
        context.say(line);
    }
    for line in limiter.details() {
        tracing::info!("{line}");
    }
    Ok(Some(limiter))
}

fn last_line(summary: &BackupSummary, took: Duration) -> String {
    let counts = &summary.counts;
    format!(
        "{}: {} read, {} new ({} stored) in {}",
        summary.entry.backup.spec(),
        units::size(counts.read_bytes),
        units::size(counts.new_bytes),
        units::size(counts.stored_bytes),
        units::duration(took)
    )
}

fn name_disks(disks: &[DiskArg]) -> Result<Vec<(DiskName, PathBuf)>> {
    let name = |disk: &DiskArg| match &disk.name {
        Some(name) => Ok((name.clone(), disk.path.clone())),
        None if disks.len() == 1 => Ok((ONLY_DISK.parse::<DiskName>()?, disk.path.clone())),
        None => Err(Error::Usage(format!(
            "{} has no name; with several disks each needs one, as in vda={0}",
            disk.path.display()
        ))),
    };
    disks.iter().map(name).collect()
}
