//! The status of a served repository, as its server tells it: its clients, its tokens, and its files.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vbk_repo::repository::Unfinished;
use vbk_repo::repository::directory::activity::Status;

/// The most clients, and the most tokens, that are named; all are counted.
pub const NAMED: usize = 500;

/// A served repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServedStatus {
    /// Program and version of the server.
    pub program: String,
    /// Its writer, views and files; `None` for a client that may see no more than itself.
    pub repository: Option<Status>,
    /// Bytes that the repository takes.
    pub used_bytes: u64,
    /// Bytes that are free for it.
    pub free_bytes: u64,
    /// Size of its file system.
    pub size_bytes: u64,
    /// The last prune; `None` of a server that is too old to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_prune: Option<LastPrune>,
    /// Stored since the newest view; `None` if that is not known, or this client may see no more than itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Unfinished>,
    /// Its clients.
    pub connected: Connected,
}

/// The last prune of a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPrune {
    /// Its end; `None` if none is recorded.
    pub at: Option<Timestamp>,
}

/// The clients of a repository, and the tokens by which others may come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Connected {
    /// Clients that are connected, the oldest connection first, [`NAMED`] at most.
    pub clients: Vec<ClientStatus>,
    /// Their number.
    pub clients_total: u64,
    /// Tokens in the order of their names, [`NAMED`] at most.
    pub tokens: Vec<TokenStatus>,
    /// Their number.
    pub tokens_total: u64,
}

/// A way on which clients come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Over TLS, with a token.
    Tls,
    /// By ssh.
    Ssh,
    /// A program of the server's machine.
    Local,
}

impl Way {
    /// The name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Ssh => "ssh",
            Self::Local => "local",
        }
    }
}

/// A connected client. A command may have several connections, and each is a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Name of its token, that of its key for ssh, or the user of a program of the server's machine.
    pub name: String,
    /// The way on which it came.
    pub way: Way,
    /// Its address, if it has one.
    pub address: Option<String>,
    /// Process id of a program of the server's machine.
    pub pid: Option<u32>,
    /// Its program and version, as it says.
    pub program: String,
    /// Time when it connected.
    pub since: Timestamp,
    /// The command for which it has the store open for writing, as it says.
    pub command: Option<String>,
    /// Bytes that it sent so far.
    pub received_bytes: u64,
    /// Bytes that it got so far.
    pub sent_bytes: u64,
    /// Bytes a second that it sent in the last seconds.
    pub received_per_second: u64,
    /// Bytes a second that it got in the last seconds.
    pub sent_per_second: u64,
    /// Bytes that it put and that would be gone if the server's machine lost its power now.
    pub backlog_bytes: u64,
    /// Questions without an answer yet.
    pub questions: u64,
}

/// A token, and its last use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// Its name.
    pub name: String,
    /// Name of its right.
    pub rights: String,
    /// A client with it is connected.
    pub is_connected: bool,
    /// Time when a client with it was last connected, to a minute; `None` if none ever was.
    pub last_seen: Option<Timestamp>,
    /// The address of that client.
    pub last_address: Option<String>,
}
