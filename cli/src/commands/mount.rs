//! `vbk mount`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use vbk_fuse::Fsid;
use vbk_fuse::files::FilesPlan;
use vbk_fuse::session::{Session, SessionOptions};
use vbk_fuse::tree::ImageFs;
use vbk_fuse::volumes::{self, Access, Outcome as Volume, VolumeReport, WhenBusy};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::keys;
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::Repository;

use crate::args::MountArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::leftover_mounts::clean_leftovers;
use crate::machine;
use crate::terminal::units;
use crate::warnings::{warn_of_clock, warn_of_clocks};

mod daemon;

/// Largest number of threads. More than processors, because requests that wait for a disk leave those idle.
const MAX_THREADS: usize = 8;

#[derive(Serialize)]
struct Report {
    mount_point: PathBuf,
    pid: u32,
    log: Option<PathBuf>,
    warnings: Vec<String>,
    volumes: Vec<VolumeJson>,
}

#[derive(Serialize)]
struct VolumeJson {
    name: PathBuf,
    fs: Option<String>,
    mounted: bool,
    options: Option<String>,
    warning: Option<String>,
    reason: Option<String>,
    /// Path of the guest's root in the mount, if it is not at the top.
    root: Option<PathBuf>,
}

/// Mounts, and serves in the background or until it is unmounted.
pub fn run(context: &Context<'_>, args: &MountArgs) -> Result<Outcome> {
    if args.files.is_none() && args.what.contains('@') && !Path::new(&args.what).exists() {
        return Err(Error::Usage(format!(
            "to mount the file systems of one backup, give a directory: vbk mount {} --files DIR",
            args.what
        )));
    }
    match &args.files {
        Some(dir) => mount_files(context, args, dir),
        None if args.foreground || machine::is_background() => serve_images(context, args),
        None => {
            let repository = context.repository()?;
            // Compares the repository with the memory of this host; the process in the background does not.
            drop(context.view_of(&repository)?);
            let key = exported_key(&repository)?;
            let key = key.as_ref().map(|key| key.as_str());
            Ok(daemon::start(std::env::args_os().skip(1), key)?.outcome)
        }
    }
}

/// Returns the key that opens the repository for a process in the background.
fn exported_key(repository: &Repository) -> Result<Option<zeroize::Zeroizing<String>>> {
    let Some(keys) = repository.keys() else {
        return Ok(None);
    };
    Ok(Some(keys::export(keys, &repository.view()?.identity().id)))
}

/// Serves images from this process until they are unmounted.
fn serve_images(context: &Context<'_>, args: &MountArgs) -> Result<Outcome> {
    daemon::begin();
    let dir = Path::new(&args.what);
    // From here on a signal waits until there is a mount to take down.
    let signals = catch_signals()?;
    volumes::check_mount_point(dir)?;
    volumes::check_fuse()?;
    let point = absolute(dir)?;
    let repository = context.repository()?;
    let path = repository.path().display().to_string();
    let catalogue = context.view_of(&repository)?.catalogue()?;
    let only = match &args.only {
        Some(spec) => {
            let entry = catalogue.find(spec)?;
            warn_of_clock(&catalogue, spec, entry);
            Some(entry.id)
        }
        None => {
            warn_of_clocks(&catalogue);
            None
        }
    };
    let tree = ImageFs::open(repository, only, ReadResources::new(threads()))?.with_fsids(args.fsid.clone());
    let options = SessionOptions {
        allow_other: args.allow_other,
        threads: (2 * threads()).clamp(4, MAX_THREADS),
    };
    let session = Session::mount(Arc::new(tree), &point, options)?;
    let shown = point.display();
    context.say(format_args!(
        "showing {} of {} in {path} at {shown}; `vbk umount {shown}` unmounts it",
        units::count(catalogue.entries().len() as u64, "backup"),
        units::count(catalogue.guests().len() as u64, "guest"),
    ));
    context.json_result(&Report {
        mount_point: point.clone(),
        pid: std::process::id(),
        log: daemon::log(),
        warnings: Vec::new(),
        volumes: Vec::new(),
    })?;
    if let Err(error) = daemon::ready(Outcome::Done) {
        volumes::unmount(&point, WhenBusy::Detach)?;
        return Err(error);
    }
    let watcher = take_down_on_signal(signals, move || {
        let shown = volumes::files_mounted_from(&point).ok().flatten();
        umount_elsewhere(shown.as_deref().unwrap_or(&point));
    })?;
    session.wait();
    watcher.end();
    daemon::end();
    Ok(Outcome::Done)
}

/// Runs `vbk umount`: a process that serves a mount must not wait for it (see `vbk_fuse::files`).
fn umount_elsewhere(point: &Path) {
    let umount = |lazy: &[&str]| {
        let program = std::env::current_exe()?;
        let arguments = [OsStr::new("--quiet"), OsStr::new("umount"), point.as_os_str()];
        Command::new(program).args(arguments).args(lazy).status()
    };
    // After a signal the mount goes even if it is in use: programs keep their open files until they end.
    if !umount(&[]).is_ok_and(|status| status.success())
        && let Err(error) = umount(&["--lazy"])
    {
        tracing::error!("can't run `vbk umount {}`: {error}", point.display());
    }
}

/// Mounts the file systems of a backup, from images that another process serves.
fn mount_files(context: &Context<'_>, args: &MountArgs, dir: &Path) -> Result<Outcome> {
    let spec: BackupSpec = args.what.parse()?;
    let mut signals = catch_signals()?;
    let repository = context.repository()?;
    let view = context.view_of(&repository)?;
    let catalogue = view.catalogue()?;
    let entry = catalogue.find(&spec)?;
    warn_of_clock(&catalogue, &spec, entry);
    let images = match &spec.disk {
        Some(disk) => vec![entry.backup.image(disk)?],
        None => entry.backup.images.iter().collect(),
    };
    clean_leftovers();
    let access = if args.allow_other {
        Access::Everyone
    } else {
        Access::Owner
    };
    let resources = ReadResources::new(1);
    let plan = FilesPlan::new(&view, &resources, entry, &images, (dir, access), &random_fsid)?;
    let point = absolute(dir)?;
    let key = exported_key(&repository)?;
    let key = key.as_ref().map(|key| key.as_str());
    let mut server = daemon::start(server_arguments(&repository, &plan, &entry.id.to_string()), key)?;
    let warnings = plan.warnings().to_vec();
    let volumes = plan.mount()?;
    let outcome = tell(context, &entry.backup.spec(), &point, &warnings, &volumes);
    context.json_result(&Report {
        mount_point: point.clone(),
        pid: server.child.id(),
        log: Some(server.log),
        warnings,
        volumes: volumes.iter().map(VolumeJson::new).collect(),
    })?;
    if outcome != Outcome::Failed && signals.pending().next().is_some() {
        volumes::unmount(&point, WhenBusy::Detach)?;
        return Err(vbk_repo::Error::Interrupted.into());
    }
    if !args.foreground || outcome == Outcome::Failed {
        return Ok(outcome);
    }
    let watcher = take_down_on_signal(signals, move || {
        if let Err(error) = volumes::unmount(&point, WhenBusy::Fail) {
            tracing::warn!("{error}");
            if let Err(error) = volumes::unmount(&point, WhenBusy::Detach) {
                tracing::error!("{error}");
            }
        }
    })?;
    // The server ends when its mount is gone, whoever took it down.
    let ended = server.child.wait();
    watcher.end();
    ended.map_err(Error::io("wait for the mount to end"))?;
    Ok(outcome)
}

/// The command line of the process that serves the images of a backup.
fn server_arguments(repository: &Repository, plan: &FilesPlan, id: &str) -> Vec<OsString> {
    let arguments = [
        OsStr::new("--quiet"),
        OsStr::new("--repo"),
        repository.path().as_os_str(),
        OsStr::new("mount"),
        plan.hidden().as_os_str(),
        OsStr::new("--only"),
        OsStr::new(id),
    ];
    let fsids = plan.fsids().iter().map(|new| OsString::from(format!("--fsid={new}")));
    arguments.map(OsStr::to_owned).into_iter().chain(fsids).collect()
}

/// Returns a random file system identity from the kernel's generator.
fn random_fsid() -> std::io::Result<Fsid> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    uuid.trim().parse().map_err(std::io::Error::other)
}

/// Prints the result for each volume.
fn tell(context: &Context<'_>, backup: &str, point: &Path, warnings: &[String], volumes: &[VolumeReport]) -> Outcome {
    for warning in warnings {
        tracing::warn!("{backup}/{warning}");
    }
    let mut doubts = warnings.len();
    let mut good = 0;
    let mut left_out = Vec::new();
    for volume in volumes {
        // Joining an empty name would end the path with a slash.
        let place: PathBuf = point.components().chain(volume.name.components()).collect();
        let (place, fs) = (place.display(), volume.fs.as_deref().unwrap_or_default());
        match &volume.outcome {
            Volume::Mounted { warning, root, .. } => {
                good += 1;
                match root {
                    Some(root) => context.say(format_args!(
                        "{place}  {fs}; the guest's root is {place}/{}",
                        root.display()
                    )),
                    None => context.say(format_args!("{place}  {fs}")),
                }
                if let Some(warning) = warning {
                    doubts += 1;
                    tracing::warn!("{place}: {warning}");
                }
            }
            Volume::Skipped { reason, may_hold_files } => {
                // Skipped swap needs no attention; a skipped volume that may hold files does.
                doubts += usize::from(*may_hold_files);
                if *may_hold_files && volume.fs.is_none() {
                    left_out.push(format!("{place} ({reason})"));
                }
                context.say(format_args!("{place}  not mounted: {reason}"));
            }
        }
    }
    if !left_out.is_empty() {
        tracing::warn!(
            "left out, although they may hold files: {}; `guestmount --ro -a DISK.img -i DIR` (package guestmount; an -a for each \
             disk) reads LVM, RAID and LUKS from the images that `vbk mount DIR` shows",
            left_out.join(", ")
        );
    }
    if good == 0 {
        tracing::error!("{backup} has no file system that can be mounted; `vbk mount DIR` shows its disks as images");
        return Outcome::Failed;
    }
    let shown = point.display();
    context.say(format_args!("`vbk umount {shown}` unmounts it"));
    match doubts {
        0 => Outcome::Done,
        _ => Outcome::Warnings,
    }
}

fn catch_signals() -> Result<Signals> {
    Signals::new([SIGINT, SIGTERM]).map_err(Error::io("watch for signals"))
}

/// Thread that waits for a signal during the work.
struct Watcher {
    handle: Handle,
    thread: JoinHandle<()>,
}

fn take_down_on_signal(mut signals: Signals, take_down: impl FnOnce() + Send + 'static) -> Result<Watcher> {
    let handle = signals.handle();
    let thread = std::thread::Builder::new().name("vbk-signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            take_down();
        }
    });
    let thread = thread.map_err(Error::io("start a thread"))?;
    Ok(Watcher { handle, thread })
}

impl Watcher {
    fn end(self) {
        self.handle.close();
        // A panic in the thread was reported by the thread.
        let _ = self.thread.join();
    }
}

impl VolumeJson {
    fn new(report: &VolumeReport) -> Self {
        let (mut options, mut warning, mut reason, mut root) = (None, None, None, None);
        let mounted = match report.outcome.clone() {
            Volume::Mounted {
                options: used,
                warning: doubt,
                root: guest_root,
            } => {
                (options, warning, root) = (Some(used), doubt, guest_root);
                true
            }
            Volume::Skipped { reason: why, .. } => {
                reason = Some(why);
                false
            }
        };
        Self {
            name: report.name.clone(),
            fs: report.fs.clone(),
            mounted,
            options,
            warning,
            reason,
            root,
        }
    }
}

fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(Error::io(format!("find the absolute path of {}", dir.display())))
}
