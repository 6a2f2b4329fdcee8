//! Which options were typed, and which come from the environment.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Where the options of every command come from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sources {
    /// The option or the variable that names a key.
    pub key_option: Option<&'static str>,
    /// Whether the repository is named on the command line itself.
    pub repo_is_typed: bool,
}

impl Sources {
    /// From the command line as it was read.
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
