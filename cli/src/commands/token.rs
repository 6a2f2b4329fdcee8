//! `vbk token`

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use vbk_remote::address::DEFAULT_PORT;
use vbk_remote::peer::Seed;
use vbk_remote::server::{Allowed, Quota, TokenEntry, Tokens, load_or_make_key};
use vbk_remote::token::Token;
use vbk_repo::files::{self, Mode, Synced};
use vbk_repo::repository::directory::Directory;
use vbk_repo::repository::home::Home;

use crate::args::{TokenAddArgs, TokenCommand, TokenPlace, parse};
use crate::audit;
use crate::context::{Context, stdout_is_terminal};
use crate::core_files::keep_out_of_core_files;
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::place;
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

/// Makes, lists, removes or replaces the tokens of a repository.
pub fn run(context: &Context<'_>, command: &TokenCommand) -> Result<Outcome> {
    let named = context.repository_path()?;
    if place::is_address(named) {
        return Err(Error::Usage(format!(
            "{} is on another host; its tokens are made there: `vbk --repo DIR token ...`",
            named.display()
        )));
    }
    let directory = Directory::open(named).map_err(|error| context.explain(error, named))?;
    let tokens = Tokens::of(directory.name());
    match command {
        TokenCommand::Add(args) => add(context, &directory, &tokens, args),
        TokenCommand::List => list(context, &tokens),
        TokenCommand::Revoke { name } => {
            audit::noted(&directory, "token revoke", std::slice::from_ref(name), || {
                Ok(tokens.revoke(name)?)
            })?;
            context.say(format_args!("token {name} is revoked; its sessions end within seconds"));
            Ok(Outcome::Done)
        }
        TokenCommand::Rotate { name, place } => {
            let known = tokens.known(name)?;
            // A new token leads to the same place as the old one, unless another is named.
            let place = &TokenPlace {
                host: place.host.clone().or_else(|| known.host.clone()),
                under_root: place.under_root || known.under_root,
                out: place.out.clone(),
            };
            let way = Way::to(&directory, place)?;
            let token = way.token(Seed::generate().map_err(Error::io("make a key"))?)?;
            let key = token.seed.public_key();
            let entry = TokenEntry {
                host: place.host.clone(),
                under_root: place.under_root,
                ..known
            };
            let entry = audit::noted(&directory, "token rotate", std::slice::from_ref(name), || {
                let kept = write_out(place, &token)?;
                let rotated = tokens.rotate(entry, key, Timestamp::now());
                Ok(rotated.inspect_err(|_| take_back(kept))?)
            })?;
            show(context, &entry, &token, place)
        }
    }
}

fn add(context: &Context<'_>, directory: &Directory, tokens: &Tokens, args: &TokenAddArgs) -> Result<Outcome> {
    if !args.guests.is_empty() && directory.marker().key_check.is_some() {
        return Err(Error::Usage(format!(
            "--guests can't be kept in an encrypted repository: the names of guests are hidden from its server. Make a repository \
             for each group of hosts that must not see each other's backups, side by side with {}, and serve all of them with \
             `vbk serve --root`",
            directory.name().display()
        )));
    }
    if let Some(file) = &args.ssh_key {
        output::line(authorized_keys_line(directory.name(), args, &ssh_key(file)?)?);
        return Ok(Outcome::Done);
    }
    let way = Way::to(directory, &args.place)?;
    let token = way.token(Seed::generate().map_err(Error::io("make a key"))?)?;
    let entry = TokenEntry {
        name: args.name.clone(),
        public_key: token.seed.public_key(),
        rights: Allowed::from(args.rights),
        guests: args.guests.clone(),
        quota: args.quota.into(),
        host: args.place.host.clone(),
        under_root: args.place.under_root,
        created: Timestamp::now(),
    };
    let what = format!("token add --rights {}", entry.rights.name());
    audit::noted(directory, &what, std::slice::from_ref(&args.name), || {
        let kept = write_out(&args.place, &token)?;
        Ok(tokens.add(&entry).inspect_err(|_| take_back(kept))?)
    })?;
    show(context, &entry, &token, &args.place)
}

/// The way to a repository, as clients know it.
struct Way {
    host: String,
    port: u16,
    repository: Option<String>,
    /// The directory with the server's key.
    server: PathBuf,
}

impl Way {
    fn to(directory: &Directory, place: &TokenPlace) -> Result<Self> {
        let (host, port) = match &place.host {
            Some(text) => parse::parse_host(text).map_err(Error::Usage)?,
            None => (machine::host(), None),
        };
        if host.is_empty() {
            return Err(Error::Usage(
                "this host has no name; say with --host how clients reach it".into(),
            ));
        }
        let path = directory.name();
        let (repository, server) = match place.under_root {
            false => (None, path.to_owned()),
            true => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                vbk_remote::address::check_name(name).map_err(|why| {
                    Error::Usage(format!(
                        "{name:?} can't be the name of a repository below a root: {why}; rename its directory"
                    ))
                })?;
                let root = path.parent().unwrap_or(Path::new("/"));
                (Some(name.to_owned()), root.to_owned())
            }
        };
        Ok(Self {
            host,
            port: port.unwrap_or(DEFAULT_PORT),
            repository,
            server,
        })
    }

    fn token(self, seed: Seed) -> Result<Token> {
        keep_out_of_core_files();
        Ok(Token {
            fingerprint: load_or_make_key(&self.server)?.public_key().fingerprint(),
            host: self.host,
            port: self.port,
            repository: self.repository,
            seed,
        })
    }
}

/// Writes the token to its file, if one is named, and returns that. Before it opens anything: so no token is without its file.
fn write_out<'a>(place: &'a TokenPlace, token: &Token) -> Result<Option<&'a Path>> {
    let Some(path) = &place.out else {
        return Ok(None);
    };
    let text = zeroize::Zeroizing::new(format!("{}\n", *token.line()));
    files::create(path, text.as_bytes(), Mode::Private, Synced::FileAndDirectory)
        .map_err(Error::io(format!("write {}", path.display())))?;
    Ok(Some(path))
}

fn take_back(file: Option<&Path>) {
    if let Some(Err(error)) = file.map(std::fs::remove_file) {
        tracing::warn!("can't remove the file of the token that was not made: {error}");
    }
}

#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    rights: Allowed,
    guests: &'a [String],
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

fn show(context: &Context<'_>, entry: &TokenEntry, token: &Token, place: &TokenPlace) -> Result<Outcome> {
    let line = token.line();
    let address = token.address();
    let file = place.out.as_deref();
    match file {
        Some(file) => context.say(format_args!(
            "token {} is in {}; on the client: `vbk --repo {address} --token-file FILE list`",
            entry.name,
            file.display()
        )),
        None => {
            context.print(format_args!("{}\n", *line));
            if stdout_is_terminal() {
                context.say(format_args!(
                    "It is shown only now. Put it into a file with mode 0600 on the client: `vbk --repo {address} --token-file \
                     FILE list`"
                ));
            }
        }
    }
    context.json_result(&Made {
        name: &entry.name,
        rights: entry.rights,
        guests: &entry.guests,
        address: address.to_string(),
        file,
        token: file.is_none().then_some(&**line),
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Report {
    tokens: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    rights: Allowed,
    guests: Vec<String>,
    #[serde(skip_serializing_if = "Quota::is_none")]
    quota: Quota,
    created: Timestamp,
    last_seen: Option<Timestamp>,
    last_address: Option<IpAddr>,
}

fn list(context: &Context<'_>, tokens: &Tokens) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    let mut listed = Vec::new();
    for name in tokens.names()? {
        match tokens.get(&name) {
            Ok(Some(entry)) => {
                let last = tokens.last_use(&name);
                listed.push(Listed {
                    last_seen: last.map(|(at, _)| at),
                    last_address: last.and_then(|(_, address)| address),
                    name,
                    rights: entry.rights,
                    guests: entry.guests,
                    quota: entry.quota,
                    created: entry.created,
                });
            }
            // Revoked a moment ago.
            Ok(None) => {}
            Err(error) => {
                tracing::warn!("{error}");
                outcome = Outcome::Warnings;
            }
        }
    }
    let columns = ["NAME", "RIGHTS", "GUESTS", "CREATED", "LAST SEEN", "FROM"];
    let mut table = Table::new(&columns.map(|name| (name, Align::Left)));
    for token in &listed {
        table.row(vec![
            token.name.clone(),
            token.rights.name().to_owned(),
            match token.guests.is_empty() {
                true => "all".to_owned(),
                false => token.guests.join(" "),
            },
            units::time(token.created),
            token.last_seen.map_or_else(|| "never".to_owned(), units::time),
            token
                .last_address
                .map_or_else(|| "-".to_owned(), |address| address.to_string()),
        ]);
    }
    context.print(table);
    context.json_result(&Report { tokens: listed })?;
    Ok(outcome)
}

/// Returns the first line of a file with a public ssh key.
fn ssh_key(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(Error::io(format!("read {}", file.display())))?;
    let line = text.lines().next().unwrap_or_default().trim();
    let is_key = ["ssh-", "ecdsa-", "sk-"].iter().any(|start| line.starts_with(start));
    match is_key && !line.contains(char::is_control) {
        true => Ok(line.to_owned()),
        false => Err(Error::Usage(format!(
            "{} is no public ssh key; those end in .pub",
            file.display()
        ))),
    }
}

/// Returns the line for authorized_keys (sshd(8)) that ties a key to a repository.
fn authorized_keys_line(directory: &Path, args: &TokenAddArgs, key: &str) -> Result<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let path = directory.to_str().filter(|path| !path.contains(char::is_control));
    let path = path.ok_or_else(|| {
        Error::Usage(format!(
            "the name {directory:?} can't be written into authorized_keys; rename the directory"
        ))
    })?;
    let rights = Allowed::from(args.rights).name();
    let mut command = format!("vbk serve --stdio --rights {rights} --as {}", quoted(&args.name));
    for pattern in &args.guests {
        command.push_str(" --guests ");
        command.push_str(&quoted(pattern));
    }
    let quota = [
        ("--bytes-per-day", args.quota.bytes_per_day, "B"),
        ("--backups-per-day", args.quota.backups_per_day, ""),
    ];
    for (option, number, unit) in quota {
        if let Some(number) = number {
            command.push_str(&format!(" {option} {number}{unit}"));
        }
    }
    command.push_str(" -- ");
    command.push_str(&quoted(path));
    // Only the quote is special between quotes there, and a backslash before it.
    Ok(format!("restrict,command=\"{}\" {key}", command.replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{QuotaArgs, RightsArg};

    #[test]
    fn the_line_for_ssh_quotes_what_two_programs_read() {
        let args = TokenAddArgs {
            name: "web1".into(),
            rights: RightsArg::Backup,
            guests: vec!["web*".into()],
            quota: QuotaArgs {
                bytes_per_day: None,
                backups_per_day: Some(24),
            },
            place: TokenPlace {
                host: None,
                under_root: false,
                out: None,
            },
            ssh_key: None,
        };
        let line = |path: &str| authorized_keys_line(Path::new(path), &args, "ssh-ed25519 AAAA root@web");
        assert_eq!(
            line("/srv/vbk").expect("a line"),
            r#"restrict,command="vbk serve --stdio --rights backup --as 'web1' --guests 'web*' --backups-per-day 24 -- '/srv/vbk'" ssh-ed25519 AAAA root@web"#
        );
        assert_eq!(
            line(r#"/a "b'c"#).expect("a line"),
            r#"restrict,command="vbk serve --stdio --rights backup --as 'web1' --guests 'web*' --backups-per-day 24 -- '/a \"b'\''c'" ssh-ed25519 AAAA root@web"#
        );
        assert!(line("/a\nb").is_err());
    }
}
