//! The sources of options: the command line, or the environment.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Sources of the options of every command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sources {
    /// The option or the variable that names a key.
    pub key_option: Option<&'static str>,
    /// The repository is named on the command line itself.
    pub repo_is_typed: bool,
}

impl Sources {
    /// Finds the sources in the parsed command line.
    pub fn of(matches: &ArgMatches) -> Self {
        let key_option = |id, option, variable| match matches.value_source(id) {
            Some(ValueSource::CommandLine) => Some(option),
            Some(ValueSource::EnvVariable) => Some(variable),
            _ => None,
        };
        Self {
            key_option: key_option("key_file", "--key-file", "VBK_KEY_FILE")
                .or_else(|| key_option("passphrase_file", "--passphrase-file", "VBK_PASSPHRASE_FILE")),
            repo_is_typed: matches.value_source("repo") == Some(ValueSource::CommandLine),
        }
    }
}
