//! The arguments of `vbk list`.

use clap::Args;
use vbk_repo::name::GuestName;

/// Arguments of `vbk list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only backups of this guest
    pub guest: Option<GuestName>,

    /// List the backups that were forgotten and that `vbk unforget` can bring back
    #[arg(long)]
    pub forgotten: bool,
}
