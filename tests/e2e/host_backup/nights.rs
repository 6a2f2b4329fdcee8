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
fn a_night_that_ends_before_the_first_guest_is_reported() {
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
fn unwritable_metrics_do_not_stop_a_backup() {
    let host = host();
    let said = host
        .run(args!["backup", "--all", "--metrics", host.file("gone/vbk.prom")])
        .code(3);
    said.says(&["this run writes no metrics", "gone/vbk.prom"]);
    assert_eq!(host.lab.listed().len(), 2);
}

#[test]
fn guests_are_ordered_by_age_with_those_longer_than_a_night_last() {
    let mut host = Host::new("1G");
    let mut text =
        "[defaults]\nread-limit = 'none'\npre-freeze = 'echo $VBK_GUEST >>HERE/order; sleep 1.1'\n".to_owned();
    // Backups have whole seconds. The long one takes 40 s.
    for (name, mib) in [("a-long", 60), ("b1", 4), ("c1", 4), ("d-new", 4)] {
        let node = host.volume(name, mib, 1);
        text += &format!("[guest.{name}]\ndisks = {{ vda = '{}' }}\n", node.display());
        if name == "a-long" {
            text += "read-limit = '1.5MB/s'\n";
        }
    }
    host.configure(&text);
    host.run(args!["backup", "c1"]).done();
    host.run(args!["backup", "b1"]).done();
    let night = |code: i32| {
        host.write("order", "");
        host.run(args!["backup", "--all", "--time-limit", "15s"]).code(code);
        host.read("order").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    // Nothing comes after it in the first night, and everything before it in the second.
    assert_eq!(night(1), "a-long");
    assert_eq!(night(3), "d-new c1 b1 a-long");
    host.run(args!["backup", "d-new"]).done();
    assert_eq!(night(3), "c1 b1 d-new a-long");
}

#[test]
fn metrics_stay_while_the_host_has_the_guest() {
    let mut host = Host::new("1G");
    let (a1, out, single) = (
        host.volume("a1", 4, 1),
        host.volume("out", 4, 2),
        host.volume("single", 4, 3),
    );
    let guest =
        |name: &str, node: &std::path::Path| format!("[guest.{name}]\ndisks = {{ vda = '{}' }}\n", node.display());
    let head = "metrics = 'HERE/vbk.prom'\n[defaults]\nread-limit = 'none'\nexclude = ['out']\n";
    host.configure(&format!("{head}{}{}", guest("a1", &a1), guest("out", &out)));
    host.run(args!["backup", "single", single]).done();
    host.run(args!["backup", "out", "--reserve", "100%"]).code(1);
    let success = |host: &Host, name: &str| metric(host, &format!("vbk_backup_success{{guest=\"{name}\"}}"));
    assert_eq!(success(&host, "single"), Some(1.0));
    host.run(args!["backup", "--all"]).done();
    assert_eq!(success(&host, "a1"), Some(1.0));
    assert_eq!(success(&host, "out"), Some(0.0), "it is left out of all, and not gone");
    assert_eq!(
        success(&host, "single"),
        None,
        "the host does not have it, though it has a backup"
    );
    host.configure(&format!("{head}{}", guest("a1", &a1)));
    host.run(args!["backup", "--all"]).done();
    assert_eq!((success(&host, "a1"), success(&host, "out")), (Some(1.0), None));
}
