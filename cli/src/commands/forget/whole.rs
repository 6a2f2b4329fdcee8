//! `vbk forget --guest GUEST --all`: all backups of a guest, also the last good one.

use std::collections::BTreeSet;

use vbk::retention::Reason;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::name::GuestName;
use vbk_repo::state::States;

use super::{Action, Judged, Said, Verdict, Why, check_notes};
use crate::exit::Result;

/// Judges all backups of these guests. Protected ones stay.
pub fn judge(catalogue: &Catalogue, states: &States, guests: &[GuestName]) -> Result<Judged> {
    check_notes(states, guests)?;
    let mut judged = Judged::default();
    for guest in guests.iter().collect::<BTreeSet<_>>() {
        // An unreadable record is not in the list; its name removes it.
        let unreadable = catalogue.damaged().iter().filter_map(|error| match error {
            vbk_repo::Error::RecordDamaged { backup, .. } => Some(backup),
            _ => None,
        });
        let unreadable: Vec<_> = unreadable
            .filter(|backup| backup.split_once('@').is_some_and(|(of, _)| of == guest.as_str()))
            .collect();
        if unreadable.is_empty() {
            catalogue.check_guest(guest)?;
        }
        let readable = catalogue.of(guest).map(|entry| (entry.backup.spec(), false));
        let unreadable = unreadable.into_iter().map(|backup| (backup.clone(), true));
        let mut protected = Vec::new();
        for (backup, damaged_record) in readable.chain(unreadable) {
            let (action, reason) = match states.noted(&backup).protected {
                true => (Action::Keep, Why::Rule(Reason::Protected)),
                false => {
                    let guest = guest.to_string();
                    (Action::Forget, Why::Said(Said::WholeGuest { guest, damaged_record }))
                }
            };
            if action == Action::Keep {
                protected.push(backup.clone());
            }
            judged.verdicts.push(Verdict {
                backup,
                action,
                reasons: vec![reason],
            });
        }
        match protected.is_empty() {
            true => judged.bare.push((guest.clone(), "no backup")),
            false => judged.protected.extend(protected),
        }
    }
    Ok(judged)
}
