//! The settings that any section of the configuration may have: one row each. A row makes the name of the setting, its
//! field in a section, its field in the settings of a guest, and its default.
//!
//! `config/read/setting.rs` parses the values, and `commands/config/settings.rs` shows them.

use std::path::PathBuf;
use std::time::Duration;

use vbk::guest::freeze::FreezePlan;
use vbk::hints::ChangeHints;
use vbk::hints::decide::FULL_READ_EVERY;
use vbk::limit::ReadLimit;
use vbk::snapshot::{SnapshotOptions, SnapshotSize};
use vbk_repo::codec::Compression;
use vbk_repo::name::DiskName;

use super::{GuestAgent, Keep};

/// Each row: the documentation, the name in the file, the field, its type in a section, its type in the settings of a
/// guest, and the function from the one to the other.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:literal $field:ident: $given:ty => $settled:ty = $settle:expr;)*) => {
        /// Names of the settings that any section may have.
        pub const NAMES: &[&str] = &[$($name),*];

        /// Settings of a section; `None` for those that it does not set.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Section {
            $(pub $field: Option<$given>,)*
            pub disks: Option<Vec<(DiskName, PathBuf)>>,
            pub domain: Option<String>,
            pub skip_disks: Option<Vec<DiskName>>,
        }

        /// Settings of a guest: from its section, or else from `[defaults]`, or else vbk's own defaults.
        #[derive(Debug, Clone, PartialEq)]
        pub struct GuestSettings {
            /// The file has a section for the guest.
            pub is_configured: bool,
            /// Its disks; `None` for those that libvirt or tags name.
            pub disks: Option<Vec<(DiskName, PathBuf)>>,
            /// Its name in libvirt, if it is another one.
            pub domain: Option<String>,
            /// Disks that are not backed up.
            pub skip_disks: Vec<DiskName>,
            $($(#[$doc])* pub $field: $settled,)*
        }

        impl GuestSettings {
            /// Merges the section of a guest, if it has one, with `[defaults]`.
            pub fn new(own: Option<&Section>, defaults: &Section) -> Self {
                let empty = Section::default();
                let section = own.unwrap_or(&empty);
                Self {
                    is_configured: own.is_some(),
                    disks: section.disks.clone(),
                    domain: section.domain.clone(),
                    skip_disks: section.skip_disks.clone().unwrap_or_default(),
                    $($field: {
                        let settle: fn(Option<$given>) -> $settled = $settle;
                        settle(section.$field.clone().or_else(|| defaults.$field.clone()))
                    },)*
                }
            }
        }
    };
}

settings! {
    /// Read limit of its disks, if one is set.
    "read-limit" read_limit: ReadLimit => Option<ReadLimit> = |set| set;
    /// Its policy, if one is set; never one without rules.
    "keep" keep: Keep => Option<Keep> = |set| set;
    /// Speed allocated to each of its disks, in bytes per second; `None` for that of libvirt or a measurement.
    "device-speed" device_bytes_per_sec: u64 => Option<u64> = |set| set;
    /// Space for a thick snapshot; `None` to decide from earlier runs and the free space.
    "snapshot-size" snapshot_size: SnapshotSize => Option<SnapshotSize> = |set| set;
    /// Fill at which a snapshot is extended, 1 is full; `None` to extend none.
    "extend" extend: Option<f64> => Option<f64> = |set| set.unwrap_or(SnapshotOptions::default().extend_at);
    /// Use of change hints.
    "change-hints" change_hints: ChangeHints => ChangeHints = Option::unwrap_or_default;
    /// Interval between full reads in spite of hints.
    "full-read-every" full_read_every: Duration => Duration = |set| set.unwrap_or(FULL_READ_EVERY.unsigned_abs());
    /// Compression of new blocks.
    "compression" compression: Compression => Compression = Option::unwrap_or_default;
    /// Shell command before the snapshot.
    "pre-freeze" pre_freeze: String => Option<String> = |set| set;
    /// Shell command after the snapshot, successful or not.
    "post-thaw" post_thaw: String => Option<String> = |set| set;
    /// Time limit for the pre-freeze command.
    "freeze-timeout" freeze_timeout: Duration => Duration = |set| set.unwrap_or(FreezePlan::PRE_FREEZE_LIMIT);
    /// Use of the guest's agent.
    "guest-agent" guest_agent: GuestAgent => GuestAgent = Option::unwrap_or_default;
    /// Slow down while the host is short of I/O.
    "backoff" backoff: bool => bool = |set| set.unwrap_or(true);
    /// Limit reads in the kernel too, where possible.
    "kernel-limit" kernel_limit: bool => bool = |set| set.unwrap_or(true);
    /// Read with idle priority.
    "idle" idle: bool => bool = |set| set.unwrap_or(true);
    /// Read disks in use without a snapshot, where none can be made.
    "live" live: bool => bool = |set| set.unwrap_or(false);
    /// Its disks are raw, even if they look like another format.
    "raw" raw: bool => bool = |set| set.unwrap_or(false);
}
