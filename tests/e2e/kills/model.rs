//! What must be in the repository, what may be, and what must not, as far as it was acknowledged.
//!
//! A killed writer leaves a question: did its last step happen? It may be answered by the next list, or only by the
//! next writer, whose opening shows readers what was committed and not published. So a question stays open until a
//! writer succeeded; after that there is one answer for ever.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use serde_json::Value;

use super::content::Content;
use crate::support::lab::str_of;

/// The whole id of a backup: its time can be that of one that was forgotten within the same second.
pub type Id = String;

/// A backup in the list.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: Id,
    /// `GUEST@TIME`.
    pub name: String,
    pub guest: String,
    pub protected: bool,
}

impl Listed {
    pub fn all(list: &Value) -> Vec<Self> {
        let list = list["backups"].as_array().expect("backups");
        let listed = |entry: &Value| Self {
            id: str_of(entry, "id"),
            name: str_of(entry, "backup"),
            guest: str_of(entry, "guest"),
            protected: entry["protected"].as_bool().expect("list says what is protected"),
        };
        list.iter().map(listed).collect()
    }
}

/// A backup that is there, or may be.
#[derive(Debug, Clone)]
pub struct Kept {
    pub name: String,
    pub guest: String,
    pub content: Rc<Content>,
    /// False while it can't be told whether a killed run forgot it.
    pub certain: bool,
    /// `None` while it can't be told whether a killed run changed it.
    pub protected: Option<bool>,
}

/// A backup whose run was killed.
struct Unacknowledged {
    guest: String,
    content: Rc<Content>,
}

#[derive(Default)]
pub struct Model {
    pub kept: BTreeMap<Id, Kept>,
    unacknowledged: Vec<Unacknowledged>,
    /// Backups that one killed run was to forget: all of them or none.
    together: Vec<BTreeSet<Id>>,
    gone: HashSet<Id>,
}

/// What came of killed runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settled {
    /// Backups that were complete though nobody was told.
    pub appeared: u64,
    /// Backups that were forgotten though nobody was told.
    pub vanished: u64,
}

impl Model {
    pub fn certain(&self) -> Vec<Id> {
        let certain = self.kept.iter().filter(|(_, kept)| kept.certain);
        certain.map(|(id, _)| id.clone()).collect()
    }

    /// The ids of a guest, the newest first.
    pub fn of_guest(&self, guest: &str) -> Vec<Id> {
        let mut of: Vec<_> = self.kept.iter().filter(|(_, kept)| kept.guest == guest).collect();
        of.sort_by(|(_, one), (_, other)| other.name.cmp(&one.name));
        of.into_iter().map(|(id, _)| id.clone()).collect()
    }

    pub fn id_of(&self, name: &str) -> Option<Id> {
        let mut named = self.kept.iter().filter(|(_, kept)| kept.name == name);
        named.next().map(|(id, _)| id.clone())
    }

    pub fn made(&mut self, answer: &Value, content: &Rc<Content>) {
        let kept = Kept {
            name: str_of(answer, "backup"),
            guest: str_of(answer, "guest"),
            content: Rc::clone(content),
            certain: true,
            protected: Some(false),
        };
        let known = self.kept.insert(str_of(answer, "id"), kept);
        assert!(known.is_none(), "an id is given twice: {answer}");
    }

    pub fn may_be_made(&mut self, guest: &str, content: &Rc<Content>) {
        self.unacknowledged.push(Unacknowledged {
            guest: guest.to_owned(),
            content: Rc::clone(content),
        });
    }

    pub fn forgotten(&mut self, id: &Id) {
        self.kept.remove(id);
        self.together.retain(|group| !group.contains(id));
        self.gone.insert(id.clone());
    }

    pub fn may_be_forgotten(&mut self, ids: &[Id]) {
        let group: BTreeSet<_> = ids.iter().cloned().collect();
        // With questions open from before, what is still there is no answer to this one.
        let exact = group.iter().all(|id| self.kept[id].certain);
        self.together.retain(|other| other.is_disjoint(&group));
        for id in ids {
            self.kept.get_mut(id).expect("chosen from these").certain = false;
        }
        if exact {
            self.together.push(group);
        }
    }

    /// What a policy that keeps the newest `keep` may forget. A backup that nobody knows of may be the newest.
    pub fn may_be_forgotten_by_policy(&mut self, guest: &str, keep: usize) {
        let unknown = self.unacknowledged.iter().filter(|one| one.guest == guest).count();
        let of = self.of_guest(guest);
        let is_exact = unknown == 0
            && of
                .iter()
                .all(|id| self.kept[id].certain && self.kept[id].protected.is_some());
        let uncertain = of.iter().filter(|id| !self.kept[*id].certain).count();
        let victims: Vec<_> = of
            .into_iter()
            .skip(keep.saturating_sub(unknown + uncertain))
            .filter(|id| self.kept[id].protected != Some(true))
            .collect();
        if is_exact {
            return self.may_be_forgotten(&victims);
        }
        self.together
            .retain(|other| victims.iter().all(|id| !other.contains(id)));
        for id in victims {
            self.kept.get_mut(&id).expect("one of these").certain = false;
        }
    }

    /// Holds a list against what is known; `same` restores a backup and says whether it has this content. `settled`:
    /// a writer succeeded since the last kill, so what is listed is the answer to all questions.
    pub fn see(
        &mut self,
        listed: &[Listed],
        settled: bool,
        mut same: impl FnMut(&Listed, &Content) -> bool,
    ) -> Settled {
        let mut answers = Settled::default();
        let ids: BTreeSet<&Id> = listed.iter().map(|entry| &entry.id).collect();
        for group in &self.together {
            let left = group.iter().filter(|id| ids.contains(id)).count();
            assert!(
                left == 0 || left == group.len(),
                "some of what one run was to forget is there, some is not: {group:?}"
            );
        }
        self.kept.retain(|id, kept| {
            if ids.contains(id) {
                return true;
            }
            assert!(!kept.certain, "{} ({id}) is lost", kept.name);
            self.gone.insert(id.clone());
            answers.vanished += 1;
            false
        });
        for entry in listed {
            assert!(
                !self.gone.contains(&entry.id),
                "{} was forgotten: {listed:?}",
                entry.name
            );
            if !self.kept.contains_key(&entry.id) {
                self.appear(entry, &mut same);
                answers.appeared += 1;
            }
            let kept = self.kept.get_mut(&entry.id).expect("all are known");
            assert_eq!(kept.name, entry.name, "the name of {}", entry.id);
            if let Some(protected) = kept.protected {
                assert_eq!(protected, entry.protected, "protection of {}", entry.name);
            }
            if settled {
                kept.certain = true;
                kept.protected = Some(entry.protected);
            }
        }
        if settled {
            self.unacknowledged.clear();
            self.together.clear();
        }
        answers
    }

    /// Only a killed run can have made it, and only of what was on the disk then.
    fn appear(&mut self, entry: &Listed, same: &mut impl FnMut(&Listed, &Content) -> bool) {
        let found = self
            .unacknowledged
            .iter()
            .position(|one| one.guest == entry.guest && same(entry, &one.content));
        let found = found.unwrap_or_else(|| panic!("nobody made {}, or not with this content", entry.name));
        let made = self.unacknowledged.remove(found);
        let kept = Kept {
            name: entry.name.clone(),
            guest: made.guest,
            content: made.content,
            certain: true,
            protected: Some(false),
        };
        self.kept.insert(entry.id.clone(), kept);
    }
}
