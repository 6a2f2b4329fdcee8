//! The arguments of `vbk policy`.

use std::time::Duration;

use clap::Args;

use super::parse;

/// Text below the help of `vbk policy`.
pub const HELP: &str = "\
The policy binds clients that come with a token, or by ssh with a line that
`vbk token add --ssh-key` printed, whatever their rights are. It does not bind
the administrator: root and the owner of the repository, on this machine or by
an ssh login. It runs on the server and counts from the next connection on.";

/// Arguments of `vbk policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Time for which a backup that a client forgot can be brought back (`vbk unforget`), whoever prunes; 0 for not at all
    #[arg(long, value_name = "TIME", value_parser = parse::parse_age_or_zero)]
    pub bin: Option<Duration>,

    /// Age before which no client may forget a backup, counted from its arrival by the server's clock; 0 for none
    #[arg(long, value_name = "TIME", value_parser = parse::parse_age_or_zero)]
    pub min_age: Option<Duration>,
}
