//! Freezes a guest for the moment in which its disks are snapshotted, and gets it running again whatever happens to vbk
//! in the meantime.
//!
//! There are two ways to bring a guest to rest, one inside the other: the administrator's pre-freeze and post-thaw
//! commands, and the guest agent's freeze of file systems (`virsh domfsfreeze`, `domfsthaw`). Each is done **and undone
//! by one helper process** (`freeze/process.rs`, which `freeze/helper.rs` starts), not by vbk. The process that undoes
//! exists before anything is frozen and does one step after the other. So it can't thaw before a freeze that is late,
//! and it does not need vbk.
//!
//! What happens if vbk dies (kill -9, out of memory, a panic) after each step:
//!
//! 1. Outer helper started: it has not begun, or begins although vbk is gone; it finds its input closed and undoes.
//! 2. Pre-freeze running: it ends, or is killed at its limit; then the helper finds its input closed, and post-thaw
//!    runs.
//! 3. Pre-freeze done: the input closes, post-thaw runs at once.
//! 4. Inner helper started, freeze running: as 1 and 2, with `domfsthaw`, which does nothing to a guest that is not
//!    frozen. The helper repeats it until libvirt has carried it out and the agent does not contradict, or libvirt
//!    reports the guest as off (`freeze/thaw.rs`): if libvirt is down for an hour, this takes an hour. The inner helper
//!    holds the outer helper's input open: the administrator's programs start only when the guest's file systems are
//!    writable again.
//!
//!    Freeze failed: vbk closes the inner input and makes the snapshots meanwhile; the helper thaws whether vbk lives
//!    or not. There is one exception: if the agent refused because another program has frozen the guest, vbk ends the
//!    helper before it thaws, because vbk does not thaw what it did not freeze. If vbk dies within these milliseconds,
//!    the helper thaws.
//! 5. Frozen, snapshots being made: both inputs close, the inner helper thaws, then the outer one runs post-thaw.
//! 6. Inner input closed by vbk (the normal end): the helper thaws whether vbk waits for it or not; then as 3.
//! 7. Outer input closed: post-thaw is running or done.
//!
//! If vbk is alive but stuck, in `lvcreate` or stopped by a signal, each helper stops waiting at its limit and undoes.
//! It then reports that the limit was reached, and the backup counts as crash-consistent. If a helper is killed while
//! vbk lives, vbk starts a second one. SIGTERM to the whole control group and Ctrl-C do not end a helper, and the OOM
//! killer spares it. Nothing survives SIGKILL to both helper and vbk: the unit must send signals to vbk alone
//! (`KillMode=process`), which also lets the programs started by post-thaw continue.
//!
//! vbk waits a minute for the thaw, warns, and reads the snapshots, which exist. A later run that finds a helper still
//! thawing does not freeze that guest: the helper's thaw would come in the middle of its snapshots.

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

/// Time for making the snapshots: added to the limits of pre-freeze and of the agent's freeze, it gives the limit at
/// which post-thaw runs anyway. Allows for a slow host.
const PRE_FREEZE_MARGIN: Duration = Duration::from_secs(20);
/// Time that vbk waits for the guest to thaw before it warns and reads the snapshots. The helper continues. Waiting
/// longer would help no guest, and would delay the others.
const THAW_WAIT: Duration = Duration::from_secs(if cfg!(test) { 7 } else { 60 });
/// Time that the snapshots wait for a guest that may be partly frozen: the programs stopped by pre-freeze wait too.
const THAW_SOON: Duration = Duration::from_secs(2);
/// The socket of the system's log, which journald and other loggers listen on.
const LOG_SOCKET: &str = "/dev/log";
/// Directory of the locks on domains that helpers freeze.
const LOCKS: &str = "freeze";
/// Output of virsh when no file system of the guest can be frozen (tools/virsh-domain.c).
const NONE_FROZEN: &str = "Froze 0 filesystem";

/// Use of the guest agent to freeze the guest's file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentFreeze {
    /// Use the agent if there is one; if it fails, the backup is made all the same, with a warning.
    #[default]
    Auto,
    /// Make no backup without a freeze by the agent.
    On,
    /// Never use it.
    Off,
}

/// The way to bring a guest to rest.
#[derive(Debug, Clone)]
pub struct FreezePlan {
    /// Name of the guest: for messages, and for `VBK_GUEST` in the environment of its commands.
    pub guest: String,
    /// Libvirt domain of the guest, if it has one.
    pub domain: Option<String>,
    /// Use of the agent in it.
    pub agent: AgentFreeze,
    /// Time from the start of the freeze to the thaw, by default 10 s: Windows guests then give up by themselves.
    pub freeze_limit: Duration,
    /// Shell command that brings the guest's programs to rest. It must end; processes that it starts continue.
    pub pre_freeze: Option<String>,
    /// Time limit of pre-freeze.
    pub pre_freeze_limit: Duration,
    /// Shell command that undoes pre-freeze. It runs if pre-freeze was started, even if that failed; without pre-freeze
    /// it runs after every snapshot. It and the processes it starts ignore TERM, INT and HUP.
    pub post_thaw: Option<String>,
    /// Time that vbk waits for post-thaw. It is not killed after that: half a start helps nobody.
    pub post_thaw_limit: Duration,
}

impl FreezePlan {
    /// Default time limit of the pre-freeze command.
    pub const PRE_FREEZE_LIMIT: Duration = Duration::from_secs(60);

    /// Plan for a guest without commands and without an agent: nothing is done.
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

/// Result of one way to bring a guest to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// It was not requested, or nothing can do it.
    None,
    /// It held until the snapshots were complete.
    Held,
    /// It was requested and failed, or ended too early.
    Broken,
}

/// Returns the consistency reached. A failed agent freeze voids what the commands achieved: the programs rested on file
/// systems that did not.
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

/// Makes snapshots of a guest while it rests, as far as `plan` requests, and returns their consistency.
///
/// The guest runs again when this returns, also after an error or a panic of `snapshot`. If that is uncertain, or if
/// the guest rested less than requested, `observer` gets a warning. Blocks for the plan's limits at most, plus a minute
/// for thawing, plus `snapshot`.
///
/// `runtime_dir` is a directory that is lost when the host restarts. It records a helper that is still thawing a guest,
/// which is then not frozen again. This program is started again as the helper: it must call [`run_helper`] when its
/// first argument is [`HELPER`].
pub(crate) fn with_guest_at_rest<T, E: From<FreezeError>>(
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

/// Reason why nothing was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// The guest is off, so its disks do not change.
    NotRunning,
    /// The guest has no channel for an agent, or no agent listens on it: virt-install makes the channel for every
    /// guest.
    NoAgent,
    /// The agent refuses the command: another program has frozen the guest, or the command is not allowed. Or virsh is
    /// missing.
    Refused,
}

/// Recognises, by messages of libvirt (src/qemu/qemu_domain.c, `qemuDomainAgentAvailable`; src/conf/domain_conf.c,
/// `virDomainObjCheckActive`) or of the agent (qapi/qmp-dispatch.c), that nothing was frozen.
fn absence(said: &str) -> Option<Absence> {
    const WORDS: [(&str, Absence); 5] = [
        ("domain is not running", Absence::NotRunning),
        ("QEMU guest agent is not configured", Absence::NoAgent),
        ("QEMU guest agent is not connected", Absence::NoAgent),
        ("guest-fsfreeze-freeze has been disabled", Absence::Refused),
        // Message of the shell that should have started it.
        ("virsh: not found", Absence::Refused),
    ];
    let found = WORDS.iter().find(|(words, _)| said.contains(words));
    found.map(|(_, absence)| *absence)
}

/// Returns an identifier that virsh takes for this domain and no other: before virsh looks for a name, it takes a
/// number for the id of a running domain, and text in the form of a UUID for a UUID.
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

/// Returns the time from the start of pre-freeze to post-thaw.
fn commands_limit(plan: &FreezePlan) -> Duration {
    plan.pre_freeze_limit + plan.freeze_limit + PRE_FREEZE_MARGIN
}

/// A guest that is being frozen.
struct Scene<'a> {
    programs: &'a Programs,
    plan: &'a FreezePlan,
    runtime_dir: &'a Path,
    observer: &'a dyn Observer,
    /// Identifier for virsh, or the reason why it is not known; `None` if the agent is not to be used.
    domain: Option<Result<String, String>>,
}

/// State of the agent's freeze.
enum Agent {
    Frozen(Box<Helper>),
    /// Freezing failed, and the helper is undoing it.
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
        // `:` is the shell's command that does nothing.
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
        // The rest of the limit is for the snapshots.
        let act_limit = plan.freeze_limit / 2;
        // One word with the option, because a domain's name may be -x.
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
            // The earlier helper's thaw would undo a second freeze in the middle of the snapshots.
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
            // Some file systems may be frozen, or libvirt may still freeze them later.
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

    /// Returns the file that is locked as long as a helper freezes or thaws the domain; `None` if there can be no lock.
    fn lock_of(&self, domain: &str) -> Option<PathBuf> {
        let locks = self.runtime_dir.join(LOCKS);
        match std::fs::create_dir_all(&locks) {
            Ok(()) => Some(locks.join(to_hex(&Hashing::Plain.content(domain.as_bytes())))),
            Err(error) => {
                tracing::warn!("can't create {}: {error}", locks.display());
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
                        "its file systems did not stay frozen until all snapshots were made ({why}); this backup is \
                         crash-consistent"
                    ));
                }
                Rest::Broken
            }
        }
    }

    /// Makes the inner helper thaw. The error says why the file systems were thawed earlier.
    fn undo_freeze(&self, helper: Helper) -> Result<(), String> {
        let pid = helper.pid();
        let Undone {
            asked,
            result,
            still_trying,
        } = helper.undo(THAW_WAIT);
        if let Err(why) = &result {
            let domain = self.domain.iter().flatten().next().map_or("", String::as_str);
            self.warn(&match still_trying {
                Some(said) => format!(
                    "ITS FILE SYSTEMS MAY STILL BE FROZEN: it did not thaw within {} s ({said}); process {pid} tries \
                     until the guest is thawed or off, and reports to the journal each minute; `virsh domfsthaw \
                     {domain}` does the same",
                    THAW_WAIT.as_secs()
                ),
                None => format!(
                    "ITS FILE SYSTEMS MAY STILL BE FROZEN: thawing {why}, and no process tries it any more; run `virsh \
                     domfsthaw {domain}`"
                ),
            });
        }
        match (asked, result) {
            (false, _) => Err(format!(
                "they are held for {} s at most",
                self.plan.freeze_limit.as_secs_f32()
            )),
            (true, Ok(said)) if said.contains(NONE_THAWED) => Err("another program thawed them".to_owned()),
            (true, _) => Ok(()),
        }
    }

    /// Makes the outer helper run post-thaw.
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
                "its programs did not stay at rest until all snapshots were made (they are held for {} s at most); \
                 this backup is not application-consistent",
                commands_limit(plan).as_secs_f32()
            ));
        }
        if asked { Rest::Held } else { Rest::Broken }
    }
}
