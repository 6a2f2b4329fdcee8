//! The keys of the configuration as people read them. `vbk config example`, the help of `vbk config check` and vbk-config(5)
//! are made from this table. It decides nothing: `config/read.rs` parses, and the tests of both compare them.

use std::fmt::Write as _;

/// Width of a line of the example.
const WIDTH: usize = 78;

/// Section of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The file's top, before any section.
    Top,
    /// `[defaults]` alone.
    Defaults,
    /// `[defaults]` and `[guest.NAME]`.
    Any,
    /// `[guest.NAME]` alone.
    Guest,
}

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Name in the file.
    pub name: &'static str,
    /// Section that it belongs to.
    pub section: Section,
    /// A value, as TOML.
    pub example: &'static str,
    /// Value that applies without the key, as TOML or in words; empty if the summary says it.
    pub default: &'static str,
    /// What it is for, in one line without a full stop.
    pub summary: &'static str,
    /// More sentences; may be empty.
    pub details: &'static str,
}

/// A row of the table.
const fn key(
    section: Section,
    name: &'static str,
    example: &'static str,
    default: &'static str,
    summary: &'static str,
    details: &'static str,
) -> Key {
    Key {
        name,
        section,
        example,
        default,
        summary,
        details,
    }
}

use Section::{Any, Defaults, Guest, Top};

/// All keys, in the order in which they are shown.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key(Top, "repository", r#""/var/lib/vbk""#, "none",
        "The repository",
        "A directory made by `vbk init`, ssh://[USER@]HOST[:PORT]/PATH, or vbk://HOST[:PORT][/REPOSITORY]. The option --repo \
         and the variable VBK_REPO come before it. A timer does not see the variables of your shell: write it here."),
    key(Top, "encrypted", "true", "false",
        "Refuse the repository if it is not encrypted",
        "Whoever can write to the storage could put a plain repository in its place, and the next backup would be written \
         there in plain text."),
    key(Top, "key-file", r#""/etc/vbk/key""#, "none",
        "Key file of the encrypted repository",
        "Readable by root alone. Or an exported key from `vbk key export`. Not together with passphrase-file."),
    key(Top, "passphrase-file", r#""/etc/vbk/passphrase""#, "none",
        "File whose first line is the passphrase of the repository",
        "Readable by root alone."),
    key(Top, "token-file", r#""/etc/vbk/token""#, "none",
        "File with the token for a vbk:// repository",
        "From `vbk token add` on the server. Readable by root alone."),
    key(Top, "include", r#""/etc/vbk/conf.d""#, "none",
        "Directory with further files of guests",
        "Every file in it whose name ends with .toml is read, in the order of the names. It has [guest.NAME] sections and nothing \
         else. Write such a file under another name and rename it: a backup that starts meanwhile would find half of it."),
    key(Top, "metrics", r#""/var/lib/prometheus/node-exporter/vbk.prom""#, "none",
        "File for metrics that Prometheus collects",
        "In the directory of node_exporter's textfile collector."),
    key(Top, "on-failure", r#"'echo "$VBK_ERROR" | mail -s "no backup of $VBK_GUEST" root'"#, "none",
        "Shell command for guests that were not backed up",
        "It runs for each guest that was not backed up, once for all guests that a time limit left out, and once for a run \
         that ended before its first guest; the latter two have VBK_GUEST=--all. VBK_ERROR is the error, VBK_KIND its kind \
         in one word: usage, not-found, invalid, denied, locked, unavailable, time-limit, no-space, read-only, corrupt, \
         unsupported, interrupted or internal. VBK_HOST is the host. It does not run after Ctrl-C or for an invalid \
         configuration: check the exit code too."),
    key(Top, "on-success", r#"'touch /run/vbk/last-good-night'"#, "none",
        "Shell command for a `vbk backup --all` that backed up every guest",
        "VBK_GUESTS is their number, VBK_WARNINGS that of the warnings, VBK_SUMMARY the message. It has 90 s; if it fails, \
         that is a warning."),
    key(Top, "success-url", r#""https://hc-ping.com/UUID""#, "none",
        "Address that curl calls after a `vbk backup --all` without failures",
        "With the message as a POST: for a service that alerts when a call does not come. An interrupted run tells nobody."),
    key(Top, "failure-url", r#""https://hc-ping.com/UUID/fail""#, "none",
        "Address that curl calls after any other `vbk backup --all`",
        ""),
    key(Top, "mail-to", r#""admin@example.com""#, "none",
        "Address that gets a message of each `vbk backup --all`",
        "Several with commas. It is sent by the host's sendmail."),
    key(Top, "mail", r#""trouble""#, r#""trouble""#,
        "\"always\" mails each night, \"trouble\" those with failures or warnings",
        ""),
    key(Top, "safe-mounts", "true", "false",
        "Never hand guests' file systems to the kernel",
        "`vbk mount --files` reads them in user space, as with --user, and refuses what only the kernel can do."),
    key(Top, "reconnect-for", r#""1h""#, r#""1h""#,
        "Time for which a lost connection is tried again; 0 for never",
        "For repositories on another host."),
    key(Top, "bandwidth", r#""5MB/s 8:00-18:00, 50MB/s""#, "none",
        "Most bytes per second to and from another host",
        "One rate, or rates by the time of day. The first that matches counts."),
    key(Top, "cache", r#""1G""#, r#""1G""#,
        "Most bytes in the cache of what is read from another host",
        "\"off\" for none."),
    key(Defaults, "jobs", "2", "1",
        "Guests that `vbk backup --all` backs up at a time, 1 to 64",
        "May be written at the top of the file as well."),
    key(Defaults, "exclude", r#"["test*", "scratch-?"]"#, "none",
        "Guests that --all leaves out, as patterns with * and ?",
        ""),
    key(Any, "keep", r#"{ daily = 7, weekly = 4, monthly = 6 }"#, "none",
        "The backups that `vbk forget` keeps",
        "Rules are last, hourly, daily, weekly, monthly and yearly with a number, and within = \"14d\" with an age; a backup \
         stays if one of them keeps it. \"all\" keeps all backups. Guests without rules are left out by `vbk forget --all`. \
         A guest's own rules replace those of [defaults] as a whole."),
    key(Any, "read-limit", r#""60%""#, r#""60%""#,
        "Most that is read from each disk: a share, a rate, or none",
        "A share is of the disk's speed (device-speed); a rate is e.g. \"100MB/s\". `vbk limit` changes it while a backup \
         runs."),
    key(Any, "device-speed", r#""200MB/s""#, "libvirt's limit of the guest's reads, or else measured",
        "Speed of each disk, the base of a read-limit in per cent",
        ""),
    key(Any, "backoff", "true", "true",
        "Slow down while the host is short of I/O",
        ""),
    key(Any, "kernel-limit", "true", "true",
        "Limit reads in the kernel too, by a control group",
        ""),
    key(Any, "idle", "true", "true",
        "Read with idle I/O class and the lowest priority",
        ""),
    key(Any, "snapshot-size", r#""20%""#, "twice what the last runs needed, or 20% of the disk",
        "Space for what a guest overwrites while its snapshot exists",
        "A share of the disk, or a size, e.g. \"10G\"."),
    key(Any, "extend", r#""60%""#, r#""60%""#,
        "Fill at which a snapshot or thin pool is extended; false: never",
        "Less than 90%, at which a backup is stopped before its snapshot overflows. It needs room in the volume group."),
    key(Any, "change-hints", r#""off""#, r#""off""#,
        "\"auto\" reads only what thin pools or file systems report as changed",
        "Needs a snapshot that is kept until the next backup. Enable vbk-guard.timer with it, which gives such snapshots up \
         before they fill a pool."),
    key(Any, "full-read-every", r#""30d""#, r#""30d""#,
        "Time after which a disk is read in full in spite of hints",
        ""),
    key(Any, "compression", "3", "3",
        "zstd level of new blocks, 1 (fast) to 19 (small), or \"none\"",
        ""),
    key(Any, "guest-agent", r#""auto""#, r#""auto""#,
        "Use of the guest's agent, which freezes its file systems",
        "\"auto\" uses one that answers, true makes no backup without it, false does not ask for it."),
    key(Any, "pre-freeze", r#""/usr/local/bin/stop-db""#, "none",
        "Shell command before the snapshot, e.g. to stop a database",
        "With VBK_GUEST set. If it fails or takes too long, there is no backup of the guest."),
    key(Any, "post-thaw", r#""/usr/local/bin/start-db""#, "none",
        "Shell command after the snapshot, successful or not",
        "What it starts outlives the backup. Under vbk-backup.service, start it with `systemctl start`: otherwise it stays \
         in that unit, with its low priority."),
    key(Any, "freeze-timeout", r#""60s""#, r#""60s""#,
        "Time limit of pre-freeze",
        ""),
    key(Any, "live", "false", "false",
        "Read disks in use without a snapshot, where none can be made",
        "The image is inconsistent if the guest writes meanwhile."),
    key(Any, "raw", "false", "false",
        "The disks are raw, even if they look like qcow2 or an archive",
        ""),
    key(Guest, "disks", r#"{ vda = "/dev/vg0/web1-root", vdb = "/dev/vg0/web1-data" }"#, "those from libvirt or tags",
        "The guest's disks",
        "Block devices or files, by the names that they have in backups. A path alone is the disk vda."),
    key(Guest, "skip-disks", r#"["vdb"]"#, "none",
        "Disks that are not backed up",
        ""),
    key(Guest, "domain", r#""web1-prod""#, "the guest's name",
        "The guest's name in libvirt",
        ""),
];

/// Returns the keys of a part of the file.
pub fn keys(section: Section) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

/// Parts of the file: the header, words about it, and the keys.
pub const PARTS: [(&str, &str, &[Section]); 3] = [
    (
        "",
        "The top of the file, before any [section], has the settings of this host.",
        &[Top],
    ),
    (
        "[defaults]",
        "[defaults] has the settings of guests that do not set them themselves.",
        &[Defaults, Any],
    ),
    (
        "[guest.NAME]",
        "[guest.NAME] has the settings of one guest: all of [defaults] but jobs and exclude, and the following. A guest \
         without a section, or without disks in it, has those that libvirt or the tags of logical volumes name.",
        &[Guest],
    ),
];

/// Returns the whole text about a key: its summary, and more sentences.
pub fn about(key: &Key) -> String {
    match key.details {
        "" => format!("{}.", key.summary),
        details => format!("{}. {details}", key.summary),
    }
}

/// Returns a configuration with every key, all of them commented out: it is valid and changes nothing.
pub fn example() -> String {
    let mut text = comment(
        "The configuration of vbk, in TOML. Remove the # before a key to set it; every value is an example. `vbk config \
         check` shows what the file means for each guest, and vbk-config(5) describes it.",
    );
    for (header, words, sections) in PARTS {
        text.push('\n');
        text.push_str(&comment(words));
        match header {
            "" => {}
            // Without keys this section changes nothing; an empty one of a guest would be a guest.
            "[defaults]" => text.push_str("[defaults]\n"),
            _ => text.push_str("#[guest.web1]\n"),
        }
        for key in sections.iter().flat_map(|section| keys(*section)) {
            text.push('\n');
            let default = match key.default {
                "" => String::new(),
                default => format!(" Default: {default}."),
            };
            text.push_str(&comment(&format!("{}{default}", about(key))));
            let _ = writeln!(text, "#{} = {}", key.name, key.example);
        }
    }
    text
}

/// Returns the list of the keys for the help: a line each.
pub fn help() -> String {
    let mut text = String::from(
        "The file is /etc/vbk/config.toml unless --config-file names another one.\n\
         `vbk config example` prints one with every key and an example of its value.\n",
    );
    for (header, _, sections) in PARTS {
        let title = match header {
            "" => "At the top of the file",
            "[guest.NAME]" => "In [guest.NAME], besides those of [defaults] but jobs and exclude",
            _ => "In [defaults]",
        };
        let _ = write!(text, "\n{title}:");
        for key in sections.iter().flat_map(|section| keys(*section)) {
            let _ = write!(text, "\n  {:<16}{}", key.name, key.summary);
        }
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Makes lines of a comment.
fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line != "#" {
            lines.push_str(&line);
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    lines.push_str(&line);
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_fit_a_terminal_of_80_columns() {
        for line in help()
            .lines()
            .chain(example().lines().filter(|line| line.starts_with("# ")))
        {
            assert!(line.chars().count() <= 90, "{line}");
        }
        for key in KEYS {
            assert!(!key.summary.ends_with('.') && !key.summary.is_empty(), "{key:?}");
            assert!(key.details.is_empty() || key.details.ends_with('.'), "{key:?}");
        }
    }

    #[test]
    fn every_key_is_in_the_help_and_in_the_example() {
        let (help, example) = (help(), example());
        for key in KEYS {
            assert!(help.contains(&format!("\n  {} ", key.name)), "{}", key.name);
            let line = format!("\n#{} = {}\n", key.name, key.example);
            assert_eq!(example.matches(&line).count(), 1, "{line}");
        }
    }
}
