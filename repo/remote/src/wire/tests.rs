use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}

fn message(request: u32, len: usize) -> Message {
    Message {
        kind: Kind::Ask,
        more: request % 2 == 1,
        request,
        head: vec![request as u8; len % 100],
        body: (0..len).map(|at| (at % 251) as u8).collect(),
    }
}

async fn read_all(bytes: &[u8], limits: Limits) -> std::io::Result<Vec<Message>> {
    let mut reader = MessageReader::new(bytes, limits);
    let mut found = Vec::new();
    while let Some(message) = reader
        .next(crate::DEAD_AFTER, || std::io::ErrorKind::TimedOut.into())
        .await?
    {
        found.push(message);
    }
    Ok(found)
}

#[test]
fn messages_arrive_as_they_were_sent_and_short_ones_overtake_long_ones() {
    let outbox = Outbox::new(usize::MAX);
    let long = [message(1, 3 << 20), message(2, 0), message(3, CHUNK_BYTES - 200)];
    let short = message(4, 50);
    long.iter()
        .for_each(|message| outbox.send(Channel::Bulk, message.clone()));
    outbox.send(Channel::Control, short.clone());
    outbox.close();
    let found = runtime().block_on(async {
        let mut bytes = Vec::new();
        write_all(&outbox, &mut bytes).await.expect("writes");
        read_all(&bytes, Limits::PEER).await.expect("reads")
    });
    assert_eq!(found[0], short);
    assert_eq!(found[1..], long);
}

#[test]
fn a_stream_that_is_cut_in_a_message_is_an_error_and_not_an_end() {
    let outbox = Outbox::new(usize::MAX);
    outbox.send(Channel::Bulk, message(1, 100_000));
    outbox.close();
    runtime().block_on(async {
        let mut bytes = Vec::new();
        write_all(&outbox, &mut bytes).await.expect("writes");
        assert_eq!(read_all(&[], Limits::PEER).await.expect("an end"), []);
        for len in (1..bytes.len()).step_by(997) {
            assert!(read_all(&bytes[..len], Limits::PEER).await.is_err(), "cut after {len}");
        }
    });
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_has_arrived() {
    runtime().block_on(async {
        let mut announced = Message::empty(Kind::Ask).header().to_vec();
        announced[12..].copy_from_slice(&u32::MAX.to_le_bytes());
        for channel in [Channel::Control, Channel::Bulk] {
            let mut bytes = vec![channel.into(), 16, 0, 0];
            bytes.extend(&announced);
            let error = read_all(&bytes, Limits::PEER).await.expect_err("too long").to_string();
            assert!(error.contains("more than"), "{error}");
        }
        // A stranger has no bulk channel.
        let mut bytes = vec![1, 255, 0, 0];
        bytes.extend([0; 255]);
        assert!(read_all(&bytes, Limits::STRANGER).await.is_err());
    });
}

#[test]
fn noise_before_the_preamble_is_told() {
    runtime().block_on(async {
        let mut stream = &[b"Welcome to dc2\n", &PREAMBLE[..], b"rest"].concat()[..];
        assert_eq!(read_preamble(&mut stream).await.expect("finds it"), b"Welcome to dc2\n");
        assert_eq!(stream, b"rest");
        let mut other = &b"bash: vbk: command not found\n"[..];
        let error = read_preamble(&mut other).await.expect_err("is none").to_string();
        assert!(error.contains("command not found"), "{error}");
        assert!(read_preamble(&mut &b""[..]).await.is_err());
    });
}

#[test]
fn a_full_outbox_holds_threads_back_until_it_is_emptied_or_closed() {
    let outbox = Outbox::new(1000);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| (0..100).for_each(|number| outbox.send(Channel::Bulk, message(number, 5000))));
        let found = runtime().block_on(async {
            let (mut here, there) = tokio::io::duplex(10_000);
            let write = async {
                write_all(&outbox, &mut here).await.expect("writes");
                here.shutdown().await.expect("ends");
            };
            let read = async {
                let mut reader = MessageReader::new(there, Limits::PEER);
                for number in 0..100 {
                    let found = reader
                        .next(crate::DEAD_AFTER, || std::io::ErrorKind::TimedOut.into())
                        .await
                        .expect("reads")
                        .expect("is there");
                    assert_eq!(found.request, number);
                }
                outbox.close();
                reader
                    .next(crate::DEAD_AFTER, || std::io::ErrorKind::TimedOut.into())
                    .await
                    .expect("reads")
            };
            tokio::join!(write, read).1
        });
        assert_eq!(found, None);
        sender.join().expect("ends");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 1000 } else { 20_000 }))]

    #[test]
    fn no_bytes_make_a_reader_panic_or_take_more_than_they_are(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = runtime().block_on(read_all(&bytes, Limits::PEER));
    }

    #[test]
    fn changed_bytes_make_no_reader_panic(at in 0usize..200, to in any::<u8>(), len in 0usize..200) {
        let outbox = Outbox::new(usize::MAX);
        outbox.send(Channel::Bulk, message(7, len));
        outbox.send(Channel::Control, message(8, len / 2));
        outbox.close();
        runtime().block_on(async {
            let mut bytes = Vec::new();
            write_all(&outbox, &mut bytes).await.expect("writes");
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = read_all(&bytes, Limits::PEER).await;
        });
    }
}
