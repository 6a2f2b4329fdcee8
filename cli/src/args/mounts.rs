//! The arguments of `vbk mounts`.

use clap::Args;

/// Arguments of `vbk mounts`.
#[derive(Debug, Args)]
pub struct MountsArgs {
    /// Unmount everything whose process is gone, even while programs use it, and remove what killed mounts left behind
    #[arg(long)]
    pub clean: bool,
}
