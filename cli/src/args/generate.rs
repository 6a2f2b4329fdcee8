//! The arguments of `vbk generate`, which packagers use.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

/// Subcommands of `vbk generate`.
#[derive(Debug, Subcommand)]
pub enum GenerateCommand {
    /// Write the manual pages into a directory
    Man {
        /// An existing directory
        dir: PathBuf,
    },
    /// Print the script by which a shell completes vbk's arguments
    Completion {
        /// The shell
        shell: Shell,
    },
}

/// Shells that complete vbk's arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// Source it, or save it as /usr/share/bash-completion/completions/vbk
    Bash,
    /// Save it as _vbk in a directory of $fpath
    Zsh,
    /// Save it as /usr/share/fish/vendor_completions.d/vbk.fish
    Fish,
}
