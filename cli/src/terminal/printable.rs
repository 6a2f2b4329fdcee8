//! Makes text safe to print: names, sources, hosts and versions in a repository may be written by others, and a terminal
//! obeys control characters in them.

use std::fmt::Write;

/// Escapes one line, e.g. a cell of a table: characters that drive a terminal or change the order of others become
/// `\u{1b}`, and so do line breaks and tabs.
pub fn line(text: &str) -> String {
    escaped(text, |_| false)
}

/// Escapes several lines: line breaks and tabs stay.
pub fn lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// Escapes an event of the log, whose colours stay. Quoted values have none, because `tracing` writes an escape in them
/// as text.
pub fn event(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        let (before, colour) = rest.split_at(start);
        out.push_str(&lines(before));
        // Select Graphic Rendition (ECMA-48): digits, semicolons and an m. It moves and erases nothing.
        let digits = colour[2..].trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        let end = match digits.starts_with('m') {
            true => colour.len() - digits.len() + 1,
            false => 2,
        };
        let (order, after) = colour.split_at(end);
        match digits.starts_with('m') {
            true => out.push_str(order),
            false => out.push_str(&lines(order)),
        }
        rest = after;
    }
    out + &lines(rest)
}

/// Escapes JSON without changing its meaning. serde_json escapes characters below U+0020; others occur only in strings.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match drives(c) && !c.is_ascii_whitespace() {
            true => write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes all"),
            false => out.push(c),
        }
    }
    out
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match drives(c) && !stays(c) {
            true => out.extend(c.escape_unicode()),
            false => out.push(c),
        }
    }
    out
}

/// Returns whether a character is a control: C0, DEL and C1 (ECMA-48), line separators, and controls of the writing
/// direction (Unicode, UAX 9), with which a name can look like another.
fn drives(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_removed() {
        for bad in [
            "\u{1b}]0;x\u{7}",
            "\r",
            "\u{9b}2J",
            "\u{7f}",
            "\u{202e}gpj",
            "\u{2028}",
            "\0",
        ] {
            for shown in [line(bad), lines(bad)] {
                assert!(!shown.chars().any(drives) && shown.contains("\\u{"), "{shown:?}");
            }
        }
        assert_eq!(line("a\u{1b}[31mb\n\tc"), "a\\u{1b}[31mb\\u{a}\\u{9}c");
        assert_eq!(lines("a\u{1b}[31mb\n\tc"), "a\\u{1b}[31mb\n\tc");
    }

    #[test]
    fn ordinary_text_is_unchanged() {
        for good in ["/dev/vg0/web1", "Größe 日本 é", "a\\u{1b}", "\u{1f980} \u{e9}"] {
            assert_eq!([line(good), lines(good), json(good)], [good; 3]);
        }
    }

    #[test]
    fn a_log_event_keeps_colours_and_no_other_control_sequence() {
        let coloured = "\u{1b}[33m WARN\u{1b}[0m \u{1b}[1;31mx\u{1b}[0m\n";
        assert_eq!(event(coloured), coloured);
        assert_eq!(event("a\u{1b}[2Jb\u{1b}[3\r"), "a\\u{1b}[2Jb\\u{1b}[3\\u{d}");
        assert_eq!(event("\u{1b}]0;x\u{7}\u{1b}"), "\\u{1b}]0;x\\u{7}\\u{1b}");
        assert_eq!(event("\u{1b}["), "\\u{1b}[");
    }

    #[test]
    fn escaping_keeps_the_value_of_json() {
        let value = serde_json::json!({"a\u{9b}": ["\u{1b}[1m\n", "\u{7f}\u{202e}", "é"]});
        let text = serde_json::to_string_pretty(&value).expect("is text");
        let shown = json(&text);
        assert!(shown.chars().all(|c| !drives(c) || c == '\n'), "{shown:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).expect("is JSON"),
            value
        );
    }
}
