//! Connections to the server, one after the other, as long as the link is used.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use vbk_repo::ErrorKind;
use vbk_repo::store::Identity;

use super::again::{Again, Moment, longer, scattered};
use super::gate::GATE;
use super::state::{REOPEN, Shared, decode, encode, invalid, question, unreachable};
use crate::message::{Answer, Ask, Fault, Hello, OLDEST_PROTOCOL, PROTOCOL};
use crate::wire::{Channel, Kind, Limits, Message, MessageReader, Outbox, PREAMBLE, ping, read_preamble, write_all};
use crate::{DEAD_AFTER, PING_INTERVAL};

/// Time for the first answer. A user may have to type a password meanwhile.
pub(super) const WELCOME_WITHIN: Duration = Duration::from_secs(120);
/// Time between two looks whether the caller wants to stop.
const STOP_POLL: Duration = Duration::from_millis(100);
/// Time between two tries to get the lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(500);
/// Time for what the server says after the last question, or after a failed write.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// End of a connection, or of the try to make one.
enum End {
    /// Nobody has a question any more.
    Closed,
    Lost(String),
    /// Not to be tried again.
    Over(Fault),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// The time since a connection was lost.
struct Outage {
    until: Instant,
    pause: Duration,
    reason: String,
}

/// Connects, and again when a connection is lost.
pub(super) async fn keep<R, W, C>(shared: Arc<Shared>, again: Again, connect: Arc<C>)
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    C: Fn() -> io::Result<(R, W)> + Send + Sync + 'static,
{
    let name = &shared.name.display().to_string();
    let waits = AtomicBool::new(false);
    let mut outage: Option<Outage> = None;
    let mut is_first = true;
    loop {
        let until = outage.as_ref().map(|outage| outage.until);
        let is_back = || {
            if !std::mem::take(&mut is_first) {
                again.tell(Moment::Back, name);
            }
        };
        let is_locked = |fault: &Fault| {
            if let Fault::Locked(holder) = fault
                && !waits.swap(true, Ordering::Relaxed)
            {
                again.tell(Moment::Waits(holder), name);
            }
        };
        let started = Instant::now();
        let end = tokio::select! {
            end = connection(&shared, &connect, &is_locked, is_back) => end,
            end = stopped(&shared, &again, until, &waits) => end,
        };
        // Somebody was there, so the time counts from now.
        if waits.swap(false, Ordering::Relaxed) {
            outage = None;
        }
        let reason = match end {
            End::Closed => return,
            End::Over(fault) => return shared.end(fault),
            End::Lost(reason) => reason,
        };
        let was_of_use = shared.lose(&reason);
        if shared.is_closed() {
            return;
        }
        if is_first {
            return shared.end(unreachable(&shared.name, &reason));
        }
        if again.reconnect_for.is_zero() {
            let lost = format!("the connection to {name} is lost: {reason}");
            return shared.end(Fault::Other(ErrorKind::Unavailable, lost));
        }
        if let Some(was_of_use) = was_of_use {
            again.tell(Moment::Lost(&reason), name);
            // A server that ends each time when it gets a question is not tried for ever.
            if was_of_use || started.elapsed() > PING_INTERVAL {
                outage = None;
            }
        }
        let outage = outage.get_or_insert_with(|| Outage {
            until: Instant::now() + again.reconnect_for,
            pause: again.first_pause,
            reason: String::new(),
        });
        outage.reason = reason;
        let end = tokio::select! {
            () = sleep(scattered(outage.pause)) => None,
            end = stopped(&shared, &again, Some(outage.until), &waits) => Some(end),
        };
        outage.pause = longer(outage.pause);
        match end {
            Some(End::Over(fault)) => return shared.end(fault),
            Some(End::Closed) => return,
            _ => {}
        }
        if Instant::now() >= outage.until {
            let lost = again.words(Moment::GivenUp(&outage.reason), name);
            return shared.end(Fault::Other(ErrorKind::Unavailable, lost));
        }
    }
}

/// Waits until it makes no sense any more to wait for a connection. A server that waits for a lock is there: `waits` has no limit.
async fn stopped(shared: &Shared, again: &Again, until: Option<Instant>, waits: &AtomicBool) -> End {
    loop {
        sleep(STOP_POLL).await;
        if shared.is_up() {
            continue;
        }
        if shared.is_closed() {
            return End::Closed;
        }
        if again.is_stopped() {
            return End::Over(Fault::Other(ErrorKind::Interrupted, String::new()));
        }
        if until.is_some_and(|until| Instant::now() >= until) && !waits.load(Ordering::Relaxed) {
            return End::Lost("the server does not answer".to_owned());
        }
    }
}

/// Makes a connection and moves what goes over it, to its end. `is_up` is called when it can be used, and `is_locked` when another
/// process holds the lock of the repository.
async fn connection<R, W, C>(
    shared: &Shared,
    connect: &Arc<C>,
    is_locked: &(dyn Fn(&Fault) + Sync),
    is_up: impl FnOnce(),
) -> End
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
    C: Fn() -> io::Result<(R, W)> + Send + Sync + 'static,
{
    let connect = Arc::clone(connect);
    let (read, write) = match tokio::task::spawn_blocking(move || connect()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(error)) => return error.into(),
        Err(error) => return End::Lost(error.to_string()),
    };
    // The window bounds what waits in it.
    let outbox = Arc::new(Outbox::telling(usize::MAX, || GATE.change()));
    // It has the stream, and closes it with its own end.
    let writing = async {
        let mut write = write;
        write.write_all(&PREAMBLE).await?;
        write_all(&outbox, &mut write).await?;
        write.shutdown().await
    };
    let reading = read_all(shared, read, &outbox, is_locked, is_up);
    let pings = ping(&outbox);
    tokio::pin!(reading);
    tokio::select! {
        end = &mut reading => end,
        written = writing => match (timeout(LAST_WORDS, reading).await, written) {
            (_, Ok(())) => End::Closed,
            // The reader knows more: the server's last words.
            (Ok(end), Err(_)) => end,
            (Err(_), Err(error)) => error.into(),
        },
        end = pings => end,
    }
}

/// Reads from the preamble to the end.
async fn read_all(
    shared: &Shared,
    mut read: impl AsyncRead + Unpin,
    outbox: &Arc<Outbox>,
    is_locked: &(dyn Fn(&Fault) + Sync),
    is_up: impl FnOnce(),
) -> End {
    // Goes with the preamble: nothing that the server says first changes it.
    let hello = Ask::Hello(Hello {
        protocol: (OLDEST_PROTOCOL, PROTOCOL),
        program: concat!("vbk ", env!("CARGO_PKG_VERSION")).to_owned(),
    });
    outbox.send(Channel::Control, question(0, encode(&hello), Vec::new()));
    let noise = match timeout(WELCOME_WITHIN, read_preamble(&mut read)).await {
        Ok(Ok(noise)) => noise,
        Ok(Err(error)) => return error.into(),
        Err(_) => return silent(WELCOME_WITHIN).into(),
    };
    if !noise.is_empty() {
        tracing::debug!(
            "before its greeting the server says: {}",
            String::from_utf8_lossy(&noise).trim()
        );
    }
    let mut reader = MessageReader::new(read, Limits::PEER);
    if let Err(end) = begin(shared, &mut reader, outbox, is_locked).await {
        return end;
    }
    is_up();
    match listen(shared, &mut reader, outbox).await {
        Ok(()) => End::Lost("the server closed it".to_owned()),
        // It would break it again.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => End::Over(Fault::Other(
            ErrorKind::Internal,
            format!("the connection to {} is lost: {error}", shared.name.display()),
        )),
        Err(error) => error.into(),
    }
}

/// Waits for the answer to the greeting, opens the stores that were open, and asks all that has no answer yet.
async fn begin(
    shared: &Shared,
    reader: &mut MessageReader<impl AsyncRead + Unpin>,
    outbox: &Arc<Outbox>,
    is_locked: &(dyn Fn(&Fault) + Sync),
) -> Result<(), End> {
    let other = |what: &str| {
        let message = format!(
            "the connection to {} was lost, and another repository answers there now: {what}; nothing was written to it",
            shared.name.display()
        );
        End::Over(Fault::Other(ErrorKind::Invalid, message))
    };
    let is_first = !shared.is_greeted();
    match answer(reader, outbox, 0).await? {
        Answer::Welcome(welcome) => shared.greeted(welcome).map_err(other)?,
        Answer::Failed(fault) if is_first => return Err(End::Over(fault)),
        Answer::Failed(fault) => return Err(refused(shared, fault)),
        _ => return Err(End::Lost("the server did not greet".to_owned())),
    }
    let stores = shared.stores();
    for store in &stores {
        loop {
            outbox.send(Channel::Control, question(REOPEN, store.head.clone(), Vec::new()));
            match answer(reader, outbox, REOPEN).await? {
                Answer::Opened { identity, .. } if is_same(&identity, &store.identity) => break,
                Answer::Opened { .. } => return Err(other("its identity is not the same")),
                Answer::Nothing => return Err(End::Lost("the newest snapshot can't be read".to_owned())),
                Answer::Failed(fault @ Fault::Locked(_)) => {
                    is_locked(&fault);
                    sleep(LOCK_POLL).await;
                }
                Answer::Failed(fault) => return Err(refused(shared, fault)),
                _ => return Err(invalid("an answer to another question than for a store").into()),
            }
        }
    }
    shared.use_connection(outbox, &stores);
    Ok(())
}

/// Returns whether two answers tell of one repository.
fn is_same(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(serde_json::from_str::<Identity>);
    matches!((one, other), (Ok(one), Ok(other)) if one.is_of_same(&other))
}

/// Tells what may pass from what stays.
fn refused(shared: &Shared, fault: Fault) -> End {
    let error = fault.clone().into_error(&shared.name);
    match error.kind() {
        // A server whose disk is not mounted yet does not find the repository.
        ErrorKind::Unavailable | ErrorKind::Locked | ErrorKind::NotFound => End::Lost(error.to_string()),
        _ => End::Over(fault),
    }
}

/// Waits for the answer to the only question on the way.
async fn answer(
    reader: &mut MessageReader<impl AsyncRead + Unpin>,
    outbox: &Outbox,
    request: u32,
) -> Result<Answer, End> {
    let answered = async {
        let Some(message) = next(reader, outbox).await? else {
            return Err(End::Lost("the server closed it".to_owned()));
        };
        match (message.request, decode(&message)?) {
            (number, answer) if number == request => Ok(answer),
            // The server's last words.
            (0, answer @ Answer::Failed(_)) => Ok(answer),
            _ => Err(invalid("an answer to nothing").into()),
        }
    };
    match timeout(WELCOME_WITHIN, answered).await {
        Ok(answer) => answer,
        Err(_) => Err(silent(WELCOME_WITHIN).into()),
    }
}

/// Hands out answers until the server hangs up.
async fn listen(
    shared: &Shared,
    reader: &mut MessageReader<impl AsyncRead + Unpin>,
    outbox: &Outbox,
) -> io::Result<()> {
    while let Some(message) = next(reader, outbox).await? {
        shared.deliver(message)?;
    }
    Ok(())
}

/// The next answer; `None` when the server has closed the connection.
async fn next(reader: &mut MessageReader<impl AsyncRead + Unpin>, outbox: &Outbox) -> io::Result<Option<Message>> {
    loop {
        let message = match reader.next(DEAD_AFTER, || silent(DEAD_AFTER)).await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            // A killed server ends it in the midst of a message, and does not close TLS.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        match message.kind {
            Kind::Ping => outbox.send(Channel::Control, Message::empty(Kind::Pong)),
            Kind::Pong => {}
            Kind::Ask => return Err(invalid("a question from a server")),
            Kind::Answer => return Ok(Some(message)),
        }
    }
}

pub(super) fn silent(limit: Duration) -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("nothing was heard of the server for {} seconds", limit.as_secs()),
    )
}

#[cfg(test)]
mod tests;
