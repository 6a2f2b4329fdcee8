//! The arguments of `vbk mount`.

use std::path::PathBuf;

use clap::Args;
use vbk_fuse::NewFsid;
use vbk_repo::catalogue::BackupSpec;

/// Arguments of `vbk mount`.
#[derive(Debug, Args)]
#[command(override_usage = "vbk mount [OPTIONS] <DIR>\n       vbk mount [OPTIONS] <BACKUP[/DISK]> --files <DIR>")]
pub struct MountArgs {
    /// An empty directory for the images of all backups: DIR/GUEST/TIME/DISK.img. With --files: the backup
    #[arg(value_name = "DIR|BACKUP")]
    pub what: String,

    /// Mount the file systems inside a backup here: DIR/p1, DIR/p2 ... for partitions 1, 2 ...; DIR/DISK/p1 ... if the
    /// backup has several disks. That of a disk without partitions is at DIR itself if only root can get to DIR or with
    /// --allow-other, otherwise at DIR/DISK. Of a btrfs all subvolumes are shown, and the guest's root is named.
    /// Read-only; needs root
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// Serve until Ctrl-C or `vbk umount` instead of returning when the mount is ready
    #[arg(long, short)]
    pub foreground: bool,

    /// Let all users of this machine read the images (they hold everything the guests have). With --files: let them in, as
    /// far as the guest's owners and modes of files let them, which are other people here
    #[arg(long)]
    pub allow_other: bool,

    /// Show the images of this backup alone: what stands behind --files
    #[arg(long, hide = true, conflicts_with = "files", value_name = "BACKUP")]
    pub only: Option<BackupSpec>,

    /// Show the btrfs at an offset of an image file under another identity: FILE:OFFSET:FSID
    #[arg(long, hide = true, requires = "only", value_name = "NEW")]
    pub fsid: Vec<NewFsid>,
}
