//! Changes of a running wire, as lines: over a socket, or by [`command`].

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::link::Counts;
use crate::settings::{parse_share, parse_time};
use crate::{Direction, Wire};

/// The lines that a wire knows.
pub const HELP: &str = "\
cut [TIME]                   nothing passes, for a time or until mend
half-open [up|down] [TIME]   nothing passes in one direction: down, from the server to the client, or up
mend                         ends all cuts
delay TIME                   the round trip of later packets
loss SHARE                   the share of later packets that are lost, e.g. 0.1%
stats                        packets and bytes each way, and what became of the others";

/// Bytes of a line, and a time for it: both far more than a line needs.
const MAX_LINE_BYTES: u64 = 4096;
const LINE_TIME: Duration = Duration::from_secs(5);

/// Does what a line says, and returns the answer.
pub fn command(wire: &Wire, line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["cut"] => wire.cut(None),
        ["cut", time] => wire.cut(Some(parse_time(time)?)),
        ["half-open"] => wire.cut_direction(Direction::Down, None),
        ["half-open", "up"] => wire.cut_direction(Direction::Up, None),
        ["half-open", "down"] => wire.cut_direction(Direction::Down, None),
        ["half-open", "up", time] => wire.cut_direction(Direction::Up, Some(parse_time(time)?)),
        ["half-open", "down", time] => wire.cut_direction(Direction::Down, Some(parse_time(time)?)),
        ["half-open", time] => wire.cut_direction(Direction::Down, Some(parse_time(time)?)),
        ["mend"] => wire.mend(),
        ["delay", time] => wire.set_delay(parse_time(time)?),
        ["loss", share] => wire.set_loss(parse_share(share)?),
        ["stats"] => {
            let [up, down] = [Direction::Up, Direction::Down].map(|direction| counts(wire.counts(direction)));
            return Ok(format!("up {up}\ndown {down}"));
        }
        _ => return Err(format!("{line:?} is not one of:\n{HELP}")),
    }
    Ok("ok".to_owned())
}

fn counts(counts: Counts) -> String {
    let Counts {
        packets,
        bytes,
        lost,
        overflowed,
        cut,
    } = counts;
    format!("packets={packets} bytes={bytes} lost={lost} overflowed={overflowed} cut={cut}")
}

/// Serves lines, one a connection, in a thread that lives as long as the process. Returns the path of the socket:
/// below `/proc`, because a socket without a name in any directory leaves nothing behind, however this ends.
pub fn serve(wire: Arc<Wire>, directory: &Path) -> io::Result<PathBuf> {
    let name = directory.join(format!("vbk-wire-{:016x}", fastrand::u64(..)));
    let listener = UnixListener::bind(&name)?;
    let socket = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&name);
    std::fs::remove_file(&name)?;
    let socket = socket?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), socket.as_raw_fd());
    thread::Builder::new().name("control".to_owned()).spawn(move || {
        let _socket = socket;
        for stream in listener.incoming().flatten() {
            // The sender of a line that can't be read sees it: there is no answer.
            let _ = answer(&wire, &stream);
        }
    })?;
    Ok(path.into())
}

fn answer(wire: &Wire, mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LINE_TIME))?;
    stream.set_write_timeout(Some(LINE_TIME))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut line)?;
    match command(wire, line.trim()) {
        Ok(answer) => write!(stream, "+{answer}"),
        Err(error) => write!(stream, "-{error}"),
    }
}

/// Sends a line to the socket of a wire and returns the answer.
pub fn send(socket: &Path, line: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_at_checked(1) {
        Some(("+", answer)) => Ok(answer.to_owned()),
        Some(("-", error)) => Err(io::Error::other(error.to_owned())),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
