//! Answers that are asked for before anybody wants them, with the question that opens a store: nearly every command wants them
//! next, and each would take another round trip.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vbk_repo::store::Listing;

use super::state::Event;

/// Time for which a listing counts as the present one of a store that others write to. A change that is made out of an older one
/// is refused by the store.
const FRESH_FOR: Duration = Duration::from_secs(2);

/// What a store was asked when it was opened, and the listing that it gave last.
#[derive(Default)]
pub(super) struct Early {
    listing: Mutex<Option<Listed>>,
    condemned: Mutex<Option<(Instant, Receiver<Event>)>>,
}

/// The records and notes of a store.
enum Listed {
    Asked(Instant, Receiver<Event>),
    Known(Instant, Listing),
}

impl Early {
    /// Takes the answers to the questions for a listing and for the condemned blocks, as many as were asked.
    pub(super) fn new(asked: Instant, answers: Vec<Receiver<Event>>) -> Self {
        let mut answers = answers.into_iter();
        Self {
            listing: Mutex::new(answers.next().map(|answer| Listed::Asked(asked, answer))),
            condemned: Mutex::new(answers.next().map(|answer| (asked, answer))),
        }
    }

    /// Gives the last listing to `of`, or the one that `read` reads from the answer that comes; `None` if there is none, or if it
    /// is too old and the store is one that changes.
    pub(super) fn listing<T>(
        &self,
        changes: bool,
        read: impl FnOnce(Receiver<Event>) -> Option<Listing>,
        of: impl FnOnce(&Listing) -> T,
    ) -> Option<T> {
        let mut listed = self.listing.lock();
        let is_old = |since: Instant| changes && since.elapsed() > FRESH_FOR;
        *listed = match listed.take() {
            Some(Listed::Asked(since, answer)) if !is_old(since) => {
                read(answer).map(|listing| Listed::Known(since, listing))
            }
            Some(Listed::Known(since, listing)) if !is_old(since) => Some(Listed::Known(since, listing)),
            _ => None,
        };
        match &*listed {
            Some(Listed::Known(_, listing)) => Some(of(listing)),
            _ => None,
        }
    }

    /// Forgets everything: this client has changed the store.
    pub(super) fn forget(&self) {
        *self.listing.lock() = None;
        self.forget_condemned();
    }

    /// Forgets the condemned blocks: this client has put one perhaps.
    pub(super) fn forget_condemned(&self) {
        *self.condemned.lock() = None;
    }

    /// Takes the answer with the condemned blocks, if it is not too old.
    pub(super) fn condemned(&self) -> Option<Receiver<Event>> {
        let (since, answer) = self.condemned.lock().take()?;
        (since.elapsed() <= FRESH_FOR).then_some(answer)
    }
}
