//! `vbk mounts`

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use vbk_fuse::session::FILES_WITHOUT_KERNEL;
use vbk_fuse::volumes::{self, MountKind, OurMount, WhenBusy};

use crate::args::MountsArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::leftover_mounts::clean_leftovers;
use crate::servers::{Server, Servers};
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report {
    mounts: Vec<MountJson>,
}

#[derive(Serialize)]
struct MountJson {
    mount_point: PathBuf,
    shows: &'static str,
    /// The backup; null for all backups, and for a mount of another user whose record is not found.
    backup: Option<String>,
    repository: Option<PathBuf>,
    since: Option<Timestamp>,
    /// File that keeps what is written.
    save: Option<PathBuf>,
    pid: Option<u32>,
    alive: bool,
}

impl MountJson {
    fn new(mount: OurMount, servers: &Servers) -> Self {
        let alive = !is_dead(&mount, servers);
        let server = servers.serving(mount.served);
        let served = server.map(|server| &server.served);
        let save = served.and_then(|served| served.save.as_ref());
        Self {
            mount_point: mount.point,
            shows: match mount.kind {
                MountKind::Images if mount.source == FILES_WITHOUT_KERNEL => "files",
                MountKind::Images => "images",
                MountKind::Files { .. } => "files",
            },
            backup: served.and_then(|served| served.backup.clone()),
            repository: served.map(|served| served.repository.clone()),
            since: served.map(|served| served.since),
            save: save.map(|file| file.path.clone()),
            pid: server.and_then(Server::pid),
            alive,
        }
    }
}

/// Tests whether the process that serves a mount is gone.
fn is_dead(mount: &OurMount, servers: &Servers) -> bool {
    // The mount of another user does not answer root.
    mount.dead || servers.serving(mount.served).is_some_and(Server::is_gone_of_another)
}

/// Lists vbk's mounts on this machine, after the dead ones were removed if that is wanted.
pub fn run(context: &Context<'_>, args: &MountsArgs) -> Result<Outcome> {
    let outcome = match args.clean {
        true => clean(context)?,
        false => Outcome::Done,
    };
    let servers = Servers::read();
    let mounts: Vec<_> = volumes::list_ours()?
        .into_iter()
        .map(|mount| MountJson::new(mount, &servers))
        .collect();
    let mut table = Table::new(&[
        ("MOUNTED AT", Align::Left),
        ("SHOWS", Align::Left),
        ("OF", Align::Left),
        ("SINCE", Align::Left),
        ("STATE", Align::Left),
    ]);
    for mount in &mounts {
        let state = match mount.alive {
            true => "good",
            false => "its process is gone; run `vbk umount` or `vbk mounts --clean`",
        };
        table.row(vec![
            mount.mount_point.display().to_string(),
            mount.shows.to_owned(),
            match (&mount.backup, &mount.repository) {
                (Some(backup), _) => backup.clone(),
                (None, Some(repository)) => format!("all in {}", repository.display()),
                (None, None) => "-".to_owned(),
            },
            mount.since.map_or("-".to_owned(), units::time),
            state.to_owned(),
        ]);
    }
    if mounts.is_empty() {
        context.say("nothing is mounted");
    } else {
        context.print(table);
    }
    context.json_result(&Report { mounts })?;
    Ok(outcome)
}

/// Unmounts all mounts whose process is gone, and removes leftovers that no mount point leads to.
fn clean(context: &Context<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    let servers = Servers::read();
    for mount in volumes::list_ours()?
        .into_iter()
        .filter(|mount| is_dead(mount, &servers))
    {
        let point = mount.point.display();
        match volumes::unmount(&mount.point, WhenBusy::Detach) {
            Ok(done) => {
                context.say(format_args!("{point} is unmounted: its process was gone"));
                let concluded = servers.serving(done.served).map(|server| server.conclude(context));
                let concluded = concluded.unwrap_or(Ok(Outcome::Done)).unwrap_or_else(|error| {
                    tracing::warn!("{}", error.text());
                    Outcome::Warnings
                });
                outcome = outcome.worse(concluded);
            }
            Err(error) => {
                tracing::warn!("can't unmount {point}: {error}");
                outcome = Outcome::Warnings;
            }
        }
    }
    clean_leftovers();
    Ok(outcome)
}
