//! The command line as it is run: that of the derived structs, with its commands in groups, the options of every command
//! folded to one line in the help of each, and examples at the end.

use std::fmt::Write;

use clap::builder::Resettable;
use clap::{Arg, Command, CommandFactory};

use super::Cli;
use super::examples::EXAMPLES;

/// The groups of commands in `vbk --help`, with their commands in the order in which they are shown.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Back up", &["backup", "limit", "snapshots"]),
    (
        "Find and restore",
        &[
            "list", "show", "diff", "ls", "find", "cat", "cp", "mount", "mounts", "umount", "restore", "boot",
        ],
    ),
    (
        "Keep",
        &[
            "forget",
            "unforget",
            "protect",
            "unprotect",
            "note",
            "rename",
            "prune",
            "copy",
        ],
    ),
    ("Check and repair", &["verify", "rehearse", "repair", "trust"]),
    ("Look", &["status", "stats", "guests"]),
    (
        "Set up and serve",
        &["init", "config", "key", "serve", "token", "policy"],
    ),
];

/// The line that stands for the options of every command in the help of one.
const FOLDED: &str = " --repo, --json, --quiet, --verbose and others; see `vbk --help`";

const START: &str = "{about-with-newline}\n{usage-heading} {usage}\n\n";

/// Returns the command line. Variables of the environment that are empty count as not set.
pub fn command() -> Command {
    let command = Cli::command().mut_args(without_empty_variable);
    let globals: Vec<Arg> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .cloned()
        .collect();
    let overview = overview(&command);
    let heading = heading(&command, "Options of every command");
    with_free_lines(command)
        .help_template(format!("{START}{overview}{heading}\n{{options}}{{after-help}}"))
        .mut_subcommands(|sub| {
            let is_missing = |global: &&Arg| sub.get_arguments().all(|arg| arg.get_id() != global.get_id());
            let added: Vec<Arg> = globals.iter().filter(is_missing).cloned().collect();
            let is_global = |arg: &Arg| globals.iter().any(|global| global.get_id() == arg.get_id());
            let sub = sub.next_help_heading(Resettable::Reset).args(added);
            // Not hidden altogether: clap still proposes them for misspelled ones, and completions have them.
            let sub = sub.mut_args(|arg| match is_global(&arg) {
                true => arg.hide_short_help(true).hide_long_help(true),
                false => without_empty_variable(arg),
            });
            finished(sub, "")
        })
}

/// Adds the folded options and the examples to the help of a command and of those below it.
fn finished(command: Command, above: &str) -> Command {
    let path = format!("{above}{}", command.get_name());
    let folded = heading(&command, "Global options");
    let command = command.help_template(format!("{START}{{all-args}}\n\n{folded}{FOLDED}{{after-help}}"));
    let command = with_examples(with_free_lines(command), &path);
    command.mut_subcommands(|sub| finished(sub, &format!("{path} ")))
}

/// Frees the text after the options from the line breaks of its source, so that clap breaks its lines to fit the terminal.
fn with_free_lines(command: Command) -> Command {
    match command.get_after_help().map(|text| free_lines(&text.to_string())) {
        Some(text) => command.after_help(text),
        None => command,
    }
}

/// Joins the lines of each paragraph. Indented lines stay as they are.
fn free_lines(text: &str) -> String {
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ');
    let mut free = String::new();
    let mut last = "";
    for (number, line) in text.lines().enumerate() {
        let joins = is_prose(last) && is_prose(line);
        if number > 0 {
            free.push(if joins { ' ' } else { '\n' });
        }
        free.push_str(line);
        last = line;
    }
    free
}

fn with_examples(command: Command, path: &str) -> Command {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    match EXAMPLES.iter().find(|(known, _)| *known == path) {
        Some((_, lines)) if !text.contains("Examples:") => {
            let space = if text.is_empty() { "" } else { "\n\n" };
            let examples: String = lines.iter().map(|line| format!("\n  {line}")).collect();
            let heading = heading(&command, "Examples");
            command.after_help(format!("{text}{space}{heading}{examples}"))
        }
        _ => command,
    }
}

/// Lists the commands in their groups, each with its description.
fn overview(command: &Command) -> String {
    let literal = command.get_styles().get_literal();
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(text, "{}", heading(command, title));
        for sub in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            let name = sub.get_name();
            let _ = writeln!(
                text,
                "  {literal}{name}{literal:#}{:1$}  {about}",
                "",
                width - name.len()
            );
        }
        text.push('\n');
    }
    text
}

/// Formats a heading as clap formats its own.
fn heading(command: &Command, title: &str) -> String {
    let style = command.get_styles().get_header();
    format!("{style}{title}:{style:#}")
}

fn without_empty_variable(arg: Arg) -> Arg {
    let value = arg.get_env().and_then(std::env::var_os);
    match value.is_some_and(|value| value.is_empty()) {
        true => arg.env(Resettable::Reset),
        false => arg,
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    /// Every command, with the names of those above it.
    fn all() -> Vec<(String, Command)> {
        fn add(command: &Command, above: &str, all: &mut Vec<(String, Command)>) {
            let is_shown = |sub: &&Command| sub.get_name() != "help" && !sub.is_hide_set();
            for sub in command.get_subcommands().filter(is_shown) {
                let path = format!("{above}{}", sub.get_name());
                add(sub, &format!("{path} "), all);
                all.push((path, sub.clone()));
            }
        }
        let mut command = command();
        command.build();
        let mut found = Vec::new();
        add(&command, "", &mut found);
        found
    }

    fn short_and_long(command: &mut Command) -> [String; 2] {
        [
            command.render_help().to_string(),
            command.render_long_help().to_string(),
        ]
    }

    /// Splits a line as a shell does, up to the first pipe or redirection.
    fn split(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                '|' | '>' if !quoted => break,
                ' ' if !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
                c => word.push(c),
            }
        }
        words.extend(Some(word).filter(|word| !word.is_empty()));
        words
    }

    #[test]
    fn each_command_is_in_exactly_one_group() {
        let command = command();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let mut known: Vec<_> = shown.map(Command::get_name).collect();
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    #[test]
    fn the_overview_fits_80_columns_and_lists_the_options_of_every_command() {
        let mut command = command();
        for help in short_and_long(&mut command) {
            for (title, names) in GROUPS {
                assert!(help.contains(&format!("\n{title}:\n  {}", names[0])), "{title}: {help}");
            }
            let commands = help.split_once("\nOptions of every command:").expect("has options").0;
            for line in commands.lines().filter(|line| line.starts_with(' ')) {
                assert!(line.len() <= 80, "{line}");
            }
            for option in ["-r, --repo", "--key-file", "--passphrase-file", "--json", "VBK_REPO"] {
                assert!(help.contains(option), "no {option} in: {help}");
            }
        }
    }

    #[test]
    fn the_options_of_every_command_are_folded_in_the_help_of_each() {
        let globals: Vec<_> = command()
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .filter_map(|arg| arg.get_long().map(str::to_owned))
            .collect();
        assert!(globals.len() > 10, "{globals:?}");
        for (path, mut command) in all() {
            for help in short_and_long(&mut command) {
                assert!(help.contains(&format!("\nGlobal options:{FOLDED}\n")), "{path}: {help}");
                for global in &globals {
                    let long = format!("--{global}");
                    let described = help.lines().any(|line| {
                        let option = line
                            .strip_prefix("      ")
                            .or_else(|| line.strip_prefix("  -")?.get(3..));
                        option.and_then(|option| option.split(' ').next()) == Some(&long)
                    });
                    assert!(!described, "{path} has --{global}: {help}");
                }
            }
        }
    }

    #[test]
    fn paragraphs_fit_any_terminal_and_indented_lines_stay() {
        assert_eq!(free_lines("a b\nc\n\nd:\n  x\n  y\ne"), "a b c\n\nd:\n  x\n  y\ne");
        assert_eq!(free_lines("\na"), "\na");
        assert_eq!(free_lines(""), "");
    }

    #[test]
    fn each_help_ends_with_examples_that_can_be_parsed() {
        for (path, mut sub) in all() {
            let help = sub.render_long_help().to_string();
            let (_, examples) = help
                .rsplit_once("\nExamples:\n")
                .unwrap_or_else(|| panic!("{path}: {help}"));
            assert_eq!(help.matches("Examples:").count(), 1, "{path}");
            let lines: Vec<_> = examples.lines().collect();
            assert!((1..=5).contains(&lines.len()), "{path}: {lines:?}");
            let own = format!("vbk {path}");
            assert!(lines.iter().any(|line| line.contains(&own)), "{path}: {lines:?}");
            for line in lines {
                assert!(line.starts_with("  vbk ") && line.len() <= 80, "{path}: {line:?}");
                if let Err(error) = command().try_get_matches_from(split(line)) {
                    assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{line}: {error}");
                }
            }
        }
        for (path, _) in EXAMPLES {
            assert!(all().iter().any(|(known, _)| known == path), "{path} is no command");
        }
    }

    #[test]
    fn a_global_option_counts_before_and_behind_the_command() {
        for words in [
            &["vbk", "--quiet", "key", "list"][..],
            &["vbk", "key", "--quiet", "list"],
            &["vbk", "key", "list", "--quiet"],
        ] {
            let matches = command().try_get_matches_from(words).expect("is valid");
            assert!(matches.get_flag("quiet"), "{words:?}");
        }
        let error = command()
            .try_get_matches_from(["vbk", "list", "--jsn"])
            .expect_err("misspelled");
        assert!(error.to_string().contains("'--json'"), "{error}");
    }
}
