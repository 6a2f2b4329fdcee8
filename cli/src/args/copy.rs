//! The arguments of `vbk copy`.

use std::path::PathBuf;

use clap::Args;
use vbk::retention::Age;
use vbk_repo::repository::Reserve;

use super::from::FromArgs;
use super::parse;

/// Arguments of `vbk copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The repository to copy from: a directory, ssh:// or vbk://. It is only read
    #[arg(value_name = "FROM")]
    pub from: PathBuf,

    /// The repository to copy to: a directory, ssh:// or vbk://. `vbk init TO --like FROM` makes one that fits
    #[arg(value_name = "TO")]
    pub to: PathBuf,

    /// Guests to copy, e.g. web1 or 'db-*' [default: all]
    #[arg(value_name = "GUEST")]
    pub guests: Vec<String>,

    /// Copy only backups that are not older than this, e.g. 30d, 2w, 6mo, 1y or 48h
    #[arg(long, value_name = "AGE")]
    pub since: Option<Age>,

    /// Copy everything as it is sealed, without the key: between encrypted repositories with the same master key
    #[arg(long, conflicts_with_all = ["guests", "from_key_file", "from_passphrase_file"])]
    pub without_key: bool,

    /// The keys and the token of FROM.
    #[command(flatten)]
    pub keys: FromArgs,

    /// Free space to leave on the file system of TO, e.g. 10GiB or 5% [default: 5%, at most 8 GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse::parse_reserve)]
    pub reserve: Option<Reserve>,

    /// Only show which backups would be copied
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Exit with code 75 if another process writes to TO, instead of waiting for it
    #[arg(long)]
    pub no_wait: bool,
}

pub const HELP: &str = "\
Copies each backup that TO lacks, oldest first. Only blocks that TO lacks are
sent. Nothing in TO is removed or changed: it has its own forget and prune. An
interrupted copy is continued by the next one.

Every block and manifest is proved before it is stored. A backup that is damaged
in FROM is named and left out, the others are copied, and the exit code is 4;
`vbk repair --from` can restore it. If TO has another backup of the same guest
and time, that one stays, and the exit code is 1.

Both need the same block size. Between plain repositories, and between those
with the same master key (`vbk init --like`), blocks that TO has are not even
read. Otherwise names must be computed again: the blocks of each changed part of
a disk are read from FROM to compare them.

Copied are the disks, the files and the record of a backup; of its state the
protection and the last rehearsal. Both may be changed in TO, and a later copy
does not change them back. Verification is not copied: run `vbk verify` in TO.

--without-key is for a machine that must not have the key. Names and times can't
be read there: all backups are copied, and --since goes by the time at which they
arrived in FROM. Protection is not copied. TO is made once with the key (`vbk
init TO --like FROM`). Damage is told by sums, which repositories have that this
version or a later one made.

--key-file, --passphrase-file and --token-file are for TO, and for FROM too where
no --from-... is given. If both have the same master key, FROM's opens TO. The
token for FROM needs the right `copy`, that for TO `manage`.
VBK_REPO is not used.";
