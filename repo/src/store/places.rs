//! Compact tables of facts about places in a store: one bit or two bytes for each place.

use std::collections::BTreeMap;

/// Place of a block in its store: blocks at adjacent places are cheap to read together. Dense enough for a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// Places in one piece.
const PIECE: u64 = 512 * 64;

/// A set of places, in pieces of 4 KiB: a far place, which only damage produces, costs one piece.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<u64, Box<[u64; 512]>>);

fn position(place: Place) -> (u64, usize, u64) {
    let inside = place.0 % PIECE;
    (place.0 / PIECE, (inside / 64) as usize, 1 << (inside % 64))
}

impl Places {
    /// Adds a place; returns `false` if the set had it already.
    pub fn insert(&mut self, place: Place) -> bool {
        let (piece, word, bit) = position(place);
        let word = &mut self.0.entry(piece).or_insert_with(|| Box::new([0; 512]))[word];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Returns whether a place is in the set.
    pub fn contains(&self, place: Place) -> bool {
        let (piece, word, bit) = position(place);
        self.0.get(&piece).is_some_and(|words| words[word] & bit != 0)
    }
}

/// A number for each place, 0 if none was set; in pieces of 8 KiB.
#[derive(Debug, Default)]
pub(crate) struct PlaceNumbers(BTreeMap<u64, Box<[u16; NUMBERS]>>);

const NUMBERS: usize = 4096;

impl PlaceNumbers {
    /// Returns the number of a place.
    pub(crate) fn get(&self, place: Place) -> u16 {
        let piece = self.0.get(&(place.0 / NUMBERS as u64));
        piece.map_or(0, |piece| piece[(place.0 % NUMBERS as u64) as usize])
    }

    /// Returns the number of a place for modification.
    pub(crate) fn at(&mut self, place: Place) -> &mut u16 {
        let piece = self.0.entry(place.0 / NUMBERS as u64);
        &mut piece.or_insert_with(|| Box::new([0; NUMBERS]))[(place.0 % NUMBERS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn it_is_a_set(places in prop::collection::vec(prop_oneof![0..200_u64, PIECE - 2..PIECE + 2, any::<u64>()], 0..300)) {
            let (mut set, mut model) = (Places::default(), HashSet::new());
            for place in &places {
                prop_assert_eq!(set.insert(Place(*place)), model.insert(*place));
            }
            for place in (0..201).chain(places) {
                prop_assert_eq!(set.contains(Place(place)), model.contains(&place));
            }
        }
    }
}
