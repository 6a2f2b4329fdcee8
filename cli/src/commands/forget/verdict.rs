//! Decisions of `vbk forget` about backups, as people and programs get them.

use std::fmt;

use serde::Serialize;
use vbk::retention::Reason;

/// Decision about one backup, with its reasons.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) backup: String,
    pub(super) action: Action,
    pub(super) reasons: Vec<Why>,
}

/// Decision about a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    Keep,
    Forget,
}

/// Reason for a decision: an object with `reason` in it, like those of the rules.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Why {
    /// A rule says so.
    Rule(Reason),
    /// The command or the configuration says so.
    Said(Said),
}

/// Reason that is in the command or in the configuration.
#[derive(Debug, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub(super) enum Said {
    /// It was named.
    Named,
    /// All backups of its guest are to be forgotten.
    WholeGuest { guest: String, damaged_record: bool },
    /// Little is left of what the guest had, so no rule is applied.
    ChangedTooMuch { guest: String },
    /// It is the newest one with the data of this disk.
    LastData { disk: String },
    /// The configuration keeps all.
    KeepAll,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Keep => "keep",
            Self::Forget => "forget",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match self {
            Self::Rule(reason) => return reason.fmt(f),
            Self::Said(said) => said,
        };
        match said {
            Said::Named => f.write_str("named"),
            Said::WholeGuest { guest, damaged_record } => match damaged_record {
                true => write!(f, "all of {guest}, its record is damaged"),
                false => write!(f, "all of {guest}"),
            },
            Said::ChangedTooMuch { guest } => write!(f, "{guest} has changed too much"),
            Said::LastData { disk } => write!(f, "newest one with the data of disk {disk}"),
            Said::KeepAll => f.write_str("the configuration keeps all"),
        }
    }
}
