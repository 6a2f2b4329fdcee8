//! Transcripts of a client that were changed at random: no thread of the server panics, no session outlives its client, and the
//! repository keeps what it has.
//!
//! `VBK_FRAMES` and `VBK_SEED` set how many transcripts, and which; a failure says the number of its transcript.

use vbk_repo::backup::Entry;
use vbk_repo::codec::Header;
use vbk_repo::repository::home::StoreHome;
use vbk_repo::store::StoreReader;
use vbk_repo::store::memory::MemoryStore;

use super::questions::about;
use super::*;
use crate::body;
use tokio::io::AsyncReadExt;

/// Sessions at once.
const AT_ONCE: u64 = 32;

/// Numbers that follow from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A question as it is sent.
type Question = (Vec<u8>, Vec<u8>);

fn small(seed: u8) -> Sealed {
    let plain = plain(seed, 3000);
    Sealer::new(Compression::default())
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

/// Questions of whole sessions.
fn questions() -> Vec<Question> {
    let command = || "test".to_owned();
    let read = |store, as_it_is| Ask::Read { store, as_it_is };
    let mut all = about(1);
    for store in [1, 2] {
        all.push((read(store, store == 2), Vec::new()));
        let command = command();
        all.push((Ask::Write { store, command }, Vec::new()));
        all.push((Ask::Close(store), Vec::new()));
    }
    all.push((Ask::Newest, Vec::new()));
    all.push((Ask::KeySlots, Vec::new()));
    for seeds in [&[2][..], &[2, 3, 4]] {
        let mut body = Vec::new();
        let blocks = seeds
            .iter()
            .map(|seed| body::add_sealed(&small(*seed), &mut body))
            .collect();
        all.push((Ask::Put { store: 1, blocks }, body));
        let ids: Vec<u8> = seeds.iter().flat_map(|seed| small(*seed).id.0).collect();
        all.push((Ask::Locate(1), ids));
        let wanted = seeds.iter().map(|seed| (small(*seed).id.0, 0, 1)).collect();
        all.push((Ask::Get { store: 1, wanted }, Vec::new()));
    }
    let encode = |(ask, body)| (postcard::to_stdvec(&ask).expect("plain data"), body);
    all.into_iter().map(encode).collect()
}

/// What a session begins with.
fn beginning(rights: Allowed) -> Vec<Question> {
    let hello = Ask::Hello(Hello {
        protocol: (PROTOCOL, PROTOCOL),
        program: "test".into(),
    });
    let command = "test".to_owned();
    let open = match rights {
        Allowed::Everything => Ask::Manage { store: 1, command },
        Allowed::Add => Ask::Write { store: 1, command },
        _ => Ask::Read {
            store: 1,
            as_it_is: false,
        },
    };
    [hello, open]
        .map(|ask| (postcard::to_stdvec(&ask).expect("plain data"), Vec::new()))
        .into()
}

fn change_bytes(bytes: &mut Vec<u8>, dice: &mut Dice) {
    if bytes.is_empty() {
        return bytes.push(dice.next() as u8);
    }
    let at = dice.below(bytes.len());
    match dice.below(7) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = dice.next() as u8,
        2 => bytes.truncate(at),
        3 => {
            let end = (at + 1 + dice.below(40)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        4 => drop(bytes.drain(at..(at + 1 + dice.below(8)).min(bytes.len()))),
        // A length, as the wire and as postcard write it.
        5 => {
            let number = [0, 1, 65_536, 18 << 20, 1 << 31, u32::MAX][dice.below(6)];
            let end = (at + 4).min(bytes.len());
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        _ => {
            let end = (at + 1).min(bytes.len());
            bytes.splice(at..end, [0xFF, 0xFF, 0xFF, 0xFF, 0x0F]);
        }
    }
}

/// The bytes of a session that was changed in some way.
fn transcript(all: &[Question], rights: Allowed, dice: &mut Dice) -> Vec<u8> {
    let mut asked = beginning(rights);
    for _ in 0..1 + dice.below(6) {
        asked.push(all[dice.below(all.len())].clone());
    }
    match dice.below(6) {
        0 => {
            let (one, other) = (dice.below(asked.len()), dice.below(asked.len()));
            asked.swap(one, other);
        }
        1 => {
            let at = dice.below(asked.len());
            asked.insert(at, asked[at].clone());
        }
        2 => drop(asked.remove(dice.below(asked.len()))),
        _ => {}
    }
    // In the head, in the body, or in the frames.
    let way = dice.below(4);
    let at = 2.min(asked.len() - 1) + dice.below(asked.len().saturating_sub(2));
    match way {
        0 | 1 => change_bytes(&mut asked[at].0, dice),
        2 => change_bytes(&mut asked[at].1, dice),
        _ => {}
    }
    let mut bytes = PREAMBLE.to_vec();
    for (number, (head, body)) in asked.into_iter().enumerate() {
        let mut message = Message {
            kind: Kind::Ask,
            more: dice.below(50) == 0,
            request: number as u32,
            head,
            body,
        };
        match dice.below(30) {
            0 => message.kind = [Kind::Answer, Kind::Ping, Kind::Pong][dice.below(3)],
            1 => message.request = dice.below(3) as u32,
            _ => {}
        }
        add_frames(&mut bytes, &message, dice.below(2) as u8 * u8::from(number > 0));
    }
    if way == 3 {
        // The preamble seldom: nothing comes after it then.
        let kept = match dice.below(20) {
            0 => 0,
            _ => PREAMBLE.len(),
        };
        let mut rest = bytes.split_off(kept);
        (0..1 + dice.below(4)).for_each(|_| change_bytes(&mut rest, dice));
        bytes.extend(rest);
    }
    bytes
}

/// Adds a message in one chunk; all are short here.
fn add_frames(bytes: &mut Vec<u8>, message: &Message, channel: u8) {
    let len = message.len() as u32;
    bytes.push(channel);
    bytes.extend(&len.to_le_bytes()[..3]);
    bytes.extend([message.kind as u8, u8::from(message.more), 0, 0]);
    for number in [message.request, message.head.len() as u32, message.body.len() as u32] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(&message.head);
    bytes.extend(&message.body);
}

/// Sends a transcript, and waits for the end of the session.
async fn send(
    home: Arc<dyn Home>,
    rights: Allowed,
    memory: Arc<Memory>,
    bytes: Vec<u8>,
    reads: bool,
) -> Result<(), String> {
    let (here, served) = Raw::serve(home, rights, memory);
    let (mut read, mut write) = tokio::io::split(here);
    let sending = async move {
        // The server may have hung up.
        let _ = write.write_all(&bytes).await;
        let _ = write.shutdown().await;
    };
    let reading = async move {
        let mut answers = Vec::new();
        if reads {
            let _ = read.read_to_end(&mut answers).await;
        }
        drop(read);
    };
    let all = async { tokio::join!(sending, reading, served).2 };
    match tokio::time::timeout(PATIENCE, all).await {
        Err(_) => Err("the session does not end".to_owned()),
        Ok(Err(error)) => Err(format!("the session panics: {error}")),
        Ok(Ok(_)) => Ok(()),
    }
}

/// Everything in the store is what it says, and what was there still is.
fn check(store: &MemoryStore, kept: &Sealed, rights: Allowed) {
    let records = store.records().expect("lists");
    if !rights.manages() {
        assert!(records.iter().any(|record| record.key == OTHERS), "a backup is lost");
        for record in records {
            Entry::decode(Hashing::Plain, &record.key, &record.bytes).expect("is a record");
        }
        assert_eq!(store.notes().expect("lists"), []);
        assert_eq!(store.condemned().expect("lists"), []);
        assert!(store.locate(&[kept.id]).expect("looks")[0].is_some());
    }
    let mut all = Vec::new();
    let listed = store.survey(&mut |id, located| {
        all.push((id, located));
        Ok(())
    });
    listed.expect("lists");
    for (id, located) in all {
        let wanted = Wanted { id, pages: 0..4 };
        let stored = store.get(&[wanted]).remove(0).expect("is stored");
        let header = Header::prove(Hashing::Plain, id, located.plain_bytes as usize, &stored.header).expect("proves");
        for number in 0..located.plain_bytes.div_ceil(65_536) as usize {
            let mut plain = vec![0; header.page_len(number)];
            header
                .open_page(number, &stored.pages[number], &mut plain)
                .expect("opens");
        }
    }
}

fn number_from(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

#[test]
fn no_transcript_makes_a_server_panic_wait_or_lose_something() {
    let wanted = number_from("VBK_FRAMES").unwrap_or(4000);
    let seed = number_from("VBK_SEED").unwrap_or(20_261_129);
    let started = std::time::Instant::now();
    let rights = [Allowed::Add, Allowed::Read, Allowed::Everything];
    let all = Arc::new(questions());
    let directory = tempfile::tempdir().expect("a directory");
    let memory = Arc::new(Memory::new());
    for (turn, rights) in (1..).zip(rights) {
        let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
        let kept = sealed(1);
        let record = put_backup(&*store, "db1", 1);
        store.commit(&record).expect("commits");
        let admission = Admission {
            who: Who::default(),
            rights,
            guests: Vec::new(),
            is_administrator: false,
            quota: Quota::default(),
        };
        let home: Arc<dyn Home> = Arc::new(StoreHome::new(Arc::clone(&store)).expect("a home"));
        let home = limit(home, &admission, Some(directory.path())).expect("limits");
        let count = wanted / 3;
        let first = seed.wrapping_mul(1_000_003).wrapping_add(turn << 40);
        let lanes: Vec<_> = (0..AT_ONCE)
            .map(|lane| {
                let (home, memory, all) = (Arc::clone(&home), Arc::clone(&memory), Arc::clone(&all));
                runtime().spawn(async move {
                    for number in (lane..count).step_by(AT_ONCE as usize) {
                        let mut dice = Dice(first + number);
                        let bytes = transcript(&all, rights, &mut dice);
                        let reads = dice.below(10) > 0;
                        let sent = send(Arc::clone(&home), rights, Arc::clone(&memory), bytes, reads).await;
                        sent.unwrap_or_else(|what| panic!("seed {seed}, {} {number}: {what}", rights.name()));
                    }
                })
            })
            .collect();
        for lane in lanes {
            runtime().block_on(lane).expect("all end");
        }
        check(&store, &kept, rights);
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the server panicked");
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("figures: {wanted} malformed transcripts in {seconds:.0} s, seed {seed}");
}
