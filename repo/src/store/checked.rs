//! Checks that every answer of a store matches its question, so that no caller trusts a store to answer in full.
//!
//! | answer | must have |
//! |---|---|
//! | `locate`, `get`, `nodes` | one part for each thing in the question |
//! | a block of `get` | as many pages as were wanted; their lengths are proved by [`crate::codec::Header::open_page`] |
//! | `records`, `listing`, `notes` | each name once |
//!
//! Any other answer is an error of kind Corrupt. The check proves no content: the code that opens the content does
//! that.

use std::collections::HashSet;
use std::sync::Arc;

use super::{
    Distance, Identity, Listing, Live, Located, Note, PruneOptions, Record, StoreManager, StoreReader, StoreWriter,
    Stored, Swept, Wanted,
};
use crate::block::Hashing;
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};

/// A store whose answers are checked against the questions.
pub struct Checked<S: ?Sized>(Arc<S>);

impl<S: ?Sized> Checked<S> {
    /// Wraps `store`.
    pub fn new(store: Arc<S>) -> Self {
        Self(store)
    }
}

/// Reads pages of blocks. Returns one result for each, in order.
pub(crate) fn get(store: &(impl StoreReader + ?Sized), wanted: &[Wanted]) -> Vec<Result<Stored>> {
    let answers = each(store.get(wanted), wanted.len(), "read a block").into_iter();
    answers
        .zip(wanted)
        .map(|(stored, wanted)| complete(wanted, stored?))
        .collect()
}

/// Reads nodes of manifests. Returns one result for each, in order.
pub(crate) fn nodes(store: &(impl StoreReader + ?Sized), ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
    match ids {
        // A far store would be asked for nothing.
        [] => Vec::new(),
        ids => each(store.nodes(ids), ids.len(), "read a manifest"),
    }
}

fn wrong_count(doing: &'static str, answers: usize, questions: usize) -> Error {
    Error::Store {
        kind: ErrorKind::Corrupt,
        doing,
        message: format!("the store gave {answers} answers to {questions} questions"),
    }
}

fn complete(wanted: &Wanted, stored: Stored) -> Result<Stored> {
    match stored.pages.len() == wanted.pages.len() {
        true => Ok(stored),
        false => Err(Error::BlockDamaged {
            id: wanted.id,
            what: format!(
                "the store gave {} of {} wanted pages",
                stored.pages.len(),
                wanted.pages.len()
            ),
        }),
    }
}

/// Returns one answer for each of `count` questions. If the number differs, all are errors, because it is not known
/// which answer is missing.
fn each<T>(answers: Vec<Result<T>>, count: usize, doing: &'static str) -> Vec<Result<T>> {
    match answers.len() == count {
        true => answers,
        false => (0..count)
            .map(|_| Err(wrong_count(doing, answers.len(), count)))
            .collect(),
    }
}

fn once<'a>(mut names: impl Iterator<Item = &'a str>, doing: &'static str) -> Result<()> {
    let mut seen = HashSet::new();
    match names.find(|name| !seen.insert(*name)) {
        None => Ok(()),
        Some(twice) => Err(Error::Store {
            kind: ErrorKind::Corrupt,
            doing,
            message: format!("the answer contains {twice} twice"),
        }),
    }
}

impl<S: StoreReader + ?Sized> StoreReader for Checked<S> {
    fn identity(&self) -> Result<Identity> {
        self.0.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.0.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.0.state_at(generation)
    }

    fn hashing(&self) -> Hashing {
        self.0.hashing()
    }

    fn distance(&self) -> Distance {
        self.0.distance()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let located = self.0.locate(ids)?;
        match located.len() == ids.len() {
            true => Ok(located),
            false => Err(wrong_count("read the index", located.len(), ids.len())),
        }
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.0.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.0.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        get(&*self.0, wanted)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        nodes(&*self.0, ids)
    }

    fn to_scan(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        let scan = Arc::clone(&self.0).to_scan()?;
        Some(Arc::new(Checked(scan)))
    }

    fn with_copies(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        let copies = Arc::clone(&self.0).with_copies()?;
        Some(Arc::new(Checked(copies)))
    }

    fn drop_copies(&self, blocks: &[BlockId], nodes: &[NodeId]) {
        self.0.drop_copies(blocks, nodes);
    }

    fn records(&self) -> Result<Vec<Record>> {
        let records = self.0.records()?;
        once(records.iter().map(|record| &*record.key), "list the backups")?;
        Ok(records)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        let notes = self.0.notes()?;
        once(notes.iter().map(|note| &*note.name), "read the notes")?;
        Ok(notes)
    }

    fn foreign_changes(&self) -> Result<Vec<String>> {
        self.0.foreign_changes()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        let listing = self.0.listing(with_notes)?;
        once(listing.records.iter().map(|record| &*record.key), "list the backups")?;
        once(listing.notes.iter().map(|note| &*note.name), "read the notes")?;
        Ok(listing)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        let found = self.0.lookup(record_keys, note_names)?;
        once(found.records.iter().map(|record| &*record.key), "list the backups")?;
        once(found.notes.iter().map(|note| &*note.name), "read the notes")?;
        let is_asked = found.records.iter().all(|record| record_keys.contains(&record.key))
            && found.notes.iter().all(|note| note_names.contains(&note.name));
        match is_asked {
            true => Ok(found),
            false => Err(Error::Store {
                kind: ErrorKind::Corrupt,
                doing: "read the notes",
                message: "the answer contains what was not asked for".into(),
            }),
        }
    }

    fn forgotten(&self) -> Result<Vec<super::Forgotten>> {
        self.0.forgotten()
    }

    fn epoch(&self) -> Result<Option<u64>> {
        self.0.epoch()
    }

    fn stored_note_name(&self, name: &str) -> String {
        self.0.stored_note_name(name)
    }
}

impl<S: StoreWriter + ?Sized> StoreWriter for Checked<S> {
    fn takes_differences(&self) -> bool {
        self.0.takes_differences()
    }

    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.0.put(blocks)
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.0.put_nodes(nodes)
    }

    fn builds_on(&self, record_key: &str) -> Result<()> {
        self.0.builds_on(record_key)
    }

    fn set_terms(&self, terms: super::Terms) {
        self.0.set_terms(terms);
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        self.0.commit_at(record, notes, at)
    }
}

impl<S: StoreManager + ?Sized> StoreManager for Checked<S> {
    fn accept(&self) -> Result<Vec<String>> {
        self.0.accept()
    }

    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.0.amend_at(remove_records, notes, at)
    }

    fn held(&self) -> Vec<Record> {
        self.0.held()
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.0.empty_bin(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.0.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.0.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.0.retain(live, options, step)
    }
}

#[cfg(test)]
mod tests;
