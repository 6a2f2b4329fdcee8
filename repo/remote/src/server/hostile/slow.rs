//! Clients that send and do not read, or hold their connections: they take a bounded part of the server's memory, and none of the
//! others' time.

use std::sync::mpsc;
use std::time::Instant;

use vbk_repo::repository::home::StoreHome;
use vbk_repo::store::memory::MemoryStore;

use super::*;
use crate::body;
use crate::server::session::{ALL_ASKED_BYTES, ANSWER_BYTES, ASKED_BYTES, UNREAD_BYTES, WINDOW_BYTES};

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

/// A store in memory on which everything waits until this is dropped.
struct Stuck {
    release: Option<mpsc::Sender<()>>,
    holding: Option<std::thread::JoinHandle<()>>,
}

impl Stuck {
    /// Makes a store, opens it for clients, and then lets it wait.
    fn with_clients(place: &Place, count: usize) -> (Self, Vec<Raw>) {
        let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
        let block = sealed(1);
        let id = block.id;
        store.put(vec![block]).expect("puts");
        let home: Arc<dyn Home> = Arc::new(StoreHome::new(Arc::clone(&store)).expect("a home"));
        let clients = (0..count).map(|_| {
            let mut client = Raw::connect(Arc::clone(&home), Allowed::Add, Arc::clone(&place.memory));
            client.greet();
            let open = Ask::Write {
                store: 1,
                command: "test".into(),
            };
            let opened = client.asks(&open, Vec::new());
            assert!(matches!(opened, Said::Answer(Answer::Opened { .. })), "{opened:?}");
            client
        });
        let clients = clients.collect();
        let (release, released) = mpsc::channel();
        let (held, is_held) = mpsc::channel();
        let holding = std::thread::spawn(move || {
            // What is done to a block is done under the lock of the store.
            store.damage(id, |_| {
                held.send(()).expect("is waited for");
                let _ = released.recv();
            });
        });
        is_held.recv().expect("is held");
        let stuck = Self {
            release: Some(release),
            holding: Some(holding),
        };
        (stuck, clients)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        self.release = None;
        if let Some(holding) = self.holding.take() {
            holding.join().expect("ends");
        }
    }
}

/// A put of 4 MiB.
fn put() -> Vec<u8> {
    let mut body = Vec::new();
    let blocks = (2..32).map(|seed| body::add_sealed(&sealed(seed), &mut body));
    let blocks = blocks.collect();
    on_the_wire([question(&Ask::Put { store: 1, blocks }, body)])
}

#[test]
fn a_client_that_puts_beyond_the_window_is_hung_up_on() {
    let place = Place::new(false);
    let honest = place.honest();
    let (stuck, mut clients) = Stuck::with_clients(&place, 1);
    let client = &mut clients[0];
    // Nothing has to be reserved for short ones.
    let plain = plain(2, 60_000);
    let block = Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals");
    let mut body = Vec::new();
    let blocks = vec![body::add_sealed(&block, &mut body)];
    let put = on_the_wire([question(&Ask::Put { store: 1, blocks }, body)]);
    let taken = taken(client, &put, WINDOW_BYTES + SLACK_BYTES);
    assert!(taken > WINDOW_BYTES, "{taken}");
    let refusal = client.said().refusal();
    assert!(refusal.contains("more puts at once"), "{refusal}");
    drop(stuck);
    clients.into_iter().for_each(Raw::ends);
    honest.ends();
}

#[test]
fn many_clients_take_no_more_memory_than_the_server_has_for_all() {
    const CLIENTS: usize = 16;
    let place = Place::new(false);
    let (stuck, mut clients) = Stuck::with_clients(&place, CLIENTS);
    let put = put();
    // As many as a client that respects the window sends.
    let most = (WINDOW_BYTES - (1 << 20)) / put.len();
    let sent: Vec<usize> = std::thread::scope(|scope| {
        let sending = clients.iter_mut().map(|client| {
            let put = &put;
            scope.spawn(move || {
                let mut sent = 0;
                while sent < most {
                    let send =
                        async { tokio::time::timeout(Duration::from_secs(3), client.write.write_all(put)).await };
                    match runtime().block_on(send) {
                        Ok(Ok(())) => sent += 1,
                        _ => break,
                    }
                }
                sent
            })
        });
        let sending: Vec<_> = sending.collect();
        sending.into_iter().map(|client| client.join().expect("runs")).collect()
    });
    // Each has a message that it began without room, and one that is not whole.
    let most = ALL_ASKED_BYTES / 3 / put.len() + 2 * CLIENTS;
    let all: usize = sent.iter().sum();
    assert!(all <= most, "{all} puts, {most} at most");
    assert!(all >= ALL_ASKED_BYTES / 3 / put.len() / 2, "{all} puts");
    // They waited, and nobody was hung up on.
    drop(stuck);
    for (client, _) in clients.iter_mut().zip(sent).filter(|(_, sent)| *sent > 0) {
        let said = client.said();
        assert!(matches!(said, Said::Answer(Answer::Done)), "{said:?}");
    }
    let honest = place.honest();
    honest.ends();
    clients.into_iter().for_each(Raw::ends);
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
        let session = place.home().manage("look", &mut |_| true).expect("opens");
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
    let bytes = on_the_wire([question(&ask, vec![0; 4 << 20])]);
    let mut held = Vec::new();
    // More than there is memory for.
    for number in 0..=ALL_ASKED_BYTES / 3 / (4 << 20) {
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
