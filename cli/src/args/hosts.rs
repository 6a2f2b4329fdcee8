//! The arguments of `vbk guests` and `vbk config`.

use clap::Subcommand;

/// Help after the options of `vbk guests`.
pub const GUESTS_HELP: &str = "\
A guest is a section [guest.NAME] in the configuration, a domain of libvirt, or
logical volumes with tags, e.g.
  lvchange --addtag vbk_guest=web1/vda vg0/web1-root
The first of these that knows a guest decides which disks it has.";

/// Subcommands of `vbk config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration and show its meaning: each guest with its disks, read limit and policy. Exits with 3 for
    /// warnings, with 2 if the configuration is invalid
    #[command(after_help = CONFIG_HELP)]
    Check,
}

const CONFIG_HELP: &str = r#"A process that post-thaw starts outlives the backup. Under vbk-backup.service,
start it with `systemctl start`: otherwise it stays in that unit, with its low
priority.

on-failure runs for each guest that was not backed up, once for all guests that a
time limit left out, and once for a run that ended before its first guest; the
latter two have VBK_GUEST=--all. VBK_ERROR is the error, VBK_KIND its kind in one
word, VBK_HOST the host. The kinds are usage, not-found, invalid, denied, locked,
unavailable, time-limit, no-space, read-only, corrupt, unsupported, interrupted
and internal. on-failure does not run after Ctrl-C or for an invalid
configuration; check the exit code.

At the end of `vbk backup --all` vbk tells of the whole run. on-success runs if
every guest was backed up: VBK_GUESTS is their number, VBK_WARNINGS that of the
warnings, VBK_SUMMARY the message. success-url is called by curl then, and
failure-url otherwise, with the message as a POST: for a service that alerts when
a call does not come. mail-to gets the message by sendmail. Programs have 90 s;
one that fails is a warning. An interrupted run tells nobody.

A configuration with all settings. Settings that a guest lacks come from
[defaults]; a guest without disks has those from libvirt or tags.

  repository = "/var/lib/vbk"
  key-file = "/etc/vbk/key"             # or passphrase-file
  token-file = "/etc/vbk/token"         # for repository = "vbk://HOST"
  encrypted = true                      # refuse the repository if it is not
  jobs = 2                              # guests at a time, for --all
  metrics = "/var/lib/prometheus/node-exporter/vbk.prom"
  bandwidth = "5MB/s 8:00-18:00, 50MB/s" # to and from another host
  cache = "1G"                          # of what is read from another host; off
  on-failure = 'echo "$VBK_ERROR" | mail -s "no backup of $VBK_GUEST" root' # see above
  on-success = 'touch /run/vbk/last-good-night'
  success-url = "https://hc-ping.com/UUID"
  failure-url = "https://hc-ping.com/UUID/fail"
  mail-to = "admin@example.com"         # several with commas
  mail = "trouble"                      # failures and warnings; always

  [defaults]
  exclude = ["test*"]                   # guests that --all leaves out
  read-limit = "60%"                    # of device-speed; 100MB/s, none
  keep = { daily = 7, weekly = 4, monthly = 6 } # last, hourly, yearly, within = "14d"; "all"
  device-speed = "200MB/s"              # allocated to each disk
  snapshot-size = "20%"                 # or 10G
  extend = "60%"                        # fill at which to extend a snapshot; false
  change-hints = "off"                  # auto: read only changes
  full-read-every = "30d"               # full read at least this often
  compression = 3                       # 1 to 19, "none"
  pre-freeze = "/usr/local/bin/stop-db" # with post-thaw
  post-thaw = "/usr/local/bin/start-db"
  freeze-timeout = "60s"                # for pre-freeze
  guest-agent = "auto"                  # true, false
  backoff = true                        # slow down while the host is short of I/O
  kernel-limit = true                   # cgroup limits too
  idle = true                           # idle I/O class
  live = false                          # read disks in use without a snapshot
  raw = false                           # raw, even if it looks like qcow2

  [guest.web1]                          # all of [defaults] but exclude, and
  disks = { vda = "/dev/vg0/web1-root", vdb = "/dev/vg0/web1-data" }
  skip-disks = ["vdb"]
  domain = "web1-prod"                  # its name in libvirt"#;
