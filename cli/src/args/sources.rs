//! The sources of options: the command line, or the environment.

use std::ffi::OsString;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Options for the way to a repository on another host, by the names of their fields.
const WAY: [&str; 7] = [
    "rsh",
    "remote_path",
    "reconnect_for",
    "connections",
    "bandwidth",
    "cache",
    "config_file",
];

/// Sources of the options of every command.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The option or the variable that names a key.
    pub key_option: Option<&'static str>,
    /// The repository is named on the command line itself.
    pub repo_is_typed: bool,
    /// Options for the way to the repository, as they were typed. The environment reaches every process by itself.
    pub way: Vec<OsString>,
}

impl Sources {
    /// Finds the sources in the parsed command line.
    pub fn of(matches: &ArgMatches) -> Self {
        let key_option = |id, option, variable| match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Some(option),
            Some(ValueSource::EnvVariable) => Some(variable),
            _ => None,
        };
        let typed = WAY
            .into_iter()
            .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        let way = typed.flat_map(|id| {
            let values = matches.get_raw(id).into_iter().flatten();
            values.map(move |value| {
                let mut option = OsString::from(format!("--{}=", id.replace('_', "-")));
                option.push(value);
                option
            })
        });
        Self {
            way: way.collect(),
            key_option: key_option("key_file", "--key-file", "VBK_KEY_FILE")
                .or_else(|| key_option("passphrase_file", "--passphrase-file", "VBK_PASSPHRASE_FILE")),
            repo_is_typed: matches.value_source("repo") == Some(ValueSource::CommandLine),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn the_typed_options_for_the_way_are_kept_as_they_are() {
        let typed = [
            "--rsh=ssh -p 9",
            "--remote-path=/opt/vbk",
            "--reconnect-for=5m",
            "--connections=1",
            "--bandwidth=5MB/s 8:00-18:00, 50MB/s",
            "--cache=off",
            "--config-file=/etc/other.toml",
        ];
        // Before the command, and behind it in two words.
        let before = [&["vbk"], &typed[..], &["list"]].concat();
        let mut behind = vec!["vbk", "list"];
        for option in typed {
            let (name, value) = option.split_once('=').expect("has a value");
            behind.extend([name, value]);
        }
        for words in [before, behind] {
            let matches = Cli::command().try_get_matches_from(&words).expect("is valid");
            assert_eq!(Sources::of(&matches).way, typed, "{words:?}");
        }
        let matches = Cli::command().try_get_matches_from(["vbk", "list"]).expect("is valid");
        assert_eq!(Sources::of(&matches).way, [""; 0]);
    }
}
