//! The arguments of `vbk verify`.

use std::path::PathBuf;

use clap::Args;
use vbk::retention::Age;

use super::parse;

/// Arguments of `vbk verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these backups, or all backups of these guests, e.g. web1@latest or web1 [default: all]
    #[arg(value_name = "GUEST|BACKUP")]
    pub what: Vec<String>,

    /// Work without the key of an encrypted repository: read everything, where the repository is, and compare it with its
    /// checksums
    #[arg(long, conflicts_with_all = ["sample", "what", "rotate"])]
    pub without_key: bool,

    /// Read only a random share of the blocks, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_percent)]
    pub sample: Option<f64>,

    /// Read a fraction of the blocks, least recently verified first, so that nightly runs cover everything once in this
    /// time, e.g. 30d; missed nights are caught up
    #[arg(long, value_name = "AGE", conflicts_with_all = ["sample", "what"])]
    pub rotate: Option<Age>,

    /// Add the result, and figures of the repository, to this file of metrics for Prometheus [default: that of the
    /// configuration, if it names one]
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
}
