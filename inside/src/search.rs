//! Finds files by a pattern.

use crate::error::{Error, Result};
use crate::fs::{FileKind, FileTree, Node};
use crate::path::{Last, resolve};
use crate::walk::{Step, Walk};

#[cfg(test)]
mod tests;

/// Longest pattern; a path has at most 4096 bytes.
const MAX_PATTERN_BYTES: usize = 4096;

/// Reason why a pattern is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPattern {
    /// It is empty.
    #[error("the pattern is empty")]
    Empty,
    /// It is too long.
    #[error("the pattern is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    /// A bracket is not closed.
    #[error("a [ without its ]; \\[ means the character itself")]
    OpenBracket,
    /// The pattern ends with a backslash.
    #[error("a \\ at the end; \\\\ means the character itself")]
    OpenEscape,
}

/// A pattern as of a shell: `*` and `?` match within a name, `[a-z]` and `[!a-z]` one character, `**` any directories, and
/// a backslash makes the next character ordinary. Without a slash it matches the name of a file anywhere; with one it
/// matches the whole path, or, if it does not begin with a slash, any end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Parts between slashes. `None` is `**`.
    parts: Vec<Part>,
    /// Leading parts without wildcards.
    literal: Vec<Vec<u8>>,
}

/// A name, or `**`.
type Part = Option<Vec<Token>>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    AnyCharacter,
    AnyRun,
    Set { is_negated: bool, ranges: Vec<(u32, u32)> },
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &[u8]) -> std::result::Result<Self, BadPattern> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(BadPattern::TooLong);
        }
        let mut parts = Vec::new();
        if !text.starts_with(b"/") {
            parts.push(None);
        }
        for part in split(text) {
            match part {
                b"" | b"." => {}
                b"**" if parts.last() == Some(&None) => {}
                b"**" => parts.push(None),
                part => parts.push(Some(tokens(part)?)),
            }
        }
        if parts.iter().all(Option::is_none) && !text.contains(&b'*') {
            return Err(BadPattern::Empty);
        }
        let mut literal: Vec<Vec<u8>> = parts.iter().map_while(|part| literal_of(part.as_ref()?)).collect();
        // The last part is what is looked for.
        literal.truncate(parts.len().saturating_sub(1));
        Ok(Self { parts, literal })
    }

    /// Tests a path, with or without a leading slash.
    pub fn matches(&self, path: &[u8]) -> bool {
        let names: Vec<_> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .collect();
        if names.is_empty() {
            return false;
        }
        // `a/**` is all below a, and not a itself.
        match self.parts.split_last() {
            Some((None, fixed)) => (0..names.len()).any(|length| names_match(fixed, &names[..length])),
            _ => names_match(&self.parts, &names),
        }
    }
}

/// Splits at slashes that are not escaped.
fn split(text: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let (mut start, mut is_escaped) = (0, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'\\' => is_escaped = !is_escaped,
            b'/' => {
                parts.push(&text[start..at]);
                start = at + 1;
                is_escaped = false;
            }
            _ => is_escaped = false,
        }
    }
    parts.push(&text[start..]);
    parts
}

fn literal_of(tokens: &[Token]) -> Option<Vec<u8>> {
    let byte = |token: &Token| match token {
        Token::Byte(byte) => Some(*byte),
        _ => None,
    };
    tokens.iter().map(byte).collect()
}

fn tokens(part: &[u8]) -> std::result::Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut rest = part;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'*' => {
                if tokens.last() != Some(&Token::AnyRun) {
                    tokens.push(Token::AnyRun);
                }
            }
            b'?' => tokens.push(Token::AnyCharacter),
            b'\\' => {
                let (byte, after) = rest.split_first().ok_or(BadPattern::OpenEscape)?;
                tokens.push(Token::Byte(*byte));
                rest = after;
            }
            b'[' => {
                let (set, after) = set(rest)?;
                tokens.push(set);
                rest = after;
            }
            byte => tokens.push(Token::Byte(*byte)),
        }
    }
    Ok(tokens)
}

/// Reads a set after its opening bracket.
fn set(text: &[u8]) -> std::result::Result<(Token, &[u8]), BadPattern> {
    let (is_negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut ranges = Vec::new();
    loop {
        let (first, after) = match rest {
            [] => return Err(BadPattern::OpenBracket),
            // The first ] is a member.
            [b']', after @ ..] if !ranges.is_empty() => return Ok((Token::Set { is_negated, ranges }, after)),
            [b'\\', after @ ..] if !after.is_empty() => character(after),
            rest => character(rest),
        };
        rest = after;
        match rest {
            [b'-', after @ ..] if !after.is_empty() && after[0] != b']' => {
                let (last, after) = character(after);
                ranges.push((first, last));
                rest = after;
            }
            _ => ranges.push((first, first)),
        }
    }
}

/// Splits off a character: a UTF-8 sequence, or a byte that is none, numbered beyond all characters.
fn character(text: &[u8]) -> (u32, &[u8]) {
    for length in 1..=text.len().min(4) {
        let found = std::str::from_utf8(&text[..length])
            .ok()
            .and_then(|text| text.chars().next());
        if let Some(found) = found {
            return (u32::from(found), &text[length..]);
        }
    }
    match text.split_first() {
        Some((byte, after)) => (0x11_0000 + u32::from(*byte), after),
        None => (0, text),
    }
}

fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut mark = None;
    loop {
        match tokens.get(token) {
            Some(Token::AnyRun) => {
                mark = Some((token, at));
                token += 1;
                continue;
            }
            Some(wanted) if at < name.len() => {
                if let Some(length) = token_matches(wanted, &name[at..]) {
                    token += 1;
                    at += length;
                    continue;
                }
            }
            None if at == name.len() => return true,
            _ => {}
        }
        // The last run takes one more byte.
        match mark {
            Some((run, from)) if from < name.len() => {
                mark = Some((run, from + 1));
                token = run + 1;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

fn token_matches(token: &Token, name: &[u8]) -> Option<usize> {
    let (found, after) = character(name);
    let length = name.len() - after.len();
    match token {
        Token::Byte(byte) => (name.first() == Some(byte)).then_some(1),
        Token::AnyCharacter => Some(length),
        Token::AnyRun => None,
        Token::Set { is_negated, ranges } => {
            let is_in = ranges.iter().any(|(first, last)| (*first..=*last).contains(&found));
            (is_in != *is_negated).then_some(length)
        }
    }
}

/// Matches the names of a path. Only the last `**` is ever extended, so the time is at most the product of the lengths;
/// the same holds for a name.
fn names_match(parts: &[Part], names: &[&[u8]]) -> bool {
    let (mut part, mut at) = (0, 0);
    let mut mark = None;
    loop {
        match parts.get(part) {
            Some(None) => {
                mark = Some((part, at));
                part += 1;
                continue;
            }
            Some(Some(tokens)) if names.get(at).is_some_and(|name| name_matches(tokens, name)) => {
                part += 1;
                at += 1;
                continue;
            }
            None if at == names.len() => return true,
            _ => {}
        }
        match mark {
            Some((run, from)) if from < names.len() => {
                mark = Some((run, from + 1));
                part = run + 1;
                at = from + 1;
            }
            _ => return false,
        }
    }
}

/// Result of looking at one path.
#[derive(Debug)]
pub enum Found<'a> {
    /// A path that matches, without a leading slash.
    Match(&'a [u8], Node, FileKind),
    /// A path that can't be read; the rest goes on.
    Failed(&'a [u8], Error),
}

/// Walks through a tree and calls `each` for all that matches, until it returns false. Only the directory that the
/// pattern begins with is walked, as deep as the pattern goes; links to that directory are followed, as by a shell.
pub fn search(tree: &dyn FileTree, pattern: &Pattern, each: &mut dyn FnMut(Found<'_>) -> bool) -> Result<()> {
    let prefix = pattern.literal.join(&b'/');
    let start = match resolve(tree, tree.root(), &prefix, Last::Follow) {
        Ok(found) if found.kind == FileKind::Directory => found.node,
        Ok(_) | Err(Error::NotFound | Error::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut walk = Walk::new(tree, start);
    let mut path = prefix;
    if !path.is_empty() {
        path.push(b'/');
    }
    let length = path.len();
    let is_bounded = pattern.parts.iter().all(Option::is_some);
    let deepest = pattern.parts.len().saturating_sub(pattern.literal.len());
    while let Some(step) = walk.step() {
        path.truncate(length);
        path.extend(walk.path());
        let goes_on = match step {
            Step::Failed(error) => each(Found::Failed(&path, error)),
            Step::Found(node, kind) => {
                if is_bounded && walk.depth() + 1 >= deepest {
                    walk.skip();
                }
                !pattern.matches(&path) || each(Found::Match(&path, node, kind))
            }
        };
        if !goes_on {
            break;
        }
    }
    Ok(())
}
