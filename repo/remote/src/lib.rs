//! Repositories on other machines: the wire between a client and the process that has the repository open.
//!
//! A client asks, a server answers (`message.rs`). Questions are numbered, and answered in any order but for those that write,
//! which keep theirs. What travels is sealed by the client: in an encrypted repository the server sees no more than the storage
//! does (`vbk_repo::store::encrypted`), and whatever it answers is proved above ([`vbk_repo::store`]).
//!
//! | part | what it is |
//! |---|---|
//! | `wire.rs` | messages on a stream of bytes |
//! | `message.rs`, `body.rs` | questions and answers |
//! | [`server`] | answers the questions of one client |
//! | [`status`] | who is connected to a server, and what it does |
//! | [`client`] | a home ([`vbk_repo::repository::home::Home`]) that asks |
//! | [`address`] | names of repositories elsewhere |
//! | [`peer`], [`token`] | keys by which both sides of a TLS connection know each other |
//! | `tcp.rs` | options of connections |
//!
//! # Ways
//!
//! A client reaches a server by the ssh program, which starts one for this client alone ([`server::serve_stdio`]), or over TLS
//! ([`server::Server`]). The server decides by the client's key (that of `authorized_keys`, or of a token) what it may do, and
//! gives it a home that shows and takes no more (`server/limited.rs`).
//!
//! # Threads and waits
//!
//! The rest of vbk waits in threads of its own; only this crate has tasks, which move bytes and never touch a store. Each side
//! sends a ping every [`PING_INTERVAL`] and gives the other up after [`DEAD_AFTER`] without a byte, so no wait outlives a dead
//! connection by more than that.
//!
//! # Lost connections
//!
//! A client makes a lost connection again ([`client::Again`]), opens its stores on it and sends the questions that have no answer
//! yet, in their order. What the server answered counts, but for puts without a flush: another process may answer now, which
//! never had them. So a record never names what is not there:
//!
//! 1. A put that was not answered is sent again, before all that was asked later.
//! 2. Nodes that were answered on a connection that was lost are sent again before the next flush or commit.
//! 3. A flush or commit is sent only after these, and not again by itself when its connection is lost.
//! 4. Blocks are not sent again: the server proves each commit (`vbk_repo::store`), and answers with [`vbk_repo::Error::Missing`]
//!    if some are gone. So each backup learns of its own, whichever others share its connection.
//!
//! A prune is not asked again: the server ends it when it finds that its client is gone.
//!
//! # Memory
//!
//! A client has up to the server's window (64 MiB) of puts on their way, and 64 MiB of nodes that were not flushed. A server has as
//! much in its queue, 16 answers in the making and 32 MiB of finished ones, for each client. For all of them together it has
//! 96 MiB for long questions and 128 MiB for answers (`budget.rs`): while that is taken, clients wait in turn.

use std::time::Duration;

pub mod address;
mod body;
mod budget;
pub mod client;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod message;
pub mod peer;
pub mod server;
pub mod status;
mod tcp;
#[cfg(test)]
mod tests;
pub mod token;
mod wire;

/// Time between two pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Time without a byte after which a connection counts as dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);
