//! `vbk umount`

use std::path::PathBuf;

use serde::Serialize;
use vbk_fuse::volumes::{self, WhenBusy};

use crate::args::UmountArgs;
use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::leftover_mounts::clean_leftovers;

#[derive(Serialize)]
struct Report {
    mount_point: PathBuf,
    detached: bool,
}

/// Unmounts a mount of vbk.
pub fn run(context: &Context<'_>, args: &UmountArgs) -> Result<Outcome> {
    let when_busy = match args.lazy {
        true => WhenBusy::Detach,
        false => WhenBusy::Fail,
    };
    let done = volumes::unmount(&args.dir, when_busy)?;
    clean_leftovers();
    let point = done.point.display();
    context.say(match done.detached {
        true => format!("{point} is detached; files that programs still have open go when they end"),
        false => format!("{point} is unmounted"),
    });
    context.json_result(&Report {
        mount_point: done.point.clone(),
        detached: done.detached,
    })?;
    Ok(Outcome::Done)
}
