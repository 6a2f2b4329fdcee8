//! The arguments of `vbk repair`.

use std::path::PathBuf;

use clap::Args;
use vbk_repo::name::GuestName;

use super::parse;

/// Arguments of `vbk repair`.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_HELP)]
pub struct RepairArgs {
    /// Fetch damaged blocks from this repository, if it has them
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,

    /// Look for damaged blocks on a disk as it is now, as in web1=/dev/vg0/web1; may be given several times
    #[arg(long, value_name = "GUEST=DISK", value_parser = parse::parse_source)]
    pub from_source: Vec<(GuestName, PathBuf)>,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

const REPAIR_HELP: &str = "\
Puts the store's own files right from their second copies, or makes the store
anew from the newest view that opens; the old one is kept as REPO/store.damaged
for you to remove. Then reads every block of every backup, and gets back what is
damaged: a block is known by its hash, so it does not matter where it comes from.
What can't be got back is named, and is stored anew by the next backup that finds
it on a disk. Exits with 4 if damage is left or backups may be lost.

In an encrypted repository it also takes the list of backups as it is: if records
or notes were changed without the key, it says how, exits with 3, and lets forget
and prune work again. Bring back a copy of the repository first if one is missed.";
