//! The arguments of `vbk verify`.

use clap::Args;
use vbk::retention::Age;
use vbk_repo::catalogue::BackupSpec;

use super::parse;

/// Arguments of `vbk verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these backups [default: all]
    #[arg(value_name = "BACKUP")]
    pub backups: Vec<BackupSpec>,

    /// Work without the key of an encrypted repository: read everything, where the repository is, and compare it with its
    /// checksums
    #[arg(long, conflicts_with_all = ["sample", "backups", "rotate"])]
    pub without_key: bool,

    /// Read only a random share of the blocks, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_percent)]
    pub sample: Option<f64>,

    /// Read a fraction of the blocks, least recently verified first, so that nightly runs cover everything once in this
    /// time, e.g. 30d; missed nights are caught up
    #[arg(long, value_name = "AGE", conflicts_with_all = ["sample", "backups"])]
    pub rotate: Option<Age>,
}
