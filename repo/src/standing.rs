//! The identity and age of a repository, as a host remembers them: what tells another repository, or an older state of
//! the same one, from the one that a host knows.
//!
//! Nothing in a repository can say that it is the newest state: whoever can write to the storage can put back all of an
//! older one. Only memory outside of it can.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::store::Identity;

/// What a host remembers of a repository. A field is `None` where it could not be read, and is then not compared.
///
/// What is sealed in the repository and grows, as a counter of its commits that only the key's owner can write, belongs
/// here as one more optional field: with a comparison in [`Standing::changes_since`] and the greater value in
/// [`Standing::join`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// [`Identity::id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// [`Identity::key_check`]; `None`: it is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
    /// Grows with each change that readers see; the number of the newest view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// A difference that a repository does not get by what vbk does to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was encrypted.
    IsPlain,
    /// It was not encrypted.
    IsEncrypted,
    /// It has another master key.
    OtherKey,
    /// It is another repository.
    OtherId {
        /// The id that is remembered.
        was: String,
        /// The id that it has.
        is: String,
    },
    /// It lacks what it had.
    Older {
        /// The generation that is remembered.
        was: u64,
        /// The one that it is at.
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
        }
    }
}

impl Standing {
    pub(crate) fn new(identity: &Identity, generation: u64) -> Self {
        Self {
            id: Some(identity.id.clone()),
            key_check: identity.key_check.clone(),
            generation: Some(generation),
        }
    }

    /// Whether the repository is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.key_check.is_some()
    }

    /// The differences from what was remembered that call for an explanation; none if time alone made them. The age is
    /// compared only within the same repository.
    pub fn changes_since(&self, known: &Self) -> Vec<Change> {
        let mut changes = self.identity_changes(known);
        if changes.is_empty()
            && let (Some(was), Some(is)) = (known.generation, self.generation)
            && is < was
        {
            changes.push(Change::Older { was, is });
        }
        changes
    }

    /// Whether it is the same repository, of whatever age.
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

    /// Both of two standings of the same repository: of each field that grows the greater value.
    pub fn join(&self, other: &Self) -> Self {
        Self {
            id: self.id.clone().or_else(|| other.id.clone()),
            key_check: self.key_check.clone().or_else(|| other.key_check.clone()),
            generation: self.generation.max(other.generation),
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
        }
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
        // Nothing hides that it is plain, also where the id can't be read.
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
