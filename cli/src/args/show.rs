//! The arguments of `vbk show`.

use clap::Args;
use vbk_repo::catalogue::BackupSpec;

/// Arguments of `vbk show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The backup, e.g. web1@latest
    pub backup: BackupSpec,

    /// Print the files that were kept with it, e.g. config.xml, and the partitions of its disks
    #[arg(long)]
    pub config: bool,

    /// Write one of these files to standard output, unchanged
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "json"])]
    pub file: Option<String>,
}
