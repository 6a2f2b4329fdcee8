//! The arguments of `vbk restore`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

/// Content of damaged ranges after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SkipDamaged {
    /// Zeros.
    Zero,
    /// The old content of the target.
    Keep,
}

/// Format of a restored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's own format, with only the data of the disk.
    Qcow2,
}

/// Arguments of `vbk restore`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk restore [OPTIONS] <BACKUP[/DISK]> <TARGET>\n       vbk restore [OPTIONS] <BACKUP> --create-in <VG> [--as <GUEST>]"
)]
pub struct RestoreArgs {
    /// The backup, e.g. web1@latest; if it has several disks, with the disk, e.g. web1@latest/vda
    pub backup: BackupSpec,

    /// New file, block device at least as large as the disk, or - for standard output; with --differential the device or
    /// existing file. A directory gets all disks of the backup, as vda.img and so on, and the guest's files; one that ends with /
    /// is made
    #[arg(required_unless_present = "create_in", conflicts_with = "create_in")]
    pub target: Option<PathBuf>,

    /// Replace an existing file, or write to a device that a program has open for writing, e.g. a running guest
    #[arg(long, short)]
    pub force: bool,

    /// Overwrite a device that holds another disk: a partition table, file system, LVM or LUKS with an identity that the
    /// backup has not. One that is in use is refused all the same; --force overwrites that too
    #[arg(long, conflicts_with = "create_in")]
    pub overwrite: bool,

    /// Read the target, and write only the blocks that differ from the disk; of the repository only those are read. For a
    /// device or, with --force, an existing file, which is changed in place and gets the disk's size. If the restore is
    /// interrupted, the target is neither the old disk nor the restored one; the same command completes it
    #[arg(long, conflicts_with = "create_in")]
    pub differential: bool,

    /// Write nothing, and print the target, what it holds and whether it is in use, whether the disk fits, and whether the
    /// restore would be refused: exit code 1 then. With --differential also how much differs. Does not read the blocks in
    /// the repository, so damage there is not noticed
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Format of a new file: raw (default), or qcow2, whose disk ends at the next multiple of 512 bytes
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, conflicts_with_all = ["create_in", "differential"])]
    pub format: Option<FileFormat>,

    /// Restore a disk that is damaged in the repository as far as possible, and exit with code 4. Prints the ranges that
    /// can't be read back, of at least 64 KiB each. They become zeros; with --skip-damaged=keep they keep the content of
    /// the device, or of the file that --force replaces
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "zero")]
    pub skip_damaged: Option<SkipDamaged>,

    /// Restore the disk with the changes that were made through `vbk mount --writable --save FILE`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["create_in", "differential", "format"])]
    pub changes: Option<PathBuf>,

    /// Restore the whole guest: create a logical volume in this group for each disk, with the old one's name and tags, and
    /// print the libvirt domain that was kept with the backup, with the new paths (with --quiet nothing else). The volumes
    /// are removed again if the restore fails or is interrupted
    #[arg(long, value_name = "VG", conflicts_with = "force")]
    pub create_in: Option<String>,

    /// Restore the guest under another name, e.g. web2: volume web1-root becomes web2-root, others become web2-DISK. Of their
    /// tags only vbk_guest= is kept, and the domain gets a new UUID and new MAC addresses
    // Not `requires`: clap ignores it where the required option conflicts with a given one.
    #[arg(long = "as", value_name = "GUEST", conflicts_with = "target")]
    pub as_guest: Option<GuestName>,

    /// Create thin volumes in this pool of the group
    #[arg(long, value_name = "POOL", conflicts_with = "target")]
    pub thin_pool: Option<String>,

    /// Define the domain in libvirt instead of printing it. It is not started
    #[arg(long, conflicts_with = "target")]
    pub define: bool,
}
