//! The tokens of a repository, as its server knows them: `DIR/serve/tokens/NAME.json`, a file for each. What is in them opens
//! nothing: a token's secret key is with the client alone.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::{Error, Result};

use super::Allowed;
use super::key::{SERVE, create, make_directory};
use super::quota::Quota;
use crate::address::check_name;
use crate::peer::PublicKey;

/// Time between two notes of the last use of a token.
const SEEN_EVERY_SECS: i64 = 60;

/// A token as its server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// A later version may add restrictions; a server that ignored them would give too much.
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name, which is that of its file too.
    pub name: String,
    /// The public half of its key.
    pub public_key: PublicKey,
    /// What its holder may do.
    pub rights: Allowed,
    /// Patterns of the guests that it is for; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<String>,
    /// What it may add in a day.
    #[serde(default, skip_serializing_if = "Quota::is_none")]
    pub quota: Quota,
    /// Name by which its client reaches the server, if not that of this machine: for the next key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The repository is served together with others of one directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_root: bool,
    /// Time when it was made, or when it got its present key.
    pub created: Timestamp,
}

/// The tokens of one repository.
#[derive(Debug, Clone)]
pub struct Tokens {
    repository: PathBuf,
    directory: PathBuf,
}

impl Tokens {
    /// The tokens of the repository in a directory.
    pub fn of(repository: &Path) -> Self {
        Self {
            repository: repository.to_owned(),
            directory: repository.join(SERVE).join("tokens"),
        }
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        match check_name(name) {
            Ok(()) => Ok(self.directory.join(format!("{name}.json"))),
            Err(why) => Err(refused(format!("{name:?} can't be the name of a token: {why}"))),
        }
    }

    /// Adds a token. Durable when this returns. Fails if there is one of that name.
    pub fn add(&self, entry: &Entry) -> Result<()> {
        let path = self.file(&entry.name)?;
        make_directory(&self.repository)?;
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::io("make", &self.directory))?,
        }
        create(&path, &text_of(entry)).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => refused(format!(
                "there is a token {name} already; `vbk token rotate {name}` gives it a new secret, `vbk token revoke {name}` \
                 removes it",
                name = entry.name
            )),
            _ => Error::io("write", &path)(error),
        })
    }

    /// Replaces the key of a token. From then on the old one opens nothing. Durable when this returns.
    pub fn rotate(&self, entry: Entry, public_key: PublicKey, now: Timestamp) -> Result<Entry> {
        let path = self.file(&entry.name)?;
        self.known(&entry.name)?;
        let entry = Entry {
            public_key,
            created: now,
            ..entry
        };
        make_directory(&self.repository)?;
        files::write_whole(&path, &text_of(&entry), Mode::Private, Synced::FileAndDirectory)
            .map_err(Error::io("write", &path))?;
        Ok(entry)
    }

    /// Removes a token, also a damaged one. Durable when this returns.
    pub fn revoke(&self, name: &str) -> Result<()> {
        let path = self.file(name)?;
        fs::remove_file(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.unknown(name),
            _ => Error::io("remove", &path)(error),
        })?;
        // It is of no use without the token; it may not exist.
        let _ = fs::remove_file(path.with_extension("seen"));
        files::sync_directory_where_possible(&self.directory).map_err(Error::io("sync", &self.directory))
    }

    /// Returns a token; an error if there is none of that name.
    pub fn known(&self, name: &str) -> Result<Entry> {
        self.get(name)?.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        refused(format!(
            "{} has no token {name}; `vbk token list` lists them",
            self.repository.display()
        ))
    }

    /// Returns a token; `None` if there is none of that name.
    pub fn get(&self, name: &str) -> Result<Option<Entry>> {
        let path = self.file(name)?;
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(Error::io("read", &path))?,
        };
        let entry: Entry = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &error.to_string()))?;
        match entry.name == name {
            true => Ok(Some(entry)),
            false => Err(damaged(&path, "it has another name in it")),
        }
    }

    /// Returns the names of all tokens, in order.
    pub fn names(&self) -> Result<Vec<String>> {
        let failed = |error| Error::io("list", &self.directory)(error);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.filter(|name| check_name(name).is_ok()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// Returns when a client with a token was last connected, to a minute; `None` if none ever was, or if that is not known.
    pub fn last_seen(&self, name: &str) -> Option<Timestamp> {
        self.last_use(name).map(|(at, _)| at)
    }

    /// The same with the client's address, if that is known.
    pub fn last_use(&self, name: &str) -> Option<(Timestamp, Option<IpAddr>)> {
        let path = self.file(name).ok()?.with_extension("seen");
        let text = fs::read_to_string(path).ok()?;
        let mut words = text.split_whitespace();
        let at = words.next()?.parse().ok()?;
        Some((at, words.next().and_then(|word| word.parse().ok())))
    }

    /// Notes that a client with a token is connected. A full or read-only disk must not keep a client from its backups, so errors are only logged.
    pub(super) fn note_use(&self, name: &str, address: Option<IpAddr>, now: Timestamp) {
        let recent = |last: Timestamp| (0..SEEN_EVERY_SECS).contains(&(now.as_second() - last.as_second()));
        if self.last_seen(name).is_some_and(recent) {
            return;
        }
        let Ok(path) = self.file(name).map(|path| path.with_extension("seen")) else {
            return;
        };
        let address = address.map(|address| format!(" {address}")).unwrap_or_default();
        let text = format!("{now}{address}\n");
        if let Err(error) = files::write_whole(&path, text.as_bytes(), Mode::Private, Synced::Nothing) {
            tracing::debug!("can't write {}: {error}", path.display());
        }
    }
}

/// Finds tokens by their keys. It remembers the names of the tokens that it found, and reads a token's file each time, so
/// it is never out of date.
#[derive(Debug, Default)]
pub(super) struct Finder(Mutex<HashMap<(PathBuf, PublicKey), String>>);

impl Finder {
    /// Returns the token with a key.
    pub(super) fn find(&self, tokens: &Tokens, key: PublicKey) -> Option<Entry> {
        let has_key = |name: &str| match tokens.get(name) {
            Ok(entry) => entry.filter(|entry| entry.public_key == key),
            Err(error) => {
                tracing::warn!("a token is not accepted: {error}");
                None
            }
        };
        let place = (tokens.directory.clone(), key);
        let known = self.0.lock().get(&place).cloned();
        if let Some(entry) = known.and_then(|name| has_key(&name)) {
            return Some(entry);
        }
        let names = tokens.names().unwrap_or_else(|error| {
            tracing::warn!("no token is accepted: {error}");
            Vec::new()
        });
        let found = names.iter().find_map(|name| has_key(name));
        match &found {
            Some(entry) => drop(self.0.lock().insert(place, entry.name.clone())),
            None => drop(self.0.lock().remove(&place)),
        }
        found
    }
}

fn text_of(entry: &Entry) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(entry).expect("plain fields");
    text.push(b'\n');
    text
}

fn refused(message: String) -> Error {
    Error::Remote {
        kind: vbk_repo::ErrorKind::Invalid,
        message,
    }
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::io("use", path)(io::Error::new(
        ErrorKind::InvalidData,
        format!("{what}; `vbk token revoke` removes the token"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Seed;

    fn entry(name: &str) -> Entry {
        Entry {
            name: name.into(),
            public_key: Seed::generate().expect("random").public_key(),
            rights: Allowed::Add,
            guests: vec!["web*".into()],
            quota: Quota::default(),
            host: Some("dc2.example.com".into()),
            under_root: true,
            created: "2026-11-29T05:00:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn tokens_are_kept_until_they_are_revoked() {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = Tokens::of(dir.path());
        assert_eq!(tokens.names().expect("lists"), [""; 0]);
        let (one, other) = (entry("web"), entry("db"));
        tokens.add(&one).expect("adds");
        tokens.add(&other).expect("adds");
        assert!(
            tokens
                .add(&entry("web"))
                .expect_err("is there")
                .to_string()
                .contains("rotate web")
        );
        assert_eq!(tokens.names().expect("lists"), ["db", "web"]);
        assert_eq!(tokens.get("web").expect("reads"), Some(one.clone()));

        let finder = Finder::default();
        assert_eq!(finder.find(&tokens, one.public_key), Some(one.clone()));
        assert_eq!(finder.find(&tokens, other.public_key), Some(other));
        let new = entry("web").public_key;
        let known = tokens.known("web").expect("reads");
        let rotated = tokens.rotate(known, new, Timestamp::UNIX_EPOCH).expect("rotates");
        assert_eq!((&*rotated.name, rotated.rights), ("web", Allowed::Add));
        assert_eq!(finder.find(&tokens, one.public_key), None, "the old key");
        assert_eq!(finder.find(&tokens, new), Some(rotated));
        tokens.revoke("web").expect("revokes");
        assert_eq!(finder.find(&tokens, new), None);
        assert_eq!(tokens.names().expect("lists"), ["db"]);
        for error in [
            tokens.revoke("web"),
            tokens.rotate(entry("web"), new, Timestamp::UNIX_EPOCH).map(drop),
        ] {
            assert!(error.expect_err("is gone").to_string().contains("no token web"));
        }
    }

    #[test]
    fn the_last_use_is_noted_once_a_minute() {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = Tokens::of(dir.path());
        tokens.add(&entry("web")).expect("adds");
        assert_eq!(tokens.last_seen("web"), None);
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        for (now, noted) in [
            ("2026-11-29T05:00:00Z", "2026-11-29T05:00:00Z"),
            ("2026-11-29T05:00:59Z", "2026-11-29T05:00:00Z"),
            ("2026-11-29T05:01:00Z", "2026-11-29T05:01:00Z"),
            // A clock that was set back.
            ("2026-11-28T05:00:00Z", "2026-11-28T05:00:00Z"),
        ] {
            tokens.note_use("web", None, at(now));
            assert_eq!(tokens.last_seen("web"), Some(at(noted)));
        }
        let from: IpAddr = "10.0.0.7".parse().expect("an address");
        tokens.note_use("web", Some(from), at("2026-11-29T06:00:00Z"));
        assert_eq!(tokens.last_use("web"), Some((at("2026-11-29T06:00:00Z"), Some(from))));
        tokens.revoke("web").expect("revokes");
        assert_eq!(tokens.last_seen("web"), None);
    }

    #[test]
    fn a_file_that_is_no_token_opens_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = Tokens::of(dir.path());
        let (good, renamed) = (entry("good"), entry("renamed"));
        tokens.add(&good).expect("adds");
        let text = serde_json::to_string(&renamed).expect("JSON");
        let file = |name: &str, text: &str| fs::write(tokens.directory.join(name), text).expect("writes");
        file("cut.json", &text[..text.len() / 2]);
        file("other.json", &text);
        file(
            "later.json",
            &text.replace("renamed", "later").replace('{', "{\"until\":\"2027\","),
        );
        file("draft.json.new", &text);
        let finder = Finder::default();
        assert_eq!(finder.find(&tokens, renamed.public_key), None);
        assert_eq!(finder.find(&tokens, good.public_key), Some(good));
        assert_eq!(tokens.names().expect("lists"), ["cut", "good", "later", "other"]);
        for name in ["cut", "later", "other"] {
            assert!(tokens.get(name).expect_err(name).to_string().contains("revoke"));
            tokens.revoke(name).expect("revokes");
        }
        for name in ["..", "a/b", "", ".x", "ü"] {
            assert!(
                tokens.get(name).is_err()
                    && tokens
                        .add(&Entry {
                            name: name.into(),
                            ..entry("x")
                        })
                        .is_err()
            );
        }
    }
}
