//! A store whose blocks and nodes are copied on this host: see [`super::kept`].

use std::sync::Arc;

use vbk_repo::Result;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::store::{Distance, Forgotten, Identity, Listing, Located, Note, Record, StoreReader, Stored, Wanted};

use super::kept::{Kept, Thing};
use super::store::RemoteStore;

/// Asks the server for what is not copied, and copies it. Records, notes and the index always are the server's.
pub(super) struct Copies {
    store: Arc<RemoteStore>,
    kept: Arc<Kept>,
}

impl Copies {
    pub(super) fn new(store: Arc<RemoteStore>, kept: Arc<Kept>) -> Self {
        Self { store, kept }
    }
}

/// Gives what is there, and the answers to one question for the rest.
fn filled<Q: Clone, A>(
    questions: &[Q],
    there: impl Fn(&Q) -> Option<A>,
    ask: impl FnOnce(&[Q]) -> Vec<Result<A>>,
    keep: impl Fn(&Q, &A),
) -> Vec<Result<A>> {
    let mut answers: Vec<_> = questions.iter().map(|question| there(question).map(Ok)).collect();
    let missing = answers.iter().zip(questions).filter(|(answer, _)| answer.is_none());
    let missing: Vec<Q> = missing.map(|(_, question)| question.clone()).collect();
    let asked = match &missing[..] {
        [] => Vec::new(),
        missing => ask(missing),
    };
    let places = answers.iter_mut().filter(|answer| answer.is_none());
    for ((place, question), answer) in places.zip(&missing).zip(asked) {
        if let Ok(answer) = &answer {
            keep(question, answer);
        }
        *place = Some(answer);
    }
    // The store gives one answer to each question; should it not, the caller counts them.
    answers.into_iter().flatten().collect()
}

impl StoreReader for Copies {
    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }

    fn distance(&self) -> Distance {
        self.store.distance()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.store.locate(ids)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.store.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.store.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        filled(
            wanted,
            |wanted| self.kept.block(wanted),
            |missing| self.store.get(missing),
            |wanted, stored| self.kept.put_block(wanted, stored),
        )
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        filled(
            ids,
            |id| self.kept.node(*id),
            |missing| self.store.nodes(missing),
            |id, bytes| self.kept.put(Thing::Node(*id), &[bytes]),
        )
    }

    fn drop_copies(&self, blocks: &[BlockId], nodes: &[NodeId]) {
        let nodes = nodes.iter().flat_map(|id| [Thing::Made(*id), Thing::Node(*id)]);
        let things = blocks.iter().map(|id| Thing::Block(*id)).chain(nodes);
        things.for_each(|thing| self.kept.remove(thing));
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.store.records()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.store.notes()
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        self.store.forgotten()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        self.store.listing(with_notes)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        self.store.lookup(record_keys, note_names)
    }
}
