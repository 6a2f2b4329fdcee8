//! The end of a night over all guests: who is told of it, by a command, a URL and mail.

use super::host::Host;

const CURL: &str = "#!/bin/sh\necho \"$*\" >>HERE/curl.args\ncat >>HERE/curl.in\n[ ! -e HERE/offline ] || { echo offline >&2; exit 6; }\n";
const SENDMAIL: &str = "#!/bin/sh\necho \"$*\" >>HERE/mail.args\ncat >>HERE/mail.in\n";

/// A host with a guest, another one that fails if `b1` has no disk, and programs that note what they get.
fn host(more: &str, has_b1: bool) -> Host {
    let mut host = Host::new("1G");
    let here = host.file("").display().to_string();
    for (name, script) in [("curl", CURL), ("sendmail", SENDMAIL)] {
        host.program(name, &script.replace("HERE/", &here));
    }
    let a1 = host.volume("a1", 4, 1);
    let b1 = match has_b1 {
        true => host.volume("b1", 4, 2),
        false => "/dev/vg0/gone".into(),
    };
    host.configure(&format!(
        "on-success = 'echo \"$VBK_HOST|$VBK_GUESTS|$VBK_WARNINGS|$VBK_SUMMARY\" >>HERE/good'\n\
         success-url = 'https://hc.example/up?a=\"1\"'\nfailure-url = 'https://hc.example/up/fail'\n{more}\
         [defaults]\nread-limit = 'none'\n[guest.a1]\ndisks = {{ vda = '{}' }}\n[guest.b1]\ndisks = {{ vda = '{}' }}\n",
        a1.display(),
        b1.display()
    ));
    host
}

#[test]
fn a_good_night_runs_the_command_and_calls_the_url_and_sends_no_mail() {
    let host = host("mail-to = 'admin@example.com'\n", true);
    host.run(args!["backup", "--all"]).done();
    let told = host.read("good");
    assert!(
        told.contains("|2|0|vbk on ") && told.contains(": 2 guests backed up\n"),
        "{told}"
    );
    assert!(
        told.contains("8 MiB read, 8 MiB new") && told.contains("2 backups of 2 guests"),
        "{told}"
    );
    // What curl is told is not in its words, which other users see.
    let (args, input) = (host.read("curl.args"), host.read("curl.in"));
    assert!(!args.contains("hc.example") && args.contains("--config -"), "{args}");
    assert!(
        input.contains("url = \"https://hc.example/up?a=\\\"1\\\"\"\n"),
        "{input}"
    );
    assert!(input.contains("2 guests backed up\\n"), "{input}");
    assert!(!host.file("mail.in").exists(), "mail is for trouble");
    // One guest alone is no night.
    host.run(args!["backup", "a1"]).done();
    assert_eq!(host.read("good"), told);
    assert_eq!(host.read("curl.args"), args);
}

#[test]
fn a_night_with_a_failure_calls_the_other_url_and_sends_mail() {
    let host = host("mail-to = 'admin@example.com, second@example.com'\n", false);
    host.run(args!["backup", "--all"]).code(3);
    assert!(!host.file("good").exists());
    let input = host.read("curl.in");
    assert!(input.contains("url = \"https://hc.example/up/fail\"\n"), "{input}");
    assert_eq!(host.read("mail.args"), "-i admin@example.com second@example.com\n");
    let mail = host.read("mail.in");
    for words in [
        "To: admin@example.com, second@example.com\n",
        "Subject: vbk on ",
        ": 1 guest backed up, 1 failed",
        "\n\n",
        "FAILED",
        "/dev/vg0/gone",
        "Repository: ",
    ] {
        assert!(mail.contains(words), "no {words:?} in {mail}");
    }
}

#[test]
fn a_night_that_could_not_begin_is_told_and_so_is_what_could_not_be_told() {
    let host = host("mail-to = 'root'\nmail = 'always'\n", true);
    host.write("offline", "");
    host.run(args!["backup", "--all", "--reserve", "100%"]).code(1);
    assert!(host.read("mail.in").contains("no guest was backed up (no-space)"));
    assert!(host.read("curl.in").contains("up/fail"));
    let said = host.run(args!["backup", "--all"]).code(3);
    said.says(&["success-url: curl", "offline"]);
    assert_eq!(
        host.read("mail.in").matches("2 guests backed up").count(),
        2,
        "in the subject and the text"
    );
}

#[test]
fn notices_that_can_not_work_are_found_by_the_check() {
    let host = host("mail-to = 'root'\n", true);
    let shown = host.json(3, args!["config", "check"]);
    assert_eq!(shown["success_url"], "https://hc.example/up?a=\"1\"");
    assert_eq!(shown["mail_to"], "root");
    host.configure("success-url = 'hc.example'\nmail-to = '-oQ/tmp x@y'\nmail = 'never'\n");
    host.run(args!["config", "check"]).code(2).says(&[
        "success-url: write the whole url",
        "mail-to: write an address",
        "mail: write \"always\"",
    ]);
}
