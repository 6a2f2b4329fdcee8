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

    /// Without the key of an encrypted repository: read everything that is stored, and compare it with its checksums
    #[arg(long, conflicts_with_all = ["sample", "backups", "rotate"])]
    pub without_key: bool,

    /// Read only a random share of the blocks, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_percent)]
    pub sample: Option<f64>,

    /// Read a part of the blocks, the one that was not read for longest, so that runs every night read everything once
    /// in this time, as in 30d; nights that were missed are made up for
    #[arg(long, value_name = "AGE", conflicts_with_all = ["sample", "backups"])]
    pub rotate: Option<Age>,
}
