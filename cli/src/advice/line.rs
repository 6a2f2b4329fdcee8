//! The words of a command line: its command and its positional arguments, also where clap refuses them.

use std::ffi::OsString;

use clap::{Arg, Command};

/// A command line.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// The command and the one below it, as far as the words name some.
    pub path: Vec<&'a str>,
    words: Vec<String>,
    /// Where the positional arguments are among the words.
    places: Vec<usize>,
    /// The repository that was named.
    repo: Option<String>,
}

impl<'a> Line<'a> {
    /// Reads the words of a command line, the first of which is the program.
    pub fn read(cli: &'a Command, words: &[OsString]) -> Self {
        let mut words: Vec<_> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        if let Some(program) = words.first_mut() {
            "vbk".clone_into(program);
        }
        let (mut command, mut path, mut places) = (cli, Vec::new(), Vec::new());
        let mut at = 1;
        let mut is_behind_options = false;
        let mut repo = None;
        while let Some(word) = words.get(at) {
            match word
                .strip_prefix('-')
                .filter(|rest| !rest.is_empty() && !is_behind_options)
            {
                Some("-") => is_behind_options = true,
                Some(option) if names_repo(command, option) => {
                    let (own, next) = match option.strip_prefix('r') {
                        Some(value) => (value, value.is_empty()),
                        None => (
                            option.split_once('=').map_or("", |(_, value)| value),
                            !option.contains('='),
                        ),
                    };
                    at += usize::from(next);
                    repo = match next {
                        true => words.get(at).cloned(),
                        false => Some(own.to_owned()),
                    };
                }
                Some(option) if takes_next(command, option) => at += 1,
                Some(_) => {}
                None => match command.find_subcommand(word) {
                    Some(sub) if places.is_empty() && !is_behind_options => {
                        command = sub;
                        path.push(sub.get_name());
                    }
                    _ => places.push(at),
                },
            }
            at += 1;
        }
        Self {
            path,
            words,
            places,
            repo,
        }
    }

    /// Returns the program with the repository that was named, for another command with the same.
    pub fn program(&self) -> String {
        match &self.repo {
            Some(repo) => format!("vbk -r {}", quoted(repo)),
            None => "vbk".to_owned(),
        }
    }

    /// Returns the positional arguments.
    pub fn positionals(&self) -> Vec<String> {
        self.places.iter().map(|at| self.words[*at].clone()).collect()
    }

    /// Returns whether an option was given, by its long name.
    pub fn has_option(&self, long: &str) -> bool {
        let is_it = |word: &String| {
            word.strip_prefix(long)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        self.words.iter().any(is_it)
    }

    /// Returns the command with one positional argument in the place of another, before which it comes.
    pub fn moved(&self, from: usize, to: usize) -> String {
        let mut words = self.words.clone();
        let word = words.remove(self.places[from]);
        words.insert(self.places[to], word);
        command_of(&words)
    }

    /// Returns the command with a word more before a positional argument.
    pub fn with(&self, before: usize, word: &str) -> String {
        let mut words = self.words.clone();
        words.insert(self.places[before], word.to_owned());
        command_of(&words)
    }

    /// Returns the command with another positional argument.
    pub fn replaced(&self, at: usize, word: &str) -> String {
        let mut line = self.clone();
        line.replace(at, word);
        line.command()
    }

    /// Replaces a positional argument.
    pub fn replace(&mut self, at: usize, word: &str) {
        self.words[self.places[at]] = word.to_owned();
    }

    /// Returns the command, in the quotes of messages.
    pub fn command(&self) -> String {
        command_of(&self.words)
    }
}

fn command_of(words: &[String]) -> String {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    format!("`{}`", words.join(" "))
}

/// Quotes a word for a shell, if it needs that.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./@:=,+%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns whether an option names the repository. `option` is a word without its first dash. `vbk cp -r` copies directories.
fn names_repo(command: &Command, option: &str) -> bool {
    let is_short = |arg: &Arg| arg.get_short() == Some('r') && arg.get_id() == "repo";
    match option.strip_prefix('-') {
        Some(long) => long == "repo" || long.starts_with("repo="),
        None => option.starts_with('r') && command.get_arguments().any(is_short),
    }
}

/// Returns whether the value of an option is the next word. `option` is a word without its first dash.
fn takes_next(command: &Command, option: &str) -> bool {
    let takes = |arg: &Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
    let mut args = command.get_arguments();
    match option.strip_prefix('-') {
        Some(long) => args.any(|arg| arg.get_long() == Some(long) && takes(arg)),
        // Several in one word; the value of the first that takes one is the rest of the word, if there is a rest.
        None => {
            let takes = |c: char| {
                command
                    .get_arguments()
                    .any(|arg| arg.get_short() == Some(c) && takes(arg))
            };
            option.find(takes).is_some_and(|at| at + 1 == option.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    #[test]
    fn the_positional_arguments_are_found_among_options() {
        for (typed, path, positionals) in [
            ("vbk", "", ""),
            ("vbk frob x", "", "frob x"),
            (
                "vbk -r /repo --json backup web1 --jobs 2 /dev/x",
                "backup",
                "web1 /dev/x",
            ),
            ("vbk -qr /repo backup -r/other --repo=/third web1", "backup", "web1"),
            ("vbk cp -r a b", "cp", "a b"),
            ("vbk restore a --skip-damaged b", "restore", "a b"),
            ("vbk restore --force -- -a list", "restore", "-a list"),
            ("vbk key add more", "key add", "more"),
            ("vbk show list", "show", "list"),
            ("vbk restore a -", "restore", "a -"),
        ] {
            let mut cli = args::command();
            cli.build();
            let words: Vec<OsString> = typed.split(' ').map(OsString::from).collect();
            let line = Line::read(&cli, &words);
            assert_eq!(line.path.join(" "), path, "{typed}");
            assert_eq!(line.positionals().join(" "), positionals, "{typed}");
            assert_eq!(line.command(), format!("`{typed}`"));
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, shown) in [
            ("web1@latest:/etc", "web1@latest:/etc"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
