//! Names of repositories elsewhere: `ssh://[USER@]HOST[:PORT]/PATH`.

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

/// The reason for which a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address:?} is no address of a repository: {reason}; write ssh://[USER@]HOST[:PORT]/PATH")]
pub struct BadAddress {
    address: String,
    reason: &'static str,
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
        };
        let rest = text
            .strip_prefix("ssh://")
            .ok_or_else(|| bad("it does not begin with ssh://"))?;
        let (place, path) = rest.split_at(rest.find('/').ok_or_else(|| bad("it has no path"))?);
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user.to_owned()), place),
            None => (None, place),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match place.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (place, None),
            },
        };
        let port = port
            .map(|port| port.parse().map_err(|_| bad("its port is no number")))
            .transpose()?;
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
            host: host.to_owned(),
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
}
