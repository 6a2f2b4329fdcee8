//! The puts of one store, until they are durable.
//!
//! A put that was answered is kept by the server's process, and lost with it until a flush. Nodes stay here until then, and are
//! put again after a lost connection. Blocks are too large for that: the commit finds those that are gone, and its caller reads
//! them again.

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
    failed: Option<Fault>,
}

struct Settled {
    order: u64,
    blocks: usize,
    /// The question, if it put nodes.
    nodes: Option<Arc<Message>>,
    /// The connection on which it was answered is lost.
    is_doubtful: bool,
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
            Some(blocks) => state.blocks += blocks.len(),
            None => state.node_bytes += bytes,
        }
        state.on_their_way.insert(order, blocks.unwrap_or_default());
    }

    /// Notes the answer to a put.
    pub(super) fn end(&self, order: u64, message: Arc<Message>, failed: Option<Fault>) {
        let mut state = self.0.lock();
        let blocks = state.on_their_way.remove(&order).unwrap_or_default().len();
        match failed {
            // The base of a difference, which was answered and lost with the server's process. The commit names the difference.
            Some(Fault::BlockMissing(_)) => {}
            Some(fault) => _ = state.failed.get_or_insert(fault),
            None => state.settled.push(Settled {
                order,
                blocks,
                nodes: (blocks == 0).then_some(message),
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

    /// Returns whether something was put since the last flush.
    pub(super) fn has_any(&self) -> bool {
        let state = self.0.lock();
        !state.on_their_way.is_empty() || !state.settled.is_empty() || state.failed.is_some()
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
            settled.map(|put| put.blocks).sum(),
            nodes.map(|message| message.body.len()).sum(),
        );
    }

    /// Notes that the connection is lost.
    pub(super) fn lose(&self) {
        self.0.lock().settled.iter_mut().for_each(|put| put.is_doubtful = true);
    }

    /// Nodes that the server may have lost: bytes of the put that is next to be repeated.
    pub(super) fn next_again_bytes(&self) -> Option<usize> {
        self.0.lock().doubtful().map(|(_, nodes)| nodes.body.len())
    }

    /// Takes that put, to be repeated.
    pub(super) fn take_again(&self) -> Option<Arc<Message>> {
        let mut state = self.0.lock();
        let (at, nodes) = state.doubtful()?;
        let nodes = Arc::clone(nodes);
        state.settled.remove(at);
        Some(nodes)
    }
}

impl State {
    fn doubtful(&self) -> Option<(usize, &Arc<Message>)> {
        let settled = self.settled.iter().enumerate();
        settled
            .filter(|(_, put)| put.is_doubtful)
            .find_map(|(at, put)| Some((at, put.nodes.as_ref()?)))
    }
}
