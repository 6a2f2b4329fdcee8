//! Parses the text of a configuration. Every unknown key and every invalid value is reported with its file and line: a
//! setting with a typing mistake must not be ignored.

mod setting;

use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use vbk_repo::name::GuestName;

use self::setting::KEEP;
use crate::args::parse;
use crate::config::settings::{NAMES as SETTINGS, Section};
use crate::config::{Config, DEFAULT_PATH, GuestSection};
use crate::place;

pub(super) const TOP: &[&str] = &[
    "include",
    "repository",
    "key-file",
    "passphrase-file",
    "token-file",
    "encrypted",
    "jobs",
    "metrics",
    "safe-mounts",
    "reconnect-for",
    "bandwidth",
    "cache",
    "on-failure",
    "on-success",
    "success-url",
    "failure-url",
    "mail-to",
    "mail",
    "defaults",
    "guest",
];
pub(super) const ONLY_DEFAULTS: &[&str] = &["exclude", "jobs"];
pub(super) const ONLY_GUEST: &[&str] = &["disks", "skip-disks", "domain"];

/// Largest number of guests at a time; more are a mistake.
const MAX_JOBS: u32 = 64;

type Value<'a> = Spanned<DeValue<'a>>;

/// Parses the configuration, or returns every mistake as `FILE:LINE: what`, by line.
pub(super) fn config(path: &Path, text: &str) -> Result<Config, Vec<String>> {
    let mut config = Config {
        path: Some(path.to_owned()),
        ..Config::default()
    };
    let errors = parsed(path, text, |reader, table| reader.top(&mut config, table));
    if errors.is_empty() { Ok(config) } else { Err(errors) }
}

/// Parses a file that the configuration includes, and returns every mistake as `FILE:LINE: what`, by line.
pub(super) fn included(config: &mut Config, path: &Path, text: &str) -> Vec<String> {
    parsed(path, text, |reader, table| reader.included(config, table))
}

/// Parses a file, and returns its mistakes.
fn parsed(path: &Path, text: &str, read: impl FnOnce(&mut Reader<'_>, &DeTable<'_>)) -> Vec<String> {
    let mut reader = Reader {
        path,
        text,
        errors: Vec::new(),
        jobs: None,
    };
    match DeTable::parse(text) {
        Ok(table) => read(&mut reader, table.get_ref()),
        Err(error) => reader.wrong(error.span().unwrap_or_default(), error.message()),
    }
    reader.errors.sort();
    reader.errors.into_iter().map(|(_, text)| text).collect()
}

/// Parses a URL that is to be called.
fn parse_url(text: &str) -> Result<String, String> {
    let is_web = text.starts_with("https://") || text.starts_with("http://");
    match is_web && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("write the whole URL, e.g. https://hc-ping.com/UUID".to_owned()),
    }
}

/// Parses mail addresses, separated by commas.
fn parse_addresses(text: &str) -> Result<String, String> {
    // An address goes to a program as a word of its command, and into a header.
    let is_address = |address: &str| {
        let address = address.trim();
        !address.is_empty() && !address.starts_with('-') && address.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match text.split(',').all(is_address) {
        true => Ok(text.to_owned()),
        false => Err("write an address or several with commas, e.g. \"admin@example.com\"".to_owned()),
    }
}

/// Parses `always` or `trouble`.
fn parse_mail(text: &str) -> Result<bool, String> {
    match text {
        "always" => Ok(true),
        "trouble" => Ok(false),
        _ => Err("write \"always\", or \"trouble\" for failures and warnings only".to_owned()),
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    errors: Vec<(usize, String)>,
    /// Position of `jobs` in the text.
    jobs: Option<Range<usize>>,
}

impl Reader<'_> {
    fn top(&mut self, config: &mut Config, table: &DeTable<'_>) {
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "include" => config.include = self.path(key, value),
                "repository" => config.repository = self.repository(key, value),
                "encrypted" => config.encrypted = self.flag(key, value).unwrap_or_default(),
                "key-file" => config.key_file = self.path(key, value),
                "passphrase-file" => config.passphrase_file = self.path(key, value),
                "token-file" => config.token_file = self.path(key, value),
                "jobs" => self.jobs(config, key, value),
                "metrics" => config.metrics = self.path(key, value),
                "safe-mounts" => config.safe_mounts = self.flag(key, value).unwrap_or_default(),
                "reconnect-for" => config.reconnect_for = self.parsed(key, value, parse::parse_duration_or_zero),
                "bandwidth" => config.bandwidth = self.parsed(key, value, parse::parse_bandwidth),
                "cache" => config.cache = self.parsed(key, value, parse::parse_size_or_off),
                "on-failure" => config.notices.on_failure = self.command(key, value),
                "on-success" => config.notices.on_success = self.command(key, value),
                "success-url" => config.notices.success_url = self.parsed(key, value, parse_url),
                "failure-url" => config.notices.failure_url = self.parsed(key, value, parse_url),
                "mail-to" => config.notices.mail_to = self.parsed(key, value, parse_addresses),
                "mail" => config.notices.mail_always = self.parsed(key, value, parse_mail).unwrap_or_default(),
                "defaults" => self.defaults(config, key, value),
                "guest" => self.guests(config, key, value),
                _ => self.unknown(key, "", TOP),
            }
        }
        if config.key_file.is_some() && config.passphrase_file.is_some() {
            let span = table.get("passphrase-file").map(Spanned::span).unwrap_or_default();
            self.wrong(span, "key-file and passphrase-file are both set; choose one");
        }
    }

    fn included(&mut self, config: &mut Config, table: &DeTable<'_>) {
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "guest" => self.guests(config, key, value),
                name => {
                    let main = config.path.as_deref().unwrap_or(Path::new(DEFAULT_PATH)).display();
                    let what =
                        format!("{name} can't be set here, but in {main}: this file has [guest.NAME] sections only");
                    self.wrong(key.span(), what);
                }
            }
        }
    }

    fn defaults(&mut self, config: &mut Config, key: &Spanned<impl Display>, value: &Value<'_>) {
        let Some(table) = self.table(key, value) else {
            return;
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "exclude" => config.exclude = self.texts(key, value),
                "jobs" => self.jobs(config, key, value),
                name => {
                    if !self.setting(&mut config.defaults, name, key, value) {
                        self.unknown(key, "[defaults]", &[SETTINGS, ONLY_DEFAULTS].concat());
                    }
                }
            }
        }
    }

    fn guests(&mut self, config: &mut Config, key: &Spanned<impl Display>, value: &Value<'_>) {
        let Some(table) = self.table(key, value) else {
            return;
        };
        for (name, value) in table {
            let guest = GuestName::new(name.get_ref().as_ref());
            let Some(guest) = self.accept(name.span(), guest) else {
                continue;
            };
            let Some(table) = self.table(name, value) else {
                continue;
            };
            let mut section = Section::default();
            for (key, value) in table {
                match key.get_ref().as_ref() {
                    "disks" => section.disks = self.disks(key, value),
                    "domain" => section.domain = self.command(key, value),
                    "skip-disks" => section.skip_disks = self.disk_names(key, value),
                    name => {
                        if !self.setting(&mut section, name, key, value) {
                            self.unknown(key, &format!("[guest.{guest}]"), &[SETTINGS, ONLY_GUEST].concat());
                        }
                    }
                }
            }
            if let Some(known) = config.guests.get(&guest) {
                let what = format!("guest {guest} also has a section in {}", known.file.display());
                self.wrong(name.span(), what);
                continue;
            }
            if let Some(domain) = &section.domain
                && let Some((other, _)) =
                    (config.guests.iter()).find(|(_, known)| known.settings.domain.as_ref() == Some(domain))
            {
                let what = format!("domain {domain:?} belongs to both {other} and {guest}");
                self.wrong(name.span(), what);
            }
            let file = self.path.to_owned();
            config.guests.insert(
                guest,
                GuestSection {
                    file,
                    settings: section,
                },
            );
        }
    }

    fn jobs(&mut self, config: &mut Config, key: &Spanned<impl Display>, value: &Value<'_>) {
        let jobs = self.number(key, value);
        if let Some(other) = self.jobs.replace(key.span()) {
            let later = if other.start > key.span().start {
                other
            } else {
                key.span()
            };
            self.wrong(later, "jobs is set twice: at the top, and in [defaults]");
        }
        if jobs.is_some_and(|jobs| !(1..=MAX_JOBS).contains(&jobs)) {
            self.wrong_for::<()>(key, value, &format!("write a number from 1 to {MAX_JOBS}"));
        }
        config.jobs = jobs;
    }

    fn repository(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<PathBuf> {
        match value.get_ref() {
            DeValue::String(text) => match place::check(Path::new(&**text)) {
                Err(message) => self.wrong_for(key, value, &message),
                Ok(()) if place::is_address(Path::new(&**text)) => Some(PathBuf::from(&**text)),
                Ok(()) => self.path(key, value),
            },
            _ => self.path(key, value),
        }
    }

    fn table<'v, 'i>(&mut self, key: &Spanned<impl Display>, value: &'v Value<'i>) -> Option<&'v DeTable<'i>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => self.wrong_for(key, value, "this must be a section with settings"),
        }
    }

    fn texts(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Vec<String> {
        match value.get_ref() {
            DeValue::Array(values) => values.iter().filter_map(|value| self.text(key, value)).collect(),
            _ => self
                .wrong_for(key, value, "write a list, e.g. [\"one\", \"two\"]")
                .unwrap_or_default(),
        }
    }

    fn text(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) if text.contains('\0') => self.wrong_for(key, value, "it contains a null character"),
            DeValue::String(text) => Some(text.to_string()),
            _ => self.wrong_for(key, value, "write a text in quotes"),
        }
    }

    /// Parses a text that is not empty.
    fn command(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<String> {
        match self.text(key, value)? {
            text if text.trim().is_empty() => self.wrong_for(key, value, "it is empty; leave it out instead"),
            text => Some(text),
        }
    }

    fn path(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(key, value)?);
        match path.is_absolute() {
            true => Some(path),
            // A timer runs in another directory than a shell.
            false => self.wrong_for(key, value, &format!("write an absolute path instead of {path:?}")),
        }
    }

    fn flag(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.wrong_for(key, value, "write true or false"),
        }
    }

    fn number(&mut self, key: &Spanned<impl Display>, value: &Value<'_>) -> Option<u32> {
        match value.get_ref() {
            DeValue::Integer(number) => match u32::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Some(number),
                Err(_) => self.wrong_for(key, value, &format!("write a whole number from 0 to {}", u32::MAX)),
            },
            DeValue::String(_) => self.wrong_for(key, value, "write a whole number, without quotes"),
            _ => self.wrong_for(key, value, "write a whole number"),
        }
    }

    fn parsed<T>(
        &mut self,
        key: &Spanned<impl Display>,
        value: &Value<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(key, value)?;
        self.accept_for(key, value, parse(&text))
    }

    fn accept<T>(&mut self, span: Range<usize>, result: Result<T, impl Display>) -> Option<T> {
        result.map_err(|why| self.wrong(span, why)).ok()
    }

    fn accept_for<T>(
        &mut self,
        key: &Spanned<impl Display>,
        value: &Value<'_>,
        result: Result<T, impl Display>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(why) => self.wrong_for(key, value, &why.to_string()),
        }
    }

    fn unknown(&mut self, key: &Spanned<impl Display>, section: &str, known: &[&str]) {
        let name = key.get_ref().to_string();
        let elsewhere = match name.as_str() {
            _ if known.contains(&name.as_str()) => None,
            name if section != "keep" && SETTINGS.contains(&name) => Some("in [defaults] or [guest.NAME]"),
            name if section != "keep" && ONLY_GUEST.contains(&name) => Some("in [guest.NAME]"),
            "exclude" => Some("in [defaults]"),
            name if section != "keep" && TOP.contains(&name) => Some("at the top of the file, before any [section]"),
            name if section != "keep" && KEEP.contains(&name) => Some("in keep = { ... }"),
            _ => None,
        };
        let hint = match elsewhere {
            Some(place) => format!("it belongs {place}"),
            None => {
                let nearest = known.iter().min_by_key(|known| strsim::levenshtein(known, &name));
                format!("nearest known key: {}", nearest.unwrap_or(&"none"))
            }
        };
        let place = match section {
            "" => String::new(),
            section => format!(" in {section}"),
        };
        self.wrong(key.span(), format!("unknown key {name}{place}; {hint}"));
    }

    fn wrong_for<T>(&mut self, key: &Spanned<impl Display>, value: &Value<'_>, what: &str) -> Option<T> {
        self.wrong(value.span(), format!("{}: {what}", key.get_ref()));
        None
    }

    fn wrong(&mut self, span: Range<usize>, what: impl Display) {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let what = what.to_string();
        self.errors.push((
            line,
            format!(
                "{}:{line}: {}",
                self.path.display(),
                what.trim_end().replace('\n', "; ")
            ),
        ));
    }
}
