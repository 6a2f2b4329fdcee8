//! Steps of the model tests: operations on a repository.

use proptest::prelude::*;

use super::expected::{CONTENTS, GUESTS, MAX_BLOCKS};
use crate::error::ErrorKind;
use crate::store::faulty::{Calls, Fault};
use crate::tests::testing::SMALL;

/// Parameters of a backup.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// Number of blocks that are looked up and put together.
    pub(super) run: usize,
    /// Sets a barrier after each run.
    pub(super) barriers: bool,
    /// Ends after this number of runs: with a last barrier if `true`, otherwise as if killed.
    pub(super) give_up: Option<(usize, bool)>,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write {
        /// Index of the disk, counted across all guests.
        disk: usize,
        at: usize,
        contents: Vec<u8>,
        last_bytes: usize,
        /// Cuts the disk off after these contents.
        cut: bool,
    },
    Backup(usize, Way),
    Forget(usize),
    Protect(usize, bool),
    Prune {
        max_unused: f64,
        /// Ends at this call of its step function: interrupted, or killed if `true`.
        end_at: Option<(usize, bool)>,
        view: bool,
    },
    Condemn {
        backup: usize,
        block: usize,
        heal: Option<Way>,
    },
    Pardon(usize),
    Open {
        kill: bool,
    },
    View,
    Read {
        backup: usize,
        at_permille: u64,
        len: usize,
    },
    Verify,
}

/// A fault, and whether the store is killed (otherwise closed) before the failed step is repeated.
pub(super) type Trial = Option<(Fault, bool)>;

pub(super) fn steps(len: usize, trials: BoxedStrategy<Trial>) -> impl Strategy<Value = Vec<(Step, Trial)>> {
    let way = || {
        let give_up = prop::option::weighted(0.2, (0..4_usize, any::<bool>()));
        (1..8_usize, any::<bool>(), give_up).prop_map(|(run, barriers, give_up)| Way { run, barriers, give_up })
    };
    let last = prop::sample::select(vec![1, 511, 40_001, SMALL.bytes() - 1, SMALL.bytes()]);
    let write = (
        0..3_usize,
        0..MAX_BLOCKS,
        prop::collection::vec(0..CONTENTS, 1..12),
        last,
        any::<bool>(),
    );
    let prune = (
        prop::sample::select(vec![0.0, 0.0, 0.1, 0.5, 1.0, 10.0]),
        prop::option::weighted(0.3, (1..4_usize, any::<bool>())),
        any::<bool>(),
    );
    let condemn = (0..50_usize, 0..50_usize, prop::option::weighted(0.7, way()));
    let step = prop_oneof![
        5 => write.prop_map(|(disk, at, contents, last_bytes, cut)| Step::Write { disk, at, contents, last_bytes, cut }),
        7 => (0..GUESTS.len(), way()).prop_map(|(guest, way)| Step::Backup(guest, way)),
        4 => (0..50_usize).prop_map(Step::Forget),
        1 => (0..50_usize, any::<bool>()).prop_map(|(backup, protected)| Step::Protect(backup, protected)),
        4 => prune.prop_map(|(max_unused, end_at, view)| Step::Prune { max_unused, end_at, view }),
        2 => condemn.prop_map(|(backup, block, heal)| Step::Condemn { backup, block, heal }),
        1 => (0..50_usize).prop_map(Step::Pardon),
        3 => any::<bool>().prop_map(|kill| Step::Open { kill }),
        2 => Just(Step::View),
        2 => (0..50_usize, 0..1000_u64, 0..300_000_usize)
            .prop_map(|(backup, at_permille, len)| Step::Read { backup, at_permille, len }),
        1 => Just(Step::Verify),
    ];
    prop::collection::vec((step, trials), 1..=len)
}

pub(super) fn trials() -> BoxedStrategy<Trial> {
    let fault = (
        prop::sample::select(vec![Calls::Any, Calls::Writing]),
        0..24_usize,
        prop::sample::select(vec![ErrorKind::NoSpace, ErrorKind::Unavailable]),
        any::<bool>(),
    );
    let fault = fault.prop_map(|(calls, after, kind, lasting)| Fault {
        calls,
        after: if calls == Calls::Writing { after / 4 } else { after },
        kind,
        lasting,
    });
    prop::option::weighted(0.6, (fault, any::<bool>())).boxed()
}
