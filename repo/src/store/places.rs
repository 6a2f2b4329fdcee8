//! What is known of the places in a store: a bit or two bytes each.

use std::collections::BTreeMap;

/// Where a block lies in its store: places near each other are read together cheaply. Dense enough for a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// Places of a piece.
const PIECE: u64 = 512 * 64;

/// A set of places, in pieces of 4 KiB: a place far out, which only damage makes, costs one piece.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<u64, Box<[u64; 512]>>);

fn position(place: Place) -> (u64, usize, u64) {
    let inside = place.0 % PIECE;
    (place.0 / PIECE, (inside / 64) as usize, 1 << (inside % 64))
}

impl Places {
    /// Adds a place; `false` if it was there.
    pub fn insert(&mut self, place: Place) -> bool {
        let (piece, word, bit) = position(place);
        let word = &mut self.0.entry(piece).or_insert_with(|| Box::new([0; 512]))[word];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Whether a place is in the set.
    pub fn contains(&self, place: Place) -> bool {
        let (piece, word, bit) = position(place);
        self.0.get(&piece).is_some_and(|words| words[word] & bit != 0)
    }
}

/// A number for each place, 0 where none was set; in pieces of 8 KiB.
#[derive(Debug, Default)]
pub(crate) struct PlaceNumbers(BTreeMap<u64, Box<[u16; NUMBERS]>>);

const NUMBERS: usize = 4096;

impl PlaceNumbers {
    /// The number at a place.
    pub(crate) fn get(&self, place: Place) -> u16 {
        let piece = self.0.get(&(place.0 / NUMBERS as u64));
        piece.map_or(0, |piece| piece[(place.0 % NUMBERS as u64) as usize])
    }

    /// The same, to be changed.
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
