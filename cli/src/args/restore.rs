//! The arguments of `vbk restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

/// What becomes of damaged ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SkipDamaged {
    /// They become zeros.
    Zero,
    /// They stay as they are at the target.
    Keep,
}

/// Arguments of `vbk restore`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk restore [OPTIONS] <BACKUP[/DISK]> <TARGET>\n       vbk restore [OPTIONS] <BACKUP> --create-in <VG> [--as <GUEST>]"
)]
pub struct RestoreArgs {
    /// The backup, as in web1@latest; if it has several disks with the disk, as in web1@latest/vda
    pub backup: BackupSpec,

    /// A new file, a block device at least as large, or - for standard output
    #[arg(required_unless_present = "create_in", conflicts_with = "create_in")]
    pub target: Option<PathBuf>,

    /// Replace an existing file, or write to a device that a program, as of a running guest, has open for writing
    #[arg(long, short)]
    pub force: bool,

    /// Restore the rest of a disk that is damaged in the repository, and exit with code 4. The ranges that can't be read
    /// back, of 64 KiB at least, are printed. They become zeros; with --skip-damaged=keep they stay as they are on a
    /// device, or in the file that --force replaces
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "zero")]
    pub skip_damaged: Option<SkipDamaged>,

    /// Restore the whole guest: make a new logical volume in this group for each disk, with the old one's name and tags,
    /// and print the libvirt domain that was kept with the backup, with the new paths (with --quiet nothing else). Volumes
    /// are removed again if it fails or is interrupted
    #[arg(long, value_name = "VG", conflicts_with = "force")]
    pub create_in: Option<String>,

    /// Give the restored guest another name, as in web2: volume web1-root becomes web2-root, others web2-DISK, of
    /// their tags only vbk_guest= is taken over, and its domain gets a new UUID and new MAC addresses
    // Not `requires`: that does not hold where what is required conflicts with what is given.
    #[arg(long = "as", value_name = "GUEST", conflicts_with = "target")]
    pub as_guest: Option<GuestName>,

    /// Make thin volumes in this pool of the group
    #[arg(long, value_name = "POOL", conflicts_with = "target")]
    pub thin_pool: Option<String>,

    /// Define the domain in libvirt instead of printing it. It is not started
    #[arg(long, conflicts_with = "target")]
    pub define: bool,
}
