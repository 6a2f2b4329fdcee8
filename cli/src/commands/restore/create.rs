//! `vbk restore --create-in`: a whole guest, on new volumes, under its own name or another.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk::guest::domain::RestoredDomain;
use vbk::guest::files::NVRAM_NAME;
use vbk::restore::guest::{GuestRestore, RestorePlan, RestoredGuest};
use vbk_repo::backup::Backup;

use super::{RangeJson, damage_mode, print_damaged, ranges_json};
use crate::args::{RestoreArgs, SkipDamaged};
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_foreign_changes};

#[derive(Serialize)]
struct GuestJson<'a> {
    backup: String,
    guest: &'a str,
    volumes: Vec<VolumeJson<'a>>,
    /// XML of the domain, if one was kept.
    domain: Option<&'a str>,
    defined: bool,
    duration_ms: u64,
}

#[derive(Serialize)]
struct VolumeJson<'a> {
    disk: &'a str,
    volume: &'a str,
    path: PathBuf,
    size_bytes: u64,
    /// Ranges that could not be read back.
    damaged: Vec<RangeJson>,
}

#[derive(Serialize)]
struct DryRunJson<'a> {
    backup: String,
    guest: &'a str,
    dry_run: bool,
    volumes: Vec<NewVolumeJson<'a>>,
    /// XML of the domain, if one was kept.
    domain: Option<&'a str>,
    /// Message of the error of a restore.
    refused: Option<String>,
}

/// A volume that would be made.
#[derive(Serialize)]
struct NewVolumeJson<'a> {
    disk: &'a str,
    volume: &'a str,
    path: PathBuf,
    size_bytes: u64,
    data_bytes: u64,
}

/// Restores a guest into the volume group `group`.
pub fn run(context: &Context<'_>, args: &RestoreArgs, group: &str) -> Result<Outcome> {
    let clock = Instant::now();
    if args.skip_damaged == Some(SkipDamaged::Keep) {
        // A thick volume holds the data of earlier volumes in its place.
        return Err(Error::Usage(
            "new volumes have no old data to keep; --skip-damaged writes zeros".into(),
        ));
    }
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    let view = context.view_to_read()?;
    let catalogue = view.catalogue()?;
    warn_of_foreign_changes(&catalogue);
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let mut backup = entry.backup.clone();
    if let Some(disk) = &args.backup.disk {
        backup.image(disk)?;
        backup = backup.only(disk)?.into();
    }
    let programs = machine::programs();
    let restore = GuestRestore {
        store: view.store_to_scan(),
        backup: &backup,
        guest: args.as_guest.as_ref().unwrap_or(&backup.guest),
        group,
        pool: args.thin_pool.as_deref(),
        devices: "/dev".into(),
        define: args.define,
        damaged: damage_mode(args),
        threads: threads(),
        programs: &programs,
    };
    let plan = restore.plan()?;
    if plan.becomes_thick {
        context.say("disks that were thin volumes become thick ones; --thin-pool creates thin ones");
    }
    for remark in &plan.remarks {
        tracing::warn!("{remark}");
    }
    if args.dry_run {
        return dry_run(context, &restore, &plan);
    }
    let progress = Progress::new(context.quiet(), backup.size_bytes(), Words::Plain);
    let restored = plan.run(&cancel, &progress);
    progress.finish();
    let restored = restored?;
    let took = clock.elapsed();
    let outcome = say_restored(context, &backup, &plan, &restored);
    context.say(format_args!("{} restored in {}", restore.guest, units::duration(took)));
    if let Some(domain) = &plan.domain {
        finish_domain(context, &restore, &plan, domain)?;
    }
    context.json_result(&GuestJson::new(&restore, &plan, &restored, took))?;
    Ok(match plan.remarks.len() as u64 + progress.warnings() {
        1.. if outcome == Outcome::Done => Outcome::Warnings,
        _ => outcome,
    })
}

/// Describes the volumes that would be made, and whether they could be.
fn dry_run(context: &Context<'_>, restore: &GuestRestore<'_>, plan: &RestorePlan<'_>) -> Result<Outcome> {
    let refused = plan.volumes.check(restore.programs).err();
    let refused = refused.map(|error| vbk::Error::from(error).to_string());
    let images = restore.backup.images.iter().zip(&plan.volumes.volumes);
    let volumes = images.map(|(image, volume)| NewVolumeJson {
        disk: image.disk.as_str(),
        volume: &volume.name,
        path: plan.volumes.path_of(volume),
        size_bytes: image.size_bytes,
        data_bytes: image.data_bytes,
    });
    let volumes: Vec<_> = volumes.collect();
    for volume in &volumes {
        context.say(format_args!(
            "{}/{}: {} ({} of data) would be restored to {}, a new volume; nothing was written",
            restore.backup.spec(),
            volume.disk,
            units::size(volume.size_bytes),
            units::size(volume.data_bytes),
            volume.path.display()
        ));
    }
    let domain = plan.domain.as_ref();
    match (domain, restore.define) {
        (Some(domain), true) => context.say(format_args!("domain {} would be defined", domain.name)),
        (Some(domain), false) => context.say(format_args!("the XML of domain {} would be printed", domain.name)),
        (None, _) => {}
    }
    if let Some(why) = &refused {
        context.say(format_args!("this restore would be refused: {why}"));
    }
    let outcome = match (&refused, plan.remarks.is_empty()) {
        (Some(_), _) => Outcome::Failed,
        (None, false) => Outcome::Warnings,
        (None, true) => Outcome::Done,
    };
    context.json_result(&DryRunJson {
        backup: restore.backup.spec(),
        guest: restore.guest.as_str(),
        dry_run: true,
        volumes,
        domain: domain.map(|domain| domain.xml.as_str()),
        refused,
    })?;
    Ok(outcome)
}

/// Prints the restored disks, and the ranges that could not be read back.
fn say_restored(context: &Context<'_>, backup: &Backup, plan: &RestorePlan<'_>, restored: &RestoredGuest) -> Outcome {
    for (image, volume) in backup.images.iter().zip(&plan.volumes.volumes) {
        context.say(format_args!(
            "{}/{}: {} ({} of data) restored to {}",
            backup.spec(),
            image.disk,
            units::size(image.size_bytes),
            units::size(image.data_bytes),
            plan.volumes.path_of(volume).display()
        ));
    }
    let mut outcome = Outcome::Done;
    for (image, disk) in backup.images.iter().zip(&restored.disks) {
        let label = format!("{}/{}", backup.spec(), image.disk);
        if print_damaged(&label, &disk.damaged, "they are zeros") == Outcome::Damage {
            outcome = Outcome::Damage;
        }
    }
    outcome
}

/// Defines the domain, or prints it.
fn finish_domain(
    context: &Context<'_>,
    restore: &GuestRestore<'_>,
    plan: &RestorePlan<'_>,
    domain: &RestoredDomain,
) -> Result<()> {
    if restore.define {
        let defined = plan.define(&std::env::temp_dir()).inspect_err(|_| {
            let guest = restore.guest;
            tracing::error!("the disks of {guest} are restored and stay, but its domain could not be defined");
            context.print(&domain.xml);
        });
        defined?;
        let name = &domain.name;
        context.say(format_args!("domain {name} defined; `virsh start {name}` starts it"));
        return Ok(());
    }
    if let Some((path, _)) = &domain.nvram {
        context.say(format_args!(
            "the domain below has UEFI variables: `vbk show {} --file {NVRAM_NAME} > {}` writes them",
            restore.backup.spec(),
            path.display()
        ));
    }
    context.print(&domain.xml);
    if !domain.xml.ends_with('\n') {
        context.print("\n");
    }
    Ok(())
}

impl<'a> GuestJson<'a> {
    fn new(restore: &'a GuestRestore<'a>, plan: &'a RestorePlan<'a>, restored: &RestoredGuest, took: Duration) -> Self {
        let images = restore.backup.images.iter().zip(&plan.volumes.volumes);
        let volumes = images.zip(&restored.disks).map(|((image, volume), disk)| VolumeJson {
            disk: image.disk.as_str(),
            volume: &volume.name,
            path: plan.volumes.path_of(volume),
            size_bytes: image.size_bytes,
            damaged: ranges_json(&disk.damaged),
        });
        Self {
            backup: restore.backup.spec(),
            guest: restore.guest.as_str(),
            volumes: volumes.collect(),
            domain: plan.domain.as_ref().map(|domain| domain.xml.as_str()),
            defined: restore.define,
            duration_ms: units::milliseconds(took),
        }
    }
}
