//! The arguments of `vbk init`.

use std::path::PathBuf;

use clap::Args;
use vbk_repo::block::BlockSize;

use super::from::LikeArgs;
use super::parse;

/// Arguments of `vbk init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// New or empty directory, also of another host: `ssh://[USER@]HOST[:PORT]/PATH` [default: the repository named by --repo or
    /// VBK_REPO]
    #[arg(value_name = "DIR")]
    pub path: Option<PathBuf>,

    /// Block size: a power of two from 64K to 16M; a plain number is bytes. Fixed for the life of the repository
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse::parse_block_size)]
    pub block_size: BlockSize,

    /// Encrypt everything (AES-256-GCM). Asks for a passphrase, unless --passphrase-file or --key-file names a file (a key
    /// file that does not exist is created)
    #[arg(long)]
    pub encrypt: bool,

    /// The repository that it shall be like.
    #[command(flatten)]
    pub like: LikeArgs,

    /// Create missing parent directories too. Without this option a missing parent is an error, which shows when a file
    /// system is not mounted
    #[arg(long)]
    pub parents: bool,

    /// Create no recovery key. Without one, a forgotten passphrase or lost key file loses all backups
    #[arg(long)]
    pub no_recovery_key: bool,
}
