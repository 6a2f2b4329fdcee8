//! Names of repositories elsewhere: `ssh://[USER@]HOST[:PORT]/PATH` and `vbk://HOST[:PORT][/REPOSITORY]`.

use std::fmt;
use std::str::FromStr;

/// A repository in a directory of another host that ssh reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAddress {
    /// The user to log in as; ssh's own configuration decides otherwise.
    pub user: Option<String>,
    /// A host name or address, or a name of ssh's own configuration.
    pub host: String,
    /// The port, unless it is the usual one.
    pub port: Option<u16>,
    /// The directory there: absolute, or `/~/PATH` from the user's home directory on.
    pub path: String,
}

/// A repository of a server that is reached over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VbkAddress {
    /// A host name or address.
    pub host: String,
    /// The port, unless it is [`DEFAULT_PORT`].
    pub port: Option<u16>,
    /// The name of the repository, on a server of several.
    pub repository: Option<String>,
}

/// Port of a server that is reached over TLS.
pub const DEFAULT_PORT: u16 = 8484;

/// The reason for which a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address of a repository: {reason}; write {form}")]
pub struct BadAddress {
    address: String,
    reason: &'static str,
    form: &'static str,
}

impl SshAddress {
    /// The argument of ssh that names the host and the user.
    pub fn destination(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }
}

impl FromStr for SshAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |reason| BadAddress {
            address: text.to_owned(),
            reason,
            form: "ssh://[USER@]HOST[:PORT]/PATH",
        };
        let rest = text
            .strip_prefix("ssh://")
            .ok_or_else(|| bad("it does not begin with ssh://"))?;
        let (place, path) = rest.split_at(rest.find('/').ok_or_else(|| bad("it has no path"))?);
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, place),
        };
        let (host, port) = split_host(place).map_err(bad)?;
        // ssh would take them for options.
        if host.is_empty()
            || host.starts_with('-')
            || user
                .as_ref()
                .is_some_and(|user| user.is_empty() || user.starts_with('-'))
        {
            return Err(bad("it has no host"));
        }
        if text.contains(char::is_control) {
            return Err(bad("it has a control character"));
        }
        let path = path.strip_prefix("/~/").unwrap_or(path);
        if path.is_empty() || path == "/" {
            return Err(bad("it has no path"));
        }
        Ok(Self {
            user,
            host,
            port,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for SshAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ssh://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match self.path.starts_with('/') {
            true => f.write_str(&self.path),
            false => write!(f, "/~/{}", self.path),
        }
    }
}

/// Splits `HOST[:PORT]`, where an IPv6 address with a port stands in brackets.
pub(crate) fn split_host(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or("its port is no number")?)),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map(|port| port.parse().map_err(|_| "its port is no number"));
    Ok((host.to_owned(), port.transpose()?))
}

/// Fails with the reason if a text can't be the name of a repository on a server of several, or of a token. Such a name is a
/// file name and a part of addresses.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name {
        "" => Err("it is empty"),
        _ if name.len() > 100 => Err("it is longer than 100 letters"),
        _ if name.starts_with(['.', '-']) => Err("it starts with a dot or a dash"),
        _ if !name.chars().all(is_plain) => {
            Err("it has other characters than letters, digits, dots, dashes and underscores")
        }
        _ => Ok(()),
    }
}

impl FromStr for VbkAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |reason| BadAddress {
            address: text.to_owned(),
            reason,
            form: "vbk://HOST[:PORT][/REPOSITORY]",
        };
        let rest = text
            .strip_prefix("vbk://")
            .ok_or_else(|| bad("it does not begin with vbk://"))?;
        let (place, repository) = match rest.split_once('/') {
            Some((place, "")) => (place, None),
            Some((place, name)) => (place, Some(name.to_owned())),
            None => (rest, None),
        };
        let (host, port) = split_host(place).map_err(bad)?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '%');
        if host.is_empty() || host.starts_with('-') || !host.chars().all(is_host) {
            return Err(bad("it has no host"));
        }
        if let Some(name) = &repository {
            check_name(name).map_err(|_| bad("the name after the host is not that of a repository"))?;
        }
        Ok(Self {
            host,
            port: port.filter(|port| *port != DEFAULT_PORT),
            repository,
        })
    }
}

impl fmt::Display for VbkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "vbk://[{}]", self.host)?,
            false => write!(f, "vbk://{}", self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        match &self.repository {
            Some(name) => write!(f, "/{name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_the_same() {
        for (text, user, host, port, path) in [
            ("ssh://backup@dc2/srv/vbk", Some("backup"), "dc2", None, "/srv/vbk"),
            ("ssh://dc2:2222/~/vbk", None, "dc2", Some(2222), "vbk"),
            ("ssh://a@b@[::1]:22/x", Some("a@b"), "::1", Some(22), "/x"),
        ] {
            let address: SshAddress = text.parse().expect(text);
            let found = (address.user.as_deref(), &*address.host, address.port, &*address.path);
            assert_eq!(found, (user, host, port, path));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_ssh_would_take_for_an_option_is_no_address() {
        for text in [
            "ssh://-oProxyCommand=x/srv",
            "ssh://-l@h/srv",
            "ssh:///srv",
            "ssh://h",
            "ssh://h/",
            "ssh://h/~/",
            "ssh://h:x/y",
            "h:/srv",
            "ssh://h/a\nb",
        ] {
            assert!(text.parse::<SshAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_of_a_server_is_read_and_written_the_same() {
        for (text, host, port, repository) in [
            ("vbk://dc2.example.com", "dc2.example.com", None, None),
            ("vbk://[2001:db8::1]:99/shop", "2001:db8::1", Some(99), Some("shop")),
            ("vbk://10.0.0.1/a.b-c_d", "10.0.0.1", None, Some("a.b-c_d")),
        ] {
            let address: VbkAddress = text.parse().expect(text);
            let found = (&*address.host, address.port, address.repository.as_deref());
            assert_eq!(found, (host, port, repository));
            assert_eq!(address.to_string(), text);
        }
        // The same repository has one name.
        for text in ["vbk://dc2:8484", "vbk://dc2/"] {
            assert_eq!(text.parse::<VbkAddress>().expect(text).to_string(), "vbk://dc2");
        }
        for text in [
            "vbk://",
            "vbk:///x",
            "vbk://-h",
            "vbk://h:x",
            "vbk://h/a/b",
            "vbk://h/..",
            "vbk://h/.x",
            "vbk://u@h",
            "vbk://[::1]x",
            "vbk://h/a%2fb",
            "ssh://h/x",
        ] {
            assert!(text.parse::<VbkAddress>().is_err(), "{text}");
        }
    }
}
