//! The arguments of `vbk mount`.

use std::path::PathBuf;

use clap::Args;
use vbk_fuse::NewFsid;

use crate::args::parse::parse_size;
use crate::secrets::LuksArgs;

/// Arguments of `vbk mount`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk mount [OPTIONS] <DIR>\n       vbk mount [OPTIONS] <BACKUP> <DIR>\n       vbk mount [OPTIONS] <BACKUP[/DISK]> --files <DIR>"
)]
pub struct MountArgs {
    /// Empty directory for the images of all backups: DIR/GUEST/TIME/DISK.img. With a second argument or --files: the backup
    #[arg(value_name = "DIR|BACKUP")]
    pub what: String,

    /// Empty directory for the images of this backup: DIR/DISK.img, its partitions DIR/DISK.p1.img, its logical volumes
    /// DIR/VG-LV.img
    #[arg(value_name = "DIR", conflicts_with = "files")]
    pub dir: Option<PathBuf>,

    /// Mount the file systems inside a backup here: partitions 1, 2 ... at DIR/p1, DIR/p2 ..., or at DIR/DISK/p1 ... if the
    /// backup has several disks; logical volumes at DIR/VG-LV. A disk without partitions is mounted at DIR itself if only
    /// root can reach DIR or with --allow-other, otherwise at DIR/DISK. A btrfs shows all its subvolumes, and vbk names the
    /// guest's root. The mounts are read-only; a journal is replayed first, into a scratch file that goes with the mount.
    /// Needs root
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// With --files: read the file systems in user space, through FUSE, instead of mounting them. Needs no root, and the
    /// kernel's drivers never see the guest's file systems. Reads ext2, ext3, ext4, XFS, Btrfs, NTFS, FAT, exFAT and ISO 9660. `safe-mounts = true` in the
    /// configuration makes this the default and refuses the kernel
    #[arg(long, alias = "safe", requires = "files", conflicts_with_all = ["writable", "no_replay"])]
    pub user: bool,

    /// With --user: one tree as the guest saw it, put together by its own /etc/fstab
    #[arg(long, requires = "user")]
    pub as_guest: bool,

    /// Let programs write: to the images, e.g. to boot a virtual machine from them, or with --files to the file systems,
    /// e.g. to repair them. The backup stays as it is: writes go to a scratch file, and are gone after `vbk umount` unless
    /// --save keeps them
    #[arg(long, short)]
    pub writable: bool,

    /// Limit of the scratch file, e.g. 20G; writes beyond it fail for lack of space, as do those that would take the last
    /// tenth of the space that was free in /var/tmp, or where --save points to [default: 8G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub scratch_size: Option<u64>,

    /// Keep the writes in this new file, which is whole when `vbk umount` returns; `vbk restore --changes FILE` restores the backup with them
    #[arg(long, value_name = "FILE", requires = "writable")]
    pub save: Option<PathBuf>,

    /// Leave journals alone: show the file systems exactly as they are in the backup
    #[arg(long, requires = "files", conflicts_with = "writable")]
    pub no_replay: bool,

    #[command(flatten)]
    pub luks: LuksArgs,

    /// Serve until Ctrl-C or `vbk umount`, instead of returning when the mount is ready
    #[arg(long, short)]
    pub foreground: bool,

    /// Let all users of this machine read the images, with all data of the guests. With --files: let all users in, as far as
    /// the owners and modes in the guest's file systems allow it; the guest's user ids are other people here
    #[arg(long)]
    pub allow_other: bool,

    /// Serve images for --files: a scratch file takes what the kernel writes
    #[arg(long, hide = true, requires = "dir")]
    pub scratch: bool,

    /// The directory that people know the mount by
    #[arg(long, hide = true, requires = "dir", value_name = "DIR")]
    pub shown_at: Option<PathBuf>,

    /// Show the btrfs of an image file under another identity: FILE:FSID
    #[arg(long, hide = true, requires = "dir", value_name = "NEW")]
    pub fsid: Vec<NewFsid>,
}
