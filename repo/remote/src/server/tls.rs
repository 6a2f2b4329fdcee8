//! Clients that come over TLS, and prove with the key of a token who they are.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1 | both | the handshake of TLS 1.3, in which each signs with its own key; so nothing can be replayed |
//! | 2 | client | the name of the repository, after its length in a byte |
//! | 3 | server | looks for the client's key among the repository's tokens |
//!
//! Any key passes the handshake: a token that is unknown, revoked or of another repository gets the same answer, after step 3.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::version::TLS13;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig, SignatureScheme,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use vbk_repo::ErrorKind;
use vbk_repo::repository::home::Home;

use super::Allowed;
use super::audit::{AuditLog, Who};
use super::clients::{Client, Listener, Served, Serving};
use super::limited::{Admission, limit};
use super::owned::Client as Entered;
use super::registry::Registered;
use super::tokens::{Entry, Finder, Tokens};
use crate::address::check_name;
use crate::message::Fault;
use crate::peer::{ALPN, PublicKey, SCHEME, Seed, provider, refuse_tls12, verify_signature};
use crate::status::Way;
use crate::tcp;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Connections at a time with one token, which must not take the places of all others.
const MAX_SESSIONS: u32 = 64;
/// Time between two looks whether a token is still what it was.
const TOKEN_POLL: Duration = Duration::from_secs(2);

/// Accepts TLS connections on one address.
pub(super) struct TlsListener {
    socket: TcpListener,
    acceptor: TlsAcceptor,
    finder: Arc<Finder>,
    sessions: Sessions,
}

/// Numbers of connections by the keys of their tokens.
type Sessions = Arc<Mutex<HashMap<PublicKey, u32>>>;

/// A connection that is counted until it is dropped.
struct Counted {
    key: PublicKey,
    sessions: Sessions,
}

impl Counted {
    /// Counts a connection, unless there are too many.
    fn new(key: PublicKey, sessions: &Sessions) -> Option<Self> {
        let mut all = sessions.lock();
        let count = all.entry(key).or_default();
        if *count >= MAX_SESSIONS {
            return None;
        }
        *count += 1;
        Some(Self {
            key,
            sessions: Arc::clone(sessions),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.sessions.lock();
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

impl TlsListener {
    /// Binds an address. Has to be called on a runtime.
    pub(super) fn bind(address: SocketAddr, key: &Seed) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // A new server can bind while connections of the one before it are dying.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        tcp::enlarge(&socket);
        Ok(Self {
            socket: socket.listen(BACKLOG)?,
            acceptor: TlsAcceptor::from(Arc::new(config(key).map_err(io::Error::other)?)),
            finder: Arc::default(),
            sessions: Arc::default(),
        })
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

fn config(key: &Seed) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key.certified())));
    // A resumed session would be the client's without a new proof.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

impl Listener for TlsListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        let (stream, address) = self.socket.accept().await?;
        tcp::set_options(&stream);
        tcp::restrain(&stream);
        Ok((stream, Some(address.ip())))
    }

    async fn admit(&self, stream: TcpStream, serving: &Serving) -> io::Result<Client> {
        let mut stream = self.acceptor.accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let key = shown.and_then(|spki| PublicKey::of_spki(spki));
        let key = key.ok_or_else(|| io::Error::other("the client shows no key"))?;
        let mut name = vec![0; usize::from(stream.read_u8().await?)];
        stream.read_exact(&mut name).await?;
        let (serving, finder) = (serving.clone(), Arc::clone(&self.finder));
        let address = stream.get_ref().0.peer_addr().ok().map(|address| address.ip());
        let found = tokio::task::spawn_blocking(move || find(&serving, &finder, &name, key, address));
        let found = found.await.map_err(io::Error::other)?;
        tcp::enlarge(stream.get_ref().0);
        let (read, write) = tokio::io::split(stream);
        let is_known = found.is_ok();
        let (home, allowed, registered, ended) = match found {
            Ok(Found {
                home,
                entered,
                entry,
                tokens,
                registered,
            }) => {
                let allowed = entry.rights;
                let counted = Counted::new(key, &self.sessions);
                let home = match counted {
                    Some(_) => home,
                    None => Err(Fault::Other(
                        ErrorKind::Unavailable,
                        format!("{MAX_SESSIONS} connections with this token are open already; end some of them"),
                    )),
                };
                let ended = async move {
                    let _counted = (counted, entered);
                    revoked(tokens, entry, address).await
                };
                (home, allowed, registered, Box::pin(ended) as _)
            }
            Err(refused) => {
                let ended = Box::pin(std::future::pending());
                (Err(refused), Allowed::Read, Registered::nobody(), ended as _)
            }
        };
        Ok(Client {
            is_known,
            read: Box::new(read),
            write: Box::new(write),
            home,
            allowed,
            registered,
            ended,
        })
    }
}

/// What a token opens.
struct Found {
    /// The repository as its holder may have it, or the reason for which it can't be opened.
    home: Result<Arc<dyn Home>, Fault>,
    /// As long as the holder uses a repository that this process has open.
    entered: Option<Entered>,
    entry: Entry,
    tokens: Tokens,
    registered: Registered,
}

/// Finds the repository of a name, and the token with a key for it. The error is the same for all that is unknown.
fn find(
    serving: &Serving,
    finder: &Finder,
    name: &[u8],
    key: PublicKey,
    address: Option<IpAddr>,
) -> Result<Found, Fault> {
    let unknown = || {
        let what = "the server does not accept this token: it was revoked or replaced, or is for another repository. `vbk token \
                    list` there lists those that it accepts, `vbk token add` makes a new one";
        Fault::Other(ErrorKind::Denied, what.to_owned())
    };
    let shared = &serving.shared;
    let directory = shared.served.directory(name).ok_or_else(unknown)?;
    let tokens = Tokens::of(&directory);
    let who = |name: &str| Who {
        name: name.to_owned(),
        address: address.map(|address| address.to_string()),
    };
    let Some(entry) = finder.find(&tokens, key) else {
        AuditLog::of(&directory, who("unknown")).refused("a token that is not one of this repository");
        return Err(unknown());
    };
    tokens.note_use(&entry.name, address, Timestamp::now());
    tracing::info!("token {} opens {}", entry.name, directory.display());
    let admission = Admission {
        who: who(&entry.name),
        rights: entry.rights,
        guests: entry.guests.clone(),
        is_administrator: false,
        quota: entry.quota,
    };
    let (home, entered) = serving.open(&directory);
    let home = home.and_then(|home| limit(home, &admission, Some(&directory)));
    let registered = shared.registries.enter(&directory, admission.visitor(Way::Tls));
    Ok(Found {
        home: home.map_err(|error| Fault::from(&error)),
        entered,
        entry,
        tokens,
        registered,
    })
}

impl Served {
    /// Returns the directory of a repository. Nothing but the name of a directory right below the root leads anywhere.
    fn directory(&self, name: &[u8]) -> Option<PathBuf> {
        match self {
            Self::One(directory) => name.is_empty().then(|| directory.clone()),
            Self::Below(root) => {
                let name = std::str::from_utf8(name).ok()?;
                check_name(name).ok()?;
                let directory = root.join(name);
                let is_directory = fs::symlink_metadata(&directory).is_ok_and(|metadata| metadata.is_dir());
                is_directory.then_some(directory)
            }
        }
    }
}

/// Waits until a token is not the one any more that a client was let in with.
async fn revoked(tokens: Tokens, entry: Entry, address: Option<IpAddr>) -> String {
    let name = entry.name.clone();
    loop {
        sleep(TOKEN_POLL).await;
        let (tokens, name) = (tokens.clone(), name.clone());
        let looked = tokio::task::spawn_blocking(move || {
            tokens.note_use(&name, address, Timestamp::now());
            tokens.get(&name)
        });
        let now = looked.await;
        return match now {
            Ok(Ok(Some(now))) if now == entry => continue,
            Ok(Ok(Some(_))) => format!("the token {} was changed", entry.name),
            Ok(Ok(None)) => format!("the token {} was revoked", entry.name),
            // A token that can't be read opens nothing, for new clients too.
            Ok(Err(error)) => format!("the token {} can't be read: {error}", entry.name),
            Err(error) => error.to_string(),
        };
    }
}

/// Lets in every client that proves to have the private half of the key that it shows.
#[derive(Debug)]
struct AnyKey;

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        match PublicKey::of_spki(key) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SCHEME]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
