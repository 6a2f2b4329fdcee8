//! Clients that send what they like to a real repository, next to one that behaves.
//!
//! Each is a raw stream. Whatever it sends, it gets an answer that says what is wrong or finds its connection closed, the
//! repository stays as it was, and the other client ends its backup.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use vbk_repo::backup::Image;
use vbk_repo::block::{BlockIndex, BlockSize, Hashing};
use vbk_repo::codec::{Compression, Sealed, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::keys::{Keys, Unlock};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::directory::shared::SharedDirectory;
use vbk_repo::repository::home::{Home, Session};
use vbk_repo::repository::{CreateOptions, Repository};
use vbk_repo::store::{Forgotten, Located, Note, Record, StoreWriter, Wanted};
use vbk_repo::writer::ImageWriter;

use super::limited::{Admission, limit};
use super::session::{self, Memory};
use super::{Allowed, Quota, Who};
use crate::client::{Again, RemoteHome};
use crate::message::{Answer, Ask, Fault, Hello, PROTOCOL};
use crate::tests::backup;
use crate::wire::{
    CHUNK_BYTES, Channel, Kind, Limits, Message, MessageReader, Outbox, PREAMBLE, read_preamble, write_all,
};

mod malformed;
mod puts;
mod questions;
mod slow;
mod tenants;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Panics in threads of servers.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// The threads of the servers of these tests.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static COUNTED: Once = Once::new();
    COUNTED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if matches!(std::thread::current().name(), Some("hostile-served" | "vbk-serve")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(panic);
        }));
    });
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hostile-served")
            .enable_all()
            .build()
            .expect("a runtime")
    })
}

/// A backup of another guest, which is there.
const OTHERS: &str = "db1@2026-11-21T05-54-00Z";

/// A repository in a directory that a server has open.
struct Place {
    directory: tempfile::TempDir,
    shared: Arc<SharedDirectory>,
    memory: Arc<Memory>,
}

/// All that a client could change.
#[derive(Debug, PartialEq)]
struct State {
    records: Vec<Record>,
    notes: Vec<Note>,
    condemned: Vec<BlockId>,
    forgotten: Vec<Forgotten>,
    blocks: Vec<(BlockId, Located)>,
}

impl Place {
    fn new(is_encrypted: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repository");
        let plain = CreateOptions::plain(BlockSize::DEFAULT);
        let options = match is_encrypted {
            true => {
                let unlock = Unlock::KeyFile(vec![b'7'; 64].into());
                let keys = Keys::generate().expect("random");
                CreateOptions {
                    encryption: Some((keys, vec![("key-file".into(), unlock)])),
                    ..plain
                }
            }
            false => plain,
        };
        drop(Repository::create(&path, &options).expect("creates"));
        let shared = Arc::new(SharedDirectory::new(Arc::new(Directory::open(&path).expect("opens"))));
        let place = Self {
            directory,
            shared,
            memory: Arc::new(Memory::new()),
        };
        if !is_encrypted {
            let session = place.home().write("backup", &mut |_| true).expect("opens");
            let record = put_backup(&*session.store, "db1", 1);
            assert_eq!(record.key, OTHERS);
            session.store.commit(&record).expect("commits");
            session.keeper.publish().expect("publishes");
        }
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    fn home(&self) -> Arc<dyn Home> {
        self.shared.home()
    }

    fn state(&self) -> State {
        let session = self.home().manage("look", &mut |_| true).expect("opens");
        let store = &session.store;
        // What was put is there from now on.
        store.flush().expect("flushes");
        let mut blocks = Vec::new();
        let listed = store.survey(&mut |id, located| {
            blocks.push((id, located));
            Ok(())
        });
        listed.expect("lists");
        State {
            records: store.records().expect("lists"),
            notes: store.notes().expect("lists"),
            condemned: store.condemned().expect("lists"),
            forgotten: store.forgotten().expect("lists"),
            blocks,
        }
    }

    /// Connects a client, up to the server's preamble.
    fn stranger(&self, rights: Allowed, guests: &[&str]) -> Raw {
        let admission = Admission {
            who: Who {
                name: "hostile".into(),
                address: None,
            },
            rights,
            guests: guests.iter().map(|guest| (*guest).to_owned()).collect(),
            is_administrator: false,
            quota: Quota::default(),
        };
        let home = limit(self.home(), &admission, Some(&self.path())).expect("limits");
        Raw::connect(home, rights, Arc::clone(&self.memory))
    }

    /// A client that has greeted, and opened the store number 1.
    fn client(&self, rights: Allowed, guests: &[&str]) -> Raw {
        let mut client = self.stranger(rights, guests);
        client.greet();
        let command = || "test".to_owned();
        let open = match (rights.manages(), rights.adds()) {
            (true, _) => Ask::Manage {
                store: 1,
                command: command(),
            },
            (false, true) => Ask::Write {
                store: 1,
                command: command(),
            },
            _ => Ask::Read {
                store: 1,
                as_it_is: false,
            },
        };
        let opened = client.asks(&open, Vec::new());
        assert!(matches!(opened, Said::Answer(Answer::Opened { .. })), "{opened:?}");
        client
    }

    /// Starts a backup that goes on while others do what they do.
    fn honest(&self) -> Honest {
        let (home, memory) = (self.home(), Arc::clone(&self.memory));
        let remote = RemoteHome::connect("test".into(), Again::never(), move || {
            let raw = Raw::serve(Arc::clone(&home), Allowed::Everything, Arc::clone(&memory));
            Ok(tokio::io::split(raw.0))
        });
        let session = remote.expect("connects").write("backup", &mut |_| true).expect("opens");
        session.store.put(vec![sealed(90)]).expect("puts");
        session.store.flush().expect("flushes");
        Honest { session }
    }
}

/// A client that behaves.
struct Honest {
    session: Session<dyn StoreWriter>,
}

impl Honest {
    /// Ends the backup, and reads it back.
    fn ends(self) {
        let store = &*self.session.store;
        let record = put_backup(store, "honest", 91);
        store.commit(&record).expect("commits");
        for block in [sealed(90), sealed(91)] {
            let wanted = Wanted {
                id: block.id,
                pages: 0..block.pages.len(),
            };
            let stored = store.get(&[wanted]).remove(0).expect("is stored");
            assert_eq!((stored.header, stored.pages), (block.header, block.pages));
        }
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the server panicked");
    }
}

/// What a client is told.
#[derive(Debug)]
enum Said {
    Answer(Answer),
    /// The last words; none if the connection just ended.
    Closed(Option<Fault>),
}

impl Said {
    /// The text of a refusal, by an answer or by last words.
    #[track_caller]
    fn refusal(self) -> String {
        match self {
            Self::Answer(Answer::Failed(fault)) | Self::Closed(Some(fault)) => {
                fault.into_error(std::path::Path::new("here")).to_string()
            }
            other => panic!("it is not refused: {other:?}"),
        }
    }
}

/// A stream to a server.
struct Raw {
    read: MessageReader<ReadHalf<DuplexStream>>,
    write: WriteHalf<DuplexStream>,
    served: JoinHandle<io::Result<()>>,
    next: u32,
}

impl Raw {
    fn serve(home: Arc<dyn Home>, rights: Allowed, memory: Arc<Memory>) -> (DuplexStream, JoinHandle<io::Result<()>>) {
        let (here, there) = tokio::io::duplex(CHUNK_BYTES);
        let served = runtime().spawn(async move {
            let (read, write) = tokio::io::split(there);
            session::run(
                Ok(&home),
                rights,
                &memory,
                session::Visit::of_nobody(),
                std::future::pending(),
                read,
                write,
            )
            .await
        });
        (here, served)
    }

    fn connect(home: Arc<dyn Home>, rights: Allowed, memory: Arc<Memory>) -> Self {
        let (here, served) = Self::serve(home, rights, memory);
        let (mut read, mut write) = tokio::io::split(here);
        runtime().block_on(async {
            write.write_all(&PREAMBLE).await.expect("sends");
            read_preamble(&mut read).await.expect("is a server");
        });
        Self {
            read: MessageReader::new(read, Limits::PEER),
            write,
            served,
            next: 0,
        }
    }

    fn greet(&mut self) {
        let hello = Ask::Hello(Hello {
            protocol: (PROTOCOL, PROTOCOL),
            program: "test".into(),
        });
        let said = self.asks(&hello, Vec::new());
        assert!(matches!(said, Said::Answer(Answer::Welcome(_))), "{said:?}");
    }

    /// Sends bytes; an error if the server does not take them any more.
    fn sends(&mut self, bytes: &[u8]) -> io::Result<()> {
        runtime().block_on(async { tokio::time::timeout(PATIENCE, self.write.write_all(bytes)).await? })
    }

    /// Sends a question, and returns its number.
    fn begins(&mut self, head: Vec<u8>, body: Vec<u8>) -> io::Result<u32> {
        self.next += 1;
        let message = Message {
            kind: Kind::Ask,
            more: false,
            request: self.next,
            head,
            body,
        };
        self.sends(&on_the_wire([message]))?;
        Ok(self.next)
    }

    /// The next message of the server that is not a ping; `None` at the end.
    fn hears(&mut self) -> Option<Message> {
        loop {
            let silent = || panic!("the server says nothing");
            let next = runtime().block_on(self.read.next(PATIENCE, silent));
            match next {
                Ok(Some(message)) if message.kind == Kind::Ping => {}
                Ok(Some(message)) => return Some(message),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The next answer, whichever question it is to.
    fn said(&mut self) -> Said {
        match self.hears() {
            None => Said::Closed(None),
            Some(message) => match postcard::from_bytes(&message.head).expect("an answer") {
                Answer::Failed(fault) if message.request == 0 => Said::Closed(Some(fault)),
                answer => Said::Answer(answer),
            },
        }
    }

    /// Asks, and returns the answer.
    fn asks(&mut self, ask: &Ask, body: Vec<u8>) -> Said {
        self.asks_raw(postcard::to_stdvec(ask).expect("plain data"), body)
    }

    fn asks_raw(&mut self, head: Vec<u8>, body: Vec<u8>) -> Said {
        // A server that hangs up in the midst says why.
        let _ = self.begins(head, body);
        self.said()
    }

    /// Hangs up, and waits until the server is done with this client.
    fn ends(self) {
        let Self {
            read, write, served, ..
        } = self;
        drop((read, write));
        let ended = runtime().block_on(async { tokio::time::timeout(PATIENCE, served).await });
        let _ = ended.expect("the session ends").expect("it does not panic");
    }
}

/// The bytes of messages, on the bulk channel.
fn on_the_wire(messages: impl IntoIterator<Item = Message>) -> Vec<u8> {
    let outbox = Outbox::new(usize::MAX);
    for message in messages {
        let channel = match message.len() <= 200 {
            true => Channel::Control,
            false => Channel::Bulk,
        };
        outbox.send(channel, message);
    }
    outbox.close();
    let mut bytes = Vec::new();
    runtime().block_on(write_all(&outbox, &mut bytes)).expect("writes");
    bytes
}

/// Bytes that compress to two thirds.
fn plain(seed: u8, len: usize) -> Vec<u8> {
    let mut noise = u32::from(seed);
    let mut byte = |at: usize| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match at % 3 {
            0 => b'x',
            _ => (noise >> 24) as u8,
        }
    };
    (0..len).map(&mut byte).collect()
}

/// A block of four pages, of which the last is short.
fn sealed(seed: u8) -> Sealed {
    let plain = plain(seed, 200_000);
    Sealer::new(Compression::default())
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

/// Puts a backup of one block of [`sealed`], but for its record.
fn put_backup(store: &dyn StoreWriter, guest: &str, seed: u8) -> Record {
    let block = sealed(seed);
    let size = u64::from(block.plain_bytes);
    let image = ImageWriter::create(store, BlockSize::DEFAULT, size);
    image.set(BlockIndex(0), &[Some(block.id)]).expect("sets");
    store.put(vec![block]).expect("puts");
    let root = image.finish().expect("puts");
    let image = Image::new("vda".parse().expect("a name"), "/dev/null", size, root);
    let backup = backup(guest, "2026-11-21T05-54-00Z", vec![image]);
    Record {
        key: backup.spec(),
        bytes: backup.encode(),
    }
}
