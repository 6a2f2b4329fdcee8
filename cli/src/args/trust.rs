//! The arguments of `vbk trust`.

use clap::Args;

/// Help after the options.
pub const HELP: &str = "\
A host remembers each repository that it uses, by its path: its id, whether it is
encrypted and with which master key, and its newest state. If a repository is
another one, is no longer encrypted, or is older than remembered, commands that
write to it stop, and commands that read from it warn and exit with 3. That
happens after the repository was restored from an older copy, when another disk is
mounted in its place, and when someone who can write to the storage changed it. If
you know the reason, `vbk trust` accepts the repository as it is, and prints what
it replaces. The memory is in /var/lib/vbk-trust (of other users:
~/.local/state/vbk/trust).";

/// Arguments of `vbk trust`.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Forget the repository, so that another one can be created in its place
    #[arg(long)]
    pub forget: bool,
}
