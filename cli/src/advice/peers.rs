//! Words of other programs for what vbk calls otherwise.

/// A command of vbk above the words, or none; the words; and the answer to them.
pub const PEERS: &[(&str, &[&str], &str)] = &[
    (
        "",
        &["create", "save", "add", "snapshot", "vzdump"],
        "`vbk backup` makes a backup",
    ),
    (
        "",
        &["import", "import-tar"],
        "`vbk backup GUEST FILE` makes a backup of a raw image file",
    ),
    (
        "",
        &["extract", "recover", "get", "download", "export", "export-tar"],
        "`vbk restore` restores a disk or a guest, and `vbk cp` copies files out of a backup",
    ),
    (
        "",
        &[
            "rm",
            "remove",
            "delete",
            "del",
            "erase",
            "expire",
            "repo-delete",
            "rdelete",
        ],
        "`vbk forget` removes backups, and `vbk prune` frees their space",
    ),
    (
        "",
        &["undelete", "undo"],
        "`vbk unforget` brings forgotten backups back, until the next prune",
    ),
    (
        "",
        &["info", "repo-info", "rinfo", "df", "du", "usage"],
        "`vbk show` describes a backup, `vbk stats` and `vbk status` describe the repository",
    ),
    (
        "",
        &["check", "fsck", "scrub", "test", "validate"],
        "`vbk verify` checks the blocks of all backups, `vbk rehearse` boots one, `vbk config check` checks the configuration",
    ),
    (
        "",
        &["dump", "print"],
        "`vbk cat` writes a file to standard output, and `vbk restore BACKUP -` a disk",
    ),
    (
        "",
        &[
            "backups",
            "archives",
            "images",
            "groups",
            "repo-list",
            "rlist",
            "log",
            "history",
        ],
        "`vbk list` lists backups, and `vbk ls` files in one",
    ),
    (
        "",
        &["files", "tree", "dir", "catalog", "browse"],
        "`vbk ls` lists files in a backup, and `vbk find` searches all of them",
    ),
    (
        "",
        &["search", "grep", "locate"],
        "`vbk find` finds files in all backups",
    ),
    (
        "",
        &["map", "attach", "unmap", "detach"],
        "`vbk mount` mounts backups, and `vbk umount` unmounts them",
    ),
    (
        "",
        &[
            "compact",
            "gc",
            "garbage-collect",
            "clean",
            "cleanup",
            "purge",
            "vacuum",
        ],
        "`vbk prune` frees the space of blocks that no backup needs",
    ),
    (
        "",
        &["pin", "lock", "keep"],
        "`vbk protect` protects a backup from being forgotten; `vbk forget` applies the rules of `keep`",
    ),
    (
        "",
        &["unlock", "break-lock"],
        "no run of vbk leaves a lock behind; `vbk status` shows who uses the repository",
    ),
    (
        "",
        &["sync", "clone", "transfer", "replicate", "mirror", "push", "pull"],
        "`vbk copy` copies backups to another repository",
    ),
    (
        "",
        &["tag", "notes", "comment", "label"],
        "`vbk note` writes a note to a backup, and `vbk protect` keeps one",
    ),
    (
        "",
        &["mv", "change-owner"],
        "`vbk rename` gives the backups of a guest another name",
    ),
    (
        "",
        &["passwd", "passphrase", "password"],
        "`vbk key passwd` changes a passphrase, a key file or a recovery key",
    ),
    (
        "key",
        &["change", "change-passphrase"],
        "`vbk key passwd` changes a passphrase, a key file or a recovery key",
    ),
    ("key", &["rm", "delete"], "`vbk key remove` removes a key"),
    ("key", &["new", "create", "import"], "`vbk key add` adds a key"),
    (
        "token",
        &["rm", "remove", "delete"],
        "`vbk token revoke` removes a token",
    ),
    ("token", &["new", "create"], "`vbk token add` makes a token"),
    (
        "config",
        &["show", "list", "get", "validate"],
        "`vbk config check` shows the configuration and what is wrong with it",
    ),
    (
        "",
        &["run", "start", "launch", "live-restore"],
        "`vbk boot` runs a guest from its backup",
    ),
    (
        "",
        &["guest", "vms", "domains", "hosts", "clients"],
        "`vbk guests` lists the guests of this host",
    ),
    (
        "",
        &["new", "setup", "repo-create", "rcreate"],
        "`vbk init` creates a repository",
    ),
    (
        "",
        &["throttle", "bwlimit"],
        "`vbk limit` changes the read limit of running backups",
    ),
    (
        "",
        &["server", "daemon"],
        "`vbk serve` lets other hosts use a repository of this one",
    ),
    (
        "",
        &["rebuild-index", "rebuild", "reindex", "recreate"],
        "`vbk repair` repairs what is found elsewhere; the index needs no rebuilding",
    ),
    (
        "",
        &["man", "manual"],
        "`vbk help` prints the help, and `vbk generate man DIR` writes the manual pages",
    ),
    (
        "",
        &["upgrade", "migrate", "update", "self-update"],
        "no repository has to be converted by hand; `vbk status` shows its format, and `vbk --version` the version",
    ),
    (
        "",
        &["user", "users", "tokens"],
        "`vbk token` manages the hosts that may use a repository of this one, and `vbk status` shows who uses it now",
    ),
    ("", &["version"], "`vbk --version` prints the version"),
];

/// Returns the answer to a word that is not a command of vbk.
pub fn answer(above: &str, word: &str) -> Option<&'static str> {
    let row = PEERS
        .iter()
        .find(|(command, words, _)| *command == above && words.contains(&word));
    row.map(|(.., answer)| *answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    #[test]
    fn a_word_has_one_answer_which_names_commands_of_vbk() {
        let mut cli = args::command();
        cli.build();
        let mut known = std::collections::HashSet::new();
        for (above, words, answer) in PEERS {
            for word in *words {
                assert!(known.insert((above, word)), "{above} {word} is there twice");
            }
            let commands = answer
                .split('`')
                .skip(1)
                .step_by(2)
                .filter_map(|text| text.strip_prefix("vbk "));
            let mut count = 0;
            for command in commands.filter(|text| !text.starts_with('-')) {
                let first = command.split(' ').next().expect("a word");
                assert!(cli.find_subcommand(first).is_some(), "{answer}: no command {first}");
                count += 1;
            }
            assert!(count > 0 || answer.contains("--version"), "{answer}");
        }
    }
}
