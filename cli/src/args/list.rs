//! The arguments of `vbk list`.

use clap::{Args, ValueEnum};
use vbk_repo::name::GuestName;

use super::parse::{Moment, parse_moment};

/// Text below the help of `vbk list`.
pub const HELP: &str = "\
STORED is what a backup added to the repository, and the last line sums it up.
TOOK is the time in which the disks were read and what is new was stored; `vbk
backup` itself also waits, makes snapshots and removes them.
The states are those of the column STATE; several count as any of them. On a
terminal that is too narrow the columns DISKS, ID, TOOK, NEW and SIZE are left
out, in this order.

Examples:
  vbk list --last 1
  vbk list 'web*' db1 --since 7d
  vbk list --by time --since 2026-11-21 --local
  vbk list --state damaged,unproven";

/// Arguments of `vbk list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only backups of these guests; * stands for any text and ? for any one character, e.g. 'web*'
    #[arg(value_name = "GUEST")]
    pub guests: Vec<GuestName>,

    /// Only the last N backups of each guest, after all other filters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub last: Option<u32>,

    /// Only backups made since, e.g. 3d or 2026-11-01
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub since: Option<Moment>,

    /// Only backups made until then, e.g. 7d (ago) or 2026-11-20 (the whole day)
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub until: Option<Moment>,

    /// Only backups in one of these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', conflicts_with = "forgotten")]
    pub state: Vec<StateArg>,

    /// Order of the backups: those of each guest together, or the backups of all guests by their times
    #[arg(long, value_name = "ORDER", default_value = "guest")]
    pub by: OrderArg,

    /// Also show the times in the time zone of this machine, or of TZ; --since and --until are in it then
    #[arg(long)]
    pub local: bool,

    /// List the backups that were forgotten and that `vbk unforget` can bring back
    #[arg(long)]
    pub forgotten: bool,
}

/// Order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    /// By guest, and then as they were made.
    Guest,
    /// By time.
    Time,
}

/// State of a backup, by the words that the list prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StateArg {
    /// Found damaged.
    Damaged,
    /// Read in full, and found good.
    Proven,
    /// Not read since it was made.
    Unproven,
    /// Protected from being forgotten.
    Protected,
    /// Booted in its last rehearsal.
    Bootable,
    /// Did not boot in its last rehearsal.
    Unbootable,
    /// Could not be rehearsed.
    Unrehearsed,
    /// The state can't be read.
    Unreadable,
    /// The time does not fit: a clock was wrong.
    Clock,
}
