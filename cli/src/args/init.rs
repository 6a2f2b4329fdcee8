//! The arguments of `vbk init`.

use std::path::PathBuf;

use clap::Args;
use vbk_repo::block::BlockSize;

use super::parse;

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
