//! The arguments of `vbk umount`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `vbk umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount point
    pub dir: PathBuf,

    /// Detach it now, even while programs use it; it is unmounted when they end
    #[arg(long, short)]
    pub lazy: bool,
}
