//! Questions that are not in order, and fields of them that lie.

use vbk_repo::repository::Reserve;
use vbk_repo::store::{PruneOptions, Terms};

use super::*;
use crate::message::{BlockShape, MAX_NAMES, StoredShape};

fn ids(count: usize) -> Vec<u8> {
    (0..count as u64)
        .flat_map(|number| [&number.to_be_bytes()[..], &[5; 24]].concat())
        .collect()
}

/// Questions that need an open store and get a refusal whatever the right, with a word of it.
fn bad_questions() -> Vec<(&'static str, Ask, Vec<u8>, &'static str)> {
    let get = |wanted| Ask::Get { store: 1, wanted };
    let body = || vec![0];
    vec![
        ("half an id", Ask::Locate(1), vec![0; 33], "a list of ids"),
        ("too many ids", Ask::Locate(1), ids(MAX_NAMES + 1), "a list of ids"),
        ("a megabyte of ids", Ask::Locate(1), ids(300_000), "a list of ids"),
        ("half a node", Ask::Nodes(1), vec![0; 31], "a list of ids"),
        ("too many nodes", Ask::Nodes(1), ids(33), "a list of ids"),
        ("a node without a sum", Ask::CompareNodes(1), ids(3), "without a sum"),
        ("too many sums", Ask::CompareNodes(1), ids(2050), "a list of ids"),
        (
            "pages of everything",
            get(vec![([1; 32], 0, u16::MAX)]),
            Vec::new(),
            "too many pages",
        ),
        (
            "too many pages",
            get(vec![([1; 32], 0, 200), ([2; 32], 0, 200)]),
            Vec::new(),
            "too many pages",
        ),
        (
            "too many blocks",
            get(vec![([1; 32], 0, 0); MAX_NAMES + 1]),
            Vec::new(),
            "can't be read",
        ),
        (
            "too many records",
            Ask::Lookup {
                store: 1,
                records: vec![String::new(); 300_000],
                notes: Vec::new(),
            },
            Vec::new(),
            "can't be read",
        ),
        (
            "too many notes",
            Ask::Lookup {
                store: 1,
                records: Vec::new(),
                notes: vec![String::new(); 300_000],
            },
            Vec::new(),
            "can't be read",
        ),
        (
            "too many notes with a record",
            Ask::Commit {
                store: 1,
                key: String::new(),
                record: Vec::new(),
                notes: vec![(String::new(), None); 300_000],
                at: None,
                terms: Terms::default(),
            },
            Vec::new(),
            "can't be read",
        ),
        (
            "too many changes",
            Ask::Amend {
                store: 1,
                remove_records: vec![String::new(); 300_000],
                notes: Vec::new(),
                at: None,
                terms: Terms::default(),
            },
            Vec::new(),
            "can't be read",
        ),
        (
            "too many changed notes",
            Ask::Amend {
                store: 1,
                remove_records: Vec::new(),
                notes: vec![(String::new(), None); 300_000],
                at: None,
                terms: Terms::default(),
            },
            Vec::new(),
            "can't be read",
        ),
        (
            "too many blocks in a put",
            Ask::Put {
                store: 1,
                blocks: vec![
                    BlockShape {
                        id: [0; 32],
                        plain_bytes: 0,
                        lengths: StoredShape {
                            header: 0,
                            pages: Vec::new(),
                        },
                    };
                    MAX_NAMES + 1
                ],
            },
            Vec::new(),
            "can't be read",
        ),
        ("a body where none belongs", Ask::Generation(1), body(), "a body"),
        ("a body with a flush", Ask::Flush(1), body(), "a body"),
        (
            "a body with a commit",
            Ask::BuildsOn {
                store: 1,
                record: OTHERS.into(),
            },
            body(),
            "a body",
        ),
        (
            "the same store twice",
            Ask::Read {
                store: 1,
                as_it_is: false,
            },
            Vec::new(),
            "same number",
        ),
        ("a view that is none", Ask::CheckTables(u64::MAX), Vec::new(), ""),
    ]
}

const RIGHTS: [Allowed; 5] = [
    Allowed::Read,
    Allowed::Verify,
    Allowed::Copy,
    Allowed::Add,
    Allowed::Everything,
];

#[test]
fn a_question_with_a_field_that_lies_is_refused() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    for rights in RIGHTS {
        for (name, ask, body, says) in bad_questions() {
            let mut client = place.client(rights, &["web*"]);
            let refusal = client.asks(&ask, body).refusal();
            assert!(refusal.contains(says), "{} {name}: {refusal}", rights.name());
            client.ends();
        }
        assert!(place.state() == before, "{}", rights.name());
    }
    honest.ends();
}

/// Every question about a store, with this number.
pub(super) fn about(store: u32) -> Vec<(Ask, Vec<u8>)> {
    let terms = Terms::default();
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: true,
    };
    let plain = |ask| (ask, Vec::new());
    vec![
        plain(Ask::Generation(store)),
        (Ask::Locate(store), ids(1)),
        plain(Ask::Survey { store, from: [0; 32] }),
        plain(Ask::Condemned(store)),
        plain(Ask::Get {
            store,
            wanted: vec![([1; 32], 0, 1)],
        }),
        (Ask::Nodes(store), ids(1)),
        plain(Ask::Listing {
            store,
            records: true,
            notes: true,
        }),
        plain(Ask::Lookup {
            store,
            records: vec![OTHERS.into()],
            notes: Vec::new(),
        }),
        plain(Ask::Put {
            store,
            blocks: Vec::new(),
        }),
        plain(Ask::PutNodes {
            store,
            nodes: Vec::new(),
            terms,
        }),
        plain(Ask::BuildsOn {
            store,
            record: OTHERS.into(),
        }),
        plain(Ask::Flush(store)),
        plain(Ask::Commit {
            store,
            key: "web1@2026-11-21T05-54-00Z".into(),
            record: backup("web1", "2026-11-21T05-54-00Z", Vec::new()).encode(),
            notes: Vec::new(),
            at: None,
            terms,
        }),
        plain(Ask::Amend {
            store,
            remove_records: vec![OTHERS.into()],
            notes: Vec::new(),
            at: None,
            terms,
        }),
        (Ask::Condemn(store), sealed(1).id.0.to_vec()),
        (Ask::Pardon(store), ids(1)),
        plain(Ask::Publish(store)),
        plain(Ask::Room(store)),
        plain(Ask::Prune { store, options }),
        plain(Ask::Stop(store)),
        (Ask::CompareNodes(store), ids(2)),
        plain(Ask::Forgotten(store)),
    ]
}

#[test]
fn a_store_that_is_not_open_answers_nothing() {
    let place = Place::new(false);
    let before = place.state();
    for rights in RIGHTS {
        let mut client = place.client(rights, &[]);
        for store in [0, 2, u32::MAX] {
            for (ask, body) in about(store) {
                let shown = format!("{ask:?}");
                let refusal = client.asks(&ask, body).refusal();
                assert!(refusal.contains("not open"), "{shown}: {refusal}");
            }
        }
        // The closing of what is not open is nothing, also twice.
        for _ in 0..2 {
            assert!(matches!(
                client.asks(&Ask::Close(1), Vec::new()),
                Said::Answer(Answer::Done)
            ));
        }
        for (ask, body) in about(1) {
            assert!(client.asks(&ask, body).refusal().contains("not open"));
        }
        client.ends();
        assert!(place.state() == before, "{}", rights.name());
    }
}

#[test]
fn a_client_of_some_guests_changes_nothing_of_others() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    for rights in RIGHTS {
        let mut client = place.client(rights, &["db2*"]);
        for (ask, body) in about(1) {
            let _ = client.asks(&ask, body);
        }
        client.ends();
        assert!(place.state() == before, "{}", rights.name());
    }
    honest.ends();
}

#[test]
fn the_last_store_that_a_client_may_open_is_the_256th() {
    let place = Place::new(false);
    let honest = place.honest();
    let mut client = place.client(Allowed::Read, &[]);
    let read = |store| Ask::Read { store, as_it_is: false };
    for store in 2..=256 {
        let said = client.asks(&read(store), Vec::new());
        assert!(matches!(said, Said::Answer(Answer::Opened { .. })), "{said:?}");
    }
    assert!(
        client
            .asks(&read(257), Vec::new())
            .refusal()
            .contains("too many open stores")
    );
    assert!(matches!(
        client.asks(&Ask::Close(7), Vec::new()),
        Said::Answer(Answer::Done)
    ));
    let said = client.asks(&read(257), Vec::new());
    assert!(matches!(said, Said::Answer(Answer::Opened { .. })), "{said:?}");
    client.ends();
    honest.ends();
}

#[test]
fn what_the_protocol_does_not_have_ends_the_connection_with_the_reason() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    let message = |kind: u8, flags: [u8; 3], head: &[u8]| {
        let mut bytes = vec![0, 16 + head.len() as u8, 0, 0, kind];
        bytes.extend(flags);
        bytes.extend(7_u32.to_le_bytes());
        bytes.extend((head.len() as u32).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(head);
        bytes
    };
    let newest = postcard::to_stdvec(&Ask::Newest).expect("plain data");
    let longer = {
        let mut bytes = message(0, [0; 3], &newest);
        bytes[1] += 1;
        bytes.push(0);
        bytes
    };
    let half = message(0, [0; 3], &newest)[..12].to_vec();
    let cases = [
        ("an unknown kind", message(4, [0; 3], &newest), "kind 4"),
        ("an answer", message(1, [0; 3], &newest), "an answer from a client"),
        ("an unknown flag", message(0, [2, 0, 0], &newest), "flags"),
        ("another unknown flag", message(0, [0, 0, 1], &newest), "flags"),
        ("an unknown question", message(0, [0; 3], &[200]), "can't be read"),
        ("no question", message(0, [0; 3], &[]), "can't be read"),
        (
            "half a question",
            message(0, [0; 3], &[1 + newest[0]][..0]),
            "can't be read",
        ),
        ("another channel", vec![2, 1, 0, 0, 0], "channel 2"),
        ("an empty chunk", vec![0, 0, 0, 0], "a chunk of 0"),
        ("a long chunk", vec![1, 1, 0, 1], "a chunk of 65537"),
        ("a longer message than announced", longer, "two messages"),
        (
            "a long short message",
            [
                &[0, 255, 255, 0][..],
                &vec![0; 65535],
                &[0, 255, 255, 0],
                &vec![0; 65535],
            ]
            .concat(),
            "",
        ),
        (
            "a message of 4 GiB",
            {
                let mut bytes = message(0, [0; 3], &[]);
                bytes[0] = 1;
                bytes[12..20].fill(0xFF);
                bytes
            },
            "more than",
        ),
        ("half a message", half, ""),
    ];
    for (name, bytes, says) in cases {
        let mut client = place.client(Allowed::Add, &["web*"]);
        let _ = client.sends(&bytes);
        if name == "half a message" {
            client.ends();
            continue;
        }
        let said = client.said();
        match says {
            "" => assert!(matches!(said, Said::Closed(_)), "{name}: {said:?}"),
            says => {
                let refusal = said.refusal();
                assert!(refusal.contains(says), "{name}: {refusal}");
            }
        }
        assert!(matches!(client.said(), Said::Closed(None)), "{name}");
        client.ends();
    }
    assert!(place.state() == before);
    honest.ends();
}

#[test]
fn who_has_not_greeted_gets_nothing() {
    let place = Place::new(false);
    let hello = |protocol| {
        Ask::Hello(Hello {
            protocol,
            program: "test".into(),
        })
    };
    let long = Ask::Hello(Hello {
        protocol: (PROTOCOL, PROTOCOL),
        program: "x".repeat(5000),
    });
    for (ask, says) in [
        (Ask::Newest, "greeting"),
        (Ask::KeySlots, "greeting"),
        (Ask::CheckReserve(Reserve::Default), "greeting"),
        (
            Ask::Read {
                store: 1,
                as_it_is: false,
            },
            "greeting",
        ),
        (hello((PROTOCOL + 1, u16::MAX)), "use the same vbk"),
        (hello((0, 0)), "use the same vbk"),
        (hello((u16::MAX, 0)), "use the same vbk"),
        (long, "more than"),
    ] {
        let mut client = place.stranger(Allowed::Everything, &[]);
        let refusal = client.asks(&ask, Vec::new()).refusal();
        assert!(refusal.contains(says), "{refusal}");
        client.ends();
    }
    // Nor has anybody twice.
    let mut client = place.client(Allowed::Everything, &[]);
    let refusal = client.asks(&hello((PROTOCOL, PROTOCOL)), Vec::new()).refusal();
    assert!(refusal.contains("greeting"), "{refusal}");
    client.ends();
}

#[test]
fn questions_of_one_number_get_an_answer_each() {
    let place = Place::new(false);
    let honest = place.honest();
    let mut client = place.client(Allowed::Add, &["web*"]);
    let head = postcard::to_stdvec(&Ask::Generation(1)).expect("plain data");
    for _ in 0..50 {
        client.next = 8;
        client.begins(head.clone(), Vec::new()).expect("sends");
    }
    for _ in 0..50 {
        let heard = client.hears().expect("an answer");
        assert_eq!(heard.request, 9);
    }
    client.ends();
    honest.ends();
}
