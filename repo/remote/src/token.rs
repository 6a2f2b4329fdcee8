//! Tokens: the line that lets a client use a repository over TLS. It is a secret.
//!
//! `vbk1:HOST:PORT:REPOSITORY:FINGERPRINT:SEED:CHECK`
//!
//! | part | what it is |
//! |---|---|
//! | `REPOSITORY` | its name on a server of several; else empty |
//! | `FINGERPRINT` | of the server's key, which the client insists on |
//! | `SEED` | the client's own key; the server knows only the public one |
//! | `CHECK` | the first bytes of SHA-256 of all before it, so that a mistyped line is refused |
//!
//! The last three are base64 for URLs.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::address::{check_name, split_host};
use crate::peer::{Fingerprint, Seed, check_of};

/// Start of a line of this version.
const START: &str = "vbk1:";

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Host of the server, as clients reach it.
    pub host: String,
    /// Port of the server.
    pub port: u16,
    /// Name of the repository, on a server of several.
    pub repository: Option<String>,
    /// Fingerprint of the server's key.
    pub fingerprint: Fingerprint,
    /// The client's key.
    pub seed: Seed,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("host", &self.host)
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

/// The reason for which a text is no token. It does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadToken(&'static str);

impl Token {
    /// The secret line, without a line break.
    pub fn line(&self) -> Zeroizing<String> {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        let repository = self.repository.as_deref().unwrap_or_default();
        let Self { port, fingerprint, .. } = self;
        let mut line = Zeroizing::new(format!("{START}{host}:{port}:{repository}:{fingerprint}:"));
        line.push_str(&self.seed.text());
        let check = check_of(&line);
        line.push(':');
        line.push_str(&check);
        line
    }

    /// The address of the repository, for `--repo`.
    pub fn address(&self) -> crate::address::VbkAddress {
        crate::address::VbkAddress {
            host: self.host.clone(),
            port: (self.port != crate::address::DEFAULT_PORT).then_some(self.port),
            repository: self.repository.clone(),
        }
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        if !text.starts_with(START) {
            return Err(BadToken("it does not begin with vbk1:"));
        }
        let cut = BadToken("it is cut off, or a part is missing");
        let (checked, check) = text.rsplit_once(':').ok_or(cut)?;
        let mut parts = checked.strip_prefix(START).ok_or(cut)?.rsplitn(5, ':');
        let mut part = || parts.next().ok_or(cut);
        let (seed, fingerprint, repository, port, host) = (part()?, part()?, part()?, part()?, part()?);
        if check_of(checked) != check {
            return Err(BadToken("a letter of it is wrong or missing"));
        }
        let bad = BadToken("it is not as `vbk token add` prints it");
        let (host, none) = split_host(host).map_err(|_| bad)?;
        let repository = (!repository.is_empty()).then(|| repository.to_owned());
        if none.is_some() || repository.as_deref().is_some_and(|name| check_name(name).is_err()) {
            return Err(bad);
        }
        Ok(Self {
            host,
            port: port.parse().map_err(|_| bad)?,
            repository,
            fingerprint: fingerprint.parse().map_err(|_| bad)?,
            seed: Seed::parse(seed).ok_or(bad)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(host: &str, repository: Option<&str>) -> Token {
        let seed = Seed::generate().expect("random");
        Token {
            host: host.into(),
            port: 8484,
            repository: repository.map(str::to_owned),
            fingerprint: seed.public_key().fingerprint(),
            seed,
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for token in [
            token("dc2.example.com", None),
            token("2001:db8::1", Some("shop")),
            token("10.0.0.1", None),
        ] {
            let line = token.line();
            assert_eq!(line.parse(), Ok(token.clone()), "{}", *line);
            assert_eq!(format!("{}\n", *line).parse(), Ok(token.clone()));
            assert!(!format!("{token:?}").contains(&**token.seed.text()));
        }
    }

    #[test]
    fn each_typing_mistake_is_noticed() {
        let line = token("dc2", Some("shop")).line();
        for at in 0..line.len() {
            for other in ["", "0", "x", ":"] {
                let mut wrong = line.to_string();
                wrong.replace_range(at..=at, other);
                if wrong != *line {
                    assert!(wrong.parse::<Token>().is_err(), "{wrong}");
                }
            }
            assert!(line[..at].parse::<Token>().is_err());
        }
    }
}
