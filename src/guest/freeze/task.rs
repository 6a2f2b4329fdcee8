//! The order that vbk gives to a helper process.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Work of one helper: an act, and its undo.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Task {
    /// The guest, for messages.
    pub guest: String,
    /// The command that freezes.
    pub act: Vec<String>,
    /// It is killed then.
    pub act_limit: Duration,
    /// The way back.
    pub undo: Undo,
    /// The act is undone at the latest when this is over, counted from its start. Longer than `act_limit`.
    pub limit: Duration,
    /// The socket of the system's log.
    pub journal: PathBuf,
    /// Locked as long as the helper lives, if it is given.
    pub lock: Option<PathBuf>,
    /// Opened for writing as long as the helper lives: the outer helper's input.
    pub outer: Option<PathBuf>,
}

/// The way back.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Undo {
    /// A command of the administrator. It runs once, without a limit.
    Command(Vec<String>),
    /// Thawing of this domain's file systems. It is tried until it has worked.
    Thaw(String),
}
