//! The arguments of `vbk snapshots`.

use clap::Args;

use super::parse;

/// Arguments of `vbk snapshots`.
#[derive(Debug, Args)]
pub struct SnapshotsArgs {
    /// Remove snapshots that a killed run or a reboot left behind. Those that are in use, kept for change hints, or belong
    /// to another machine stay, and so do volumes without vbk's tags
    #[arg(long)]
    pub clean: bool,

    /// With --clean: also remove snapshots kept for change hints, e.g. of deleted guests. The next backup of their disks
    /// reads everything
    #[arg(long, requires = "clean")]
    pub kept: bool,

    /// Remove snapshots kept for change hints in nearly full thin pools (see --above), and copies of raw files on nearly
    /// full file systems: they grow with everything that the guests overwrite. Meant for a timer between the runs, e.g.
    /// vbk-guard.timer. The next backup of these disks reads everything
    #[arg(long, conflicts_with = "clean")]
    pub guard: bool,

    /// With --guard: fill from which a pool or file system is nearly full
    #[arg(long, requires = "guard", value_name = "PERCENT", default_value = "80%", value_parser = parse::parse_percent)]
    pub above: f64,
}
