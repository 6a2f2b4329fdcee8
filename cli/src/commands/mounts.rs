//! `vbk mounts`

use std::path::PathBuf;

use serde::Serialize;
use vbk_fuse::session::FILES_WITHOUT_KERNEL;
use vbk_fuse::volumes::{self, MountKind, WhenBusy};

use crate::args::MountsArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::leftover_mounts::clean_leftovers;
use crate::terminal::table::{Align, Table};

#[derive(Serialize)]
struct MountJson {
    mount_point: PathBuf,
    shows: &'static str,
    alive: bool,
}

/// Lists vbk's mounts on this machine, after the dead ones were removed if that is wanted.
pub fn run(context: &Context<'_>, args: &MountsArgs) -> Result<Outcome> {
    let outcome = match args.clean {
        true => clean(context)?,
        false => Outcome::Done,
    };
    let mounts: Vec<_> = volumes::list_ours()?
        .into_iter()
        .map(|mount| MountJson {
            mount_point: mount.point,
            shows: match mount.kind {
                MountKind::Images if mount.source == FILES_WITHOUT_KERNEL => "files",
                MountKind::Images => "images",
                MountKind::Files { .. } => "files",
            },
            alive: !mount.dead,
        })
        .collect();
    let mut table = Table::new(&[
        ("MOUNTED AT", Align::Left),
        ("SHOWS", Align::Left),
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
            state.to_owned(),
        ]);
    }
    if mounts.is_empty() {
        context.say("nothing is mounted");
    } else {
        context.print(table);
    }
    context.json_result(&mounts)?;
    Ok(outcome)
}

/// Unmounts all mounts whose process is gone, and removes leftovers that no mount point leads to.
fn clean(context: &Context<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    for mount in volumes::list_ours()?.into_iter().filter(|mount| mount.dead) {
        let point = mount.point.display();
        match volumes::unmount(&mount.point, WhenBusy::Detach) {
            Ok(_) => context.say(format_args!("{point} is unmounted: its process was gone")),
            Err(error) => {
                tracing::warn!("can't unmount {point}: {error}");
                outcome = Outcome::Warnings;
            }
        }
    }
    clean_leftovers();
    Ok(outcome)
}
