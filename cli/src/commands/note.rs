//! `vbk note`

use serde::Serialize;
use vbk_repo::repository::Change;
use vbk_repo::state::note_of;

use crate::args::NoteArgs;
use crate::context::Context;
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::warnings::{warn_of_clock, warn_of_guess};

#[derive(Serialize)]
struct Report<'a> {
    backup: &'a str,
    note: Option<&'a str>,
}

/// Writes or removes a note about a backup.
pub fn run(context: &Context<'_>, args: &NoteArgs) -> Result<Outcome> {
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let writer = context.manager("note", args.no_wait, &cancel)?;
    let note = args.text.clone().filter(|_| !args.remove);
    let (backup, is_guess) = writer.change(|catalogue, states| {
        let entry = catalogue.find(&args.backup)?;
        warn_of_clock(catalogue, &args.backup, entry);
        let key = entry.backup.spec();
        // A state that can't be read counts as protected, and is written as that.
        let is_guess = states.is_unread(&key);
        let mut state = states.noted(&key);
        state.note.clone_from(&note);
        let change = Change {
            notes: vec![note_of(&key, state)],
            ..Change::default()
        };
        Ok::<_, Error>((change, (key, is_guess)))
    })?;
    if is_guess {
        warn_of_guess(&backup);
    }
    context.say(match &note {
        Some(_) => format!("{backup} has the note now"),
        None => format!("{backup} has no note now"),
    });
    context.json_result(&Report {
        backup: &backup,
        note: note.as_deref(),
    })?;
    Ok(match is_guess {
        true => Outcome::Warnings,
        false => Outcome::Done,
    })
}
