//! The answer to a client that asks for the status of the repository, and the same for a program of the server's machine.

use std::path::Path;

use vbk_repo::Result;
use vbk_repo::file_system::file_system;
use vbk_repo::repository::directory::activity::status_of;
use vbk_repo::repository::directory::disk_usage::disk_usage;
use vbk_repo::repository::directory::{Directory, last_prune};
use vbk_repo::repository::home::Home;
use vbk_repo::repository::{Repository, Unfinished};

use super::registry::{Registered, all_in};
use super::tokens::Tokens;
use crate::status::{ClientStatus, Connected, LastPrune, NAMED, ServedStatus, TokenStatus, Way};

/// The repository as a client may see it: one that may not see others sees itself, and the room that there is.
pub(super) fn of(home: &dyn Home, registered: &Registered) -> Result<ServedStatus> {
    let program = concat!("vbk ", env!("CARGO_PKG_VERSION")).to_owned();
    let (clients, clients_total) = registered.seen();
    let Some(directory) = registered.directory() else {
        // For tests: there is no directory.
        let used_bytes = home.newest().map(|_| 0)?;
        return Ok(ServedStatus {
            program,
            repository: None,
            used_bytes,
            free_bytes: 0,
            size_bytes: 0,
            last_prune: None,
            unfinished: None,
            connected: Connected {
                clients,
                clients_total,
                ..Connected::default()
            },
        });
    };
    let repository = match registered.sees_all() {
        true => Some(status_of(&Directory::open(directory)?)?),
        false => None,
    };
    let (used_bytes, file_system) = match &repository {
        Some(status) => (status.disk.total_bytes, status.file_system),
        None => (disk_usage(directory)?.total_bytes, file_system(directory)?),
    };
    let (tokens, tokens_total) = match registered.sees_all() {
        true => tokens_of(directory, &clients)?,
        false => (Vec::new(), 0),
    };
    Ok(ServedStatus {
        program,
        repository,
        used_bytes,
        free_bytes: file_system.free_bytes,
        size_bytes: file_system.size_bytes,
        last_prune: Some(LastPrune {
            at: last_prune(directory),
        }),
        unfinished: registered.sees_all().then(|| unfinished(directory)).flatten(),
        connected: Connected {
            clients,
            clients_total,
            tokens,
            tokens_total,
        },
    })
}

/// Returns what was stored since the newest view, if that can be told.
fn unfinished(directory: &Path) -> Option<Unfinished> {
    let repository = Repository::open(directory).ok()?;
    repository.unfinished(repository.newest_view().ok()??, &mut |_| ())
}

/// Returns the clients and the tokens of the repository in a directory of this machine: of all processes that serve it. Waits for
/// none of them.
pub fn connected(directory: &Path) -> Result<Connected> {
    let (clients, clients_total) = all_in(directory);
    // Another user than the owner may not see them.
    let (tokens, tokens_total) = tokens_of(directory, &clients).unwrap_or_default();
    Ok(Connected {
        clients,
        clients_total,
        tokens,
        tokens_total,
    })
}

fn tokens_of(directory: &Path, clients: &[ClientStatus]) -> Result<(Vec<TokenStatus>, u64)> {
    let tokens = Tokens::of(directory);
    let names = tokens.names()?;
    let total = names.len() as u64;
    // A damaged token, or one that was revoked a moment ago, lets nobody in.
    let entries = names.into_iter().filter_map(|name| tokens.get(&name).ok()?);
    let named = entries.take(NAMED).map(|entry| {
        let last = tokens.last_use(&entry.name);
        let is_of = |client: &ClientStatus| client.way == Way::Tls && client.name == entry.name;
        TokenStatus {
            is_connected: clients.iter().any(is_of),
            last_seen: last.map(|(at, _)| at),
            last_address: last.and_then(|(_, address)| address).map(|address| address.to_string()),
            rights: entry.rights.name().to_owned(),
            name: entry.name,
        }
    });
    Ok((named.collect(), total))
}
