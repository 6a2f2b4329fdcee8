//! The puts of one store, until they are durable.
//!
//! A put that was answered is kept by the server's process, and lost with it until a flush. So after a lost connection each such
//! put is in doubt. The store is asked for it before the next flush or commit.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::message::Fault;
use crate::wire::Message;

/// Name of a block.
pub(super) type Id = [u8; 32];

/// Blocks that may be put before a flush: so many at most must be read again after a crash of the server.
const MAX_BLOCKS: usize = 4096;
/// Bytes of nodes that may be put before a flush. They stay in memory.
const MAX_NODE_BYTES: usize = 64 << 20;

/// The puts of one store.
#[derive(Default)]
pub(super) struct Puts(Mutex<State>);

#[derive(Default)]
struct State {
    /// The blocks of each put without an answer; none if it has nodes.
    on_their_way: BTreeMap<u64, Vec<Id>>,
    /// Puts that were answered, and not flushed since.
    settled: Vec<Settled>,
    /// Blocks and bytes of nodes since the last flush.
    blocks: usize,
    node_bytes: usize,
    /// Blocks that the server lost, and that were not put again.
    missing: HashSet<Id>,
    /// Number of lost connections.
    losses: u64,
    failed: Option<Fault>,
}

struct Settled {
    order: u64,
    blocks: Vec<Id>,
    /// The question, if it put nodes.
    nodes: Option<Arc<Message>>,
    is_doubtful: bool,
}

/// Puts that the server may have lost.
pub(super) struct Doubt {
    pub(super) blocks: Vec<Id>,
    pub(super) nodes: Vec<Arc<Message>>,
    losses: u64,
}

impl Puts {
    /// The error of the first put that failed.
    pub(super) fn failed(&self) -> Option<Fault> {
        self.0.lock().failed.clone()
    }

    /// Notes a put. `blocks` is `None` for nodes.
    pub(super) fn begin(&self, order: u64, blocks: Option<Vec<Id>>, bytes: usize) {
        let mut state = self.0.lock();
        match &blocks {
            Some(blocks) => {
                state.blocks += blocks.len();
                for block in blocks {
                    state.missing.remove(block);
                }
            }
            None => state.node_bytes += bytes,
        }
        state.on_their_way.insert(order, blocks.unwrap_or_default());
    }

    /// Notes the answer to a put.
    pub(super) fn end(&self, order: u64, message: Arc<Message>, failed: Option<Fault>) {
        let mut state = self.0.lock();
        let blocks = state.on_their_way.remove(&order).unwrap_or_default();
        match failed {
            Some(fault) => _ = state.failed.get_or_insert(fault),
            None => state.settled.push(Settled {
                order,
                nodes: blocks.is_empty().then_some(message),
                blocks,
                is_doubtful: false,
            }),
        }
    }

    /// Returns whether one of these blocks is on its way; without blocks, whether anything is.
    pub(super) fn are_on_their_way(&self, blocks: Option<&HashSet<Id>>) -> bool {
        let state = self.0.lock();
        match blocks {
            None => !state.on_their_way.is_empty(),
            Some(blocks) => state.on_their_way.values().flatten().any(|id| blocks.contains(id)),
        }
    }

    /// Returns whether a flush is due.
    pub(super) fn are_many(&self) -> bool {
        let state = self.0.lock();
        state.blocks >= MAX_BLOCKS || state.node_bytes >= MAX_NODE_BYTES
    }

    /// Notes that all puts before `order` are durable.
    pub(super) fn flushed(&self, order: u64) {
        let mut state = self.0.lock();
        state.settled.retain(|put| put.order >= order);
        let settled = state.settled.iter();
        let nodes = settled.clone().filter_map(|put| put.nodes.as_ref());
        // Those on their way count from now on: a little less than the bound matters nothing.
        (state.blocks, state.node_bytes) = (
            settled.map(|put| put.blocks.len()).sum(),
            nodes.map(|message| message.body.len()).sum(),
        );
    }

    /// Notes that the connection is lost.
    pub(super) fn lose(&self) {
        let mut state = self.0.lock();
        state.losses += 1;
        state.settled.iter_mut().for_each(|put| put.is_doubtful = true);
    }

    /// Returns what the server may have lost; `None` if that is nothing.
    pub(super) fn doubt(&self) -> Option<Doubt> {
        let state = self.0.lock();
        let doubtful = state.settled.iter().filter(|put| put.is_doubtful);
        let doubt = Doubt {
            blocks: doubtful.clone().flat_map(|put| &put.blocks).copied().collect(),
            nodes: doubtful.filter_map(|put| put.nodes.clone()).collect(),
            losses: state.losses,
        };
        (!doubt.blocks.is_empty() || !doubt.nodes.is_empty()).then_some(doubt)
    }

    /// Returns whether there is a [`Puts::doubt`].
    pub(super) fn are_doubtful(&self) -> bool {
        self.0.lock().settled.iter().any(|put| put.is_doubtful)
    }

    /// Notes the blocks that were found to be missing, when the nodes were put again. Changes nothing if the connection was lost
    /// meanwhile.
    pub(super) fn resolve(&self, doubt: &Doubt, missing: HashSet<Id>) {
        let mut state = self.0.lock();
        if state.losses != doubt.losses {
            return;
        }
        state.settled.retain(|put| !put.is_doubtful || put.nodes.is_none());
        for put in &mut state.settled {
            if put.is_doubtful {
                put.is_doubtful = false;
                put.blocks.retain(|id| !missing.contains(id));
            }
        }
        // One that was put again meanwhile is not missing any more.
        let again: HashSet<Id> = state.on_their_way.values().flatten().copied().collect();
        let settled: HashSet<Id> = state.settled.iter().flat_map(|put| &put.blocks).copied().collect();
        let missing = missing.into_iter();
        let missing = missing.filter(|id| !again.contains(id) && !settled.contains(id));
        state.missing.extend(missing);
    }

    /// The blocks that the server lost.
    pub(super) fn missing(&self) -> Vec<Id> {
        self.0.lock().missing.iter().copied().collect()
    }
}
