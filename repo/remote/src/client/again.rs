//! The caller's wishes for the time after a connection was lost.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// The pause after the first failed try. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A moment of an outage that people hear of.
pub(super) enum Moment<'a> {
    /// The connection is lost for this reason.
    Lost(&'a str),
    /// It is back.
    Back,
    /// The server is there, and waits for the process that holds the lock of the repository.
    Waits(&'a str),
    /// All tries failed, the last one for this reason.
    GivenUp(&'a str),
}

/// Returns the line about a moment, out of the repository's name and the time for which is tried.
type Words = dyn Fn(Moment<'_>, &str, &str) -> String + Send + Sync;

/// The way in which a lost connection is made again.
#[derive(Clone)]
pub struct Again {
    /// Time from the loss on for which it is tried.
    pub(super) reconnect_for: Duration,
    pub(super) first_pause: Duration,
    is_stopped: Arc<dyn Fn() -> bool + Send + Sync>,
    tell: Arc<dyn Fn(&str) + Send + Sync>,
    words: Arc<Words>,
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again")
            .field("reconnect_for", &self.reconnect_for)
            .finish_non_exhaustive()
    }
}

impl Again {
    /// The usual `reconnect_for`: a server that is restarted, or a line that is repaired.
    pub const RECONNECT_FOR: Duration = Duration::from_secs(3600);

    /// Tries for `reconnect_for`, and never if that is zero. `is_stopped` is asked some times a second, and ends all waits for a
    /// lost connection with [`vbk_repo::Error::Interrupted`]. `tell` gets a line for people when a connection is lost and when it
    /// is back. Both are called from a task: they must not block.
    pub fn new(
        reconnect_for: Duration,
        is_stopped: impl Fn() -> bool + Send + Sync + 'static,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            reconnect_for,
            first_pause: FIRST_PAUSE,
            is_stopped: Arc::new(is_stopped),
            tell: Arc::new(tell),
            words: Arc::new(words),
        }
    }

    /// The same for another time, with other words.
    pub(super) fn with_words(
        self,
        reconnect_for: Duration,
        words: impl Fn(Moment<'_>, &str, &str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            reconnect_for,
            words: Arc::new(words),
            ..self
        }
    }

    /// The same with short pauses.
    #[cfg(test)]
    pub(crate) fn at_once(self) -> Self {
        let first_pause = Duration::from_millis(1);
        Self { first_pause, ..self }
    }

    /// The same without a word to people.
    pub(super) fn silent(self) -> Self {
        Self {
            tell: Arc::new(|_| {}),
            ..self
        }
    }

    /// Never tries.
    pub fn never() -> Self {
        Self::new(Duration::ZERO, || false, |_| {})
    }

    pub(super) fn is_stopped(&self) -> bool {
        (self.is_stopped)()
    }

    /// Tells people of a moment.
    pub(super) fn tell(&self, moment: Moment<'_>, name: &str) {
        (self.tell)(&self.words(moment, name));
    }

    /// Returns the line about a moment.
    pub(super) fn words(&self, moment: Moment<'_>, name: &str) -> String {
        (self.words)(moment, name, &self.text())
    }

    /// `reconnect_for`, for messages.
    fn text(&self) -> String {
        match self.reconnect_for.as_secs() {
            seconds if seconds >= 3600 && seconds % 3600 == 0 => format!("{} h", seconds / 3600),
            seconds if seconds >= 60 && seconds % 60 == 0 => format!("{} min", seconds / 60),
            seconds => format!("{seconds} s"),
        }
    }
}

/// The words about a server.
fn words(moment: Moment<'_>, name: &str, limit: &str) -> String {
    match moment {
        Moment::Lost(reason) => format!("the connection to {name} is lost: {reason}; trying again for up to {limit}"),
        Moment::Back => format!("the connection to {name} is back"),
        Moment::Waits(holder) => format!("waiting for {holder}, which writes to the repository"),
        Moment::GivenUp(reason) => format!(
            "the connection to {name} is lost, and all tries to make it again failed for {limit}: {reason}; see that the server \
             and the network work, then run the command again"
        ),
    }
}

/// The pause after this one.
pub(super) fn longer(pause: Duration) -> Duration {
    LONGEST_PAUSE.min(2 * pause)
}

/// A pause that is up to a quarter shorter, so that many clients do not come at the same time.
pub(super) fn scattered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause.mul_f64(1.0 - (random % 1024) as f64 / 4096.0)
}
