//! The arguments of `vbk diff`.

use clap::Args;

use super::InsidePath;
use crate::secrets::LuksArgs;

pub const HELP: &str = "\
With --files, files of the same size, time of modification and time of change
count as the same without being read; --content reads all. A file that only its
mode, owner, time or extended attributes tell apart is listed with these.";

/// Arguments of `vbk diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier backup, e.g. web1@2026-11-20, or one disk of it, e.g. web1@2026-11-20/vda. With --files also a directory
    /// in it, e.g. web1@2026-11-20:/etc
    #[arg(value_name = "BEFORE", value_parser = InsidePath::parser())]
    pub before: InsidePath,

    /// The later backup, e.g. web1@latest
    #[arg(value_name = "AFTER", value_parser = InsidePath::parser())]
    pub after: InsidePath,

    /// List every changed range, not only the sums
    #[arg(long)]
    pub ranges: bool,

    /// List the files that were added, removed or changed, instead of the parts of the disks
    #[arg(long, conflicts_with = "ranges")]
    pub files: bool,

    /// Read all files, also those that look the same
    #[arg(long, requires = "files")]
    pub content: bool,

    /// Secrets of encrypted volumes.
    #[command(flatten)]
    pub luks: LuksArgs,
}
