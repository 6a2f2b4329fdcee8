//! Makes a repository on another host.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use vbk_repo::repository::SealedOptions;
use vbk_repo::{Error, Result};

use super::connection::{WELCOME_WITHIN, silent};
use super::link::runtime;
use super::ssh::Ssh;
use super::state::{decode, encode, question, unreachable};
use crate::DEAD_AFTER;
use crate::address::SshAddress;
use crate::message::{Answer, Ask};
use crate::wire::{Channel, Kind, Limits, MessageReader, Outbox, PREAMBLE, read_preamble, write_all};

impl Ssh {
    /// Makes a repository on another host. Durable when this returns. After a lost connection it may be there or not.
    pub fn create(&self, address: &SshAddress, options: &SealedOptions) -> Result<()> {
        let name = address.to_string();
        let name = Path::new(&name);
        let failed = |error: io::Error| unreachable(name, &error.to_string()).into_error(name);
        let asked = async {
            let (read, write) = self.spawn(address)?;
            ask(read, write, &Ask::Create(options.clone())).await
        };
        match runtime().map_err(failed)?.block_on(asked).map_err(failed)? {
            Answer::Done => Ok(()),
            Answer::Failed(fault) => Err(fault.into_error(name)),
            _ => Err(Error::Remote {
                kind: vbk_repo::ErrorKind::Internal,
                message: format!("the server of {} answered what was not asked", name.display()),
            }),
        }
    }
}

/// Asks the only question on a connection.
async fn ask(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin, ask: &Ask) -> io::Result<Answer> {
    let outbox = Outbox::new(usize::MAX);
    outbox.send(Channel::Control, question(0, encode(ask), Vec::new()));
    outbox.close();
    write.write_all(&PREAMBLE).await?;
    write_all(&outbox, &mut write).await?;
    timeout(WELCOME_WITHIN, read_preamble(&mut read))
        .await
        .map_err(|_| silent(WELCOME_WITHIN))??;
    let mut reader = MessageReader::new(read, Limits::PEER);
    loop {
        match reader.next(DEAD_AFTER, || silent(DEAD_AFTER)).await? {
            Some(message) if message.kind == Kind::Answer => return decode(&message),
            Some(_) => {}
            None => return Err(io::Error::other("the server closed the connection")),
        }
    }
}
