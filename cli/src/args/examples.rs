//! Examples at the end of the help of each command. A test parses them, up to a pipe or redirection.

/// A command, with those above it, and its examples.
pub const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "init",
        &[
            "vbk init /srv/vbk",
            "vbk init /srv/vbk --encrypt",
            "vbk init ssh://backup@dc2/srv/vbk --encrypt --key-file /etc/vbk/key",
            "vbk init /mnt/usb/vbk --like /srv/vbk",
        ],
    ),
    (
        "backup",
        &[
            "vbk backup web1",
            "vbk backup web1 /dev/vg0/web1",
            "vbk backup db1 vda=/dev/vg0/db1-root vdb=/srv/db1-data.img",
            "vbk backup --all --jobs 2 --time-limit 6h",
        ],
    ),
    (
        "limit",
        &[
            "vbk limit",
            "vbk limit 30%",
            "vbk limit db1 50MB/s",
            "vbk limit default",
        ],
    ),
    ("snapshots", &["vbk snapshots", "vbk snapshots --clean"]),
    ("list", &["vbk list", "vbk list web1", "vbk list --forgotten"]),
    (
        "show",
        &[
            "vbk show web1@latest",
            "vbk show web1@2026-11-20 --config",
            "vbk show web1@latest --file config.xml > web1.xml",
        ],
    ),
    (
        "diff",
        &[
            "vbk diff web1@2026-11-20 web1@latest",
            "vbk diff web1@2026-11-20/vda web1@latest/vda --ranges",
            "vbk diff web1@2026-11-20:/etc web1@latest:/etc --files",
        ],
    ),
    (
        "ls",
        &[
            "vbk ls web1@latest:",
            "vbk ls -l web1@latest:/etc/nginx",
            "vbk ls -R web1@2026-11-20/vdb:p1/www",
        ],
    ),
    (
        "find",
        &[
            "vbk find web1 nginx.conf --since 30d",
            "vbk find web1 '/etc/nginx/*.conf' --until 2026-11-20",
            "vbk find --all-guests '/etc/**/*.pem'",
        ],
    ),
    (
        "cat",
        &[
            "vbk cat web1@latest:/etc/fstab",
            "vbk cat web1@2026-11-20:/var/log/syslog | grep error",
        ],
    ),
    (
        "cp",
        &[
            "vbk cp web1@latest:/etc/nginx/nginx.conf .",
            "vbk cp -r web1@2026-11-20:/srv/app /srv/app.old",
        ],
    ),
    (
        "mount",
        &[
            "vbk mount /mnt/vbk",
            "vbk mount web1@latest /mnt/web1",
            "vbk mount web1@latest --files /mnt/web1",
            "vbk mount web1@2026-11-20/vda --files /mnt/web1 --user",
        ],
    ),
    ("mounts", &["vbk mounts", "vbk mounts --clean"]),
    ("umount", &["vbk umount /mnt/web1", "vbk umount --all"]),
    (
        "restore",
        &[
            "vbk restore web1@latest /dev/vg0/web1",
            "vbk restore db1@2026-11-20/vdb vdb.qcow2 --format qcow2",
            "vbk restore web1@latest --create-in vg0 --as web1-test",
            "vbk restore web1@latest - | ssh host2 'dd of=/dev/vg0/web1 bs=4M'",
        ],
    ),
    (
        "boot",
        &[
            "vbk boot web1@latest",
            "vbk boot web1@latest --restore /dev/vg0/web1",
            "vbk boot db1@latest --restore vda=/dev/vg0/root --restore vdb=/dev/vg0/data",
            "vbk boot web1@2026-11-20 --memory 2G --vnc 1",
            "vbk boot web1@latest --save /srv/web1.changes",
        ],
    ),
    (
        "forget",
        &[
            "vbk forget --all -n",
            "vbk forget --all --prune",
            "vbk forget web1 --keep-daily 7 --keep-weekly 4 --keep-monthly 6",
            "vbk forget web1@2026-10-01T02-00-00Z",
        ],
    ),
    (
        "unforget",
        &[
            "vbk list --forgotten",
            "vbk unforget web1@2026-10-01T02-00-00Z",
            "vbk unforget --all --since 2d",
        ],
    ),
    (
        "protect",
        &["vbk protect web1@2026-10-01", "vbk protect web1@latest db1@latest"],
    ),
    ("unprotect", &["vbk unprotect web1@2026-10-01"]),
    (
        "note",
        &[
            "vbk note web1@2026-11-21 'before the upgrade to 14'",
            "vbk note web1@2026-11-21 --remove",
        ],
    ),
    ("rename", &["vbk rename web1 shop"]),
    ("prune", &["vbk prune -n", "vbk prune", "vbk prune --max-unused 0%"]),
    (
        "copy",
        &[
            "vbk copy /srv/vbk ssh://backup@dc2/srv/replica",
            "vbk copy /srv/vbk ssh://backup@dc2/srv/replica web1 'db-*' --since 30d",
            "vbk copy vbk://dc2/host7 /srv/replica --from-token-file /etc/vbk/dc2.token",
        ],
    ),
    (
        "verify",
        &[
            "vbk verify",
            "vbk verify web1",
            "vbk verify db1@latest/vda",
            "vbk verify --rotate 30d",
        ],
    ),
    (
        "rehearse",
        &[
            "vbk rehearse web1@latest",
            "vbk rehearse web1@latest --expect 'nginx: ready'",
            "vbk rehearse --rotate 30d",
        ],
    ),
    (
        "repair",
        &[
            "vbk repair",
            "vbk repair --from ssh://backup@dc2/srv/replica",
            "vbk repair --from-source web1=/dev/vg0/web1",
        ],
    ),
    ("trust", &["vbk trust", "vbk trust --forget"]),
    (
        "status",
        &["vbk status", "vbk status --check --max-age 30h", "vbk status --json"],
    ),
    ("stats", &["vbk stats", "vbk stats --json"]),
    ("guests", &["vbk guests", "vbk guests --json"]),
    ("config", &["vbk config check", "vbk config example"]),
    (
        "config check",
        &["vbk config check", "vbk config check --config-file ./new.toml"],
    ),
    ("config example", &["vbk config example"]),
    (
        "key",
        &[
            "vbk key list",
            "vbk key add --recovery",
            "vbk key passwd",
            "vbk key export /media/usb/vbk.key",
        ],
    ),
    ("key list", &["vbk key list"]),
    (
        "key add",
        &[
            "vbk key add",
            "vbk key add --name host2 --new-key-file /etc/vbk/key2",
            "vbk key add --recovery",
        ],
    ),
    ("key remove", &["vbk key remove passphrase"]),
    (
        "key passwd",
        &[
            "vbk key passwd",
            "vbk key passwd --new-passphrase-file /etc/vbk/passphrase.new",
            "vbk --key-file /media/usb/vbk.key key passwd passphrase",
        ],
    ),
    ("key export", &["vbk key export /media/usb/vbk.key"]),
    (
        "serve",
        &[
            "vbk serve /srv/vbk",
            "vbk serve /srv/vbk --listen 0.0.0.0",
            "vbk serve --root /srv/repositories --listen '[::]:8484'",
        ],
    ),
    (
        "token",
        &[
            "vbk -r /srv/vbk token add web1 --host dc2.example.com --out web1.token",
            "vbk token list",
            "vbk token revoke web1",
        ],
    ),
    (
        "token add",
        &[
            "vbk token add web1 --host dc2.example.com --out web1.token",
            "vbk token add admin --rights manage",
            "vbk token add web1 --guests 'web*' --bytes-per-day 100G",
            "vbk token add dc3 --rights copy --ssh-key dc3.pub",
        ],
    ),
    ("token list", &["vbk token list"]),
    ("token revoke", &["vbk token revoke web1"]),
    ("token rotate", &["vbk token rotate web1 --out web1.token"]),
    ("policy", &["vbk policy", "vbk policy --bin 30d --min-age 14d"]),
];
