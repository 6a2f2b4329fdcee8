//! The command line. The texts here are the manual: what they do not say, users do not know.

mod backup;
mod hosts;
pub mod parse;
mod politeness;
mod restore;
mod sources;
mod trust;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vbk::retention::{Age, KeepPolicy};
use vbk_fuse::NewFsid;
use vbk_repo::block::BlockSize;
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

pub use backup::{BackupArgs, DiskArg};
pub use hosts::ConfigCommand;
pub use politeness::LimitArgs;
pub use restore::{RestoreArgs, SkipDamaged};
pub use sources::Sources;
pub use trust::TrustArgs;

const AFTER_HELP: &str = "\
A BACKUP is named GUEST@latest, GUEST@2026-11-21 (as much of the time as
tells it from others) or by the first digits of its id. BACKUP/DISK names
one disk of it, as in web1@latest/vda. Times are UTC.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with warnings,
4 damage found, 75 busy, 130 interrupted.

Example:
  vbk init /var/lib/vbk
  export VBK_REPO=/var/lib/vbk
  vbk backup web1 /dev/vg0/web1
  vbk mount web1@latest --files /mnt/files
  cp /mnt/files/p2/etc/nginx/nginx.conf /etc/nginx/
  vbk umount /mnt/files";

/// Backs up the disks of virtual servers, and gives any past day back: a whole disk, an image to mount, or one file.
#[derive(Debug, Parser)]
#[command(name = "vbk", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// The repository: a directory made by `vbk init`
    #[arg(long, short = 'r', global = true, env = "VBK_REPO", value_name = "DIR")]
    pub repo: Option<PathBuf>,

    /// Opens an encrypted repository: a key file, or a key that `vbk key export` wrote. A repository that is not encrypted
    /// is refused then
    #[arg(
        long,
        global = true,
        env = "VBK_KEY_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    pub key_file: Option<PathBuf>,

    /// Opens an encrypted repository: a file with the passphrase as its first line. Refuses as --key-file does
    #[arg(
        long,
        global = true,
        env = "VBK_PASSPHRASE_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    pub passphrase_file: Option<PathBuf>,

    /// The configuration [default: /etc/vbk/config.toml]
    #[arg(long, global = true, env = "VBK_CONFIG", value_name = "FILE", hide_short_help = true)]
    pub config_file: Option<PathBuf>,

    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Print nothing but errors and warnings
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// Log more; twice: everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository in a new or empty directory
    Init(InitArgs),
    /// Back up the disks of a guest, or of all guests of this host
    Backup(BackupArgs),
    /// Change the read limit of backups that run now
    Limit(LimitArgs),
    /// List the backups, of all guests or of one
    List(ListArgs),
    /// Show one backup in full
    Show(ShowArgs),
    /// Show which parts of the disks changed between two backups
    Diff(DiffArgs),
    /// Mount all backups as images, or the file systems inside one backup
    Mount(MountArgs),
    /// List what vbk has mounted on this machine
    Mounts,
    /// Take down what `vbk mount` mounted
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Write a disk back: to a file, onto a block device, or to standard output
    Restore(RestoreArgs),
    /// Forget backups: those that a policy does not keep, or those that are named
    Forget(ForgetArgs),
    /// Protect backups: no policy forgets them until they are unprotected
    Protect(ProtectArgs),
    /// Take the protection of backups away
    Unprotect(ProtectArgs),
    /// Give back the space of what no backup needs any more
    Prune(PruneArgs),
    /// List the snapshots that vbk made of disks, and remove those that were left behind
    Snapshots(SnapshotsArgs),
    /// Show how much the repository holds, by guest, and what it takes
    Stats,
    /// Show who reads and writes the repository, and what it takes on disk
    Status,
    /// Manage what opens an encrypted repository
    #[command(subcommand)]
    Key(KeyCommand),
    /// List the guests of this host: configured, of libvirt, and logical volumes with tags
    #[command(after_help = hosts::GUESTS_HELP)]
    Guests,
    /// Read the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Accept a repository that is not what this host knew it to be
    #[command(after_help = trust::HELP)]
    Trust(TrustArgs),
    /// Put right what is damaged, as far as its content can be found elsewhere
    Repair(RepairArgs),
    /// Read back every block of every backup, decode it and hash it again
    Verify(VerifyArgs),
}

/// Arguments of `vbk init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to make it [default: the repository named by --repo or VBK_REPO]
    #[arg(value_name = "DIR")]
    pub path: Option<PathBuf>,

    /// How disks are cut: a power of two from 64K to 16M. Fixed for the life of the repository
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse::parse_block_size)]
    pub block_size: BlockSize,

    /// Encrypt everything (AES-256-GCM). Asks for a passphrase; --passphrase-file or --key-file give it a file instead
    /// (a key file that does not exist is made)
    #[arg(long)]
    pub encrypt: bool,

    /// Make the directories above it too, where they are missing. Without it only the last one is made: a file system that
    /// is not mounted is noticed
    #[arg(long)]
    pub parents: bool,

    /// Make no recovery key. Without one, a forgotten passphrase or lost key file loses all backups
    #[arg(long, requires = "encrypt")]
    pub no_recovery_key: bool,
}

/// What `vbk key` does.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List what opens the repository
    List,
    /// Add a passphrase, a key file or a recovery key
    Add(KeyAddArgs),
    /// Remove a passphrase, key file or recovery key. Asks for one that stays, or for an exported key: whoever removes a
    /// way in has another one
    Remove {
        /// Its name in `vbk key list`
        name: String,
    },
    /// Write the master key itself to a file: it opens the repository even when all key slots are lost
    Export {
        /// A new file, or - for standard output
        file: PathBuf,
    },
}

/// Arguments of `vbk key add`.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// What to call it [default: passphrase, key-file or recovery]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Add this key file; made if it does not exist
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,

    /// Add the passphrase in the first line of this file, instead of asking for one
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    pub new_passphrase_file: Option<PathBuf>,

    /// Add a recovery key, which is shown once
    #[arg(long, conflicts_with_all = ["new_key_file", "new_passphrase_file"])]
    pub recovery: bool,
}

/// Arguments of `vbk list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only backups of this guest
    pub guest: Option<GuestName>,
}

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

/// Arguments of `vbk show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The backup, as in web1@latest
    pub backup: BackupSpec,

    /// Print the files that were kept with it, as config.xml, and the partitions of its disks
    #[arg(long)]
    pub config: bool,

    /// Write one of these files to standard output, as it is
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "json"])]
    pub file: Option<String>,
}

/// Arguments of `vbk diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The backup to compare with, as in web1@2026-11-20, or one disk of it, as in web1@2026-11-20/vda
    #[arg(value_name = "BEFORE")]
    pub before: BackupSpec,

    /// The backup to compare, as in web1@latest
    #[arg(value_name = "AFTER")]
    pub after: BackupSpec,

    /// List every changed range, and not only the sums
    #[arg(long)]
    pub ranges: bool,
}

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

/// Arguments of `vbk umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    pub dir: PathBuf,

    /// Take it out of sight now, also while programs use it; the rest goes when they end
    #[arg(long, short)]
    pub lazy: bool,
}

/// Arguments of `vbk forget`.
#[derive(Debug, Args)]
#[command(
    override_usage = "vbk forget [OPTIONS] <GUEST>... [--keep-daily 7 ...]\n       vbk forget [OPTIONS] --all [--keep-daily 7 ...]\n       vbk forget [OPTIONS] <BACKUP>...",
    after_help = FORGET_HELP
)]
pub struct ForgetArgs {
    /// Guests, together with what to keep of each; or backups by their whole names, as in web1@2026-10-01T02-00-00Z, by
    /// whole ids, or as web1@latest
    #[arg(value_name = "GUEST|BACKUP", required_unless_present = "all")]
    pub what: Vec<String>,

    /// All guests. Those of which nothing says what to keep are left out, with a warning
    #[arg(long, conflicts_with = "what")]
    pub all: bool,

    /// Also forget a backup that is named and is the last good one of its guest
    #[arg(long, conflicts_with = "all")]
    pub last_too: bool,

    /// What to keep.
    #[command(flatten)]
    pub keep: KeepArgs,

    /// The time zone in which days, weeks, months and years begin [default: that of this machine]
    #[arg(long, env = "VBK_TIME_ZONE", value_name = "ZONE")]
    pub time_zone: Option<String>,

    /// Only show what would be forgotten and what kept, and why
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Run `vbk prune` afterwards
    #[arg(long, conflicts_with = "dry_run")]
    pub prune: bool,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

const FORGET_HELP: &str = "\
A backup stays if any rule keeps it. Each rule walks from the newest backup to
the oldest and keeps the newest one of each day, week, month or year until its
number is used up. Without any --keep-... the guest's own `keep` in the
configuration, or that of its [defaults], says what stays; keep = \"all\" keeps all
backups. Whatever the rules say, protected backups stay, and so does
the newest good backup of each guest. Damaged ones are not counted.

Forgetting takes a backup out of the list at once. The space of its blocks comes
back with `vbk prune`, as far as no other backup needs them.";

/// What a policy keeps.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to keep")]
pub struct KeepArgs {
    /// The newest N backups
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_last: u32,
    /// One an hour, for the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_hourly: u32,
    /// One a day, for the last N days that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_daily: u32,
    /// One a week, Monday to Sunday, for the last N weeks that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_weekly: u32,
    /// One a month, for the last N months that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_monthly: u32,
    /// One a year, for the last N years that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_yearly: u32,
    /// All that are not older than this, as in 14d, 2w, 6m, 1y or 48h
    #[arg(long, value_name = "AGE")]
    pub keep_within: Option<Age>,
}

impl KeepArgs {
    /// The policy.
    pub fn policy(&self) -> KeepPolicy {
        KeepPolicy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
        }
    }
}

/// Arguments of `vbk protect` and `vbk unprotect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// The backups, as in web1@2026-10-01
    #[arg(value_name = "BACKUP", required = true)]
    pub backups: Vec<BackupSpec>,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `vbk prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only show how much would be removed
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// How much unused may stay, as a share of what is in use: less gives back more and takes longer
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = parse::parse_percent)]
    pub max_unused: f64,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `vbk verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Only these backups [default: all]
    #[arg(value_name = "BACKUP")]
    pub backups: Vec<BackupSpec>,

    /// Without the key of an encrypted repository: read everything that is stored, and compare it with its checksums
    #[arg(long, conflicts_with_all = ["sample", "backups", "rotate"])]
    pub without_key: bool,

    /// Read only a random share of the blocks, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = parse::parse_percent)]
    pub sample: Option<f64>,

    /// Read a part of the blocks, the one that was not read for longest, so that runs every night read everything once
    /// in this time, as in 30d; nights that were missed are made up for
    #[arg(long, value_name = "AGE", conflicts_with_all = ["sample", "backups"])]
    pub rotate: Option<Age>,
}

/// Arguments of `vbk repair`.
#[derive(Debug, Args)]
#[command(after_help = REPAIR_HELP)]
pub struct RepairArgs {
    /// Fetch damaged blocks from this repository, if it has them
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,

    /// Look for damaged blocks on a disk as it is now, as in web1=/dev/vg0/web1; may be given several times
    #[arg(long, value_name = "GUEST=DISK", value_parser = parse::parse_source)]
    pub from_source: Vec<(GuestName, PathBuf)>,

    /// Give up with exit code 75 if another process writes to the repository, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

const REPAIR_HELP: &str = "\
Puts the store's own files right from their second copies, or makes the store
anew from the newest view that opens; the old one is kept as REPO/store.damaged
for you to remove. Then reads every block of every backup, and gets back what is
damaged: a block is known by its hash, so it does not matter where it comes from.
What can't be got back is named, and is stored anew by the next backup that finds
it on a disk. Exits with 4 if damage is left or backups may be lost.

In an encrypted repository it also takes the list of backups as it is: if records
or notes were changed without the key, it says how, exits with 3, and lets forget
and prune work again. Bring back a copy of the repository first if one is missed.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
