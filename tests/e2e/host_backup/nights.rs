//! Nights that do not go as they should: who is told, and what the next one does first.

use super::host::Host;
use super::metric;

/// Two guests, figures and an on-failure command.
fn host() -> Host {
    let mut host = Host::new("1G");
    let mut text =
        "metrics = 'HERE/vbk.prom'\non-failure = 'echo \"$VBK_GUEST|$VBK_KIND|$VBK_ERROR\" >>HERE/failures'\n\
                    [defaults]\nread-limit = 'none'\n"
            .to_owned();
    for name in ["a1", "b1"] {
        let node = host.volume(name, 8, 1);
        text += &format!("[guest.{name}]\ndisks = {{ vda = '{}' }}\n", node.display());
    }
    host.configure(&text);
    host
}

const SUCCESS_OF_A1: &str = "vbk_backup_last_success_timestamp_seconds{guest=\"a1\"}";

#[test]
fn a_night_that_ends_before_the_first_guest_is_told_of() {
    let host = host();
    host.run(args!["backup", "--all"]).done();
    assert_eq!(metric(&host, "vbk_run_success"), Some(1.0));
    let success = metric(&host, SUCCESS_OF_A1);
    assert!(success.is_some());
    // Later than the night before by the clock of the figures, which has milliseconds.
    let begun = metric(&host, "vbk_run_start_timestamp_seconds");

    host.run(args!["backup", "--all", "--reserve", "100%"]).code(1);
    assert_eq!(metric(&host, "vbk_run_success"), Some(0.0));
    assert_eq!(metric(&host, "vbk_run_failed_guests"), Some(2.0));
    assert!(metric(&host, "vbk_run_start_timestamp_seconds") > begun);
    assert_eq!(metric(&host, SUCCESS_OF_A1), success, "it has been backed up once");
    let told = host.read("failures");
    assert!(
        told.starts_with("--all|no-space|") && told.lines().filter(|line| line.contains('|')).count() == 1,
        "{told}"
    );

    // One alone, as cron may do it; but not a name that somebody misspelled.
    host.write("failures", "");
    host.run(args!["backup", "a1", "--reserve", "100%"]).code(1);
    assert!(host.read("failures").starts_with("a1|no-space|"));
    assert_eq!(metric(&host, "vbk_backup_success{guest=\"a1\"}"), Some(0.0));
    assert_eq!(metric(&host, SUCCESS_OF_A1), success);
    host.write("failures", "");
    host.run(args!["backup", "a11"]).code(1);
    assert_eq!(host.read("failures"), "");
    assert_eq!(metric(&host, "vbk_backup_success{guest=\"a11\"}"), None);
}

#[test]
fn figures_that_can_not_be_written_do_not_stop_a_backup() {
    let host = host();
    let said = host
        .run(args!["backup", "--all", "--metrics", host.file("gone/vbk.prom")])
        .code(3);
    said.says(&["this run writes no metrics", "gone/vbk.prom"]);
    assert_eq!(host.lab.listed().len(), 2);
}
