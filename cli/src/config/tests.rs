//! Configurations that are right, with what becomes of them, and ones that are wrong, with the very words.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use vbk::hints::ChangeHints;
use vbk::limit::ReadLimit;
use vbk::snapshot::SnapshotSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::DiskName;

use super::*;
use crate::config_keys;

fn parse(text: &str) -> Config {
    read::config(Path::new("/etc/vbk/config.toml"), text).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn errors(text: &str) -> Vec<String> {
    read::config(Path::new("f"), text).expect_err("is refused")
}

fn guest(name: &str) -> GuestName {
    GuestName::new(name).expect("a name")
}

const FULL: &str = r#"
repository = "/var/lib/vbk"
key-file = "/etc/vbk/key"
jobs = 2
metrics = "/var/lib/prometheus/node-exporter/vbk.prom"
on-failure = 'echo "$VBK_ERROR" | mail -s "no backup of $VBK_GUEST" root'

[defaults]
read-limit = "50%"
keep = { daily = 7, weekly = 4, monthly = 6 }
device-speed = "100MB/s"
exclude = ["test*", "tmp-?"]
change-hints = "auto"
pre-freeze = "/bin/stop all"

[guest.web1]
disks = { vda = "/dev/vg0/web1-root", vdb = "/dev/vg0/web1-data" }
device-speed = "200MB/s"
keep = { last = 1, hourly = 2, yearly = 3, within = "14d" }
snapshot-size = "10G"
extend = false
full-read-every = "7d"
compression = "none"
pre-freeze = "/usr/local/bin/stop-db web1"
post-thaw = "/usr/local/bin/start-db web1"
freeze-timeout = "90s"
guest-agent = false
backoff = false
kernel-limit = false
idle = false
live = true
raw = true
domain = "web1 production"
skip-disks = ["vdb"]

[guest."db.example.com"]
read-limit = "none"
compression = 19
extend = "75%"
guest-agent = true
"#;

#[test]
fn a_guest_has_its_own_settings_then_the_defaults_then_those_of_vbk() {
    let config = parse(FULL);
    assert_eq!(config.repository.as_deref(), Some(Path::new("/var/lib/vbk")));
    assert_eq!(
        (config.jobs, config.key_name()),
        (Some(2), Some("key-file in the configuration"))
    );
    assert_eq!(
        config.notices.on_failure.as_deref(),
        Some(r#"echo "$VBK_ERROR" | mail -s "no backup of $VBK_GUEST" root"#)
    );
    let disk = |name: &str| DiskName::new(name).expect("a name");
    let web1 = config.guest(&guest("web1"));
    assert_eq!(
        web1,
        GuestSettings {
            is_configured: true,
            disks: Some(vec![
                (disk("vda"), "/dev/vg0/web1-root".into()),
                (disk("vdb"), "/dev/vg0/web1-data".into())
            ]),
            domain: Some("web1 production".into()),
            skip_disks: vec![disk("vdb")],
            read_limit: Some(ReadLimit::Share(0.5)),
            device_bytes_per_sec: Some(200_000_000),
            keep: Some(Keep::Rules(KeepPolicy {
                last: 1,
                hourly: 2,
                yearly: 3,
                within: Some("14d".parse().expect("an age")),
                ..KeepPolicy::default()
            })),
            snapshot_size: Some(SnapshotSize::Bytes(10 << 30)),
            extend: None,
            change_hints: ChangeHints::Auto,
            full_read_every: Duration::from_secs(7 * 86_400),
            compression: Compression::None,
            pre_freeze: Some("/usr/local/bin/stop-db web1".into()),
            post_thaw: Some("/usr/local/bin/start-db web1".into()),
            freeze_timeout: Duration::from_secs(90),
            guest_agent: GuestAgent::Never,
            backoff: false,
            kernel_limit: false,
            idle: false,
            live: true,
            raw: true,
        }
    );
    let db = config.guest(&guest("db.example.com"));
    assert_eq!(
        (db.read_limit, db.compression),
        (Some(ReadLimit::Unlimited), Compression::Zstd(19))
    );
    assert_eq!((db.extend, db.guest_agent), (Some(0.75), GuestAgent::Always));
    assert_eq!(
        db.keep,
        Some(Keep::Rules(KeepPolicy {
            daily: 7,
            weekly: 4,
            monthly: 6,
            ..KeepPolicy::default()
        }))
    );
    assert_eq!((db.pre_freeze.as_deref(), db.disks), (Some("/bin/stop all"), None));
    let other = config.guest(&guest("other"));
    assert_eq!(other, config.defaults());
    assert_eq!(
        (other.is_configured, other.device_bytes_per_sec),
        (false, Some(100_000_000))
    );
    let names: Vec<_> = config.guests().map(GuestName::as_str).collect();
    assert_eq!(names, ["db.example.com", "web1"]);
    let known = config.known_guests();
    assert_eq!((known.guests.len(), known.device_bytes_per_sec), (2, Some(100_000_000)));
    assert_eq!(known.guests[1].domain.as_deref(), Some("web1 production"));
}

#[test]
fn an_empty_configuration_has_the_defaults() {
    let usual = parse("").guest(&guest("any"));
    assert_eq!(usual, Config::default().defaults());
    assert_eq!((usual.read_limit, usual.extend), (None, Some(0.6)));
    assert_eq!(
        (usual.keep, usual.device_bytes_per_sec, usual.snapshot_size),
        (None, None, None)
    );
    assert!(usual.backoff && usual.kernel_limit && usual.idle && !usual.live);
    assert_eq!(
        (usual.full_read_every.as_secs(), usual.freeze_timeout.as_secs()),
        (30 * 86_400, 60)
    );
}

#[test]
fn keep_all_is_accepted_in_defaults_and_in_a_guest() {
    let config = parse("[defaults]\nkeep = { last = 2 }\n[guest.web1]\nkeep = \"all\"\n");
    assert_eq!(config.guest(&guest("web1")).keep, Some(Keep::All));
    assert!(matches!(config.guest(&guest("db")).keep, Some(Keep::Rules(_))));
    assert!(!config.encrypted && parse("encrypted = true").encrypted);
}

/// The configuration that `vbk config example` prints, with the chosen keys in force.
fn example_with(is_chosen: impl Fn(&str) -> bool) -> Config {
    let lines = config_keys::example();
    let lines = lines.lines().map(|line| match line.strip_prefix('#') {
        // Words.
        Some(text) if text.starts_with(' ') => line,
        Some(setting) if setting.starts_with('[') => setting,
        Some(setting) if setting.split_once(" = ").is_some_and(|(name, _)| is_chosen(name)) => setting,
        _ => line,
    });
    parse(&lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_example_changes_nothing_as_it_is_and_each_of_its_keys_can_be_set() {
    let config = parse(&config_keys::example());
    assert_eq!(config.guests().count(), 0);
    assert_eq!(config.defaults(), Config::default().defaults());
    assert_eq!(config.repository, None);
    for key in config_keys::KEYS {
        example_with(|name| name == key.name);
    }
    let config = example_with(|name| name != "passphrase-file");
    let web1 = config.guest(&guest("web1"));
    assert!(web1.disks.is_some() && web1.domain.is_some() && !web1.skip_disks.is_empty());
    assert!(config.metrics.is_some() && config.notices.on_failure.is_some() && config.excludes(&guest("test7")));
}

#[test]
fn the_described_keys_are_those_of_the_file_with_their_defaults() {
    use config_keys::{KEYS, Section};
    let described = |sections: &[Section]| -> Vec<&str> {
        let keys = KEYS.iter().filter(|key| sections.contains(&key.section));
        keys.map(|key| key.name).collect()
    };
    let of_file = [read::TOP, read::ONLY_DEFAULTS, read::ONLY_GUEST, settings::NAMES].concat();
    for name in &of_file {
        let times = KEYS.iter().filter(|key| key.name == *name).count();
        assert_eq!(times, usize::from(!["defaults", "guest"].contains(name)), "{name}");
    }
    for (sections, names) in [
        (&[Section::Top][..], read::TOP),
        (&[Section::Defaults], read::ONLY_DEFAULTS),
        (&[Section::Any], settings::NAMES),
        (&[Section::Guest], read::ONLY_GUEST),
    ] {
        for name in described(sections) {
            assert!(names.contains(&name), "{name}");
        }
    }
    // A default that is a value is that of the engine.
    let is_value = |text: &str| text.starts_with(['"', 't', 'f']) && !text.contains(' ') || text.parse::<u32>().is_ok();
    let settings = KEYS
        .iter()
        .filter(|key| key.section == Section::Any && is_value(key.default));
    let lines: String = settings
        .map(|key| format!("{} = {}\n", key.name, key.default))
        .collect();
    let mut usual = Config::default().defaults();
    usual.read_limit = Some(ReadLimit::default());
    assert_eq!(parse(&format!("[defaults]\n{lines}")).defaults(), usual, "{lines}");
    assert!(lines.lines().count() > 10, "{lines}");
}

#[test]
fn every_mistake_is_reported_with_its_line() {
    for (text, expected) in [
        (
            "repositry = '/x'",
            "f:1: unknown key repositry; nearest known key: repository",
        ),
        (
            "\n[defaults]\nread_limit = '60%'",
            "f:3: unknown key read_limit in [defaults]; nearest known key: read-limit",
        ),
        (
            "[guest.web1]\n\ndisk = {}",
            "f:3: unknown key disk in [guest.web1]; nearest known key: disks",
        ),
        (
            "[defaults]\nkeep = { dayly = 7 }",
            "f:2: unknown key dayly in keep; nearest known key: daily",
        ),
        (
            "read-limit = '60%'",
            "f:1: unknown key read-limit; it belongs in [defaults] or [guest.NAME]",
        ),
        (
            "[defaults]\ndisks = { vda = '/x' }",
            "f:2: unknown key disks in [defaults]; it belongs in [guest.NAME]",
        ),
        (
            "[guest.web1]\nexclude = ['x']",
            "f:2: unknown key exclude in [guest.web1]; it belongs in [defaults]",
        ),
        (
            "[defaults]\nrepository = '/x'",
            "f:2: unknown key repository in [defaults]; it belongs at the top of the file, before any [section]",
        ),
        (
            "[defaults]\ndaily = 7",
            "f:2: unknown key daily in [defaults]; it belongs in keep = { ... }",
        ),
        (
            "repository = 'x/y'",
            "f:1: repository: write an absolute path instead of \"x/y\"",
        ),
        ("repository = 7", "f:1: repository: write a text in quotes"),
        ("jobs = '2'", "f:1: jobs: write a whole number, without quotes"),
        ("jobs = -1", "f:1: jobs: write a whole number from 0 to 4294967295"),
        ("jobs = 1.5", "f:1: jobs: write a whole number"),
        ("jobs = 0", "f:1: jobs: write a number from 1 to 64"),
        (
            "jobs = 2\n[defaults]\njobs = 2",
            "f:3: jobs is set twice: at the top, and in [defaults]",
        ),
        ("on-failure = ' '", "f:1: on-failure: it is empty; leave it out instead"),
        ("defaults = 1", "f:1: defaults: this must be a section with settings"),
        ("[guest]\nweb1 = 1", "f:2: web1: this must be a section with settings"),
        (
            "key-file = '/a'\npassphrase-file = '/b'",
            "f:2: key-file and passphrase-file are both set; choose one",
        ),
        (
            "[defaults]\nread-limit = 'fast'",
            "f:2: read-limit: \"fast\" is not a read limit; write 60%, 200MB/s (units of 1000), 200MiB/s or 200M (units of 1024), or none",
        ),
        (
            "[defaults]\ndevice-speed = '60%'",
            "f:2: device-speed: \"60%\" is not a speed; write 200MB/s (units of 1000), 200MiB/s or 200M (units of 1024)",
        ),
        (
            "[defaults]\nsnapshot-size = 'x'",
            "f:2: snapshot-size: \"x\" is not a size; write e.g. 10G or 10GiB (units of 1024), or 10GB (units of 1000), or 20%",
        ),
        (
            "[defaults]\nextend = '95%'",
            "f:2: extend: write how full it may be, e.g. 60% (less than 90%, at which a backup is stopped), or false",
        ),
        (
            "[defaults]\nchange-hints = 'on'",
            "f:2: change-hints: write \"off\" or \"auto\"",
        ),
        (
            "[defaults]\nfull-read-every = '30'",
            "f:2: full-read-every: \"30\" has no unit; write e.g. 90min, 6h, 14d, 2w, 6mo or 1y",
        ),
        (
            "[defaults]\ncompression = 20",
            "f:2: compression: write a zstd level from 1 to 19, or none",
        ),
        (
            "[defaults]\nguest-agent = 'yes'",
            "f:2: guest-agent: write true, false or \"auto\"",
        ),
        ("[defaults]\nlive = 'yes'", "f:2: live: write true or false"),
        (
            "[defaults]\nexclude = 'x'",
            "f:2: exclude: write a list, e.g. [\"one\", \"two\"]",
        ),
        ("encrypted = 'yes'", "f:1: encrypted: write true or false"),
        (
            "[guest.web1]\nkeep = {}",
            "f:2: keep: these rules keep nothing; write rules, e.g. { daily = 7, weekly = 4 }, or \"all\" to forget nothing",
        ),
        (
            "[defaults]\nkeep = { last = 0 }",
            "f:2: keep: these rules keep nothing; write rules, e.g. { daily = 7, weekly = 4 }, or \"all\" to forget nothing",
        ),
        (
            "[defaults]\nkeep = 'some'",
            "f:2: keep: write rules, e.g. { daily = 7, weekly = 4 }, or \"all\" to forget nothing",
        ),
        (
            "[defaults]\nkeep = { within = '14' }",
            "f:2: within: \"14\" has no unit; write e.g. 90min, 6h, 14d, 2w, 6mo or 1y",
        ),
        (
            "[defaults]\nkeep = { within = '6m' }",
            "f:2: within: \"6m\" could be months or minutes; write 6mo or 6min",
        ),
        (
            "[defaults]\nkeep = { daily = -1 }",
            "f:2: daily: write a whole number from 0 to 4294967295",
        ),
        (
            "cache = '20'",
            "f:1: cache: 20 has no unit; write e.g. 20G or 20M, or 20B for bytes, or off",
        ),
        ("[guests.web1]", "f:1: unknown key guests; nearest known key: guest"),
        (
            "[guest.web1]\ndisks = {}",
            "f:2: disks: name at least one disk, e.g. { vda = \"/dev/vg0/web1\" }",
        ),
        (
            "[guest.web1]\ndisks = { a = '/x', b = '/x' }",
            "f:2: /x is given twice, as a and as b",
        ),
        (
            "[guest.a]\ndomain = 'x'\n[guest.b]\ndomain = 'x'",
            "f:3: domain \"x\" belongs to both a and b",
        ),
        ("[guest.'a b']", "f:1: guest name \"a b\" contains a space"),
        (
            "[guest.a]\ndisks = ['/dev/vg0/a']",
            "f:2: disks: name at least one disk, e.g. { vda = \"/dev/vg0/web1\" }",
        ),
        (
            "[guest.a]\nskip-disks = ['/']",
            "f:2: disk name \"/\" contains one of / @ = :",
        ),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
    let elsewhere = &errors("repository = 'backup@host:/srv/vbk'")[0];
    assert!(
        elsewhere.starts_with("f:1: repository: backup@host:/srv/vbk names another host"),
        "{elsewhere}"
    );
    // What is no TOML at all is told in the reader's words, with the line.
    for text in ["\nx", "\na = 'b\n", "a = 1\na = 2", "[guest.web1]\n[guest.web1]"] {
        let error = &errors(text)[0];
        assert!(error.starts_with("f:2: ") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_single_disk_needs_no_name() {
    let config = parse("[guest.web2]\ndisks = '/srv/web2.img'");
    let vda = DiskName::new("vda").expect("a name");
    assert_eq!(
        config.guest(&guest("web2")).disks,
        Some(vec![(vda, "/srv/web2.img".into())])
    );
    let error = &errors("[guest.web2]\ndisks = 'web2.img'")[0];
    assert_eq!(error, "f:2: disks: write an absolute path instead of \"web2.img\"");
}

#[test]
fn all_mistakes_are_reported_at_once_in_line_order() {
    let text = "repositry = '/x'\njobs = 0\n[guest.b]\nx = 1\n[guest.a]\nlive = 1\n[defaults]\nidle = 0\n";
    let lines: Vec<_> = errors(text).iter().map(|error| error[..4].to_owned()).collect();
    assert_eq!(lines, ["f:1:", "f:2:", "f:4:", "f:6:", "f:8:"]);
}

#[test]
fn every_setting_is_parsed_in_every_section() {
    for name in settings::NAMES {
        for section in ["[defaults]", "[guest.web1]"] {
            // No setting takes a date, so each is refused for its value and none for its name.
            let all = errors(&format!("{section}\n{name} = 1979-05-27\n"));
            assert!(
                all.len() == 1 && all[0].starts_with(&format!("f:2: {name}: ")),
                "{all:?}"
            );
        }
    }
}

#[test]
fn an_exclude_pattern_matches_whole_names() {
    for (pattern, name, fits) in [
        ("test*", "test", true),
        ("test*", "test-7", true),
        ("test*", "atest", false),
        ("*", "x", true),
        ("*a*b", "xaxbxab", true),
        ("*a*b", "xaxbxa", false),
        ("tmp-?", "tmp-ü", true),
        ("tmp-?", "tmp-12", false),
        ("web1", "web1", true),
        ("web1", "web10", false),
        ("", "x", false),
        ("a?*c", "abc", true),
        ("a?*c", "ac", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
    // No pattern takes for ever.
    assert!(!matches(&"*a".repeat(100), &"a".repeat(99)));
}

#[test]
fn a_configuration_with_commands_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("config.toml");
    let write = |text: &str, mode: u32| {
        fs::write(&path, text).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    };
    let refused = |words: &str| {
        let error = Config::load(&path).expect_err("is refused").message();
        assert!(error.contains(words), "{error}");
    };
    let commands = [
        "on-failure = 'true'",
        "[defaults]\npre-freeze = 'true'",
        "[guest.web1]\npost-thaw = 'true'",
    ];
    for text in commands {
        write(text, 0o644);
        Config::load(&path).expect("only its owner can change it");
        write(text, 0o666);
        refused("is writable by everybody (mode 666)");
    }
    // Without a command it is taken.
    write("jobs = 1", 0o666);
    Config::load(&path).expect("runs nothing");
    // The directory counts as the file does, and so does where a link leads to.
    write(commands[0], 0o644);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("sets the mode");
    refused("is writable by everybody (mode 777)");
    let safe = tempfile::tempdir().expect("a directory");
    let link = safe.path().join("config.toml");
    symlink(&path, &link).expect("makes a link");
    assert!(Config::load(&link).is_err());
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("sets the mode");
    Config::load(&link).expect("nobody else can change it");
    // Nor does a link in a place of others make it better.
    fs::set_permissions(safe.path(), fs::Permissions::from_mode(0o777)).expect("sets the mode");
    assert!(Config::load(&link).is_err());
    // The same for a link in the middle of the way, and for a link to a link.
    let third = tempfile::tempdir().expect("a directory");
    symlink(dir.path(), safe.path().join("dir")).expect("makes a link");
    assert!(Config::load(&safe.path().join("dir/config.toml")).is_err());
    symlink(&link, third.path().join("config.toml")).expect("makes a link");
    assert!(Config::load(&third.path().join("config.toml")).is_err());
    fs::set_permissions(safe.path(), fs::Permissions::from_mode(0o700)).expect("sets the mode");
    Config::load(&third.path().join("config.toml")).expect("nobody else can change it");
    Config::load(&safe.path().join("dir/../dir/config.toml")).expect_err("there is no dir beside what dir leads to");
    symlink("loop2", third.path().join("loop2")).expect("makes a link");
    assert!(others_may_write(&third.path().join("loop2")).is_some_and(|why| why.contains("too many links")));
}

/// Writes a configuration that includes `conf.d` beside it, and returns both.
fn with_included(dir: &Path) -> (PathBuf, PathBuf) {
    let (path, included) = (dir.join("config.toml"), dir.join("conf.d"));
    fs::create_dir(&included).expect("makes");
    let text = format!("include = {included:?}\n[defaults]\njobs = 2\nlive = true\n[guest.a]\nraw = true\n");
    fs::write(&path, text).expect("writes");
    (path, included)
}

#[test]
fn a_directory_adds_guests() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, included) = with_included(dir.path());
    assert_eq!(Config::load(&path).expect("is empty").included, [] as [PathBuf; 0]);
    fs::write(
        included.join("web.toml"),
        "[guest.web1]\ndomain = 'x'\n[guest.web2]\nlive = false\n",
    )
    .expect("writes");
    fs::write(
        included.join("db.toml"),
        "[guest.db1]\ndisks = { vda = '/dev/vg0/db1' }\n",
    )
    .expect("writes");
    for other in [".db.toml", "db.toml~", "db.toml.dpkg-new", "README", ".toml"] {
        fs::write(included.join(other), "[guest.no]\n").expect("writes");
    }
    let config = Config::load(&path).expect("is valid");
    let names: Vec<_> = config.guests().map(GuestName::as_str).collect();
    assert_eq!(names, ["a", "db1", "web1", "web2"]);
    assert!(
        config.guest(&guest("db1")).live && !config.guest(&guest("web2")).live,
        "[defaults] are theirs too"
    );
    let files = [path, included.join("db.toml"), included.join("web.toml")];
    assert!(config.files().eq(files.iter().map(PathBuf::as_path)));
}

#[test]
fn every_mistake_of_included_files_is_told_with_its_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, included) = with_included(dir.path());
    fs::write(included.join("1.toml"), "[guest.b]\ndomain = 'x'\n[guest.a]\n").expect("writes");
    fs::write(
        included.join("2.toml"),
        "jobs = 3\n[guest.c]\ndomain = 'x'\n[defaults]\n",
    )
    .expect("writes");
    fs::write(included.join("3.toml"), "[guest.d]\nrraw = true\n").expect("writes");
    fs::write(included.join("4.toml"), "[guest.e\n").expect("writes");
    let error = Config::load(&path).expect_err("is refused").message();
    let (path, at) = (path.display(), included.display());
    let wanted = [
        format!("{at}/1.toml:3: guest a also has a section in {path}"),
        format!("{at}/2.toml:1: jobs can't be set here, but in {path}: this file has [guest.NAME] sections only"),
        format!("{at}/2.toml:2: domain \"x\" belongs to both b and c"),
        format!("{at}/2.toml:4: defaults can't be set here, but in {path}: this file has [guest.NAME] sections only"),
        format!("{at}/3.toml:2: unknown key rraw in [guest.d]; nearest known key: raw"),
    ];
    let lines: Vec<_> = error.lines().skip(1).collect();
    assert_eq!(lines[..5], wanted);
    assert!(
        lines[5].starts_with(&format!("{at}/4.toml:1: ")) && lines.len() == 6,
        "{lines:#?}"
    );
}

#[test]
fn a_directory_that_can_not_be_read_is_no_empty_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, included) = with_included(dir.path());
    symlink("gone", included.join("web.toml")).expect("links");
    let error = Config::load(&path).expect_err("leads nowhere").message();
    assert!(
        error.contains("can't read the configuration") && error.contains("conf.d/web.toml"),
        "{error}"
    );
    fs::remove_dir_all(&included).expect("removes");
    let error = Config::load(&path).expect_err("is not there").message();
    assert!(
        error.contains("conf.d, which the configuration includes: No such file"),
        "{error}"
    );
}

#[test]
fn commands_of_included_files_are_refused_where_others_can_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, included) = with_included(dir.path());
    let (one, two) = (included.join("one.toml"), included.join("two.toml"));
    fs::write(&one, "[guest.one]\npre-freeze = 'true'\n").expect("writes");
    fs::write(&two, "[guest.two]\n").expect("writes");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    mode(&one, 0o644);
    mode(&two, 0o666);
    Config::load(&path).expect("the file that others can change has no commands");
    mode(&one, 0o666);
    let error = Config::load(&path).expect_err("is refused").message();
    assert!(
        error.contains("conf.d/one.toml has commands") && error.contains("writable by everybody"),
        "{error}"
    );
    mode(&one, 0o644);
    mode(&included, 0o777);
    assert!(Config::load(&path).is_err(), "others can replace it");
}

#[test]
fn a_named_configuration_file_must_exist() {
    let dir = tempfile::tempdir().expect("a directory");
    let gone = dir.path().join("none.toml");
    let error = Config::find(Some(&gone)).expect_err("is not there").message();
    assert!(
        error.contains("can't read the configuration") && error.contains("none.toml"),
        "{error}"
    );
    assert!(Config::find(Some(dir.path())).is_err());
    fs::write(&gone, [0xff, 0xfe]).expect("writes");
    let error = Config::find(Some(&gone)).expect_err("is not text").message();
    assert!(error.contains("UTF-8"), "{error}");
}

#[test]
fn only_a_missing_default_file_is_ignored() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("vbk/config.toml");
    assert_eq!(Config::load_if_there(&path).expect("is not there").path, None);
    std::fs::create_dir(dir.path().join("vbk")).expect("makes");
    assert_eq!(Config::load_if_there(&path).expect("is not there").path, None);
    std::os::unix::fs::symlink("gone.toml", &path).expect("links");
    let error = Config::load_if_there(&path).expect_err("leads nowhere").to_string();
    assert!(error.contains("can't read the configuration"), "{error}");
    let below_a_file = dir.path().join("file/config.toml");
    std::fs::write(dir.path().join("file"), "").expect("writes");
    assert!(
        Config::load_if_there(&below_a_file).is_err(),
        "nobody knows what is behind it"
    );
}
