//! `vbk status --check`: a line and an exit code for monitoring, as Nagios, Icinga and those like them want (Monitoring
//! Plugins Development Guidelines): 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use vbk_repo::name::matches;
use vbk_repo::repository::Reserve;

use crate::args::StatusArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome};
use crate::facts::Facts;
use crate::terminal::{printable, units};

/// Number of guests that the line names.
const SHOWN: usize = 5;
/// How far the clocks of two hosts may differ, in seconds.
const SLACK_SECS: i64 = 3600;

/// Result of a check.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Check {
    state: State,
    /// Guests without a backup of the last time, by name.
    late: Vec<String>,
    /// What is wrong, or that nothing is.
    text: String,
}

/// State of a service in the words of those programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

impl Check {
    /// Judges the backups: damage is critical, as is a repository without backups; a guest that is late is a warning.
    pub(super) fn of(facts: Option<&Facts>, args: &StatusArgs, now: Timestamp) -> Self {
        let Some(facts) = facts else {
            return Self {
                state: State::Unknown,
                late: Vec::new(),
                text: "the backups can't be read without a key; --passphrase-file or --key-file names one".to_owned(),
            };
        };
        let age = |at: &Timestamp| now.duration_since(*at).as_secs();
        let is_late = |at: &Timestamp| u64::try_from(age(at)).is_ok_and(|secs| secs > args.max_age.as_secs());
        let is_left_out = |guest: &String| args.except.iter().any(|pattern| matches(pattern, guest));
        let late = facts.last_success.iter();
        let late = late.filter(|(guest, at)| is_late(at) && !is_left_out(guest));
        let late: Vec<_> = late.map(|(guest, _)| guest.clone()).collect();
        let mut problems = Vec::new();
        let mut state = State::Ok;
        if facts.damaged_backups > 0 {
            state = State::Critical;
            problems.push(format!("damage in {}", units::count(facts.damaged_backups, "backup")));
        }
        if facts.backups == 0 {
            state = State::Critical;
            problems.push("no backups".to_owned());
        }
        if !late.is_empty() {
            state = state.max(State::Warning);
            let more = late.len().saturating_sub(SHOWN);
            let mut names = late[..late.len() - more].join(", ");
            if more > 0 {
                names.push_str(&format!(" and {more} more"));
            }
            problems.push(format!(
                "{} of {} without a backup in the last {}: {names}",
                late.len(),
                units::count(facts.guests, "guest"),
                units::duration(args.max_age)
            ));
        }
        // It would hide for years that no further backup is made.
        if let Some((guest, at)) = facts.last_success.iter().find(|(_, at)| age(at) < -SLACK_SECS) {
            state = state.max(State::Warning);
            problems.push(format!(
                "{guest} has a backup of {at}, which is in the future: a clock is or was wrong"
            ));
        }
        let good = || {
            format!(
                "{} of {}",
                units::count(facts.backups, "backup"),
                units::count(facts.guests, "guest")
            )
        };
        Self {
            state,
            late,
            text: match problems.is_empty() {
                true => good(),
                false => problems.join("; "),
            },
        }
    }

    /// The backups can't be read, which is critical if it is for damage.
    pub(super) fn unread(error: &Error) -> Self {
        Self {
            state: if error.exit_code() == 4 {
                State::Critical
            } else {
                State::Unknown
            },
            late: Vec::new(),
            text: error.text().replace('\n', " "),
        }
    }

    /// Warns if the next backup finds too little room. Sizes that a server does not show to this client are 0.
    pub(super) fn room(&mut self, free_bytes: u64, size_bytes: u64) {
        if free_bytes >= Reserve::Default.bytes_of(size_bytes) {
            return;
        }
        self.state = self.state.max(State::Warning);
        self.text = format!(
            "the repository's file system is nearly full ({} free); {}",
            units::size(free_bytes),
            self.text
        );
    }

    /// The repository is not the one that this host knows, which is critical, whatever its backups are like.
    pub(super) fn doubt(&mut self) {
        self.state = State::Critical;
        self.text = format!(
            "this is not the repository that this host knows, see `vbk trust`; {}",
            self.text
        );
    }

    /// Returns the outcome of the command.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome::Checked(self.state as u8)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "OK",
            State::Warning => "WARNING",
            State::Critical => "CRITICAL",
            State::Unknown => "UNKNOWN",
        };
        write!(f, "VBK {state} - {}", printable::line(&self.text))
    }
}

/// Prints the error of a repository that can't be checked.
pub(super) fn failed(context: &Context<'_>, error: &Error) -> Outcome {
    let check = Check::unread(error);
    match context.json() {
        true => crate::terminal::log::complain_json(&error.json()),
        false => context.print(format_args!("{check}\n")),
    }
    check.outcome()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T06:00:00Z";

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    fn facts(guests: &[(&str, &str)], damaged_backups: u64) -> Facts {
        Facts {
            backups: guests.len() as u64,
            guests: guests.len() as u64,
            damaged_backups,
            last_success: guests
                .iter()
                .map(|(guest, time)| ((*guest).to_owned(), at(time)))
                .collect(),
            ..Facts::default()
        }
    }

    fn said(facts: Option<&Facts>, except: &[&str]) -> (String, u8) {
        let args = StatusArgs {
            metrics: None,
            check: true,
            max_age: std::time::Duration::from_secs(36 * 3600),
            except: except.iter().map(|name| (*name).to_owned()).collect(),
        };
        let check = Check::of(facts, &args, at(NOW));
        (check.to_string(), check.state as u8)
    }

    #[test]
    fn damage_is_critical_and_a_late_guest_a_warning() {
        let (fresh, late) = (("web1", "2026-11-20T20:00:00Z"), ("db1", "2026-11-19T17:59:59Z"));
        for (facts, except, text, code) in [
            (Some(facts(&[fresh], 0)), &[][..], "VBK OK - 1 backup of 1 guest", 0),
            (
                Some(facts(&[fresh, late], 0)),
                &[],
                "VBK WARNING - 1 of 2 guests without a backup in the last 36h00m: db1",
                1,
            ),
            (
                Some(facts(&[fresh, late], 0)),
                &["d*"],
                "VBK OK - 2 backups of 2 guests",
                0,
            ),
            (
                Some(facts(&[late], 2)),
                &[],
                "VBK CRITICAL - damage in 2 backups; 1 of 1 guest without a backup in the last 36h00m: db1",
                2,
            ),
            (Some(facts(&[], 0)), &[], "VBK CRITICAL - no backups", 2),
            (
                None,
                &[],
                "VBK UNKNOWN - the backups can't be read without a key; --passphrase-file or --key-file names one",
                3,
            ),
        ] {
            assert_eq!(said(facts.as_ref(), except), (text.to_owned(), code));
        }
    }

    #[test]
    fn a_backup_of_the_future_is_a_warning() {
        let (text, code) = said(Some(&facts(&[("web1", "2036-01-01T00:00:00Z")], 0)), &[]);
        assert!(
            code == 1 && text.contains("web1 has a backup of 2036-01-01T00:00:00Z"),
            "{text}"
        );
        assert_eq!(said(Some(&facts(&[("web1", "2026-11-21T06:30:00Z")], 0)), &[]).1, 0);
    }

    #[test]
    fn doubt_and_damage_are_critical() {
        let damaged = Check::unread(&Error::Repository(vbk_repo::Error::Store {
            kind: vbk_repo::ErrorKind::Corrupt,
            doing: "open",
            message: "x".into(),
        }));
        assert!(damaged.to_string().starts_with("VBK CRITICAL"), "{damaged}");
        let busy = Check::unread(&Error::Busy("x".into()));
        assert!(busy.to_string().starts_with("VBK UNKNOWN"), "{busy}");
        let args = StatusArgs {
            metrics: None,
            check: true,
            max_age: std::time::Duration::from_secs(1),
            except: Vec::new(),
        };
        let mut doubted = Check::of(Some(&facts(&[("web1", NOW)], 0)), &args, at(NOW));
        doubted.doubt();
        assert!(
            doubted
                .to_string()
                .starts_with("VBK CRITICAL - this is not the repository"),
            "{doubted}"
        );
    }

    #[test]
    fn many_late_guests_are_counted() {
        let names: Vec<_> = (1..8).map(|number| format!("web{number}")).collect();
        let all: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), "2026-11-01T00:00:00Z"))
            .collect();
        let (text, _) = said(Some(&facts(&all, 0)), &[]);
        assert!(text.ends_with("web1, web2, web3, web4, web5 and 2 more"), "{text}");
    }
}
