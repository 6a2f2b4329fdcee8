//! The arguments of `vbk show`.

use clap::Args;
use vbk_repo::catalogue::BackupSpec;

/// Arguments of `vbk show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The backup, as in web1@latest
    pub backup: BackupSpec,

    /// Print the files that were kept with it, as config.xml, and the partitions of its disks
    #[arg(long)]
    pub config: bool,

    /// Write one of these files to standard output, as it is
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "json"])]
    pub file: Option<String>,
}
