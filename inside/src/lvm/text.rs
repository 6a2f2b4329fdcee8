//! Parses the text of a group: sections, numbers, strings and lists (lvm.conf(5), libdm/libdm-config.c). Knows nothing
//! of volumes.

use crate::error::{Error, Result};

/// Most values and sections of a text. A linear volume has about 20, so this is enough for 25,000 volumes; more would
/// let a text of a few bytes per node use memory without need.
const MAX_NODES: usize = 500_000;
/// Deepest nesting. LVM writes five levels.
const MAX_DEPTH: usize = 16;

/// Most values of one section, and most flags that are looked at: LVM writes about 30 values and 10 flags. Fields are
/// found by a linear search.
const MAX_VALUES: usize = 256;
const MAX_FLAGS: usize = 64;

/// A value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
    /// A floating-point number or a bare word. No field of a group has one.
    Other,
}

/// A section: keys with values, and further sections.
#[derive(Debug, Default)]
pub(super) struct Section {
    values: Vec<(String, Value)>,
    sections: Vec<(String, Section)>,
}

impl Section {
    /// Parses a text, which ends at its first NUL.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut parser = Parser { text, at: 0, nodes: 0 };
        parser.section(0)
    }

    /// Returns the first value of that key, as LVM does.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a number that is not negative.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// Returns a list; a single value counts as a list of one, as in `dm_config_get_list`.
    pub(super) fn list(&self, key: &str) -> &[Value] {
        match self.value(key) {
            Some(Value::List(list)) => list,
            Some(value) => std::slice::from_ref(value),
            None => &[],
        }
    }

    /// Tests that one of the lists `status` and `flags` has a flag.
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        let flags = |key| self.list(key).iter().take(MAX_FLAGS);
        flags("status")
            .chain(flags("flags"))
            .any(|value| matches!(value, Value::Text(text) if text == flag))
    }

    pub(super) fn sections(&self) -> &[(String, Section)] {
        &self.sections
    }

    pub(super) fn section(&self, key: &str) -> Option<&Section> {
        let mut sections = self.sections.iter();
        sections.find(|(name, _)| name == key).map(|(_, section)| section)
    }

    pub(super) fn into_sections(self) -> Vec<(String, Section)> {
        self.sections
    }

    pub(super) fn into_section(self, key: &str) -> Option<Section> {
        let mut sections = self.sections.into_iter();
        sections.find(|(name, _)| name == key).map(|(_, section)| section)
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    nodes: usize,
}

impl Parser<'_> {
    fn damaged<T>(&self, what: &str) -> Result<T> {
        Err(Error::damaged(format!("metadata text: {what} at byte {}", self.at)))
    }

    fn count(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::unsupported(format!(
                "metadata text of more than {MAX_NODES} values"
            )));
        }
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Passes bytes while they are of a kind, and returns them.
    fn take(&mut self, is_part: impl Fn(u8) -> bool) -> &[u8] {
        let rest = &self.text[self.at..];
        let len = rest.iter().position(|byte| !is_part(*byte)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// Passes white space and comments, and returns the byte after them.
    fn next(&mut self) -> Option<u8> {
        loop {
            self.take(|byte| byte.is_ascii_whitespace());
            if self.peek() != Some(b'#') {
                return self.peek();
            }
            self.take(|byte| byte != b'\n');
        }
    }

    /// Passes a byte if it is the next one.
    fn accept(&mut self, byte: u8) -> bool {
        let found = self.next() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > MAX_DEPTH {
            return self.damaged("sections nested too deeply");
        }
        let mut section = Section::default();
        loop {
            match self.next() {
                None if depth == 0 => return Ok(section),
                None => return self.damaged("section without an end"),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                Some(_) => {}
            }
            let key = self.key()?;
            self.count()?;
            if self.accept(b'{') {
                section.sections.push((key, self.section(depth + 1)?));
            } else if self.accept(b'=') {
                section.values.push((key, self.value()?));
                if section.values.len() > MAX_VALUES {
                    return self.damaged("section of too many values");
                }
            } else {
                return self.damaged("name without a value");
            }
        }
    }

    fn key(&mut self) -> Result<String> {
        if self.peek() == Some(b'"') {
            return self.quoted(b'"');
        }
        let key = self.take(|byte| !byte.is_ascii_whitespace() && !b"={}[],#\"'".contains(&byte));
        let key = String::from_utf8_lossy(key).into_owned();
        if key.is_empty() {
            return self.damaged("value without a name");
        }
        Ok(key)
    }

    fn value(&mut self) -> Result<Value> {
        if !self.accept(b'[') {
            return self.scalar();
        }
        let mut list = Vec::new();
        while !self.accept(b']') {
            list.push(self.scalar()?);
            if !self.accept(b',') && self.next() != Some(b']') {
                return self.damaged("list without an end");
            }
        }
        Ok(Value::List(list))
    }

    fn scalar(&mut self) -> Result<Value> {
        self.count()?;
        if let Some(quote @ (b'"' | b'\'')) = self.next() {
            return Ok(Value::Text(self.quoted(quote)?));
        }
        let word = self.take(|byte| byte.is_ascii_alphanumeric() || b"+-._@/:".contains(&byte));
        let word = String::from_utf8_lossy(word);
        if word.is_empty() {
            return self.damaged("name without a value");
        }
        Ok(word.parse().map_or(Value::Other, Value::Number))
    }

    /// Passes a string. In double quotes, a backslash takes the byte after it as it is (`dm_escape_double_quotes`).
    fn quoted(&mut self, quote: u8) -> Result<String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let mut byte = self.peek();
            self.at += 1;
            if byte == Some(quote) {
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            if byte == Some(b'\\') && quote == b'"' {
                byte = self.peek();
                self.at += 1;
            }
            match byte {
                Some(byte) => bytes.push(byte),
                None => {
                    self.at = self.text.len();
                    return self.damaged("string without an end");
                }
            }
        }
    }
}
