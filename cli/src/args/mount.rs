//! The arguments of `vbk mount`.

use std::path::PathBuf;

use clap::Args;
use vbk_fuse::NewFsid;
use vbk_repo::catalogue::BackupSpec;

/// Arguments of `vbk mount`.
#[derive(Debug, Args)]
#[command(override_usage = "vbk mount [OPTIONS] <DIR>\n       vbk mount [OPTIONS] <BACKUP[/DISK]> --files <DIR>")]
pub struct MountArgs {
    /// Empty directory for the images of all backups: DIR/GUEST/TIME/DISK.img. With --files: the backup
    #[arg(value_name = "DIR|BACKUP")]
    pub what: String,

    /// Mount the file systems inside a backup here, read-only: partitions 1, 2 ... at DIR/p1, DIR/p2 ..., or at DIR/DISK/p1
    /// ... if the backup has several disks. A disk without partitions is mounted at DIR itself if only root can reach DIR
    /// or with --allow-other, otherwise at DIR/DISK. A btrfs shows all its subvolumes, and vbk names the guest's root.
    /// Needs root
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// Serve until Ctrl-C or `vbk umount`, instead of returning when the mount is ready
    #[arg(long, short)]
    pub foreground: bool,

    /// Let all users of this machine read the images, with all data of the guests. With --files: let all users in, as far as
    /// the owners and modes in the guest's file systems allow it; the guest's user ids are other people here
    #[arg(long)]
    pub allow_other: bool,

    /// Show only the images of this backup: the part of --files that serves them
    #[arg(long, hide = true, conflicts_with = "files", value_name = "BACKUP")]
    pub only: Option<BackupSpec>,

    /// Show the btrfs at an offset of an image file under another identity: FILE:OFFSET:FSID
    #[arg(long, hide = true, requires = "only", value_name = "NEW")]
    pub fsid: Vec<NewFsid>,
}
