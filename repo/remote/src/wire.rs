//! Messages on a stream of bytes: how they are cut, bounded and read.
//!
//! Each side starts with [`PREAMBLE`], so that a stream that is something else (the banner of a shell) is noticed. Then follow
//! chunks:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | the channel: 0 control, 1 bulk |
//! | 3 | length of the rest, at most [`CHUNK_BYTES`] |
//! | rest | the next bytes of that channel |
//!
//! A channel is a sequence of messages:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`Kind`] |
//! | 1 | 1: more answers to the same question follow |
//! | 2 | zero |
//! | 4 | number of the question, chosen by the one who asks |
//! | 4 | length of the head |
//! | 4 | length of the body |
//! | rest | the head (postcard), and the body as it is |
//!
//! Numbers are little-endian. Chunks of the two channels alternate, so a short message waits for one chunk of a long one and
//! not for all of it. What has to keep its order (puts, and the flush that covers them) uses the bulk channel.
//!
//! A reader takes no more memory than arrives, and ends the stream at a message that is longer than its [`Limits`].

mod outbox;
mod reading;

pub(crate) use outbox::{Outbox, ping, stalled, write_all};
pub(crate) use reading::{MessageReader, read_preamble};

/// The first bytes of each direction. The last but one is the version of the framing.
pub(crate) const PREAMBLE: [u8; 8] = *b"vbk\0wir\x01";

/// The most bytes of a chunk: 64 KiB take 0.5 ms at a gigabit.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

const CHUNK_HEADER_BYTES: usize = 4;
const MESSAGE_HEADER_BYTES: usize = 16;

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A question of the client.
    Ask = 0,
    /// An answer of the server.
    Answer = 1,
    /// Asks whether the other side lives; it has neither head nor body.
    Ping = 2,
    /// The answer to it.
    Pong = 3,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// More answers to the same question follow.
    pub(crate) more: bool,
    /// Number of the question.
    pub(crate) request: u32,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A message without a head and a body.
    pub(crate) fn empty(kind: Kind) -> Self {
        Self {
            kind,
            more: false,
            request: 0,
            head: Vec::new(),
            body: Vec::new(),
        }
    }

    fn header(&self) -> [u8; MESSAGE_HEADER_BYTES] {
        let mut bytes = [0; MESSAGE_HEADER_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = u8::from(self.more);
        bytes[4..8].copy_from_slice(&self.request.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.head.len() as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&(self.body.len() as u32).to_le_bytes());
        bytes
    }

    /// Length of the message on the wire, without the headers of chunks.
    pub(crate) fn len(&self) -> usize {
        MESSAGE_HEADER_BYTES + self.head.len() + self.body.len()
    }
}

/// The longest messages that a reader takes from each channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) control: usize,
    pub(crate) bulk: usize,
}

impl Limits {
    /// For a peer that has not said who it is.
    pub(crate) const STRANGER: Self = Self {
        control: 4 << 10,
        bulk: 0,
    };
    /// Afterwards. A block has 16 MiB at most, and its header less than one.
    pub(crate) const PEER: Self = Self {
        control: CHUNK_BYTES,
        bulk: 18 << 20,
    };
}

/// A channel of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Short messages, which overtake the others.
    Control = 0,
    /// Long messages, and those that keep their order.
    Bulk = 1,
}

#[cfg(test)]
mod tests;
