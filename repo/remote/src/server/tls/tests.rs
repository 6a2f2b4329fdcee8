//! A server and its clients over TLS, through real sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Backup;
use vbk_repo::block::BlockSize;
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::keys::{Keys, Unlock};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::repository::{CreateOptions, Repository};
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Note, PruneOptions, Record, StoreManager, StoreReader, StoreWriter, Terms, Wanted};

use crate::address::VbkAddress;
use crate::client::{Again, Bandwidth, LaneOptions, RemoteHome, Tls};
use crate::message::Ask;
use crate::peer::Seed;
use crate::server::{Allowed, Policy, Quota, Served, Server, TokenEntry, Tokens, load_or_make_key};
use crate::tests::backup;
use crate::token::Token;

/// A server in a thread.
struct Fixture {
    _directory: tempfile::TempDir,
    root: PathBuf,
    key: Seed,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    fn start(served: fn(&Path) -> Served, open: Box<crate::server::Open>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().to_owned();
        let key = load_or_make_key(&root).expect("a key");
        let server = Server::new(served(&root), open).expect("a server");
        let address = server.listen_tls("127.0.0.1:0".parse().expect("an address"), &key);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            server.run(&|| stopped.load(Ordering::SeqCst));
        });
        Self {
            _directory: directory,
            root,
            key,
            address: address.expect("listens"),
            stop,
            thread: Some(thread),
        }
    }

    /// A server of one repository in memory.
    fn one() -> Self {
        let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
        let home: Arc<dyn Home> = Arc::new(StoreHome::new(store).expect("a home"));
        Self::start(
            |root| Served::One(root.to_owned()),
            Box::new(move |_| Ok(Arc::clone(&home))),
        )
    }

    fn token(&self, name: &str, rights: Allowed, guests: &[&str]) -> Token {
        self.token_for(&self.root, None, name, rights, guests)
    }

    fn token_for(
        &self,
        repository: &Path,
        as_name: Option<&str>,
        name: &str,
        rights: Allowed,
        guests: &[&str],
    ) -> Token {
        let seed = Seed::generate().expect("random");
        let entry = TokenEntry {
            name: name.into(),
            public_key: seed.public_key(),
            rights,
            guests: guests.iter().map(|&guest| guest.to_owned()).collect(),
            quota: Quota::default(),
            host: None,
            under_root: false,
            created: Timestamp::UNIX_EPOCH,
        };
        Tokens::of(repository).add(&entry).expect("adds");
        Token {
            host: "127.0.0.1".into(),
            port: self.address.port(),
            repository: as_name.map(str::to_owned),
            fingerprint: self.key.public_key().fingerprint(),
            seed,
        }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("ends");
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop();
    }
}

fn open(token: &Token) -> vbk_repo::Result<RemoteHome> {
    let tls = Tls {
        lanes: LaneOptions::default(),
        bandwidth: Bandwidth::default(),
        address: token.address(),
        token: token.clone(),
    };
    tls.open(Again::never())
}

fn refusal(token: &Token) -> String {
    open(token).expect_err("is refused").to_string()
}

/// Adds a backup with one block.
fn back_up(home: RemoteHome, guest: &str) -> vbk_repo::Result<BlockId> {
    let writer = Repository::at(Arc::new(home)).writer("backup", &mut |_| false)?;
    let plain: Vec<u8> = (0..100_000_u32).map(|at| (at >> 3) as u8 ^ guest.len() as u8).collect();
    let hashes = writer.store().hashing().block(&plain);
    let sealed = Sealer::new(Compression::None)?.seal(&plain, &hashes)?;
    writer.store().put(vec![sealed])?;
    writer.commit(record_of(guest))?;
    Ok(hashes.id)
}

fn record_of(guest: &str) -> Backup {
    backup(guest, "2026-11-21T05-54-00Z", Vec::new())
}

fn manager(home: &RemoteHome) -> impl StoreManager + use<> {
    home.opened(to_manage, true).expect("opens").expect("is there").0
}

fn to_manage(store: u32) -> Ask {
    Ask::Manage {
        store,
        command: "test".into(),
    }
}

fn to_write(store: u32) -> Ask {
    Ask::Write {
        store,
        command: "test".into(),
    }
}

fn keys(store: &dyn StoreReader) -> Vec<String> {
    let records = store.records().expect("lists").into_iter();
    records.map(|record| record.key).collect()
}

fn denied<T>(result: vbk_repo::Result<T>) -> String {
    let error = result.err().expect("is refused");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    error.to_string()
}

#[test]
fn the_holder_of_a_token_uses_the_repository() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    back_up(open(&token).expect("opens"), "web1").expect("backs up");
    let snapshot = open(&token).expect("opens").read().expect("reads");
    assert_eq!(keys(&*snapshot.store), ["web1@2026-11-21T05-54-00Z"]);
    assert!(Tokens::of(&server.root).last_seen("web").is_some());
}

#[test]
fn what_is_not_a_token_of_the_repository_gets_one_answer() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let unknown = Token {
        seed: Seed::generate().expect("random"),
        ..token.clone()
    };
    let answer = refusal(&unknown);
    assert!(answer.contains("does not accept this token"), "{answer}");
    let elsewhere = Token {
        repository: Some("shop".into()),
        ..token.clone()
    };
    assert_eq!(refusal(&elsewhere), answer);
    let tokens = Tokens::of(&server.root);
    let new = Seed::generate().expect("random");
    tokens
        .rotate(
            tokens.known("web").expect("reads"),
            new.public_key(),
            Timestamp::UNIX_EPOCH,
        )
        .expect("rotates");
    assert_eq!(refusal(&token), answer);
    let rotated = Token { seed: new, ..token };
    assert!(open(&rotated).is_ok());
    tokens.revoke("web").expect("revokes");
    assert_eq!(refusal(&rotated), answer);
    assert_eq!(tokens.last_seen("web"), None);
}

#[test]
fn another_server_is_told_nothing() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let other = Seed::generate().expect("random").public_key().fingerprint();
    let refused = refusal(&Token {
        fingerprint: other,
        ..token.clone()
    });
    for part in [
        "another key",
        &token.fingerprint.to_string(),
        &other.to_string(),
        "rotate",
        "127.0.0.1",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(Tokens::of(&server.root).last_seen("web"), None);
}

#[test]
fn a_session_ends_soon_after_its_token_is_revoked_or_changed() {
    let server = Fixture::one();
    let tokens = Tokens::of(&server.root);
    let sessions = ["gone", "changed", "stays"].map(|name| {
        let token = server.token(name, Allowed::Everything, &[]);
        open(&token).expect("opens").read().expect("reads").store
    });
    tokens.revoke("gone").expect("revokes");
    let key = Seed::generate().expect("random").public_key();
    let known = tokens.known("changed").expect("reads");
    tokens.rotate(known, key, Timestamp::UNIX_EPOCH).expect("rotates");
    for (session, word) in sessions.iter().zip(["was revoked", "was changed"]) {
        let error = loop {
            match session.locate(&[BlockId([1; 32])]) {
                Ok(_) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(sessions[2].locate(&[BlockId([1; 32])]).is_ok());
}

#[test]
fn sessions_end_in_order_with_the_server() {
    let mut server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let session = open(&token).expect("opens").read().expect("reads").store;
    let ask = || session.locate(&[BlockId([1; 32])]);
    assert!(ask().is_ok());
    server.stop();
    let error = ask().expect_err("is gone");
    assert!(error.to_string().contains("shutting down"), "{error}");
    let refused = refusal(&token);
    assert!(refused.contains("can't connect to 127.0.0.1"), "{refused}");
}

#[test]
fn a_token_for_backups_adds_and_reads_no_block() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    let backup = server.token("backup", Allowed::Add, &[]);
    let restore = server.token("restore", Allowed::Read, &[]);
    let verify = server.token("verify", Allowed::Verify, &[]);
    let id = back_up(open(&backup).expect("opens"), "web1").expect("backs up");
    let wanted = [Wanted { id, pages: 0..1 }];
    for (token, reads, surveys) in [
        (&all, true, true),
        (&verify, true, true),
        (&restore, true, false),
        (&backup, false, false),
    ] {
        let store = open(token).expect("opens").read().expect("reads").store;
        assert!(store.locate(&[id]).expect("looks")[0].is_some());
        assert_eq!(keys(&*store).len(), 1);
        assert_eq!(store.get(&wanted).remove(0).is_ok(), reads);
        assert_eq!(store.survey(&mut |_, _| Ok(())).is_ok(), surveys);
    }
    // The raw questions, without a client that knows better.
    type Question = fn(u32) -> Ask;
    for (token, ask) in [
        (&backup, to_manage as Question),
        (&restore, to_manage),
        (&restore, to_write),
    ] {
        denied(open(token).expect("opens").opened(ask, true).map(drop));
    }
    let home = open(&backup).expect("opens");
    let writing = home.opened(to_write, true).expect("opens").expect("is there").0;
    denied(writing.get(&wanted).remove(0));
    denied(home.disk_usage());
    // Only what is open for changes takes them.
    assert!(writing.amend(&["web1@2026-11-21T05-54-00Z".into()], &[]).is_err());
    assert!(writing.condemn(&[id]).is_err());
    assert_eq!(keys(&writing).len(), 1);
}

#[test]
fn a_token_for_some_guests_has_those_alone() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    let own = server.token("own", Allowed::Everything, &["web*", "db1"]);
    for guest in ["web1", "db1", "db2"] {
        back_up(open(&all).expect("opens"), guest).expect("backs up");
    }
    let name = |guest: &str| format!("{guest}@2026-11-21T05-54-00Z");
    let note = |name: &str| Note {
        name: name.into(),
        value: Some(b"{}".to_vec()),
    };
    let everything = manager(&open(&all).expect("opens"));
    let notes = [note(&format!("backup/{}", name("db2"))), note("rotation")];
    everything.amend(&[], &notes).expect("notes");

    back_up(open(&own).expect("opens"), "web2").expect("backs up");
    denied(back_up(open(&own).expect("opens"), "db2x"));
    let home = open(&own).expect("opens");
    assert_eq!(
        keys(&*home.read().expect("reads").store),
        ["db1", "web1", "web2"].map(name)
    );
    let store = manager(&home);
    assert_eq!(keys(&store), ["db1", "web1", "web2"].map(name));
    assert_eq!(store.notes().expect("lists"), []);
    assert_eq!(store.listing(true).expect("lists").notes, []);
    store
        .amend(&[], &[note(&format!("backup/{}", name("db1")))])
        .expect("notes");
    assert_eq!(store.notes().expect("lists").len(), 1);

    // A hostile client sends what it likes.
    let record = |key: String, guest: &str| Record {
        key,
        bytes: serde_json::to_vec(&record_of(guest)).expect("JSON"),
    };
    denied(store.commit(&record(name("db3"), "db3")));
    assert!(
        store.commit(&record(name("web3"), "db3")).is_err(),
        "another guest inside"
    );
    denied(store.commit_at(&record(name("web4"), "web4"), &notes[..1], None));
    denied(store.amend(&[name("web1"), name("db2")], &[]));
    denied(store.amend(&[], &notes[..1]));
    denied(store.amend(&[], &notes[1..]));
    denied(store.condemn(&[BlockId([1; 32])]));
    denied(store.pardon(&[BlockId([1; 32])]));
    denied(store.survey(&mut |_, _| Ok(())));
    let pruning = home.manage("prune", &mut |_| false).expect("opens");
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    denied(
        pruning
            .keeper
            .prune(options, &AtomicBool::new(false), &|_| ())
            .expect("is done there"),
    );
    assert_eq!(keys(&everything), ["db1", "db2", "web1", "web2"].map(name));
    store.amend(&[name("web1")], &[]).expect("is its own");
    assert_eq!(keys(&everything), ["db1", "db2", "web2"].map(name));
}

#[test]
fn a_server_of_several_leads_only_to_directories_right_below_it() {
    let opens = |path: &Path| Ok(Arc::new(Directory::open(path)?) as Arc<dyn Home>);
    let server = Fixture::start(|root| Served::Below(root.join("all")), Box::new(opens));
    let root = server.root.join("all");
    std::fs::create_dir(&root).expect("makes");
    let make =
        |path: &Path| drop(Repository::create(path, &CreateOptions::plain(BlockSize::DEFAULT)).expect("creates"));
    make(&root.join("shop"));
    make(&server.root.join("outside"));
    std::os::unix::fs::symlink(server.root.join("outside"), root.join("link")).expect("links");
    let token = |path: &Path, name| server.token_for(path, Some(name), "web", Allowed::Everything, &[]);
    let shop = token(&root.join("shop"), "shop");
    back_up(open(&shop).expect("opens"), "web1").expect("backs up");
    let outside = token(&server.root.join("outside"), "link");
    let answer = refusal(&outside);
    assert!(answer.contains("does not accept"), "{answer}");
    let at = |name: Option<&str>, token: &Token| {
        let token = Token {
            repository: name.map(str::to_owned),
            ..token.clone()
        };
        let address = VbkAddress {
            repository: None,
            ..token.address()
        };
        let opened = Tls {
            address,
            token,
            lanes: LaneOptions::default(),
            bandwidth: Bandwidth::default(),
        }
        .open(Again::never());
        opened.expect_err("is refused").to_string().replace("/link", "")
    };
    for (name, token) in [
        (Some("../outside"), &outside),
        (Some(".."), &outside),
        (Some("all/shop"), &shop),
        (Some("nothing"), &shop),
        (None, &shop),
    ] {
        assert_eq!(at(name, token), answer.replace("/link", ""), "{name:?}");
    }
    assert!(open(&shop).is_ok());
}

#[test]
fn a_token_for_guests_of_an_encrypted_repository_opens_nothing() {
    let opens = |path: &Path| Ok(Arc::new(Directory::open(path)?) as Arc<dyn Home>);
    let server = Fixture::start(|root| Served::One(root.join("sealed")), Box::new(opens));
    let path = server.root.join("sealed");
    let keys = Keys::generate().expect("random");
    let options = CreateOptions {
        encryption: Some((keys, vec![("key-file".into(), Unlock::KeyFile(vec![b'7'; 64].into()))])),
        ..CreateOptions::plain(BlockSize::DEFAULT)
    };
    drop(Repository::create(&path, &options).expect("creates"));
    let token = |name, guests: &[&str]| server.token_for(&path, None, name, Allowed::Everything, guests);
    assert!(open(&token("all", &[])).is_ok());
    assert!(denied(open(&token("some", &["web*"]))).contains("encrypted"));
}

#[test]
fn what_is_not_a_client_does_no_harm() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let ask = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(server.address).expect("connects");
        stream.write_all(bytes).expect("sends");
        let mut answer = Vec::new();
        // Closed with bytes that were not read, it is a reset.
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let garbage: Vec<u8> = (0..60_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &garbage,
        // A record of a handshake that claims to be long.
        b"\x16\x03\x01\x40\x00\x01\x00\xff\xff\xff",
        b"",
    ] {
        let answer = ask(bytes);
        assert!(answer.len() < 100 && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    assert!(open(&token).is_ok());
}

#[test]
fn clients_without_a_key_or_with_another_protocol_are_not_let_in() {
    let server = Fixture::one();
    let good = super::config(&server.key).expect("a configuration");
    assert!(good.alpn_protocols == [b"vbk/1".to_vec()] && good.max_early_data_size == 0);
    let connect = |alpn: &[u8], with_key: bool| {
        let token = server.token(&format!("t{}{with_key}", alpn.len()), Allowed::Everything, &[]);
        let mut config = crate::client::config(&token).expect("a configuration");
        config.alpn_protocols = vec![alpn.to_vec()];
        if !with_key {
            config.client_auth_cert_resolver =
                Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(Arc::new(
                    rustls::sign::CertifiedKey::new(Vec::new(), Arc::clone(&token.seed.certified().key)),
                )));
        }
        let name = rustls::pki_types::ServerName::try_from("x").expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut stream = TcpStream::connect(server.address).expect("connects");
        let mut tls = rustls::Stream::new(&mut client, &mut stream);
        // The server's refusal of a key comes after the client's half of the handshake.
        let sent = tls.write_all(b"\0vbk\0wir\x01");
        let mut answer = [0; 8];
        sent.and_then(|()| tls.read_exact(&mut answer)).map(|()| answer)
    };
    assert_eq!(connect(b"vbk/1", true).expect("is let in"), *b"vbk\0wir\x01");
    assert!(connect(b"vbk/1", false).is_err());
    assert!(connect(b"h2", true).is_err());
}

/// The public key of one seed with the private key of another.
fn forged(shown: &Seed, own: &Seed) -> Arc<rustls::sign::CertifiedKey> {
    let key = Arc::clone(&own.certified().key);
    Arc::new(rustls::sign::CertifiedKey::new(shown.certified().cert.clone(), key))
}

#[test]
fn a_key_that_is_shown_must_be_proved() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let thief = Seed::generate().expect("random");
    let name = || rustls::pki_types::ServerName::try_from("x").expect("a name");

    // A client that knows the public key of a token.
    let mut config = crate::client::config(&token).expect("a configuration");
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(forged(&token.seed, &thief));
    config.client_auth_cert_resolver = Arc::new(resolver);
    let mut client = rustls::ClientConnection::new(Arc::new(config), name()).expect("a client");
    let mut stream = TcpStream::connect(server.address).expect("connects");
    let mut tls = rustls::Stream::new(&mut client, &mut stream);
    let sent = tls.write_all(b"\0vbk\0wir\x01");
    let error = sent.and_then(|()| tls.read_exact(&mut [0; 8])).expect_err("is refused");
    assert!(error.to_string().contains("DecryptError"), "{error}");
    assert_eq!(Tokens::of(&server.root).last_seen("web"), None);

    // A server that knows the public key of another.
    let mut config = super::config(&thief).expect("a configuration");
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(forged(&server.key, &thief));
    config.cert_resolver = Arc::new(resolver);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    let between = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut tls = rustls::ServerConnection::new(Arc::new(config)).expect("a server");
        let mut said = Vec::new();
        let _ = rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut said);
        said
    });
    let refused = refusal(&Token { port, ..token });
    assert!(refused.contains("BadSignature"), "{refused}");
    assert_eq!(between.join().expect("ends"), [0; 0], "nothing was sent to it");
}

#[test]
fn after_many_failed_proofs_an_address_is_not_heard() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let unknown = Token {
        seed: Seed::generate().expect("random"),
        ..token.clone()
    };
    let answers: Vec<_> = (0..25).map(|_| refusal(&unknown)).collect();
    let is_answer = |answer: &String| answer.contains("does not accept this token");
    assert_eq!(answers.iter().filter(|answer| is_answer(answer)).count(), 20);
    let closed = answers.last().expect("some");
    assert!(closed.contains("too many failed tries"), "{closed}");
    assert!(refusal(&token).contains("too many failed tries"));
}

#[test]
fn one_token_can_not_take_all_places() {
    let server = Fixture::one();
    let (greedy, other) = (
        server.token("greedy", Allowed::Read, &[]),
        server.token("other", Allowed::Read, &[]),
    );
    let mut held: Vec<_> = (0..super::MAX_SESSIONS)
        .map(|_| open(&greedy).expect("opens"))
        .collect();
    let refused = open(&greedy).expect_err("is refused");
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    // These are no failed proofs, after which nothing more would be heard from here.
    for _ in 0..30 {
        assert_eq!(open(&greedy).expect_err("is refused").kind(), ErrorKind::Unavailable);
    }
    assert!(open(&other).is_ok());
    held.pop();
    // The server notices soon that one is gone.
    while open(&greedy).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_that_stalls_is_dropped() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    // Nothing, and the start of a handshake.
    for bytes in [&b""[..], b"\x16\x03\x01\x01\x00\x01"] {
        let mut stream = TcpStream::connect(server.address).expect("connects");
        stream.write_all(bytes).expect("sends");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("is set");
        let mut byte = [0];
        let ended = stream.read(&mut byte);
        assert!(
            !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "it is still open"
        );
        assert!(!matches!(ended, Ok(1)));
    }
    assert!(open(&token).is_ok());
}

#[test]
fn ten_thousand_connections_of_one_address_keep_no_other_out() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let from_elsewhere = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let elsewhere: SocketAddr = "127.0.0.2:0".parse().expect("an address");
        socket.bind(&elsewhere.into())?;
        socket.connect(&server.address.into())?;
        Ok::<_, std::io::Error>(socket)
    };
    // All are silent; the last ones are open at the same time.
    let mut held = std::collections::VecDeque::new();
    for number in 1..=10_000 {
        held.extend(from_elsewhere());
        if held.len() > 400 {
            held.pop_front();
        }
        if number % 2500 == 0 {
            back_up(open(&token).expect("opens"), &format!("web{number}")).expect("backs up");
        }
    }
    assert_eq!(held.len(), 400);
}

#[test]
fn a_token_and_an_address_of_different_repositories_are_noticed() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Everything, &[]);
    let named = VbkAddress {
        repository: Some("shop".into()),
        ..token.address()
    };
    for (address, token) in [
        (named.clone(), token.clone()),
        (
            named,
            Token {
                repository: Some("other".into()),
                ..token
            },
        ),
    ] {
        let error = Tls {
            address,
            token,
            lanes: LaneOptions::default(),
            bandwidth: Bandwidth::default(),
        }
        .open(Again::never())
        .expect_err("differ");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[test]
fn what_a_client_forgets_stays_in_the_bin_for_the_time_of_the_policy() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    let kept_for = || {
        let home = open(&all).expect("opens");
        let forgotten = manager(&home).forgotten().expect("lists");
        let last = forgotten.last().expect("is there");
        last.kept_until.duration_since(last.removed).as_secs()
    };
    let name = || vec!["web1@2026-11-21T05-54-00Z".to_owned()];
    let short = Policy {
        bin_secs: 3,
        ..Policy::default()
    };
    for (policy, secs) in [(None, 7 * 86400), (Some(short), 3)] {
        if let Some(policy) = policy {
            policy.save(&server.root).expect("saves");
        }
        back_up(open(&all).expect("opens"), "web1").expect("backs up");
        let home = open(&all).expect("opens");
        let store = manager(&home);
        // What a client asks for does not count.
        store.set_terms(Terms::default());
        store.amend(&name(), &[]).expect("forgets");
        assert_eq!(kept_for(), secs);
    }
    let home = open(&all).expect("opens");
    let session = home.manage("test", &mut |_| false).expect("opens");
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: true,
    };
    let pruned = session.keeper.prune(options, &AtomicBool::new(false), &|_| {});
    denied(pruned.expect("is pruned there"));
    // A policy that can't be read allows nothing.
    std::fs::write(server.root.join("serve/policy.json"), "{").expect("writes");
    assert!(home.manage("test", &mut |_| false).is_err());
}

#[test]
fn a_client_forgets_no_backup_before_the_age_of_the_policy() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    back_up(open(&all).expect("opens"), "web1").expect("backs up");
    let name = || vec!["web1@2026-11-21T05-54-00Z".to_owned()];
    let set = |min_age_secs| {
        let policy = Policy {
            min_age_secs,
            ..Policy::default()
        };
        policy.save(&server.root).expect("saves");
    };
    set(3600);
    let home = open(&all).expect("opens");
    let store = manager(&home);
    // What counts is the time of the commit, and not that of the record.
    let refused = denied(store.amend(&name(), &[]));
    assert!(
        refused.contains("after 1 hours") && refused.contains("web1@"),
        "{refused}"
    );
    let note = Note {
        name: format!("backup/{}", name()[0]),
        value: Some(b"{}".to_vec()),
    };
    store.amend(&[], &[note]).expect("notes are no removal");
    assert_eq!(keys(&store).len(), 1);
    set(0);
    store.amend(&name(), &[]).expect("forgets");
    assert_eq!(keys(&store).len(), 0);
}

#[test]
fn times_of_a_client_that_only_adds_are_not_believed() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    let backup = server.token("backup", Allowed::Add, &[]);
    back_up(open(&all).expect("opens"), "web1").expect("backs up");
    back_up(open(&backup).expect("opens"), "web2").expect("backs up");
    for token in [&all, &backup] {
        let view = Repository::at(Arc::new(open(token).expect("opens")))
            .view()
            .expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let times = catalogue.entries().iter().map(|entry| {
            let received = catalogue.received(&entry.backup).expect("is known");
            let age = Timestamp::now().duration_since(received.time).as_secs();
            assert!((0..600).contains(&age), "{age}");
            let own_counts = catalogue.counted_time(&entry.backup) == entry.backup.time;
            (entry.backup.guest.to_string(), received.is_doubted, own_counts)
        });
        let expected = [("web1".to_owned(), false, true), ("web2".to_owned(), true, false)];
        assert_eq!(times.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_client_that_only_adds_changes_no_notes_with_a_backup() {
    let server = Fixture::one();
    let backup = server.token("backup", Allowed::Add, &[]);
    let home = open(&backup).expect("opens");
    let store = home.opened(to_write, true).expect("opens").expect("is there").0;
    let record = Record {
        key: "web1@2026-11-21T05-54-00Z".into(),
        bytes: record_of("web1").encode(),
    };
    let note = Note {
        name: "backup/web2@2026-11-21T05-54-00Z".into(),
        value: None,
    };
    denied(store.commit_at(&record, &[note], None));
    store.commit(&record).expect("commits");
}

#[test]
fn a_block_that_is_whole_is_not_condemned_for_a_client() {
    let server = Fixture::one();
    let all = server.token("all", Allowed::Everything, &[]);
    let id = back_up(open(&all).expect("opens"), "web1").expect("backs up");
    let home = open(&all).expect("opens");
    let store = manager(&home);
    store.condemn(&[id, BlockId([9; 32])]).expect("is looked at");
    assert_eq!(store.condemned().expect("lists"), []);
}

#[test]
fn a_token_adds_no_more_in_a_day_than_its_quota() {
    let server = Fixture::one();
    let token = server.token("web", Allowed::Add, &[]);
    let tokens = Tokens::of(&server.root);
    let with = |quota| {
        let entry = tokens.get("web").expect("reads").expect("is there");
        tokens.revoke("web").expect("revokes");
        tokens.add(&TokenEntry { quota, ..entry }).expect("adds");
    };
    with(Quota {
        backups_per_day: Some(2),
        bytes_per_day: Some(250_000),
    });
    for guest in ["web1", "web22"] {
        back_up(open(&token).expect("opens"), guest).expect("backs up");
    }
    let refused = back_up(open(&token).expect("opens"), "web333")
        .expect_err("bytes")
        .to_string();
    assert!(refused.contains("244 KiB a day"), "{refused}");
    with(Quota {
        backups_per_day: Some(2),
        bytes_per_day: None,
    });
    let refused = back_up(open(&token).expect("opens"), "web333")
        .expect_err("backups")
        .to_string();
    assert!(refused.contains("2 backups a day"), "{refused}");
}
