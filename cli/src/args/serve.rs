//! The arguments of `vbk serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Text below the help of `vbk serve`.
pub const HELP: &str = "\
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

    /// Serve one client on standard input and output
    #[arg(long, required = true)]
    pub stdio: bool,

    /// What the client may do
    #[arg(long, value_enum, default_value_t = RightsArg::Manage)]
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
