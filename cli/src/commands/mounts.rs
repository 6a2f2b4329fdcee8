//! `vbk mounts`

use std::path::PathBuf;

use serde::Serialize;
use vbk_fuse::volumes::{self, MountKind};

use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::terminal::table::{Align, Table};

#[derive(Serialize)]
struct MountJson {
    mount_point: PathBuf,
    shows: &'static str,
    alive: bool,
}

/// Lists vbk's mounts on this machine.
pub fn run(context: &Context<'_>) -> Result<Outcome> {
    let mounts: Vec<_> = volumes::list_ours()?
        .into_iter()
        .map(|mount| MountJson {
            mount_point: mount.point,
            shows: match mount.kind {
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
            false => "its process is gone; run `vbk umount`",
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
    Ok(Outcome::Done)
}
