//! Copies of what a reader gets.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vbk_repo::backup::{Backup, Image};
use vbk_repo::block::{BlockIndex, BlockSize};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::keys::Keys;
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::{Home, StoreHome};
use vbk_repo::repository::{CreateOptions, Repository};
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Record, StoreManager, StoreReader, StoreWriter};
use vbk_repo::verify::{Scope, verify};
use vbk_repo::writer::ImageWriter;

use super::line::Line;
use super::{backup, sealed};
use crate::client::{RemoteHome, node_sum};

const BLOCKS: u8 = 4;
const LEN: u64 = (BLOCKS as u64) << 20;

/// Bytes of a listing, a greeting and the like.
const LITTLE: u64 = 20_000;

/// A host that reads a repository elsewhere, with a directory for copies.
struct Host {
    line: Arc<Line>,
    cache: tempfile::TempDir,
    keys: Option<Keys>,
}

impl Host {
    fn new(home: Arc<dyn Home>) -> Self {
        Self {
            line: Line::new(home),
            cache: tempfile::tempdir().expect("a directory"),
            keys: None,
        }
    }

    fn home(&self) -> RemoteHome {
        let client = self.line.client(Duration::ZERO).expect("connects");
        client.with_cache(Some((self.cache.path(), 1 << 30)))
    }

    /// The repository, as a new command sees it.
    fn repository(&self) -> Repository {
        let repository = Repository::at(Arc::new(self.home()));
        match &self.keys {
            Some(keys) => repository.with_keys(keys.clone()),
            None => repository,
        }
    }

    /// Opens the only image of the only backup.
    fn image(&self) -> ImageReader {
        let view = self.repository().view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let image = &catalogue.entries()[0].backup.images[0];
        ImageReader::open(view.store(), ReadResources::new(1), image).expect("opens")
    }

    /// Reads a little of each block, as a new command.
    fn read(&self) -> Vec<u8> {
        let image = self.image();
        let mut all = Vec::new();
        for block in 0..u64::from(BLOCKS) {
            let mut bytes = [0; 5000];
            assert_eq!(
                image.read_at((block << 20) + 70_000, &mut bytes).expect("reads"),
                bytes.len()
            );
            all.extend(bytes);
        }
        all
    }

    /// Returns the bytes that come from the server meanwhile.
    fn fetched(&self, run: impl FnOnce()) -> u64 {
        let bytes = || self.line.down_bytes.load(Ordering::SeqCst);
        let before = bytes();
        run();
        bytes() - before
    }

    fn copies(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.cache.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("lists").flatten() {
                match entry.file_type().expect("is known").is_dir() {
                    true => directories.push(entry.path()),
                    false => found.push(entry.path()),
                }
            }
        }
        found
    }

    /// Changes a byte of each copy, of what is read of a block, and its sum too.
    fn falsify(&self) -> Vec<PathBuf> {
        let copies = self.copies();
        for path in &copies {
            let mut bytes = std::fs::read(path).expect("reads");
            bytes.truncate(bytes.len() - 32);
            let at = bytes.len() / 10;
            bytes[at] ^= 1;
            let sum = node_sum(&bytes);
            std::fs::write(path, [&bytes[..], &sum].concat()).expect("writes");
        }
        copies
    }
}

fn plain_block(seed: u8) -> Vec<u8> {
    (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
        .collect()
}

/// Stores what a backup of blocks that do not shrink needs, and returns it.
fn store_image(store: &dyn StoreWriter) -> Backup {
    let image = ImageWriter::create(store, BlockSize::DEFAULT, LEN);
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    for number in 0..BLOCKS {
        let plain = plain_block(number);
        let hashes = store.hashing().block(&plain);
        store
            .put(vec![sealer.seal(&plain, &hashes).expect("seals")])
            .expect("puts");
        image.set(BlockIndex(number.into()), &[Some(hashes.id)]).expect("sets");
    }
    let image = Image::new(
        "vda".parse().expect("a name"),
        "/dev/vda",
        LEN,
        image.finish().expect("puts"),
    );
    backup("web1", "2026-11-29T00-00-00Z", vec![image])
}

fn expected() -> Vec<u8> {
    (0..BLOCKS)
        .flat_map(|seed| plain_block(seed)[70_000..75_000].to_vec())
        .collect()
}

/// A host, and the store of its server.
fn plain() -> (Host, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
    let backup = store_image(&*store);
    let record = Record {
        key: backup.spec(),
        bytes: backup.encode(),
    };
    store.commit(&record).expect("commits");
    let home = StoreHome::new(Arc::clone(&store)).expect("a home");
    (Host::new(Arc::new(home)), store)
}

#[test]
fn the_next_command_fetches_nothing_that_was_read_before() {
    let (host, _) = plain();
    let first = host.fetched(|| assert!(host.read() == expected()));
    assert!(first > LEN, "{first}");
    let again = host.fetched(|| assert!(host.read() == expected()));
    assert!(again < LITTLE, "{again}");
    // What reads the disk through neither takes nor makes copies.
    let restore = || {
        let image = host.image();
        let mut bytes = vec![0; 1 << 20];
        for number in 0..BLOCKS {
            image.read_block(BlockIndex(number.into()), &mut bytes).expect("reads");
            assert!(bytes == plain_block(number));
        }
    };
    assert!(host.fetched(restore) > LEN);
    let copies = host.copies();
    std::fs::remove_dir_all(host.cache.path()).expect("removes");
    std::fs::create_dir(host.cache.path()).expect("makes");
    assert!(host.fetched(restore) > LEN);
    let blocks = |paths: &[PathBuf]| {
        paths
            .iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "block"))
            .count()
    };
    assert_eq!((blocks(&copies), blocks(&host.copies())), (BLOCKS.into(), 0));
}

#[test]
fn wrong_copies_cost_time_alone_and_are_replaced() {
    let (host, _) = plain();
    check_wrong_copies(&host);
}

fn check_wrong_copies(host: &Host) {
    assert!(host.read() == expected());
    let wrong = host.falsify();
    assert_eq!(wrong.len(), usize::from(BLOCKS) + 3, "{wrong:?}");
    let contents: Vec<_> = wrong.iter().map(|path| std::fs::read(path).expect("reads")).collect();
    // Each of the first commands may find more of them.
    for _ in 0..4 {
        assert!(host.read() == expected());
    }
    for (path, wrong) in wrong.iter().zip(&contents) {
        assert!(
            std::fs::read(path).is_ok_and(|bytes| bytes != *wrong),
            "{}",
            path.display()
        );
    }
    let again = host.fetched(|| assert!(host.read() == expected()));
    assert!(again < LITTLE, "{again}");
    // Copies of another thing.
    let copies = host.copies();
    for pair in copies.chunks(2) {
        if let [one, other] = pair {
            std::fs::copy(one, other).expect("copies");
        }
    }
    for _ in 0..4 {
        assert!(host.read() == expected());
    }
    let again = host.fetched(|| assert!(host.read() == expected()));
    assert!(again < LITTLE, "{again}");
}

#[test]
fn what_was_damaged_when_it_was_copied_is_not_damaged_for_ever() {
    let (host, store) = plain();
    let id = sealed(0).id;
    let mut whole = Vec::new();
    store.damage(id, |sealed| {
        whole = sealed.pages[1].clone();
        sealed.pages[1][0] ^= 1;
    });
    let image = host.image();
    let mut bytes = [0; 100];
    assert!(image.read_at(70_000, &mut bytes).is_err());
    store.damage(id, |sealed| sealed.pages[1] = whole);
    assert_eq!(image.read_at(70_000, &mut bytes).expect("reads"), 100);
    assert!(host.read() == expected());
}

#[test]
fn a_verification_sees_the_server_and_not_the_copies() {
    let (host, store) = plain();
    let damaged = || {
        let view = host.repository().view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let never = AtomicBool::new(false);
        let report = verify(&*view.store(), catalogue.entries(), &Scope::All, 1, &|_| {}, &never).expect("verifies");
        report.bad_blocks.len() + report.bad_nodes.len()
    };
    assert!(host.read() == expected());
    let copies = host.copies();
    host.falsify();
    assert_eq!(damaged(), 0);
    host.copies()
        .iter()
        .for_each(|path| std::fs::remove_file(path).expect("removes"));
    assert_eq!(damaged(), 0);
    assert!(host.copies().is_empty());
    assert!(host.read() == expected());
    assert_eq!(host.copies().len(), copies.len());
    store.damage(sealed(0).id, |sealed| sealed.pages[1][0] ^= 1);
    assert_eq!(damaged(), 1);
    assert!(host.read() == expected(), "the copy is good");
}

#[test]
fn a_forgotten_backup_is_gone_whatever_is_copied_of_it() {
    let (host, store) = plain();
    let open = host.image();
    assert!(host.read() == expected());
    let key = store.records().expect("lists").remove(0).key;
    store.amend(&[key], &[]).expect("forgets");
    let view = host.repository().view().expect("opens");
    assert!(view.catalogue().expect("loads").entries().is_empty());
    // Who had it open reads on, as from any snapshot.
    assert_eq!(open.read_at(70_000, &mut [0; 100]).expect("reads"), 100);
}

#[test]
fn copies_of_an_encrypted_repository_are_sealed() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("repository");
    let keys = Keys::generate().expect("random");
    let options = CreateOptions {
        encryption: Some((keys.clone(), Vec::new())),
        ..CreateOptions::plain(BlockSize::DEFAULT)
    };
    let repository = Repository::create(&path, &options).expect("creates");
    {
        let manager = repository.manager("test", &mut |_| true).expect("opens");
        let backup = store_image(manager.store());
        manager.writer().commit(backup).expect("commits");
    }
    let mut host = Host::new(Arc::new(Directory::open(&path).expect("opens")));
    host.keys = Some(keys);
    assert!(host.read() == expected());
    let again = host.fetched(|| assert!(host.read() == expected()));
    assert!(again < LITTLE, "{again}");
    let plain = &plain_block(0)[70_000..70_032];
    for path in host.copies() {
        let bytes = std::fs::read(&path).expect("reads");
        assert!(
            !bytes.windows(plain.len()).any(|piece| piece == plain),
            "{}",
            path.display()
        );
    }
    check_wrong_copies(&host);
}
