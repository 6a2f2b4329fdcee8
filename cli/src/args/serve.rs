//! The arguments of `vbk serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vbk_remote::server::{Allowed, Quota};

use super::parse;

/// Text below the help of `vbk serve`.
pub const HELP: &str = "\
With DIR alone it has the repository open for all commands on this machine,
which find it by themselves: backups, forgets and prunes then run at the same
time. Without it one command writes at a time, and the others wait.

Over TLS: `vbk serve /srv/vbk --listen 0.0.0.0` lets in the holders of tokens,
which `vbk token add` makes. The server has a key of its own in DIR/serve; all
tokens name its fingerprint, so no certificate is needed.

By ssh: `vbk --repo ssh://[USER@]HOST/PATH ...` starts `vbk serve --stdio` on
the other host. To give a host no more than it needs, put the line that
`vbk token add NAME --ssh-key FILE.pub` prints into authorized_keys there.";

/// Arguments of `vbk serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The directory of the repository
    #[arg(value_name = "DIR", required_unless_present = "root", conflicts_with = "root")]
    pub path: Option<PathBuf>,

    /// Serve each repository right below this directory, under the name of its directory
    #[arg(long, value_name = "DIR", requires = "listen")]
    pub root: Option<PathBuf>,

    /// Listen on this address for clients over TLS, port 8484 unless it names another. May be given several times
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse::parse_listen)]
    pub listen: Vec<SocketAddr>,

    /// Serve one client on standard input and output, and end with it
    #[arg(long, conflicts_with_all = ["listen", "root"])]
    pub stdio: bool,

    /// End when nobody was connected for that long, e.g. 10min
    #[arg(long, value_name = "TIME", value_parser = parse::parse_duration, conflicts_with_all = ["stdio", "root"])]
    pub idle_exit: Option<Duration>,

    /// With --stdio: what the client may do. It is then bound by the policy of the repository (`vbk policy`) [default: all that
    /// this user may]
    #[arg(long, value_enum, requires = "stdio")]
    pub rights: Option<RightsArg>,

    /// With --stdio: name of the client in the audit log [default: ssh]
    #[arg(long = "as", value_name = "NAME", requires = "stdio")]
    pub client: Option<String>,

    /// With --stdio: what the client may add.
    #[command(flatten)]
    pub quota: QuotaArgs,

    /// With --stdio: the client has only guests that match this pattern (* and ?); may be given several times. Not of an
    /// encrypted repository
    #[arg(long, value_name = "PATTERN", requires = "stdio")]
    pub guests: Vec<String>,
}

/// What a client may add in a day.
#[derive(Debug, Clone, Copy, Args)]
pub struct QuotaArgs {
    /// Bytes that the client may send in a day (UTC), as they are stored, e.g. 100G
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_size)]
    pub bytes_per_day: Option<u64>,

    /// Backups that the client may add in a day (UTC)
    #[arg(long, value_name = "N")]
    pub backups_per_day: Option<u64>,
}

impl From<QuotaArgs> for Quota {
    fn from(args: QuotaArgs) -> Self {
        Self {
            bytes_per_day: args.bytes_per_day,
            backups_per_day: args.backups_per_day,
        }
    }
}

/// Rights of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RightsArg {
    /// Add backups and list them; read, change and remove nothing
    Backup,
    /// Read backups
    Restore,
    /// Read backups as they are stored, for a copy
    Copy,
    /// Read everything, also what no backup needs, for `vbk verify`
    Verify,
    /// Everything
    Manage,
}

impl From<RightsArg> for Allowed {
    fn from(rights: RightsArg) -> Self {
        match rights {
            RightsArg::Restore => Self::Read,
            RightsArg::Copy => Self::Copy,
            RightsArg::Verify => Self::Verify,
            RightsArg::Backup => Self::Add,
            RightsArg::Manage => Self::Everything,
        }
    }
}
