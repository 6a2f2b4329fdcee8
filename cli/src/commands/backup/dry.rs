//! `vbk backup --dry-run`: what would be read, and how. Changes nothing, and waits for nobody.

use std::path::Path;

use serde::Serialize;
use vbk::backup::guest::{GuestPlan, plan_snapshots};
use vbk::host::program::Programs;
use vbk::limit::{GuestDisk, LimitOptions, ReadLimit};
use vbk::snapshot::PlannedDisk;
use vbk_repo::backup::{Entry, SnapshotKind};
use vbk_repo::catalogue::Catalogue;
use vbk_repo::repository::Reserve;

use super::plan::{Common, Job};
use super::queue::Queue;
use super::{check_time, no_guests};
use crate::args::BackupArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::read_limit::LimitJson;
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// JSON of the command.
#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    guests: Vec<GuestJson<'a>>,
    failed: usize,
}

#[derive(Serialize)]
struct GuestJson<'a> {
    guest: &'a str,
    last_backup: Option<String>,
    disks: Vec<DiskJson<'a>>,
    notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct DiskJson<'a> {
    disk: &'a str,
    source: &'a Path,
    size_bytes: u64,
    /// Null if the disk itself is read.
    snapshot: Option<SnapshotKind>,
    /// The disk itself is read while it may be in use.
    live: bool,
    #[serde(skip)]
    reads: String,
    /// Space for a snapshot that has space of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_bytes: Option<u64>,
    #[serde(flatten)]
    limit: LimitJson,
    #[serde(skip)]
    limit_text: String,
}

/// Shows what a backup with these arguments would do.
pub fn run(context: &Context<'_>, args: &BackupArgs, programs: &Programs) -> Result<Outcome> {
    let common = Common {
        context,
        args,
        programs,
        limits: LimitOptions::default(),
        jobs: 1,
    };
    let mut planned = common.all()?;
    for note in &planned.notes {
        tracing::warn!("{note}");
    }
    if planned.jobs.is_empty() {
        return Err(no_guests(&planned.notes));
    }
    let repository = context.repository()?;
    let catalogue = context.view_of(&repository)?.catalogue()?;
    Queue::at(&machine::cache_dir()).sort(&mut planned.jobs, &catalogue);
    if let (Some(guest), Some(time)) = (&args.guest, args.time) {
        check_time(&catalogue, guest, time)?;
    }
    let found: Vec<_> = planned.jobs.iter().map(|job| look(programs, job, &catalogue)).collect();
    let reports: Vec<_> = planned
        .jobs
        .iter()
        .zip(&found)
        .map(|(job, disks)| report(job, disks, &catalogue))
        .collect();
    let table = table(&reports).fit(output::columns(), &["LAST BACKUP", "SIZE"]);
    context.print(table);
    for report in &reports {
        for note in report.notes {
            tracing::warn!("{}: {note}", report.guest);
        }
        if let Some(error) = &report.error {
            tracing::error!("{}: {error}", report.guest);
        }
    }
    let failed = reports.iter().filter(|report| report.error.is_some()).count();
    let disks = reports.iter().flat_map(|report| &report.disks);
    context.say(format_args!(
        "{} with {} ({}) would be backed up; nothing was done",
        units::count((reports.len() - failed) as u64, "guest"),
        units::count(disks.clone().count() as u64, "disk"),
        units::size(disks.map(|disk| disk.size_bytes).sum())
    ));
    let has_notes = !planned.notes.is_empty() || reports.iter().any(|report| !report.notes.is_empty());
    let all = reports.len();
    context.json_result(&Report {
        dry_run: true,
        guests: reports,
        failed,
    })?;
    // As the run itself would.
    repository.check_reserve(args.reserve.unwrap_or(Reserve::Default))?;
    Ok(match failed {
        0 if has_notes => Outcome::Warnings,
        0 => Outcome::Done,
        failed if failed == all => Outcome::Failed,
        _ => Outcome::Warnings,
    })
}

/// Finds out how the disks of a guest would be held still.
fn look(programs: &Programs, job: &Job, catalogue: &Catalogue) -> std::result::Result<Vec<PlannedDisk>, String> {
    let plan = job.plan.as_ref().map_err(Error::message)?;
    let entries: Vec<Entry> = catalogue.of(&job.guest).cloned().collect();
    match plan_snapshots(programs, plan, &entries) {
        Ok(planned) => Ok(planned.disks().to_vec()),
        Err(error) => Err(Error::from(error).message()),
    }
}

fn report<'a>(
    job: &'a Job,
    found: &'a std::result::Result<Vec<PlannedDisk>, String>,
    catalogue: &Catalogue,
) -> GuestJson<'a> {
    let disks = match (&job.plan, found) {
        (Ok(plan), Ok(disks)) => disks.iter().map(|disk| disk_json(plan, disk)).collect(),
        _ => Vec::new(),
    };
    GuestJson {
        guest: job.guest.as_str(),
        last_backup: catalogue.latest(&job.guest).map(|entry| entry.backup.spec()),
        disks,
        notes: &job.notes,
        error: found.as_ref().err().cloned(),
    }
}

fn disk_json<'a>(plan: &'a GuestPlan, planned: &'a PlannedDisk) -> DiskJson<'a> {
    let disk = &planned.disk;
    let limited = plan.disks.iter().find(|other| other.name == disk.name);
    DiskJson {
        disk: disk.name.as_str(),
        source: &disk.source,
        size_bytes: disk.size_bytes,
        snapshot: planned.kind(),
        live: planned.kind().is_none() && planned.is_live(),
        reads: match (planned.kind(), planned.space_bytes) {
            (Some(kind), Some(bytes)) => format!("{kind} of {}", units::size(bytes)),
            (Some(kind), None) => kind.to_string(),
            (None, _) if planned.is_live() => "the disk itself, live".to_owned(),
            (None, _) => "the disk itself".to_owned(),
        },
        snapshot_bytes: planned.space_bytes,
        limit: match limited {
            Some(disk) => LimitJson::new(disk.limit, disk.speed.map(|speed| speed.bytes_per_sec)),
            None => LimitJson::new(ReadLimit::Unlimited, None),
        },
        limit_text: limited.map_or("none".to_owned(), limit_text),
    }
}

/// `60% of 200 MB/s`
fn limit_text(disk: &GuestDisk) -> String {
    match (disk.limit, disk.speed) {
        (ReadLimit::Share(_), Some(speed)) => format!("{} of {}", disk.limit, units::rate(speed.bytes_per_sec)),
        (ReadLimit::Share(_), None) => format!("{} of what is measured", disk.limit),
        (limit, _) => limit.to_string(),
    }
}

fn table(reports: &[GuestJson<'_>]) -> Table {
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("LAST BACKUP", Align::Left),
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("READS", Align::Left),
        ("READ LIMIT", Align::Left),
        ("SOURCE", Align::Left),
    ]);
    for report in reports {
        let last = report.last_backup.as_deref();
        let last = last
            .and_then(|backup| Some(backup.rsplit_once('@')?.1))
            .unwrap_or("never");
        for disk in &report.disks {
            table.row(vec![
                report.guest.to_owned(),
                last.to_owned(),
                disk.disk.to_owned(),
                units::size(disk.size_bytes),
                disk.reads.clone(),
                disk.limit_text.clone(),
                disk.source.display().to_string(),
            ]);
        }
    }
    table
}
