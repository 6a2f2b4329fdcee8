//! `vbk mount`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vbk_fuse::files::{HIDDEN_ROOT, MountedFiles, mount_files};
use vbk_fuse::session::{Session, SessionOptions};
use vbk_fuse::tree::ImageFs;
use vbk_fuse::volumes::{self, Outcome as Volume, VolumeReport, WhenBusy};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::reader::ReadResources;

use crate::args::MountArgs;
use crate::context::{Context, threads};
use crate::daemon;
use crate::exit::{Error, Outcome, Result};
use crate::units;

/// Requests that wait for a disk leave the processors idle, so there are more than of those.
const MAX_THREADS: usize = 8;

#[derive(Serialize)]
struct Report {
    mount_point: PathBuf,
    pid: u32,
    log: Option<PathBuf>,
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
}

/// Mounts, and serves in the background or until it is unmounted.
pub fn run(context: &Context<'_>, args: &MountArgs) -> Result<Outcome> {
    if !args.foreground && !daemon::is_background() {
        return daemon::start();
    }
    daemon::begin();
    // From here on a signal waits until there is something to take down.
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| Error::Other(error.to_string()))?;
    let (point, session, outcome) = match &args.files {
        Some(dir) => mount_volumes(context, &args.what, dir)?,
        None => mount_images(context, args)?,
    };
    if outcome == Outcome::Failed {
        return Ok(outcome);
    }
    if let Err(error) = daemon::ready(outcome) {
        volumes::unmount(&point, WhenBusy::Detach)?;
        return Err(error);
    }
    let handle = signals.handle();
    let watcher = std::thread::Builder::new().name("vbk-signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            take_down(&point);
        }
    });
    let watcher = watcher.map_err(|error| Error::Other(error.to_string()))?;
    session.wait();
    handle.close();
    // A panic there was reported there.
    let _ = watcher.join();
    daemon::end();
    Ok(outcome)
}

/// After a signal the mount goes whatever uses it: programs keep what they have open until they end.
fn take_down(point: &Path) {
    let busy = match volumes::unmount(point, WhenBusy::Fail) {
        Err(error) => error,
        Ok(_) => return,
    };
    tracing::warn!("{busy}");
    if let Err(error) = volumes::unmount(point, WhenBusy::Detach) {
        tracing::error!("{error}");
    }
}

fn mount_images(context: &Context<'_>, args: &MountArgs) -> Result<(PathBuf, Session, Outcome)> {
    let dir = Path::new(&args.what);
    if args.what.contains('@') && !dir.exists() {
        return Err(Error::Usage(format!(
            "to mount the file systems of one backup give a directory: vbk mount {} --files DIR",
            args.what
        )));
    }
    volumes::check_mount_point(dir)?;
    volumes::check_fuse()?;
    let point = absolute(dir)?;
    let repository = context.repository()?;
    let path = repository.path().display().to_string();
    let catalogue = repository.view()?.catalogue()?;
    let resources = ReadResources::new(threads());
    let tree = ImageFs::open(repository, None, resources)?;
    let options = SessionOptions {
        allow_other: args.allow_other,
        threads: (2 * threads()).clamp(4, MAX_THREADS),
    };
    let session = Session::mount(Arc::new(tree), &point, options)?;
    let shown = point.display();
    context.say(format_args!(
        "{} of {} in {path} are at {shown}; `vbk umount {shown}` takes them down",
        units::count(catalogue.entries().len() as u64, "backup"),
        units::count(catalogue.guests().len() as u64, "guest"),
    ));
    report(context, &point, &[])?;
    Ok((point, session, Outcome::Done))
}

fn mount_volumes(context: &Context<'_>, backup: &str, dir: &Path) -> Result<(PathBuf, Session, Outcome)> {
    let spec: BackupSpec = backup.parse()?;
    let repository = context.repository()?;
    let catalogue = repository.view()?.catalogue()?;
    let entry = catalogue.find(&spec)?;
    let images = match &spec.disk {
        Some(disk) => vec![entry.backup.image(disk)?],
        None => entry.backup.images.iter().collect(),
    };
    clean_leftovers();
    let mounted = mount_files(repository, entry, &images, dir, (2 * threads()).clamp(4, MAX_THREADS))?;
    let MountedFiles {
        session,
        volumes,
        warnings,
    } = mounted;
    let point = absolute(dir)?;
    for warning in &warnings {
        tracing::warn!("{}/{warning}", entry.backup.spec());
    }
    let mut doubts = warnings.len();
    let mut good = 0;
    for volume in &volumes {
        let place = point.join(&volume.name);
        let (place, fs) = (place.display(), volume.fs.as_deref().unwrap_or_default());
        match &volume.outcome {
            Volume::Mounted { warning, .. } => {
                good += 1;
                context.say(format_args!("{place}  {fs}"));
                if let Some(warning) = warning {
                    doubts += 1;
                    tracing::warn!("{place}: {warning}");
                }
            }
            Volume::Skipped { reason } => context.say(format_args!("{place}  not mounted: {reason}")),
        }
    }
    let outcome = match (good, doubts) {
        (0, _) => {
            tracing::error!(
                "there is no file system in {} that can be mounted; `vbk mount DIR` shows its disks as images",
                entry.backup.spec()
            );
            Outcome::Failed
        }
        (_, 0) => Outcome::Done,
        _ => Outcome::Warnings,
    };
    if outcome != Outcome::Failed {
        let shown = point.display();
        context.say(format_args!("`vbk umount {shown}` takes it down"));
    }
    report(context, &point, &volumes)?;
    Ok((point, session, outcome))
}

fn report(context: &Context<'_>, point: &Path, volumes: &[VolumeReport]) -> Result<()> {
    let volume = |report: &VolumeReport| {
        let (mut options, mut warning, mut reason) = (None, None, None);
        let mounted = match report.outcome.clone() {
            Volume::Mounted {
                options: used,
                warning: doubt,
            } => {
                (options, warning) = (Some(used), doubt);
                true
            }
            Volume::Skipped { reason: why } => {
                reason = Some(why);
                false
            }
        };
        VolumeJson {
            name: report.name.clone(),
            fs: report.fs.clone(),
            mounted,
            options,
            warning,
            reason,
        }
    };
    context.json_result(&Report {
        mount_point: point.to_owned(),
        pid: std::process::id(),
        log: daemon::log(),
        volumes: volumes.iter().map(volume).collect(),
    })
}

/// Takes down what killed mounts left and nobody can name any more.
pub fn clean_leftovers() {
    let root = Path::new(HIDDEN_ROOT);
    if !root.exists() || !nix::unistd::geteuid().is_root() {
        return;
    }
    match volumes::clean_leftovers(root, std::time::SystemTime::now()) {
        Ok(cleaned) => {
            for gone in cleaned.mounts.iter().chain(&cleaned.loops) {
                tracing::info!("removed {}, which a killed mount had left", gone.display());
            }
        }
        Err(error) => tracing::warn!("can't remove what killed mounts left: {error}"),
    }
}

fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(|error| Error::Other(format!("{}: {error}", dir.display())))
}
