//! The arguments of `vbk guests` and `vbk config`.

use clap::Subcommand;

use crate::config_keys;

/// Help after the options of `vbk guests`.
pub const GUESTS_HELP: &str = "\
A guest is a section [guest.NAME] in the configuration, a domain of libvirt, or
logical volumes with tags, e.g.
  lvchange --addtag vbk_guest=web1/vda vg0/web1-root
The first of these that knows a guest decides which disks it has.";

/// Subcommands of `vbk config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and show its meaning: each guest with its disks, read limit and policy. Exits with 3 for
    /// warnings, with 2 if the configuration is invalid
    #[command(after_help = config_keys::help())]
    Check,
    /// Print a configuration with every key, explained and commented out, e.g. to redirect it into /etc/vbk/config.toml
    Example,
}
