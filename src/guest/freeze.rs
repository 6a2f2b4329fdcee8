//! Brings a guest to rest for the moment in which its disks are snapshotted, and gets it going again whatever happens
//! to vbk meanwhile.
//!
//! There are two ways to rest, one inside the other: the administrator's pre-freeze and post-thaw commands, and the
//! guest agent's freezing of file systems (`virsh domfsfreeze`, `domfsthaw`). Each is done **and undone by one helper
//! process** (`freeze/process.rs`, which `freeze/helper.rs` starts), not by vbk: the process that undoes exists before anything is frozen, does one after the
//! other and can therefore never thaw before a freeze that comes late, and needs vbk for nothing.
//!
//! What happens if vbk dies (kill -9, out of memory, a panic) after each step:
//!
//! 1. Outer helper started: it has not begun, or begins although vbk is gone; it finds its input closed and undoes.
//! 2. Pre-freeze running: it ends, or is killed at its limit; then the input is found closed, and post-thaw runs.
//! 3. Pre-freeze done: the input closes, post-thaw runs at once.
//! 4. Inner helper started, freeze running: as 1 and 2, with `domfsthaw`, which does nothing to a guest that is not
//!    frozen. It is tried without end, until libvirt has carried it out and the agent does not say otherwise, or libvirt
//!    says that the guest is off (`freeze/thaw.rs`): a libvirt that is away for an hour costs an hour. The outer helper's
//!    input is held open by the inner one: the administrator's programs are started when the guest's file systems can be
//!    written to again.
//!    Freeze failed: vbk closes the inner input and makes the snapshots meanwhile; the helper thaws whether vbk lives or
//!    not. Only where the agent refused, because somebody else has the guest frozen, vbk ends the helper before that:
//!    what vbk did not freeze it does not thaw. If vbk dies within these milliseconds, the helper does.
//! 5. Frozen, snapshots being made: both inputs close, the inner helper thaws, then the outer one runs post-thaw.
//! 6. Inner input closed by vbk (the normal end): the helper thaws whether vbk waits for it or not; then as 3.
//! 7. Outer input closed: post-thaw is running or done.
//!
//! vbk alive but stuck, in `lvcreate` or stopped by a signal: each helper stops waiting at its limit and undoes. It then
//! says that it was the limit, and the backup counts as crash-consistent. A helper that is killed while vbk lives is
//! followed by a second one. SIGTERM to the whole control group and Ctrl-C do not end a
//! helper, and the OOM killer spares it. Nothing survives SIGKILL to helper and vbk both: the unit must have the signals
//! sent to vbk alone (`KillMode=process`), which also lets go on what post-thaw started.
//!
//! vbk waits a minute for the thaw, warns, and reads the snapshots, which exist. A later run that finds a helper still
//! thawing does not freeze that guest: its thaw would come in the midst of the snapshots.

mod error;
mod helper;
mod process;
mod task;
#[cfg(test)]
mod tests;
mod thaw;

use std::path::{Path, PathBuf};
use std::time::Duration;

use vbk_repo::backup::Consistency;
use vbk_repo::block::Hashing;
use vbk_repo::id::to_hex;

use crate::host::libvirt::Libvirt;
use crate::host::program::Programs;
use crate::observer::{Event, Observer};
pub use error::FreezeError;
pub use helper::HELPER;
use helper::{Helper, StartError, Undone};
pub use process::run as run_helper;
use task::{Task, Undo};
use thaw::NONE_THAWED;

/// Time for making the snapshots, between a pre-freeze command and the limit at which post-thaw runs anyway: the agent's
/// part and a host that is slow.
const PRE_FREEZE_MARGIN: Duration = Duration::from_secs(20);
/// How long vbk waits for the guest to thaw before it warns and reads the snapshots. The helper goes on. Longer would help
/// no guest, and hold up the others.
const THAW_WAIT: Duration = Duration::from_secs(if cfg!(test) { 7 } else { 60 });
/// How long the snapshots wait for a guest that was perhaps frozen in part: what pre-freeze stopped waits too.
const THAW_SOON: Duration = Duration::from_secs(2);
/// The socket of the system's log, which journald and other loggers listen on.
const LOG_SOCKET: &str = "/dev/log";
/// Where helpers lock the domains that they freeze.
const LOCKS: &str = "freeze";
/// What virsh says when no file system of the guest can be frozen (tools/virsh-domain.c).
const NONE_FROZEN: &str = "Froze 0 filesystem";

/// Whether the guest agent is asked to freeze the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentFreeze {
    /// Where there is an agent; if it fails the backup is made all the same, with a warning.
    #[default]
    Auto,
    /// Without it no backup is made.
    On,
    /// Never.
    Off,
}

/// How a guest is brought to rest.
#[derive(Debug, Clone)]
pub struct FreezePlan {
    /// The guest's name: for messages, and `VBK_GUEST` in the environment of its commands.
    pub guest: String,
    /// Its libvirt domain, where it has one.
    pub domain: Option<String>,
    /// Whether to use the agent in it.
    pub agent: AgentFreeze,
    /// Time from the begin of the freeze to the thaw, 10 s at most by default: Windows guests give up then by
    /// themselves.
    pub freeze_limit: Duration,
    /// A shell command that brings the guest's programs to rest. It must end; what it starts goes on.
    pub pre_freeze: Option<String>,
    /// Its time limit.
    pub pre_freeze_limit: Duration,
    /// A shell command that undoes the other. It runs if pre-freeze was started, also after it failed, and without
    /// pre-freeze after every snapshot. It runs with TERM, INT and HUP ignored, and so does what it starts by itself.
    pub post_thaw: Option<String>,
    /// How long vbk waits for post-thaw. It is not killed at its limit: half a start helps nobody.
    pub post_thaw_limit: Duration,
}

impl FreezePlan {
    /// Default time limit of the pre-freeze command.
    pub const PRE_FREEZE_LIMIT: Duration = Duration::from_secs(60);

    /// A guest without commands and without an agent: nothing is done.
    pub fn none(guest: impl Into<String>) -> Self {
        Self {
            guest: guest.into(),
            domain: None,
            agent: AgentFreeze::Auto,
            freeze_limit: Duration::from_secs(10),
            pre_freeze: None,
            pre_freeze_limit: Self::PRE_FREEZE_LIMIT,
            post_thaw: None,
            post_thaw_limit: Duration::from_secs(120),
        }
    }
}

/// What became of one way to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Was not asked for, or there is nothing that could do it.
    None,
    /// Held until the snapshots were complete.
    Held,
    /// Was asked for and failed, or ended too early.
    Broken,
}

/// The table. A broken agent freeze spoils what the commands reached: they rest on file systems that stood still.
///
/// | commands | agent: none | held | broken |
/// |---|---|---|---|
/// | none | crash | file system | crash |
/// | held | application | application | crash |
/// | broken | crash | file system | crash |
fn consistency(commands: Rest, agent: Rest) -> Consistency {
    match (commands, agent) {
        (Rest::Held, Rest::None | Rest::Held) => Consistency::Application,
        (Rest::None | Rest::Broken, Rest::Held) => Consistency::FileSystem,
        (Rest::None | Rest::Broken, Rest::None) | (_, Rest::Broken) => Consistency::Crash,
    }
}

/// Makes snapshots of a guest while it rests, as far as `plan` asks for it, and says how consistent they are.
///
/// The guest is going again when this returns, also with an error and after a panic of `snapshot`; where that can't be
/// said, and where it rested less than asked for, `observer` gets a warning. Blocks for the plan's limits at most, plus
/// a minute for thawing, plus `snapshot`.
///
/// `runtime_dir` is a directory that is lost when the host restarts: a helper that is still thawing a guest is found
/// there, and the guest not frozen again meanwhile. This program is started again as the helper: it must call
/// [`run_helper`] when its first argument is [`HELPER`].
pub fn with_guest_at_rest<T, E: From<FreezeError>>(
    programs: &Programs,
    plan: &FreezePlan,
    runtime_dir: &Path,
    observer: &dyn Observer,
    snapshot: impl FnOnce() -> Result<T, E>,
) -> Result<(T, Consistency), E> {
    let scene = Scene {
        programs,
        plan,
        runtime_dir,
        observer,
        domain: plan
            .domain
            .as_deref()
            .filter(|_| plan.agent != AgentFreeze::Off)
            .map(|domain| unmistakable(programs, domain)),
    };
    // Dropped in reverse order: after a panic the inner one is undone first.
    let commands = scene.run_pre_freeze()?;
    let agent = match scene.freeze(commands.as_ref()) {
        Ok(agent) => agent,
        Err(error) => {
            scene.run_post_thaw(commands, false);
            return Err(error.into());
        }
    };
    let taken = snapshot();
    let complete = taken.is_ok();
    let agent = scene.thaw(agent, complete);
    let commands = scene.run_post_thaw(commands, complete);
    Ok((taken?, consistency(commands, agent)))
}

/// Why there is nothing to freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// Its disks do not change.
    NotRunning,
    /// No channel for an agent, or nobody listens at its end: virt-install makes the channel for every guest.
    NoAgent,
    /// The agent does not take the command: somebody else has frozen the guest, or it is not allowed. Or there is no virsh.
    Refused,
}

/// Tells by libvirt's words (src/qemu/qemu_domain.c, `qemuDomainAgentAvailable`; src/conf/domain_conf.c,
/// `virDomainObjCheckActive`) or the agent's (qapi/qmp-dispatch.c) that nothing was frozen.
fn absence(said: &str) -> Option<Absence> {
    const WORDS: [(&str, Absence); 5] = [
        ("domain is not running", Absence::NotRunning),
        ("QEMU guest agent is not configured", Absence::NoAgent),
        ("QEMU guest agent is not connected", Absence::NoAgent),
        ("guest-fsfreeze-freeze has been disabled", Absence::Refused),
        // The words of the shell that was to start it.
        ("virsh: not found", Absence::Refused),
    ];
    let found = WORDS.iter().find(|(words, _)| said.contains(words));
    found.map(|(_, absence)| *absence)
}

/// What virsh takes for this domain and no other: it takes a number for the id of a running domain, and what looks like a
/// UUID for that, before it looks for a name.
fn unmistakable(programs: &Programs, domain: &str) -> Result<String, String> {
    let is_number = domain
        .trim()
        .trim_start_matches(['+', '-'])
        .bytes()
        .all(|byte| byte.is_ascii_digit());
    let is_uuid = domain.len() >= 32
        && domain
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || b"- ".contains(&byte));
    match is_number || is_uuid {
        true => match Libvirt::new(programs).domain(domain) {
            Ok(found) => Ok(found.uuid),
            Err(error) => Err(error.to_string()),
        },
        false => Ok(domain.to_owned()),
    }
}

/// Time from the begin of pre-freeze to post-thaw.
fn commands_limit(plan: &FreezePlan) -> Duration {
    plan.pre_freeze_limit + plan.freeze_limit + PRE_FREEZE_MARGIN
}

/// A guest that is being frozen.
struct Scene<'a> {
    programs: &'a Programs,
    plan: &'a FreezePlan,
    runtime_dir: &'a Path,
    observer: &'a dyn Observer,
    /// What virsh is told, or why that is not known; `None` if the agent is not to be asked.
    domain: Option<Result<String, String>>,
}

/// The agent's part.
enum Agent {
    Frozen(Box<Helper>),
    /// Freezing failed, and is being undone.
    Thawing(Box<Helper>),
    Not(Rest),
}

impl Scene<'_> {
    fn warn(&self, text: &str) {
        self.observer.event(Event::Warning(text));
    }

    fn no_helper(&self, error: impl std::fmt::Display) -> FreezeError {
        FreezeError::Helper {
            guest: self.plan.guest.clone(),
            why: error.to_string(),
        }
    }

    /// Starts the outer helper and waits for pre-freeze.
    fn run_pre_freeze(&self) -> Result<Option<Helper>, FreezeError> {
        let plan = self.plan;
        if plan.pre_freeze.is_none() && plan.post_thaw.is_none() {
            return Ok(None);
        }
        // `:` is the shell's word for nothing.
        let shell = |command: &Option<String>| {
            let words = ["sh", "-c", command.as_deref().unwrap_or(":")];
            words.map(str::to_owned).to_vec()
        };
        let task = Task {
            guest: plan.guest.clone(),
            act: shell(&plan.pre_freeze),
            act_limit: plan.pre_freeze_limit,
            undo: Undo::Command(shell(&plan.post_thaw)),
            limit: commands_limit(plan),
            journal: self.journal(),
            lock: None,
            outer: None,
        };
        let environment = [("VBK_GUEST", plan.guest.as_str())];
        let mut helper =
            Helper::start(self.programs, task, &environment, None).map_err(|error| self.no_helper(error))?;
        match helper.acted(plan.pre_freeze_limit) {
            Ok(_) => Ok(Some(helper)),
            Err(why) => {
                self.run_post_thaw(Some(helper), false);
                Err(FreezeError::PreFreeze {
                    guest: plan.guest.clone(),
                    command: plan.pre_freeze.clone().unwrap_or_default(),
                    why,
                })
            }
        }
    }

    /// Starts the inner helper and waits for the freeze.
    fn freeze(&self, outer: Option<&Helper>) -> Result<Agent, FreezeError> {
        let plan = self.plan;
        let domain = match &self.domain {
            None => return Ok(Agent::Not(Rest::None)),
            Some(Ok(domain)) => domain,
            Some(Err(why)) => return self.not_frozen(None, why.clone()).map(Agent::Not),
        };
        // What is left of the limit is for the snapshots.
        let act_limit = plan.freeze_limit / 2;
        // One word with the option, so that a domain may be called -x.
        let act = [
            "virsh".to_owned(),
            "domfsfreeze".to_owned(),
            format!("--domain={domain}"),
        ];
        let task = Task {
            guest: plan.guest.clone(),
            act: act.into(),
            act_limit,
            undo: Undo::Thaw(domain.clone()),
            limit: plan.freeze_limit,
            journal: self.journal(),
            lock: self.lock_of(domain),
            outer: None,
        };
        let mut helper = match Helper::start(self.programs, task, &[], outer) {
            Ok(helper) => helper,
            // A second freeze would be undone by that thaw, in the midst of the snapshots.
            Err(error @ StartError::Busy(_)) => {
                let why = format!("{error} since an earlier backup");
                return self.not_frozen(Some(Absence::Refused), why).map(Agent::Not);
            }
            Err(error) => return Err(self.no_helper(error)),
        };
        let why = match helper.acted(act_limit) {
            Ok(said) if !said.contains(NONE_FROZEN) => return Ok(Agent::Frozen(Box::new(helper))),
            Ok(said) => said,
            Err(why) => why,
        };
        let absent = absence(&why);
        let result = self.not_frozen(absent, why);
        match (absent, &result) {
            (Some(_), _) => helper.abandon(),
            // Some file systems may be frozen, or will be when libvirt gets to it.
            (None, Ok(_)) => {
                helper.begin_undo(THAW_SOON);
                return Ok(Agent::Thawing(Box::new(helper)));
            }
            (None, Err(_)) => {
                let _ = self.undo_freeze(helper);
            }
        }
        result.map(Agent::Not)
    }

    fn journal(&self) -> PathBuf {
        match cfg!(test) {
            true => self.runtime_dir.join("journal"),
            false => LOG_SOCKET.into(),
        }
    }

    /// The file that is locked as long as a helper freezes or thaws the domain; without it nothing is locked.
    fn lock_of(&self, domain: &str) -> Option<PathBuf> {
        let locks = self.runtime_dir.join(LOCKS);
        match std::fs::create_dir_all(&locks) {
            Ok(()) => Some(locks.join(to_hex(&Hashing::Plain.content(domain.as_bytes())))),
            Err(error) => {
                tracing::warn!("can't make {}: {error}", locks.display());
                None
            }
        }
    }

    fn not_frozen(&self, absent: Option<Absence>, why: String) -> Result<Rest, FreezeError> {
        let plan = self.plan;
        match (absent, plan.agent) {
            (Some(Absence::NotRunning), _) => Ok(Rest::None),
            (_, AgentFreeze::On) => Err(FreezeError::Agent {
                guest: plan.guest.clone(),
                domain: plan.domain.clone().unwrap_or_default(),
                why,
            }),
            (Some(Absence::NoAgent), _) => Ok(Rest::None),
            (None | Some(Absence::Refused), _) => {
                self.warn(&format!(
                    "the guest agent did not freeze the file systems ({why}); this backup is crash-consistent"
                ));
                Ok(Rest::Broken)
            }
        }
    }

    fn thaw(&self, agent: Agent, complete: bool) -> Rest {
        let helper = match agent {
            Agent::Frozen(helper) => *helper,
            Agent::Thawing(helper) => {
                let _ = self.undo_freeze(*helper);
                return Rest::Broken;
            }
            Agent::Not(rest) => return rest,
        };
        match self.undo_freeze(helper) {
            Ok(()) => Rest::Held,
            Err(why) => {
                if complete {
                    self.warn(&format!(
                        "its file systems did not stay frozen until all snapshots were there ({why}); this backup is \
                         crash-consistent"
                    ));
                }
                Rest::Broken
            }
        }
    }

    /// Lets the inner helper thaw; or why they were thawed before.
    fn undo_freeze(&self, helper: Helper) -> Result<(), String> {
        let pid = helper.pid();
        let Undone { asked, result, goes_on } = helper.undo(THAW_WAIT);
        if let Err(why) = &result {
            let domain = self.domain.iter().flatten().next().map_or("", String::as_str);
            self.warn(&match goes_on {
                Some(said) => format!(
                    "ITS FILE SYSTEMS MAY STILL BE FROZEN: it did not thaw within {} s ({said}); process {pid} goes on until the \
                     guest is thawed or off, and tells the journal each minute; `virsh domfsthaw {domain}` does the same",
                    THAW_WAIT.as_secs()
                ),
                None => format!(
                    "ITS FILE SYSTEMS MAY STILL BE FROZEN: thawing {why}, and nothing tries it any more; run `virsh domfsthaw \
                     {domain}`"
                ),
            });
        }
        match (asked, result) {
            (false, _) => Err(format!("for {} s at most", self.plan.freeze_limit.as_secs_f32())),
            (true, Ok(said)) if said.contains(NONE_THAWED) => Err("somebody else thawed them".to_owned()),
            (true, _) => Ok(()),
        }
    }

    /// Lets the outer helper run post-thaw.
    fn run_post_thaw(&self, helper: Option<Helper>, complete: bool) -> Rest {
        let Some(helper) = helper else {
            return Rest::None;
        };
        let plan = self.plan;
        let pid = helper.pid();
        let Undone { asked, result, .. } = helper.undo(plan.post_thaw_limit);
        if let Err(why) = result {
            self.warn(&format!(
                "its post-thaw command `{}` {why} (process {pid}); what pre-freeze stopped may still be stopped",
                plan.post_thaw.as_deref().unwrap_or_default()
            ));
        }
        if plan.pre_freeze.is_none() {
            return Rest::None;
        }
        if !asked && complete {
            self.warn(&format!(
                "its programs did not stay at rest until all snapshots were there (for {} s at most); this backup is not \
                 application-consistent",
                commands_limit(plan).as_secs_f32()
            ));
        }
        if asked { Rest::Held } else { Rest::Broken }
    }
}
