//! Decides when a guest counts as thawed. Runs nothing itself.

use std::time::Duration;

/// Time limit of one attempt. libvirt answers a request for a guest whose agent is busy after 30 s.
const TRY_LIMIT: Duration = Duration::from_secs(40);
/// Output of virsh when nothing was frozen any more (tools/virsh-domain.c).
pub(super) const NONE_THAWED: &str = "Thawed 0 filesystem";
/// Message of libvirt for an unknown domain (src/conf/virdomainobjlist.c and the drivers).
const NO_DOMAIN: &str = "Domain not found";
/// Number of equal answers in a row that are believed, where a single one is not.
const BELIEVED: u32 = 3;

/// An answer of virsh.
pub(super) enum Virsh {
    /// It succeeded with this output.
    Said(String),
    /// It failed with this message.
    Failed(String),
}

/// Result of one attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The guest's file systems are writable; with virsh's output.
    Thawed(String),
    /// The guest is not running.
    Off,
    /// libvirt does not have the domain.
    Gone,
    /// The attempt must be repeated, for this reason.
    Again(String),
}

/// The attempts to thaw a domain.
pub(super) struct Thawing {
    domain: String,
    status: String,
    /// Answers in a row that nothing was frozen, without confirmation by the agent.
    unproven: u32,
    /// Answers in a row that the domain does not exist: libvirt may be just starting.
    unknown: u32,
}

impl Thawing {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            // One word with the option, because a domain's name may be -x.
            domain: format!("--domain={domain}"),
            status: r#"{"execute":"guest-fsfreeze-status"}"#.to_owned(),
            unproven: 0,
            unknown: 0,
        }
    }

    /// Makes one attempt. `virsh` runs virsh with these arguments and this time limit.
    pub(super) fn tried(&mut self, virsh: &mut dyn FnMut(&[&str], Duration) -> Virsh) -> Outcome {
        match virsh(&["domfsthaw", &self.domain], TRY_LIMIT) {
            Virsh::Said(said) => {
                self.unknown = 0;
                self.confirmed(said, virsh)
            }
            Virsh::Failed(why) => self.ended(why, virsh),
        }
    }

    /// Checks a reported thaw with the agent. It handles one request after the other, so its answer is from after the
    /// thaw. It may be forbidden to answer.
    fn confirmed(&mut self, said: String, virsh: &mut dyn FnMut(&[&str], Duration) -> Virsh) -> Outcome {
        let why = match virsh(&["qemu-agent-command", &self.domain, &self.status], TRY_LIMIT) {
            Virsh::Said(status) if status.contains("\"frozen\"") => {
                self.unproven = 0;
                return Outcome::Again("the agent says that they are still frozen".to_owned());
            }
            Virsh::Said(status) if status.contains("\"thawed\"") => return Outcome::Thawed(said),
            Virsh::Said(status) => status,
            Virsh::Failed(why) => why,
        };
        self.unproven += 1;
        match said.contains(NONE_THAWED) && self.unproven < BELIEVED {
            true => Outcome::Again(format!("nothing was frozen, but the agent does not confirm it: {why}")),
            false => Outcome::Thawed(said),
        }
    }

    fn ended(&mut self, why: String, virsh: &mut dyn FnMut(&[&str], Duration) -> Virsh) -> Outcome {
        match virsh(&["domstate", &self.domain], TRY_LIMIT) {
            Virsh::Said(state) if matches!(state.trim(), "shut off" | "crashed") => Outcome::Off,
            Virsh::Failed(more) if more.contains(NO_DOMAIN) => {
                self.unknown += 1;
                match self.unknown < BELIEVED {
                    true => Outcome::Again(why),
                    false => Outcome::Gone,
                }
            }
            Virsh::Said(_) | Virsh::Failed(_) => {
                self.unknown = 0;
                Outcome::Again(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of virsh for the thaw, the agent's status and the state.
    fn outcomes(tries: &[[&str; 3]]) -> Vec<Outcome> {
        let mut thawing = Thawing::new("web1");
        let answer = |text: &str| match text.strip_prefix("!") {
            Some(why) => Virsh::Failed(why.to_owned()),
            None => Virsh::Said(text.to_owned()),
        };
        let each = tries.iter().map(|[thaw, status, state]| {
            thawing.tried(&mut |words, _| match words[0] {
                "domfsthaw" => answer(thaw),
                "qemu-agent-command" => answer(status),
                _ => answer(state),
            })
        });
        each.collect()
    }

    const FROZEN: &str = r#"{"return":"frozen"}"#;
    const THAWED: &str = r#"{"return":"thawed"}"#;

    #[test]
    fn a_thaw_succeeds_unless_the_agent_reports_otherwise() {
        let thawed = |said: &str| Outcome::Thawed(said.to_owned());
        assert_eq!(outcomes(&[["Thawed 2", THAWED, ""]]), [thawed("Thawed 2")]);
        assert_eq!(outcomes(&[["Thawed 2", "!disabled", ""]]), [thawed("Thawed 2")]);
        let none = "Thawed 0 filesystem(s)";
        assert_eq!(outcomes(&[[none, THAWED, ""]]), [thawed(none)]);
        let tries = outcomes(&[[none, "!away", ""]; 3]);
        assert!(
            matches!(tries[..2], [Outcome::Again(_), Outcome::Again(_)]),
            "{tries:?}"
        );
        assert_eq!(tries[2], thawed(none));
        let tries = outcomes(&[["Thawed 1", FROZEN, ""]; 9]);
        assert!(tries.iter().all(|one| matches!(one, Outcome::Again(_))), "{tries:?}");
    }

    #[test]
    fn a_thaw_is_retried_until_the_guest_is_known_to_be_off() {
        for state in [
            "running\n",
            "paused",
            "in shutdown",
            "!error: failed to connect",
            "no state",
        ] {
            let tries = outcomes(&[["!failed", "", state]; 9]);
            assert!(tries.iter().all(|one| matches!(one, Outcome::Again(_))), "{state}");
        }
        for state in ["shut off\n\n", "crashed"] {
            assert_eq!(outcomes(&[["!failed", "", state]]), [Outcome::Off]);
        }
        let gone = [
            "!failed",
            "",
            "!error: failed to get domain 'web1'; error: Domain not found: web1",
        ];
        let tries = outcomes(&[gone, gone, ["!failed", "", "running"], gone, gone, gone]);
        assert!(
            tries[..5].iter().all(|one| matches!(one, Outcome::Again(_))),
            "{tries:?}"
        );
        assert_eq!(tries[5], Outcome::Gone);
    }
}
