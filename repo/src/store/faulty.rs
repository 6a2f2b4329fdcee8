//! A store that fails on request: a decorator for tests of the state after a failed call.
//!
//! It fails like a real store: a put that failed may have stored a part, and no barrier succeeds after it until the
//! store is opened again (point 2 of the store's rules); a sweep that failed may have removed a part. Any other call
//! that fails has done nothing.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::{
    Identity, Listing, Live, Located, Note, PruneOptions, Record, StoreManager, StoreReader, StoreWriter, Stored,
    Swept, Wanted, failed_before,
};
use crate::block::Hashing;
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};

/// Calls that count, and may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// All calls.
    Any,
    /// Calls of [`StoreManager`], not those of [`StoreReader`].
    Writing,
}

/// Fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) calls: Calls,
    /// Number of these calls that succeed first.
    pub(crate) after: usize,
    /// Kind of the failed call's error.
    pub(crate) kind: ErrorKind,
    /// All of these calls fail from then on.
    pub(crate) lasting: bool,
}

/// Passes calls on to another store until one must fail.
pub(crate) struct FaultyStore {
    inner: Arc<dyn StoreManager>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fault: Option<Fault>,
    calls: usize,
    fired: bool,
    put_failed: bool,
}

impl FaultyStore {
    /// Returns a store that fails nothing until [`FaultyStore::arm`].
    pub(crate) fn new(inner: Arc<dyn StoreManager>) -> Self {
        Self {
            inner,
            state: Mutex::default(),
        }
    }

    /// Arms a fault; counting starts again.
    pub(crate) fn arm(&self, fault: Fault) {
        let mut state = self.state();
        state.fault = Some(fault);
        (state.calls, state.fired) = (0, false);
    }

    /// Disarms the fault; returns whether a call failed. After a failed put the barriers continue to fail.
    pub(crate) fn disarm(&self) -> bool {
        let mut state = self.state();
        state.fault = None;
        state.fired
    }

    /// Returns whether a put failed, so that only opening the store again helps.
    pub(crate) fn is_broken(&self) -> bool {
        self.state().put_failed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn read(&self) -> Result<()> {
        self.call(Calls::Any)
    }

    fn write(&self) -> Result<()> {
        self.call(Calls::Writing)
    }

    fn put_of<T>(&self, mut all: Vec<T>, put: impl Fn(Vec<T>) -> Result<()>) -> Result<()> {
        if let Err(error) = self.write() {
            self.state().put_failed = true;
            all.truncate(all.len() / 2);
            put(all)?;
            return Err(error);
        }
        put(all)
    }

    fn barrier(&self) -> Result<()> {
        self.write()?;
        match self.is_broken() {
            true => Err(failed_before()),
            false => Ok(()),
        }
    }

    fn call(&self, call: Calls) -> Result<()> {
        let mut state = self.state();
        let Some(fault) = state.fault else {
            return Ok(());
        };
        if fault.calls == Calls::Writing && call != Calls::Writing {
            return Ok(());
        }
        state.calls += 1;
        let fails = match fault.lasting {
            true => state.calls > fault.after,
            false => state.calls == fault.after + 1,
        };
        if !fails {
            return Ok(());
        }
        state.fired = true;
        Err(Error::Store {
            kind: fault.kind,
            doing: "answer",
            message: "a test injected this fault".into(),
        })
    }
}

impl StoreReader for FaultyStore {
    fn identity(&self) -> Result<Identity> {
        self.read()?;
        self.inner.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.read()?;
        self.inner.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.read()?;
        self.inner.state_at(generation)
    }

    fn hashing(&self) -> Hashing {
        self.inner.hashing()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.read()?;
        self.inner.locate(ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.read()?;
        self.inner.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.read()?;
        self.inner.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        // Each answer is independent, so each may fail alone.
        let answers = self.inner.get(wanted).into_iter();
        answers.map(|answer| self.read().and(answer)).collect()
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let answers = self.inner.nodes(ids).into_iter();
        answers.map(|answer| self.read().and(answer)).collect()
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.read()?;
        self.inner.records()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        Ok(Listing {
            records: self.records()?,
            notes: match with_notes {
                true => self.notes()?,
                false => Vec::new(),
            },
            generation: self.generation()?,
            foreign_changes: self.foreign_changes()?,
            received: self.inner.listing(false)?.received,
        })
    }

    fn forgotten(&self) -> Result<Vec<super::Forgotten>> {
        self.read()?;
        self.inner.forgotten()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.read()?;
        self.inner.notes()
    }

    fn foreign_changes(&self) -> Result<Vec<String>> {
        self.read()?;
        self.inner.foreign_changes()
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.read()?;
        self.inner.lookup(record_keys, note_names)
    }

    fn epoch(&self) -> Result<Option<u64>> {
        self.read()?;
        self.inner.epoch()
    }
}

impl StoreWriter for FaultyStore {
    fn takes_differences(&self) -> bool {
        self.inner.takes_differences()
    }

    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.put_of(blocks, |some| self.inner.put(some))
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.put_of(nodes, |some| self.inner.put_nodes(some))
    }

    fn builds_on(&self, record_key: &str) -> Result<()> {
        self.inner.builds_on(record_key)
    }

    fn set_terms(&self, terms: super::Terms) {
        self.inner.set_terms(terms);
    }

    fn flush(&self) -> Result<()> {
        self.barrier()?;
        self.inner.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.barrier()?;
        self.inner.commit_at(record, notes, at)
    }
}

impl StoreManager for FaultyStore {
    fn accept(&self) -> Result<Vec<String>> {
        self.write()?;
        self.inner.accept()
    }

    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.write()?;
        self.inner.amend_at(remove_records, notes, at)
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.write()?;
        self.inner.empty_bin(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.write()?;
        self.inner.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.write()?;
        self.inner.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        let refused = self.barrier();
        if let Err(error) = refused {
            if !self.is_broken() {
                // Ends the sweep after its first step, by an answer of the callback that the caller does not see.
                let _ = self.inner.retain(live, options, &mut |_| Err(Error::Interrupted));
            }
            return Err(error);
        }
        self.inner.retain(live, options, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;
    use crate::codec::{Compression, Sealer};
    use crate::store::memory::MemoryStore;

    type Call = (&'static str, fn(&FaultyStore) -> Result<()>);

    const ALL: PruneOptions = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };

    fn store() -> FaultyStore {
        FaultyStore::new(Arc::new(MemoryStore::new(BlockSize::MIN)))
    }

    fn block(seed: u8) -> Sealed {
        let plain = [seed; 1000];
        Sealer::new(Compression::None)
            .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
            .expect("seals")
    }

    fn record() -> Record {
        Record {
            key: "a@1".into(),
            bytes: b"1".to_vec(),
        }
    }

    fn fault(calls: Calls, after: usize, lasting: bool) -> Fault {
        Fault {
            calls,
            after,
            kind: ErrorKind::NoSpace,
            lasting,
        }
    }

    const READS: [Call; 8] = [
        ("generation", |store| store.generation().map(drop)),
        ("identity", |store| store.identity().map(drop)),
        ("locate", |store| store.locate(&[BlockId([1; 32])]).map(drop)),
        ("survey", |store| store.survey(&mut |_, _| Ok(()))),
        ("condemned", |store| store.condemned().map(drop)),
        ("get", |store| {
            store.put(vec![block(1)])?;
            let wanted = Wanted {
                id: block(1).id,
                pages: 0..1,
            };
            store.get(&[wanted]).remove(0).map(drop)
        }),
        ("records", |store| store.records().map(drop)),
        ("notes", |store| store.notes().map(drop)),
    ];

    const WRITES: [Call; 8] = [
        ("put", |store| store.put(vec![block(1)])),
        ("put_nodes", |store| store.put_nodes(vec![(NodeId([1; 32]), vec![1])])),
        ("flush", |store| store.flush()),
        ("commit", |store| store.commit(&record())),
        ("amend", |store| store.amend(&["a@1".into()], &[])),
        ("condemn", |store| store.condemn(&[block(1).id])),
        ("pardon", |store| store.pardon(&[block(1).id])),
        ("retain", |store| {
            store.retain(&Live::none(), ALL, &mut |_| Ok(())).map(drop)
        }),
    ];

    #[test]
    fn a_store_without_a_fault_keeps_the_rules_of_the_seam() {
        crate::store::conformance::check(|size| Box::new(FaultyStore::new(Arc::new(MemoryStore::new(size)))));
    }

    #[test]
    fn every_method_fails_as_it_is_told() {
        for (name, call) in READS.into_iter().chain(WRITES) {
            for lasting in [false, true] {
                let store = store();
                let skipped = usize::from(name == "get");
                store.arm(fault(Calls::Any, skipped, lasting));
                assert_eq!(
                    call(&store).map_err(|error| error.kind()),
                    Err(ErrorKind::NoSpace),
                    "{name}"
                );
                assert_eq!(store.notes().is_err(), lasting, "after {name}");
                assert!(store.disarm());
                call(&store).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }

    #[test]
    fn calls_that_only_read_do_not_count_where_writing_ones_fail() {
        let store = store();
        store.put(vec![block(1)]).expect("puts");
        store.arm(fault(Calls::Writing, 1, false));
        for (name, call) in READS.into_iter().filter(|(name, _)| *name != "get") {
            call(&store).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        store.condemn(&[]).expect("the first one succeeds");
        assert!(store.condemn(&[]).is_err());
        store.condemn(&[]).expect("once only");
        assert!(store.disarm());
    }

    #[test]
    fn after_a_failed_put_a_part_is_there_and_no_barrier_succeeds() {
        let store = store();
        store.arm(fault(Calls::Writing, 0, false));
        let blocks = [1, 2, 3, 4].map(block);
        let ids = blocks.each_ref().map(|block| block.id);
        assert!(store.put(blocks.to_vec()).is_err());
        store.disarm();
        let there = store.locate(&ids).expect("locates");
        assert_eq!(there.iter().flatten().count(), 2);
        store.put(blocks.to_vec()).expect("puts");
        assert!(store.is_broken() && store.flush().is_err() && store.commit(&record()).is_err());
        assert!(store.retain(&Live::none(), ALL, &mut |_| Ok(())).is_err());
        assert_eq!(store.records().expect("lists"), []);
        assert_eq!(store.locate(&ids).expect("locates").iter().flatten().count(), 4);
        store.amend(&[], &[]).expect("needs no barrier");
    }

    #[test]
    fn what_failed_has_changed_nothing_else() {
        let store = store();
        store.commit(&record()).expect("commits");
        let note = Note {
            name: "x".into(),
            value: Some(b"1".to_vec()),
        };
        store.arm(fault(Calls::Writing, 0, true));
        assert!(store.amend(&["a@1".into()], &[note]).is_err());
        assert!(store.condemn(&[block(1).id]).is_err());
        let other = Record {
            key: "a@2".into(),
            bytes: Vec::new(),
        };
        assert!(store.commit(&other).is_err());
        assert_eq!(store.records().expect("lists"), [record()]);
        assert_eq!(
            (
                store.notes().expect("lists").len(),
                store.condemned().expect("lists").len()
            ),
            (0, 0)
        );
    }
}
