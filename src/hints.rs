//! What has changed since the backup before, as the volume manager or the file system tells it: what they call
//! unchanged need not be read.

/// Whether to believe change hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChangeHints {
    /// Read everything.
    #[default]
    Off,
    /// Use what there is.
    Auto,
}
