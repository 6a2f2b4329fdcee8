//! The arguments of `vbk forget`, `vbk protect` and `vbk unprotect`.

use std::path::PathBuf;

use clap::Args;
use vbk::retention::{Age, KeepPolicy};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

/// Arguments of `vbk forget`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk forget [OPTIONS] <GUEST>... [--keep-daily 7 ...]\n       vbk forget [OPTIONS] --all [--keep-daily 7 ...]\n       vbk forget [OPTIONS] <BACKUP>...\n       vbk forget [OPTIONS] --guest <GUEST> --all",
    after_help = FORGET_HELP
)]
pub struct ForgetArgs {
    /// Guests, to which the rules below apply; or backups by their whole names, e.g. web1@2026-10-01T02-00-00Z, by their
    /// whole ids, or e.g. web1@latest
    #[arg(value_name = "GUEST|BACKUP", required_unless_present = "all")]
    pub what: Vec<String>,

    /// All guests. Guests without rules are left out, with a warning
    #[arg(long, conflicts_with = "what")]
    pub all: bool,

    /// With --all: all backups of this guest, also the last good one, e.g. when the guest is no more. Protected ones stay. May be
    /// given several times
    #[arg(long, value_name = "GUEST", requires = "all", conflicts_with = "what")]
    pub guest: Vec<GuestName>,

    /// File with the metrics of `vbk backup`, from which those of the --guest go too, and to which the figures of --prune go [default:
    /// that of the configuration]
    #[arg(long, value_name = "FILE", requires = "guest")]
    pub metrics: Option<PathBuf>,

    /// Also forget a named backup that is the last good one of its guest
    #[arg(long, conflicts_with = "all")]
    pub last_too: bool,

    /// Also forget by the rules where less than 20 % of what an earlier backup of the guest has is still in the newest one, and
    /// the last backup with the data of a disk
    #[arg(long)]
    pub changed_too: bool,

    /// The rules.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// Time zone in which days, weeks, months and years begin [default: that of this machine]
    #[arg(long, env = "VBK_TIME_ZONE", value_name = "ZONE")]
    pub time_zone: Option<String>,

    /// Only show which backups would be forgotten or kept, and why
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// With --dry-run: list only what would be kept
    #[arg(long, requires = "dry_run")]
    pub kept: bool,

    /// With --dry-run: list only what would be forgotten
    #[arg(long, requires = "dry_run", conflicts_with = "kept")]
    pub forgotten: bool,

    /// Run `vbk prune` afterwards; with --dry-run show how much it would remove
    #[arg(long)]
    pub prune: bool,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

const FORGET_HELP: &str = "\
A backup stays if any rule keeps it. Each rule walks from the newest backup to
the oldest and keeps the newest one of each day, week, month or year until its
number is used up. Without any --keep-... the `keep` of the guest in the
configuration applies, or that of [defaults]; keep = \"all\" keeps all backups.
Whatever the rules say, protected backups stay, and so does the newest good
backup of each guest. Damaged backups are not counted. Nothing is forgotten of a
guest that may have been encrypted or wiped since: with a disk of which the newest
backup has less than 20 % of the blocks of the one before, or of one a week older.
The last backup with the data of a disk stays that the newest one lacks, or has
smaller or with less than 20 % of its data.

Forgetting removes a backup from the list at once. `vbk prune` frees the space
of its blocks, unless other backups need them. Until then `vbk unforget` brings
it back.

Examples:
  vbk forget --all --dry-run --kept
  vbk forget web1 --keep-daily 7 --keep-weekly 4 --dry-run --prune
  vbk forget --guest web1 --all";

/// Rules of a policy.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to keep")]
pub struct KeepArgs {
    /// The newest N backups
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_last: Option<u32>,
    /// One an hour, for the last N hours that have one
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_hourly: Option<u32>,
    /// One a day, for the last N days that have one
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_daily: Option<u32>,
    /// One a week, Monday to Sunday, for the last N weeks that have one
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_weekly: Option<u32>,
    /// One a month, for the last N months that have one
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_monthly: Option<u32>,
    /// One a year, for the last N years that have one
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub keep_yearly: Option<u32>,
    /// All that are not older than this, e.g. 14d, 2w, 6mo, 1y or 48h
    #[arg(long, value_name = "AGE")]
    pub keep_within: Option<Age>,
}

/// Parses the number of a rule.
fn parse_count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("a rule keeps at least 1; without the option there is no such rule. `vbk forget --guest GUEST --all` forgets a guest".into()),
        parsed => parsed.map_err(|_| format!("write a whole number from 1 to {}", u32::MAX)),
    }
}

impl KeepArgs {
    /// Returns the policy.
    pub fn policy(&self) -> KeepPolicy {
        KeepPolicy {
            last: self.keep_last.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
            yearly: self.keep_yearly.unwrap_or(0),
            within: self.keep_within,
        }
    }
}

/// Arguments of `vbk protect` and `vbk unprotect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// The backups, e.g. web1@2026-10-01
    #[arg(value_name = "BACKUP", required = true)]
    pub backups: Vec<BackupSpec>,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}
