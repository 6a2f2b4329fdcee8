//! The arguments of `vbk key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Subcommands of `vbk key`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the passphrases, key files and recovery keys
    List,
    /// Add a passphrase, a key file or a recovery key
    Add(KeyAddArgs),
    /// Remove a passphrase, key file or recovery key. Needs one that stays, or an exported key, so that the repository can
    /// still be opened
    Remove {
        /// Its name in `vbk key list`
        name: String,
    },
    /// Write the master key to a file. It opens the repository even when all key slots are lost
    Export {
        /// New file, or - for standard output
        file: PathBuf,
    },
}

/// Arguments of `vbk key add`.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// Name of the new key [default: passphrase, key-file or recovery]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Add this key file; it is created if it does not exist
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,

    /// Add the passphrase in the first line of this file, instead of asking for one
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    pub new_passphrase_file: Option<PathBuf>,

    /// Add a recovery key, which is shown only once
    #[arg(long, conflicts_with_all = ["new_key_file", "new_passphrase_file"])]
    pub recovery: bool,
}
