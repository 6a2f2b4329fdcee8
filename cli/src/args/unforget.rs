//! The arguments of `vbk unforget`.

use clap::Args;

use super::parse::{self, Moment};

/// Text below the help of `vbk unforget`.
pub const HELP: &str = "\
`vbk list --forgotten` lists what can be brought back. What `vbk forget` removed
on this machine stays until the next prune, and what a client of a server
removed for the time that `vbk policy` says there, 7 days unless set otherwise.";

/// Arguments of `vbk unforget`.
#[derive(Debug, Args)]
pub struct UnforgetArgs {
    /// Backups by their whole names, e.g. web1@2026-10-01T02-00-00Z, or by the first digits of their ids; or guests, for all
    /// that was forgotten of them
    #[arg(value_name = "GUEST|BACKUP", required_unless_present = "all")]
    pub what: Vec<String>,

    /// All that was forgotten
    #[arg(long, conflicts_with = "what")]
    pub all: bool,

    /// Only backups that were forgotten since then, e.g. 2d or 2026-11-20
    #[arg(long, value_name = "TIME", value_parser = parse::parse_moment)]
    pub since: Option<Moment>,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}
