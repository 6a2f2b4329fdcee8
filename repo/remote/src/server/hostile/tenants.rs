//! What a client can see of another repository that the same server has open: nothing.

use std::sync::LazyLock;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use vbk_repo::id::NodeId;
use vbk_repo::keys::Keys;
use vbk_repo::store::encrypted::Encrypted;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{Identity, STORE_FORMAT};

use super::*;
use crate::tests::until;

/// Kind, lengths of head and body of a message.
type Shape = (u8, bool, usize, usize);

/// The bytes of both directions.
type Tap = Arc<[Mutex<Vec<u8>>; 2]>;

async fn forward(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, tap: Tap, direction: usize) {
    let mut bytes = vec![0; 8 << 10];
    while let Ok(count) = from.read(&mut bytes).await
        && count > 0
    {
        tap[direction].lock().extend(&bytes[..count]);
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Connects a client over a line that is tapped.
fn tapped(place: &Place, memory: &Arc<Memory>, rights: Allowed) -> (RemoteHome, Tap) {
    let tap = Tap::default();
    let (home, memory, taps) = (place.home(), Arc::clone(memory), Arc::clone(&tap));
    let remote = RemoteHome::connect("test".into(), Again::never(), move || {
        let (far, _) = Raw::serve(Arc::clone(&home), rights, Arc::clone(&memory));
        let (here, near) = tokio::io::duplex(CHUNK_BYTES);
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        runtime().spawn(forward(near_read, far_write, Arc::clone(&taps), 0));
        runtime().spawn(forward(far_read, near_write, Arc::clone(&taps), 1));
        Ok(tokio::io::split(here))
    });
    (remote.expect("connects"), tap)
}

fn shapes(bytes: &[u8]) -> Vec<Shape> {
    let mut reader = MessageReader::new(&bytes[PREAMBLE.len()..], Limits::PEER);
    let mut shapes = Vec::new();
    runtime().block_on(async {
        while let Ok(Some(message)) = reader.next(PATIENCE, || io::ErrorKind::TimedOut.into()).await {
            let is_ping = matches!(message.kind, Kind::Ping | Kind::Pong);
            if !is_ping {
                // The identity of the repository has the time of its making, in as many digits as that needs.
                let head = match message.head.len() {
                    110..=190 => 190,
                    len => len,
                };
                shapes.push((message.kind as u8, message.more, head, message.body.len()));
            }
        }
    });
    // Answers of several threads come in any order.
    shapes.sort_unstable();
    shapes
}

/// A block as an encrypted repository takes it.
static SEALED_BY_ITS_OWNER: LazyLock<Sealed> = LazyLock::new(|| {
    let identity = Identity {
        format: STORE_FORMAT,
        features: Identity::features_of_new(true),
        id: "owner".into(),
        block_size: BlockSize::DEFAULT,
        created: Timestamp::UNIX_EPOCH,
        key_check: None,
    };
    let below = Arc::new(MemoryStore::with_identity(identity.clone()));
    let keys = Keys::generate().expect("random bytes");
    let block = sealed(77);
    let id = block.id;
    Encrypted::new(Arc::clone(&below), &keys, &identity)
        .put(vec![block])
        .expect("puts");
    below.take(id).expect("is there")
});

fn block(is_encrypted: bool) -> Sealed {
    match is_encrypted {
        true => SEALED_BY_ITS_OWNER.clone(),
        false => sealed(77),
    }
}

fn store_it(store: &dyn StoreWriter, is_encrypted: bool) {
    match is_encrypted {
        true => store.put(vec![block(true)]).expect("puts"),
        false => drop(put_backup(store, "web1", 77)),
    }
    store.flush().expect("flushes");
}

/// The messages of a client that looks for a block in all ways, and then stores it.
fn transcript(place: &Place, memory: &Arc<Memory>, is_encrypted: bool) -> [Vec<Shape>; 2] {
    let (home, tap) = tapped(place, memory, Allowed::Everything);
    let [up, down] = {
        let session = home.manage("backup web1", &mut |_| true).expect("opens");
        let store = &*session.store;
        let block = block(is_encrypted);
        let wanted = Wanted {
            id: block.id,
            pages: 0..4,
        };
        let _ = store.locate(&[block.id]).expect("looks");
        let _ = store.get(&[wanted]);
        let _ = store.nodes(&[NodeId([5; 32])]);
        // Named by a manifest that a record names, without it.
        if !is_encrypted {
            let image = ImageWriter::create(store, BlockSize::DEFAULT, 200_000);
            image.set(BlockIndex(0), &[Some(block.id)]).expect("sets");
            let root = image.finish().expect("puts");
            let image = Image::new("vda".parse().expect("a name"), "/dev/null", 200_000, root);
            let backup = backup("web2", "2026-11-21T05-54-00Z", vec![image]);
            let record = Record {
                key: backup.spec(),
                bytes: backup.encode(),
            };
            let _ = store.commit(&record);
        }
        store_it(store, is_encrypted);
        let _ = store.condemn(&[block.id]);
        let _ = store.condemned();
        // What ends the session may be on its way when that ends.
        let taken = || [0, 1].map(|direction| shapes(&tap[direction].lock()));
        until("all is answered", || {
            let [up, down] = taken();
            up.len() == down.len()
        });
        taken()
    };
    drop(home);
    assert!(up.len() > 6 && down.len() > 6, "{up:?} {down:?}");
    [up, down]
}

#[test]
fn a_client_can_not_tell_what_another_repository_of_its_server_has() {
    for is_encrypted in [false, true] {
        let memory = Arc::new(Memory::new());
        let transcript_when = |here: bool, there: bool| {
            let [own, other] = [(); 2].map(|()| Place::new(is_encrypted));
            for (place, stores) in [(&own, here), (&other, there)] {
                // Both are open, and have done the same.
                let session = place.home().write("backup", &mut |_| true).expect("opens");
                match stores {
                    true => store_it(&*session.store, is_encrypted),
                    false => session.store.flush().expect("flushes"),
                }
            }
            // It stores plain blocks.
            let _busy = (!is_encrypted).then(|| other.honest());
            transcript(&own, &memory, is_encrypted)
        };
        let nowhere = transcript_when(false, false);
        assert_eq!(transcript_when(false, true), nowhere);
        // The comparison sees it where it may be seen.
        assert_ne!(transcript_when(true, false), nowhere);
    }
}
