//! The arguments of `vbk status`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::parse;

/// Arguments of `vbk status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Write figures of the repository to this file of metrics for Prometheus (node_exporter's textfile collector), and keep what
    /// other commands wrote there
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// For monitoring: print one line, and exit as Nagios and Icinga want it: 0 OK, 1 WARNING (a guest is late, or so
    /// little is free that the next backup will be refused), 2 CRITICAL (damage is known, or there are no backups), 3 UNKNOWN (the
    /// repository can't be read)
    #[arg(long)]
    pub check: bool,

    /// With --check: a guest is late if its newest backup is older than this
    #[arg(long, value_name = "TIME", default_value = "36h", value_parser = parse::parse_duration, requires = "check")]
    pub max_age: Duration,

    /// With --check: guests that may be late, because they are no more, e.g. web1 or 'old-*'
    #[arg(long, value_name = "GUEST", requires = "check")]
    pub except: Vec<String>,
}
