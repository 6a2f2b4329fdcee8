//! `vbk umount`

use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk_fuse::MountError;
use vbk_fuse::files::HIDDEN_ROOT;
use vbk_fuse::volumes::{self, WhenBusy};
use vbk_repo::ErrorKind;

use crate::args::UmountArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::leftover_mounts::clean_leftovers;
use crate::servers::{Server, Servers};

#[derive(Serialize)]
struct Report {
    mounts: Vec<Unmounted>,
}

#[derive(Serialize)]
struct Unmounted {
    mount_point: PathBuf,
    detached: bool,
    /// File that keeps what was written.
    saved: Option<PathBuf>,
}

/// Unmounts mounts of vbk, and waits until the processes that served them have closed their files.
pub fn run(context: &Context<'_>, args: &UmountArgs) -> Result<Outcome> {
    if let [dir] = args.dirs.as_slice() {
        let (report, outcome) = umount(context, dir, args)?;
        context.json_result(&Report { mounts: vec![report] })?;
        return Ok(outcome);
    }
    let dirs = match args.all {
        true => all()?,
        false => args.dirs.clone(),
    };
    if dirs.is_empty() {
        context.say("nothing is mounted");
    }
    let mut outcome = Outcome::Done;
    let mut failed = None;
    let mut mounts = Vec::new();
    for dir in &dirs {
        match umount(context, dir, args) {
            Ok((report, one)) => {
                mounts.push(report);
                outcome = outcome.worse(one);
            }
            // Another run took it down after it was listed.
            Err(error) if args.all && error.kind() == ErrorKind::NotFound => {}
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => tracing::error!("{}", error.message()),
        }
    }
    context.json_result(&Report { mounts })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

/// Returns the mount points of this user's mounts, the latest first. Those in vbk's own directory belong to other
/// commands, e.g. to a guest that was booted.
fn all() -> Result<Vec<PathBuf>> {
    let user = nix::unistd::geteuid();
    let mounts = volumes::list_ours()?.into_iter().rev();
    let is_own = |mount: &volumes::OurMount| {
        let of_user = mount.served.and_then(|served| served.user);
        !mount.point.starts_with(HIDDEN_ROOT) && (user.is_root() || of_user == Some(user.as_raw()))
    };
    Ok(mounts.filter(is_own).map(|mount| mount.point).collect())
}

fn umount(context: &Context<'_>, dir: &Path, args: &UmountArgs) -> Result<(Unmounted, Outcome)> {
    let when_busy = match args.lazy {
        true => WhenBusy::Detach,
        false => WhenBusy::Fail,
    };
    let servers = Servers::read();
    let done = match volumes::unmount(dir, when_busy) {
        Err(error @ MountError::NotMounted { .. }) => return after_another(context, dir, &servers, error),
        done => done?,
    };
    clean_leftovers();
    let point = done.point.display();
    let server = servers.serving(done.served).filter(|_| !args.no_wait);
    match done.detached {
        true => context.say(format_args!(
            "{point} is detached; files that programs still have open go when they end"
        )),
        false => context.say(format_args!("{point} is unmounted")),
    }
    let saved = server.and_then(Server::saved);
    let outcome = match server {
        Some(server) if !done.detached => server.conclude(context)?,
        _ => Outcome::Done,
    };
    if let Some(file) = saved.as_ref().filter(|_| done.detached) {
        let file = file.display();
        context.say(format_args!(
            "{file} is complete when they have ended; `vbk umount {point}` waits for that"
        ));
    }
    let report = Unmounted {
        mount_point: done.point.clone(),
        detached: done.detached,
        saved,
    };
    Ok((report, outcome))
}

/// Reports the end of a mount that another program took down, or that was detached before.
fn after_another(
    context: &Context<'_>,
    dir: &Path,
    servers: &Servers,
    error: MountError,
) -> Result<(Unmounted, Outcome)> {
    // Without its file systems, a mount of files leaves its images mounted.
    clean_leftovers();
    let point = volumes::mount_point(dir)?;
    let server = servers.at(&point).filter(|server| server.has_news());
    let server = server.ok_or(Error::from(error))?;
    context.say(format_args!("{} is unmounted already", point.display()));
    let outcome = server.conclude(context)?;
    let report = Unmounted {
        mount_point: point,
        detached: false,
        saved: server.saved(),
    };
    Ok((report, outcome))
}
