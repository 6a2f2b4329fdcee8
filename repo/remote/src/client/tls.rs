//! The way to a server over TLS 1.3. The token says which key the server has; nothing else is trusted: no authority, no host
//! name, no date.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, OtherError, SignatureScheme};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use vbk_repo::{Error, ErrorKind, Result};

use super::{Again, Bandwidth, LaneOptions, RemoteHome};
use crate::address::{DEFAULT_PORT, VbkAddress};
use crate::peer::{ALPN, Fingerprint, PublicKey, SCHEME, provider, refuse_tls12, verify_signature};
use crate::tcp;
use crate::token::Token;

/// Time for each step of connecting: the name, the connection, the handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// A server and the token for it.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The repository. Host and port count, and not those of the token: another name or a tunnel may lead there.
    pub address: VbkAddress,
    /// The token.
    pub token: Token,
    /// Limits of the connections.
    pub lanes: LaneOptions,
    /// Limit of the bytes.
    pub bandwidth: Bandwidth,
}

impl Tls {
    /// Connects to the repository.
    pub fn open(self, again: Again) -> Result<RemoteHome> {
        let refused = |message: String| Error::Remote {
            kind: ErrorKind::Invalid,
            message,
        };
        let name = self.address.to_string();
        let repository = match (&self.address.repository, &self.token.repository) {
            (Some(address), Some(token)) if address != token => {
                return Err(refused(format!(
                    "can't open {name}: the token is for the repository {token}"
                )));
            }
            (Some(_), None) => {
                return Err(refused(format!(
                    "can't open {name}: the token is for a server of one repository; write {}",
                    VbkAddress {
                        repository: None,
                        ..self.address
                    }
                )));
            }
            (_, token) => token.clone().unwrap_or_default(),
        };
        let config = Arc::new(config(&self.token).map_err(|error| refused(error.to_string()))?);
        let (address, bandwidth) = (self.address, self.bandwidth);
        let connect = Arc::new(move || {
            let connector = TlsConnector::from(Arc::clone(&config));
            // The thread may be one of the runtime's.
            let connected =
                tokio::task::block_in_place(|| Handle::current().block_on(connect(&address, &connector, &repository)));
            Ok(bandwidth.limit(connected?))
        });
        let more = Arc::clone(&connect);
        let home = RemoteHome::connect(name.clone().into(), again.clone(), move || connect())?;
        Ok(home.with_lanes(self.lanes, move || {
            let connect = Arc::clone(&more);
            RemoteHome::connect(name.clone().into(), again.clone().silent(), move || connect())
        }))
    }
}

type Halves = (ReadHalf<TlsStream<TcpStream>>, WriteHalf<TlsStream<TcpStream>>);

async fn connect(address: &VbkAddress, connector: &TlsConnector, repository: &str) -> io::Result<Halves> {
    let port = address.port.unwrap_or(DEFAULT_PORT);
    let place = match address.host.contains(':') {
        true => format!("[{}]:{port}", address.host),
        false => format!("{}:{port}", address.host),
    };
    let stream = connect_tcp(&address.host, port, &place).await?;
    // It is only for proxies on the way, which may go by it.
    let name = ServerName::try_from(address.host.clone()).or_else(|_| ServerName::try_from("vbk.invalid"));
    let handshake = connector.connect(name.map_err(io::Error::other)?, stream);
    let mut stream = timeout(CONNECT_WITHIN, handshake)
        .await
        .map_err(|_| late(&format!("{place} is connected, but has not answered the TLS handshake")))?
        .map_err(|error| explain(&place, error))?;
    let opening = [&[repository.len() as u8], repository.as_bytes()].concat();
    stream.write_all(&opening).await?;
    Ok(tokio::io::split(stream))
}

/// Connects to the first address of a name that answers.
async fn connect_tcp(host: &str, port: u16, place: &str) -> io::Result<TcpStream> {
    let found = timeout(CONNECT_WITHIN, lookup_host((host, port))).await;
    let found = found.map_err(|_| late(&format!("the address of {place} is not found")))?;
    let addresses: Vec<_> = found
        .map_err(|error| io::Error::new(error.kind(), format!("can't find the address of {place}: {error}")))?
        .collect();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{place} has no address"));
    let share = CONNECT_WITHIN / addresses.len().clamp(1, 6) as u32;
    for address in addresses {
        tracing::debug!("connecting to {address}");
        failed = match timeout(share, connect_to(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => io::Error::new(error.kind(), format!("can't connect to {address}: {error}")),
            Err(_) => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "{address} has not answered for {} s; is the server running, and does a firewall let its port through?",
                    share.as_secs()
                ),
            ),
        };
    }
    Err(failed)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    tcp::enlarge(&socket);
    let stream = socket.connect(address).await?;
    tcp::set_options(&stream);
    Ok(stream)
}

fn late(what: &str) -> io::Error {
    let text = format!("{what} for {} s", CONNECT_WITHIN.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Says what a failed handshake means.
fn explain(place: &str, error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>());
    let text = match tls {
        Some(TlsError::InvalidCertificate(CertificateError::Other(other))) => format!("{place}: {}", other.0),
        Some(TlsError::InvalidMessage(_)) => {
            format!("{place} does not speak TLS; is it the port of `vbk serve --listen`?")
        }
        Some(error) => {
            format!("{place} and this vbk don't agree in the handshake; is it `vbk serve --listen`? ({error})")
        }
        None if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) =>
        {
            format!(
                "{place} closed the connection in the handshake: too many clients, or too many failed tries from this address; \
                 try again in a minute"
            )
        }
        None => format!("{place}: {error}"),
    };
    io::Error::new(error.kind(), text)
}

pub(crate) fn config(token: &Token) -> std::result::Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned {
            fingerprint: token.fingerprint,
        }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(token.seed.certified())));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Accepts the one server whose key has the fingerprint.
#[derive(Debug)]
struct Pinned {
    fingerprint: Fingerprint,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the server there has another key (fingerprint {found}) than the token says ({expected}), so nothing was sent to it. It is \
     another server, its key was made anew, or somebody is in between. `vbk serve` prints its fingerprint when it starts; if the \
     key is new, `vbk token rotate NAME` there makes a new token"
)]
struct OtherServer {
    found: Fingerprint,
    expected: Fingerprint,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let key = PublicKey::of_spki(key).ok_or(CertificateError::BadEncoding)?;
        let (found, expected) = (key.fingerprint(), self.fingerprint);
        match found == expected {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::Other(OtherError(Arc::new(OtherServer { found, expected }))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        refuse_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        verify_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SCHEME]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
