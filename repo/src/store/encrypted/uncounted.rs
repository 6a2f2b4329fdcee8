//! Records that the epoch does not count yet, because a copy without the key added them.
//!
//! Such a copy can't write the epoch. It lists the stored names of its records in a note of its own, which is not sealed, in the
//! step that commits each of them. The note is stored as `uncounted`: the names, one in a line, and the sum.
//!
//! 1. A record on the list that opens with the key is not counted: all others must match the epoch.
//! 2. The next writer that has the key adds the records on the list to the epoch and removes the list, in one step.
//! 3. A record on the list that does not open is counted, so that it shows as a change that no writer made.
//!
//! Somebody without the key who can write to the store can use the list for one thing: to bring back a backup that was sealed
//! with this key and was forgotten. The list hides no loss: a record that the epoch counts and that is on the list is missing
//! from the others.

use std::collections::BTreeSet;

use super::{NOTE, sums};
use crate::store::Note;

/// Name of the note, as it is stored.
pub(crate) const NAME: &str = "uncounted";

/// Returns the names on the list; none if it is damaged.
pub(crate) fn names(value: &[u8]) -> BTreeSet<String> {
    let lines = sums::without_sum(NOTE, NAME.as_bytes(), value).and_then(|lines| std::str::from_utf8(lines).ok());
    lines.into_iter().flat_map(str::lines).map(str::to_owned).collect()
}

/// Returns the note that lists these names.
pub(crate) fn note(names: &BTreeSet<String>) -> Note {
    let mut value = Vec::new();
    for name in names {
        value.extend_from_slice(name.as_bytes());
        value.push(b'\n');
    }
    sums::add(NOTE, NAME.as_bytes(), &mut value);
    Note {
        name: NAME.into(),
        value: Some(value),
    }
}

/// Returns the change that removes the list.
pub(super) fn no_note() -> Note {
    Note {
        name: NAME.into(),
        value: None,
    }
}
