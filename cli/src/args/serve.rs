//! The arguments of `vbk serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::parse;

/// Text below the help of `vbk serve`.
pub const HELP: &str = "\
Without --stdio this has the repository open for all commands on this
machine, so that backups, forgets and prunes run at the same time. They
find it by themselves. Without it one command writes at a time, and the
others wait.

`vbk --repo ssh://[USER@]HOST/PATH ...` starts this on the other host, by
ssh. To give a host no more than it needs, write the command with the
rights into authorized_keys there:
  restrict,command=\"vbk serve --stdio --rights backup /srv/vbk\" ssh-ed25519 ...";

/// Arguments of `vbk serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The directory of the repository
    #[arg(value_name = "DIR")]
    pub path: PathBuf,

    /// Serve one client on standard input and output, and end with it
    #[arg(long)]
    pub stdio: bool,

    /// End when nobody was connected for that long, e.g. 10min
    #[arg(long, value_name = "TIME", value_parser = parse::parse_duration, conflicts_with = "stdio")]
    pub idle_exit: Option<Duration>,

    /// What the client may do
    #[arg(long, value_enum, default_value_t = RightsArg::Manage, requires = "stdio")]
    pub rights: RightsArg,
}

/// Rights of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RightsArg {
    /// Read all backups
    Restore,
    /// Read all backups and add new ones; change and remove nothing
    Backup,
    /// Everything
    Manage,
}
