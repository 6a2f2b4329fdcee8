//! A hostile client for each right: it asks every question of the protocol, whatever its right is.

use std::sync::Arc;

use vbk_repo::block::{BlockSize, Hashing, PAGE_BYTES};
use vbk_repo::codec::{Compression, Header, Over, Sealed, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::keys::Keys;
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::repository::{Reserve, SealedOptions};
use vbk_repo::store::encrypted::Encrypted;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{
    Identity, Note, PruneOptions, Record, STORE_FORMAT, StoreManager, StoreReader, StoreWriter, Terms,
};

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
        Ask::AddSlot(..) | Ask::RemoveSlot { .. } => Needs::Administrator,
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

/// A whole block, and one that is stored as a difference from it.
fn with_difference(store: &dyn StoreManager) -> [Sealed; 2] {
    let base: Vec<u8> = (0..100_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    let mut plain = base.clone();
    plain[9] ^= 1;
    let hashing = store.hashing();
    let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
    let base = sealer.seal(&base, &hashing.block(&base)).expect("seals");
    let over = Over::open(hashing, base.id, &base.header, 0, &base.pages).expect("opens");
    let difference = sealer.seal_over(&plain, &hashing.block(&plain), &over, 1);
    [base, difference.expect("seals").expect("saves much")]
}

/// The base that a client is told with a block, and the block's plain bytes; none if it needs the base for them.
type AsStored = (Option<BlockId>, Vec<u8>);

/// Asks for a block in the first store; returns what the client learns of its base, twice, and the block.
fn look(stores: &Stores, block: &Sealed) -> (Option<BlockId>, Option<AsStored>) {
    let store = open_all(stores)[0];
    let (_, body) = ask(stores, Ask::Locate(store), &block.id.0)
        .expect("looks")
        .expect("answers");
    let located = crate::body::read_entries(&body)
        .expect("entries")
        .remove(0)
        .expect("is stored");
    let get = Ask::Get {
        store,
        wanted: vec![(block.id.0, 0, 2)],
    };
    let Ok(Some((Answer::Stored(shapes), body))) = ask(stores, get, &[]) else {
        panic!("no answer");
    };
    let stored = shapes[0].as_ref().ok().map(|shape| {
        let stored = crate::body::Strings(&body)
            .take_shape(shape)
            .expect("has these lengths");
        let mut plain = vec![0; block.plain_bytes as usize];
        let header = Header::prove(Hashing::Plain, block.id, plain.len(), &stored.header).expect("proves");
        for (number, (page, out)) in stored.pages.iter().zip(plain.chunks_mut(PAGE_BYTES)).enumerate() {
            if header.open_page(number, page, out).is_err() {
                plain.clear();
                break;
            }
        }
        (stored.base, plain)
    });
    (located.base, stored)
}

#[test]
fn a_client_for_some_guests_learns_no_base_and_gets_whole_blocks() {
    let fixture = Fixture::new();
    let [base, difference] = with_difference(&*fixture.store);
    fixture.store.put(vec![base.clone()]).expect("puts");
    fixture.store.put(vec![difference.clone()]).expect("puts");
    let all = fixture.stores(Allowed::Read, &[]);
    assert_eq!(
        look(&all, &difference),
        (Some(base.id), Some((Some(base.id), Vec::new()))),
        "as it is stored"
    );
    let (seen, stored) = look(&fixture.stores(Allowed::Read, &["web*"]), &difference);
    let (base_of_stored, plain) = stored.expect("reads");
    assert_eq!((seen, base_of_stored), (None, None));
    assert_eq!(Hashing::Plain.block(&plain).id, difference.id);
    // Nor does one that may not read.
    let (seen, stored) = look(&fixture.stores(Allowed::Add, &[]), &difference);
    assert_eq!((seen, stored), (None, None));
}

#[test]
fn a_difference_is_taken_from_those_who_may_read_its_base_and_only_if_it_is_one() {
    let fixture = Fixture::new();
    let [base, difference] = with_difference(&*fixture.store);
    fixture.store.put(vec![base.clone()]).expect("puts");
    let put = |rights, guests: &[&str], block: &Sealed| {
        let stores = fixture.stores(rights, guests);
        let store = *open_all(&stores).last().expect("opens some");
        let mut body = Vec::new();
        let blocks = vec![crate::body::add_sealed(block, &mut body)];
        ask(&stores, Ask::Put { store, blocks }, &body).map(drop)
    };
    assert!(put(Allowed::Add, &[], &difference).is_err());
    assert!(put(Allowed::Everything, &["web*"], &difference).is_err());
    let mut wrong = difference.clone();
    wrong.base = Some(fixture.block);
    assert!(put(Allowed::Everything, &[], &wrong).is_err(), "of another block");
    wrong.base = Some(BlockId([9; 32]));
    assert!(put(Allowed::Everything, &[], &wrong).is_err(), "of none");
    let mut wrong = difference.clone();
    let page = wrong.pages.iter_mut().find(|page| !page.is_empty()).expect("has one");
    page[0] ^= 1;
    assert!(put(Allowed::Everything, &[], &wrong).is_err(), "damaged");
    assert_eq!(fixture.store.locate(&[difference.id]).expect("looks"), [None]);
    put(Allowed::Everything, &[], &difference).expect("takes it");
    assert!(fixture.store.locate(&[difference.id]).expect("looks")[0].is_some());
}

#[test]
fn a_difference_whose_base_is_damaged_can_be_condemned_by_a_client_with_the_key() {
    let identity = Identity {
        format: STORE_FORMAT,
        features: Identity::features_of_new(true),
        id: "test".into(),
        block_size: BlockSize::DEFAULT,
        created: jiff::Timestamp::UNIX_EPOCH,
        key_check: None,
    };
    let below = Arc::new(MemoryStore::with_identity(identity.clone()));
    let encrypted = Encrypted::new(Arc::clone(&below), &Keys::generate().expect("random bytes"), &identity);
    let [base, difference] = with_difference(&encrypted);
    encrypted.put(vec![base.clone()]).expect("puts");
    encrypted.put(vec![difference.clone()]).expect("puts");
    let sealed = below.take(difference.id).expect("is stored");
    below.put(vec![sealed.clone()]).expect("puts");
    let fixture = Fixture {
        store: Arc::clone(&below),
        ..Fixture::new()
    };
    let condemn = || {
        let stores = fixture.stores(Allowed::Everything, &[]);
        let store = *open_all(&stores).last().expect("opens some");
        ask(&stores, Ask::Condemn(store), &difference.id.0).expect("answers");
        below.condemned().expect("lists")
    };
    assert_eq!(condemn(), [], "it is whole");
    below.damage(base.id, |sealed| sealed.pages[0][5] ^= 1);
    assert_eq!(condemn(), [difference.id]);
    // A client that only adds, and has no key, puts differences too: a copy does.
    let stores = fixture.stores(Allowed::Add, &[]);
    let store = *open_all(&stores).last().expect("opens some");
    below.lose(difference.id);
    let mut body = Vec::new();
    let blocks = vec![crate::body::add_sealed(&sealed, &mut body)];
    ask(&stores, Ask::Put { store, blocks }, &body).expect("takes it");
    assert_eq!(
        below.locate(&[difference.id]).expect("looks")[0]
            .expect("is there")
            .base,
        Some(base.id)
    );
}
