//! The manual pages: vbk(1), a page for each command, and vbk-config(5). They consist of the texts of the help and of
//! `config_keys.rs`; nothing is written twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::args;
use crate::config_keys::{self, Key, PARTS};
use crate::exit::CODES;

const MANUAL: &str = "vbk manual";

/// A page of the manual.
pub struct Page {
    /// Name of its file, e.g. `vbk-backup.1`.
    pub file: String,
    /// Its source for man(1).
    pub source: String,
}

/// Makes all pages, with their date as `2026-11-30`.
pub fn pages(date: &str) -> io::Result<Vec<Page>> {
    let mut root = args::command().disable_help_subcommand(true);
    root.build();
    let global: Vec<_> = root
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .map(|arg| arg.get_id().clone())
        .collect();
    // Each page but the first says where the common options are, and does not repeat them.
    let is_common = |arg: &clap::Arg| global.contains(arg.get_id()) || arg.get_id() == "help";
    let mut pages = Vec::new();
    let mut left = vec![root.clone()];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
        let is_root = command.get_name() == root.get_name();
        let command = command.mut_args(|arg| {
            let is_hidden = arg.is_hide_set() || !is_root && is_common(&arg);
            // The text of an option that the short help leaves out is here all the same.
            match (arg.get_long_help(), arg.get_help().cloned()) {
                (None, Some(help)) => arg.long_help(help).hide(is_hidden),
                _ => arg.hide(is_hidden),
            }
        });
        pages.push(page_of(&command, is_root, date)?);
    }
    pages.sort_by(|one, other| one.file.cmp(&other.file));
    let names: Vec<_> = pages.iter().map(|page| page.file.clone()).collect();
    for page in &mut pages {
        page.source = finished(&format!("{}{}", page.source, see_also(&page.file, &names)));
    }
    pages.push(configuration(date));
    Ok(pages)
}

fn page_of(command: &Command, is_root: bool, date: &str) -> io::Result<Page> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(date)
        .source(version())
        .manual(MANUAL);
    let mut source = Vec::new();
    man.render_title(&mut source)?;
    man.render_name_section(&mut source)?;
    man.render_synopsis_section(&mut source)?;
    man.render_description_section(&mut source)?;
    if command.get_arguments().any(|arg| !arg.is_hide_set()) {
        man.render_options_section(&mut source)?;
    }
    if !is_root {
        let mut common = Roff::new();
        common.control("SH", ["COMMON OPTIONS"]);
        common.text([
            roman("The options of every command, e.g. "),
            bold("--repo"),
            roman(", "),
            bold("--json"),
            roman(" and "),
            bold("--quiet"),
            roman(", are in vbk(1)."),
        ]);
        common.to_writer(&mut source)?;
    }
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(&mut source)?;
    }
    let mut rest = Roff::new();
    let after = command.get_after_long_help().or_else(|| command.get_after_help());
    if let Some(after) = after {
        notes(&mut rest, &after.to_string());
    }
    if is_root {
        exit_status(&mut rest);
        environment(&mut rest, command);
        files(&mut rest);
    }
    rest.to_writer(&mut source)?;
    Ok(Page {
        file: man.get_filename(),
        source: String::from_utf8_lossy(&source).into_owned(),
    })
}

fn version() -> String {
    format!("vbk {}", env!("CARGO_PKG_VERSION"))
}

/// Writes the text below a help: paragraphs, and lines that are indented as they are.
fn notes(roff: &mut Roff, text: &str) {
    let (mut has_heading, mut is_new, mut is_literal) = (false, false, false);
    let mut paragraph = String::new();
    let flush = |roff: &mut Roff, paragraph: &mut String| {
        if !paragraph.is_empty() {
            roff.text([roman(std::mem::take(paragraph))]);
        }
    };
    for line in text.lines().chain([""]) {
        let is_example = matches!(line.trim_end(), "Example:" | "Examples:");
        let is_indented = line.starts_with("  ");
        if is_literal && !is_indented && !line.is_empty() {
            roff.control("fi", []).control("RE", []);
            (is_literal, is_new) = (false, true);
        }
        if is_example || is_indented || line.is_empty() {
            flush(roff, &mut paragraph);
        }
        if is_example {
            roff.control("SH", ["EXAMPLES"]);
            (has_heading, is_new) = (true, false);
        } else if line.is_empty() {
            is_new = has_heading;
        } else {
            if !has_heading {
                roff.control("SH", ["NOTES"]);
                has_heading = true;
            }
            if is_indented && !is_literal {
                roff.control("RS", ["4"]).control("nf", []);
                is_literal = true;
            } else if is_indented && is_new {
                roff.control("sp", []);
            } else if !is_indented && is_new && paragraph.is_empty() {
                roff.control("PP", []);
            }
            is_new = false;
            match is_indented {
                true => _ = roff.text([roman(&line[2..])]),
                false if paragraph.is_empty() => paragraph.push_str(line),
                false => paragraph.extend([" ", line]),
            }
        }
    }
    if is_literal {
        roff.control("fi", []).control("RE", []);
    }
}

/// Writes the exit codes.
fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, _, text) in CODES {
        roff.control("TP", []);
        roff.text([bold(code.to_string())]);
        roff.text([roman(text)]);
    }
    roff.control("PP", []);
    roff.text([roman(
        "`vbk status --check` has those of monitoring plugins, see vbk-status(1).",
    )]);
}

/// Variables of the environment that stand for no option.
const VARIABLES: [(&str, &str); 6] = [
    (
        "VBK_LOG",
        "Filter of the log, e.g. rocksdb=debug, instead of --verbose.",
    ),
    (
        "VBK_RUNTIME_DIR",
        "Directory for locks and mounts of running commands, instead of that below.",
    ),
    ("VBK_CACHE_DIR", "Directory of the caches, instead of that below."),
    (
        "VBK_STATE_DIR",
        "Directory of what this host knows of its repositories, instead of that below.",
    ),
    ("NO_COLOR", "No colours, if it is set and not empty."),
    (
        "TZ",
        "Time zone in which days begin for `vbk forget`, unless the configuration names one.",
    ),
];

/// Returns the variables of options, each with its options.
fn variables(command: &Command) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut left = vec![command];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()));
        for arg in command.get_arguments() {
            if let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) {
                let of_variable = found.entry(variable.to_string_lossy().into_owned()).or_default();
                of_variable.insert(format!("--{long}"));
            }
        }
    }
    found
}

/// Writes the variables of the environment that vbk reads.
fn environment(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["ENVIRONMENT"]);
    let of_options = variables(command);
    let of_options = of_options.iter().map(|(variable, options)| {
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        (
            variable.as_str(),
            format!("Value of {}, if the option is not given.", options.join(", ")),
        )
    });
    let others = VARIABLES.iter().map(|(variable, text)| (*variable, (*text).to_owned()));
    for (variable, text) in of_options.chain(others) {
        roff.control("TP", []);
        roff.text([bold(variable)]);
        roff.text([roman(text)]);
    }
}

/// Writes the files of the machine that vbk uses.
fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (file, text) in [
        ("/etc/vbk/config.toml", "The configuration, see vbk-config(5)."),
        ("/run/vbk", "Locks and mounts of running commands."),
        (
            "/var/cache/vbk",
            "Measured speeds of disks, and copies of what was read from other hosts. It may be removed.",
        ),
        (
            "/var/lib/vbk-trust",
            "What this host knows of its repositories, see vbk-trust(1).",
        ),
    ] {
        roff.control("TP", []);
        roff.text([italic(file)]);
        roff.text([roman(text)]);
    }
    roff.control("PP", []);
    roff.text([roman(
        "Users other than root have these in their directories for runtime files, caches and state.",
    )]);
}

/// Makes the section that names the related pages: for vbk(1) all, for a command its neighbours.
fn see_also(file: &str, names: &[String]) -> String {
    let stem = file.trim_end_matches(".1");
    let family = |name: &&String| {
        let name = name.trim_end_matches(".1");
        let parent = name.rsplit_once('-').map(|(parent, _)| parent);
        stem == "vbk"
            || name == "vbk"
            || parent == Some(stem)
            || stem.rsplit_once('-').map(|(parent, _)| parent) == Some(name)
    };
    let mut related: Vec<_> = names
        .iter()
        .filter(|name| *name != file)
        .filter(family)
        .map(|name| format!("{}(1)", name.trim_end_matches(".1")))
        .collect();
    related.push("vbk-config(5)".to_owned());
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(related.join(", "))]);
    roff.to_roff()
}

/// Makes vbk-config(5).
fn configuration(date: &str) -> Page {
    let mut roff = Roff::new();
    roff.control("TH", ["VBK-CONFIG", "5", date, &version(), MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("vbk-config - configuration of vbk")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic("/etc/vbk/config.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    for (number, paragraph) in [
        "The file is in TOML. vbk runs without it; `vbk backup --all`, `vbk forget --all` and the units of systemd take from it \
         what they work on. --config-file or VBK_CONFIG names another file. Options on the command line come before it.",
        "`vbk config example` prints a file with every key, commented out. `vbk config check` checks the file and shows what \
         it means for each guest. An unknown key is an error: a setting with a typing mistake must not be ignored.",
        "Commands in it run as the user that runs vbk, mostly root: a file with commands that others could change is refused.",
    ]
    .iter()
    .enumerate()
    {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*paragraph)]);
    }
    for (header, words, sections) in PARTS {
        let title = match header {
            "" => "TOP OF THE FILE",
            header => header,
        };
        roff.control("SH", [title]);
        roff.text([roman(words)]);
        for key in sections.iter().flat_map(|section| config_keys::keys(*section)) {
            describe(&mut roff, key);
        }
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in EXAMPLE.lines() {
        match line {
            "" => _ = roff.control("sp", []),
            line => _ = roff.text([roman(line)]),
        }
    }
    roff.control("fi", []);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "vbk(1), vbk-backup(1), vbk-config-check(1), vbk-config-example(1), vbk-forget(1)",
    )]);
    Page {
        file: "vbk-config.5".to_owned(),
        source: finished(&roff.render()),
    }
}

/// A whole configuration of a host.
const EXAMPLE: &str = r#"repository = "/srv/vbk"
metrics = "/var/lib/prometheus/node-exporter/vbk.prom"

[defaults]
keep = { daily = 7, weekly = 4, monthly = 6 }
exclude = ["test*"]

[guest.db1]
disks = { vda = "/dev/vg0/db1" }
pre-freeze = "/usr/local/bin/stop-db"
post-thaw = "/usr/local/bin/start-db""#;

fn describe(roff: &mut Roff, key: &Key) {
    roff.control("TP", []);
    roff.text([bold(key.name), roman(" = "), roman(key.example)]);
    let default = match key.default {
        "" => String::new(),
        default => format!(" Default: {default}."),
    };
    roff.text([roman(format!("{}{default}", config_keys::about(key)))]);
}

/// Makes words between backquotes bold, and removes what readers of manual pages complain of: empty lines, a second line break, and a definition that is there already.
fn finished(source: &str) -> String {
    let mut text = String::new();
    let (mut is_literal, mut is_broken) = (false, false);
    let mut has_definition = [false; 2];
    for line in source.lines() {
        is_literal = line == ".nf" || is_literal && line != ".fi";
        let definition = [".ie \\n(.g", ".el .ds Aq"]
            .iter()
            .position(|start| line.starts_with(start));
        if line.is_empty() || definition.is_some_and(|which| std::mem::replace(&mut has_definition[which], true)) {
            continue;
        }
        if std::mem::replace(&mut is_broken, line == ".br") && is_broken {
            continue;
        }
        let parts: Vec<_> = line.split('`').collect();
        // An even number of backquotes.
        match !is_literal && parts.len() % 2 == 1 {
            true => {
                for (number, part) in parts.into_iter().enumerate() {
                    match number % 2 {
                        0 => text.push_str(part),
                        _ => text.extend(["\\fB", part, "\\fR"]),
                    }
                }
            }
            false => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Page> {
        pages("2026-11-30").expect("writes to memory")
    }

    fn source(file: &str) -> String {
        let found = all().into_iter().find(|page| page.file == file);
        found.unwrap_or_else(|| panic!("no {file}")).source
    }

    #[test]
    fn every_command_has_a_page_and_every_option_is_on_one() {
        let pages = all();
        let mut root = args::command().disable_help_subcommand(true);
        root.build();
        let mut left = vec![(root, "vbk".to_owned())];
        while let Some((command, name)) = left.pop() {
            let file = format!("{name}.1");
            let page = pages.iter().find(|page| page.file == file);
            let page = page.unwrap_or_else(|| panic!("no {file}"));
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let is_here =
                    name == "vbk" || !(arg.is_global_set() || ["repo", "help"].contains(&arg.get_id().as_str()));
                if let Some(long) = arg.get_long().filter(|_| is_here) {
                    let long = format!("\\-\\-{}", long.replace('-', "\\-"));
                    assert!(page.source.contains(&long), "no {long} in {file}");
                }
            }
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                left.push((sub.clone(), format!("{name}-{}", sub.get_name())));
            }
        }
    }

    #[test]
    fn the_first_page_has_every_exit_code_and_every_variable_of_the_source() {
        let page = source("vbk.1");
        let status = page.split(".SH \"EXIT STATUS\"").nth(1).expect("has exit codes");
        for (code, ..) in CODES {
            assert!(status.contains(&format!("\\fB{code}\\fR")), "no {code}");
        }
        // Of other programs, of vbk's own processes, and of commands that the configuration names.
        let others = [
            "VBK_BACKGROUND_LOG",
            "VBK_BACKGROUND_SECRETS",
            "VBK_GUEST",
            "VBK_GUESTS",
            "VBK_ERROR",
            "VBK_KIND",
            "VBK_HOST",
        ];
        let others = [&others[..], &["VBK_WARNINGS", "VBK_SUMMARY"]].concat();
        let environment = page.split(".SH ENVIRONMENT").nth(1).expect("has variables");
        let mut left = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut count = 0;
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(
                    std::fs::read_dir(path)
                        .expect("lists")
                        .map(|entry| entry.expect("an entry").path()),
                );
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("reads");
            for part in text.split("\"VBK_").skip(1) {
                let end = part
                    .find(|c: char| !(c.is_ascii_uppercase() || c == '_'))
                    .unwrap_or(part.len());
                let variable = format!("VBK_{}", &part[..end]);
                if !part[end..].starts_with('"') || others.contains(&variable.as_str()) {
                    continue;
                }
                count += 1;
                assert!(environment.contains(&variable), "no {variable} of {}", path.display());
            }
        }
        assert!(count > 10, "{count}");
    }

    #[test]
    fn the_configuration_has_a_page_with_every_key() {
        let page = source("vbk-config.5");
        for key in config_keys::KEYS {
            let name = format!("\\fB{}\\fR = ", key.name.replace('-', "\\-"));
            assert_eq!(page.matches(&name).count(), 1, "{name}");
        }
    }

    #[test]
    fn the_text_below_a_help_becomes_paragraphs_and_lines_as_they_are() {
        let mut roff = Roff::new();
        notes(
            &mut roff,
            "One\ntwo.\n\nThree:\n  a  b\n  c\n\n  d\nFour\n\nExample:\n  vbk list",
        );
        let expected = ".SH NOTES\nOne two.\n.PP\nThree:\n.RS 4\n.nf\na  b\nc\n.sp\nd\n.fi\n.RE\n.PP\nFour\n.SH EXAMPLES\n.RS 4\n.nf\nvbk list\n.fi\n.RE\n";
        assert_eq!(roff.to_roff(), expected);
    }

    #[test]
    fn words_in_backquotes_are_bold_but_not_in_examples() {
        let of = |text: &str| finished(text);
        assert_eq!(of("see `a`\n\n.nf\n`b`\n.fi\n"), "see \\fBa\\fR\n.nf\n`b`\n.fi\n");
        assert_eq!(of("a ` b"), "a ` b\n");
        assert_eq!(of("a\n.br\n\n.br\nb\n"), "a\n.br\nb\n");
    }
}
