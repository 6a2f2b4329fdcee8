//! Blocks, parts of manifests and records that are not what they say.

use vbk_repo::block::PAGE_BYTES;
use vbk_repo::id::NodeId;
use vbk_repo::manifest::{Full, Page, Root, Segment};
use vbk_repo::store::Terms;

use super::*;
use crate::body;
use crate::message::{BlockShape, StoredShape};

/// A put of one block, in its fields.
struct Put {
    shape: BlockShape,
    body: Vec<u8>,
}

impl Put {
    fn of(block: &Sealed) -> Self {
        let mut body = Vec::new();
        Self {
            shape: body::add_sealed(block, &mut body),
            body,
        }
    }

    fn asked_of(self, client: &mut Raw) -> Said {
        let ask = Ask::Put {
            store: 1,
            blocks: vec![self.shape],
        };
        client.asks(&ask, self.body)
    }
}

/// A frame of zstd that becomes so many bytes: each of its parts is one byte that is repeated 128 KiB times (RFC 8878,
/// section 3.1.1).
fn bomb(parts: u32) -> Vec<u8> {
    const PART: u32 = 128 << 10;
    let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0xA0];
    frame.extend((parts * PART).to_le_bytes());
    for part in 1..=parts {
        let header = PART << 3 | 1 << 1 | u32::from(part == parts);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// The block with other bytes as its page 1, and a header that states their length.
fn with_page(page: Vec<u8>) -> Sealed {
    let mut block = sealed(2);
    // 8 bytes, and for each page 32 of its hash and 4 of its length.
    let at = 8 + 36 + 32;
    block.header[at..at + 4].copy_from_slice(&(page.len() as u32).to_le_bytes());
    block.pages[1] = page;
    block
}

/// A frame that a decoder skips, before the true one (RFC 8878, section 3.1.2).
fn fattened(page: &[u8], len: u32) -> Vec<u8> {
    let mut fat = 0x184D_2A50_u32.to_le_bytes().to_vec();
    fat.extend(len.to_le_bytes());
    fat.resize(fat.len() + len as usize, 0);
    fat.extend(page);
    fat
}

type Change = fn(&mut Put);

/// Puts that no plain repository takes, and a word of the refusal.
fn bad_blocks() -> Vec<(&'static str, Put, &'static str)> {
    let changed = |change: Change| {
        let mut put = Put::of(&sealed(2));
        change(&mut put);
        put
    };
    let header = |change: fn(&mut Vec<u8>)| {
        let mut block = sealed(2);
        change(&mut block.header);
        Put::of(&block)
    };
    vec![
        (
            "another id",
            changed(|put| put.shape.id[0] ^= 1),
            "does not match its id",
        ),
        (
            "the id of another block",
            changed(|put| put.shape.id = sealed(1).id.0),
            "does not match its id",
        ),
        (
            "a flipped byte",
            changed(|put| *put.body.last_mut().expect("bytes") ^= 1),
            "page 3",
        ),
        (
            "no plain bytes",
            changed(|put| put.shape.plain_bytes = 0),
            "another length",
        ),
        (
            "more than a block",
            changed(|put| put.shape.plain_bytes = (1 << 20) + 1),
            "another length",
        ),
        (
            "other plain bytes",
            changed(|put| put.shape.plain_bytes -= 1),
            "another length",
        ),
        (
            "a length of everything",
            changed(|put| put.shape.plain_bytes = u32::MAX),
            "another length",
        ),
        (
            "a page too few",
            changed(|put| put.shape.lengths.pages.truncate(3)),
            "a block",
        ),
        (
            "a page too many",
            changed(|put| put.shape.lengths.pages.push(0)),
            "another length",
        ),
        (
            "too many pages",
            changed(|put| put.shape.lengths.pages.resize(600, 0)),
            "can't be read",
        ),
        (
            "a longer page",
            changed(|put| put.shape.lengths.pages[3] += 1),
            "a block",
        ),
        (
            "a page of everything",
            changed(|put| put.shape.lengths.pages[0] = u32::MAX),
            "a block",
        ),
        (
            "a header of everything",
            changed(|put| put.shape.lengths.header = u32::MAX),
            "a block",
        ),
        (
            "no header",
            changed(|put| drop(put.body.drain(..std::mem::take(&mut put.shape.lengths.header) as usize))),
            "cut off",
        ),
        (
            "a shifted border",
            changed(|put| {
                put.shape.lengths.pages[0] -= 1;
                put.shape.lengths.pages[1] += 1;
            }),
            "stored bytes",
        ),
        (
            "a shorter body",
            changed(|put| put.body.truncate(put.body.len() - 1)),
            "a block",
        ),
        ("a longer body", changed(|put| put.body.push(0)), "a block"),
        ("no body", changed(|put| put.body.clear()), "a block"),
        (
            "another version of the header",
            header(|header| header[0] = 2),
            "unknown version",
        ),
        (
            "another length in the header",
            header(|header| header[4] ^= 1),
            "another length",
        ),
        ("a longer header", header(|header| header.push(0)), "another length"),
        (
            "another hash in the header",
            header(|header| header[8] ^= 1),
            "does not match its id",
        ),
        (
            "a page of 128 KiB",
            Put::of(&with_page(bomb(1))),
            "can't be decompressed",
        ),
        (
            "a page of 1 GiB",
            Put::of(&with_page(bomb(8000))),
            "can't be decompressed",
        ),
        (
            "a page that is none",
            Put::of(&with_page(vec![7; 100])),
            "can't be decompressed",
        ),
        (
            "a page of another block",
            Put::of(&with_page(sealed(1).pages[1].clone())),
            "does not match its hash",
        ),
        // It is the block, but nobody could read it over the wire any more.
        (
            "a fat page",
            Put::of(&with_page(fattened(&sealed(2).pages[1], 8 << 20))),
            "longer than its plain bytes",
        ),
        (
            "a page of one byte too many",
            Put::of(&with_page(fattened(
                &sealed(2).pages[1],
                (PAGE_BYTES + 1 - 8 - sealed(2).pages[1].len()) as u32,
            ))),
            "longer than its plain bytes",
        ),
    ]
}

#[test]
fn a_block_that_is_not_what_it_says_is_refused() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    for (name, put, says) in bad_blocks() {
        let mut client = place.client(Allowed::Add, &["web*"]);
        let refusal = put.asked_of(&mut client).refusal();
        assert!(refusal.contains(says), "{name}: {refusal}");
        client.ends();
        assert!(place.state() == before, "{name}");
    }
    // One bad block takes the good ones of its put with it.
    let mut client = place.client(Allowed::Add, &["web*"]);
    let (good, mut bad) = (Put::of(&sealed(3)), Put::of(&sealed(2)));
    bad.shape.id[0] ^= 1;
    let ask = Ask::Put {
        store: 1,
        blocks: vec![good.shape, bad.shape],
    };
    client.asks(&ask, [good.body, bad.body].concat()).refusal();
    // And one that is stored is not stored again.
    let said = Put::of(&sealed(1)).asked_of(&mut client);
    assert!(matches!(said, Said::Answer(Answer::Done)), "{said:?}");
    client.ends();
    assert!(place.state() == before);
    honest.ends();
}

fn put_nodes(client: &mut Raw, nodes: Vec<([u8; 32], u32)>, body: Vec<u8>) -> Said {
    let ask = Ask::PutNodes {
        store: 1,
        nodes,
        terms: Terms::default(),
    };
    client.asks(&ask, body)
}

/// The start of a node, with so many names and drops, as the description of manifests has it.
fn head(kind: u8, names: usize, drops: usize) -> Vec<u8> {
    let mut bytes = vec![kind, 1];
    bytes.extend((drops as u16).to_le_bytes());
    bytes.extend((names as u32).to_le_bytes());
    for name in 0..names {
        bytes.extend((name as u64).to_be_bytes());
        bytes.extend([7; 24]);
    }
    bytes.resize(bytes.len() + 2 * drops, 0);
    bytes
}

#[test]
fn a_part_of_a_manifest_that_is_none_is_refused() {
    for is_encrypted in [false, true] {
        let place = Place::new(is_encrypted);
        let node = |bytes: Vec<u8>| {
            let id = Hashing::Plain.content(&bytes);
            (vec![(id, bytes.len() as u32)], bytes)
        };
        let good = || {
            node(
                Full::of(&[Some(BlockId([1; 32]))])
                    .expect("not zero")
                    .encode(Hashing::Plain)
                    .1,
            )
        };
        let lying = |id: u8, more: i64| {
            let (mut nodes, bytes) = good();
            nodes[0].0[0] ^= id;
            nodes[0].1 = (i64::from(nodes[0].1) + more) as u32;
            (nodes, bytes)
        };
        let many = (0..33)
            .map(|_| good())
            .fold((Vec::new(), Vec::new()), |mut all, (nodes, bytes)| {
                all.0.extend(nodes);
                all.1.extend(bytes);
                all
            });
        let mut huge_count = head(b'P', 2, 0);
        huge_count[4..8].fill(0xFF);
        let mut cases = vec![
            ("shorter", lying(0, -1), "after a manifest"),
            ("longer", lying(0, 1), "a manifest"),
            ("of everything", lying(0, i64::from(u32::MAX / 2)), "a manifest"),
            ("33 nodes", many, "can't be read"),
            ("no bytes", node(Vec::new()), "unknown kind"),
            ("another kind", node(head(b'X', 1, 0)), "unknown kind"),
            ("a huge count", node(huge_count), "unknown kind"),
            ("a page of 65 pairs", node(head(b'P', 130, 0)), "names more"),
            ("a page with drops", node(head(b'P', 2, 1)), "names more"),
            ("a segment of 1025 names", node(head(b'S', 1025, 0)), "names more"),
            ("a segment with drops", node(head(b'S', 1, 1)), "names more"),
            ("a delta of 1025 names", node(head(b'D', 1025, 0)), "names more"),
            ("a delta of 1025 drops", node(head(b'D', 1, 1025)), "names more"),
            ("longer than any", node(head(b'R', 32 << 10, 0)), "too long"),
        ];
        if !is_encrypted {
            cases.push(("another id", lying(1, 0), "does not match its hash"));
        }
        for (name, (nodes, body), says) in cases {
            let mut client = place.client(Allowed::Add, &[]);
            let ids: Vec<u8> = nodes.iter().flat_map(|(id, _)| *id).take(32 * 32).collect();
            let refusal = put_nodes(&mut client, nodes, body).refusal();
            assert!(refusal.contains(says), "{name}: {refusal}");
            client.ends();
            let mut client = place.client(Allowed::Add, &[]);
            let Said::Answer(Answer::Nodes(nodes)) = client.asks(&Ask::Nodes(1), ids) else {
                panic!("{name}");
            };
            assert!(nodes.iter().all(Result::is_err), "{name} is stored");
            client.ends();
        }
    }
}

#[test]
fn an_encrypted_block_of_a_wrong_shape_is_refused() {
    let place = Place::new(true);
    let before = place.state();
    for (name, pages, says) in [
        ("33 rows", vec![10; 33], "lengths of a sealed block"),
        ("513 rows", vec![0; 513], "can't be read"),
        ("3 MiB", vec![100_000; 31], "lengths of a sealed block"),
    ] {
        let body = vec![1; 100 + pages.iter().sum::<u32>() as usize];
        let shape = BlockShape {
            id: [1; 32],
            plain_bytes: 77,
            lengths: StoredShape { header: 100, pages },
        };
        let mut client = place.client(Allowed::Add, &[]);
        let refusal = Put { shape, body }.asked_of(&mut client).refusal();
        assert!(refusal.contains(says), "{name}: {refusal}");
        client.ends();
        assert!(place.state() == before, "{name}");
    }
}

fn commit(client: &mut Raw, key: &str, record: Vec<u8>) -> Said {
    let ask = Ask::Commit {
        store: 1,
        key: key.into(),
        record,
        notes: Vec::new(),
        at: None,
        terms: Terms::default(),
    };
    client.asks(&ask, Vec::new())
}

/// A record of web1 with this manifest.
fn record_with(root: NodeId) -> Vec<u8> {
    let image = Image::new("vda".parse().expect("a name"), "/dev/null", 200_000, root);
    backup("web1", "2026-11-21T05-54-00Z", vec![image]).encode()
}

const OWN: &str = "web1@2026-11-21T05-54-00Z";

#[test]
fn a_record_that_is_none_or_of_another_guest_is_refused() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    let empty = |guest: &str, time: &str| backup(guest, time, Vec::new()).encode();
    let time = "2026-11-21T05-54-00Z";
    for guests in [&[][..], &["web*"]] {
        let bound = !guests.is_empty();
        let mut cases = vec![
            ("no record", OWN, Vec::new(), "damaged"),
            ("not JSON", OWN, b"{".to_vec(), "damaged"),
            ("another record", OWN, b"{}".to_vec(), "damaged"),
            ("another guest inside", OWN, empty("web2", time), "web2"),
            (
                "another time inside",
                OWN,
                empty("web1", "2026-11-22T05-54-00Z"),
                "2026-11-22",
            ),
            (
                "no time in the key",
                "web1",
                empty("web1", time),
                if bound { "only guests" } else { "web1" },
            ),
            (
                "a path",
                "../web1@x",
                empty("web1", time),
                if bound { "only guests" } else { "web1" },
            ),
            (
                "no key",
                "",
                empty("web1", time),
                if bound { "only guests" } else { "web1" },
            ),
        ];
        if bound {
            cases.push((
                "another guest",
                "db2@2026-11-21T05-54-00Z",
                empty("db2", time),
                "only guests",
            ));
            cases.push(("a taken name", OTHERS, empty("db1", time), "only guests"));
        } else {
            cases.push(("a taken name", OTHERS, empty("db1", time), "exists"));
        }
        for (name, key, record, says) in cases {
            let mut client = place.client(Allowed::Add, guests);
            let refusal = commit(&mut client, key, record).refusal();
            assert!(refusal.contains(says), "{name}: {refusal}");
            client.ends();
            assert!(place.state() == before, "{name}");
        }
    }
    honest.ends();
}

#[test]
fn a_record_that_names_what_is_not_there_is_refused() {
    let place = Place::new(false);
    let honest = place.honest();
    let before = place.state();
    let missing = NodeId([9; 32]);
    let full = Full::of(&[Some(BlockId([8; 32]))])
        .expect("not zero")
        .encode(Hashing::Plain);
    let page_of = |full, delta| {
        Page(vec![Segment { full, delta }])
            .encode(Hashing::Plain)
            .expect("not zero")
    };
    let root_of = |page| {
        let root = Root {
            block_size: BlockSize::DEFAULT,
            size_bytes: 200_000,
            pages: vec![page],
        };
        root.encode(Hashing::Plain)
    };
    let (no_block, no_segment) = (page_of(full.0, NodeId::ZERO), page_of(missing, NodeId::ZERO));
    let no_delta = page_of(full.0, missing);
    let roots = [
        ("no root", missing, vec![]),
        ("a segment as a root", full.0, vec![full.clone()]),
        ("no page", root_of(missing).0, vec![root_of(missing)]),
        (
            "a segment as a page",
            root_of(full.0).0,
            vec![root_of(full.0), full.clone()],
        ),
        (
            "no segment",
            root_of(no_segment.0).0,
            vec![root_of(no_segment.0), no_segment.clone()],
        ),
        (
            "no delta",
            root_of(no_delta.0).0,
            vec![root_of(no_delta.0), no_delta.clone(), full.clone()],
        ),
        (
            "no block",
            root_of(no_block.0).0,
            vec![root_of(no_block.0), no_block.clone(), full.clone()],
        ),
        (
            "a page as a segment",
            {
                let page = page_of(no_block.0, NodeId::ZERO);
                root_of(page.0).0
            },
            {
                let page = page_of(no_block.0, NodeId::ZERO);
                vec![root_of(page.0), page, no_block.clone(), full.clone()]
            },
        ),
    ];
    for (name, root, nodes) in roots {
        let mut client = place.client(Allowed::Add, &["web*"]);
        let shapes = nodes.iter().map(|(id, bytes)| (id.0, bytes.len() as u32)).collect();
        let body = nodes.iter().flat_map(|(_, bytes)| bytes).copied().collect();
        let said = put_nodes(&mut client, shapes, body);
        assert!(matches!(said, Said::Answer(Answer::Done)), "{name}: {said:?}");
        // A base that is another guest's, or none, proves nothing.
        for record in [OTHERS, "web9@2026-11-21T05-54-00Z"] {
            let record = record.to_owned();
            let _ = client.asks(&Ask::BuildsOn { store: 1, record }, Vec::new());
        }
        for _ in 0..2 {
            let said = commit(&mut client, OWN, record_with(root));
            assert!(
                matches!(said, Said::Answer(Answer::Failed(Fault::Missing(..)))),
                "{name}: {said:?}"
            );
        }
        client.ends();
        assert!(place.state() == before, "{name}");
    }
    honest.ends();
}
