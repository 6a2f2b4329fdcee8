use std::os::unix::fs::PermissionsExt;

use super::repository::OF_A_REPOSITORY;
use super::values::{OF_A_GUEST, OF_A_REHEARSAL};
use super::*;

const GOLDEN: &str = r#"# HELP vbk_backup_last_success_timestamp_seconds End of the last successful backup of the guest, in seconds since 1970.
# TYPE vbk_backup_last_success_timestamp_seconds gauge
vbk_backup_last_success_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1763690400.25
# HELP vbk_backup_last_run_timestamp_seconds End of the last attempt to back the guest up, in seconds since 1970.
# TYPE vbk_backup_last_run_timestamp_seconds gauge
vbk_backup_last_run_timestamp_seconds{guest="odd\"\\\n{} 1",repository="/srv/vbk"} 1763690401
vbk_backup_last_run_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1763690400.25
# HELP vbk_backup_success 1 if the last attempt made a backup, 0 if not.
# TYPE vbk_backup_success gauge
vbk_backup_success{guest="odd\"\\\n{} 1",repository="/srv/vbk"} 0
vbk_backup_success{guest="web1",repository="/srv/vbk"} 1
# HELP vbk_backup_duration_seconds Duration of the last attempt.
# TYPE vbk_backup_duration_seconds gauge
vbk_backup_duration_seconds{guest="odd\"\\\n{} 1",repository="/srv/vbk"} 2
vbk_backup_duration_seconds{guest="web1",repository="/srv/vbk"} 61.5
# HELP vbk_backup_read_bytes Bytes that the last successful backup read from the disks.
# TYPE vbk_backup_read_bytes gauge
vbk_backup_read_bytes{guest="web1",repository="/srv/vbk"} 1099511627776
# HELP vbk_backup_new_bytes Uncompressed bytes of the blocks that the last successful backup added to the repository.
# TYPE vbk_backup_new_bytes gauge
vbk_backup_new_bytes{guest="web1",repository="/srv/vbk"} 1048576
# HELP vbk_backup_stored_bytes Bytes that those blocks take in the store.
# TYPE vbk_backup_stored_bytes gauge
vbk_backup_stored_bytes{guest="web1",repository="/srv/vbk"} 0
# HELP vbk_backup_size_bytes Size of all disks of the guest at the last successful backup.
# TYPE vbk_backup_size_bytes gauge
vbk_backup_size_bytes{guest="web1",repository="/srv/vbk"} 2199023255552
# HELP vbk_backup_snapshot_peak_fill_ratio Peak fill of a snapshot, or of its thin pool, in the last attempt that had one; 1 is full.
# TYPE vbk_backup_snapshot_peak_fill_ratio gauge
vbk_backup_snapshot_peak_fill_ratio{guest="odd\"\\\n{} 1",repository="/srv/vbk"} 0.91
# HELP vbk_run_start_timestamp_seconds Start of the last run over all guests, in seconds since 1970.
# TYPE vbk_run_start_timestamp_seconds gauge
vbk_run_start_timestamp_seconds{repository="/srv/vbk"} 1763690000
# HELP vbk_run_end_timestamp_seconds End of the last run over all guests, in seconds since 1970.
# TYPE vbk_run_end_timestamp_seconds gauge
vbk_run_end_timestamp_seconds{repository="/srv/vbk"} 1763690500
# HELP vbk_run_guests Guests that the last run over all guests had to back up.
# TYPE vbk_run_guests gauge
vbk_run_guests{repository="/srv/vbk"} 2
# HELP vbk_run_failed_guests Guests that the last run over all guests could not back up.
# TYPE vbk_run_failed_guests gauge
vbk_run_failed_guests{repository="/srv/vbk"} 1
# HELP vbk_run_success 1 if the last run over all guests backed all of them up without a warning, 0 if not.
# TYPE vbk_run_success gauge
vbk_run_success{repository="/srv/vbk"} 0
"#;

/// Label of the repository.
const REPOSITORY: &str = "/srv/vbk";

const ODD: &str = "odd\"\\\n{} 1";

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).expect("in range")
}

fn good() -> GuestRun {
    GuestRun {
        ended: at(1_763_690_400_250),
        duration: Duration::from_millis(61_500),
        snapshot_peak_fill: None,
        made: Some(Made {
            read_bytes: 1 << 40,
            new_bytes: 1 << 20,
            stored_bytes: 0,
            size_bytes: 2 << 40,
        }),
    }
}

fn bad() -> GuestRun {
    GuestRun {
        ended: at(1_763_690_401_000),
        duration: Duration::from_secs(2),
        snapshot_peak_fill: Some(0.91),
        made: None,
    }
}

fn whole() -> WholeRun {
    WholeRun {
        started: at(1_763_690_000_000),
        ended: at(1_763_690_500_000),
        guests: 2,
        failed: 1,
        success: false,
    }
}

fn write(path: &Path, runs: &[(&str, GuestRun)], whole: Option<WholeRun>) -> Result<()> {
    let mut metrics = Metrics::at(path, REPOSITORY.as_ref())?;
    for (guest, run) in runs {
        metrics.record(guest, run.clone())?;
    }
    if let Some(whole) = whole {
        metrics.record_whole(whole);
    }
    metrics.finish(|_| true)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("makes a directory");
    let path = dir.path().join("vbk.prom");
    (dir, path)
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).expect("is there")
}

#[test]
fn the_metrics_file_is_valid_prometheus_text_and_round_trips() {
    let (dir, path) = place();
    write(&path, &[("web1", good()), (ODD, bad())], Some(whole())).expect("works");
    assert_eq!(text_of(&path), GOLDEN);
    assert_eq!(Values::parse(GOLDEN).expect("is ours").render(), GOLDEN);
    let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("is there").count(),
        1,
        "no temporary file stays"
    );
}

#[test]
fn metrics_of_other_guests_and_the_last_success_are_kept() {
    let (_dir, path) = place();
    write(&path, &[("web1", good()), ("db1", good())], Some(whole())).expect("works");
    write(&path, &[("web1", bad())], None).expect("works");
    let text = text_of(&path);
    for line in [
        r#"vbk_backup_last_success_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1763690400.25"#,
        r#"vbk_backup_last_run_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1763690401"#,
        r#"vbk_backup_success{guest="web1",repository="/srv/vbk"} 0"#,
        r#"vbk_backup_read_bytes{guest="web1",repository="/srv/vbk"} 1099511627776"#,
        r#"vbk_backup_snapshot_peak_fill_ratio{guest="web1",repository="/srv/vbk"} 0.91"#,
        r#"vbk_backup_success{guest="db1",repository="/srv/vbk"} 1"#,
        r#"vbk_run_guests{repository="/srv/vbk"} 2"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn metrics_drop_removed_guests_unless_just_backed_up() {
    let (_dir, path) = place();
    write(&path, &[("web1", good()), ("old", good())], None).expect("works");
    let mut metrics = Metrics::at(&path, REPOSITORY.as_ref()).expect("works");
    metrics.record("by-hand", good()).expect("works");
    metrics.finish(|guest| guest == "web1").expect("works");
    let text = text_of(&path);
    assert!(
        text.contains("web1") && text.contains("by-hand") && !text.contains("old\""),
        "{text}"
    );
}

#[test]
fn a_damaged_metrics_file_is_set_aside_and_a_new_one_started() {
    let cut = &GOLDEN[..GOLDEN.len() / 2];
    let twice = format!("{GOLDEN}vbk_run_guests{{repository=\"/srv/vbk\"}} 2\n");
    let cases: [&[u8]; 6] = [
        cut.as_bytes(),
        twice.as_bytes(),
        b"\xff\xfe",
        b"node_load1 0.5\n",
        b"vbk_run_guests{repository=\"/srv/vbk\"} NaN\n",
        b"vbk_backup_success{guest=\"a\\x\",repository=\"/srv/vbk\"} 1\n",
    ];
    for bytes in cases {
        let (_dir, path) = place();
        std::fs::write(&path, bytes).expect("writes");
        write(&path, &[("web1", good())], None).expect("works");
        assert!(Values::parse(&text_of(&path)).is_some_and(|values| values.0[REPOSITORY].guests.len() == 1));
        let aside = path.with_file_name("vbk.prom.damaged");
        assert_eq!(std::fs::read(aside).expect("is kept"), bytes);
    }
}

#[test]
fn an_unwritable_metrics_file_is_reported_before_the_run() {
    let (dir, _) = place();
    for path in [
        dir.path().join("no/vbk.prom"),
        dir.path().to_owned(),
        "/dev/null".into(),
    ] {
        assert!(Metrics::at(&path, REPOSITORY.as_ref()).is_err(), "{}", path.display());
    }
}

#[test]
fn a_foreign_file_at_the_temporary_name_is_not_written_to() {
    let (dir, path) = place();
    let (temporary, other) = (dir.path().join(".vbk.prom.tmp"), dir.path().join("other"));
    std::fs::write(&other, "text").expect("writes");
    std::os::unix::fs::symlink(&other, &temporary).expect("links");
    Metrics::at(&path, REPOSITORY.as_ref()).expect("works");
    std::fs::hard_link(&other, &temporary).expect("links");
    Metrics::at(&path, REPOSITORY.as_ref()).expect("works");
    assert_eq!(text_of(&other), "text");
    // Nobody reads it: to open it would wait.
    nix::unistd::mkfifo(&temporary, nix::sys::stat::Mode::S_IRWXU).expect("makes");
    Metrics::at(&path, REPOSITORY.as_ref()).expect("works");
    assert!(path.metadata().is_ok_and(|file| file.is_file()));
}

#[test]
fn metrics_of_ten_thousand_guests_are_written_only_a_few_times() {
    let (_dir, path) = place();
    let begun = Instant::now();
    let runs: Vec<(String, GuestRun)> = (0..10_000).map(|guest| (format!("guest-{guest}"), good())).collect();
    let runs: Vec<(&str, GuestRun)> = runs.iter().map(|(guest, run)| (guest.as_str(), run.clone())).collect();
    write(&path, &runs, Some(whole())).expect("works");
    write(&path, &[("guest-5", bad())], None).expect("works");
    let values = Values::parse(&text_of(&path)).expect("is ours");
    assert_eq!(values.0[REPOSITORY].guests.len(), 10_000);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn concurrent_runs_keep_the_metrics_of_each_other() {
    let (_dir, path) = place();
    std::thread::scope(|scope| {
        for guest in 0..8 {
            let path = &path;
            scope.spawn(move || write(path, &[(&format!("guest-{guest}"), good())], None).expect("works"));
        }
    });
    assert_eq!(
        Values::parse(&text_of(&path)).expect("is ours").0[REPOSITORY]
            .guests
            .len(),
        8
    );
}

#[test]
fn the_last_proof_of_a_guest_is_kept_through_a_failure() {
    let (_dir, path) = place();
    write(&path, &[("web1", good())], None).expect("works");
    let rehearse = |at_ms: i64, is_proven| {
        let mut metrics = Metrics::at(&path, REPOSITORY.as_ref()).expect("opens");
        let run = RehearsalRun {
            at: at(at_ms),
            is_proven,
            duration_ms: 1500,
        };
        metrics.record_rehearsal("web1", run);
        metrics.finish(|_| true).expect("writes");
    };
    rehearse(1_000_000, true);
    rehearse(2_000_000, false);
    let text = text_of(&path);
    for line in [
        r#"vbk_rehearsal_last_proof_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1000"#,
        r#"vbk_rehearsal_last_run_timestamp_seconds{guest="web1",repository="/srv/vbk"} 2000"#,
        r#"vbk_rehearsal_success{guest="web1",repository="/srv/vbk"} 0"#,
        r#"vbk_rehearsal_duration_seconds{guest="web1",repository="/srv/vbk"} 1.5"#,
        r#"vbk_backup_success{guest="web1",repository="/srv/vbk"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    assert_eq!(Values::parse(&text).expect("is ours").render(), text);
    Metrics::at(&path, REPOSITORY.as_ref())
        .expect("opens")
        .finish(|_| false)
        .expect("writes");
    assert!(!text_of(&path).contains("web1"));
}

#[test]
fn metrics_of_a_later_version_do_not_make_the_file_foreign() {
    let later = concat!(
        "vbk_backup_success{guest=\"web1\",repository=\"/srv/vbk\"} 1\n",
        "vbk_backup_hope{guest=\"web1\",disk=\"vda\"} 2\nvbk_hope 3\n"
    );
    let text = Values::parse(later).expect("is ours").render();
    assert!(
        text.contains("vbk_backup_success{guest=\"web1\",repository=\"/srv/vbk\"} 1") && !text.contains("hope"),
        "{text}"
    );
    assert!(Values::parse("node_hope 3\n").is_none());
}

#[test]
fn figures_of_the_repository_are_kept_until_another_command_knows_better() {
    let (_dir, path) = place();
    write(&path, &[("web1", bad()), ("old", good()), ("new", bad())], None).expect("works");
    let mut metrics = Metrics::at(&path, REPOSITORY.as_ref()).expect("opens");
    metrics.repository.verified(at(5_000), 2);
    metrics.repository.left(100, 7);
    metrics.finish(|_| true).expect("writes");
    let mut metrics = Metrics::at(&path, REPOSITORY.as_ref()).expect("opens");
    metrics.repository.pruned(at(9_000));
    metrics.repository.left(100, 0);
    metrics.facts = Some(Facts {
        backups: 3,
        last_success: [("web1".to_owned(), at(1_000_000))].into(),
        ..Facts::default()
    });
    metrics.finish(|_| true).expect("writes");
    let text = text_of(&path);
    for line in [
        r#"vbk_verify_last_run_timestamp_seconds{repository="/srv/vbk"} 5"#,
        r#"vbk_verify_damage{repository="/srv/vbk"} 2"#,
        r#"vbk_prune_last_run_timestamp_seconds{repository="/srv/vbk"} 9"#,
        r#"vbk_repository_stored_bytes{repository="/srv/vbk"} 100"#,
        r#"vbk_repository_unreferenced_bytes{repository="/srv/vbk"} 0"#,
        r#"vbk_repository_backups{repository="/srv/vbk"} 3"#,
        // The repository knows it, and the file never did.
        r#"vbk_backup_last_success_timestamp_seconds{guest="web1",repository="/srv/vbk"} 1000"#,
        // Its first backup is still to come.
        r#"vbk_backup_success{guest="new",repository="/srv/vbk"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in {text}");
    }
    assert!(!text.contains("old"), "it was forgotten: {text}");
    assert_eq!(Values::parse(&text).expect("is ours").render(), text);
}

/// node_exporter refuses a series that is in two files; another label makes another series.
#[test]
fn two_repositories_have_series_of_their_own_in_one_file_or_in_two() {
    let (dir, path) = place();
    let write = |path: &Path, repository: &str, guest: &str| {
        let mut metrics = Metrics::at(path, repository.as_ref()).expect("opens");
        metrics.record(guest, good()).expect("writes");
        metrics.record_whole(whole());
        // No other guest is known.
        metrics.finish(|_| false).expect("writes");
    };
    let series = |path: &Path| -> Vec<String> {
        let text = text_of(path);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    let other = dir.path().join("other.prom");
    write(&path, "/srv/vbk", "web1");
    write(&other, "ssh://dc2/srv/vbk/", "web1");
    let (here, there) = (series(&path), series(&other));
    assert!(!here.is_empty() && here.len() == there.len());
    assert!(here.iter().all(|one| !there.contains(one)), "{here:?} {there:?}");

    write(&path, "ssh://dc2/srv/vbk/", "web1");
    let both = series(&path);
    assert_eq!(both.len(), here.len() + there.len());
    assert!(here.iter().chain(&there).all(|one| both.contains(one)), "{both:?}");
    // The metrics of one keep those of the other.
    write(&path, "/srv/./vbk/", "db1");
    let text = text_of(&path);
    assert!(
        text.contains(r#"vbk_backup_success{guest="db1",repository="/srv/vbk"} 1"#),
        "{text}"
    );
    assert!(
        !text.contains(r#"vbk_backup_success{guest="web1",repository="/srv/vbk"}"#),
        "{text}"
    );
    assert!(
        text.contains(r#"vbk_backup_success{guest="web1",repository="ssh://dc2/srv/vbk/"} 1"#),
        "{text}"
    );
    assert_eq!(Values::parse(&text).expect("is ours").render(), text);
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
    assert_eq!(
        lines.len(),
        lines.iter().collect::<std::collections::BTreeSet<_>>().len()
    );
}

/// node_exporter refuses a file in which a metric comes twice, or has two descriptions.
#[test]
fn every_metric_has_one_name_and_one_meaning() {
    let all = OF_A_GUEST
        .iter()
        .chain(&OF_A_REHEARSAL)
        .chain(&OF_A_RUN)
        .chain(&OF_A_REPOSITORY);
    let mut names = std::collections::BTreeSet::new();
    for (name, help) in all {
        assert!(names.insert(name), "{name} comes twice");
        let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        assert!(name.starts_with("vbk_") && name.bytes().all(is_letter), "{name}");
        assert!(help.ends_with('.') && !help.contains(['\\', '\n']), "{help}");
    }
}
