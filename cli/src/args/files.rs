//! The arguments of `vbk ls`, `vbk cat`, `vbk cp` and `vbk find`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::InsidePath;
use super::parse::{Moment, parse_moment};
use crate::secrets::LuksArgs;

const PATH_HELP: &str = "\
A PATH that begins with a slash is the guest's own: its volumes are combined as
its /etc/fstab says. Otherwise PATH begins with a volume, e.g.
web1@latest:p1/etc or web1@latest:vg0-root/etc; `vbk ls web1@latest:` lists the
volumes. Links are followed inside the backup. No root, no mount and no kernel
driver is needed. ext2/3/4, XFS, Btrfs, NTFS, FAT, exFAT and ISO 9660 can be read.";

/// Arguments of `vbk ls`.
#[derive(Debug, Args)]
#[command(after_help = PATH_HELP)]
pub struct LsArgs {
    /// The backup and a file or directory in it, e.g. web1@latest:/etc. With nothing after the colon: its volumes
    #[arg(value_name = "BACKUP:PATH", required = true, value_parser = InsidePath::parser())]
    pub paths: Vec<InsidePath>,

    /// Show mode, number of names, owner, group, size, time of modification (UTC) and the target of links. Names of owners
    /// are those of the guest
    #[arg(long = "long", short = 'l')]
    pub long: bool,

    /// Show names that begin with a dot too; --json always does
    #[arg(long, short)]
    pub all: bool,

    /// Show directories themselves, not what is in them
    #[arg(long, short)]
    pub directory: bool,

    /// Show owners by their numbers
    #[arg(long, short = 'n')]
    pub numeric_uid_gid: bool,

    /// Show sizes as 1.5 KiB
    #[arg(long)]
    pub human_readable: bool,

    /// Show all directories below too
    #[arg(long, short = 'R')]
    pub recursive: bool,

    /// Secrets of encrypted volumes.
    #[command(flatten)]
    pub luks: LuksArgs,
}

/// Arguments of `vbk cat`.
#[derive(Debug, Args)]
#[command(after_help = PATH_HELP)]
pub struct CatArgs {
    /// The backup and a file in it, e.g. web1@latest:/etc/fstab. At a terminal, control characters are shown as text
    #[arg(value_name = "BACKUP:PATH", required = true, value_parser = InsidePath::parser())]
    pub paths: Vec<InsidePath>,

    /// Secrets of encrypted volumes.
    #[command(flatten)]
    pub luks: LuksArgs,
}

const CP_HELP: &str = "\
As with `cp -a`, modes, times, links, holes and extended attributes are kept;
owners, devices, named pipes, and extended attributes other than user.* only as
root. Set-user-ID bits are kept only with the owner. An existing directory is
merged with the one in the backup and keeps its own attributes. Links at the
target are not followed below TARGET. A file appears under its name when it is
whole. Exits with code 4 if a file is damaged, 1 if one could not be written,
and 3 if attributes could not be kept; the rest is copied.

";

/// Arguments of `vbk cp`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk cp [OPTIONS] <BACKUP:PATH>... <TARGET>",
    after_help = format!("{CP_HELP}{PATH_HELP}")
)]
pub struct CpArgs {
    /// The backup and a file or directory in it, e.g. web1@latest:/srv/app; the last is the TARGET: a new name, or an
    /// existing directory to copy into
    #[arg(value_name = "BACKUP:PATH", required = true, num_args = 2..)]
    pub paths: Vec<OsString>,

    /// Copy directories with all that is in them, and links as links
    #[arg(long, short = 'r', short_alias = 'R')]
    pub recursive: bool,

    /// Replace existing files; never a directory
    #[arg(long, short)]
    pub force: bool,

    /// The repository: a directory made by `vbk init`
    // The same option as that of all commands, without its short form -r. clap takes this for that one: they share the id.
    #[arg(id = "repo", long = "repo", env = "VBK_REPO", value_name = "DIR")]
    pub _repo: Option<PathBuf>,

    /// Secrets of encrypted volumes.
    #[command(flatten)]
    pub luks: LuksArgs,
}

const FIND_HELP: &str = "\
PATTERN is that of a shell: * and ? within a name, [a-z], and ** for any
directories; a backslash makes the next character ordinary. Without a slash it
is matched with the names of files, with a slash at its start with the whole
path, otherwise with any end of the path. A pattern that begins with whole names,
e.g. '/etc/nginx/*.conf', is searched for only below them.

Versions with the same size, times, owner and mode count as the same file. Disks
that did not change between two backups are read once.

Exits with code 0 if a file was found, 1 if none was, and 4 if damage kept
something from being searched.";

/// Arguments of `vbk find`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk find [OPTIONS] <GUEST> <PATTERN>\n       vbk find [OPTIONS] --all-guests <PATTERN>",
    after_help = FIND_HELP
)]
pub struct FindArgs {
    /// The guest, and a name, path or pattern, e.g. 'nginx.conf' or '/etc/**/*.conf'
    #[arg(value_name = "GUEST PATTERN", required = true, num_args = 1..=2)]
    pub words: Vec<OsString>,

    /// Search the backups of all guests
    #[arg(long)]
    pub all_guests: bool,

    /// Only backups made since, e.g. 30d or 2026-11-01
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub since: Option<Moment>,

    /// Only backups made until then, e.g. 7d (ago) or 2026-11-20 (the whole day)
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub until: Option<Moment>,

    /// Read the files that were found, and tell versions apart by their content alone
    #[arg(long)]
    pub content: bool,

    /// Secrets of encrypted volumes.
    #[command(flatten)]
    pub luks: LuksArgs,
}
