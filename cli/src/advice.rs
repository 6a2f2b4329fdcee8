//! Advice about command lines that can't be used: the right command, where the words show which one was meant. Looks at the
//! words and at files that they name, and at nothing else.

mod line;
mod peers;

use std::ffi::OsString;
use std::path::Path;

use clap::Error as ClapError;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use vbk_repo::ErrorKind as Kind;
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::name::GuestName;

use self::line::Line;
use crate::args::{self, InsidePath};
use crate::exit::Error;
use crate::terminal::printable;

/// Options that `vbk copy` has not, for the repository that is copied to.
const TO_OPTIONS: [&str; 3] = ["--to-token-file", "--to-key-file", "--to-passphrase-file"];

/// Adds advice to an error of the command line. Its usage line becomes that of the whole command: clap's own lists options that
/// only the environment has set.
pub fn improved(mut error: ClapError, words: &[OsString]) -> ClapError {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::DisplayVersion
    );
    if is_help {
        return error;
    }
    let mut cli = args::command();
    cli.build();
    let line = Line::read(&cli, words);
    let tip = tip(&line, &is_disk);
    let path: Vec<_> = line.path.iter().map(|name| (*name).to_owned()).collect();
    let command = path
        .iter()
        .try_fold(&mut cli, |command, name| command.find_subcommand_mut(name));
    if let (Some(command), Some(_)) = (command, error.get(ContextKind::Usage)) {
        error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
    }
    let mut tips = match error.remove(ContextKind::Suggested) {
        Some(ContextValue::StyledStrs(tips)) => tips,
        _ => Vec::new(),
    };
    // An option that is not known is no value either.
    tips.retain(|tip| !tip.to_string().contains("as a value, use"));
    if let Some(tip) = tip {
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::SuggestedArg);
        tips = vec![tip.into()];
    }
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// Returns an error of the command line for scripts: the message in one line, and its tips.
pub fn parts(error: &ClapError) -> (String, Option<String>) {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return ("a command is missing; --help lists the commands".to_owned(), None);
    }
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage: "));
    let (tips, message): (Vec<_>, Vec<_>) = lines
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .partition(|line| line.starts_with("tip: "));
    let tips: Vec<_> = tips.iter().map(|line| line.trim_start_matches("tip: ")).collect();
    let message = message.join(" ");
    (
        message.trim_start_matches("error: ").to_owned(),
        Some(tips.join("; ")).filter(|tips| !tips.is_empty()),
    )
}

/// Adds advice to an error of a command whose words name something that does not exist or is not a backup.
pub fn amended(error: Error, words: &[OsString]) -> Error {
    use vbk_repo::Error as Repository;
    let is_of_words = match &error {
        Error::Repository(Repository::BadSpec { .. } | Repository::BadName { .. } | Repository::NoSuchGuest { .. }) => {
            true
        }
        Error::Engine(_) => error.kind() == Kind::NotFound,
        _ => false,
    };
    if !is_of_words {
        return error;
    }
    let mut cli = args::command();
    cli.build();
    match tip(&Line::read(&cli, words), &is_disk) {
        Some(tip) => Error::Usage(format!("{}; {tip}", error.text())),
        None => error,
    }
}

fn is_disk(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path).map(|data| data.file_type());
    kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device())
}

/// Returns what to do instead; `None` where the words do not show it. `is_disk` tells whether a path is that of a file or
/// block device.
fn tip(line: &Line<'_>, is_disk: &dyn Fn(&Path) -> bool) -> Option<String> {
    let words = line.positionals();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let tip = match (line.path.as_slice(), words.as_slice()) {
        ([] | ["help"], [word, ..]) => peers::answer("", word)?.to_owned(),
        ([above @ ("key" | "token" | "config")], [word, ..]) => peers::answer(above, word)?.to_owned(),
        (["backup"], [disk, rest @ ..]) => backup_tip(line, disk, rest, is_disk)?,
        (["restore" | "mount"], [target, backup]) if is_target(target) && backup.contains('@') && is_backup(backup) => {
            format!("the backup comes first: {}", line.moved(1, 0))
        }
        (["limit"], [limit, guest]) if is_limit(limit) && is_guest(guest) && !is_limit(guest) => {
            format!("the guest comes first: {}", line.moved(1, 0))
        }
        (["find"], ["*", pattern]) => format!("without a guest all of them are searched: vbk find {pattern}"),
        (["find"], [pattern, guest]) if pattern.contains(['/', '*', '?']) && is_guest(guest) => {
            format!("the guest comes first: {}", line.moved(1, 0))
        }
        (["cp"], [target, .., path]) if is_path_inside(path) && !is_path_inside(target) => {
            format!("the target comes last: {}", line.moved(words.len() - 1, 0))
        }
        (["list"], [backup]) if is_backup(backup) => {
            format!(
                "`vbk list` takes guests; to see one backup: `{} show {}`",
                line.program(),
                line::quoted(backup)
            )
        }
        (["forget"], [guest]) if line.has_option("--all") && is_guest(guest) => {
            format!(
                "for all backups of a guest: `{} forget --guest {guest} --all`",
                line.program()
            )
        }
        (["restore"], [file, rest @ ..]) if is_path_inside(file) && !is_backup(file) => format!(
            "`vbk restore` writes whole disks; to copy files: `{} cp {} {}`",
            line.program(),
            line::quoted(file),
            rest.first().map_or_else(|| "TARGET".to_owned(), |target| line::quoted(target))
        ),
        (["copy"], _) if TO_OPTIONS.iter().any(|option| line.has_option(option)) => {
            "--token-file, --key-file and --passphrase-file are for the repository that is copied to, those with --from- \
             for the other"
                .to_owned()
        }
        (["diff"], [guest]) if is_guest(guest) => format!(
            "name two backups, e.g. `{0} diff {guest}@2026-11-20 {guest}@latest`; `{0} list {guest}` lists all",
            line.program()
        ),
        ([command], words) => latest_tip(line, command, words, is_disk)?,
        _ => return None,
    };
    Some(printable::line(&tip))
}

/// A guest without its name, or with the name behind the disk.
fn backup_tip(line: &Line<'_>, disk: &str, rest: &[&str], is_disk: &dyn Fn(&Path) -> bool) -> Option<String> {
    if !disk.contains('/') && !is_disk(Path::new(disk)) {
        return None;
    }
    let command = match rest {
        [] => {
            let path = disk.split_once('=').map_or(disk, |(_, path)| path);
            let stem = Path::new(path).file_stem().and_then(|stem| stem.to_str());
            line.with(0, stem.filter(|stem| is_guest(stem)).unwrap_or("GUEST"))
        }
        [.., guest] if is_guest(guest) && !is_disk(Path::new(guest)) => line.moved(rest.len(), 0),
        _ => return None,
    };
    Some(format!("the guest's name comes first: {command}"))
}

/// A guest where one of its backups is wanted.
fn latest_tip(line: &Line<'_>, command: &str, words: &[&str], is_disk: &dyn Fn(&Path) -> bool) -> Option<String> {
    let backups = match (command, words.len()) {
        // One backup alone is no better than the guest.
        ("diff", 1) => 0,
        ("show" | "diff" | "boot" | "rehearse" | "protect" | "unprotect" | "ls" | "cat" | "verify", count) => count,
        ("cp", count) => count.saturating_sub(1),
        ("restore", _) => 1,
        ("mount", 2) => 1,
        ("mount", _) if line.has_option("--files") => 1,
        _ => 0,
    };
    let mut guest = None;
    let mut with_latest = line.clone();
    for (at, word) in words.iter().enumerate().take(backups) {
        let end = word.find(['/', ':']).unwrap_or(word.len());
        let (name, rest) = word.split_at(end);
        if let Some((guest, when)) = name.split_once('@')
            && is_nearly_latest(when)
        {
            let meant = format!("{guest}@latest{rest}");
            return Some(format!("did you mean {}?", line.replaced(at, &meant)));
        }
        if is_backup(name) || is_disk(Path::new(word)) {
            continue;
        }
        if name == "latest" {
            return Some(format!(
                "name the guest too: {}",
                line.replaced(at, &format!("GUEST@latest{rest}"))
            ));
        }
        // `vbk verify` takes guests too.
        if !is_guest(name) || (command == "verify" && rest.is_empty()) {
            return None;
        }
        if matches!(command, "cat" | "cp") && !rest.contains(':') {
            return None;
        }
        guest = guest.or(Some(name));
        with_latest.replace(at, &format!("{name}@latest{rest}"));
    }
    let guest = guest?;
    let digits = match guest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => "; a shortened id has at least 4 digits",
        false => "",
    };
    Some(format!(
        "for the newest backup of {guest}: {}; `{} list {guest}` lists all{digits}",
        with_latest.command(),
        line.program()
    ))
}

/// Returns whether a word is `latest` with a mistake or two.
fn is_nearly_latest(word: &str) -> bool {
    word != "latest" && word.len() > 3 && strsim::damerau_levenshtein(word, "latest") <= 2
}

fn is_guest(word: &str) -> bool {
    GuestName::new(word).is_ok()
}

fn is_backup(word: &str) -> bool {
    word.parse::<BackupSpec>().is_ok()
}

/// Returns whether a word names no backup, or at most by the digits of its id.
fn is_target(word: &str) -> bool {
    !is_backup(word) || !word.contains('@')
}

fn is_limit(word: &str) -> bool {
    args::parse_wanted_limit(word).is_ok()
}

fn is_path_inside(word: &str) -> bool {
    InsidePath::parse(word.as_bytes()).is_ok_and(|parsed| parsed.path.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tip_of(text: &str) -> Option<String> {
        let mut cli = args::command();
        cli.build();
        let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        tip(&Line::read(&cli, &words), &|path| path.ends_with("here.img"))
    }

    fn error_of(text: &str) -> String {
        let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        let error = args::command().try_get_matches_from(&words).expect_err(text);
        improved(error, &words).to_string()
    }

    #[test]
    fn swapped_words_are_answered_with_the_right_command() {
        for (typed, meant) in [
            ("vbk backup /srv/web1.img", "vbk backup web1 /srv/web1.img"),
            ("vbk backup /srv/web1.img web1", "vbk backup web1 /srv/web1.img"),
            ("vbk backup here.img web1", "vbk backup web1 here.img"),
            ("vbk backup here.img", "vbk backup here here.img"),
            (
                "vbk backup vda=/dev/vg0/a vdb=/dev/vg0/b db1",
                "vbk backup db1 vda=/dev/vg0/a vdb=/dev/vg0/b",
            ),
            (
                "vbk -r /repo backup /srv/a.img --time-limit 6h web1 --raw",
                "vbk -r /repo backup web1 /srv/a.img --time-limit 6h --raw",
            ),
            ("vbk mount m web1@latest", "vbk mount web1@latest m"),
            (
                "vbk mount m web1@latest --writable",
                "vbk mount web1@latest m --writable",
            ),
            ("vbk restore new.img web1@latest", "vbk restore web1@latest new.img"),
            ("vbk restore cafe web1@latest/vda", "vbk restore web1@latest/vda cafe"),
            ("vbk limit 50MB/s web1", "vbk limit web1 50MB/s"),
            ("vbk limit 30% web1", "vbk limit web1 30%"),
            ("vbk limit default web1", "vbk limit web1 default"),
            ("vbk find /etc/fstab web1", "vbk find web1 /etc/fstab"),
            ("vbk find *.conf web1", "vbk find web1 '*.conf'"),
            ("vbk cp -r . web1@latest:/etc", "vbk cp -r web1@latest:/etc ."),
            ("vbk list web1@latest", "vbk show web1@latest"),
            ("vbk forget web1 --all", "vbk forget --guest web1 --all"),
            (
                "vbk forget web1 --all -r/repo",
                "vbk -r /repo forget --guest web1 --all",
            ),
            ("vbk list web1@latest --repo /repo", "vbk -r /repo show web1@latest"),
            ("vbk restore web1@latest:/etc .", "vbk cp web1@latest:/etc ."),
        ] {
            let tip = tip_of(typed).unwrap_or_else(|| panic!("no tip for {typed}"));
            assert!(tip.contains(&format!("`{meant}`")), "{typed}: {tip}");
        }
    }

    #[test]
    fn a_guest_is_answered_with_its_newest_backup() {
        for (typed, meant) in [
            ("vbk show web1", "vbk show web1@latest"),
            ("vbk show web1/vda", "vbk show web1@latest/vda"),
            ("vbk ls -l web1:/etc", "vbk ls -l web1@latest:/etc"),
            ("vbk ls web1", "vbk ls web1@latest"),
            ("vbk cp -r web1:/etc etc", "vbk cp -r web1@latest:/etc etc"),
            ("vbk diff web1@2026-11-20 web1", "vbk diff web1@2026-11-20 web1@latest"),
            ("vbk mount web1 m", "vbk mount web1@latest m"),
            ("vbk mount web1 --files m", "vbk mount web1@latest --files m"),
            (
                "vbk restore web1 /dev/vg0/web1",
                "vbk restore web1@latest /dev/vg0/web1",
            ),
            ("vbk protect web1 db1", "vbk protect web1@latest db1@latest"),
            ("vbk show latest", "vbk show GUEST@latest"),
            ("vbk show web1@latst", "vbk show web1@latest"),
            ("vbk restore web1@lastest/vda x", "vbk restore web1@latest/vda x"),
            ("vbk diff web1", "vbk diff web1@2026-11-20 web1@latest"),
            ("vbk show a9", "vbk show a9@latest"),
            ("vbk -r /repo show web1", "vbk -r /repo list web1"),
        ] {
            let tip = tip_of(typed).unwrap_or_else(|| panic!("no tip for {typed}"));
            assert!(tip.contains(&format!("`{meant}`")), "{typed}: {tip}");
        }
    }

    #[test]
    fn right_and_unclear_words_get_no_tip() {
        for typed in [
            "vbk",
            "vbk list",
            "vbk frobnicate",
            "vbk backup web1",
            "vbk backup web1 /srv/web1.img",
            "vbk backup --all",
            "vbk mount m",
            "vbk mount web1@latest m",
            "vbk restore web1@latest new.img",
            "vbk restore here.img",
            "vbk limit 30%",
            "vbk limit web1 30%",
            "vbk find web1 fstab",
            "vbk cp web1@latest:/etc/fstab .",
            "vbk cp a b",
            "vbk verify web1",
            "vbk show web1@latest",
            "vbk show -r web1",
            "vbk umount web1",
            "vbk forget web1",
            "vbk forget --all",
        ] {
            assert_eq!(tip_of(typed), None, "{typed}");
        }
    }

    #[test]
    fn the_words_of_other_programs_are_answered_with_those_of_vbk() {
        for (typed, meant) in [
            ("vbk rm web1@latest", "`vbk forget` removes backups"),
            ("vbk delete", "`vbk forget` removes backups"),
            ("vbk info", "`vbk show` describes a backup"),
            ("vbk check", "`vbk verify` checks"),
            ("vbk create", "`vbk backup` makes"),
            ("vbk extract", "`vbk restore` restores"),
            ("vbk dump", "`vbk cat` writes"),
            ("vbk version", "`vbk --version`"),
            ("vbk export", "`vbk restore` restores"),
            ("vbk rebuild-index", "`vbk repair` repairs"),
            ("vbk man", "`vbk help` prints"),
            ("vbk upgrade", "no repository"),
            ("vbk users", "`vbk token` manages"),
            ("vbk guest", "`vbk guests` lists"),
            ("vbk --repo x key change-passphrase", "`vbk key passwd` changes"),
        ] {
            let error = error_of(typed);
            assert!(error.contains("unrecognized subcommand"), "{error}");
            assert!(error.contains(&format!("tip: {meant}")), "{error}");
            assert_eq!(error.matches("tip:").count(), 1, "{error}");
        }
        assert!(error_of("vbk bakcup").contains("'backup'"));
    }

    #[test]
    fn an_unknown_option_is_not_proposed_as_a_value() {
        let error = error_of("vbk list --xyzzy");
        assert!(error.contains("'--xyzzy'") && !error.contains("tip:"), "{error}");
        let error = error_of("vbk list --jsn");
        assert!(error.contains("'--json'"), "{error}");
    }

    #[test]
    fn an_option_of_the_other_repository_is_answered_with_the_right_one() {
        let error = error_of("vbk copy a b --to-token-file x");
        assert!(
            error.contains("tip: --token-file, ") && error.matches("tip:").count() == 1,
            "{error}"
        );
    }

    #[test]
    fn an_error_for_scripts_is_a_message_in_one_line_and_a_tip() {
        let parts_of = |text: &str| {
            let words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
            parts(&improved(
                args::command().try_get_matches_from(&words).expect_err(text),
                &words,
            ))
        };
        let (message, hint) = parts_of("vbk bakcup");
        assert_eq!(message, "unrecognized subcommand 'bakcup'");
        assert!(hint.is_some_and(|hint| hint.contains("'backup'")));
        let (message, hint) = parts_of("vbk diff");
        assert_eq!(
            (message.as_str(), hint),
            (
                "the following required arguments were not provided: <BEFORE> <AFTER>",
                None
            )
        );
        let (message, _) = parts_of("vbk key");
        assert_eq!(message, "a command is missing; --help lists the commands");
    }

    #[test]
    fn the_usage_is_that_of_the_whole_command() {
        let error = error_of("vbk --repo /repo diff web1@latest");
        assert!(error.contains("Usage: vbk diff [OPTIONS] <BEFORE> <AFTER>"), "{error}");
        let error = error_of("vbk forget");
        for usage in ["<GUEST>...", "--all", "<BACKUP>..."] {
            assert!(error.contains(&format!("vbk forget [OPTIONS] {usage}")), "{error}");
        }
    }
}
