//! Decides when a guest is thawed. Runs nothing itself.

use std::time::Duration;

/// libvirt answers a request for a guest whose agent is busy after 30 s.
const TRY_LIMIT: Duration = Duration::from_secs(40);
/// The words of virsh when nothing was frozen any more (tools/virsh-domain.c).
pub(super) const NONE_THAWED: &str = "Thawed 0 filesystem";
/// The words of libvirt for a domain that it does not know (src/conf/virdomainobjlist.c and the drivers).
const NO_DOMAIN: &str = "Domain not found";
/// So many answers in a row are believed that alone would be doubted.
const BELIEVED: u32 = 3;

/// An answer of virsh.
pub(super) enum Virsh {
    /// It succeeded and said this.
    Said(String),
    /// It failed so.
    Failed(String),
}

/// The result of a try.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The guest's file systems can be written to; the words of virsh.
    Thawed(String),
    /// The guest does not run.
    Off,
    /// libvirt does not know the domain.
    Gone,
    /// It is to be tried again, because of this.
    Again(String),
}

/// The tries to thaw a domain.
pub(super) struct Thawing {
    domain: String,
    status: String,
    /// Answers in a row that nothing was frozen, while the agent does not say so itself.
    unproven: u32,
    /// Answers in a row that there is no such domain: libvirt may be just starting.
    unknown: u32,
}

impl Thawing {
    pub(super) fn new(domain: &str) -> Self {
        Self {
            // One word with the option, so that a domain may be called -x.
            domain: format!("--domain={domain}"),
            status: r#"{"execute":"guest-fsfreeze-status"}"#.to_owned(),
            unproven: 0,
            unknown: 0,
        }
    }

    /// Tries once. `virsh` runs virsh with these words and this limit.
    pub(super) fn tried(&mut self, virsh: &mut dyn FnMut(&[&str], Duration) -> Virsh) -> Outcome {
        match virsh(&["domfsthaw", &self.domain], TRY_LIMIT) {
            Virsh::Said(said) => {
                self.unknown = 0;
                self.confirmed(said, virsh)
            }
            Virsh::Failed(why) => self.ended(why, virsh),
        }
    }

    /// The agent answers one request after the other, so what it says now is from after the thaw. An agent may be
    /// forbidden to answer.
    fn confirmed(&mut self, said: String, virsh: &mut dyn FnMut(&[&str], Duration) -> Virsh) -> Outcome {
        let why = match virsh(&["qemu-agent-command", &self.domain, &self.status], TRY_LIMIT) {
            Virsh::Said(status) if status.contains("\"frozen\"") => {
                self.unproven = 0;
                return Outcome::Again("the agent says that they still are".to_owned());
            }
            Virsh::Said(status) if status.contains("\"thawed\"") => return Outcome::Thawed(said),
            Virsh::Said(status) => status,
            Virsh::Failed(why) => why,
        };
        self.unproven += 1;
        match said.contains(NONE_THAWED) && self.unproven < BELIEVED {
            true => Outcome::Again(format!(
                "nothing was frozen, and the agent does not say so itself: {why}"
            )),
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
    fn a_thaw_counts_when_the_agent_does_not_say_otherwise() {
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
    fn only_a_certain_end_of_the_guest_ends_the_tries() {
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
