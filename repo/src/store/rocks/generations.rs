//! The number of a state of the store, and what tells it apart from another state of the same number.
//!
//! An older copy of a repository that was written to has the numbers of the original again. So each change also stores a hash over
//! the state before it and all that it changes: two histories that went apart never have the same state again. A vbk that does not
//! know the row leaves it as it is, so it has the number that it belongs to.

use rocksdb::{ReadOptions, WriteBatch};

use super::errors::failed;
use super::{RocksReader, RocksStore};
use crate::block::Hashing;
use crate::error::Result;
use crate::id::to_hex;
use crate::store::StoreReader;

const STATE: &str = "state";

/// Bytes of the hash that are stored: enough against chance.
const HASH_BYTES: usize = 8;

impl RocksStore {
    /// Adds to a change, as the last step, the generation that readers see it with.
    pub(super) fn next_generation(&self, batch: &mut WriteBatch) -> Result<()> {
        let generation = (self.reader.generation()? + 1).to_be_bytes();
        let before = self.reader.state_row()?.unwrap_or_default();
        let hash = Hashing::Plain.content(&[&before, &generation[..], batch.data()].concat());
        let meta = self.reader.family("meta");
        batch.put_cf(meta, "generation", generation);
        batch.put_cf(meta, STATE, [&generation[..], &hash[..HASH_BYTES]].concat());
        Ok(())
    }
}

impl RocksReader {
    pub(super) fn generation_in(&self, options: ReadOptions) -> Result<u64> {
        Ok(self.meta_number_in("generation", options)?.unwrap_or(0))
    }

    fn state_row(&self) -> Result<Option<Vec<u8>>> {
        let row = self.db.get_cf(self.family("meta"), STATE);
        row.map_err(failed("read its state"))
    }

    /// Returns the hash of the state of that generation, if this is it and has one.
    pub(super) fn state_of(&self, generation: u64) -> Result<Option<String>> {
        let row = self.state_row()?;
        let hash = row.as_ref().and_then(|row| row.strip_prefix(&generation.to_be_bytes()));
        Ok(hash.map(to_hex))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rocks::tests::Fixture;
    use crate::store::{Note, StoreManager};

    fn note(store: &RocksStore, value: &str) {
        let note = Note {
            name: "a note".into(),
            value: Some(value.as_bytes().to_vec()),
        };
        store.amend(&[], &[note]).expect("notes");
    }

    #[test]
    fn histories_that_went_apart_have_other_states_of_the_same_number() {
        let stores = [Fixture::new(), Fixture::new(), Fixture::new()];
        let states = |generation| {
            let state = |fixture: &Fixture| fixture.store().state_at(generation).expect("reads");
            stores.each_ref().map(state)
        };
        let [first, ..] = states(0);
        assert_eq!(first, None, "nothing was changed yet");
        for fixture in &stores {
            note(fixture.store(), "the same");
        }
        let [one, other, third] = states(1);
        assert!(one.is_some() && one == other && one == third);
        assert_eq!(states(2), [None, None, None]);
        for (fixture, value) in stores.iter().zip(["x", "y", "x"]) {
            note(fixture.store(), value);
        }
        let [one, other, third] = states(2);
        assert!(one != other && one == third, "{one:?} {other:?} {third:?}");
        // Also if what was changed last is the same.
        for fixture in &stores {
            note(fixture.store(), "the same");
        }
        let [one, other, third] = states(3);
        assert!(one != other && one == third, "{one:?} {other:?} {third:?}");
        // An older vbk counts on and leaves the row.
        let meta = stores[0].store().reader.family("meta");
        let counted = stores[0]
            .store()
            .reader
            .db
            .put_cf(meta, "generation", 4_u64.to_be_bytes());
        counted.expect("writes");
        assert_eq!(stores[0].store().state_at(4).expect("reads"), None);
        note(stores[0].store(), "z");
        assert!(stores[0].store().state_at(5).expect("reads").is_some());
    }
}
