use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::*;
use crate::error::{Error, Result};

/// Environment variable with the directory of the test that runs as vbk.
const CHILD: &str = "VBK_TEST_FREEZE";
const LONG: Duration = Duration::from_secs(30);

/// A directory with a virsh of our own, and a log of what was called.
struct Stage {
    dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Observer for Warnings {
    fn event(&self, event: Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.lock().push(text.to_owned());
        }
    }
}

impl Warnings {
    fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    fn one(&self) -> String {
        let all = self.all();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }
}

impl Stage {
    fn new() -> Self {
        let temporary = tempfile::tempdir().expect("makes a directory");
        let stage = Self {
            dir: temporary.path().to_owned(),
            _temporary: Some(temporary),
        };
        stage.virsh("");
        stage
    }

    /// A virsh that logs its call, runs `more` with `$1` as the command, and logs its end. Queries change nothing and
    /// are not logged.
    fn virsh(&self, more: &str) {
        let log = self.log_path();
        let log = log.display();
        let script = format!(
            "#!/bin/sh\ncase $1 in qemu-agent-command | domstate) log=/dev/null ;; *) log={log} ;; esac\n\
             echo \"$*\" >>$log\n{more}\necho \"$1 ended\" >>$log\n"
        );
        let path = self.dir.join("virsh");
        fs::write(&path, script).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("is ours");
    }

    fn programs(&self) -> Programs {
        Programs::found_in(format!("{}:/usr/bin:/bin", self.dir.display()))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// A shell command that writes a line to the log.
    fn say(&self, line: &str) -> String {
        format!("echo \"{line}\" >>{}", self.log_path().display())
    }

    fn note(&self, line: &str) {
        use std::io::Write;
        let mut log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("opens");
        writeln!(log, "{line}").expect("writes");
    }

    /// The log, without the ends of programs.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        text.lines()
            .filter(|line| !line.ends_with(" ended"))
            .map(str::to_owned)
            .collect()
    }

    fn wait_for(&self, line: &str) {
        let begun = Instant::now();
        while !fs::read_to_string(self.log_path()).unwrap_or_default().contains(line) {
            assert!(begun.elapsed() < LONG, "{line} is never called: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Both ways to rest.
    fn plan(&self) -> FreezePlan {
        FreezePlan {
            domain: Some("web1".into()),
            pre_freeze: Some(self.say("pre $VBK_GUEST")),
            post_thaw: Some(self.say("post $VBK_GUEST")),
            ..FreezePlan::none("web1")
        }
    }

    fn run(&self, plan: &FreezePlan) -> (Result<Consistency>, Warnings) {
        self.run_with(plan, || Ok(()))
    }

    fn run_with(&self, plan: &FreezePlan, more: impl FnOnce() -> Result<()>) -> (Result<Consistency>, Warnings) {
        let warnings = Warnings::default();
        let result = with_guest_at_rest(&self.programs(), plan, &self.dir, &warnings, || {
            self.note("snapshot");
            more()
        });
        (result.map(|((), consistency)| consistency), warnings)
    }
}

impl Drop for Stage {
    /// Removes the helper of a failed test, which would look for its virsh for ever.
    fn drop(&mut self) {
        if self._temporary.is_none() {
            return;
        }
        let mark = self.dir.to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").expect("is mounted").flatten() {
            let has = |name: &str, text: &str| {
                let read = fs::read(entry.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&read).contains(text)
            };
            let pid = entry.file_name().to_string_lossy().parse::<i32>();
            if let Ok(pid) = pid
                && has("cmdline", "freeze::tests::a_helper")
                && has("environ", &mark)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

const FREEZE: &str = "domfsfreeze --domain=web1";
const THAW: &str = "domfsthaw --domain=web1";
const WHOLE: [&str; 5] = ["pre web1", FREEZE, "snapshot", THAW, "post web1"];

fn error_of(result: Result<Consistency>) -> String {
    result.expect_err("fails").to_string()
}

#[test]
fn a_guest_is_frozen_snapshotted_and_thawed_in_order() {
    let stage = Stage::new();
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!(result.expect("works"), Consistency::Application);
    assert_eq!(stage.log(), WHOLE);
    assert_eq!(warnings.all(), [""; 0]);
}

#[test]
fn consistency_is_file_system_with_the_agent_and_crash_without() {
    let stage = Stage::new();
    let agent = FreezePlan {
        domain: Some("web1".into()),
        ..FreezePlan::none("web1")
    };
    assert_eq!(stage.run(&agent).0.expect("works"), Consistency::FileSystem);
    assert_eq!(stage.log(), [FREEZE, "snapshot", THAW]);
    for plan in [
        FreezePlan::none("web1"),
        FreezePlan {
            agent: AgentFreeze::Off,
            ..agent
        },
    ] {
        fs::remove_file(stage.log_path()).expect("is there");
        assert_eq!(stage.run(&plan).0.expect("works"), Consistency::Crash);
        assert_eq!(stage.log(), ["snapshot"]);
    }
}

#[test]
fn post_thaw_alone_runs_and_adds_no_consistency() {
    let stage = Stage::new();
    let plan = FreezePlan {
        domain: None,
        pre_freeze: None,
        ..stage.plan()
    };
    assert_eq!(stage.run(&plan).0.expect("works"), Consistency::Crash);
    assert_eq!(stage.log(), ["snapshot", "post web1"]);
}

#[test]
fn consistency_matches_the_table() {
    use Consistency::{Application, Crash, FileSystem};
    for (commands, expected) in [
        (Rest::None, [Crash, FileSystem, Crash]),
        (Rest::Held, [Application, Application, Crash]),
        (Rest::Broken, [Crash, FileSystem, Crash]),
    ] {
        for (agent, expected) in [Rest::None, Rest::Held, Rest::Broken].into_iter().zip(expected) {
            assert_eq!(consistency(commands, agent), expected, "{commands:?} {agent:?}");
        }
    }
}

#[test]
fn odd_guest_names_never_reach_a_shell_script() {
    let stage = Stage::new();
    let odd = "-x'; touch owned \"$(touch owned)\" `touch owned` \\ %s";
    let plan = FreezePlan {
        guest: odd.into(),
        domain: Some(odd.into()),
        ..stage.plan()
    };
    assert_eq!(stage.run(&plan).0.expect("works"), Consistency::Application);
    assert_eq!(
        stage.log()[..2],
        [format!("pre {odd}"), format!("domfsfreeze --domain={odd}")]
    );
    assert!(!Path::new("owned").exists() && !Path::new("/owned").exists());
}

#[test]
fn a_guest_is_thawed_at_the_limit_even_before_its_snapshot() {
    let stage = Stage::new();
    let plan = FreezePlan {
        freeze_limit: Duration::from_secs(1),
        ..stage.plan()
    };
    let begun = Instant::now();
    let (result, warnings) = stage.run_with(&plan, || {
        stage.wait_for(THAW);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        // The commands' own limit is not over.
        assert!(!stage.log().contains(&"post web1".into()));
        Ok(())
    });
    assert_eq!(result.expect("works"), Consistency::Crash);
    assert_eq!(stage.log(), WHOLE);
    assert!(
        warnings
            .one()
            .contains("did not stay frozen until all snapshots were made (they are held for 1 s"),
        "{warnings:?}",
        warnings = warnings.all()
    );
}

#[test]
fn a_snapshot_that_fails_or_panics_leaves_no_frozen_guest() {
    let stage = Stage::new();
    let (result, warnings) = stage.run_with(&stage.plan(), || Err(Error::Interrupted));
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(stage.log(), WHOLE);
    assert_eq!(warnings.all(), [""; 0]);

    fs::remove_file(stage.log_path()).expect("is there");
    let panic = std::panic::AssertUnwindSafe(|| stage.run_with(&stage.plan(), || panic!("on purpose")));
    assert!(std::panic::catch_unwind(panic).is_err());
    assert_eq!(stage.log(), WHOLE);
}

#[test]
fn a_failed_pre_freeze_prevents_the_backup_and_runs_post_thaw() {
    let stage = Stage::new();
    let plan = FreezePlan {
        pre_freeze: Some(format!("{}; echo the database is busy >&2; exit 7", stage.say("pre"))),
        ..stage.plan()
    };
    let (result, warnings) = stage.run(&plan);
    let text = error_of(result);
    assert!(
        text.contains("echo the database is busy") && text.contains("exit status 7"),
        "{text}"
    );
    assert!(text.ends_with(": the database is busy"), "{text}");
    assert_eq!(stage.log(), ["pre", "post web1"]);
    assert_eq!(warnings.all(), [""; 0]);
}

#[test]
fn a_pre_freeze_that_hangs_is_killed_with_its_children_at_its_limit() {
    let stage = Stage::new();
    let plan = FreezePlan {
        pre_freeze: Some(format!("trap '' TERM; sleep 777; {}", stage.say("too late"))),
        pre_freeze_limit: Duration::from_millis(500),
        ..stage.plan()
    };
    let begun = Instant::now();
    let text = error_of(stage.run(&plan).0);
    assert!(text.contains("did not end within 0.5 s and was killed"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(stage.log(), ["post web1"]);
}

#[test]
fn a_failed_or_hanging_freeze_is_reported_and_undone() {
    let stage = Stage::new();
    for (virsh, why) in [
        (
            r#"if [ "$1" = domfsfreeze ]; then echo "error: Guest agent is not responding" >&2; exit 1; fi"#,
            "not responding",
        ),
        (
            r#"if [ "$1" = domfsfreeze ]; then exec sleep 777; fi"#,
            "did not end within 1 s",
        ),
    ] {
        stage.virsh(virsh);
        let plan = FreezePlan {
            freeze_limit: Duration::from_secs(2),
            ..stage.plan()
        };
        let _ = fs::remove_file(stage.log_path());
        let (result, warnings) = stage.run(&plan);
        assert_eq!(result.expect("works"), Consistency::Crash);
        assert!(warnings.one().contains(why), "{}", warnings.one());
        assert_eq!(stage.log(), ["pre web1", FREEZE, THAW, "snapshot", "post web1"]);

        fs::remove_file(stage.log_path()).expect("is there");
        let plan = FreezePlan {
            agent: AgentFreeze::On,
            ..plan
        };
        let text = error_of(stage.run(&plan).0);
        assert!(text.contains(why), "{text}");
        assert_eq!(stage.log(), ["pre web1", FREEZE, THAW, "post web1"]);
    }
}

#[test]
fn a_guest_frozen_by_another_program_is_not_thawed() {
    let stage = Stage::new();
    let said = "error: internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': Command \
                guest-fsfreeze-freeze has been disabled: the agent is in frozen state";
    stage.virsh(&format!(
        "echo \"error: Unable to freeze filesystems\n{said}\" >&2; exit 1"
    ));
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!(result.expect("works"), Consistency::Crash);
    assert!(
        warnings.one().contains("the agent is in frozen state"),
        "{}",
        warnings.one()
    );
    assert_eq!(stage.log(), ["pre web1", FREEZE, "snapshot", "post web1"]);

    fs::remove_file(stage.log_path()).expect("is there");
    let plan = FreezePlan {
        agent: AgentFreeze::On,
        ..stage.plan()
    };
    let text = error_of(stage.run(&plan).0);
    assert!(text.contains("the agent is in frozen state"), "{text}");
    assert_eq!(stage.log(), ["pre web1", FREEZE, "post web1"]);
}

#[test]
fn without_virsh_the_guest_counts_as_never_frozen() {
    let stage = Stage::new();
    fs::remove_file(stage.dir.join("virsh")).expect("is there");
    for tool in ["sh", "timeout", "cat", "sleep"] {
        let place = ["/usr/bin", "/bin"].map(|dir| PathBuf::from(dir).join(tool));
        let place = place.iter().find(|place| place.exists()).expect("every system has it");
        std::os::unix::fs::symlink(place, stage.dir.join(tool)).expect("links");
    }
    let warnings = Warnings::default();
    let result = with_guest_at_rest(
        &Programs::found_in(&stage.dir),
        &stage.plan(),
        &stage.dir,
        &warnings,
        || {
            stage.note("snapshot");
            Ok::<_, FreezeError>(())
        },
    );
    assert_eq!(result.expect("works").1, Consistency::Crash);
    let warning = warnings.one();
    assert!(
        warning.contains("virsh: not found") && !warning.contains("still be frozen"),
        "{warning}"
    );
    assert_eq!(stage.log(), ["pre web1", "snapshot", "post web1"]);
}

#[test]
fn only_file_systems_that_stayed_frozen_count_for_consistency() {
    let stage = Stage::new();
    let says = |froze: u32, thawed: u32| {
        stage.virsh(&format!(
            r#"case $1 in
            domfsfreeze) echo "Froze {froze} filesystem(s)" ;;
            domfsthaw) echo "Thawed {thawed} filesystem(s)" ;;
            esac"#
        ));
    };
    says(10, 10);
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!(
        (result.expect("works"), warnings.all()),
        (Consistency::Application, vec![])
    );
    for (froze, thawed, words) in [(0, 0, "Froze 0 filesystem"), (2, 0, "another program thawed them")] {
        says(froze, thawed);
        let (result, warnings) = stage.run(&stage.plan());
        assert_eq!(result.expect("works"), Consistency::Crash);
        assert!(warnings.one().contains(words), "{}", warnings.one());
    }
    says(0, 0);
    let plan = FreezePlan {
        agent: AgentFreeze::On,
        ..stage.plan()
    };
    assert!(error_of(stage.run(&plan).0).contains("Froze 0 filesystem"));
}

#[test]
fn a_slow_thaw_of_an_unfrozen_guest_delays_the_snapshot_only_briefly() {
    let stage = Stage::new();
    stage.virsh(r#"case $1 in domfsfreeze) exit 1 ;; domfsthaw) sleep 4 ;; esac"#);
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!((result.expect("works"), warnings.all().len()), (Consistency::Crash, 1));
    let log = fs::read_to_string(stage.log_path()).expect("is there");
    let expected = ["pre web1", FREEZE, THAW, "snapshot", "domfsthaw ended", "post web1"];
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_numeric_domain_name_is_not_frozen_as_an_id() {
    let stage = Stage::new();
    let uuid = |last: u8| format!("c7a5fdbd-cdaf-9455-926a-d65c16db180{last}");
    let xml = |name: &str, last| format!("<domain><name>{name}</name><uuid>{}</uuid></domain>", uuid(last));
    // The answer of virsh while a domain `other` runs with the id 12.
    stage.virsh(&format!(
        r#"case "$*" in
        *"list --all --uuid"*) echo "{}"; echo "{}" ;;
        *dumpxml*"{}"*) echo "{}" ;;
        *dumpxml*) echo "{}" ;;
        esac"#,
        uuid(1),
        uuid(2),
        uuid(2),
        xml("12", 2),
        xml("other", 1),
    ));
    let plan = FreezePlan {
        domain: Some("12".into()),
        ..stage.plan()
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(
        (result.expect("works"), warnings.all()),
        (Consistency::Application, vec![])
    );
    let mut asked = stage.log();
    asked.retain(|line| line.starts_with("domfs"));
    assert_eq!(
        asked,
        ["freeze", "thaw"].map(|verb| format!("domfs{verb} --domain={}", uuid(2)))
    );

    // A domain that libvirt does not have is not frozen, and no other is frozen instead.
    fs::remove_file(stage.log_path()).expect("is there");
    let plan = FreezePlan {
        domain: Some("13".into()),
        ..plan
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(result.expect("works"), Consistency::Crash);
    assert!(warnings.one().contains("has no domain"), "{}", warnings.one());
    assert!(!stage.log().iter().any(|line| line.starts_with("domfs")));
}

#[test]
fn a_missing_agent_gives_no_warning() {
    let stage = Stage::new();
    for (said, without_agent) in [
        ("error: argument unsupported: QEMU guest agent is not configured", true),
        (
            "error: Guest agent is not responding: QEMU guest agent is not connected",
            true,
        ),
        ("error: Requested operation is not valid: domain is not running", false),
    ] {
        stage.virsh(&format!("echo '{said}' >&2; exit 1"));
        let _ = fs::remove_file(stage.log_path());
        let (result, warnings) = stage.run(&stage.plan());
        assert_eq!(result.expect("works"), Consistency::Application);
        assert_eq!(warnings.all(), [""; 0]);
        assert_eq!(stage.log(), ["pre web1", FREEZE, "snapshot", "post web1"]);
        let plan = FreezePlan {
            agent: AgentFreeze::On,
            ..stage.plan()
        };
        assert_eq!(stage.run(&plan).0.is_err(), without_agent, "{said}");
    }
}

#[test]
fn a_thaw_is_retried_until_it_works() {
    let stage = Stage::new();
    let tried = stage.dir.join("tried");
    let tried = tried.display();
    stage.virsh(&format!(
        "if [ \"$1\" = domfsthaw ] && ! [ -e {tried} ]; then touch {tried}; echo locked >&2; exit 1; fi"
    ));
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!(result.expect("works"), Consistency::Application);
    assert_eq!(warnings.all(), [""; 0]);
    assert_eq!(stage.log(), ["pre web1", FREEZE, "snapshot", THAW, THAW, "post web1"]);
}

#[test]
fn a_failed_post_thaw_is_a_loud_warning() {
    let stage = Stage::new();
    let plan = FreezePlan {
        post_thaw: Some("echo no such database >&2; exit 9".into()),
        ..stage.plan()
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(result.expect("the snapshots are good"), Consistency::Application);
    let text = warnings.one();
    for part in ["exit 9", "exit status 9", "no such database", "may still be stopped"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_slow_post_thaw_is_reported_and_not_killed() {
    let stage = Stage::new();
    let plan = FreezePlan {
        post_thaw: Some(format!("sleep 1; {}", stage.say("post at last"))),
        post_thaw_limit: Duration::from_millis(100),
        ..stage.plan()
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(result.expect("the snapshots are good"), Consistency::Application);
    assert!(
        warnings.one().contains("did not end within 0.1 s and still runs"),
        "{}",
        warnings.one()
    );
    stage.wait_for("post at last");
}

#[test]
fn a_missing_tool_is_reported_before_the_freeze() {
    let stage = Stage::new();
    std::os::unix::fs::symlink("/bin/sh", stage.dir.join("sh")).expect("links");
    let warnings = Warnings::default();
    let only_here = Programs::found_in(stage.dir.as_os_str());
    let result: Result<((), Consistency)> =
        with_guest_at_rest(&only_here, &stage.plan(), &stage.dir, &warnings, || Ok(()));
    let text = result.expect_err("timeout is missing").to_string();
    assert!(text.contains("timeout is not installed"), "{text}");
    assert_eq!(stage.log(), [""; 0]);
}

#[test]
fn the_helper_pipe_is_not_inherited_and_the_helper_inherits_nothing() {
    let stage = Stage::new();
    let held = fs::File::open("/etc/hostname").expect("is there");
    let files = stage.dir.join("files");
    let plan = FreezePlan {
        post_thaw: Some(format!("ls -l /proc/$$/fd >{}; sleep 20 &", files.display())),
        ..stage.plan()
    };
    let mut meanwhile = None;
    let begun = Instant::now();
    let (result, _) = stage.run_with(&plan, || {
        meanwhile = Some(Command::new("sleep").arg("20").spawn().expect("starts"));
        Ok(())
    });
    assert_eq!(result.expect("works"), Consistency::Application);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let files = fs::read_to_string(files).expect("was written");
    let foreign: Vec<&str> = files
        .lines()
        .skip(1)
        .filter(|file| !file.ends_with("/dev/null") && !file.contains("memfd:vbk-output"))
        .filter(|file| {
            !passed_on()
                .iter()
                .any(|number| file.contains(&format!(" {number} -> ")))
        })
        .collect();
    assert_eq!(foreign, [""; 0]);
    drop(held);
    let mut meanwhile = meanwhile.expect("was started");
    meanwhile.kill().and_then(|()| meanwhile.wait()).expect("ends");
}

#[test]
fn endless_output_of_a_command_does_not_fill_memory() {
    let stage = Stage::new();
    let task = Task {
        guest: "web1".to_owned(),
        act: ["sh", "-c", "yes | head -c 100000000; echo at last"]
            .map(str::to_owned)
            .into(),
        act_limit: LONG,
        undo: Undo::Command(["sh", "-c", ":"].map(str::to_owned).into()),
        limit: LONG,
        journal: stage.dir.join("journal"),
        lock: None,
        outer: None,
    };
    let mut helper = Helper::start(&stage.programs(), task, &[], None).expect("starts");
    helper.acted(LONG).expect("works");
    let kept_bytes = helper.output_bytes();
    assert!(kept_bytes < 64 << 20, "{kept_bytes}");
    assert!(helper.undo(LONG).asked);
}

/// The files that the parent of the tests left open for its children (fdinfo's flags: proc(5)).
fn passed_on() -> Vec<String> {
    let close_on_exec = |number: &String| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_none_or(|flags| i32::from_str_radix(flags.trim(), 8).expect("octal") & nix::libc::O_CLOEXEC != 0)
    };
    let numbers = fs::read_dir("/proc/self/fd").expect("is mounted").flatten();
    let numbers = numbers.map(|entry| entry.file_name().to_string_lossy().into_owned());
    numbers.filter(|number| !close_on_exec(number)).collect()
}

/// All processes below one.
fn below(parent: u32) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    let mut parents = vec![i32::try_from(parent).expect("a process id")];
    while let Some(parent) = parents.pop() {
        for entry in fs::read_dir("/proc").expect("is mounted").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let of = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1));
            if of == Some(&parent.to_string()) && !found.contains(&pid) {
                found.push(pid);
                parents.push(pid);
            }
        }
    }
    found
}

/// The helper, where this program is started as one.
#[test]
#[ignore = "part of other tests"]
fn a_helper() {
    let task = std::env::var(HELPER).expect("started by another test");
    let begun = run_helper(&task, &mut std::io::stdout());
    #[expect(clippy::exit, reason = "this process is the helper")]
    std::process::exit(i32::from(!begun));
}

/// Run by other tests in a separate process, which stands for vbk.
#[test]
#[ignore = "part of other tests, which kill it"]
fn child_vbk_that_the_tests_kill() {
    let dir = std::env::var_os(CHILD).expect("started by another test");
    let stage = Stage {
        dir: dir.into(),
        _temporary: None,
    };
    let mut plan = stage.plan();
    plan.pre_freeze = Some(format!(
        "{}; . {}/pre",
        stage.say("pre $VBK_GUEST"),
        stage.dir.display()
    ));
    let post = stage.dir.join("post");
    let post = post.display();
    plan.post_thaw = Some(format!(
        "{}; [ ! -e {post} ] || . {post}; {}",
        stage.say("post $VBK_GUEST"),
        stage.say("post ended")
    ));
    let _ = stage.run_with(&plan, || {
        std::thread::sleep(LONG);
        Ok(())
    });
}

#[test]
fn a_killed_helper_is_replaced() {
    let stage = Stage::new();
    let mark = stage.dir.to_string_lossy().into_owned();
    let (result, warnings) = stage.run_with(&stage.plan(), || {
        let helpers: Vec<i32> = below(std::process::id())
            .into_iter()
            .filter(|pid| {
                let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
                let has = |name: &str, text: &str| String::from_utf8_lossy(&read(name)).contains(text);
                has("cmdline", "freeze::tests::a_helper") && has("environ", &mark)
            })
            .collect();
        assert_eq!(helpers.len(), 2, "{helpers:?}");
        for pid in helpers {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("is there");
        }
        Ok(())
    });
    assert_eq!(result.expect("works"), Consistency::Crash);
    assert_eq!(stage.log(), WHOLE);
    assert_eq!(warnings.all().len(), 2, "{:?}", warnings.all());
}

fn start_vbk(stage: &Stage) -> Child {
    start_vbk_by(stage, "exec \"$@\"")
}

/// Starts it by a shell script, whose command line it has.
fn start_vbk_by(stage: &Stage, script: &str) -> Child {
    let pre = stage.dir.join("pre");
    if !pre.exists() {
        fs::write(pre, ":").expect("writes");
    }
    Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().expect("has a name"))
        .args([
            "--exact",
            "guest::freeze::tests::child_vbk_that_the_tests_kill",
            "--ignored",
        ])
        .env(CHILD, &stage.dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

#[test]
fn the_helper_thaws_a_guest_whose_vbk_is_killed_while_it_is_frozen() {
    let stage = Stage::new();
    let mut vbk = start_vbk(&stage);
    stage.wait_for("snapshot");
    let begun = Instant::now();
    vbk.kill().and_then(|()| vbk.wait()).expect("was killed");
    stage.wait_for("post web1");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(stage.log(), WHOLE);
}

#[test]
fn the_helper_thaws_a_guest_whose_vbk_is_killed_during_the_freeze() {
    let stage = Stage::new();
    stage.virsh(r#"sleep 1"#);
    let mut vbk = start_vbk(&stage);
    stage.wait_for(FREEZE);
    vbk.kill().and_then(|()| vbk.wait()).expect("was killed");
    stage.wait_for("post web1");
    let expected = [
        "pre web1",
        FREEZE,
        "domfsfreeze ended",
        THAW,
        "domfsthaw ended",
        "post web1",
        "post ended",
    ];
    stage.wait_for("post ended");
    let log = fs::read_to_string(stage.log_path()).expect("is there");
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn pre_freeze_of_a_killed_vbk_ends_and_post_thaw_runs() {
    let stage = Stage::new();
    fs::write(stage.dir.join("pre"), format!("sleep 1; {}", stage.say("pre done"))).expect("writes");
    let mut vbk = start_vbk(&stage);
    stage.wait_for("pre web1");
    vbk.kill().and_then(|()| vbk.wait()).expect("was killed");
    stage.wait_for("post web1");
    assert_eq!(stage.log(), ["pre web1", "pre done", "post web1"]);
}

#[test]
fn a_stopped_service_ends_vbk_and_thaws_once() {
    let stage = Stage::new();
    let mut vbk = start_vbk(&stage);
    stage.wait_for("snapshot");
    // Like systemd: SIGTERM to all processes of the control group.
    let all = below(vbk.id());
    assert!(all.len() >= 2, "two helpers: {all:?}");
    for pid in all {
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("is there");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(stage.log(), WHOLE[..3], "nothing is thawed before its vbk is gone");
    kill(
        Pid::from_raw(i32::try_from(vbk.id()).expect("a process id")),
        Signal::SIGTERM,
    )
    .expect("is there");
    vbk.wait().expect("ends");
    stage.wait_for("post web1");
    assert_eq!(stage.log(), WHOLE);
}

#[test]
fn terminal_signals_do_not_end_the_helper() {
    let stage = Stage::new();
    let sent = Cell::new(0);
    let (result, warnings) = stage.run_with(&stage.plan(), || {
        let mark = stage.dir.to_string_lossy().into_owned();
        for pid in below(std::process::id()) {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let ours = String::from_utf8_lossy(&command).contains(&mark) || {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                String::from_utf8_lossy(&environment).contains(&mark)
            };
            if ours {
                sent.set(sent.get() + 1);
                for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTERM] {
                    kill(Pid::from_raw(pid), signal).expect("is there");
                }
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(stage.log(), WHOLE[..3]);
        Ok(())
    });
    assert!(sent.get() >= 2, "{sent:?}");
    assert_eq!(result.expect("works"), Consistency::Application);
    assert_eq!(warnings.all(), [""; 0]);
    assert_eq!(stage.log(), WHOLE);
}

/// A virsh whose domfsthaw fails as long as the file `away` exists, as if libvirt were not running.
fn without_libvirt(stage: &Stage) -> PathBuf {
    let away = stage.dir.join("away");
    fs::write(&away, "").expect("writes");
    stage.virsh(&format!(
        "if [ \"$1\" != domfsfreeze ] && [ -e {} ]; then \
         echo 'error: failed to connect to the hypervisor' >&2; exit 1; fi",
        away.display()
    ));
    away
}

#[test]
fn a_guest_is_thawed_when_libvirt_returns_after_any_time() {
    let stage = Stage::new();
    let away = without_libvirt(&stage);
    let journal = std::os::unix::net::UnixDatagram::bind(stage.dir.join("journal")).expect("binds");
    journal.set_read_timeout(Some(LONG)).expect("is set");
    let mut vbk = start_vbk(&stage);
    stage.wait_for("snapshot");
    vbk.kill().and_then(|()| vbk.wait()).expect("was killed");
    let mut bytes = [0; 1000];
    let len = journal.recv(&mut bytes).expect("the journal is told");
    let told = String::from_utf8_lossy(&bytes[..len]).into_owned();
    for part in ["<27>vbk[", "guest web1", "domfsthaw web1", "failed to connect"] {
        assert!(told.contains(part), "{told}");
    }
    // Attempts end neither after a number of them nor because of an answer that libvirt did not give.
    let tries = || stage.log().iter().filter(|line| *line == THAW).count();
    let begun = Instant::now();
    while tries() < 4 {
        assert!(begun.elapsed() < LONG, "{:?}", stage.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    // Meanwhile no other run freezes it, because the thaw would come in the middle of its snapshots.
    let froze = |log: Vec<String>| log.iter().filter(|line| *line == FREEZE).count();
    let plan = FreezePlan {
        domain: Some("web1".into()),
        ..FreezePlan::none("web1")
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(result.expect("works"), Consistency::Crash);
    assert!(
        warnings.one().contains("is still thawing it since an earlier backup"),
        "{}",
        warnings.one()
    );
    assert_eq!(froze(stage.log()), 1);
    fs::remove_file(away).expect("is there");
    stage.wait_for("domfsthaw ended");
    stage.wait_for("post web1");
    // Afterwards it freezes.
    let (result, warnings) = stage.run(&plan);
    assert_eq!(
        (result.expect("works"), warnings.all()),
        (Consistency::FileSystem, vec![])
    );
}

#[test]
fn a_guest_that_stays_frozen_is_a_loud_warning_and_the_backup_continues() {
    let stage = Stage::new();
    let away = without_libvirt(&stage);
    let plan = FreezePlan {
        domain: Some("web1".into()),
        ..FreezePlan::none("web1")
    };
    let (result, warnings) = stage.run(&plan);
    assert_eq!(result.expect("the snapshots are good"), Consistency::FileSystem);
    let text = warnings.one();
    for part in [
        "STILL BE FROZEN",
        "failed to connect",
        "tries until the guest is thawed or off",
        "domfsthaw web1",
    ] {
        assert!(text.contains(part), "{text}");
    }
    fs::remove_file(away).expect("is there");
    stage.wait_for("domfsthaw ended");
}

#[test]
fn a_guest_that_was_shut_off_needs_no_thaw() {
    let stage = Stage::new();
    stage.virsh("case $1 in domfsthaw) exit 1 ;; domstate) echo shut off ;; esac");
    let (result, warnings) = stage.run(&stage.plan());
    assert_eq!(
        (result.expect("works"), warnings.all()),
        (Consistency::Application, vec![])
    );
    assert_eq!(stage.log(), WHOLE);
}

#[test]
fn the_helper_retries_programs_that_cannot_start() {
    let stage = Stage::new();
    let virsh = stage.dir.join("virsh");
    let (result, warnings) = stage.run_with(&stage.plan(), || {
        fs::rename(&virsh, stage.dir.join("hidden")).expect("is there");
        let dir = stage.dir.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            fs::rename(dir.join("hidden"), dir.join("virsh")).expect("is there");
        });
        Ok(())
    });
    assert_eq!(
        (result.expect("works"), warnings.all()),
        (Consistency::Application, vec![])
    );
    assert_eq!(stage.log(), WHOLE);
}

#[test]
fn only_the_helper_is_exempt_from_the_oom_killer() {
    let stage = Stage::new();
    let score = |name: &str| format!("cat /proc/self/oom_score_adj >{}/{name}", stage.dir.display());
    stage.virsh(&score("of-virsh"));
    fs::write(stage.dir.join("pre"), score("of-pre")).expect("writes");
    fs::write(stage.dir.join("post"), score("of-post")).expect("writes");
    // Like OOMScoreAdjust= of a unit.
    let mut vbk = start_vbk_by(&stage, "echo 300 >/proc/self/oom_score_adj; exec \"$@\"");
    stage.wait_for("snapshot");
    vbk.kill().and_then(|()| vbk.wait()).expect("was killed");
    stage.wait_for("post ended");
    let read = |name: &str| fs::read_to_string(stage.dir.join(name)).expect("was written");
    // Without CAP_SYS_RESOURCE a process may not go below what a privileged one gave it.
    let may = "for score in -1000 0; do echo $score >/proc/self/oom_score_adj && break; done 2>/dev/null; \
               cat /proc/self/oom_score_adj";
    let lowest = Command::new("sh").args(["-c", may]).output().expect("runs").stdout;
    assert_eq!(read("of-virsh").as_bytes(), lowest);
    assert_eq!([read("of-pre"), read("of-post")], ["300\n", "300\n"]);
}
