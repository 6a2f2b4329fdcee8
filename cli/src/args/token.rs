//! The arguments of `vbk token`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{QuotaArgs, RightsArg};

/// Text below the help of `vbk token`.
pub const HELP: &str = "\
A token lets a host use a repository of this one through `vbk serve --listen`.
It is a secret: keep it in a file with mode 0600 on that host. These commands
run on the server, as the owner of the repository.

  dc2$ vbk -r /srv/vbk token add web1 --host dc2.example.com --out web1.token
  web1$ vbk -r vbk://dc2.example.com --token-file /etc/vbk/token list";

/// Subcommands of `vbk token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it, once
    Add(TokenAddArgs),
    /// List the tokens
    List,
    /// Remove a token. Its sessions end within seconds
    Revoke {
        /// Its name
        name: String,
    },
    /// Replace the secret of a token, which keeps its rights. The old one opens nothing from then on
    Rotate {
        /// Its name
        name: String,

        /// The way to the server, and the file for the token.
        #[command(flatten)]
        place: TokenPlace,
    },
}

/// Arguments of `vbk token add`.
#[derive(Debug, Args)]
pub struct TokenAddArgs {
    /// Name of the token, e.g. that of the host that will have it
    pub name: String,

    /// What its holder may do
    #[arg(long, value_enum, default_value_t = RightsArg::Backup)]
    pub rights: RightsArg,

    /// It is for guests that match this pattern (* and ?), and shows no others; may be given several times. Not of an
    /// encrypted repository
    #[arg(long, value_name = "PATTERN")]
    pub guests: Vec<String>,

    /// What it may add.
    #[command(flatten)]
    pub quota: QuotaArgs,

    /// The way to the server, and the file for the token.
    #[command(flatten)]
    pub place: TokenPlace,

    /// Make no token: print the line for authorized_keys that gives this public ssh key the rights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "under_root", "out"])]
    pub ssh_key: Option<PathBuf>,
}

/// Where a token leads, and where it is written.
#[derive(Debug, Args)]
pub struct TokenPlace {
    /// Name or address of this server, as the client reaches it [default: the name of this host, port 8484]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub host: Option<String>,

    /// The repository is served by `vbk serve --root` of the directory that it is in
    #[arg(long)]
    pub under_root: bool,

    /// Write the token to this new file (0600) and not to standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
