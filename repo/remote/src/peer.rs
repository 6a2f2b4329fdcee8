//! Keys by which the two sides of a TLS connection know each other.
//!
//! Both show raw public keys (RFC 7250) and no certificates: nothing of them expires, names a host or is parsed before the
//! signature is proved. A client knows the server by the [`Fingerprint`] in its token, a server the client by the
//! [`PublicKey`] of its token.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider_of, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error as TlsError, PeerMisbehaved, SignatureScheme};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A private Ed25519 key in PKCS #8 (RFC 8410, section 7) without the seed at its end.
const PKCS8: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// A public Ed25519 key as a SubjectPublicKeyInfo (RFC 8410, section 4) without the key at its end.
const SPKI: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// Name of the protocol in the handshake (ALPN). Another server on the port is noticed by it.
pub(crate) const ALPN: &[u8] = b"vbk/1";

/// A private key: an Ed25519 seed.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(Zeroizing<[u8; 32]>);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Seed {
    /// Makes a new one.
    pub fn generate() -> io::Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        provider_of::default_provider()
            .secure_random
            .fill(&mut *seed)
            .map_err(|_| io::Error::other("the system gives no random bytes"))?;
        Ok(Self(seed))
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        let certified = self.certified();
        let spki = certified.cert.first().map(AsRef::as_ref);
        spki.and_then(PublicKey::of_spki).expect("it was made from this seed")
    }

    /// The key as rustls shows it and signs with it.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let der = Zeroizing::new([&PKCS8[..], &self.0[..]].concat());
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..])).expect("every seed is a key");
        let spki = key.public_key().expect("an Ed25519 key has one");
        let spki = CertificateDer::from(spki.as_ref().to_vec());
        Arc::new(CertifiedKey::new(vec![spki], key))
    }

    /// Reads what [`Seed::text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// The secret as text.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.0))
    }
}

/// A public Ed25519 key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads the only form that [`PublicKey::spki`] writes.
    pub(crate) fn of_spki(spki: &[u8]) -> Option<Self> {
        Some(Self(spki.strip_prefix(&SPKI)?.try_into().ok()?))
    }

    fn spki(&self) -> Vec<u8> {
        [&SPKI[..], &self.0[..]].concat()
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = digest::digest(&digest::SHA256, &self.spki());
        Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// SHA-256 of a server's public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

macro_rules! as_text {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
            }
        }
        impl FromStr for $name {
            type Err = &'static str;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = URL_SAFE_NO_PAD.decode(text).ok();
                let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
                bytes.map(Self).ok_or(concat!("it is not ", $what))
            }
        }
        impl TryFrom<String> for $name {
            type Error = &'static str;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
as_text!(PublicKey, "a public key");
as_text!(Fingerprint, "a fingerprint");

/// The first bytes of SHA-256, to notice a typing mistake.
pub(crate) fn check_of(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    URL_SAFE_NO_PAD.encode(&digest.as_ref()[..3])
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(provider_of::default_provider())
}

/// The one scheme that keys sign with.
pub(crate) const SCHEME: SignatureScheme = SignatureScheme::ED25519;

/// Proves that the other side has the private key to the raw public key that it shows.
pub(crate) fn verify_signature(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, TlsError> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    let algorithms = provider_of::default_provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &key, signature, &algorithms)
}

/// Refuses the handshake of a version that is not spoken.
pub(crate) fn refuse_tls12() -> Result<HandshakeSignatureValid, TlsError> {
    Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_the_public_key_of_the_standard() {
        // RFC 8032, section 7.1, test 1.
        let seed = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
        let seed = Seed::parse(seed).expect("a seed");
        assert_eq!(
            seed.public_key().to_string(),
            "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
        );
        assert_eq!(Seed::parse(&seed.text()), Some(seed));
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_not_otherwise() {
        let (one, other) = (Seed::generate().expect("random"), Seed::generate().expect("random"));
        assert_ne!(one.public_key(), other.public_key());
        let key = one.public_key();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(PublicKey::of_spki(&key.spki()), Some(key));
        assert_eq!(PublicKey::of_spki(&key.spki()[1..]), None);
        assert!("".parse::<PublicKey>().is_err() && "====".parse::<Fingerprint>().is_err());
        assert!(Seed::parse("x").is_none());
    }
}
