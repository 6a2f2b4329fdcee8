use std::sync::mpsc;

use super::*;
use crate::block::BlockSize;
use crate::repository::directory::lock::PRUNE;
use crate::repository::home::Room;
use crate::repository::{CreateOptions, Repository};
use crate::tests::testing::{backup, mixed_bytes, store_image};

const ALL: PruneOptions = PruneOptions {
    max_unused: 0.0,
    dry_run: false,
    empty_bin: false,
};

/// A place that another process waits for from some look on.
struct Awaited {
    looks: std::sync::atomic::AtomicU64,
    from: u64,
}

impl Keeper for Awaited {
    fn publish(&self) -> Result<()> {
        Ok(())
    }

    fn room(&self) -> Result<Room> {
        Ok(Room {
            used_bytes: 0,
            free_bytes: 0,
        })
    }

    fn is_awaited(&self) -> bool {
        self.looks.fetch_add(1, Ordering::SeqCst) >= self.from
    }
}

/// Runs a prune that removes a block, and then works until it is stopped.
fn run(from: u64, cancel: &AtomicBool) -> Result<Turn> {
    let keeper = Awaited { looks: 0.into(), from };
    until_awaited(&keeper, cancel, &|_| {}, |stop, told| {
        told.used_before_bytes.set(Some(7));
        told.tell(&Swept {
            removed_blocks: 1,
            ..Swept::default()
        });
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Err(Error::Interrupted)
    })
}

#[test]
fn a_prune_ends_when_another_process_waits_and_tells_what_it_removed() {
    for from in [0, 2] {
        let turn = run(from, &AtomicBool::new(false)).expect("gives way");
        let expected = Turn::GaveWay {
            swept: Swept {
                removed_blocks: 1,
                ..Swept::default()
            },
            used_before_bytes: Some(7),
        };
        assert_eq!(turn, expected);
    }
    let cancelled = run(u64::MAX, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(Error::Interrupted)), "{cancelled:?}");
}

/// Commits a backup of a guest with a disk of its own.
fn add(manager: &Manager, time: &str, seed: u32) -> String {
    let image = store_image(manager.store(), "vda", &mixed_bytes(seed, 500_000));
    let made = manager.writer().commit(backup("web1", time, vec![image]));
    made.expect("commits").entry.backup.spec()
}

#[test]
fn a_writer_that_waits_goes_first_and_the_prune_continues_after_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    let open = |command: &str| repository.manager(command, &mut |_| true).expect("opens");
    let cancel = AtomicBool::new(false);
    let mut manager = open("test");
    let old = add(&manager, "2026-11-20T00-00-00Z", 1);
    add(&manager, "2026-11-21T00-00-00Z", 2);
    manager.amend(&[old], &[]).expect("forgets");
    thread::scope(|scope| {
        let (waits, waiting) = mpsc::channel();
        let other = scope.spawn(move || {
            let mut wait = |_: &str| {
                let _ = waits.send(());
                true
            };
            let manager = repository.manager("backup", &mut wait).expect("opens");
            add(&manager, "2026-11-22T00-00-00Z", 3)
        });
        waiting.recv().expect("waits");
        let turn = manager.prune_until_awaited(ALL, 2, &cancel, &|_| {}).expect("runs");
        assert!(matches!(turn, Turn::GaveWay { .. }), "{turn:?}");
        drop(manager);
        other.join().expect("commits");
    });
    let repository = Repository::open(&path).expect("opens");
    let open = |command: &str| repository.manager(command, &mut |_| true).expect("opens");
    let turn = open(PRUNE).prune_until_awaited(ALL, 2, &cancel, &|_| {});
    match turn.expect("prunes") {
        Turn::Done(pruned) => assert!(pruned.backups == 2 && pruned.swept.removed_blocks > 0, "{pruned:?}"),
        turn => panic!("{turn:?}"),
    }
}

#[test]
fn what_a_forget_would_leave_unused_is_what_it_leaves() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("repo");
    let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    let mut manager = repository.manager("test", &mut |_| true).expect("opens");
    let cancel = AtomicBool::new(false);
    let first = add(&manager, "2026-11-20T00-00-00Z", 1);
    let second = add(&manager, "2026-11-21T00-00-00Z", 2);
    let count = |forgotten: &[&String]| {
        let forgotten = forgotten.iter().map(|backup| (*backup).clone()).collect();
        let view = repository.view().expect("a view");
        let would = repository.would_prune(&view, &forgotten, ALL, 2, &cancel);
        would.expect("counts").pruned
    };
    let (none, one, both) = (count(&[]), count(&[&first]), count(&[&first, &second]));
    assert_eq!((none.backups, one.backups, both.backups), (2, 1, 0));
    assert_eq!((none.swept.unused_blocks, both.swept.live_blocks), (0, 0));
    assert!(one.swept.live_blocks > 0, "{one:?}");
    // It was only counted.
    assert_eq!(count(&[]).swept, none.swept);
    manager.amend(&[first], &[]).expect("forgets");
    assert_eq!(count(&[]).swept, one.swept);
    let pruned = manager.prune(ALL, 2, &cancel, &|_| {}).expect("prunes");
    // Nodes of manifests are not counted before.
    let expected = Swept {
        removed_nodes: pruned.swept.removed_nodes,
        ..one.swept
    };
    assert_eq!(pruned.swept, expected);
}
