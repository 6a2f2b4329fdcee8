//! Backups that stay although no rule keeps them, because they have the last data of a disk.

use std::fmt;

use vbk::retention::disks::{Loss, losses};
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::name::GuestName;
use vbk_repo::state::States;

use super::verdict::{Action, Said, Verdict, Why};

/// A backup that stays for one of its disks.
#[derive(Debug)]
pub struct Held {
    backup: String,
    loss: Loss,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backup, loss } = self;
        write!(
            f,
            "{backup} stays: {loss}. If that was meant, `vbk forget {backup}` or --changed-too forgets it all the same"
        )
    }
}

/// Keeps the backups with the last data of a disk, and returns them. `verdicts` are those of all backups of the guest, in their order.
pub fn hold(catalogue: &Catalogue, states: &States, guest: &GuestName, verdicts: &mut [Verdict]) -> Vec<Held> {
    let good = |entry: &Entry| states.of(&entry.backup).damaged.is_none();
    let backups: Vec<_> = catalogue.of(guest).map(|entry| (&*entry.backup, good(entry))).collect();
    let mut held = Vec::new();
    for (verdict, losses) in verdicts.iter_mut().zip(losses(&backups)) {
        if verdict.action != Action::Forget || losses.is_empty() {
            continue;
        }
        verdict.action = Action::Keep;
        let reason = |loss: &Loss| {
            Why::Said(Said::LastData {
                disk: loss.disk.to_string(),
            })
        };
        verdict.reasons = losses.iter().map(reason).collect();
        let backup = verdict.backup.clone();
        held.extend(losses.into_iter().map(|loss| Held {
            backup: backup.clone(),
            loss,
        }));
    }
    held
}
