//! The task that vbk gives to a helper process.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Task of one helper: an act, and its undo.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Task {
    /// Name of the guest, for messages.
    pub guest: String,
    /// Command that freezes.
    pub act: Vec<String>,
    /// Time after which the act is killed.
    pub act_limit: Duration,
    /// Undo of the act.
    pub undo: Undo,
    /// Time from the start of the act after which it is undone at the latest. Longer than `act_limit`.
    pub limit: Duration,
    /// Socket of the system's log.
    pub journal: PathBuf,
    /// File that is locked as long as the helper lives.
    pub lock: Option<PathBuf>,
    /// The outer helper's input, held open for writing as long as the helper lives.
    pub outer: Option<PathBuf>,
}

/// Undo of an act.
#[derive(Clone, Serialize, Deserialize)]
pub(super) enum Undo {
    /// Runs a command of the administrator once, without a limit.
    Command(Vec<String>),
    /// Thaws this domain's file systems; tried until it succeeds.
    Thaw(String),
}
