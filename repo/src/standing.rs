//! The identity and age of a repository, as a host remembers them. They distinguish another repository, or an older
//! state of the same one, from the repository that the host knows.
//!
//! Nothing in a repository can prove that it is the newest state: an attacker who can write to the storage can put back
//! all of an older one. Only memory outside the repository can prove it.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::{Identity, StoreReader};

/// State of a repository that a host remembers. A field is `None` if it could not be read, and is then not compared.
///
/// The generation is stored in plain text, so an attacker who puts back an older copy can increase it. For an encrypted
/// repository the host therefore also remembers the epoch, which can't be written without the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The repository's id, [`Identity::id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// [`Identity::key_check`]; `None` if the repository is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
    /// Generation of the newest view; it grows with each change that readers see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// [`crate::store::StoreReader::epoch`]; known only for an encrypted repository whose keys are available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// [`crate::store::StoreReader::state_at`] that generation, of a repository in a directory of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A difference that no operation of vbk causes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The repository was encrypted and is not encrypted now.
    IsPlain,
    /// The repository was not encrypted and is encrypted now.
    IsEncrypted,
    /// The master key differs.
    OtherKey,
    /// The id differs, so it is another repository.
    OtherId {
        /// The remembered id.
        was: String,
        /// The present id.
        is: String,
    },
    /// The generation is lower: the repository lacks changes that it had.
    Older {
        /// The remembered generation.
        was: u64,
        /// The present generation.
        is: u64,
    },
    /// It is another state of the same generation: an older copy of the repository was written to.
    OtherState {
        /// The generation.
        generation: u64,
    },
    /// The epoch is lower: the repository lacks changes that it had, whatever its generation says.
    OlderEpoch {
        /// The remembered epoch.
        was: u64,
        /// The present epoch.
        is: u64,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IsPlain => write!(f, "it was encrypted and is not encrypted now"),
            Self::IsEncrypted => write!(f, "it was not encrypted and is encrypted now"),
            Self::OtherKey => write!(f, "it has another master key than before"),
            Self::OtherId { was, is } => write!(f, "its id was {was} and is {is} now"),
            Self::Older { was, is } => write!(f, "its newest state was number {was} and is number {is} now"),
            Self::OtherState { generation } => write!(
                f,
                "its newest state, number {generation}, is not the one of that number that this host knows: one of them was made \
                 from an older copy"
            ),
            Self::OlderEpoch { was, is } => write!(
                f,
                "its list of backups had been sealed {was} times and now says {is} times: it is an older one"
            ),
        }
    }
}

impl Standing {
    fn new(identity: &Identity, generation: u64) -> Self {
        Self {
            id: Some(identity.id.clone()),
            key_check: identity.key_check.clone(),
            generation: Some(generation),
            epoch: None,
            state: None,
        }
    }

    /// Returns the standing of a store that is open.
    pub(crate) fn of(store: &(impl StoreReader + ?Sized), identity: &Identity, generation: u64) -> Self {
        Self {
            // A store without it can be used all the same.
            state: store.state_at(generation).unwrap_or_default(),
            ..Self::new(identity, generation)
        }
    }

    /// Returns the same standing with an epoch.
    pub(crate) fn with_epoch(self, epoch: Option<u64>) -> Self {
        Self { epoch, ..self }
    }

    /// Returns whether the repository is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.key_check.is_some()
    }

    /// Returns the differences from the remembered standing that need an explanation; none if only the normal course of
    /// time made them. Ages are compared only within the same repository.
    pub fn changes_since(&self, known: &Self) -> Vec<Change> {
        let mut changes = self.identity_changes(known);
        if !changes.is_empty() {
            return changes;
        }
        let older = |known: Option<u64>, now: Option<u64>| known.zip(now).filter(|(was, is)| is < was);
        changes.extend(older(known.generation, self.generation).map(|(was, is)| Change::Older { was, is }));
        if let (Some(was), Some(is), Some(generation)) = (&known.state, &self.state, self.generation)
            && known.generation == self.generation
            && was != is
        {
            changes.push(Change::OtherState { generation });
        }
        changes.extend(older(known.epoch, self.epoch).map(|(was, is)| Change::OlderEpoch { was, is }));
        changes
    }

    /// Returns whether it is the same repository, whatever its age.
    pub fn is_same_as(&self, known: &Self) -> bool {
        self.identity_changes(known).is_empty()
    }

    fn identity_changes(&self, known: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        match (&known.key_check, &self.key_check) {
            (Some(_), None) => changes.push(Change::IsPlain),
            (None, Some(_)) => changes.push(Change::IsEncrypted),
            (Some(was), Some(is)) if was != is => changes.push(Change::OtherKey),
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let (Some(was), Some(is)) = (&known.id, &self.id)
            && was != is
        {
            let (was, is) = (was.clone(), is.clone());
            changes.push(Change::OtherId { was, is });
        }
        changes
    }

    /// Joins two standings of the same repository: of each field that grows, the greater value.
    pub fn join(&self, other: &Self) -> Self {
        Self {
            id: self.id.clone().or_else(|| other.id.clone()),
            key_check: self.key_check.clone().or_else(|| other.key_check.clone()),
            generation: self.generation.max(other.generation),
            epoch: self.epoch.max(other.epoch),
            state: match self.generation.cmp(&other.generation) {
                Ordering::Less => other.state.clone(),
                Ordering::Equal => self.state.clone().or_else(|| other.state.clone()),
                Ordering::Greater => self.state.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(id: &str, key_check: Option<&str>, generation: u64) -> Standing {
        Standing {
            id: Some(id.into()),
            key_check: key_check.map(Into::into),
            generation: Some(generation),
            ..Standing::default()
        }
    }

    #[test]
    fn two_states_of_the_same_number_are_told_apart_where_both_are_known() {
        let at = |generation, state: &str| Standing {
            state: Some(state.into()),
            ..standing("a", None, generation)
        };
        let known = at(7, "x");
        let other = [Change::OtherState { generation: 7 }];
        assert_eq!(at(7, "y").changes_since(&known), other);
        for same in [at(7, "x"), at(8, "y"), standing("a", None, 7)] {
            assert_eq!(same.changes_since(&known), []);
        }
        // A memory that an older vbk wrote.
        assert_eq!(at(7, "y").changes_since(&standing("a", None, 7)), []);
        assert_eq!(standing("a", None, 7).join(&known), known);
        assert_eq!(known.join(&standing("a", None, 7)), known);
        assert_eq!(known.join(&at(7, "y")), known);
        assert_eq!(known.join(&standing("a", None, 8)), standing("a", None, 8));
        assert_eq!(at(6, "y").join(&known), known);
    }

    #[test]
    fn an_older_copy_is_told_by_its_epoch_whatever_its_generation_says() {
        let known = standing("a", Some("k"), 7).with_epoch(Some(5));
        let forged = standing("a", Some("k"), 100).with_epoch(Some(3));
        assert_eq!(forged.changes_since(&known), [Change::OlderEpoch { was: 5, is: 3 }]);
        // Before the keys are available the epoch is not known, and a join keeps the known one.
        let locked = standing("a", Some("k"), 8);
        assert_eq!(locked.changes_since(&known), []);
        assert_eq!(known.join(&locked), standing("a", Some("k"), 8).with_epoch(Some(5)));
    }

    #[test]
    fn time_changes_nothing_that_calls_for_an_explanation() {
        let known = standing("a", Some("k"), 7);
        for generation in [7, 8, u64::MAX] {
            assert_eq!(standing("a", Some("k"), generation).changes_since(&known), []);
        }
        assert_eq!(
            Standing {
                generation: None,
                ..known.clone()
            }
            .changes_since(&known),
            []
        );
        assert_eq!(
            Standing {
                id: None,
                ..known.clone()
            }
            .changes_since(&known),
            []
        );
    }

    #[test]
    fn another_repository_and_an_older_state_are_told_apart() {
        let known = standing("a", Some("k"), 7);
        let older = standing("a", Some("k"), 6);
        assert_eq!(older.changes_since(&known), [Change::Older { was: 7, is: 6 }]);
        assert!(older.is_same_as(&known));
        let other = Change::OtherId {
            was: "a".into(),
            is: "b".into(),
        };
        assert_eq!(
            standing("b", None, 1).changes_since(&known),
            [Change::IsPlain, other.clone()]
        );
        assert_eq!(
            standing("b", Some("l"), 9).changes_since(&known),
            [Change::OtherKey, other]
        );
        assert_eq!(known.changes_since(&standing("a", None, 1)), [Change::IsEncrypted]);
        // A plain repository is always detected, even if its id can't be read.
        let plain = Standing::default();
        assert_eq!(plain.changes_since(&known), [Change::IsPlain]);
    }

    #[test]
    fn of_two_standings_the_newer_age_stays() {
        let (one, two) = (standing("a", None, 7), standing("a", None, 6));
        assert_eq!(one.join(&two), one);
        assert_eq!(two.join(&one), one);
        assert_eq!(Standing::default().join(&one), one);
    }
}
