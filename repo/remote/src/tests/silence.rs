//! Connections on which nothing comes any more, by a clock that is set forward.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use vbk_repo::block::BlockSize;

use super::again::put_backup;
use super::line::{Line, until};
use super::memory;
use crate::client::RemoteHome;
use crate::message::{Ask, Hello, PROTOCOL};
use crate::server::{Allowed, serve};
use crate::wire::{Channel, Kind, Message, Outbox, PREAMBLE, write_all};
use crate::{DEAD_AFTER, PING_INTERVAL};
use vbk_repo::repository::home::Home;

#[test]
fn a_server_ends_the_session_of_a_silent_client_and_is_not_silent_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let home = memory(BlockSize::DEFAULT);
    let (here, there) = tokio::io::duplex(100_000);
    let hello = Ask::Hello(Hello {
        protocol: (PROTOCOL, PROTOCOL),
        program: "test".into(),
    });
    let greeting = Outbox::new(0);
    let question = Message {
        head: postcard::to_stdvec(&hello).expect("plain data"),
        ..Message::empty(Kind::Ask)
    };
    greeting.send(Channel::Control, question);
    greeting.close();
    runtime.block_on(async {
        let (read, write) = tokio::io::split(there);
        let started = Instant::now();
        let client = async {
            let (mut read, mut write) = tokio::io::split(here);
            write.write_all(&PREAMBLE).await.expect("sends");
            write_all(&greeting, &mut write).await.expect("sends");
            let (mut last, mut longest, mut said) = (Instant::now(), Duration::ZERO, Vec::new());
            let mut bytes = [0; 1000];
            loop {
                let count = read.read(&mut bytes).await.expect("reads");
                longest = longest.max(last.elapsed());
                last = Instant::now();
                said.extend(&bytes[..count]);
                if count == 0 {
                    return (longest, String::from_utf8_lossy(&said).into_owned());
                }
            }
        };
        let (served, (longest, said)) = tokio::join!(serve(&home, Allowed::Everything, read, write), client);
        let error = served.expect_err("was silent");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(said.contains("silent for too long"), "{said}");
        assert!(started.elapsed() >= DEAD_AFTER && started.elapsed() < DEAD_AFTER + PING_INTERVAL);
        // What stands between and ends connections without traffic for 30 s, ends none.
        assert!(longest <= PING_INTERVAL, "{longest:?}");
    });
}

#[test]
fn a_server_ends_the_session_of_a_client_that_asks_and_does_not_read() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let home = memory(BlockSize::DEFAULT);
    let (here, there) = tokio::io::duplex(1000);
    runtime.block_on(async {
        let (read, write) = tokio::io::split(there);
        let started = Instant::now();
        let client = async {
            let (read, mut write) = tokio::io::split(here);
            let _not_read = read;
            write.write_all(&PREAMBLE).await.expect("sends");
            // It lives, and says so.
            loop {
                let pings = Outbox::new(0);
                (0..100).for_each(|_| pings.send(Channel::Control, Message::empty(Kind::Ping)));
                pings.close();
                let sent = tokio::time::timeout(PING_INTERVAL, write_all(&pings, &mut write)).await;
                if matches!(sent, Ok(Err(_))) {
                    return;
                }
                tokio::time::sleep(PING_INTERVAL).await;
            }
        };
        let served = tokio::select! {
            served = serve(&home, Allowed::Everything, read, write) => served,
            () = client => panic!("the server takes nothing any more, and does not end"),
        };
        let error = served.expect_err("did not read").to_string();
        assert!(error.contains("does not read its answers"), "{error}");
        assert!(started.elapsed() < 3 * DEAD_AFTER, "{:?}", started.elapsed());
    });
}

#[test]
fn what_was_acknowledged_is_not_sent_again() {
    let home = memory(BlockSize::DEFAULT);
    let line = Line::new(home);
    let again = Duration::from_secs(3600);
    let client: RemoteHome = line.client(again).expect("connects");
    let session = client.write("backup", &mut |_| false).expect("opens");
    let store = &*session.store;
    let put = |seeds: std::ops::Range<u8>| {
        for seed in seeds {
            store.put(vec![super::sealed(seed)]).expect("puts");
        }
    };
    put(0..20);
    store.flush().expect("flushes");
    let acknowledged = line.up_bytes.load(Ordering::SeqCst);
    assert!(acknowledged > 20 << 20);
    // Answered, but not flushed.
    put(20..25);
    until("they have arrived", || client.put_bytes() == 0);
    let answered = line.up_bytes.load(Ordering::SeqCst);
    for told in [2, 4] {
        line.cut();
        until("it is back", || line.told.lock().len() == told);
    }
    store.commit(&put_backup(store, "web1", 1)).expect("commits");
    let sent = line.up_bytes.load(Ordering::SeqCst) - answered;
    assert!(sent < 20_000, "{sent} bytes again");
    drop(session);
}
