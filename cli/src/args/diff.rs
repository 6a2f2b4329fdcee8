//! The arguments of `vbk diff`.

use clap::Args;
use vbk_repo::catalogue::BackupSpec;

/// Arguments of `vbk diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier backup, e.g. web1@2026-11-20, or one disk of it, e.g. web1@2026-11-20/vda
    #[arg(value_name = "BEFORE")]
    pub before: BackupSpec,

    /// The later backup, e.g. web1@latest
    #[arg(value_name = "AFTER")]
    pub after: BackupSpec,

    /// List every changed range, not only the sums
    #[arg(long)]
    pub ranges: bool,
}
