//! Reads messages from a stream.

use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::{CHUNK_BYTES, CHUNK_HEADER_BYTES, Channel, Kind, Limits, MESSAGE_HEADER_BYTES, Message, PREAMBLE};
use crate::budget::{Reserved, Share};

/// Bytes of noise before the preamble after which a stream is given up.
const MAX_NOISE: usize = 64 << 10;

/// Bytes in memory for one of a message: what is in it is taken out of it, and written into something else.
const IN_MEMORY: usize = 3;

/// Time in which a long message must arrive. What is reserved for a slower one is for others.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// Reads messages from a stream after its preamble.
pub(crate) struct MessageReader<R> {
    stream: R,
    limits: Limits,
    control: Partial,
    bulk: Partial,
    /// The budget of long messages, and what is reserved for the one that arrives.
    share: Option<Share>,
    reserved: Option<Reserved>,
}

/// What a chunk was.
enum Chunk {
    Part,
    /// The last one of a message.
    Last(Message),
    /// There is none.
    End,
}

/// The start of a message.
#[derive(Default)]
struct Partial(Vec<u8>);

impl<R: AsyncRead + Unpin> MessageReader<R> {
    pub(crate) fn new(stream: R, limits: Limits) -> Self {
        Self {
            stream,
            limits,
            control: Partial::default(),
            bulk: Partial::default(),
            share: None,
            reserved: None,
        }
    }

    /// Reserves memory for each message that is longer than a chunk, before more of it is read.
    pub(crate) fn with_share(self, share: Share) -> Self {
        Self {
            share: Some(share),
            ..self
        }
    }

    /// Takes what is reserved for the message that was read last, for as long as that is in memory.
    pub(crate) fn take_reserved(&mut self) -> Option<Reserved> {
        self.reserved.take().map(Reserved::stays)
    }

    /// Changes the limits for the messages from now on.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Returns the next complete message, and `None` at a proper end of the stream; the error `silent` makes if nothing comes for
    /// `limit`. A long message on a slow line is not silence: each of its chunks counts.
    pub(crate) async fn next(&mut self, limit: Duration, silent: impl Fn() -> Error) -> Result<Option<Message>> {
        loop {
            match timeout(limit, self.chunk()).await.map_err(|_| silent())?? {
                Chunk::End => return Ok(None),
                Chunk::Part => {}
                Chunk::Last(message) => return Ok(Some(message)),
            }
        }
    }

    async fn chunk(&mut self) -> Result<Chunk> {
        let mut header = [0; CHUNK_HEADER_BYTES];
        if self.stream.read(&mut header[..1]).await? == 0 {
            return match self.control.0.is_empty() && self.bulk.0.is_empty() {
                true => Ok(Chunk::End),
                false => Err(ErrorKind::UnexpectedEof.into()),
            };
        }
        self.stream.read_exact(&mut header[1..]).await?;
        let len = u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize;
        if len == 0 || len > CHUNK_BYTES {
            return Err(invalid(format!("a chunk of {len} bytes")));
        }
        let (partial, limit) = match header[0] {
            0 => (&mut self.control, self.limits.control),
            1 => (&mut self.bulk, self.limits.bulk),
            other => return Err(invalid(format!("channel {other}"))),
        };
        partial.check(len, limit)?;
        let before = partial.0.len();
        partial.0.resize(before + len, 0);
        self.stream.read_exact(&mut partial.0[before..]).await?;
        partial.check(0, limit)?;
        let announced = partial.announced().unwrap_or(0);
        if let (Some(share), true) = (&self.share, announced > CHUNK_BYTES && before < MESSAGE_HEADER_BYTES) {
            let reserved = share.reserve(IN_MEMORY * announced).await;
            if reserved.is_counted() {
                partial.0.reserve_exact(announced - partial.0.len());
            }
            self.reserved = Some(reserved.expires(ARRIVES_WITHIN));
        }
        Ok(partial.complete()?.map_or(Chunk::Part, Chunk::Last))
    }
}

impl Partial {
    /// An error if the message, with `more` bytes, is longer than the limit or than it said.
    fn check(&self, more: usize, limit: usize) -> Result<()> {
        let announced = self.announced().unwrap_or(0);
        let len = announced.max(self.0.len() + more);
        if len > limit.max(MESSAGE_HEADER_BYTES) {
            return Err(invalid(format!("a message of {len} bytes, more than {limit}")));
        }
        if self.0.len() >= MESSAGE_HEADER_BYTES && self.0.len() + more > announced {
            return Err(invalid("a chunk with the ends of two messages".to_owned()));
        }
        Ok(())
    }

    /// Length of the whole message, once its header is there.
    fn announced(&self) -> Option<usize> {
        let header = self.0.first_chunk::<MESSAGE_HEADER_BYTES>()?;
        let number =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        Some(MESSAGE_HEADER_BYTES + number(8) + number(12))
    }

    fn complete(&mut self) -> Result<Option<Message>> {
        if self.announced() != Some(self.0.len()) {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.0);
        let kind = match bytes[0] {
            0 => Kind::Ask,
            1 => Kind::Answer,
            2 => Kind::Ping,
            3 => Kind::Pong,
            other => return Err(invalid(format!("a message of kind {other}"))),
        };
        let more = match bytes[1..4] {
            [0, 0, 0] => false,
            [1, 0, 0] => true,
            _ => return Err(invalid("flags that this version does not know".to_owned())),
        };
        let request = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let head_bytes = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        let head = bytes[MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + head_bytes].to_vec();
        bytes.drain(..MESSAGE_HEADER_BYTES + head_bytes);
        Ok(Some(Message {
            kind,
            more,
            request,
            head,
            body: bytes,
        }))
    }
}

/// Reads up to the end of the preamble, and returns what came before it: a shell's greeting, or an error message.
pub(crate) async fn read_preamble(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let mut seen = Vec::new();
    while !seen.ends_with(&PREAMBLE) {
        let mut byte = [0];
        if seen.len() > MAX_NOISE || stream.read(&mut byte).await? == 0 {
            let start = String::from_utf8_lossy(&seen[..seen.len().min(400)]).trim().to_owned();
            return Err(match start.is_empty() {
                true => Error::new(
                    ErrorKind::UnexpectedEof,
                    "the other side closed the connection without a word",
                ),
                false => invalid(format!(
                    "the other side does not speak vbk's protocol; it says: {start}"
                )),
            });
        }
        seen.push(byte[0]);
    }
    seen.truncate(seen.len() - PREAMBLE.len());
    Ok(seen)
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl From<Channel> for u8 {
    fn from(channel: Channel) -> Self {
        channel as Self
    }
}
