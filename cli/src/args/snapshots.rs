//! The arguments of `vbk snapshots`.

use clap::Args;

use super::parse;

/// Arguments of `vbk snapshots`.
#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    /// Remove those that a killed run or a reboot left behind. Never one that is in use, kept for change hints, or another
    /// machine's, and never a volume without vbk's tags
    #[arg(long)]
    pub clean: bool,

    /// With --clean: also those that are kept for change hints, as of guests that are gone. The next backup of their disks
    /// reads everything
    #[arg(long, requires = "clean")]
    pub kept: bool,

    /// Give up what is kept for change hints in thin pools, and on file systems with copies of raw files, that are nearly
    /// full (see --above): it takes more room with all that the guests overwrite. Meant for a timer between the runs,
    /// as vbk-guard.timer. The next backup of these disks reads everything
    #[arg(long, conflicts_with = "clean")]
    pub guard: bool,

    /// With --guard: how full is nearly full
    #[arg(long, requires = "guard", value_name = "PERCENT", default_value = "80%", value_parser = parse::parse_percent)]
    pub above: f64,
}
