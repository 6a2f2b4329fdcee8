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
    /// Change a passphrase, a key file or a recovery key. The new one is added and proved to open the repository before the old one is
    /// removed
    Passwd(KeyPasswdArgs),
    /// Write the master key to a file. It opens the repository even when all key slots are lost
    Export {
        /// New file, or - for standard output
        file: PathBuf,
    },
}

/// Arguments of `vbk key passwd`.
#[derive(Debug, Args)]
pub struct KeyPasswdArgs {
    /// Key to change, by its name in `vbk key list` [default: the one that is given to open the repository]
    #[arg(value_name = "NAME")]
    pub old: Option<String>,

    /// The new key.
    #[command(flatten)]
    pub new: KeyAddArgs,
}

/// Arguments of `vbk key add`, and those for the new key of `vbk key passwd`.
#[derive(Debug, Args)]
pub struct KeyAddArgs {
    /// Name of the new key [default: passphrase, key-file or recovery; of a key that is changed its own name with a number]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Use this key file; it is created if it does not exist
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,

    /// Use the passphrase in the first line of this file, instead of asking for one
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    pub new_passphrase_file: Option<PathBuf>,

    /// Make a recovery key, which is shown only once
    #[arg(long, conflicts_with_all = ["new_key_file", "new_passphrase_file"])]
    pub recovery: bool,
}
