//! The command line. Its help texts are the manual of vbk.

mod backup;
mod boot;
mod copy;
mod diff;
mod examples;
mod files;
mod forget;
mod from;
mod generate;
mod help;
mod hosts;
mod init;
mod inside_path;
mod key;
mod list;
mod mount;
mod mounts;
mod note;
pub mod parse;
mod policy;
mod politeness;
mod prune;
mod rename;
mod repair;
mod restore;
mod serve;
mod show;
mod snapshots;
mod sources;
mod status;
mod token;
mod trust;
mod umount;
mod unforget;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use vbk_remote::client::{Bandwidth, LaneOptions};

pub use backup::{BackupArgs, DiskArg};
pub use boot::{AccelArg, BootArgs, BusArg, FamilyArg, FirmwareArg, MachineArgs, NetworkArg, RehearseArgs};
pub use copy::CopyArgs;
pub use diff::DiffArgs;
pub use files::{CatArgs, CpArgs, FindArgs, LsArgs};
pub use forget::{ForgetArgs, ProtectArgs};
pub use from::OtherKeys;
pub use generate::{GenerateCommand, Shell};
pub use help::command;
pub use hosts::ConfigCommand;
pub use init::InitArgs;
pub use inside_path::InsidePath;
pub use key::{KeyAddArgs, KeyCommand, KeyPasswdArgs};
pub use list::{ListArgs, OrderArg, StateArg};
pub use mount::MountArgs;
pub use mounts::MountsArgs;
pub use note::NoteArgs;
pub use policy::PolicyArgs;
pub use politeness::{LimitArgs, WantedLimit, parse_wanted_limit};
pub use prune::PruneArgs;
pub use rename::RenameArgs;
pub use repair::RepairArgs;
pub use restore::{FileFormat, RestoreArgs, SkipDamaged};
pub use serve::{QuotaArgs, RightsArg, ServeArgs};
pub use show::ShowArgs;
pub use snapshots::SnapshotsArgs;
pub use sources::Sources;
pub use status::StatusArgs;
pub use token::{TokenAddArgs, TokenCommand, TokenPlace};
pub use trust::TrustArgs;
pub use umount::UmountArgs;
pub use unforget::UnforgetArgs;
pub use verify::VerifyArgs;

const AFTER_HELP: &str = "\
A BACKUP is named GUEST@latest, GUEST@2026-11-21 (as much of the time as
is unique) or by the first digits of its id. BACKUP/DISK names one disk
of it, e.g. web1@latest/vda; BACKUP:PATH names a file in it, e.g.
web1@latest:/etc/fstab. Times are UTC.

Sizes: 10G or 10GiB (units of 1024), 10GB (units of 1000); rates: 50M, 50MB/s.
Lengths of time: 30s, 90min, 6h, 14d, 2w, 6mo, 1y, 1h30min, '7 days'.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with warnings,
4 damage found, 75 busy, 130 interrupted. With --json an error is one line on
standard error: {\"error\":{\"kind\":\"...\",\"message\":\"...\",\"hint\":\"...\"}}. The kinds:
usage, not-found, invalid, denied, locked, unavailable, time-limit, no-space,
read-only, corrupt, unsupported, interrupted, internal.

Example:
  vbk init /var/lib/vbk
  export VBK_REPO=/var/lib/vbk
  vbk backup web1 /dev/vg0/web1
  vbk ls web1@latest:/etc/nginx
  vbk cp web1@latest:/etc/nginx/nginx.conf .
  vbk restore web1@latest /dev/vg0/web1";

/// Returns the help text that lists the kinds of errors.
#[cfg(test)]
pub fn kinds_help() -> &'static str {
    AFTER_HELP
}

/// Backs up the disks of virtual servers, and restores any past day: a whole disk, a mounted image, or one file.
#[derive(Debug, Parser)]
#[command(name = "vbk", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,

    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The repository: a directory made by `vbk init`, or `ssh://[USER@]HOST[:PORT]/PATH` or
    /// `vbk://HOST[:PORT][/REPOSITORY]` of one on another host [default: that of VBK_REPO, or else `repository` in the
    /// configuration]
    #[arg(long, short = 'r', global = true, env = "VBK_REPO", value_name = "REPO")]
    pub repo: Option<PathBuf>,

    /// The ssh program for ssh:// repositories, with its options; paths in them must be absolute for a mount in the background
    #[arg(
        long,
        global = true,
        env = "VBK_RSH",
        value_name = "COMMAND",
        default_value = "ssh",
        hide_short_help = true
    )]
    pub rsh: String,

    /// vbk on the other host
    #[arg(
        long,
        global = true,
        env = "VBK_REMOTE_PATH",
        value_name = "FILE",
        default_value = "vbk",
        hide_short_help = true
    )]
    pub remote_path: String,

    /// File with the token for a vbk:// repository, from `vbk token add` on the server
    #[arg(
        long,
        global = true,
        env = "VBK_TOKEN_FILE",
        value_name = "FILE",
        hide_short_help = true
    )]
    pub token_file: Option<PathBuf>,

    /// Time for which a lost connection to another host is tried again; 0 for never [default: 1h]
    #[arg(
        long,
        global = true,
        env = "VBK_RECONNECT_FOR",
        value_name = "TIME",
        value_parser = parse::parse_duration_or_zero,
        hide_short_help = true
    )]
    pub reconnect_for: Option<Duration>,

    /// Most connections to another host for what is large: one alone may not fill a long line
    #[arg(
        long,
        global = true,
        env = "VBK_CONNECTIONS",
        value_name = "NUMBER",
        default_value_t = LaneOptions::MOST as u8,
        value_parser = clap::value_parser!(u8).range(1..=16),
        hide_short_help = true
    )]
    pub connections: u8,

    /// Most bytes per second to and from another host, e.g. 20MB/s, and by the time of day: '5MB/s 8:00-18:00, 50MB/s' [default:
    /// none]
    #[arg(
        long,
        global = true,
        env = "VBK_BANDWIDTH",
        value_name = "RATE",
        value_parser = parse::parse_bandwidth,
        hide_short_help = true
    )]
    pub bandwidth: Option<Bandwidth>,

    /// Most bytes in the cache of what this host reads from a repository on another one, e.g. 10G; off for none [default: 1G]
    #[arg(
        long,
        global = true,
        env = "VBK_CACHE",
        value_name = "SIZE",
        value_parser = parse::parse_size_or_off,
        hide_short_help = true
    )]
    pub cache: Option<u64>,

    /// Key file of an encrypted repository, or a key from `vbk key export`. Refuses a repository that is not encrypted
    #[arg(long, global = true, env = "VBK_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// File whose first line is the passphrase of an encrypted repository. Refuses a repository that is not encrypted
    #[arg(long, global = true, env = "VBK_PASSPHRASE_FILE", value_name = "FILE")]
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

    /// Log more; given twice, log everything but the options of the store; given three times, also those
    #[arg(long, short, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a repository in a new or empty directory
    Init(InitArgs),
    /// Back up the disks of a guest, or of all guests of this host
    Backup(BackupArgs),
    /// Change the read limit of running backups
    Limit(LimitArgs),
    /// List the backups, of all guests or of some
    #[command(after_help = list::HELP)]
    List(ListArgs),
    /// Show one backup in full
    Show(ShowArgs),
    /// Show what changed between two backups: parts of disks, or files
    #[command(after_help = diff::HELP)]
    Diff(DiffArgs),
    /// List the files in a backup
    Ls(LsArgs),
    /// Write files in a backup to standard output
    Cat(CatArgs),
    /// Copy files out of a backup
    Cp(CpArgs),
    /// Find the backups that have a file, and its versions
    Find(FindArgs),
    /// Mount all backups as images, or the file systems inside one backup
    Mount(MountArgs),
    /// List vbk's mounts on this machine
    Mounts(MountsArgs),
    /// Unmount what `vbk mount` mounted
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Restore a disk to a file or a block device, or a whole guest
    Restore(RestoreArgs),
    /// Run a guest from its backup, in QEMU
    Boot(BootArgs),
    /// Boot a backup without a network, and note if it comes up
    Rehearse(RehearseArgs),
    /// Forget the backups that a policy does not keep, or named ones
    Forget(ForgetArgs),
    /// Bring forgotten backups back
    #[command(after_help = unforget::HELP)]
    Unforget(UnforgetArgs),
    /// Give the backups of a guest another name
    #[command(after_help = rename::HELP)]
    Rename(RenameArgs),
    /// Protect backups from being forgotten
    Protect(ProtectArgs),
    /// Remove the protection of backups
    Unprotect(ProtectArgs),
    /// Write a note about a backup
    #[command(after_help = note::HELP)]
    Note(NoteArgs),
    /// Free the space of blocks that no backup needs
    Prune(PruneArgs),
    /// List vbk's snapshots of disks, and remove those left behind
    Snapshots(SnapshotsArgs),
    /// Copy backups to another repository, e.g. in another place
    #[command(after_help = copy::HELP)]
    Copy(CopyArgs),
    /// Show the content of the repository by guest, and its size
    Stats,
    /// Show who uses the repository, its free space and its last backup
    ///
    /// Also the last verification and prune, whether damage is known, and with -v what each reader holds.
    Status(StatusArgs),
    /// Manage the keys of an encrypted repository
    #[command(subcommand)]
    Key(KeyCommand),
    /// List the guests of this host, and where they were found
    #[command(after_help = hosts::GUESTS_HELP)]
    Guests,
    /// Check the configuration, or print an example of one
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write manual pages, and completion scripts for shells
    #[command(subcommand, hide = true)]
    Generate(GenerateCommand),
    /// Accept a repository that is not the one this host knows
    #[command(after_help = trust::HELP)]
    Trust(TrustArgs),
    /// Repair damage, as far as the content is found elsewhere
    Repair(RepairArgs),
    /// Let another host use a repository of this one
    #[command(after_help = serve::HELP)]
    Serve(ServeArgs),
    /// Manage the tokens of hosts that use a repository of this one
    #[command(subcommand, after_help = token::HELP)]
    Token(TokenCommand),
    /// Show and set what clients of a repository's server may destroy
    #[command(after_help = policy::HELP)]
    Policy(PolicyArgs),
    /// Read every block of every backup, decode it and check its hash
    Verify(VerifyArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use vbk::limit::ReadLimit;
    use vbk::snapshot::SnapshotOptions;

    use super::*;
    use vbk_repo::store::PruneOptions;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cp_has_the_short_option_of_the_repository_for_recursion() {
        use clap::FromArgMatches;
        for words in [
            &["vbk", "-r", "/repo", "cp", "-r", "web1@latest:/srv", "srv"][..],
            &["vbk", "cp", "--repo", "/repo", "-r", "web1@latest:/srv", "srv"],
        ] {
            let matches = Cli::command().try_get_matches_from(words).expect("is valid");
            let cli = Cli::from_arg_matches(&matches).expect("is valid");
            assert_eq!(
                cli.global.repo.as_deref(),
                Some(std::path::Path::new("/repo")),
                "{words:?}"
            );
            assert!(
                matches!(cli.command, Command::Cp(CpArgs { recursive: true, .. })),
                "{words:?}"
            );
        }
        let mut cli = Cli::command();
        cli.build();
        let cp = cli.find_subcommand_mut("cp").expect("a command");
        assert!(!cp.render_long_help().to_string().contains("-r, --repo"));
    }

    #[test]
    fn the_help_names_the_defaults_of_the_engine() {
        let help = |command: &str| {
            let mut cli = Cli::command();
            let found = cli.find_subcommand_mut(command).expect("a command");
            let text = found.render_long_help().to_string();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let percent = |share: f64| format!("{}%", share * 100.0);
        let snapshots = SnapshotOptions::default();
        let (extend, stop) = (snapshots.extend_at.map(percent), percent(snapshots.stop_at));
        let backup = help("backup");
        for text in [
            format!("or {}; none for a file", ReadLimit::DEFAULT),
            format!("less than {stop} [default: {}]", extend.expect("a default")),
            format!("at {stop} the backup is stopped"),
        ] {
            assert!(backup.contains(&text), "no {text:?} in: {backup}");
        }
        let prune = help("prune");
        assert!(
            prune.contains(&format!("[default: {}]", percent(PruneOptions::MAX_UNUSED))),
            "{prune}"
        );
    }
}
