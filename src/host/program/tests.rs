use super::*;

fn sh(script: &str, limit: Duration) -> Result<String, ProgramError> {
    Programs::system().run("sh", &["-c", script], limit)
}

#[test]
fn a_program_returns_its_output_or_its_last_error_lines() {
    let long = Duration::from_secs(20);
    assert_eq!(sh("echo $LC_ALL", long).expect("runs"), "C\n");
    let error = sh("echo one >&2; echo two >&2; exit 5", long)
        .expect_err("fails")
        .to_string();
    assert!(
        error.contains("one; two") && error.contains("exit status: 5"),
        "{error}"
    );
    let error = Programs::system()
        .run("no-such-program", &["x"], long)
        .expect_err("fails");
    assert!(matches!(error, ProgramError::Missing { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_slow_changing_command_is_terminated_and_never_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("mark");
    let change = |script: &str| Programs::system().change("sh", &["-c", script], Duration::from_millis(200));
    assert!(change("exit 0").is_ok());
    let error = change("echo why >&2; exit 5").expect_err("fails");
    assert!(
        matches!(&error, ProgramError::Failed { said, .. } if said == "why"),
        "{error}"
    );
    let error = change("sleep 30").expect_err("ends when asked");
    assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
    assert!(change("trap 'exit 0' TERM; sleep 30 & wait").is_ok(), "it was done");
    let critical = format!("trap '' TERM; sleep 4; touch {}", mark.display());
    let error = change(&critical).expect_err("goes on");
    assert!(matches!(error, ProgramError::StillRunning { .. }), "{error}");
    assert!(!mark.exists());
    let begun = Instant::now();
    while !mark.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it was killed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_program_that_hangs_is_killed_with_its_children() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("mark");
    let script = format!("(sleep 1; touch {}) & wait", mark.display());
    let clock = Instant::now();
    let error = sh(&script, Duration::from_millis(200)).expect_err("is killed");
    assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
    assert!(clock.elapsed() < Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(1300));
    assert!(!mark.exists(), "the child was killed too");
}

#[test]
fn an_unkillable_program_does_not_block_vbk() {
    let fs = crate::snapshot::tests::files::Loop::mounted("mkfs.xfs -q");
    let path = fs.path().display().to_string();
    let freeze = |option| {
        let frozen = sh(&format!("/usr/sbin/fsfreeze {option} {path}"), Duration::from_secs(20));
        frozen.expect("needs root");
    };
    freeze("-f");
    let clock = Instant::now();
    // Waits in the kernel, where no signal reaches it.
    let touched = sh(&format!("exec touch {path}/file"), Duration::from_millis(200));
    let took = clock.elapsed();
    freeze("-u");
    assert!(matches!(touched, Err(ProgramError::TimedOut { .. })), "{touched:?}");
    assert!((KILLED_LEFT..KILLED_LEFT * 3).contains(&took), "{took:?}");
}

#[test]
fn output_is_streamed_and_a_failure_is_reported_first() {
    let stream = |script: &str, limit| {
        let mut command = Programs::system().command("sh");
        command.args(["-c", script]);
        super::stream(command, limit, &|| false, |output| {
            let mut start = [0; 3];
            output.read_exact(&mut start).map(|()| start)
        })
    };
    let long = Duration::from_secs(20);
    // More than a pipe holds: output that is not read must not block the program.
    let found = stream("echo abcdef; head -c 1000000 /dev/zero", long).expect("runs");
    assert_eq!(found.expect("reads"), *b"abc");
    let error = stream("echo abcdef; echo why >&2; exit 3", long).expect_err("fails");
    assert!(error.to_string().contains("why"), "{error}");
    let clock = Instant::now();
    let error = stream("echo abcdef; sleep 30", Duration::from_millis(300)).expect_err("is killed");
    assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
    assert!(clock.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_grandchild_that_keeps_the_output_open_is_an_error() {
    let clock = Instant::now();
    let late = "(sleep 30; echo web1) & exit 0";
    let error = sh(late, Duration::from_secs(20)).expect_err("an empty answer would be a wrong one");
    assert!(matches!(error, ProgramError::Answer { .. }), "{error}");
    // A service that was started keeps its output.
    Programs::system()
        .act("sh", &["-c", late], Duration::from_secs(20))
        .expect("ends well");
    let read = |script: &str, limit, stop: &dyn Fn() -> bool| {
        let mut command = Programs::system().command("sh");
        command.args(["-c", script]);
        super::stream(command, limit, stop, |output| {
            let mut all = String::new();
            output.read_to_string(&mut all).map(|_| all)
        })
    };
    let error = read(late, Duration::from_secs(20), &|| false).expect_err("half an answer is none");
    assert!(matches!(error, ProgramError::Answer { .. }), "{error}");
    // Not reached by the kill, like a process that waits for a disk.
    let out_of_reach = "setsid sleep 30 & wait";
    for (limit_ms, is_stopped) in [(300, false), (20_000, true)] {
        let error = read(out_of_reach, Duration::from_millis(limit_ms), &|| is_stopped).expect_err("is killed");
        assert!(matches!(error, ProgramError::TimedOut { .. }), "{error}");
    }
    assert!(clock.elapsed() < Duration::from_secs(15), "{:?}", clock.elapsed());
}
