//! The output of a guest's console: a bounded log, and a search for the lines that prove a boot or its failure.

use std::collections::VecDeque;

use regex::bytes::Regex;

/// First bytes of the console that are kept: firmware, boot loader and kernel.
const HEAD_BYTES: usize = 256 << 10;
/// Last bytes that are kept: what the guest did before the end.
const TAIL_BYTES: usize = 768 << 10;
/// Bytes before new output that are searched again with it: a line may come in parts.
const WINDOW_BYTES: usize = 4 << 10;
/// Memory of a compiled pattern.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// A prompt of login(1) or getty(8). "Last login: ..." is what comes after one.
const LOGIN: &str = r"(?-u)(?:^|[^t] |[\x00-\x1f]|\x1b\[[0-9;]*m)login:";

/// Escape sequence that moves the cursor or sets a colour (ECMA-48, section 5.4), or resets the terminal.
const CURSOR: &str = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|c)";

/// Words that end a boot, and what they mean.
const FAILURES: [(&str, &str); 9] = [
    ("Kernel panic", "the kernel panicked"),
    ("You are in emergency mode", "the guest is in emergency mode"),
    ("Entering emergency mode", "the guest is in emergency mode"),
    ("Give root password for maintenance", "the guest is in emergency mode"),
    ("(initramfs) ", "the initramfs did not find the root file system"),
    ("grub rescue>", "GRUB did not find its files"),
    ("No bootable device", "the firmware found no bootable disk"),
    (
        "No bootable option or device was found",
        "the firmware found no bootable disk",
    ),
    ("UEFI Interactive Shell", "the firmware found no bootable disk"),
];

/// Bounded log of a console.
#[derive(Debug, Default)]
pub struct ConsoleLog {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl ConsoleLog {
    /// Adds output.
    pub fn add(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(HEAD_BYTES - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.left_out += excess as u64;
    }

    /// Returns the log, with a line where its middle is left out.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = self.head.clone();
        if self.left_out > 0 {
            all.extend_from_slice(format!("\n[{} bytes left out]\n", self.left_out).as_bytes());
        }
        all.extend(&self.tail);
        all
    }

    /// Returns the last lines that can be shown, without control characters.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes = self.bytes();
        let end = &bytes[bytes.len().saturating_sub(WINDOW_BYTES)..];
        let text = String::from_utf8_lossy(end);
        let moves = regex::Regex::new(CURSOR).expect("the pattern is a constant that a test compiles");
        let text = moves.replace_all(&text, "");
        let lines = text.split(['\n', '\r']).map(|line| line.replace(char::is_control, ""));
        let mut lines: Vec<_> = lines.filter(|line| !line.trim().is_empty()).collect();
        lines.split_off(lines.len().saturating_sub(count))
    }
}

/// A sign on the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// The prompt or pattern that was waited for.
    Proof,
    /// The guest can't boot, for this reason.
    Failure(&'static str),
}

/// Search for signs in the output as it comes.
#[derive(Debug)]
pub struct Watch {
    proof: Regex,
    window: Vec<u8>,
}

impl Watch {
    /// Looks for a login prompt.
    pub fn for_login() -> Self {
        Self::of(Regex::new(LOGIN).expect("the pattern is a constant that a test compiles"))
    }

    /// Looks for a pattern of the user.
    pub fn for_pattern(pattern: &str) -> Result<Self, String> {
        let built = regex::bytes::RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_BYTES)
            .multi_line(true)
            .build();
        Ok(Self::of(built.map_err(|error| error.to_string())?))
    }

    fn of(proof: Regex) -> Self {
        Self {
            proof,
            window: Vec::new(),
        }
    }

    /// Looks into new output. The first sign counts.
    pub fn look(&mut self, bytes: &[u8]) -> Option<Sign> {
        self.window.extend_from_slice(bytes);
        let proof = self.proof.find(&self.window).map(|found| (found.start(), Sign::Proof));
        let failures = FAILURES.iter().filter_map(|(words, meaning)| {
            let mut places = self.window.windows(words.len());
            let at = places.position(|place| place == words.as_bytes())?;
            Some((at, Sign::Failure(meaning)))
        });
        // At the same place the proof counts: the user may wait for the words of a failure.
        let first = proof.into_iter().chain(failures).min_by_key(|(at, _)| *at);
        let excess = self.window.len().saturating_sub(WINDOW_BYTES);
        self.window.drain(..excess);
        first.map(|(_, sign)| sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(watch: &mut Watch, parts: &[&str]) -> Option<Sign> {
        parts.iter().find_map(|part| watch.look(part.as_bytes()))
    }

    #[test]
    fn a_login_prompt_is_found_even_in_parts() {
        for parts in [
            &["Debian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: "][..],
            &["web1 lo", "gi", "n: "],
            &["\x1b[0mlogin:"],
            &["login:"],
        ] {
            assert_eq!(signs(&mut Watch::for_login(), parts), Some(Sign::Proof), "{parts:?}");
        }
        for text in ["Last login: Mon", "systemd-logind started", "user mylogin: x"] {
            assert_eq!(signs(&mut Watch::for_login(), &[text]), None, "{text}");
        }
    }

    #[test]
    fn the_first_sign_counts() {
        let panic = Some(Sign::Failure("the kernel panicked"));
        let text = "Kernel panic - not syncing: no init\nweb1 login: ";
        assert_eq!(signs(&mut Watch::for_login(), &[text]), panic);
        assert_eq!(
            signs(&mut Watch::for_login(), &["web1 login: \nKernel panic"]),
            Some(Sign::Proof)
        );
        assert_eq!(signs(&mut Watch::for_login(), &["Kernel ", "panic"]), panic);
    }

    #[test]
    fn a_pattern_of_the_user_replaces_the_prompt() {
        let mut watch = Watch::for_pattern("^nginx: ready in [0-9]+ ms$").expect("compiles");
        assert_eq!(signs(&mut watch, &["web1 login: \n", "nginx: rea", "dy in 3"]), None);
        assert_eq!(signs(&mut watch, &[" ms\n"]), Some(Sign::Proof));
        let mut watch = Watch::for_pattern("Kernel panic").expect("compiles");
        assert_eq!(signs(&mut watch, &["Kernel panic"]), Some(Sign::Proof));
        for bad in ["(", "(a{1000}){1000}"] {
            assert!(Watch::for_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_log_keeps_its_beginning_and_its_end() {
        let mut log = ConsoleLog::default();
        log.add(b"first\n");
        for _ in 0..400 {
            log.add(&[b'x'; 10_000]);
        }
        log.add(b"last\r\n\x1bc\x1b[?7l\x1b[2J\x1b[0mline\r\n");
        let bytes = log.bytes();
        assert!(bytes.starts_with(b"first\n") && bytes.ends_with(b"line\r\n"));
        assert!(bytes.len() < HEAD_BYTES + TAIL_BYTES + 100);
        assert_eq!(log.last_lines(1), ["line"]);
    }
}
