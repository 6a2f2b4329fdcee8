//! Clients that send and do not read, or hold their connections: they take a bounded part of the server's memory, and none of the
//! others' time.

use std::time::Instant;

use vbk_repo::repository::home::StoreHome;
use vbk_repo::store::delayed::Delayed;
use vbk_repo::store::memory::MemoryStore;

use super::*;
use crate::body;
use crate::server::session::{ANSWER_BYTES, ASKED_BYTES, UNREAD_BYTES, WINDOW_BYTES};

/// More than the buffers between both ends and one message.
const SLACK_BYTES: usize = 19 << 20;

/// Sends the same until the server takes no more or hangs up. Returns the bytes that it took.
fn taken(client: &mut Raw, bytes: &[u8], most: usize) -> usize {
    let mut taken = 0;
    while taken <= most {
        let sent = runtime().block_on(async {
            // The server may also stop without a word.
            tokio::time::timeout(Duration::from_secs(5), client.write.write_all(bytes)).await
        });
        if !matches!(sent, Ok(Ok(()))) {
            return taken;
        }
        taken += bytes.len();
    }
    panic!("the server has taken {taken} bytes, and would take more");
}

fn question(ask: &Ask, body: Vec<u8>) -> Message {
    Message {
        kind: Kind::Ask,
        more: false,
        request: 77,
        head: postcard::to_stdvec(ask).expect("plain data"),
        body,
    }
}

/// Leaves so many answers unread that the server makes no more.
fn stuff(client: &mut Raw) {
    let block = sealed(1);
    let ask = Ask::Get {
        store: 1,
        wanted: vec![(block.id.0, 0, 4); 60],
    };
    let answer: usize = 60 * block.pages.iter().map(Vec::len).sum::<usize>();
    for _ in 0..(ANSWER_BYTES / answer + 40) {
        let bytes = on_the_wire([question(&ask, Vec::new())]);
        if client.sends(&bytes).is_err() {
            return;
        }
    }
}

#[test]
fn questions_whose_answers_nobody_reads_fill_no_memory() {
    let place = Place::new(false);
    let honest = place.honest();
    let mut client = place.client(Allowed::Read, &[]);
    stuff(&mut client);
    let long = on_the_wire([question(&Ask::Locate(1), vec![0; 4 << 20])]);
    let taken = taken(&mut client, &long, ASKED_BYTES + SLACK_BYTES);
    assert!(taken > ASKED_BYTES / 2, "{taken}");
    // Nor do they hold a thread that others need.
    let started = Instant::now();
    honest.ends();
    assert!(started.elapsed() < PATIENCE);
    client.ends();
}

#[test]
fn short_answers_that_nobody_reads_fill_no_memory() {
    let place = Place::new(false);
    let honest = place.honest();
    let ping = on_the_wire((0..500).map(|_| Message::empty(Kind::Ping)));
    let ask = on_the_wire((0..50).map(|_| question(&Ask::Generation(1), Vec::new())));
    // One of the ordered ones.
    let base = Ask::BuildsOn {
        store: 1,
        record: "none".into(),
    };
    let ordered = on_the_wire((0..50).map(|_| question(&base, Vec::new())));
    for bytes in [ping, ask, ordered] {
        let mut client = place.client(Allowed::Add, &[]);
        // An answer is not much longer than its question.
        taken(&mut client, &bytes, 4 * UNREAD_BYTES);
        client.ends();
    }
    honest.ends();
}

#[test]
fn a_client_that_puts_beyond_the_window_is_hung_up_on() {
    let place = Place::new(false);
    let honest = place.honest();
    let delayed = Delayed::new(Arc::new(MemoryStore::new(BlockSize::DEFAULT)), Duration::from_secs(3));
    let home = StoreHome::new(Arc::new(delayed.expect("a store"))).expect("a home");
    let mut client = Raw::connect(Arc::new(home), Allowed::Add, Arc::clone(&place.memory));
    client.greet();
    let opened = client.asks(
        &Ask::Write {
            store: 1,
            command: "test".into(),
        },
        Vec::new(),
    );
    assert!(matches!(opened, Said::Answer(Answer::Opened { .. })), "{opened:?}");
    let mut body = Vec::new();
    let blocks: Vec<_> = (2..32).map(|seed| body::add_sealed(&sealed(seed), &mut body)).collect();
    let put = on_the_wire([question(&Ask::Put { store: 1, blocks }, body)]);
    // All that is put meanwhile waits for this.
    client
        .sends(&on_the_wire([question(&Ask::Flush(1), Vec::new())]))
        .expect("sends");
    let taken = taken(&mut client, &put, WINDOW_BYTES + SLACK_BYTES);
    assert!(taken > WINDOW_BYTES, "{taken}");
    let refusal = loop {
        match client.said() {
            Said::Answer(Answer::Done) => {}
            said => break said.refusal(),
        }
    };
    assert!(refusal.contains("more puts at once"), "{refusal}");
    drop(client);
    honest.ends();
}

#[test]
fn a_client_that_never_flushes_is_flushed_for() {
    let place = Place::new(false);
    let mut client = place.client(Allowed::Add, &["web*"]);
    let blocks = (0..crate::server::stores::UNFLUSHED_BLOCKS as u32 + 10).map(|number| {
        let plain = number.to_le_bytes();
        Sealer::new(Compression::None)
            .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
            .expect("seals")
    });
    let blocks: Vec<_> = blocks.collect();
    let durable = || {
        let mut count = 0;
        let session = place.home().manage("look", &mut |_| false).expect("opens");
        let counted = session.store.survey(&mut |_, _| {
            count += 1;
            Ok(())
        });
        counted.expect("counts");
        count
    };
    assert_eq!(durable(), 1);
    for blocks in blocks.chunks(1000) {
        let mut body = Vec::new();
        let blocks = blocks.iter().map(|block| body::add_sealed(block, &mut body)).collect();
        let said = client.asks(&Ask::Put { store: 1, blocks }, body);
        assert!(matches!(said, Said::Answer(Answer::Done)), "{said:?}");
    }
    assert!(durable() > 1000, "{}", durable());
    client.ends();
}

#[test]
fn a_client_that_stops_in_the_midst_of_a_message_holds_nobody_up() {
    let place = Place::new(false);
    let before = place.state();
    let ask = Ask::Put {
        store: 1,
        blocks: Vec::new(),
    };
    let bytes = on_the_wire([question(&ask, vec![0; 10 << 20])]);
    let mut held = Vec::new();
    for number in 0..30 {
        let mut client = place.client(Allowed::Add, &["web*"]);
        let most = bytes.len() - 1 - number * 300_000;
        client.sends(&bytes[..most]).expect("sends");
        held.push(client);
    }
    let honest = place.honest();
    honest.ends();
    held.into_iter().for_each(Raw::ends);
    let after = place.state();
    assert_eq!(after.blocks.len(), before.blocks.len() + 2, "those of the honest one");
}
