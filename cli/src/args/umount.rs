//! The arguments of `vbk umount`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `vbk umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount points
    #[arg(value_name = "DIR", required_unless_present = "all", conflicts_with = "all")]
    pub dirs: Vec<PathBuf>,

    /// Everything that vbk has mounted for this user
    #[arg(long)]
    pub all: bool,

    /// Detach it now, even while programs use it; it is unmounted when they end
    #[arg(long, short)]
    pub lazy: bool,

    /// Do not wait for the process that serves the mount: it runs this command itself
    #[arg(long, hide = true)]
    pub no_wait: bool,
}
