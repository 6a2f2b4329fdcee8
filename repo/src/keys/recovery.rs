//! Recovery keys: a key that is written on paper and typed again.
//!
//! 13 groups of five of the letters and digits `0123456789ABCDEFGHJKMNPQRSTVWXYZ` (Crockford's base 32, without I, L, O
//! and U), most significant bits first. Four characters of a group carry 20 bits, and the fifth checks them. The 260
//! bits are the 256 of the key and 4 of its hash.
//!
//! A group's check character satisfies `check = number of the group + sum of 2^(i+1) * character i` in the field of 32
//! elements (modulo x^5 + x^2 + 1), where all factors differ and none is zero. This detects every single wrong
//! character, every swap of two characters of a group, every swap of two groups, and any other mistake in a group with
//! a probability of 31 in 32.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use crate::block::derive;
use crate::cipher::random;
use crate::error::{Error, Result};

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUPS: usize = 13;
const GROUP_CHARS: usize = 5;
const DATA_CHARS: usize = GROUP_CHARS - 1;
const HASH: &str = "vbk 2026-11-21 v1 recovery key check";

/// A key for people: shown once, kept on paper. Zeroed when it is dropped.
#[derive(Clone)]
pub struct RecoveryKey {
    key: Zeroizing<[u8; 32]>,
}

impl RecoveryKey {
    /// Returns a new random key.
    pub fn generate() -> Result<Self> {
        Ok(Self { key: random()?.into() })
    }

    /// Parses a typed key. Case, spaces, line ends and dashes do not matter; O is read as 0, I and L as 1. An error
    /// names the group with the mistake, counted from 1, and never shows the typed text.
    pub fn parse(text: &str) -> Result<Self> {
        let is_gap = |c: char| c.is_whitespace() || matches!(c, '-' | '_' | '\u{2010}'..='\u{2015}' | '\u{2212}');
        let mut symbols = Zeroizing::new([0; GROUPS * GROUP_CHARS]);
        let mut count = 0;
        for c in text.chars().filter(|&c| !is_gap(c)) {
            let symbol = symbol(c).ok_or_else(|| {
                let group = count / GROUP_CHARS + 1;
                bad(format!(
                    "group {group} of the recovery key has a character that is not used in recovery keys"
                ))
            })?;
            if let Some(place) = symbols.get_mut(count) {
                *place = symbol;
            }
            count += 1;
        }
        if count != symbols.len() {
            let typed: Vec<_> = text.split(is_gap).filter(|group| !group.is_empty()).collect();
            let wrong = typed.iter().position(|group| group.chars().count() != GROUP_CHARS);
            return Err(bad(match wrong {
                Some(group) if typed.len() == GROUPS => format!(
                    "group {} of the recovery key has {} characters instead of {GROUP_CHARS}",
                    group + 1,
                    typed[group].chars().count()
                ),
                _ => format!(
                    "a recovery key has {} characters in {GROUPS} groups, but this one has {count}",
                    symbols.len()
                ),
            }));
        }
        let wrong: Vec<_> = (0..GROUPS)
            .zip(symbols.chunks(GROUP_CHARS))
            .filter(|(number, group)| check(*number, &group[..DATA_CHARS]) != group[DATA_CHARS])
            .map(|(number, _)| (number + 1).to_string())
            .collect();
        match &wrong[..] {
            [] => Self::from_symbols(&symbols[..]),
            [group] => Err(bad(format!("group {group} of the recovery key is mistyped"))),
            groups => Err(bad(format!(
                "groups {} of the recovery key are mistyped",
                groups.join(", ")
            ))),
        }
    }

    fn from_symbols(symbols: &[u8]) -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        let mut bits: u32 = 0;
        let mut bit_count = 0;
        let mut len = 0;
        for symbol in symbols.chunks(GROUP_CHARS).flat_map(|group| &group[..DATA_CHARS]) {
            bits = (bits << 5 | u32::from(*symbol)) & 0xFFF;
            bit_count += 5;
            if bit_count >= 8 && len < key.len() {
                bit_count -= 8;
                key[len] = (bits >> bit_count) as u8;
                len += 1;
            }
        }
        let stated = bits as u8 & 0xF;
        bits.zeroize();
        if stated != hash(&key) {
            return Err(bad("the recovery key is mistyped in more than one place".to_owned()));
        }
        Ok(Self { key })
    }

    /// Returns the key as people write it: the groups in one line, with dashes between them.
    pub fn text(&self) -> Zeroizing<String> {
        let last = hash(&self.key) << 4;
        let mut bits: u32 = 0;
        let mut symbols = Zeroizing::new(Vec::with_capacity(GROUPS * DATA_CHARS));
        let mut bit_count = 0;
        for byte in self.key.iter().copied().chain([last]) {
            bits = (bits << 8 | u32::from(byte)) & 0xFFFF;
            bit_count += 8;
            while bit_count >= 5 && symbols.len() < GROUPS * DATA_CHARS {
                bit_count -= 5;
                symbols.push((bits >> bit_count) as u8 & 31);
            }
        }
        bits.zeroize();
        // Allocated at full length, so that no copy is left behind when it grows.
        let mut text = Zeroizing::new(String::with_capacity(GROUPS * (GROUP_CHARS + 1)));
        for (number, group) in symbols.chunks(DATA_CHARS).enumerate() {
            if number > 0 {
                text.push('-');
            }
            for symbol in group.iter().copied().chain([check(number, group)]) {
                text.push(char::from(ALPHABET[usize::from(symbol)]));
            }
        }
        text
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.key
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

fn symbol(c: char) -> Option<u8> {
    let c = match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    };
    (0..32)
        .zip(ALPHABET)
        .find(|(_, known)| char::from(**known) == c)
        .map(|(symbol, _)| symbol)
}

/// Returns the check character of a group, by the formula at the top of this module. Horner's rule, from the last
/// character.
fn check(number: usize, data: &[u8]) -> u8 {
    let double = |element: u8| (element << 1) ^ if element & 16 == 0 { 0 } else { 0b10_0101 };
    let sum = data.iter().rev().fold(0, |sum, symbol| double(sum ^ symbol));
    // There are 13 groups, so the number is an element of the field too.
    sum ^ number as u8
}

fn hash(key: &[u8; 32]) -> u8 {
    derive(HASH, key)[0] >> 4
}

fn bad(what: String) -> Error {
    Error::BadKey { what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(bytes: [u8; 32]) -> RecoveryKey {
        RecoveryKey { key: bytes.into() }
    }

    fn message(text: &str) -> String {
        match RecoveryKey::parse(text) {
            Err(error @ Error::BadKey { .. }) => error.to_string(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_key_looks_as_it_always_did() {
        let bytes: Vec<u8> = (0..32).map(|i: u8| i.wrapping_mul(37)).collect();
        let key = key(bytes.try_into().expect("32 bytes"));
        assert_eq!(
            key.text().as_str(),
            "00JM3-MVWMK-Q7F02-6A2DW-EABVB-SR86R-5D878-B6NZP-WG4JJ-WMVRH-KQ1EC-E31HE-ASXTW"
        );
    }

    #[test]
    fn every_single_wrong_character_is_found_and_its_group_named() {
        for bytes in [[0; 32], [0xFF; 32], *RecoveryKey::generate().expect("random").key] {
            let text = key(bytes).text();
            for place in (0..text.len()).filter(|place| place % 6 != 5) {
                for wrong in (0x20..0x7F_u8).map(char::from) {
                    let mut typed = text.to_string();
                    typed.replace_range(place..=place, &wrong.to_string());
                    if symbol(wrong).is_some() && symbol(wrong) == text[place..].chars().next().and_then(symbol) {
                        assert_eq!(RecoveryKey::parse(&typed).expect("the same").key, bytes.into());
                        continue;
                    }
                    let (named, group) = (message(&typed), place / 6 + 1);
                    // A wrong character that is taken for a gap leaves one character too few.
                    let is_gap = matches!(wrong, ' ' | '-' | '_');
                    assert!(is_gap || named.contains(&format!("group {group} ")), "{named}");
                }
            }
        }
    }

    #[test]
    fn what_changed_places_is_found() {
        let text = RecoveryKey::generate().expect("random").text();
        let groups: Vec<_> = text.split('-').collect();
        for (one, other) in (0..GROUPS).flat_map(|one| (0..one).map(move |other| (one, other))) {
            let mut typed = groups.clone();
            typed.swap(one, other);
            if typed != groups {
                assert!(message(&typed.join(" ")).contains("mistyped"));
            }
        }
        for place in (1..text.len()).filter(|place| place % 6 != 5 && place % 6 != 0) {
            let mut typed = text.as_bytes().to_vec();
            typed.swap(place - 1, place);
            let typed = String::from_utf8(typed).expect("ASCII");
            if typed != *text {
                assert!(message(&typed).contains(&format!("group {} ", place / 6 + 1)));
            }
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let text = key([3; 32]).text().to_string();
        assert!(message("").contains("this one has 0"));
        assert!(message(&text[1..]).contains("group 1 of the recovery key has 4 characters"));
        assert!(message(&format!("{text}7")).contains("group 13 of the recovery key has 6 characters"));
        assert!(message(&text[6..]).contains("this one has 60"));
        assert!(message(&text.repeat(40)).contains("this one has 2600"));
        assert!(message(&text.replacen(&text[..1], "ü", 1)).contains("group 1 "));
    }

    proptest! {
        #[test]
        fn keys_are_read_however_they_are_typed(bytes: [u8; 32], style in 0..5) {
            let text = key(bytes).text();
            let typed = match style {
                0 => text.to_string(),
                1 => text.to_lowercase(),
                2 => text.replace('-', ""),
                3 => text.replace('0', "o").replace('1', "l").replace('-', " \u{2013} "),
                _ => text.replace('0', "O").replace('1', "I").replace('-', "\n"),
            };
            prop_assert_eq!(&*RecoveryKey::parse(&typed)?.key, &bytes);
            prop_assert_eq!(text.len(), 77);
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,100}") {
            prop_assert!(RecoveryKey::parse(&text).is_err());
        }
    }
}
