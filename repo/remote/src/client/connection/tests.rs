use tokio::io::{AsyncReadExt, DuplexStream};

use super::*;
use crate::message::Welcome;

/// A server that greets, and is silent from then on. Returns the longest time in which it heard nothing.
async fn greet_only(mut there: DuplexStream) -> Duration {
    let outbox = Outbox::new(0);
    let welcome = Answer::Welcome(Welcome {
        protocol: PROTOCOL,
        program: "test".into(),
        id: None,
        key_check: None,
        window_bytes: 1 << 20,
        newest: None,
    });
    let answer = Message {
        head: postcard::to_stdvec(&welcome).expect("plain data"),
        ..Message::empty(Kind::Answer)
    };
    outbox.send(Channel::Control, answer);
    outbox.close();
    there.write_all(&PREAMBLE).await.expect("sends");
    write_all(&outbox, &mut there).await.expect("sends");
    let (mut last, mut longest, mut bytes) = (Instant::now(), Duration::ZERO, [0; 1000]);
    while there.read(&mut bytes).await.expect("reads") > 0 {
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

#[test]
fn a_client_gives_a_silent_server_up_and_is_not_silent_itself() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (here, there) = tokio::io::duplex(100_000);
        let stream = parking_lot::Mutex::new(Some(here));
        let connect = move || {
            let stream = stream.lock().take().ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(tokio::io::split(stream))
        };
        let shared = Arc::new(Shared::new("here".into()));
        let started = Instant::now();
        let kept = keep(Arc::clone(&shared), Again::never(), Arc::new(connect));
        let ((), longest) = tokio::join!(kept, greet_only(there));
        let error = shared.lock().err().expect("is over").to_string();
        assert!(
            error.contains("nothing was heard of the server for 60 seconds"),
            "{error}"
        );
        assert!(started.elapsed() >= DEAD_AFTER && started.elapsed() < DEAD_AFTER + PING_INTERVAL);
        assert!(longest <= PING_INTERVAL, "{longest:?}");
    });
}
