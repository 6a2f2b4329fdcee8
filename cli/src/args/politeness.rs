//! The options that limit how much a backup disturbs the guests, and the arguments of `vbk limit`.

use clap::Args;
use vbk::limit::pressure::Backoff;
use vbk::limit::{LimitOptions, ReadLimit};

use super::parse;

/// Options that limit how much a backup disturbs the guests.
#[derive(Debug, Args)]
#[command(next_help_heading = "Politeness")]
pub struct PolitenessArgs {
    /// Limit reads of each disk: a share of its speed, e.g. 60%; a rate, e.g. 200MB/s (units of 1000), 200MiB/s or 200M
    /// (units of 1024); or none. `vbk limit` changes it while the backup runs
    /// [default: that of the configuration, or 60%; none for a file named on the command line]
    #[arg(long, value_name = "LIMIT")]
    pub read_limit: Option<ReadLimit>,

    /// Full speed of the disks, e.g. 200MB/s, the base of limits in per cent [default: libvirt's limit of the guest's own
    /// reads, or else measured, which takes a second or two and holds for 30 days]
    #[arg(long, value_name = "SPEED", value_parser = parse::parse_speed)]
    pub device_speed: Option<u64>,

    /// Do not slow down while the host waits for its disks
    #[arg(long)]
    pub no_backoff: bool,

    /// Do not limit the reads in the kernel too (by a control group, where vbk may create one)
    #[arg(long)]
    pub no_kernel_limit: bool,

    /// Do not run the reading threads with idle I/O class and niceness 19
    #[arg(long)]
    pub no_idle: bool,
}

impl PolitenessArgs {
    /// Returns the limits. The caller adds the directory of measured speeds and the sources of changed limits.
    pub fn options(&self) -> LimitOptions {
        LimitOptions {
            kernel: !self.no_kernel_limit,
            idle: !self.no_idle,
            backoff: if self.no_backoff {
                Backoff::Off
            } else {
                Backoff::default()
            },
            ..LimitOptions::default()
        }
    }
}

/// Arguments of `vbk limit`.
#[derive(Debug, Args)]
#[command(override_usage = "vbk limit [OPTIONS] [[GUEST] <LIMIT>]", after_help = LIMIT_HELP)]
pub struct LimitArgs {
    /// A share of the disks' speed, e.g. 30%; a rate, e.g. 50MB/s (units of 1000), 50MiB/s or 50M (units of 1024); none; or
    /// default: the limit that the backup was started with. Before it perhaps a guest, for only its backups. Without a limit
    /// the running backups and the limits set for them are listed
    #[arg(value_name = "GUEST|LIMIT", num_args = 0..=2)]
    pub words: Vec<String>,
}

const LIMIT_HELP: &str = "\
Running backups follow within a second. Backups that start later use --read-limit
or the configuration. SIGHUP, e.g. from `systemctl reload vbk-backup`, makes a
running backup read the limits in the configuration again, unless it was started
with --read-limit.";

/// A read limit, or the one that the backup was started with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WantedLimit(
    /// `None` is the limit that the backup was started with.
    pub Option<ReadLimit>,
);

/// Parses a read limit, or `default`.
pub fn parse_wanted_limit(text: &str) -> Result<WantedLimit, String> {
    match text {
        "default" => Ok(WantedLimit(None)),
        _ => match text.parse() {
            Ok(limit) => Ok(WantedLimit(Some(limit))),
            Err(error) => Err(format!("{error}, or default")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::parse::parse_speed;
    use super::*;

    #[test]
    fn the_limit_argument_is_default_or_a_rate() {
        assert_eq!(parse_wanted_limit("default"), Ok(WantedLimit(None)));
        let limit = vbk::limit::ReadLimit::BytesPerSec(50_000_000);
        assert_eq!(parse_wanted_limit("50MB/s"), Ok(WantedLimit(Some(limit))));
        assert!(parse_wanted_limit("fast").is_err_and(|text| text.contains("60%") && text.contains("default")));
        assert_eq!(parse_speed("1MiB/s"), Ok(1 << 20));
        assert!(parse_speed("60%").is_err_and(|text| text.contains("MB/s")));
    }
}
