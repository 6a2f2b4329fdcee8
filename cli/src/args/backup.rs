//! The arguments of `vbk backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vbk::hints::ChangeHints;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};
use vbk_repo::repository::Reserve;

use super::parse;
use super::politeness::PolitenessArgs;

const HELP: &str = "\
A guest whose disks are not named is looked up in the configuration, then in
libvirt, then among volumes with a tag such as vbk_guest=web1/vda (`vbk guests`
lists them all). An LVM volume is read from a snapshot, which is removed again
whatever happens; a raw file on btrfs or xfs from a reflink copy. Options given
here go before those of the configuration.

--all begins with guests that have no backup in the repository, then comes the
one whose latest backup is oldest: what a time limit leaves out is first the next
night. One that the limit cut short comes last, as it may be longer than a night.

Rates: 200MB/s is 200,000,000 bytes a second, 200MiB/s and 200M are units of
1024. Exit codes of --all: 0 all done, 3 something failed or needs to be read
(the table says what), 1 nothing could be backed up, 75 another --all goes on,
130 it was interrupted.";

/// Arguments of `vbk backup`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk backup [OPTIONS] <GUEST>\n       vbk backup [OPTIONS] <GUEST> <[NAME=]DISK>...\n       \
                      vbk backup [OPTIONS] --all",
    after_help = HELP
)]
pub struct BackupArgs {
    /// The name of the guest, as in web1
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub guest: Option<GuestName>,

    /// Its disks: block devices or raw files. One alone is called vda; several are named, as in
    /// vda=/dev/vg0/web1-root vdb=/srv/web1-data.img [default: what the configuration, libvirt or tags say]
    #[arg(value_name = "[NAME=]DISK", value_parser = parse::parse_disk)]
    pub disks: Vec<DiskArg>,

    /// All guests of this host, as `vbk guests` lists them, without those that the configuration excludes. One that
    /// fails does not stop the others
    #[arg(long)]
    pub all: bool,

    /// How many guests at a time [default: that of the configuration, or 1]
    #[arg(long, short, value_name = "N", requires = "all", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,

    /// Keep this file with the backup, as in config.xml=/etc/libvirt/qemu/web1.xml; may be given several times. At most
    /// 16 MiB each
    #[arg(long, value_name = "NAME=FILE", value_parser = parse::parse_attached, conflicts_with = "all")]
    pub attach: Vec<(DiskName, PathBuf)>,

    /// The disks are raw, even if they begin like a qcow2, VMDK, VHD, VHDX or VDI image or an archive. Without it such a
    /// file is refused, and of such a device there is a warning
    #[arg(long, conflicts_with = "all")]
    pub raw: bool,

    /// Refuse to start when less than this is free on the repository's file system, as in 5% or 20G
    /// [default: 5%, and 8G at most]
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_reserve)]
    pub reserve: Option<Reserve>,

    /// zstd level for new blocks, 1 (fast) to 19 (small), or none [default: 3]
    #[arg(long, value_name = "LEVEL", value_parser = parse::parse_compression)]
    pub compression: Option<Compression>,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,

    /// Stop after this time, as in 6h or 90m; what was stored by then is not stored again by the next run
    #[arg(long, value_name = "TIME", value_parser = parse::parse_duration)]
    pub time_limit: Option<Duration>,

    /// Write figures for Prometheus (node_exporter's textfile collector) to this file. Those of a guest stay until neither
    /// this host nor the repository knows it any more
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// How disks are held still.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,

    /// How not to be in the way.
    #[command(flatten)]
    pub politeness: PolitenessArgs,

    /// Whether everything is read.
    #[command(flatten)]
    pub hints: HintArgs,
}

/// A disk on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Its name, if one was given.
    pub name: Option<DiskName>,
    /// Where to read it.
    pub path: PathBuf,
}

/// How disks are held still.
#[derive(Debug, Args)]
#[command(next_help_heading = "Snapshots")]
pub struct SnapshotArgs {
    /// Space for what the guest writes while its snapshot is there, as in 20% or 10G
    /// [default: twice what the last runs needed, or 20% of the disk, as far as there is room]
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_snapshot_size)]
    pub snapshot_size: Option<SnapshotSize>,

    /// Extend a snapshot or thin pool that is so full, where its group has room; less than 90% [default: 60%]
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_extend)]
    pub extend: Option<f64>,

    /// Never extend one; at 90% the run is stopped before it overflows
    #[arg(long, conflicts_with = "extend")]
    pub no_extend: bool,

    /// Make no snapshots: disks must not be in use
    #[arg(long)]
    pub no_snapshot: bool,

    /// Read disks that are in use as they are, where there is no snapshot. What the guest writes meanwhile tears the
    /// image
    #[arg(long)]
    pub live: bool,
}

/// Whether everything is read.
#[derive(Debug, Args)]
#[command(next_help_heading = "Change hints")]
pub struct HintArgs {
    /// Whether to skip what thin pools or file systems say has not changed: auto or off
    /// [default: that of the configuration, or off]
    #[arg(long, value_name = "WHEN", value_parser = parse::parse_change_hints)]
    pub change_hints: Option<ChangeHints>,

    /// Use change hints although they were found wrong lately
    #[arg(long)]
    pub trust_hints: bool,
}
