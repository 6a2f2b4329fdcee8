//! The arguments of `vbk key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
