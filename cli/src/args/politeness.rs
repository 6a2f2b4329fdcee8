//! The options by which a backup stays out of the guests' way.

use clap::Args;
use vbk::limit::pressure::Backoff;
use vbk::limit::{LimitOptions, ReadLimit};
use vbk_repo::name::GuestName;

use super::parse;

/// How not to be in the way.
#[derive(Debug, Args)]
#[command(next_help_heading = "Politeness")]
pub struct PolitenessArgs {
    /// Read each disk at most so fast: a share of its speed, as in 60%; a rate, as in 200MB/s (counts in 1000s), 200MiB/s
    /// or 200M (in 1024s); or none. `vbk limit` changes it while the backup runs
    /// [default: that of the configuration, or 60%; for a file that is named here none]
    #[arg(long, value_name = "LIMIT")]
    pub read_limit: Option<ReadLimit>,

    /// What the disks can do, for limits in per cent, as in 200MB/s [default: as libvirt limits the guest's own reads, else
    /// as measured, which takes a second or two and holds for 30 days]
    #[arg(long, value_name = "SPEED", value_parser = parse::parse_speed)]
    pub device_speed: Option<u64>,

    /// Do not read less while the host waits for its disks
    #[arg(long)]
    pub no_backoff: bool,

    /// Do not let the kernel limit the reads too (by a control group, where vbk may make one)
    #[arg(long)]
    pub no_kernel_limit: bool,

    /// Do not give the reading threads idle I/O class and niceness 19
    #[arg(long)]
    pub no_idle: bool,
}

impl PolitenessArgs {
    /// What they ask for. Where speeds are kept and what changes limits is for the caller to add.
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
#[command(allow_missing_positional = true, after_help = LIMIT_HELP)]
pub struct LimitArgs {
    /// Only of this guest
    pub guest: Option<GuestName>,

    /// A share of the disks' speed, as in 30%; a rate, as in 50MB/s (counts in 1000s), 50MiB/s or 50M (in 1024s); none; or
    /// default: what the backup was started with
    #[arg(value_name = "LIMIT", value_parser = parse_wanted_limit)]
    pub limit: WantedLimit,
}

const LIMIT_HELP: &str = "\
Running backups follow within a second. Backups that are started later do not:
their limit is --read-limit, or that of the configuration. After a change of the
configuration SIGHUP, as from `systemctl reload vbk-backup`, makes a running
backup read the limits in it again, unless it was started with --read-limit.";

/// A limit, or the one from before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WantedLimit(
    /// `None` is what the backup was started with.
    pub Option<ReadLimit>,
);

fn parse_wanted_limit(text: &str) -> Result<WantedLimit, String> {
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
    fn limits_of_running_backups_may_be_the_default() {
        assert_eq!(parse_wanted_limit("default"), Ok(WantedLimit(None)));
        let limit = vbk::limit::ReadLimit::BytesPerSec(50_000_000);
        assert_eq!(parse_wanted_limit("50MB/s"), Ok(WantedLimit(Some(limit))));
        assert!(parse_wanted_limit("fast").is_err_and(|text| text.contains("60%") && text.contains("default")));
        assert_eq!(parse_speed("1MiB/s"), Ok(1 << 20));
        assert!(parse_speed("60%").is_err_and(|text| text.contains("MB/s")));
    }
}
