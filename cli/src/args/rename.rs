//! The arguments of `vbk rename`.

use std::path::PathBuf;

use clap::Args;
use vbk_repo::name::GuestName;

/// Text below the help of `vbk rename`.
pub const HELP: &str = "\
Times, disks, protection and what was verified or rehearsed stay, and the next
backup under the new name stores only what is new. The ids of the backups change,
because they are hashes of records that have the name in them; with change hints
the next backup reads everything once. Rename the guest in the configuration and
in libvirt too. A rename that was interrupted is continued by the same command.";

/// Arguments of `vbk rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The guest
    #[arg(value_name = "OLD")]
    pub old: GuestName,

    /// Its new name, which no guest has
    #[arg(value_name = "NEW")]
    pub new: GuestName,

    /// File with the metrics of `vbk backup`, from which those of the old name go [default: that of the configuration]
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}
