//! A client of QEMU's monitor (QMP) and of the guest agent: JSON, a line each way. Bounded lines and times.
//! Protocol: QEMU's docs/interop/qmp-spec and qemu-ga-ref.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::boot::BootError;

/// Longest line. QEMU's answers here have some hundred bytes.
const MAX_LINE_BYTES: usize = 64 << 10;
/// Messages that are handled before the caller looks at its time limit again.
const MAX_LINES_AT_ONCE: usize = 64;
/// Events that are kept until they are fetched; a guest that resets all the time makes many.
const MAX_EVENTS: usize = 256;
/// Interval of asking if QEMU still runs.
const RETRY: Duration = Duration::from_millis(20);
/// Wait for a byte when only what has come already is wanted: a timeout of zero means for ever (socket(7)).
const NO_WAIT: Duration = Duration::from_millis(1);

/// Lines of JSON from a socket.
#[derive(Debug)]
struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// Returns the next line; `None` if it has not come within the limit.
    fn next(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, BootError> {
        let deadline = Instant::now() + limit;
        let failed = |error: std::io::Error| BootError::Qmp(error.to_string());
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(BootError::Qmp(format!("a line has more than {MAX_LINE_BYTES} bytes")));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left.max(NO_WAIT))).map_err(failed)?;
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(0) => return Err(BootError::Qmp("the connection was closed".to_owned())),
                Ok(count) => self.buffer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if left <= NO_WAIT {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn send(&mut self, message: &Value) -> Result<(), BootError> {
        let limit = Some(Duration::from_secs(5));
        let sent = self.stream.set_write_timeout(limit);
        let sent = sent.and_then(|()| self.stream.write_all(format!("{message}\n").as_bytes()));
        sent.map_err(|error| BootError::Qmp(error.to_string()))
    }
}

/// Event of QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest was reset by itself.
    Reset,
    /// The guest is off.
    Off,
    /// The guest reported a panic.
    Panicked,
    /// A write to a disk failed for lack of space, and the guest was paused.
    Paused,
}

/// A connection to the monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines,
    events: Vec<Event>,
}

impl Qmp {
    /// Takes a connection, and waits for the greeting as long as `is_alive` says that QEMU runs.
    pub(super) fn over(
        stream: UnixStream,
        limit: Duration,
        is_alive: &mut dyn FnMut() -> bool,
    ) -> Result<Self, BootError> {
        let deadline = Instant::now() + limit;
        let mut qmp = Self {
            lines: Lines::new(stream),
            events: Vec::new(),
        };
        let greeting = loop {
            match qmp.message(RETRY)? {
                Some(greeting) => break greeting,
                None if !is_alive() || Instant::now() > deadline => return Err(BootError::Silent(limit)),
                None => {}
            }
        };
        if greeting.get("QMP").is_none() {
            return Err(BootError::Qmp("it sent no greeting".to_owned()));
        }
        qmp.execute("qmp_capabilities", &json!({}), limit)?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value, limit: Duration) -> Result<Value, BootError> {
        self.lines.send(&json!({"execute": command, "arguments": arguments}))?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self.message(left)?.ok_or(BootError::Silent(limit))?;
            if let Some(error) = message.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("an error");
                return Err(BootError::Qmp(format!("{command}: {text:.200}")));
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if left.is_zero() {
                return Err(BootError::Silent(limit));
            }
        }
    }

    /// Returns the events that have come.
    pub(super) fn events(&mut self) -> Result<Vec<Event>, BootError> {
        for _ in 0..MAX_LINES_AT_ONCE {
            if self.message(Duration::ZERO)?.is_none() || self.events.len() >= MAX_EVENTS {
                break;
            }
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn message(&mut self, limit: Duration) -> Result<Option<Value>, BootError> {
        let Some(line) = self.lines.next(limit)? else {
            return Ok(None);
        };
        let message = serde_json::from_slice(&line);
        let message: Value = message.map_err(|error| BootError::Qmp(format!("it sent no JSON: {error}")))?;
        if self.events.len() < MAX_EVENTS {
            self.events.extend(event(&message));
        }
        Ok(Some(message))
    }
}

fn event(message: &Value) -> Option<Event> {
    let by_guest = message.pointer("/data/guest").and_then(Value::as_bool) == Some(true);
    match message.get("event")?.as_str()? {
        "RESET" if by_guest => Some(Event::Reset),
        "SHUTDOWN" => Some(Event::Off),
        "GUEST_PANICKED" => Some(Event::Panicked),
        "BLOCK_IO_ERROR" if message.pointer("/data/action")? == "stop" => Some(Event::Paused),
        _ => None,
    }
}

/// A connection to the guest agent.
#[derive(Debug)]
pub(super) struct Agent {
    lines: Lines,
    number: u64,
}

impl Agent {
    /// Takes a connection to QEMU's end of the channel, whether or not an agent is at the other.
    pub(super) fn over(stream: UnixStream) -> Self {
        Self {
            lines: Lines::new(stream),
            number: 0,
        }
    }

    /// Asks the agent for an answer. Answers to earlier questions count too.
    pub(super) fn ask(&mut self) -> Result<(), BootError> {
        self.number += 1;
        // A sync and not a ping: its answer has the number, so it can't be anything else that the guest sends.
        self.lines
            .send(&json!({"execute": "guest-sync", "arguments": {"id": self.number}}))
    }

    /// Tests for an answer that has come.
    pub(super) fn has_answered(&mut self) -> Result<bool, BootError> {
        // The guest decides how many lines come: the rest waits for the next call.
        for _ in 0..MAX_LINES_AT_ONCE {
            let Some(line) = self.lines.next(Duration::ZERO)? else {
                break;
            };
            let answer = serde_json::from_slice::<Value>(&line).ok();
            let number = answer
                .as_ref()
                .and_then(|answer| answer.get("return"))
                .and_then(Value::as_u64);
            if number.is_some_and(|number| (1..=self.number).contains(&number)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread::JoinHandle;

    use super::*;

    const SHORT: Duration = Duration::from_millis(500);

    /// A server that sends a greeting, and for each line that it gets one of the answers.
    fn server(greeting: &'static [u8], answers: Vec<Vec<u8>>) -> (UnixStream, JoinHandle<()>) {
        let (client, mut stream) = UnixStream::pair().expect("connects");
        let thread = std::thread::spawn(move || {
            let mut lines = BufReader::new(stream.try_clone().expect("a copy"));
            // The client may have left.
            let _ = stream.write_all(greeting);
            for answer in answers {
                let mut line = String::new();
                if lines.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                let _ = stream.write_all(&answer);
            }
            let _ = lines.read_line(&mut String::new());
        });
        (client, thread)
    }

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}}}\r\n";
    const DONE: &[u8] = b"{\"return\": {}}\r\n";

    fn connect(stream: UnixStream) -> Result<Qmp, BootError> {
        Qmp::over(stream, SHORT, &mut || true)
    }

    #[test]
    fn commands_are_answered_and_events_are_kept() {
        let event = |name: &str, guest: bool| format!("{{\"event\":\"{name}\",\"data\":{{\"guest\":{guest}}}}}\r\n");
        let events = event("RESET", true) + &event("RESET", false) + &event("STOP", true) + &event("SHUTDOWN", true);
        let with_events = [events.as_bytes(), DONE].concat();
        let refused = b"{\"error\": {\"class\": \"x\", \"desc\": \"no such command\"}}\n".to_vec();
        let (stream, thread) = server(GREETING, vec![DONE.to_vec(), with_events, refused]);
        let mut qmp = connect(stream).expect("connects");
        assert_eq!(qmp.execute("stop", &json!({}), SHORT).expect("runs"), json!({}));
        assert_eq!(qmp.events().expect("reads"), [Event::Reset, Event::Off]);
        let error = qmp
            .execute("nonsense", &json!({}), SHORT)
            .expect_err("fails")
            .to_string();
        assert!(error.contains("nonsense: no such command"), "{error}");
        drop(qmp);
        thread.join().expect("ends");
    }

    #[test]
    fn a_server_that_is_silent_closes_or_sends_nonsense_is_an_error_in_time() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES];
        for (greeting, answers) in [
            (&b""[..], vec![]),
            (b"not JSON\n", vec![]),
            (b"{\"return\": {}}\n", vec![]),
            (GREETING, vec![]),
            (GREETING, vec![long]),
            (GREETING, vec![b"{\"event\": 5}\n".to_vec()]),
        ] {
            let (stream, thread) = server(greeting, answers);
            let started = Instant::now();
            assert!(connect(stream).is_err());
            assert!(started.elapsed() < 4 * SHORT);
            thread.join().expect("ends");
        }
        let (stream, thread) = server(b"", vec![]);
        assert!(Qmp::over(stream, 100 * SHORT, &mut || false).is_err());
        thread.join().expect("ends");
    }

    #[test]
    fn an_agent_must_answer_with_a_number_that_it_got() {
        let wrong = b"{\"return\": 7}\nnonsense\n{\"return\": {}}\n".to_vec();
        let (stream, thread) = server(b"", vec![wrong, b"{\"return\": 1}\n".to_vec()]);
        let mut agent = Agent::over(stream);
        let answered = |agent: &mut Agent| {
            agent.ask().expect("asks");
            std::thread::sleep(Duration::from_millis(100));
            agent.has_answered().expect("reads")
        };
        assert!(!answered(&mut agent));
        assert!(answered(&mut agent));
        drop(agent);
        thread.join().expect("ends");
    }
}
