//! The arguments of `vbk backup`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use vbk::hints::ChangeHints;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{BackupTime, DiskName, GuestName};
use vbk_repo::repository::Reserve;

use super::parse;
use super::politeness::PolitenessArgs;

const HELP: &str = "\
A guest without disks on the command line is looked up in the configuration, then
in libvirt, then among volumes with a tag such as vbk_guest=web1/vda (`vbk guests`
lists all guests). An LVM volume is read from a snapshot, which is always removed
afterwards; a raw file on btrfs or xfs from a reflink copy. Options override the
configuration.

--all starts with guests that have no backup in the repository, then takes the
one whose latest backup is oldest: guests that a time limit leaves out come first
the next night. A guest that the limit cut short comes last, because its backup
may take longer than a night.

Rates: 200MB/s is 200,000,000 bytes a second, 200MiB/s and 200M are units of
1024. Exit codes of --all: 0 all done, 3 failures or warnings (see the table),
1 nothing could be backed up, 75 another --all is running, 130 interrupted.";

/// Arguments of `vbk backup`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk backup [OPTIONS] <GUEST>\n       vbk backup [OPTIONS] <GUEST> <[NAME=]DISK>...\n       \
                      vbk backup [OPTIONS] --all",
    after_help = HELP
)]
pub struct BackupArgs {
    /// Name of the guest, e.g. web1
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub guest: Option<GuestName>,

    /// Its disks: block devices or raw files. A single disk is called vda; several need names, e.g.
    /// vda=/dev/vg0/web1-root vdb=/srv/web1-data.img [default: from the configuration, libvirt or tags]
    #[arg(value_name = "[NAME=]DISK", value_parser = parse::parse_disk)]
    pub disks: Vec<DiskArg>,

    /// All guests of this host that `vbk guests` lists, except those that the configuration excludes. A guest that fails
    /// does not stop the others
    #[arg(long)]
    pub all: bool,

    /// Number of guests at a time [default: that of the configuration, or 1]. With more than one, the next begins when the disks
    /// of one were read, while its backup becomes durable
    #[arg(long, short, value_name = "N", requires = "all", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,

    /// Keep this file with the backup, e.g. config.xml=/etc/libvirt/qemu/web1.xml; may be given several times. At most
    /// 16 MiB each
    #[arg(long, value_name = "NAME=FILE", value_parser = parse::parse_attached, conflicts_with = "all")]
    pub attach: Vec<(DiskName, PathBuf)>,

    /// Treat the disks as raw, even if they look like a qcow2, VMDK, VHD, VHDX or VDI image or an archive, or their size is not a
    /// multiple of 512 bytes. Without this option such a file is refused, and such a device causes a warning
    #[arg(long, conflicts_with = "all")]
    pub raw: bool,

    /// Refuse to start when less than this is free on the repository's file system, e.g. 5%, 20G or 20GB
    /// [default: 5%, but at most 8G]
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_reserve)]
    pub reserve: Option<Reserve>,

    /// zstd level for new blocks, 1 (fast) to 19 (small), or none [default: 3]
    #[arg(long, value_name = "LEVEL", value_parser = parse::parse_compression)]
    pub compression: Option<Compression>,

    /// Time of the backup instead of now, for an image that was made earlier, e.g. '2024-03-01 02:00' (UTC). Later than the latest
    /// backup of the guest: import the oldest first
    #[arg(long, value_name = "TIME", value_parser = parse::parse_time, conflicts_with = "all", requires = "disks")]
    pub time: Option<BackupTime>,

    /// Only show which disks would be read, how they would be held still, and with which limit; nothing is changed
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Exit with code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,

    /// Stop after this time, e.g. 6h or 90min; the next run does not store again what was stored by then
    #[arg(long, value_name = "TIME", value_parser = parse::parse_duration)]
    pub time_limit: Option<Duration>,

    /// Write metrics for Prometheus (node_exporter's textfile collector) to this file, which other commands share. The metrics of
    /// a guest go when its backups are forgotten, or when a run over all guests finds that this host does not have it any more
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// Snapshots.
    #[command(flatten)]
    pub snapshots: SnapshotArgs,

    /// Politeness.
    #[command(flatten)]
    pub politeness: PolitenessArgs,

    /// Change hints.
    #[command(flatten)]
    pub hints: HintArgs,
}

/// A disk on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    /// Its name, if one was given.
    pub name: Option<DiskName>,
    /// Its path.
    pub path: PathBuf,
}

/// Options of snapshots.
#[derive(Debug, Args)]
#[command(next_help_heading = "Snapshots")]
pub struct SnapshotArgs {
    /// Space for everything that the guest overwrites while its snapshot exists, e.g. 20% or 10G
    /// [default: twice what the last runs needed, or 20% of the disk, as far as there is room]
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_snapshot_size)]
    pub snapshot_size: Option<SnapshotSize>,

    /// Extend a snapshot or thin pool once it is this full, if its volume group has room; less than 90% [default: 60%]
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_extend)]
    pub extend: Option<f64>,

    /// Never extend snapshots and thin pools; at 90% the backup is stopped before they overflow
    #[arg(long, conflicts_with = "extend")]
    pub no_extend: bool,

    /// Make no snapshots; disks must not be in use
    #[arg(long)]
    pub no_snapshot: bool,

    /// Read disks in use without a snapshot, where none can be made. The image is inconsistent if the guest writes
    /// meanwhile
    #[arg(long)]
    pub live: bool,
}

/// Options of change hints.
#[derive(Debug, Args)]
#[command(next_help_heading = "Change hints")]
pub struct HintArgs {
    /// Skip ranges that thin pools or file systems report as unchanged: auto or off
    /// [default: that of the configuration, or off]
    #[arg(long, value_name = "WHEN", value_parser = parse::parse_change_hints)]
    pub change_hints: Option<ChangeHints>,

    /// Use change hints although they were recently found to be wrong
    #[arg(long)]
    pub trust_hints: bool,
}
