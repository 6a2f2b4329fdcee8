//! Entry points for bytes made to attack, of a fuzzer (`scripts/fuzz`): a server reads those of a client, and a client those of
//! a server.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use vbk_repo::block::{BlockSize, Hashing};
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::repository::Reserve;
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Note, PruneOptions, Record, StoreReader, StoreWriter, Wanted};

use crate::client::{Again, RemoteHome};
use crate::message::{Answer, PROTOCOL, Welcome};
use crate::server::{Allowed, serve};
use crate::wire::{CHUNK_BYTES, Kind, Limits, MessageReader, PREAMBLE, read_preamble};

/// An entry point.
pub type Target = fn(&[u8]);

/// All entry points by their names.
pub const TARGETS: &[(&str, Target)] = &[("server", server), ("client", client)];

/// Longest time that an input may take: more than any does on a busy machine, and less than a silent peer has.
const LIMIT: Duration = Duration::from_secs(20);

/// Time without a question after which the server of [`client`] hangs up: it may have sent a part of a message.
const PAUSE: Duration = Duration::from_millis(50);

/// Rights of the client that sends an input: its first byte chooses.
const RIGHTS: [Allowed; 4] = [Allowed::Add, Allowed::Read, Allowed::Everything, Allowed::Verify];

/// A backup that is there, and no one may remove but those who manage.
const KEPT: &str = "db1@2026-11-21T05-54-00Z";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
});

static BLOCK: LazyLock<Sealed> = LazyLock::new(|| {
    let plain: Vec<u8> = (0..3000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let sealed =
        Sealer::new(Compression::default()).and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)));
    sealed.expect("seals")
});

/// A store with a block, a node, a record and a note.
fn store() -> Arc<MemoryStore> {
    let store = MemoryStore::new(BlockSize::DEFAULT);
    let record = Record {
        key: KEPT.into(),
        bytes: b"a record".to_vec(),
    };
    let filled = store
        .put(vec![BLOCK.clone()])
        .and_then(|()| store.put_nodes(vec![(NodeId([7; 32]), b"a node".to_vec())]))
        .and_then(|()| store.commit(&record));
    filled.expect("a store in memory takes everything");
    Arc::new(store)
}

/// Serves a client that sends these bytes after its preamble.
fn server(input: &[u8]) {
    let (choice, sent) = input.split_first().unwrap_or((&0, &[]));
    let allowed = RIGHTS[usize::from(*choice) % RIGHTS.len()];
    let store = store();
    let home: Arc<dyn Home> = Arc::new(StoreHome::new(Arc::clone(&store)).expect("a home"));
    let bytes = [&PREAMBLE[..], sent].concat();
    let served = serve(&home, allowed, &bytes[..], tokio::io::sink());
    let ended = RUNTIME.block_on(async { tokio::time::timeout(LIMIT, served).await });
    assert!(ended.is_ok(), "the session does not end");
    if allowed != Allowed::Everything {
        let kept = store.lookup(&[KEPT.into()], &[]).expect("looks");
        assert_eq!(kept.records.len(), 1, "a backup is lost");
        assert!(store.notes().expect("lists").is_empty(), "a note is changed");
        assert!(
            store.locate(&[BLOCK.id]).expect("looks")[0].is_some(),
            "a block is lost"
        );
    }
}

/// Asks a server that answers with these bytes: after each question it sends chunks up to the end of a message, with the number
/// of the question in it. Whatever it says, all questions end.
fn client(input: &[u8]) {
    let input = Arc::new(input.to_vec());
    let started = std::time::Instant::now();
    let connected = RemoteHome::connect(PathBuf::from("fuzzed"), Again::never(), move || {
        let (here, there) = tokio::io::duplex(1 << 20);
        let input = Arc::clone(&input);
        RUNTIME.spawn(async move {
            let (read, write) = tokio::io::split(there);
            let _ = answer(&input, read, write).await;
        });
        Ok(tokio::io::split(here))
    });
    if let Ok(home) = connected {
        talk(&home);
    }
    assert!(started.elapsed() < LIMIT, "the client waits");
}

/// Asks everything that a client asks, and takes whatever answer comes.
fn talk(home: &RemoteHome) {
    let ids = [BLOCK.id, BlockId([9; 32])];
    let never = AtomicBool::new(false);
    let _ = (
        home.newest(),
        home.key_slots(),
        home.disk_usage(),
        home.check_tables(1, &never),
    );
    let _ = (home.status(), home.check_stored(&never, &mut |_| ()));
    if let Ok(snapshot) = home.read() {
        look(&*snapshot.store, ids);
    }
    let _ = home.check_reserve(Reserve::Default);
    if let Ok(session) = home.write("backup web1", &mut |_| false) {
        let (store, keeper) = (session.store, session.keeper);
        let record = |key: &str| Record {
            key: key.into(),
            bytes: b"a record".to_vec(),
        };
        let _ = (
            store.builds_on(KEPT),
            store.put(vec![BLOCK.clone()]),
            store.put_nodes(vec![(NodeId([8; 32]), b"a node".to_vec())]),
            store.flush(),
            store.commit(&record("web1@2026-11-21T05-54-00Z")),
        );
        let _ = (keeper.room(), keeper.publish());
    }
    if let Ok(session) = home.manage("forget", &mut |_| false) {
        let (store, keeper) = (session.store, session.keeper);
        let note = Note {
            name: "backup/x".into(),
            value: Some(b"a note".to_vec()),
        };
        let _ = (
            store.condemn(&ids),
            store.pardon(&ids),
            store.amend(&[KEPT.into()], &[note]),
        );
        let options = PruneOptions {
            max_unused: 0.0,
            dry_run: false,
            empty_bin: false,
        };
        let _ = keeper.prune(options, &never, &|_| ());
    }
}

/// Reads everything in a store. The number of answers is what was asked for, also if they are errors.
fn look(store: &dyn StoreReader, ids: [BlockId; 2]) {
    let _ = (
        store.identity(),
        store.generation(),
        store.condemned(),
        store.forgotten(),
    );
    if let Ok(located) = store.locate(&ids) {
        assert_eq!(located.len(), ids.len());
    }
    let wanted = ids.map(|id| Wanted { id, pages: 0..1 });
    assert_eq!(store.get(&wanted).len(), ids.len());
    assert_eq!(store.nodes(&[NodeId([7; 32]), NodeId([9; 32])]).len(), 2);
    let _ = (store.listing(true), store.lookup(&[KEPT.into()], &["backup/x".into()]));
    let _ = store.survey(&mut |_, _| Ok(()));
}

/// The server of [`client`]. The greeting is a good one.
async fn answer(input: &[u8], mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin) -> io::Result<()> {
    let silent = || io::Error::from(io::ErrorKind::TimedOut);
    read_preamble(&mut read).await?;
    write.write_all(&PREAMBLE).await?;
    let mut questions = MessageReader::new(read, Limits::PEER);
    let mut chunks = Chunks { input };
    let mut is_first = true;
    while let Some(message) = questions.next(PAUSE, silent).await? {
        if message.kind != Kind::Ask {
            continue;
        }
        if std::mem::take(&mut is_first) {
            write.write_all(&welcome(message.request)).await?;
            continue;
        }
        write.write_all(&chunks.next_for(message.request)).await?;
        if chunks.input.is_empty() {
            // It hangs up, perhaps in the midst of a message.
            return write.shutdown().await;
        }
    }
    Ok(())
}

/// A good greeting, in one chunk.
fn welcome(request: u32) -> Vec<u8> {
    let welcome = Answer::Welcome(Welcome {
        protocol: PROTOCOL,
        program: "fuzzed".into(),
        id: None,
        key_check: None,
        window_bytes: 1 << 20,
        newest: None,
    });
    let head = postcard::to_stdvec(&welcome).expect("plain data");
    let mut message = vec![Kind::Answer as u8, 0, 0, 0];
    for number in [request, head.len() as u32, 0] {
        message.extend(number.to_le_bytes());
    }
    message.extend(head);
    let mut chunk = vec![0];
    chunk.extend(&(message.len() as u32).to_le_bytes()[..3]);
    chunk.extend(message);
    chunk
}

/// The chunks of an input, as `wire.rs` describes them. What is no chunk is sent as it is.
struct Chunks<'a> {
    input: &'a [u8],
}

impl Chunks<'_> {
    /// Takes chunks up to the end of the last message that answers a question, or all that there are.
    fn next_for(&mut self, request: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Bytes of the message that are missing, and whether it is the last one.
        let (mut missing, mut is_last) = (0, false);
        while let Some((header, rest)) = self.input.split_first_chunk::<4>() {
            let len = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
            let (chunk, rest) = rest.split_at(rest.len().min(len.min(CHUNK_BYTES)));
            self.input = rest;
            let mut chunk = chunk.to_vec();
            if missing == 0
                && let Some(start) = chunk.first_chunk_mut::<16>()
            {
                let number = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
                missing = (number(8) as usize)
                    .saturating_add(number(12) as usize)
                    .saturating_add(16);
                is_last = start[..2] == [Kind::Answer as u8, 0];
                start[4..8].copy_from_slice(&request.to_le_bytes());
            }
            missing = missing.saturating_sub(chunk.len());
            bytes.extend(header);
            bytes.extend(chunk);
            if missing == 0 && is_last {
                return bytes;
            }
        }
        bytes.extend(std::mem::take(&mut self.input));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::io::AsyncReadExt;
    use vbk_repo::Error;

    use super::*;

    /// Copies a stream, and notes what passes.
    async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, noted: &Mutex<Vec<u8>>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            noted.lock().extend(&buffer[..count]);
            if to.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    }

    /// Returns what a client and a server say to each other, without the preambles.
    fn conversation(allowed: Allowed) -> [Vec<u8>; 2] {
        let home: Arc<dyn Home> = Arc::new(StoreHome::new(store()).expect("a home"));
        let said: Arc<[Mutex<Vec<u8>>; 2]> = Arc::default();
        let noted = Arc::clone(&said);
        let client = RemoteHome::connect(PathBuf::from("seeds"), Again::never(), move || {
            let (here, there) = tokio::io::duplex(1 << 20);
            let (near, far) = tokio::io::duplex(1 << 20);
            let (home, noted) = (Arc::clone(&home), Arc::clone(&noted));
            RUNTIME.spawn(async move {
                let (from_client, to_client) = tokio::io::split(there);
                let (from_server, to_server) = tokio::io::split(near);
                let (read, write) = tokio::io::split(far);
                tokio::join!(
                    copy(from_client, to_server, &noted[0]),
                    copy(from_server, to_client, &noted[1]),
                    serve(&home, allowed, read, write),
                )
            });
            Ok(tokio::io::split(here))
        });
        let client = client.expect("connects");
        assert!(matches!(client.newest(), Ok(_) | Err(Error::Remote { .. })));
        talk(&client);
        drop(client);
        [0, 1].map(|side| said[side].lock()[PREAMBLE.len()..].to_vec())
    }

    /// Runs the targets on real conversations, and keeps these for `scripts/fuzz` if that asks for them.
    #[test]
    fn seeds() {
        for (choice, allowed) in RIGHTS.into_iter().enumerate() {
            let [asked, answered] = conversation(allowed);
            let asked = [&[choice as u8], &asked[..]].concat();
            // The greeting is the first chunk.
            let len = 4 + usize::from(u16::from_le_bytes([answered[1], answered[2]]));
            for (name, input) in [("server", &asked[..]), ("client", &answered[len..])] {
                assert!(input.len() > 500, "{name} has {} bytes", input.len());
                let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("is known");
                target(input);
                if let Some(seeds) = std::env::var_os("VBK_FUZZ_SEEDS") {
                    let directory = std::path::Path::new(&seeds).join(name);
                    std::fs::create_dir_all(&directory).expect("a directory for seeds");
                    std::fs::write(directory.join(allowed.name()), input).expect("a seed");
                }
            }
        }
    }
}
