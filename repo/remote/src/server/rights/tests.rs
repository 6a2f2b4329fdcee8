//! A hostile client for each right: it asks every question of the protocol, whatever its right is.

use std::sync::Arc;

use vbk_repo::block::BlockSize;
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::repository::{Reserve, SealedOptions};
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Note, PruneOptions, Record, StoreReader, StoreWriter, Terms};

use super::*;
use crate::message::{Answer, Ask, Handle, Hello, PROTOCOL};
use crate::server::limited::{Admission, limit};
use crate::server::session::Reply;
use crate::server::stores::Stores;
use crate::server::{AuditLog, Quota, Who};
use crate::tests::backup;
use crate::wire::Outbox;

const RIGHTS: [Allowed; 5] = [
    Allowed::Read,
    Allowed::Verify,
    Allowed::Copy,
    Allowed::Add,
    Allowed::Everything,
];

const KEY: &str = "web1@2026-11-21T05-54-00Z";
const NEW_KEY: &str = "web1@2026-11-22T05-54-00Z";

fn record(key: &str) -> Record {
    let (guest, time) = key.split_once('@').expect("a name");
    let backup = backup(guest, time, Vec::new());
    Record {
        key: key.to_owned(),
        bytes: serde_json::to_vec(&backup).expect("plain fields"),
    }
}

/// Something that a right is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Never answered by an open repository.
    Nobody,
    /// Any right.
    Any,
    Blocks,
    WholeStore,
    Adds,
    Manages,
    /// No token has it.
    Administrator,
}

/// Says what each question needs. A new question has to be added here: the match has no `_` arm.
fn needs(ask: &Ask) -> Needs {
    match ask {
        Ask::Hello(_) | Ask::Create(_) => Needs::Nobody,
        Ask::Newest
        | Ask::KeySlots
        | Ask::CheckReserve(_)
        | Ask::Read { .. }
        | Ask::Close(_)
        | Ask::Generation(_)
        | Ask::Locate(_)
        | Ask::Condemned(_)
        | Ask::Nodes(_)
        | Ask::CompareNodes(_)
        | Ask::Listing { .. }
        | Ask::Lookup { .. }
        | Ask::Forgotten(_)
        | Ask::Stop(_)
        | Ask::Status => Needs::Any,
        Ask::Get { .. } => Needs::Blocks,
        Ask::Survey { .. } | Ask::DiskUsage | Ask::CheckTables(_) | Ask::Check(_) => Needs::WholeStore,
        Ask::Write { .. }
        | Ask::Put { .. }
        | Ask::PutNodes { .. }
        | Ask::BuildsOn { .. }
        | Ask::Flush(_)
        | Ask::Commit { .. }
        | Ask::Publish(_)
        | Ask::Room(_) => Needs::Adds,
        Ask::Manage { .. } | Ask::Amend { .. } | Ask::Condemn(_) | Ask::Pardon(_) | Ask::Prune { .. } => Needs::Manages,
        Ask::AddSlot(..) => Needs::Manages,
        Ask::RemoveSlot { .. } => Needs::Administrator,
    }
}

fn has(rights: Allowed, needs: Needs) -> bool {
    let table: &[Needs] = match rights {
        Allowed::Read | Allowed::Copy => &[Needs::Any, Needs::Blocks],
        Allowed::Verify => &[Needs::Any, Needs::Blocks, Needs::WholeStore],
        Allowed::Add => &[Needs::Any, Needs::Adds],
        Allowed::Everything | Allowed::Trusted => &[
            Needs::Any,
            Needs::Blocks,
            Needs::WholeStore,
            Needs::Adds,
            Needs::Manages,
        ],
    };
    table.contains(&needs)
}

/// All questions, in the order of the protocol, with their bodies. `store` is what the client has open, `new` a number for
/// another one.
fn questions(store: Handle, new: Handle, id: BlockId) -> Vec<(Ask, Vec<u8>)> {
    let command = || "test".to_owned();
    let plain = |ask| (ask, Vec::new());
    let with_id = |ask| (ask, id.0.to_vec());
    vec![
        plain(Ask::Hello(Hello {
            protocol: (PROTOCOL, PROTOCOL),
            program: "test".into(),
        })),
        plain(Ask::Newest),
        plain(Ask::KeySlots),
        plain(Ask::CheckReserve(Reserve::Bytes(0))),
        plain(Ask::Read {
            store: new,
            as_it_is: false,
        }),
        plain(Ask::Write {
            store: new + 1,
            command: command(),
        }),
        plain(Ask::Manage {
            store: new + 2,
            command: command(),
        }),
        plain(Ask::Close(new)),
        plain(Ask::Generation(store)),
        with_id(Ask::Locate(store)),
        plain(Ask::Survey { store, from: [0; 32] }),
        plain(Ask::Condemned(store)),
        plain(Ask::Get {
            store,
            wanted: vec![(id.0, 0, 1)],
        }),
        with_id(Ask::Nodes(store)),
        plain(Ask::Listing {
            store,
            records: true,
            notes: true,
        }),
        plain(Ask::Lookup {
            store,
            records: vec![KEY.into()],
            notes: Vec::new(),
        }),
        plain(Ask::Put {
            store,
            blocks: Vec::new(),
        }),
        plain(Ask::PutNodes {
            store,
            nodes: Vec::new(),
            terms: Terms::default(),
        }),
        plain(Ask::BuildsOn {
            store,
            record: KEY.into(),
        }),
        plain(Ask::Flush(store)),
        plain(Ask::Commit {
            store,
            key: NEW_KEY.into(),
            record: record(NEW_KEY).bytes,
            notes: Vec::new(),
            at: None,
            terms: Terms::default(),
        }),
        plain(Ask::Amend {
            store,
            remove_records: vec![KEY.into()],
            notes: Vec::new(),
            at: None,
            terms: Terms::default(),
        }),
        with_id(Ask::Condemn(store)),
        with_id(Ask::Pardon(store)),
        plain(Ask::Publish(store)),
        plain(Ask::Room(store)),
        plain(Ask::Prune {
            store,
            options: PruneOptions {
                max_unused: 0.0,
                dry_run: false,
                empty_bin: false,
            },
        }),
        plain(Ask::Stop(store)),
        plain(Ask::DiskUsage),
        plain(Ask::CheckTables(0)),
        (Ask::CompareNodes(store), [id.0, id.0].concat()),
        plain(Ask::Forgotten(store)),
        plain(Ask::Status),
        plain(Ask::Check(store)),
        plain(Ask::AddSlot("new".into(), Vec::new())),
        plain(Ask::RemoveSlot {
            name: "key".into(),
            stays: None,
        }),
        plain(Ask::Create(SealedOptions {
            block_size: BlockSize::DEFAULT,
            features: Vec::new(),
            parents: true,
            encryption: None,
        })),
    ]
}

/// Number of a question in the protocol, as postcard writes it.
fn number(ask: &Ask) -> u8 {
    postcard::to_stdvec(ask).expect("plain data")[0]
}

struct Fixture {
    directory: tempfile::TempDir,
    store: Arc<MemoryStore>,
    block: BlockId,
}

impl Fixture {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
        let plain = vec![7; 100_000];
        let hashes = store.hashing().block(&plain);
        let mut sealer = Sealer::new(Compression::None).expect("a sealer");
        store
            .put(vec![sealer.seal(&plain, &hashes).expect("seals")])
            .expect("puts");
        store.commit(&record(KEY)).expect("commits");
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            store,
            block: hashes.id,
        }
    }

    fn stores(&self, rights: Allowed, guests: &[&str]) -> Stores {
        let admission = Admission {
            who: Who {
                name: rights.name().into(),
                address: None,
            },
            rights,
            guests: guests.iter().map(|guest| (*guest).to_owned()).collect(),
            is_administrator: false,
            quota: Quota::default(),
        };
        let home: Arc<dyn Home> = Arc::new(StoreHome::new(Arc::clone(&self.store)).expect("a home"));
        let home = limit(home, &admission, Some(self.directory.path())).expect("limits");
        Stores::new(home, rights)
    }

    /// Everything that a client could destroy.
    fn state(&self) -> (Vec<Record>, Vec<Note>, Vec<BlockId>, usize) {
        let mut blocks = 0;
        let counted = self.store.survey(&mut |_, _| {
            blocks += 1;
            Ok(())
        });
        counted.expect("lists");
        (
            self.store.records().expect("lists"),
            self.store.notes().expect("lists"),
            self.store.condemned().expect("lists"),
            blocks,
        )
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join("serve").join(name)).unwrap_or_default()
    }
}

fn ask(stores: &Stores, ask: Ask, body: &[u8]) -> vbk_repo::Result<Option<(Answer, Vec<u8>)>> {
    stores.try_answer(ask, body, &Reply::new(&Arc::new(Outbox::new(1 << 20)), 1))
}

/// Opens all stores that the right opens, and returns their numbers.
fn open_all(stores: &Stores) -> Vec<Handle> {
    let command = || "test".to_owned();
    let opening = [
        Ask::Read {
            store: 1,
            as_it_is: false,
        },
        Ask::Write {
            store: 2,
            command: command(),
        },
        Ask::Manage {
            store: 3,
            command: command(),
        },
    ];
    let opened = (1..)
        .zip(opening)
        .filter(|(_, one)| ask(stores, one.clone(), &[]).is_ok());
    opened.map(|(number, _)| number).collect()
}

#[test]
fn every_question_is_asked() {
    let all = questions(1, 10, BlockId([0; 32]));
    let numbers: Vec<_> = all.iter().map(|(ask, _)| number(ask)).collect();
    assert_eq!(numbers, (0..all.len() as u8).collect::<Vec<_>>());
    // The protocol has no question after the last one.
    let next = [&[all.len() as u8][..], &[0; 100]].concat();
    assert!(
        postcard::from_bytes::<Ask>(&next).is_err(),
        "a new question is missing here"
    );
}

#[test]
fn each_right_gets_the_answers_of_the_table_and_no_others() {
    for rights in RIGHTS {
        let fixture = Fixture::new();
        let stores = fixture.stores(rights, &[]);
        let open = open_all(&stores);
        let count = questions(1, 10, fixture.block).len();
        for at in 0..count {
            // The store with the most rights decides; the others are asked too, for their harm.
            let mut answered = false;
            for (step, &store) in (1..).zip(&open) {
                let (question, body) =
                    questions(store, 100 * (at as u32 + 1) + 10 * step, fixture.block).swap_remove(at);
                let gets = matches!(&question, Ask::Get { .. });
                answered |= match ask(&stores, question, &body) {
                    Ok(Some((Answer::Stored(stored), _))) if gets => stored.iter().all(Result::is_ok),
                    Ok(_) => true,
                    Err(_) => false,
                };
            }
            let (question, _) = questions(1, 10, fixture.block).swap_remove(at);
            let expected = has(rights, needs(&question));
            assert_eq!(answered, expected, "{} asks {question:?}", rights.name());
        }
    }
}

#[test]
fn nothing_is_lost_by_a_client_that_may_not_manage() {
    for rights in RIGHTS.into_iter().filter(|rights| !rights.manages()) {
        let fixture = Fixture::new();
        let (before, _, _, blocks) = fixture.state();
        let stores = fixture.stores(rights, &[]);
        // Also stores that it has not opened, or not so.
        open_all(&stores);
        for store in 0..5 {
            for (question, body) in questions(store, 10 * (store + 1), fixture.block) {
                let _ = ask(&stores, question, &body);
            }
        }
        let (after, notes, condemned, blocks_after) = fixture.state();
        assert!(before.iter().all(|record| after.contains(record)), "{}", rights.name());
        assert_eq!(
            (notes, condemned, blocks_after),
            (Vec::new(), Vec::new(), blocks),
            "{}",
            rights.name()
        );
        assert_eq!(after.len() > before.len(), rights.adds());
        assert_eq!(fixture.log("audit.log"), "", "{} changed nothing", rights.name());
        assert!(
            fixture
                .log("refused.log")
                .contains(&format!("\"client\":\"{}\"", rights.name()))
        );
    }
}

#[test]
fn what_a_manager_does_is_logged() {
    let fixture = Fixture::new();
    let stores = fixture.stores(Allowed::Everything, &[]);
    open_all(&stores);
    for (question, body) in questions(3, 10, fixture.block) {
        let _ = ask(&stores, question, &body);
    }
    let log = fixture.log("audit.log");
    let what: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["what"].to_string())
        .collect();
    assert_eq!(what[..3], ["\"forget\"", "\"pardon\"", "\"prune\""], "{log}");
    assert!(log.contains(KEY) && log.contains(&fixture.block.to_string()));
}

#[test]
fn a_client_with_some_guests_touches_no_others() {
    for rights in RIGHTS {
        let fixture = Fixture::new();
        let before = fixture.state();
        let stores = fixture.stores(rights, &["db*"]);
        for store in open_all(&stores) {
            for (question, body) in questions(store, 100 * (store + 1), fixture.block) {
                let manages = needs(&question) == Needs::Manages && !matches!(question, Ask::Manage { .. });
                let whole = needs(&question) == Needs::WholeStore;
                let (shown, answer) = (format!("{question:?}"), ask(&stores, question, &body));
                assert!(!(manages || whole) || answer.is_err(), "{} {shown}", rights.name());
            }
        }
        assert_eq!(fixture.state(), before, "{}", rights.name());
    }
}

#[test]
fn a_log_that_can_t_be_written_lets_nobody_destroy() {
    let fixture = Fixture::new();
    std::fs::write(fixture.directory.path().join("serve"), "in the way").expect("writes");
    assert!(
        AuditLog::of(fixture.directory.path(), Who::default())
            .note("x", &[])
            .is_err()
    );
    let before = fixture.state();
    let stores = fixture.stores(Allowed::Everything, &[]);
    open_all(&stores);
    let (forget, _) = questions(3, 10, fixture.block)
        .into_iter()
        .find(|(ask, _)| matches!(ask, Ask::Amend { .. }))
        .expect("is there");
    assert!(ask(&stores, forget, &[]).is_err());
    assert_eq!(fixture.state(), before);
}
