//! The arguments of `vbk trust`.

use clap::Args;

/// Behind its options.
pub const HELP: &str = "\
A host remembers of each repository that it uses, by its path: its id, whether it
is encrypted and with which master key, and its newest state. What writes to a
repository stops when that is another one, is not encrypted any more or has gone
back; what reads from it warns, and exits with 3. That happens after a restore of
the repository from an older copy, when another disk is mounted at its place, and
when someone who can write to the storage changed it. If you know the reason,
`vbk trust` accepts what is there now, and prints what it takes the place of. The
memory is in /var/lib/vbk-trust (of other users: ~/.local/state/vbk/trust).";

/// Arguments of `vbk trust`.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Forget what is known of the repository, so that another one can be made in its place
    #[arg(long)]
    pub forget: bool,
}
