//! The arguments of `vbk umount`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `vbk umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    pub dir: PathBuf,

    /// Take it out of sight now, also while programs use it; the rest goes when they end
    #[arg(long, short)]
    pub lazy: bool,
}
