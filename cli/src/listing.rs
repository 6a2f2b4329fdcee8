//! Forms in which several commands show a backup.

use jiff::tz::TimeZone;
use serde::Serialize;
use vbk_repo::backup::{Backup, Consistency, Entry};
use vbk_repo::catalogue::ClockDoubt;
use vbk_repo::state::{Rehearsed, State, States};

use crate::args::StateArg;
use crate::zone;

/// JSON of a backup in lists.
#[derive(Debug, Serialize)]
pub struct BackupJson<'a> {
    backup: String,
    id: String,
    guest: &'a str,
    time: jiff::Timestamp,
    /// The same with the offset of the time zone, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_local: Option<String>,
    /// Name of the machine that made it.
    host: &'a str,
    consistency: Consistency,
    disks: Vec<&'a str>,
    size_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    duration_ms: u64,
    /// Backups with higher numbers were made later, whatever their times say.
    sequence: u64,
    /// Reason to doubt the backup's time or that of another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<&'a ClockDoubt>,
    #[serde(flatten)]
    state: State,
    /// The note about the backup can't be read; `state` is a safe guess.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    state_unreadable: bool,
}

impl<'a> BackupJson<'a> {
    pub fn new(entry: &'a Entry, states: &States, doubt: Option<&'a ClockDoubt>, zone: Option<&TimeZone>) -> Self {
        let backup = &entry.backup;
        let time = backup.time.timestamp();
        Self {
            backup: backup.spec(),
            id: entry.id.to_string(),
            guest: backup.guest.as_str(),
            time,
            time_local: zone.map(|zone| zone::json_time(time, zone)),
            host: &backup.host,
            consistency: backup.consistency,
            disks: disk_names(entry),
            size_bytes: backup.size_bytes(),
            new_bytes: backup.new_bytes(),
            stored_bytes: backup.stored_bytes(),
            duration_ms: backup.duration_ms,
            sequence: backup.sequence,
            clock: doubt,
            state: states.of(backup),
            state_unreadable: states.is_unread(&backup.spec()),
        }
    }
}

/// Describes the state of a backup: `proven 2026-11-21, protected`.
pub fn describe_state(states: &States, backup: &Backup) -> String {
    if states.is_unread(&backup.spec()) {
        return "unreadable, may be protected".to_owned();
    }
    let state = states.of(backup);
    let day = |at: jiff::Timestamp| at.strftime("%Y-%m-%d").to_string();
    let mut text = match (state.damaged, state.proven) {
        (Some(found), _) => format!("damaged, found {}", day(found)),
        (None, Some(proven)) => format!("proven {}", day(proven)),
        (None, None) => "not proven yet".to_owned(),
    };
    match state.rehearsed {
        Some(Rehearsed { at, proof: Some(_), .. }) => text.push_str(&format!(", proven bootable {}", day(at))),
        Some(Rehearsed { at, proof: None, .. }) => text.push_str(&format!(", did not boot {}", day(at))),
        None => {}
    }
    if let Some(at) = state.unstarted {
        text.push_str(&format!(", could not be rehearsed {}", day(at)));
    }
    if state.protected {
        text.push_str(", protected");
    }
    text
}

/// Returns whether [`describe_state`] prints this word of a backup, or the doubt beside it.
pub fn is_in_state(states: &States, backup: &Backup, doubt: Option<&ClockDoubt>, word: StateArg) -> bool {
    let is_unreadable = states.is_unread(&backup.spec());
    if is_unreadable {
        return matches!(word, StateArg::Unreadable) || (word == StateArg::Clock && doubt.is_some());
    }
    let state = states.of(backup);
    let booted = state.rehearsed.map(|rehearsed| rehearsed.proof.is_some());
    match word {
        StateArg::Damaged => state.damaged.is_some(),
        StateArg::Proven => state.damaged.is_none() && state.proven.is_some(),
        StateArg::Unproven => state.damaged.is_none() && state.proven.is_none(),
        StateArg::Protected => state.protected,
        StateArg::Bootable => booted == Some(true),
        StateArg::Unbootable => booted == Some(false),
        StateArg::Unrehearsed => state.unstarted.is_some(),
        StateArg::Unreadable => false,
        StateArg::Clock => doubt.is_some(),
    }
}

pub fn disk_names(entry: &Entry) -> Vec<&str> {
    entry.backup.images.iter().map(|image| image.disk.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use vbk_repo::state::note_of;
    use vbk_repo::store::memory::MemoryStore;
    use vbk_repo::store::{Note, StoreManager};

    use super::*;

    #[test]
    fn a_backup_is_in_the_states_that_the_list_prints_of_it() {
        let backup: Backup = serde_json::from_value(serde_json::json!({
            "format": 1, "guest": "web1", "time": "2026-11-20T05:54:00Z", "duration_ms": 1, "host": "host1",
            "vbk_version": "1", "consistency": "crash", "images": [],
        }))
        .expect("a record");
        let at = Some(jiff::Timestamp::UNIX_EPOCH);
        let rehearsed = |proof| {
            Some(Rehearsed {
                at: jiff::Timestamp::UNIX_EPOCH,
                proof,
                duration_ms: 1,
                accelerator: vbk_repo::state::BootAccelerator::Kvm,
            })
        };
        let state = State::default;
        let proof = Some(vbk_repo::state::BootProof::Login);
        let all = StateArg::value_variants();
        for (state, words, text) in [
            (state(), &[StateArg::Unproven][..], "not proven yet"),
            (
                State { proven: at, ..state() },
                &[StateArg::Proven],
                "proven 1970-01-01",
            ),
            (
                State {
                    proven: at,
                    damaged: at,
                    protected: true,
                    ..state()
                },
                &[StateArg::Damaged, StateArg::Protected],
                "damaged, found 1970-01-01, protected",
            ),
            (
                State {
                    proven: at,
                    rehearsed: rehearsed(proof),
                    ..state()
                },
                &[StateArg::Proven, StateArg::Bootable],
                "proven 1970-01-01, proven bootable 1970-01-01",
            ),
            (
                State {
                    rehearsed: rehearsed(None),
                    unstarted: at,
                    ..state()
                },
                &[StateArg::Unproven, StateArg::Unbootable, StateArg::Unrehearsed],
                "not proven yet, did not boot 1970-01-01, could not be rehearsed 1970-01-01",
            ),
        ] {
            let states = noted(&[note_of(&backup.spec(), state)]);
            assert_eq!(describe_state(&states, &backup), text);
            let is_in = |word: &&StateArg| is_in_state(&states, &backup, None, **word);
            assert_eq!(
                all.iter().filter(is_in).collect::<Vec<_>>(),
                words.iter().collect::<Vec<_>>(),
                "{text}"
            );
        }
        let states = noted(&[Note {
            name: format!("backup/{}", backup.spec()),
            value: Some(b"{".to_vec()),
        }]);
        let is_in = |word: &&StateArg| is_in_state(&states, &backup, Some(&ClockDoubt::Future), **word);
        let words: Vec<_> = all.iter().filter(is_in).collect();
        assert_eq!(words, [&StateArg::Unreadable, &StateArg::Clock]);
    }

    fn noted(notes: &[Note]) -> States {
        let store = MemoryStore::new(vbk_repo::block::BlockSize::DEFAULT);
        store.amend(&[], notes).expect("notes");
        States::load(&store).expect("loads")
    }
}
