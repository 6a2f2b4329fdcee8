//! `vbk mount --files --user`: the files inside a backup through FUSE, read in user space.

use std::path::Path;
use std::sync::Arc;

use vbk_fuse::contents;
use vbk_fuse::file_tree::FileFs;
use vbk_fuse::session::{Session, SessionOptions};
use vbk_fuse::volumes::{self, WhenBusy};
use vbk_inside::guest::{Guest, compose};
use vbk_inside::volumes::{NamedTree, Trees};
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::reader::ReadResources;

use super::report::{Report, VolumeJson};
use super::{MAX_THREADS, absolute, catch_signals, daemon, handover, serve_until_gone, umount_elsewhere};
use crate::args::MountArgs;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::notify::Notifier;
use crate::secrets;
use crate::servers::Record;
use crate::warnings::warn_of_clock;

/// Mounts, and serves in the background or until it is unmounted.
pub fn run(context: &Context<'_>, args: &MountArgs, dir: &Path) -> Result<Outcome> {
    if args.foreground || machine::is_background() {
        return serve(context, args, dir);
    }
    let repository = context.repository()?;
    // Compares the repository with the memory of this host, and asks for passphrases; the process in the background does
    // neither.
    let view = context.view_to_read_of(&repository)?;
    let secrets = secrets::find(&args.luks)?;
    super::ask_for_passphrases(&view, args, &secrets)?;
    let handover = handover(&repository, &secrets)?;
    Ok(daemon::start(std::env::args_os().skip(1), &handover)?.outcome)
}

fn serve(context: &Context<'_>, args: &MountArgs, dir: &Path) -> Result<Outcome> {
    daemon::begin();
    // First: it is released last.
    let mut record = Record::create()?;
    let signals = catch_signals()?;
    volumes::check_mount_point(dir)?;
    volumes::check_fuse()?;
    let point = absolute(dir)?;
    let spec: BackupSpec = args.what.parse()?;
    let repository = context.repository()?;
    let view = context.view_to_read_of(&repository)?;
    let catalogue = view.catalogue()?;
    let entry = catalogue.find(&spec)?;
    warn_of_clock(&catalogue, &spec, entry);
    let secrets = secrets::find(&args.luks)?;
    let resources = ReadResources::new(threads());
    let trees = contents::trees(&view, &resources, entry, spec.disk.as_deref(), &secrets)?;
    if trees.trees.is_empty() {
        return Err(nothing_to_show(entry, &trees));
    }
    let made = entry.backup.time.timestamp();
    let volumes: Vec<_> = trees.trees.iter().map(VolumeJson::of_tree).collect();
    let guest = match args.as_guest {
        true => Some(compose(&trees).map_err(|why| Error::NoRoot(format!("{}: {why}", entry.backup.spec())))?),
        false => None,
    };
    let tree = match &guest {
        Some(guest) => FileFs::of_tree(as_one(guest), made),
        None => FileFs::of_volumes(trees.trees.clone(), made),
    };
    let options = SessionOptions {
        allow_other: args.allow_other,
        threads: (2 * threads()).clamp(4, MAX_THREADS),
    };
    let session = Session::mount_files(Arc::new(tree), resources, &point, options)?;
    let begun = record.begin((&point, None), &repository, Some(&entry.backup), None);
    let outcome = tell(context, &point, &trees, guest.as_ref());
    context.json_result(&Report {
        mount_point: point.clone(),
        pid: std::process::id(),
        log: daemon::log(),
        warnings: trees.warnings,
        volumes,
    })?;
    if let Err(error) = begun.and_then(|()| daemon::ready(outcome)) {
        volumes::unmount(&point, WhenBusy::Detach)?;
        return Err(error);
    }
    let notifier = args.foreground.then(Notifier::from_environment);
    notifier.iter().for_each(|notifier| notifier.ready());
    let shown_at = point.clone();
    let watcher = serve_until_gone(&session, signals, &point, args.foreground, move || {
        umount_elsewhere(&shown_at);
    })?;
    notifier.iter().for_each(|notifier| notifier.stopping());
    record.end(context, 0, Ok::<_, Error>(()))?;
    watcher.end();
    daemon::end();
    Ok(outcome)
}

fn nothing_to_show(entry: &Entry, trees: &Trees) -> Error {
    let reasons = trees
        .left_out
        .iter()
        .map(|(name, reason)| format!("; {name}: {reason}"));
    Error::Usage(format!(
        "{} has no file system that vbk can read in user space{}",
        entry.backup.spec(),
        reasons.collect::<String>()
    ))
}

/// Returns the composed tree of a guest as one volume.
fn as_one(guest: &Guest) -> NamedTree {
    NamedTree {
        name: "guest".to_owned(),
        fs: String::new(),
        size_bytes: 0,
        names: Vec::new(),
        tree: Arc::clone(&guest.tree),
    }
}

/// Returns the place of a volume below the mount point; `None` if it is not shown.
fn place(number: usize, name: &str, guest: Option<&Guest>) -> Option<String> {
    let Some(guest) = guest else {
        return Some(format!("/{name}"));
    };
    let mounted = guest.mounts.iter().find(|mounted| mounted.volume == number)?;
    Some(String::from_utf8_lossy(&mounted.point).into_owned())
}

fn tell(context: &Context<'_>, point: &Path, trees: &Trees, guest: Option<&Guest>) -> Outcome {
    let shown = point.display();
    let mut outcome = match trees.is_incomplete {
        true => Outcome::Warnings,
        false => Outcome::Done,
    };
    for warning in &trees.warnings {
        tracing::warn!("{warning}");
        outcome = Outcome::Warnings;
    }
    for remark in guest.iter().flat_map(|guest| &guest.remarks) {
        tracing::warn!("fstab: {remark}");
        outcome = Outcome::Warnings;
    }
    for (number, volume) in trees.trees.iter().enumerate() {
        let Some(place) = place(number, &volume.name, guest) else {
            context.say(format_args!(
                "{}  not shown: the guest's fstab does not mount it",
                volume.name
            ));
            continue;
        };
        let remarks = volume.tree.remarks().into_iter().map(|remark| format!("; {remark}"));
        context.say(format_args!(
            "{shown}{place}  {}{}",
            volume.fs,
            remarks.collect::<String>()
        ));
    }
    for (name, reason) in &trees.left_out {
        context.say(format_args!("{name}  not shown: {reason}"));
    }
    context.say(format_args!("`vbk umount {shown}` unmounts it"));
    outcome
}
