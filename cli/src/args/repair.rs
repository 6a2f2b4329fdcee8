//! The arguments of `vbk repair`.

use std::path::PathBuf;

use clap::Args;
use vbk_repo::name::GuestName;

use super::from::FromArgs;
use super::parse;

/// Arguments of `vbk repair`.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_HELP)]
pub struct RepairArgs {
    /// Fetch damaged blocks from this repository, if it has them: a directory, ssh:// or vbk://. It must have the same master
    /// key, or none as this one
    #[arg(long, value_name = "FROM")]
    pub from: Option<PathBuf>,

    /// The keys and the token of FROM.
    #[command(flatten)]
    pub from_keys: FromArgs,

    /// Look for damaged blocks on the present disk, e.g. web1=/dev/vg0/web1; may be given several times
    #[arg(long, value_name = "GUEST=DISK", value_parser = parse::parse_source)]
    pub from_source: Vec<(GuestName, PathBuf)>,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

const REPAIR_HELP: &str = "\
Runs on the host that has the repository. Restores the store's own files from
their second copies, or rebuilds the store from the newest view that opens; the
old one is kept as REPO/store.damaged for you to remove. Then reads every block
of every backup and restores the damaged ones: a block is identified by its
hash, so it can come from anywhere. Blocks that can't be restored are named; the
next backup that finds them on a disk stores them again. Exits with 4 if damage
is left or backups may be lost.

In an encrypted repository it also accepts the list of backups as it is: if
records or notes were changed without the key, it reports how, exits with 3, and
lets forget and prune work again. If a backup is missing, restore a copy of the
repository first.";
