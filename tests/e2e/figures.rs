//! Figures of stored, unreferenced and unfinished bytes: all commands tell the same of one repository, and none of them waits.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, u64_of, without_repository};
use crate::support::run::Running;

const SIZE: u64 = 256 * MIB;

/// A repository with a backup of a small disk, and a large disk.
fn lab_with_two_disks() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    write_noise(&lab.path("large.img"), 2, SIZE);
    lab
}

/// Starts a backup of the large disk, and waits until it is in the middle of its work.
fn half_a_backup(lab: &Lab) -> Running {
    let disk = lab.path("large.img");
    let mut running = lab.start(args![
        "backup",
        "large1",
        disk,
        "--compression",
        "none",
        "--read-limit",
        "100MB/s"
    ]);
    assert!(running.wait_until_read(96 * MIB), "the backup ended early");
    running
}

/// Blocks and bytes that a report calls unfinished.
fn unfinished(report: &Value) -> (u64, u64) {
    let part = &report["unfinished"];
    (u64_of(part, "blocks"), u64_of(part, "stored_bytes"))
}

fn unused(report: &Value) -> (u64, u64) {
    (u64_of(report, "unused_blocks"), u64_of(report, "unused_bytes"))
}

#[test]
fn what_an_interrupted_run_left_is_the_same_in_all_figures() {
    let lab = lab_with_two_disks();
    let running = half_a_backup(&lab);
    running.signal(Signal::SIGINT);
    let said = running.wait().code(130);
    let stats = lab.json(args!["stats"]);
    let (blocks, bytes) = unfinished(&stats);
    assert!((48..256).contains(&blocks), "{stats}");
    assert_eq!(u64_of(&stats["unreferenced"], "blocks"), 0, "{stats}");
    assert_eq!(u64_of(&stats["unique"], "blocks"), 8, "{stats}");
    let said = said.says(&["interrupted", "are kept", "not stored again"]);
    assert!(said.stderr.contains(&format!(" in {blocks} blocks")), "{said}");
    let size = said.stderr.split("interrupted; ").nth(1).expect("the size follows");
    let size: String = size.split(" in ").next().expect("and the blocks").to_owned();

    // People read the same as programs.
    let expected = format!("{size} in {blocks} blocks");
    for command in ["stats", "status"] {
        let text = lab.ok(args![command]);
        assert!(text.contains(&expected), "{command}: {text}");
    }
    assert_eq!(unfinished(&lab.json(args!["status"])), (blocks, bytes));
    let would = lab.json(args!["prune", "-n", "--max-unused", "0"]);
    assert_eq!((unused(&would), unfinished(&would)), ((blocks, bytes), (blocks, bytes)));
    let text = lab.ok(args!["prune", "-n", "--max-unused", "0"]);
    let removed = format!("{blocks} unused blocks ({size})");
    assert!(
        text.contains(&removed) && text.contains("left by interrupted runs"),
        "{text}"
    );

    // The next run finds them, and a prune removes as many as its dry run said.
    let pruned = lab.json(args!["prune", "--max-unused", "0"]);
    assert_eq!(unused(&pruned), (blocks, bytes));
    assert_eq!(u64_of(&pruned, "removed_bytes"), bytes);
    let stats = lab.json(args!["stats"]);
    assert_eq!(unfinished(&stats), (0, 0));
    assert!(!lab.ok(args!["stats"]).contains("Unfinished"));
    lab.ok(args!["verify"]);
}

#[test]
fn a_killed_run_leaves_as_much_as_the_figures_say() {
    let lab = lab_with_two_disks();
    let running = half_a_backup(&lab);
    running.signal(Signal::SIGKILL);
    running.wait();
    lab.wait_for_what_was_killed();
    let stats = lab.json(args!["stats"]);
    let would = lab.json(args!["prune", "-n", "--max-unused", "0"]);
    assert_eq!(unused(&would), unfinished(&stats));
    let pruned = lab.json(args!["prune", "--max-unused", "0"]);
    assert_eq!(unused(&pruned), unused(&would));
    lab.ok(args!["verify"]);
}

#[test]
fn a_dry_run_counts_what_was_forgotten_while_a_backup_writes() {
    let lab = lab_with_two_disks();
    let old = lab.listed().remove(0);
    write_noise(&lab.path("disk.img"), 3, 8 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab.ok(args!["forget", old]);
    let running = half_a_backup(&lab);
    running.signal(Signal::SIGSTOP);
    let said = lab.run(args!["prune", "-n", "--max-unused", "0"]).done();
    assert!(
        said.text().starts_with("8 unused blocks (8 MiB) of 16 MiB would"),
        "{said}"
    );
    // They read the store beside its writer, again and again.
    for _ in 0..3 {
        running.signal(Signal::SIGCONT);
        assert_eq!(u64_of(&lab.json(args!["stats"])["unreferenced"], "blocks"), 8);
        lab.run(args!["status"]).done().tells(&["Writer:", "backup large1"]);
        running.signal(Signal::SIGSTOP);
    }
    running.signal(Signal::SIGCONT);
    running.wait().code(0);
    lab.ok(args!["verify"]);
    let (blocks, bytes) = unused(&lab.json(args!["prune", "--max-unused", "0"]));
    assert!(blocks == 8 && bytes >= 8 * MIB, "{blocks} blocks, {bytes} bytes");
}

#[test]
fn status_says_what_matters_in_the_morning() {
    let lab = lab_with_two_disks();
    let before = lab.ok(args!["status"]);
    for words in [
        "Writer:      none",
        "Readers:     none",
        "Backups:     1 backup of 1 guest",
        "web1@",
        "1 backup not verified yet",
        "Last prune:  none is recorded",
        "Damage:      none known",
    ] {
        assert!(before.contains(words), "no {words:?} in {before}");
    }
    assert!(!before.contains("VIEW"), "{before}");
    assert!(lab.ok(args!["status", "-v"]).contains("VIEW"));
    lab.ok(args!["verify"]);
    lab.ok(args!["prune"]);
    let status = lab.json(args!["status"]);
    assert_eq!(
        (u64_of(&status, "unproven_backups"), u64_of(&status, "backups")),
        (0, 1)
    );
    // In a form that `fromdate` of jq reads.
    for key in ["last_verify", "last_prune", "oldest_proof", "last_backup_at"] {
        let time = status[key].as_str().unwrap_or_default();
        assert_eq!(
            (time.len(), time.ends_with('Z')),
            ("2026-11-21T05:54:00Z".len(), true),
            "{key}: {status}"
        );
    }
}

#[test]
fn a_verification_in_turns_tells_how_far_it_is() {
    let lab = lab_with_two_disks();
    let first = lab.json(args!["verify", "--rotate", "2d"]);
    assert_eq!(
        (u64_of(&first, "parts"), u64_of(&first, "parts_due")),
        (2, 1),
        "{first}"
    );
    assert_eq!(u64_of(&first, "parts_unread"), 1);
    assert!(
        first["oldest_proof"].is_null() && first["duration_ms"].is_u64(),
        "{first}"
    );
    let second = lab.json(args!["verify", "--rotate", "2d"]);
    assert_eq!(u64_of(&second, "parts_unread"), 0);
    assert!(second["oldest_proof"].is_string(), "{second}");
    let whole = lab.json(args!["verify"]);
    assert!(whole.get("parts").is_none() && whole["duration_ms"].is_u64(), "{whole}");
}

#[test]
fn metrics_of_all_commands_are_in_one_file() {
    let lab = lab_with_two_disks();
    let file = lab.path("vbk.prom");
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--metrics", file]);
    lab.ok(args!["verify", "--metrics", file]);
    lab.ok(args!["prune", "--metrics", file]);
    lab.ok(args!["status", "--metrics", file]);
    let text = without_repository(&std::fs::read_to_string(&file).expect("is written"));
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .expect("a number")
    };
    assert_eq!(value("vbk_repository_backups"), 2.0);
    assert_eq!(value("vbk_repository_damaged_backups"), 0.0);
    assert_eq!(value("vbk_repository_unproven_backups"), 0.0);
    assert_eq!(value("vbk_verify_damage"), 0.0);
    assert_eq!(value("vbk_repository_unreferenced_bytes"), 0.0);
    assert!(value("vbk_repository_stored_bytes") >= 8.0 * MIB as f64);
    assert!(value("vbk_repository_free_bytes") > 0.0 && value("vbk_repository_size_bytes") > 8.0 * MIB as f64);
    let (proof, verify) = (
        value("vbk_repository_oldest_proof_timestamp_seconds"),
        value("vbk_verify_last_run_timestamp_seconds"),
    );
    assert!((proof - verify).abs() < 1.0, "{text}");
    assert!(value("vbk_prune_last_run_timestamp_seconds") >= verify);
    assert!(value("vbk_backup_success{guest=\"web1\"}") == 1.0);
    // A metric has one description.
    let mut heads: Vec<_> = text.lines().filter(|line| line.starts_with("# HELP ")).collect();
    let all = heads.len();
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), all);

    // The repository knows the last success, also when the file was lost; a guest that was forgotten is gone.
    let success = "vbk_backup_last_success_timestamp_seconds{guest=\"web1\"}";
    std::fs::remove_file(&file).expect("removes");
    lab.run(args!["backup", "web1", lab.path("gone.img"), "--metrics", file])
        .code(1);
    let failed = without_repository(&std::fs::read_to_string(&file).expect("is written"));
    assert!(
        failed.contains(success) && failed.contains("vbk_backup_success{guest=\"web1\"} 0"),
        "{failed}"
    );
    for backup in lab.listed() {
        lab.ok(args!["forget", backup, "--last-too"]);
    }
    lab.ok(args!["prune", "--metrics", file]);
    let gone = without_repository(&std::fs::read_to_string(&file).expect("is written"));
    assert!(
        !gone.contains("web1") && gone.contains("vbk_repository_backups 0"),
        "{gone}"
    );
}

#[test]
fn errors_are_json_where_results_are() {
    let lab = lab_with_two_disks();
    let error = |args: Vec<std::ffi::OsString>, code: i32| -> Value {
        let said = lab.run(args).code(code);
        assert!(said.stdout.is_empty(), "{said}");
        let mut error: Value = serde_json::from_str(&said.stderr).unwrap_or_else(|why| panic!("{why}: {said}"));
        error["error"].take()
    };
    let missing = error(args!["--json", "show", "nobody@latest"], 1);
    assert_eq!(missing["kind"], "not-found", "{missing}");
    assert!(
        missing["message"].as_str().is_some_and(|text| text.contains("nobody")),
        "{missing}"
    );
    let usage = error(args!["show", "--json"], 2);
    assert_eq!(usage["kind"], "usage", "{usage}");
    let refused = error(args!["--json", "forget", "web1"], 2);
    assert_eq!(refused["kind"], "usage", "{refused}");
    let running = half_a_backup(&lab);
    running.signal(Signal::SIGSTOP);
    let busy = error(args!["--json", "prune", "--no-wait"], 75);
    assert_eq!(
        (&busy["kind"], &busy["hint"]),
        (&Value::from("locked"), &Value::Null),
        "{busy}"
    );
}
