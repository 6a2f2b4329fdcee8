//! The epoch: the note that lists the records and notes of a store, so that a deleted, added or restored one is
//! noticed.
//!
//! It is stored as the note `epoch` and written in the batch of every commit and change. A batch is applied completely
//! or not at all, so after a crash the note still matches the set. Sealed value, numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version: 1 |
//! | 1 | 1: this epoch replaced one that could not be read, so the set has not been checked since |
//! | 8 | counter: number of times that it was written |
//! | 8, 32 | number of records, and the sum of their elements |
//! | 8, 32 | number of notes besides this one, and the sum of theirs |
//!
//! The element of a row is the keyed BLAKE3 of its kind, its stored name and its stored bytes, as a number; sums are
//! mod 2^256. So a commit costs one addition, however many backups exist.
//!
//! # Why a sum is enough
//!
//! Without the key the elements are independent random numbers that no attacker sees: the sums are sealed, and nothing
//! else depends on the elements. To replace the right set by another one, an attacker without the key can only choose
//! among rows that were sealed with the key, and must hit the sum without seeing either: a probability of 2^-256 for
//! each attempt. A set can't contain a row twice, since rows have names. An older epoch opens too, but matches only the
//! set of its time: that is a rollback of everything, which only a host that remembers the counter can notice.

use std::collections::HashMap;

use crate::block::keyed_hash;

const VERSION: u8 = 1;

/// Name of the note.
pub(super) const NAME: &str = "epoch";

/// A number mod 2^256, little-endian.
pub(super) type Element = [u8; 32];

/// Number of rows, and the sum of their elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    count: u64,
    total: Element,
}

impl Sum {
    pub(super) fn of<'a>(elements: impl IntoIterator<Item = &'a Element>) -> Self {
        let mut sum = Self::default();
        elements.into_iter().for_each(|element| sum.add(element));
        sum
    }

    pub(super) fn add(&mut self, element: &Element) {
        self.count = self.count.wrapping_add(1);
        let mut carry = 0;
        for (byte, other) in self.total.iter_mut().zip(element) {
            carry += u16::from(*byte) + u16::from(*other);
            *byte = carry as u8;
            carry >>= 8;
        }
    }

    pub(super) fn remove(&mut self, element: &Element) {
        self.count = self.count.wrapping_sub(1);
        let mut borrow = 0;
        for (byte, other) in self.total.iter_mut().zip(element) {
            let (rest, one) = byte.overflowing_sub(*other);
            let (rest, two) = rest.overflowing_sub(borrow);
            *byte = rest;
            borrow = u8::from(one || two);
        }
    }

    /// Describes the difference of a set from the one that was written; `None` if they are equal.
    fn differs(&self, found: &Self, what: &str) -> Option<String> {
        if self == found {
            return None;
        }
        Some(match found.count.cmp(&self.count) {
            std::cmp::Ordering::Less => format!("{} of {} {what} are missing", self.count - found.count, self.count),
            std::cmp::Ordering::Greater => format!("there are {} {what} instead of {}", found.count, self.count),
            std::cmp::Ordering::Equal => {
                format!("at least one of the {} {what} was replaced", self.count)
            }
        })
    }
}

/// Content of the note.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) counter: u64,
    pub(super) unchecked: bool,
    pub(super) records: Sum,
    pub(super) notes: Sum,
}

impl Epoch {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.unchecked)];
        bytes.extend(self.counter.to_le_bytes());
        for sum in [self.records, self.notes] {
            bytes.extend(sum.count.to_le_bytes());
            bytes.extend(sum.total);
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 90] = bytes.try_into().ok()?;
        let number = |at: usize| {
            let bytes = bytes[at..at + 8].iter().rev();
            bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let sum = |at: usize| {
            let mut total = [0; 32];
            total.copy_from_slice(&bytes[at + 8..at + 40]);
            Sum {
                count: number(at),
                total,
            }
        };
        (bytes[0] == VERSION).then(|| Self {
            counter: number(2),
            unchecked: bytes[1] != 0,
            records: sum(10),
            notes: sum(50),
        })
    }
}

/// The existing records and notes, by their stored names, and the epoch that describes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Set {
    /// `None` if no epoch can be read.
    pub(super) epoch: Option<Epoch>,
    pub(super) records: HashMap<String, Element>,
    pub(super) notes: HashMap<String, Element>,
    /// Records that the epoch does not count yet, see `uncounted.rs`.
    pub(super) uncounted: HashMap<String, Element>,
    /// There is a list of those.
    pub(super) has_list: bool,
}

impl Set {
    /// Returns the epoch with the generation of the set, if the next change needs to know nothing else of it.
    pub(super) fn seen_at(&self, generation: u64) -> Option<(u64, Epoch)> {
        Some((generation, self.epoch?)).filter(|_| !self.has_list)
    }

    /// Counts all records from now on.
    pub(super) fn count_all(&mut self) {
        self.records.extend(std::mem::take(&mut self.uncounted));
    }

    /// Returns the differences of the set from what was written.
    pub(super) fn differences(&self) -> Vec<String> {
        let Some(epoch) = self.epoch else {
            return vec!["the note that lists them is missing or damaged".into()];
        };
        let (records, notes) = self.sums();
        let mut found = Vec::new();
        if epoch.unchecked {
            found.push("the note that lists them was missing or damaged".into());
        }
        found.extend(epoch.records.differs(&records, "records of backups"));
        found.extend(epoch.notes.differs(&notes, "notes"));
        found
    }

    pub(super) fn sums(&self) -> (Sum, Sum) {
        (Sum::of(self.records.values()), Sum::of(self.notes.values()))
    }
}

/// Returns the element of a row.
pub(super) fn element(key: &[u8; 32], kind: u8, name: &str, bytes: &[u8]) -> Element {
    let length = (name.len() as u64).to_le_bytes();
    keyed_hash(key, &[&[kind], &length, name.as_bytes(), bytes])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_added_can_be_removed_in_any_order(
            elements in prop::collection::vec(any::<[u8; 32]>(), 1..20),
            out in any::<prop::sample::Index>(),
        ) {
            let out = out.index(elements.len());
            let mut sum = Sum::of(&elements);
            sum.remove(&elements[out]);
            let rest = elements.iter().enumerate().rev().filter(|(at, _)| *at != out);
            prop_assert_eq!(sum, Sum::of(rest.map(|(_, element)| element)));
            let epoch = Epoch { counter: 7, unchecked: true, records: sum, notes: Sum::of(&elements) };
            prop_assert_eq!(Epoch::decode(&epoch.encode()), Some(epoch));
        }

        #[test]
        fn nonsense_is_no_epoch(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(bytes.len() != 90 || bytes[0] != VERSION);
            prop_assert_eq!(Epoch::decode(&bytes), None);
        }
    }
}
