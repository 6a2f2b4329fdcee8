//! The options that open another repository, which a command reads.

use std::path::{Path, PathBuf};

use clap::Args;

/// Options that open the repository FROM.
#[derive(Debug, Args)]
pub struct FromArgs {
    /// Key file of FROM, or a key from `vbk key export` [default: that of --key-file]
    #[arg(long, value_name = "FILE", requires = "from")]
    pub from_key_file: Option<PathBuf>,

    /// File whose first line is the passphrase of FROM [default: that of --passphrase-file]
    #[arg(long, value_name = "FILE", requires = "from", conflicts_with = "from_key_file")]
    pub from_passphrase_file: Option<PathBuf>,

    /// File with the token for a vbk:// repository FROM [default: that of --token-file]
    #[arg(long, value_name = "FILE", requires = "from")]
    pub from_token_file: Option<PathBuf>,
}

/// Options that open the repository that a new one shall be like.
#[derive(Debug, Args)]
pub struct LikeArgs {
    /// Make it like this repository, which may be on another host: with the same block size and, if that is encrypted, the same
    /// master key. Then `vbk copy` sends blocks between the two as they are
    #[arg(long, value_name = "REPO", conflicts_with_all = ["block_size", "encrypt"])]
    pub like: Option<PathBuf>,

    /// Key file of the repository of --like [default: that of --key-file]
    #[arg(long, value_name = "FILE", requires = "like")]
    pub like_key_file: Option<PathBuf>,

    /// File whose first line is the passphrase of the repository of --like [default: that of --passphrase-file]
    #[arg(long, value_name = "FILE", requires = "like", conflicts_with = "like_key_file")]
    pub like_passphrase_file: Option<PathBuf>,

    /// File with the token for the vbk:// repository of --like [default: that of --token-file]
    #[arg(long, value_name = "FILE", requires = "like")]
    pub like_token_file: Option<PathBuf>,
}

/// Files that were named to open another repository.
#[derive(Debug, Clone, Copy)]
pub struct OtherKeys<'a> {
    /// Start of the names of the options.
    pub options: &'static str,
    /// A key file.
    pub key_file: Option<&'a Path>,
    /// A file with a passphrase in it.
    pub passphrase_file: Option<&'a Path>,
    /// A file with a token in it.
    pub token_file: Option<&'a Path>,
}

impl FromArgs {
    /// Returns the named files.
    pub fn keys(&self) -> OtherKeys<'_> {
        OtherKeys {
            options: "--from",
            key_file: self.from_key_file.as_deref(),
            passphrase_file: self.from_passphrase_file.as_deref(),
            token_file: self.from_token_file.as_deref(),
        }
    }
}

impl LikeArgs {
    /// Returns the named files.
    pub fn keys(&self) -> OtherKeys<'_> {
        OtherKeys {
            options: "--like",
            key_file: self.like_key_file.as_deref(),
            passphrase_file: self.like_passphrase_file.as_deref(),
            token_file: self.like_token_file.as_deref(),
        }
    }
}
