//! The arguments of `vbk prune`.

use std::path::PathBuf;

use clap::Args;

use super::parse;

/// Arguments of `vbk prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only show how much would be removed
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Unused data that may stay, as a share of the used data: a smaller share frees more space and takes longer
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse::parse_percent)]
    pub max_unused: f64,

    /// Also remove backups that clients of a server forgot and that the server's policy keeps in the bin: to free space now
    #[arg(long)]
    pub empty_bin: bool,

    /// Work without the key of an encrypted repository, e.g. on the host that keeps it
    #[arg(long)]
    pub without_key: bool,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,

    /// Add the result, and figures of the repository, to this file of metrics for Prometheus [default: that of the
    /// configuration, if it names one]
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
}
