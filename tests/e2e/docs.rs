//! The manual: each command of README.md and docs/ is run, page by page, and must print what the page shows.
//!
//! A page is Markdown. Comments of HTML, which no reader sees, say how it is run:
//!
//! ```text
//! <!-- stage: two-backups -->          how its host looks at the start: a function of docs/host.sh
//! <!-- do: edit_web1 "hello" -->       done between blocks and not shown; must succeed
//! <!-- file: /etc/vbk/config.toml -->  the next block is written to this file
//! <!-- json: vbk --json list -->       the keys of this output are those in the first column of the next table
//! <!-- not run: REASON; tested by PATH, PATH -->   the next block is not run here, but there
//! ```
//!
//! A block ```` ```console ```` has commands behind `$ ` or `HOST$ `, below each what it prints, and `(exit 1)` if it fails. A
//! line `...` stands for lines that are left out. A block ```` ```toml ```` is checked with `vbk config check`, one of
//! ```` ```yaml ```` with promtool if that is installed; one of ```` ```text ```` has no commands. Other blocks need a mark.
//! Times, sizes, ids and rates may differ (docs/compare.rs).
//!
//! `VBK_DOCS=write` writes what the commands print into the pages: all of it, so that times and sizes of a page are those of one run.

mod compare;
mod keys;
mod page;
mod script;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lab::Lab;

use page::{Page, Part};

/// Declares the pages, and a test for each.
macro_rules! pages {
    ($($test:ident: $file:literal,)*) => {
        const PAGES: &[&str] = &[$($file),*];
        $(
            #[test]
            fn $test() {
                check($file);
            }
        )*
    };
}

pages! {
    readme: "README.md",
    contributing: "CONTRIBUTING.md",
    install: "docs/install.md",
    upgrading: "docs/upgrading.md",
    first_backup: "docs/first-backup.md",
    night: "docs/night.md",
    restore: "docs/restore.md",
    boot: "docs/boot.md",
    retention: "docs/retention.md",
    verify: "docs/verify.md",
    copies: "docs/copies.md",
    remote: "docs/remote.md",
    encryption: "docs/encryption.md",
    alerts: "docs/alerts.md",
    json: "docs/json.md",
    decommission: "docs/decommission.md",
    troubleshooting: "docs/troubleshooting.md",
    glossary: "docs/glossary.md",
    figures: "docs/figures.md",
    how_it_works: "docs/how-it-works.md",
    growth: "docs/growth.md",
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn load(file: &str) -> Page {
    let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("can't read {file}: {error}"));
    Page::parse(file, &text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_page_has_a_test() {
    let docs = fs::read_dir(root().join("docs")).expect("lists docs/");
    let names = docs.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let pages: BTreeSet<_> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    let tested: BTreeSet<_> = PAGES.iter().map(|page| (*page).to_owned()).collect();
    let untested: Vec<_> = pages.difference(&tested).collect();
    assert!(untested.is_empty(), "add to `pages!`: {untested:?}");
}

#[test]
fn a_page_sees_no_mounts_of_tests_that_run_beside_it() {
    let beside = Lab::new();
    let mounted = beside.mount("mnt");
    let text = "<!-- stage: empty -->\n```console\n$ vbk mounts\nnothing is mounted\n```\n";
    let page = Page::parse("a page", text).unwrap_or_else(|error| panic!("{error}"));
    let lab = Lab::without_repo();
    let printed = script::run(&lab, &page).unwrap_or_else(|error| panic!("{error}"));
    let outputs: Vec<_> = printed.values().map(|printed| printed.output.trim()).collect();
    beside.ok(args!["umount", mounted]);
    assert_eq!(outputs, ["nothing is mounted"]);
}

/// Options of rsync, restic, borg and our scripts.
const OF_OTHERS: [&str; 7] = [
    "--append-only",
    "--exclude",
    "--keep-tag",
    "--peers",
    "--quick",
    "--regress",
    "--served",
];

#[test]
fn options_that_the_manual_names_exist() {
    let lab = Lab::without_repo();
    let help = |args: Vec<&str>| {
        let args = args.into_iter().map(Into::into).collect();
        lab.start_bare(args).wait().text()
    };
    let mut known = help(vec!["--help"]);
    for name in first_words(&known.clone()) {
        let text = help(vec![name.as_str(), "--help"]);
        // `vbk key` and others have commands of their own.
        if let Some((_, inner)) = text.split_once("Commands:") {
            for inner in first_words(inner) {
                known += &help(vec![name.as_str(), inner.as_str(), "--help"]);
            }
        }
        known += &text;
    }
    let known: BTreeSet<_> = options_in(&known).collect();
    let mut unknown = Vec::new();
    for file in PAGES {
        let text = fs::read_to_string(root().join(file)).expect("reads a page");
        for (number, line) in text.lines().enumerate() {
            // Only those in code: `--force`, `vbk forget --all`.
            let code = line.split('`').skip(1).step_by(2);
            let code = code.filter(|code| code.starts_with("--") || code.starts_with("vbk "));
            let options = code.flat_map(|code| options_in(code).collect::<Vec<_>>());
            let missing = options.filter(|option| !known.contains(option) && !OF_OTHERS.contains(&option.as_str()));
            unknown.extend(missing.map(|option| format!("{file}:{}: {option}", number + 1)));
        }
    }
    assert!(
        unknown.is_empty(),
        "no command has these options:\n{}",
        unknown.join("\n")
    );
}

/// The lower-case words that begin an indented line: commands, in a help text.
fn first_words(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with("  "));
    let words = lines.filter_map(|line| line.split_whitespace().next());
    let words = words.filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
    words.map(str::to_owned).collect()
}

fn options_in(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|char: char| !(char.is_ascii_lowercase() || char == '-' || char.is_ascii_digit()));
    let options = words.filter(|word| word.starts_with("--") && word.len() > 3);
    options.map(|word| word.trim_end_matches('-').to_owned())
}

/// Runs a page, and compares or rewrites it.
fn check(file: &str) {
    let page = load(file);
    let mut wrong = marks(&page);
    let (mut stale, mut edits) = (Vec::new(), Vec::new());
    let mut backups = Vec::new();
    if page.is_run() {
        let lab = Lab::without_repo();
        let printed = script::run(&lab, &page).unwrap_or_else(|error| panic!("{error}"));
        for (number, printed) in printed {
            let part = &page.parts[number];
            match part {
                Part::Step(step) => {
                    let shown = page.shown(step);
                    let lines: Vec<_> = printed.output.trim_end().lines().collect();
                    if let Some(difference) = compare::difference(&shown, &lines, step.exit, printed.exit) {
                        stale.push(format!("{file}:{}: $ {}\n{difference}", step.line, step.command));
                    }
                    for (shown, printed) in compare::backups(&shown, &lines) {
                        backups.push((step.line, shown.to_owned(), printed.to_owned()));
                    }
                    edits.push((step, compare::rewritten(&shown, &lines, printed.exit)));
                }
                Part::Keys { keys, .. } => {
                    let difference = keys::difference(keys, &printed.output);
                    wrong.extend(difference.map(|text| format!("{file}:{}: {text}", part.line())));
                }
                // 3 is a warning, e.g. for a disk that this host has not.
                Part::Config { line, .. } if !matches!(printed.exit, 0 | 3) => {
                    wrong.push(format!("{file}:{line}: config check: {}", printed.output));
                }
                _ => {}
            }
        }
    }
    for (line, shown, _) in confused(&backups) {
        stale.push(format!(
            "{file}:{line}: {shown} is another backup than elsewhere on this page, or has another name there"
        ));
    }
    if std::env::var_os("VBK_DOCS").is_some_and(|mode| mode == "write") && !edits.is_empty() {
        fs::write(root().join(file), page.with(edits)).expect("writes a page");
        println!("{file} is written anew. This differed:\n\n{}", stale.join("\n\n"));
        stale.clear();
    }
    wrong.extend(stale);
    assert!(
        wrong.is_empty(),
        "{file} is not what vbk prints; VBK_DOCS=write writes its output into the page\n\n{}",
        wrong.join("\n\n")
    );
}

/// Those of a page's backups whose names, as the page shows them, are not those of one backup each: its line, its name on the page,
/// and the one that was printed.
fn confused(backups: &[(usize, String, String)]) -> impl Iterator<Item = &(usize, String, String)> {
    backups.iter().enumerate().filter_map(|(at, this)| {
        let is_other = |known: &(usize, String, String)| (known.1 == this.1) != (known.2 == this.2);
        backups[..at].iter().any(is_other).then_some(this)
    })
}

/// Prints what is not run and why, and gives what is wrong with it.
fn marks(page: &Page) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in &page.parts {
        let place = format!("{}:{}", page.file, part.line());
        match part {
            Part::NotRun { reason, tested, .. } => {
                println!("NOT RUN {place}: {reason}; tested by {}", tested.join(", "));
                let missing = tested.iter().filter(|path| !root().join(path).exists());
                wrong.extend(missing.map(|path| format!("{place}: there is no {path}")));
            }
            Part::Rules { text, .. } => wrong.extend(wrong_rules(text).map(|why| format!("{place}: {why}"))),
            _ => {}
        }
    }
    wrong
}

/// The text of all files below a directory.
fn sources_in(dir: &Path) -> String {
    let entries = fs::read_dir(dir).expect("lists the sources");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let texts = paths.map(|path| match path.is_dir() {
        true => sources_in(&path),
        false => fs::read_to_string(&path).expect("reads a source"),
    });
    texts.collect()
}

/// Checks rules of Prometheus: each metric is one that vbk writes, and promtool accepts them where Debian's package is there.
fn wrong_rules(text: &str) -> Option<String> {
    let sources = sources_in(&root().join("cli/src"));
    let words = text.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    let unknown: BTreeSet<_> = words
        .filter(|word| word.starts_with("vbk_") && !sources.contains(&format!("\"{word}\"")))
        .collect();
    if !unknown.is_empty() {
        return Some(format!("vbk writes no such metric: {unknown:?}"));
    }
    let Ok(version) = Command::new("promtool").arg("--version").output() else {
        println!("NOT RUN promtool check rules: it is not installed (package prometheus)");
        return None;
    };
    assert!(version.status.success(), "promtool --version failed");
    let file = tempfile::NamedTempFile::new().expect("makes a file");
    fs::write(file.path(), text).expect("writes rules");
    let said = Command::new("promtool")
        .args(["check", "rules"])
        .arg(file.path())
        .output();
    let said = said.expect("runs promtool");
    (!said.status.success()).then(|| String::from_utf8_lossy(&said.stderr).into_owned())
}
