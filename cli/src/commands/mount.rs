//! `vbk mount`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use vbk_fuse::contents;
use vbk_fuse::files::{self, FilesOptions, FilesPlan};
use vbk_fuse::scratch::{self, NewName, ScratchFile};
use vbk_fuse::session::{self, Session, SessionOptions};
use vbk_fuse::tree::{ImageFs, TreeOptions};
use vbk_fuse::volumes::{self, Access, WhenBusy};
use vbk_fuse::{Fsid, Way};
use vbk_inside::volumes::Secrets;
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::keys;
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::{Repository, View};

use crate::args::MountArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::handover::Handover;
use crate::leftover_mounts::clean_leftovers;
use crate::machine;
use crate::notify::Notifier;
use crate::secrets;
use crate::servers::{Record, Server, Servers};
use crate::terminal::units;
use crate::token_file;
use crate::warnings::{warn_of_clock, warn_of_clocks};

mod daemon;
mod report;
mod user;

use report::{Report, VolumeJson, tell};

/// Directory for scratch files: on a disk, and not in memory as /run.
const SCRATCH_DIRECTORY: &str = "/var/tmp";
/// Largest number of threads. More than processors, because requests that wait for a disk leave those idle.
const MAX_THREADS: usize = 8;
/// Time for which programs keep the files that they have open when a signal ends a read-only mount in the foreground. A unit of
/// systemd must stop in time.
const GRACE: Duration = Duration::from_secs(10);

/// Mounts, and serves in the background or until it is unmounted.
pub fn run(context: &Context<'_>, args: &MountArgs) -> Result<Outcome> {
    let names_backup = args.what.contains('@') && !Path::new(&args.what).exists();
    if args.files.is_none() && args.dir.is_none() && names_backup {
        return Err(Error::Usage(format!(
            "to mount one backup, give a directory: vbk mount {0} --files DIR for its files, vbk mount {0} DIR for its images",
            args.what
        )));
    }
    if args.files.is_none() && args.dir.is_none() && (args.writable || args.scratch_size.is_some()) {
        return Err(Error::Usage(
            "only one backup can be mounted writable: vbk mount BACKUP DIR --writable".into(),
        ));
    }
    match &args.files {
        Some(dir) if args.user || is_safe(context, args)? => user::run(context, args, dir),
        Some(dir) => mount_files(context, args, dir),
        None if args.foreground || machine::is_background() => serve_images(context, args),
        None => {
            let repository = context.repository()?;
            // Compares the repository with the memory of this host; the process in the background does not.
            let view = context.view_to_read_of(&repository)?;
            let secrets = secrets::find(&args.luks)?;
            if args.dir.is_some() {
                ask_for_passphrases(&view, args, &secrets)?;
            }
            let handover = handover(&repository, &secrets)?;
            Ok(daemon::start(std::env::args_os().skip(1), &handover)?.outcome)
        }
    }
}

/// Returns whether the configuration keeps guests' file systems away from the kernel. What only the kernel can do is then
/// refused.
fn is_safe(context: &Context<'_>, args: &MountArgs) -> Result<bool> {
    let is_safe = context.config()?.safe_mounts;
    if is_safe && (args.writable || args.no_replay) {
        return Err(Error::Usage(
            "safe-mounts = true in the configuration keeps guests' file systems away from the kernel, so they can only be \
             mounted with --user; `vbk mount BACKUP DIR` shows the images"
                .into(),
        ));
    }
    Ok(is_safe)
}

/// Asks for the passphrases of the encrypted volumes in a backup, because the process in the background can't.
fn ask_for_passphrases(view: &View, args: &MountArgs, secrets: &Secrets) -> Result<()> {
    let spec: BackupSpec = args.what.parse()?;
    let catalogue = view.catalogue()?;
    let entry = catalogue.find(&spec)?;
    contents::ask(view, &ReadResources::new(1), entry, spec.disk.as_deref(), secrets)?;
    Ok(())
}

/// Returns the secrets for a process in the background: the key that opens the repository, and the passphrases.
fn handover(repository: &Repository, secrets: &Secrets) -> Result<Handover> {
    let key = match repository.keys() {
        Some(keys) => Some(keys::export(keys, &repository.view()?.identity().id)),
        None => None,
    };
    let passphrases = secrets.passphrases();
    Ok(Handover {
        key,
        token: token_file::used(),
        passphrases,
    })
}

/// Serves images from this process until they are unmounted.
fn serve_images(context: &Context<'_>, args: &MountArgs) -> Result<Outcome> {
    daemon::begin();
    let is_writable = args.writable || args.scratch;
    if is_writable {
        // Before the first thread starts.
        scratch::enter_writeback();
    }
    // First: it is released last.
    let mut record = Record::create()?;
    let dir = args.dir.as_deref().unwrap_or(Path::new(&args.what));
    // From here on a signal waits until there is a mount to take down.
    let signals = catch_signals()?;
    volumes::check_mount_point(dir)?;
    volumes::check_fuse()?;
    let point = absolute(dir)?;
    // Released after the mount is gone.
    let hidden = args.shown_at.as_ref().map(|_| files::Served::take(&point)).transpose();
    let hidden = hidden.map_err(Error::io(format!("lock {}", point.display())))?;
    let repository = context.repository()?;
    let path = repository.path().display().to_string();
    let view = context.view_to_read_of(&repository)?;
    let catalogue = view.catalogue()?;
    let secrets = secrets::find(&args.luks)?;
    if args.dir.is_some() && !machine::is_background() {
        ask_for_passphrases(&view, args, &secrets)?;
    }
    let mut options = TreeOptions {
        flat: args.dir.is_some(),
        fsids: args.fsid.clone(),
        // Nobody is asked while a program waits for the mount.
        secrets: Secrets::new(secrets.passphrases()),
        ..TreeOptions::default()
    };
    let mut new_file = None;
    let mut only = None;
    let shown = match &args.dir {
        Some(_) => {
            let spec: BackupSpec = args.what.parse()?;
            let entry = catalogue.find(&spec)?;
            warn_of_clock(&catalogue, &spec, entry);
            options.only = Some(entry.id);
            if is_writable {
                let (scratch, name) = scratch::create(entry, &scratch_file(args)?, args.scratch_size)?;
                options.scratch = Some(Arc::new(scratch));
                new_file = Some(name);
            }
            only = Some(&entry.backup);
            entry.backup.spec()
        }
        None => {
            warn_of_clocks(&catalogue);
            format!(
                "{} of {}",
                units::count(catalogue.entries().len() as u64, "backup"),
                units::count(catalogue.guests().len() as u64, "guest"),
            )
        }
    };
    let tree = ImageFs::new(
        repository.clone(),
        (view, &catalogue),
        options,
        ReadResources::new(threads()),
    );
    let tree = Arc::new(tree);
    tree.write_fsids()?;
    let options = SessionOptions {
        allow_other: args.allow_other,
        threads: (2 * threads()).clamp(4, MAX_THREADS),
    };
    let session = Session::mount(Arc::clone(&tree), &point, options)?;
    let begun = record.begin(
        (&point, args.shown_at.as_deref()),
        &repository,
        only.map(|backup| &**backup),
        new_file.as_ref().and_then(NewName::file),
    );
    let at = point.display();
    let writable = if args.writable { ", writable" } else { "" };
    context.say(format_args!(
        "showing {shown} in {path} at {at}{writable}; `vbk umount {at}` unmounts it"
    ));
    context.json_result(&Report {
        mount_point: point.clone(),
        pid: std::process::id(),
        log: daemon::log(),
        warnings: Vec::new(),
        volumes: Vec::new(),
    })?;
    if let Err(error) = begun.and_then(|()| daemon::ready(Outcome::Done)) {
        volumes::unmount(&point, WhenBusy::Detach)?;
        return Err(error);
    }
    let notifier = args.foreground.then(Notifier::from_environment);
    notifier.iter().for_each(|notifier| notifier.ready());
    if let Some(name) = new_file {
        name.keep();
    }
    // The tree changes its view for newer ones, and its backups.
    drop(catalogue);
    let is_limited = args.foreground && !is_writable;
    let shown_at = point.clone();
    let watcher = serve_until_gone(&session, signals, &point, is_limited, move || {
        let shown = volumes::files_mounted_from(&shown_at).ok().flatten();
        umount_elsewhere(shown.as_deref().unwrap_or(&shown_at));
    })?;
    notifier.iter().for_each(|notifier| notifier.stopping());
    let finished = tree.finish();
    let written_bytes = tree.written_bytes();
    drop((session, tree, hidden));
    record.end(context, written_bytes, finished)?;
    watcher.end();
    daemon::end();
    Ok(Outcome::Done)
}

fn scratch_file(args: &MountArgs) -> Result<ScratchFile> {
    Ok(match &args.save {
        // Also for people who read of it later, elsewhere.
        Some(path) => ScratchFile::Kept(absolute(path)?),
        None => ScratchFile::Temporary(SCRATCH_DIRECTORY.into()),
    })
}

/// Runs `vbk umount`: a process that serves a mount must not wait for it (see `vbk_fuse::files`). That run must not wait
/// for this process.
fn umount_elsewhere(point: &Path) {
    let umount = |lazy: &[&str]| {
        let program = std::env::current_exe()?;
        let arguments = ["--quiet", "umount", "--no-wait"].map(OsStr::new);
        Command::new(program).args(arguments).args(lazy).arg(point).status()
    };
    // After a signal the mount goes even if it is in use: programs keep their open files until they end.
    if !umount(&[]).is_ok_and(|status| status.success())
        && let Err(error) = umount(&["--lazy"])
    {
        tracing::error!("can't run `vbk umount {}`: {error}", point.display());
    }
}

/// Serves a mount until it is gone, whoever takes it down. After a signal `take_down` does; if `is_limited`, programs that still use
/// it by then have [`GRACE`].
fn serve_until_gone(
    session: &Session,
    signals: Signals,
    point: &Path,
    is_limited: bool,
    take_down: impl FnOnce() + Send + 'static,
) -> Result<Watcher> {
    let point = volumes::mount_point(point)?;
    // After it was detached, only its number is left.
    let device = volumes::device_at(&point)?.filter(|_| is_limited);
    let (serving, served) = channel();
    let watcher = take_down_on_signal(signals, move || {
        take_down();
        if let Some(device) = device {
            end_in_time(&point, device, &served);
        }
    })?;
    session.wait();
    drop(serving);
    Ok(watcher)
}

/// Ends a mount that was taken down but is still in use after [`GRACE`]. `served` closes when it has ended by itself.
fn end_in_time(point: &Path, device: (u32, u32), served: &Receiver<()>) {
    if served.recv_timeout(GRACE) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let point = point.display();
    tracing::warn!(
        "{point} is still in use {} s after it was detached: open files fail from now on",
        GRACE.as_secs()
    );
    if let Err(error) = session::abort(device) {
        tracing::error!("can't end the mount at {point}: {error}");
    }
}

/// Mounts the file systems of a backup, from images that another process serves.
fn mount_files(context: &Context<'_>, args: &MountArgs, dir: &Path) -> Result<Outcome> {
    let spec: BackupSpec = args.what.parse()?;
    let mut signals = catch_signals()?;
    let repository = context.repository()?;
    let view = context.view_to_read_of(&repository)?;
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
    let secrets = secrets::find(&args.luks)?;
    let options = FilesOptions {
        dir,
        access,
        way: match (args.writable, args.no_replay) {
            (true, _) => Way::Writable,
            (false, false) => Way::Replayed,
            (false, true) => Way::AsItIs,
        },
        secrets: &secrets,
    };
    let plan = FilesPlan::new(&view, &resources, entry, &images, &options, &random_fsid)?;
    let point = absolute(dir)?;
    let handover = handover(&repository, &secrets)?;
    let mut arguments = context.way_options().to_vec();
    arguments.extend(server_arguments(args, &repository, &plan, &entry.id.to_string())?);
    let mut server = daemon::start(arguments, &handover)?;
    let servers = Servers::read();
    let served = servers.process(server.child.id());
    let discard = || served.into_iter().for_each(Server::discard);
    let warnings = plan.warnings().to_vec();
    let volumes = plan.mount().inspect_err(|_| discard())?;
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
        discard();
        return Err(vbk_repo::Error::Interrupted.into());
    }
    if outcome == Outcome::Failed {
        discard();
    }
    if !args.foreground || outcome == Outcome::Failed {
        return Ok(outcome);
    }
    let notifier = Notifier::from_environment();
    notifier.ready();
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
    notifier.stopping();
    watcher.end();
    ended.map_err(Error::io("wait for the mount to end"))?;
    match served {
        Some(served) => Ok(outcome.worse(served.conclude(context)?)),
        None => Ok(outcome),
    }
}

/// Returns the command line of the process that serves the images of a backup.
fn server_arguments(args: &MountArgs, repository: &Repository, plan: &FilesPlan, id: &str) -> Result<Vec<OsString>> {
    let shown_at = absolute(&args.files.clone().unwrap_or_default())?;
    let arguments = [
        OsStr::new("--quiet"),
        OsStr::new("--repo"),
        repository.path().as_os_str(),
        OsStr::new("mount"),
        OsStr::new(id),
        plan.hidden().as_os_str(),
        OsStr::new("--shown-at"),
        shown_at.as_os_str(),
    ];
    let mut arguments: Vec<_> = arguments.map(OsStr::to_owned).into();
    arguments.extend(plan.fsids().iter().map(|new| OsString::from(format!("--fsid={new}"))));
    arguments.extend(
        args.scratch_size
            .map(|size| OsString::from(format!("--scratch-size={size}B"))),
    );
    if args.writable {
        arguments.push("--writable".into());
    } else if plan.needs_scratch() {
        arguments.push("--scratch".into());
    }
    if let Some(path) = &args.save {
        arguments.extend(["--save".into(), absolute(path)?.into_os_string()]);
    }
    Ok(arguments)
}

/// Returns a random file system identity from the kernel's generator.
fn random_fsid() -> std::io::Result<Fsid> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    uuid.trim().parse().map_err(std::io::Error::other)
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

fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(Error::io(format!("find the absolute path of {}", dir.display())))
}
