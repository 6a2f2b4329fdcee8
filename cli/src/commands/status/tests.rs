use super::*;
use vbk_remote::status::TokenStatus;
use vbk_repo::file_system::FileSystem;
use vbk_repo::repository::DiskUsage;

const NOW: &str = "2026-11-21T06:00:12Z";

fn at(time: &str) -> Timestamp {
    time.parse().expect("a time")
}

fn view(number: u64, state: ViewState, readers: Vec<Process>) -> ViewStatus {
    ViewStatus {
        number,
        state,
        since: Some(at("2026-11-21T05:54:00Z")),
        readers,
    }
}

fn busy() -> Status {
    let mount = Process {
        pid: Some(812),
        command: Some("vbk mount /mnt".into()),
    };
    let unnamed = Process {
        pid: None,
        command: None,
    };
    Status {
        writer: Some(WriterStatus {
            pid: Some(4711),
            command: Some("backup web1".into()),
            since: Some(at("2026-11-21T06:00:00Z")),
        }),
        views: vec![
            view(3, ViewState::Stale, vec![]),
            view(4, ViewState::Old, vec![mount, unnamed]),
            view(5, ViewState::Current, vec![]),
        ],
        disk: DiskUsage {
            total_bytes: 4 << 30,
            store_bytes: 3 << 30,
            current_view_bytes: 8192,
            other_views_bytes: 1 << 30,
        },
        file_system: FileSystem {
            size_bytes: 100 << 30,
            used_bytes: 12 << 30,
            free_bytes: 88 << 30,
        },
    }
}

#[test]
fn a_busy_repository_names_its_writer_and_readers() {
    let expected = "\
Repository:  /var/lib/vbk
Format:      3
Writer:      `backup web1` (process 4711, for 12s)
Readers:     2: an unknown process, `vbk mount /mnt` (process 812)
On disk:     4 GiB: 3 GiB in the store, 8 KiB only in the current view, 1 GiB only in other views, 0 B of other files
Free:        88 GiB of 100 GiB
Backups:     7 backups of 2 guests
Last backup: 2026-11-21 05:00:00 UTC, 1 hour ago: web1@2026-11-21T04-59-00Z
Last verify: 2026-11-21 03:00:00 UTC, 3 hours ago; the oldest proof is of 2026-11-01 03:00:00 UTC, 20 days ago; 1 backup not verified yet
Last prune:  2026-11-20 04:00:00 UTC, 26 hours ago
Unfinished:  1 MiB in 2 blocks, of the process that writes now
Damage:      in 1 backup; `vbk list` shows which, `vbk repair` mends what it can

VIEW  STATE      AGE  PROCESS  READ BY
   3  stale    6m12s        -  none; the next writer removes it
   4  old      6m12s      812  vbk mount /mnt
   4  old      6m12s        -  an unknown process
   5  current  6m12s        -  none
";
    let (status, nobody) = (busy(), Connected::default());
    let report = Report::of_directory(Path::new("/var/lib/vbk"), &status, &nobody, monday());
    assert_eq!(text(&report, at(NOW), true), expected);
    let short = text(&report, at(NOW), false);
    assert!(
        !short.contains("VIEW") && short.contains("On disk:     4 GiB\n"),
        "{short}"
    );
}

#[test]
fn a_repository_that_no_key_opens_is_shown_without_its_backups() {
    let (status, nobody) = (busy(), Connected::default());
    let report = Report::of_directory(Path::new("/r"), &status, &nobody, locked());
    let text = text(&report, at(NOW), false);
    assert!(
        text.ends_with("Backups:     not read; no key was given that opens the repository\n"),
        "{text}"
    );
}

fn locked() -> Morning {
    Morning {
        needs_key: true,
        ..Morning::default()
    }
}

fn monday() -> Morning {
    Morning {
        format: Some(3),
        needs_key: false,
        facts: Some(Facts {
            backups: 7,
            guests: 2,
            last_backup: Some("web1@2026-11-21T04-59-00Z".into()),
            last_backup_at: Some(at("2026-11-21T05:00:00Z")),
            last_verify: Some(at("2026-11-21T03:00:00Z")),
            oldest_proof: Some(at("2026-11-01T03:00:00Z")),
            unproven_backups: 1,
            damaged_backups: 1,
            ..Facts::default()
        }),
        unread: None,
        unfinished: Some(Unfinished {
            blocks: 2,
            stored_bytes: 1 << 20,
        }),
        last_prune: Some(at("2026-11-20T04:00:00Z")),
        hides_prune: false,
    }
}

#[test]
fn unknown_details_of_a_writer_are_left_out() {
    let mut told = WriterStatus {
        pid: None,
        command: None,
        since: None,
    };
    assert_eq!(writer(None, at(NOW)), "none");
    assert_eq!(writer(Some(&told), at(NOW)), "an unknown process");
    told.pid = Some(7);
    let text = writer(Some(&told), at(NOW));
    assert_eq!(text, "an unknown process (process 7)");
    assert!(views(&[], at(NOW)).starts_with("no views"));
}

#[test]
fn a_prune_that_the_server_can_t_tell_of_is_not_one_that_was_not_made() {
    let prune = |morning: &Morning| {
        let lines = super::morning(morning, None, at(NOW)).into_iter();
        let found = lines.filter(|(name, _)| *name == "Last prune").map(|(_, text)| text);
        found.collect::<String>()
    };
    let none = Morning {
        last_prune: None,
        ..monday()
    };
    assert_eq!(prune(&none), "none is recorded");
    let hidden = Morning {
        hides_prune: true,
        ..none
    };
    assert_eq!(prune(&hidden), "not known here: the server is too old to tell");
    // As such a server answers.
    let served = r#"{"program":"vbk 0.1.0","repository":null,"used_bytes":1,"free_bytes":1,"size_bytes":1,
        "connected":{"clients":[],"clients_total":0,"tokens":[],"tokens_total":0}}"#;
    let served: ServedStatus = serde_json::from_str(served).expect("reads");
    assert_eq!((served.last_prune, served.unfinished), (None, None));
}

#[test]
fn a_backup_time_in_the_future_has_no_age() {
    assert_eq!(age(at("2027-01-01T00:00:00Z"), at(NOW)), "0.0s");
}

#[test]
fn the_json_has_the_repository_and_its_status() {
    let status = busy();
    let repository = Path::new("/var/lib/vbk");
    let nobody = Connected::default();
    let report = Report::of_directory(repository, &status, &nobody, monday());
    let json = serde_json::to_value(report).expect("serializes");
    assert_eq!(json["repository"], "/var/lib/vbk");
    assert_eq!(json["writer"]["command"], "backup web1");
    assert_eq!(json["views"][1]["state"], "old");
    assert_eq!(json["views"][1]["readers"][0]["pid"], 812);
    assert_eq!(json["disk"]["other_views_bytes"], 1_u64 << 30);
}

fn client(name: &str, way: Way, address: Option<&str>, pid: Option<u32>) -> ClientStatus {
    ClientStatus {
        name: name.into(),
        way,
        address: address.map(str::to_owned),
        pid,
        program: "vbk 0.1.0".into(),
        since: at("2026-11-21T05:54:00Z"),
        command: pid.map(|_| "backup".to_owned()),
        received_bytes: 3 << 30,
        sent_bytes: 4096,
        received_per_second: 85_000_000,
        sent_per_second: 0,
        backlog_bytes: 64 << 20,
        questions: 2,
    }
}

fn token(name: &str, is_connected: bool, last_seen: Option<&str>) -> TokenStatus {
    TokenStatus {
        name: name.into(),
        rights: "backup".into(),
        is_connected,
        last_seen: last_seen.map(at),
        last_address: last_seen.map(|_| "10.0.0.9".to_owned()),
    }
}

#[test]
fn a_server_tells_who_is_connected_and_who_was() {
    let served = ServedStatus {
        program: "vbk 0.1.0".into(),
        repository: None,
        used_bytes: 4 << 30,
        free_bytes: 88 << 30,
        size_bytes: 100 << 30,
        last_prune: None,
        unfinished: None,
        connected: Connected {
            clients: vec![
                client("web1", Way::Tls, Some("10.0.0.5"), None),
                client("root", Way::Local, None, Some(4711)),
            ],
            clients_total: 5,
            tokens: vec![
                token("db1", false, Some("2026-11-20T05:54:00Z")),
                token("new", false, None),
                token("web1", true, Some(NOW)),
            ],
            tokens_total: 3,
        },
    };
    let report = Report::of_server(Path::new("vbk://dc2"), &served, locked());
    let expected = "\
Repository:  vbk://dc2
Server:      vbk 0.1.0
On disk:     4 GiB
Free:        88 GiB of 100 GiB
Backups:     not read; no key was given that opens the repository

CLIENT  FROM          COMMAND  SINCE         IN     RATE    OUT   RATE  BACKLOG  ASKED  PROGRAM
web1    tls 10.0.0.5  -        6m12s ago  3 GiB  85 MB/s  4 KiB  0 B/s   64 MiB      2  vbk 0.1.0
root    process 4711  backup   6m12s ago  3 GiB  85 MB/s  4 KiB  0 B/s   64 MiB      2  vbk 0.1.0
and 3 more

TOKEN  RIGHTS  LAST SEEN            FROM
db1    backup  2026-11-20 05:54:00  10.0.0.9
new    backup  never                -
";
    assert_eq!(text(&report, at(NOW), false), expected);
    let json = serde_json::to_value(&report).expect("serializes");
    assert_eq!(json["clients"][0]["way"], "tls");
    assert_eq!(json["clients"][0]["backlog_bytes"], 64 << 20);
    assert_eq!(json["clients_total"], 5);
    assert!(json["tokens"][1]["last_seen"].is_null() && json["writer"].is_null());
}
