//! A rehearsal: watches a guest boot until it proves that it is up, or fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vbk_repo::state::BootProof;

use crate::boot::BootError;
use crate::boot::console::{ConsoleLog, Sign, Watch};
use crate::boot::process::Running;
use crate::boot::qmp::Event;

/// Resets that are no loop: a boot loader that sets up its entries resets once, and so does a file system check.
const MAX_RESETS: u32 = 2;
/// Time in which resets count as one: SeaBIOS answers a reset of the processor with one of the whole machine, which may
/// take several attempts (SeaBIOS, src/resume.c).
const ONE_RESET: Duration = Duration::from_secs(2);
/// Interval of looking at everything but the console.
const INTERVAL: Duration = Duration::from_millis(200);
/// Interval of asking the agent.
const ASK_AGENT: Duration = Duration::from_secs(3);

/// Proof to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A login prompt on the console, or an answer of the guest agent.
    Any,
    /// This pattern on the console, and nothing else.
    Pattern(String),
}

/// Result of watching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The guest is up.
    Proven(BootProof),
    /// It is not, for this reason.
    Failed(String),
    /// The user ended it.
    Cancelled,
}

/// Watches until there is a verdict. Passes the console's output on.
pub fn watch(
    guest: &mut Running,
    wanted: &Wanted,
    limit: Duration,
    cancel: &AtomicBool,
    log: &mut ConsoleLog,
    output: &mut dyn FnMut(&[u8]),
) -> Result<Verdict, BootError> {
    let (mut signs, proof, mut agent) = match wanted {
        Wanted::Any => (Watch::for_login(), BootProof::Login, guest.agent()),
        Wanted::Pattern(pattern) => (
            Watch::for_pattern(pattern).map_err(BootError::Qmp)?,
            BootProof::Pattern,
            None,
        ),
    };
    let started = Instant::now();
    let (mut resets, mut reset_at, mut asked) = (0, None, None);
    while started.elapsed() < limit {
        if cancel.load(Ordering::SeqCst) {
            return Ok(Verdict::Cancelled);
        }
        let Some(bytes) = guest.read_console(INTERVAL, None)? else {
            return Ok(Verdict::Failed("QEMU ended".to_owned()));
        };
        log.add(&bytes);
        output(&bytes);
        match signs.look(&bytes) {
            Some(Sign::Proof) => return Ok(Verdict::Proven(proof)),
            Some(Sign::Failure(meaning)) => return Ok(Verdict::Failed(meaning.to_owned())),
            None => {}
        }
        for event in guest.events()? {
            match event {
                Event::Panicked => return Ok(Verdict::Failed("the kernel panicked".to_owned())),
                Event::Off => return Ok(Verdict::Failed("the guest powered itself off".to_owned())),
                Event::Paused => {
                    let why = "a write to its disk failed; --scratch-size sets a higher limit";
                    return Ok(Verdict::Failed(why.to_owned()));
                }
                Event::Reset if reset_at.is_some_and(|at: Instant| at.elapsed() < ONE_RESET) => {}
                Event::Reset => {
                    reset_at = Some(Instant::now());
                    resets += 1;
                }
            }
        }
        if resets > MAX_RESETS {
            return Ok(Verdict::Failed("the guest resets again and again".to_owned()));
        }
        if let Some(channel) = &mut agent {
            let is_due = asked.is_none_or(|at: Instant| at.elapsed() >= ASK_AGENT);
            if is_due {
                asked = Some(Instant::now());
            }
            let asking = if is_due { channel.ask() } else { Ok(()) };
            match asking.and_then(|()| channel.has_answered()) {
                Ok(true) => return Ok(Verdict::Proven(BootProof::Agent)),
                Ok(false) => {}
                // The guest sends nonsense, or reads nothing.
                Err(_) => agent = None,
            }
        }
    }
    Ok(Verdict::Failed(format!("no sign of it within {} s", limit.as_secs())))
}
