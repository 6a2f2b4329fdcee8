//! `vbk guests` and `vbk config`: what there is on this host, and how it is backed up.

use clap::Subcommand;

/// Behind the options of `vbk guests`.
pub const GUESTS_HELP: &str = "\
A guest is what the configuration names in a section [guest.NAME], a domain that
libvirt knows, or logical volumes with tags as in
  lvchange --addtag vbk_guest=web1/vda vg0/web1-root
The first of these that knows a guest says which disks it has.";

/// What `vbk config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the configuration, and show how it is understood: each guest with its disks, read limit and what is kept.
    /// Exits with 3 if something needs attention, with 2 if it can't be used
    #[command(after_help = CONFIG_HELP)]
    Check,
}

const CONFIG_HELP: &str = r#"What post-thaw starts goes on after the backup. Under vbk-backup.service it is best
started by `systemctl start`: by itself it would stay in that unit, with its low
priority.

on-failure runs for each guest that was not backed up, once for all that a time
limit left out, and once for a run that ended before its first guest; the latter
two have VBK_GUEST=--all. VBK_ERROR says what went wrong, VBK_KIND in one word
(locked, unavailable, no-space ...), VBK_HOST where. Nobody is told of Ctrl-C, nor
of a configuration that can't be used: the exit code is for that.

A configuration, with all there is. What a guest does not say is taken from
[defaults]; one that names no disks has those that libvirt or tags give it.

  repository = "/var/lib/vbk"
  key-file = "/etc/vbk/key"             # or passphrase-file
  encrypted = true                      # refuse the repository if it is not
  jobs = 2                              # guests at a time, for --all
  metrics = "/var/lib/prometheus/node-exporter/vbk.prom"
  on-failure = 'echo "$VBK_ERROR" | mail -s "no backup of $VBK_GUEST" root' # see above

  [defaults]
  exclude = ["test*"]                   # guests that --all leaves out
  read-limit = "60%"                    # of device-speed; 100MB/s, none
  keep = { daily = 7, weekly = 4, monthly = 6 } # last, hourly, yearly, within = "14d"; "all"
  device-speed = "200MB/s"              # what a disk was allocated
  snapshot-size = "20%"                 # or 10G
  extend = "60%"                        # full, a snapshot grows; false
  change-hints = "off"                  # auto: read only what changed
  full-read-every = "30d"               # all the same
  compression = 3                       # 1 to 19, "none"
  pre-freeze = "/usr/local/bin/stop-db" # with post-thaw
  post-thaw = "/usr/local/bin/start-db"
  freeze-timeout = "60s"                # for pre-freeze
  guest-agent = "auto"                  # true, false
  backoff = true                        # read less while the host suffers
  kernel-limit = true                   # cgroup limits too
  idle = true                           # idle I/O class
  live = false                          # read disks in use without a snapshot
  raw = false                           # raw, though they look like qcow2

  [guest.web1]                          # all of [defaults] but exclude, and
  disks = { vda = "/dev/vg0/web1-root", vdb = "/dev/vg0/web1-data" }
  skip-disks = ["vdb"]
  domain = "web1-prod"                  # what libvirt calls it"#;
