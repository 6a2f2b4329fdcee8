//! Compares what a page shows with what was printed. What differs from run to run is replaced on both sides, and nothing else.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// Stands for lines that a page leaves out.
const LEFT_OUT: &str = "...";

/// What a line says, with a placeholder for each time, size, duration, rate, id and large number, and a single space for many.
/// A zero stays a zero: whether something was read or stored is what a line says.
pub fn placeholders(line: &str) -> String {
    let mut words: Vec<String> = line.split_whitespace().map(word).collect();
    for at in 1..words.len() {
        let (before, this) = (words[at - 1].clone(), words[at].clone());
        let (opening, number) = split_opening(&before);
        let unit = this.trim_end_matches([')', ',', ';', ':', '.', '"']);
        let rest = this[unit.len()..].to_owned();
        let is_number = number.bytes().any(|byte| byte.is_ascii_digit())
            && number
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b','))
            || number == "<NUMBER>";
        let placeholder = match unit {
            "B" | "KiB" | "MiB" | "GiB" | "TiB" if number != "0" => "<SIZE>",
            "B/s" | "kB/s" | "MB/s" | "GB/s" | "KiB/s" | "MiB/s" => "<RATE>",
            "block" | "blocks" if number != "0" => "<N> blocks",
            _ => continue,
        };
        if is_number {
            words[at - 1] = format!("{opening}{placeholder}{rest}");
            words[at] = String::new();
        }
    }
    for at in 1..words.len() {
        let is_day = words[at].parse::<u8>().is_ok_and(|day| day < 32);
        let number = words[at].trim_end_matches([',', ')']);
        if matches!(&*words[at - 1], "process" | "(process") && number.parse::<u32>().is_ok() {
            words[at] = format!("<PID>{}", &words[at][number.len()..]);
        } else if words[at - 1] == "vbk" && words[at].split('.').count() == 3 && words[at].starts_with(is_digit) {
            words[at] = "<VERSION>".into();
        } else if is_day && MONTHS.contains(&words[at - 1].as_str()) {
            words[at - 1] = "<DATE>".into();
            words[at] = String::new();
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// A word with placeholders for what can be told without its neighbours.
fn word(word: &str) -> String {
    let (opening, inner) = split_opening(word);
    let core = inner.trim_end_matches([')', ',', ';', ':', '.', '"', '`']);
    let rest = &inner[core.len()..];
    if is_duration(core) {
        return format!("{opening}<DURATION>{rest}");
    }
    if core.len() > 40 && core.split('-').count() > 8 {
        return "<RECOVERY KEY>".into();
    }
    let mut text = String::new();
    let mut left = word;
    let mut before = ' ';
    while let Some(first) = left.chars().next() {
        let found = match before.is_ascii_alphanumeric() || before == '.' {
            true => None,
            false => pattern(left),
        };
        match found {
            Some((len, placeholder)) => {
                text += placeholder;
                left = &left[len..];
                before = ' ';
            }
            None => {
                text.push(first);
                left = &left[first.len_utf8()..];
                before = first;
            }
        }
    }
    text
}

/// A pattern at the start of a text, with its length: `0` is a digit, `h` a hexadecimal one.
fn pattern(text: &str) -> Option<(usize, &'static str)> {
    let fixed = [
        ("0000-00-00T00-00-00Z", "<TIME>"),
        ("0000-00-00T00:00:00Z", "<TIME>"),
        ("0000-00-00T00:00:00.000000Z", "<TIME>"),
        ("00000000T000000.000Z", "<TIME>"),
        ("0000-00-00", "<DATE>"),
        ("0000-W00", "<DATE>"),
        ("0000-00", "<DATE>"),
        ("00:00:00", "<CLOCK>"),
        ("00:00", "<CLOCK>"),
        ("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh", "<UUID>"),
    ];
    let ends_at = |len: usize| {
        text.as_bytes()
            .get(len)
            .is_none_or(|byte| !byte.is_ascii_alphanumeric())
    };
    for (shape, placeholder) in fixed {
        let fits = text.len() >= shape.len()
            && shape.bytes().zip(text.bytes()).all(|(shape, byte)| match shape {
                b'0' => byte.is_ascii_digit(),
                b'h' => byte.is_ascii_hexdigit(),
                other => byte == other,
            });
        if fits && ends_at(shape.len()) {
            return Some((shape.len(), placeholder));
        }
    }
    let hex = text.bytes().take_while(u8::is_ascii_hexdigit).count();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    // 2.4 times, 98.3: the fraction is never the point. A version has two points.
    let fraction = text[digits..].strip_prefix('.').unwrap_or_default();
    let fraction = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let with_fraction = digits + 1 + fraction;
    if digits > 0 && fraction > 0 && ends_at(with_fraction) && !text[with_fraction..].starts_with('.') {
        return Some((with_fraction, "<NUMBER>"));
    }
    // An id can consist of digits alone, so that large numbers and ids are one kind.
    if digits >= 5 && ends_at(digits) {
        return Some((digits, "<NUMBER>"));
    }
    (hex >= 8 && ends_at(hex)).then_some((hex, "<NUMBER>"))
}

fn is_digit(char: char) -> bool {
    char.is_ascii_digit()
}

/// `0.4s`, `31s`, `6m12s`, `14ms`. Not `7d`, which is no time that something took.
fn is_duration(word: &str) -> bool {
    let is_part = |char: char| char.is_ascii_digit() || matches!(char, '.' | 'm' | 's' | 'h');
    word.starts_with(is_digit) && word.ends_with('s') && word.chars().all(is_part)
}

fn split_opening(word: &str) -> (&str, &str) {
    word.split_at(word.len() - word.trim_start_matches(['(', '"', '`', '~']).len())
}

/// What differs, if something does: `- ` for a line of the page, `+ ` for one that was printed.
pub fn difference(shown: &[&str], printed: &[&str], shown_exit: i32, exit: i32) -> Option<String> {
    if shown_exit == exit && aligned(shown, printed).is_some() {
        return None;
    }
    let mut text = String::new();
    let (ours, theirs) = (numbered(shown), numbered(printed));
    let common = common(&ours, &theirs);
    let (mut left, mut right) = (0, 0);
    for (in_shown, in_printed) in common.into_iter().chain([(shown.len(), printed.len())]) {
        for line in &shown[left..in_shown] {
            let _ = writeln!(text, "  - {line}");
        }
        for line in &printed[right..in_printed] {
            let _ = writeln!(text, "  + {line}");
        }
        (left, right) = (in_shown + 1, in_printed + 1);
        if let Some(line) = printed.get(in_printed) {
            let _ = writeln!(text, "    {line}");
        }
    }
    if shown_exit != exit {
        let _ = writeln!(text, "  - (exit {shown_exit})\n  + (exit {exit})");
    }
    Some(text)
}

fn numbered(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| placeholders(line)).collect()
}

/// The printed lines below those of the page, if they are the same but for placeholders. `...` is any lines, at least one, and has
/// none.
fn aligned<'a>(shown: &[&str], printed: &[&'a str]) -> Option<Vec<Option<&'a str>>> {
    let cut = shown.iter().position(|line| *line == LEFT_OUT);
    let head = cut.unwrap_or(shown.len());
    if printed.len() < head || numbered(&shown[..head]) != numbered(&printed[..head]) {
        return None;
    }
    let mut lines: Vec<_> = printed[..head].iter().copied().map(Some).collect();
    let Some(cut) = cut else {
        return (printed.len() == head).then_some(lines);
    };
    let tail = (cut + 1..=printed.len()).find_map(|from| aligned(&shown[cut + 1..], &printed[from..]))?;
    lines.push(None);
    lines.extend(tail);
    Some(lines)
}

/// The backups that the lines of a page name, `GUEST@TIME`, each with the one that was printed in its place.
pub fn backups<'a>(shown: &[&'a str], printed: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let lines = aligned(shown, printed).unwrap_or_default();
    let pairs = shown
        .iter()
        .zip(lines)
        .filter_map(|(shown, printed)| Some((shown, printed?)));
    let pairs = pairs.flat_map(|(shown, printed)| backups_in(shown).zip(backups_in(printed)));
    pairs.collect()
}

fn backups_in(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|char: char| !(char.is_ascii_alphanumeric() || "@-_.".contains(char)));
    words.filter(|word| {
        let time = word.split_once('@').and_then(|(_, time)| Some((time, pattern(time)?)));
        time.is_some_and(|(time, (len, placeholder))| placeholder == "<TIME>" && len == time.len())
    })
}

/// The pairs of a longest common subsequence.
fn common(ours: &[String], theirs: &[String]) -> Vec<(usize, usize)> {
    let mut lens = vec![vec![0_usize; theirs.len() + 1]; ours.len() + 1];
    for left in (0..ours.len()).rev() {
        for right in (0..theirs.len()).rev() {
            lens[left][right] = match ours[left] == theirs[right] {
                true => lens[left + 1][right + 1] + 1,
                false => lens[left + 1][right].max(lens[left][right + 1]),
            };
        }
    }
    let (mut left, mut right, mut pairs) = (0, 0, Vec::new());
    while left < ours.len() && right < theirs.len() {
        if ours[left] == theirs[right] {
            pairs.push((left, right));
            (left, right) = (left + 1, right + 1);
        } else if lens[left + 1][right] >= lens[left][right + 1] {
            left += 1;
        } else {
            right += 1;
        }
    }
    pairs
}

/// What a page is to show: all that was printed, but for as many lines as it left out in the middle.
pub fn rewritten(shown: &[&str], printed: &[&str], exit: i32) -> Vec<String> {
    let mut lines: Vec<String> = printed.iter().map(|line| (*line).to_owned()).collect();
    if let Some(same) = aligned(shown, printed) {
        lines = same
            .into_iter()
            .map(|line| line.unwrap_or(LEFT_OUT).to_owned())
            .collect();
    } else if let Some(cut) = shown.iter().position(|line| *line == LEFT_OUT) {
        let tail = shown.len() - cut - 1;
        if cut + tail < lines.len() {
            let from = lines.len() - tail;
            lines.splice(cut..from, [LEFT_OUT.to_owned()]);
        }
    }
    if exit != 0 {
        lines.push(format!("(exit {exit})"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_a_placeholder() {
        for (line, expected) in [
            (
                "web1@2026-11-21T09-29-33Z: 477 MiB read, 477 MiB new (313 MiB stored) in 1.0s",
                "web1@<TIME>: <SIZE> read, <SIZE> new (<SIZE> stored) in <DURATION>",
            ),
            (
                "web1   2026-11-21T09-29-33Z  vda    2.5 GiB  0 B  ae0253aa1ac1",
                "web1 <TIME> vda <SIZE> 0 B <NUMBER>",
            ),
            ("Time:        2026-11-21 09:29:36 UTC", "Time: <DATE> <CLOCK> UTC"),
            ("Made by:     vbk 0.1.0 on host1", "Made by: vbk <VERSION> on host1"),
            (
                "-r--r--r-- 1 root root 2684354560 Nov 21 09:29 vda.img",
                "-r--r--r-- 1 root root <NUMBER> <DATE> <CLOCK> vda.img",
            ),
            (
                "2 backups verified, 480 blocks (480 MiB) read: all good",
                "2 backups verified, <N> blocks (<SIZE>) read: all good",
            ),
            (
                "read limit 120 MB/s: 60% of 200 MB/s",
                "read limit <RATE> 60% of <RATE>",
            ),
            ("bin 30d, min-age 14d", "bin 30d, min-age 14d"),
            ("in use by process 1219", "in use by process <PID>"),
            ("a backup (process 600, since", "a backup (process <PID>, since"),
        ] {
            assert_eq!(placeholders(line).replace("<RATE>:", "<RATE>"), expected);
        }
    }

    #[test]
    fn a_wrong_line_is_not_the_same() {
        let shown = ["GUEST  SIZE", "web1  1 MiB  good"];
        assert_eq!(difference(&shown, &["GUEST SIZE", "web1 2 MiB good"], 0, 0), None);
        assert_eq!(difference(&["ae0253aa1ac1"], &["120253001101"], 0, 0), None);
        for printed in ["web2 1 MiB good", "web1 0 B good", "web1 1 MiB damaged", "web1 1 MiB"] {
            assert!(
                difference(&shown, &["GUEST SIZE", printed], 0, 0).is_some(),
                "{printed}"
            );
        }
        assert!(difference(&shown, &["GUEST SIZE"], 0, 0).is_some());
        assert!(difference(&shown, &shown, 0, 1).is_some_and(|text| text.contains("+ (exit 1)")));
    }

    #[test]
    fn three_dots_are_lines_that_are_left_out() {
        let is_same = |shown: &[&str], printed: &[&str]| aligned(shown, printed).is_some();
        assert!(is_same(&["a", "...", "z"], &["a", "b", "c", "z"]));
        assert!(is_same(&["a", "..."], &["a", "b"]));
        assert!(!is_same(&["a", "...", "z"], &["a", "z"]));
        assert!(!is_same(&["a", "...", "z"], &["b", "c", "z"]));
        assert_eq!(
            rewritten(&["...", "1 B", "...", "2 B"], &["a", "3 B", "b", "c", "4 B"], 0),
            ["...", "3 B", "...", "4 B"]
        );
        assert_eq!(
            rewritten(&["a", "...", "z"], &["1", "2", "3", "4"], 3),
            ["1", "...", "4", "(exit 3)"]
        );
    }

    #[test]
    fn backups_are_found_in_pairs() {
        let shown = [
            "made web1@2026-11-21T09-29-33Z,",
            "...",
            "b@2026-11-21T09-29-34Z  2 MiB  see a@b and web1@latest",
        ];
        let printed = [
            "made web1@2026-12-01T00-00-00Z,",
            "",
            "b@2026-12-01T00-00-01Z 3 MiB see a@b and web1@latest",
        ];
        let pairs = [
            ("web1@2026-11-21T09-29-33Z", "web1@2026-12-01T00-00-00Z"),
            ("b@2026-11-21T09-29-34Z", "b@2026-12-01T00-00-01Z"),
        ];
        assert_eq!(backups(&shown, &printed), pairs);
    }
}
