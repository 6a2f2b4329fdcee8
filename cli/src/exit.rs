//! The end of a run: exit codes, and the message of an error with its hint.

mod hint;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use vbk_repo::ErrorKind;

/// Result of a command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Everything was done, with warnings that a person should read.
    Warnings,
    /// Damage was found.
    Damage,
    /// Nothing could be done; the output says why.
    Failed,
    /// The state that `vbk status --check` found, with the exit code that monitoring programs want.
    Checked(u8),
}

/// Error that ends a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the repository.
    #[error(transparent)]
    Repository(#[from] vbk_repo::Error),
    /// An error of a backup or restore.
    #[error(transparent)]
    Engine(#[from] vbk::Error),
    /// A guest can't be booted.
    #[error(transparent)]
    Boot(#[from] vbk::boot::BootError),
    /// An error of a mount.
    #[error(transparent)]
    Mount(#[from] vbk_fuse::Error),
    /// A file inside a backup can't be read.
    #[error("{what}: {source}")]
    Inside {
        /// The backup and the path.
        what: String,
        /// Error of the reader.
        source: vbk_inside::Error,
    },
    /// The files of a guest have no root.
    #[error("{0}")]
    NoRoot(String),
    /// The arguments or the configuration can't be used.
    #[error("{0}")]
    Usage(String),
    /// The run was interrupted after it had stored something.
    #[error("interrupted; {0}")]
    Interrupted(String),
    /// Another run of vbk does the same work.
    #[error("{0}")]
    Busy(String),
    /// The time limit was reached.
    #[error("{0}")]
    TimeOver(String),
    /// No guests were found.
    #[error("{0}")]
    NoGuests(String),
    /// A limit of the system is too low.
    #[error("{0}")]
    Limit(String),
    /// The named repository does not exist.
    #[error("{0}")]
    NotThere(String),
    /// The repository is not the one that this host knows, or older.
    #[error("{0}")]
    Distrusted(String),
    /// The given key does not open the repository.
    #[error(transparent)]
    Unopened(vbk_repo::Error),
    /// An error of another repository than the one of the run.
    #[error("{}: {source}", path.display())]
    Other {
        /// Name of the repository.
        path: PathBuf,
        /// Its error.
        source: vbk_repo::Error,
    },
    /// A key file or passphrase file can't be read.
    #[error("can't read {what} {}: {source}", path.display())]
    KeyFile {
        /// `key file` or `passphrase file`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The process that served a mount failed, with this exit code.
    #[error("{text}")]
    Server {
        /// The message.
        text: String,
        /// Exit code of the process.
        code: u8,
    },
    /// A system call failed outside of the repository.
    #[error("can't {doing}: {source}")]
    Io {
        /// The failed action, e.g. `write /srv/key`.
        doing: String,
        /// Error of the system.
        source: std::io::Error,
    },
    /// A bug in this program. Never for anything that a person, a file or the system can cause.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// Wraps an I/O error: `.map_err(Error::io("write the log"))`.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

impl From<vbk_fuse::MountError> for Error {
    fn from(error: vbk_fuse::MountError) -> Self {
        Self::Mount(error.into())
    }
}

/// The exit codes: in a word or two, as in the help, and with more of them, as in the manual page and docs/troubleshooting.md.
pub const CODES: [(u8, &str, &str); 7] = [
    (0, "done", "done"),
    (1, "failed", "failed; nothing was acknowledged"),
    (2, "wrong usage", "wrong usage, or an invalid configuration"),
    (3, "done with warnings", "done, with warnings"),
    (4, "damage found", "damage found"),
    (
        75,
        "busy",
        "busy, with `--no-wait`, or another `backup --all` runs, or a disk is in use",
    ),
    (130, "interrupted", "interrupted"),
];

/// Exit code of wrong usage.
const USAGE: u8 = 2;

/// Words of the kinds that this program adds to those of [`word`].
const USAGE_WORD: &str = "usage";
const TIME_LIMIT: &str = "time-limit";

/// All words of [`Error::word`], for scripts. The help texts list them.
#[cfg(test)]
pub const KINDS: [&str; 13] = [
    USAGE_WORD,
    "not-found",
    "invalid",
    "denied",
    "locked",
    "unavailable",
    TIME_LIMIT,
    "no-space",
    "read-only",
    "corrupt",
    "unsupported",
    "interrupted",
    "internal",
];

/// Returns a kind in one word.
fn word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not-found",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Locked => "locked",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::NoSpace => "no-space",
        ErrorKind::Denied => "denied",
        ErrorKind::ReadOnly => "read-only",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Interrupted => "interrupted",
        ErrorKind::Internal => "internal",
    }
}

/// Shorthand for results of commands.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns what the caller should do about an error of a file inside a backup.
pub fn inside_kind(error: &vbk_inside::Error) -> ErrorKind {
    use vbk_inside::Error as Inside;
    match error {
        Inside::Io(error) => {
            let below = error.get_ref();
            let of_repository = below.and_then(|error| error.downcast_ref::<vbk_repo::Error>());
            let of_reader = below.and_then(|error| error.downcast_ref::<Inside>());
            match (of_repository, of_reader) {
                (Some(error), _) => error.kind(),
                // The content of a file is a device, whose reads fail with errors of the system.
                (None, Some(error)) => inside_kind(error),
                (None, None) => ErrorKind::of_io(error),
            }
        }
        Inside::Damaged(_) => ErrorKind::Corrupt,
        Inside::Unsupported(_) => ErrorKind::Unsupported,
        Inside::NotFound => ErrorKind::NotFound,
        Inside::NotADirectory | Inside::NotAFile => ErrorKind::Invalid,
    }
}

/// Returns whether the backup can't be read, rather than the guest's file system in it.
fn is_of_repository(error: &vbk_inside::Error) -> bool {
    match error {
        vbk_inside::Error::Io(error) => error.get_ref().is_some_and(|error| error.is::<vbk_repo::Error>()),
        _ => false,
    }
}

impl Outcome {
    /// Returns the outcome of two parts of a command. Damage is said before all else.
    pub fn worse(self, other: Self) -> Self {
        let rank = |outcome| match outcome {
            Self::Done | Self::Checked(_) => 0,
            Self::Warnings => 1,
            Self::Failed => 2,
            Self::Damage => 3,
        };
        if rank(other) > rank(self) { other } else { self }
    }

    /// Returns the outcome of a command that could not read a file, and went on.
    pub fn of_unread(error: &vbk_inside::Error) -> Self {
        match inside_kind(error) {
            ErrorKind::Corrupt => Self::Damage,
            _ => Self::Failed,
        }
    }

    /// Returns the exit code.
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Warnings => 3,
            Self::Damage => 4,
            Self::Checked(code) => code,
        })
    }
}

impl Error {
    /// Returns what the caller should do about the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Repository(error) | Self::Unopened(error) | Self::Other { source: error, .. } => error.kind(),
            Self::Engine(error) => error.kind(),
            Self::Boot(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Inside { source, .. } => inside_kind(source),
            Self::Usage(_) => ErrorKind::Invalid,
            Self::NoRoot(_) | Self::NotThere(_) => ErrorKind::NotFound,
            Self::Distrusted(_) => ErrorKind::Denied,
            Self::KeyFile { source, .. } | Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::TimeOver(_) | Self::NoGuests(_) | Self::Limit(_) | Self::Server { .. } => ErrorKind::Unavailable,
            Self::Interrupted(_) => ErrorKind::Interrupted,
            Self::Busy(_) => ErrorKind::Locked,
            Self::Bug(_) => ErrorKind::Internal,
        }
    }

    /// Returns the kind of the error in one word, for scripts: see `vbk --help`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::TimeOver(_) => TIME_LIMIT,
            _ if self.exit_code() == USAGE => USAGE_WORD,
            error => word(error.kind()),
        }
    }

    /// Returns the error as JSON: `{"error":{"kind":...,"message":...,"hint":...}}`.
    pub fn json(&self) -> String {
        self.json_with(self.shown_hint())
    }

    /// Returns the error as JSON with this hint.
    pub fn json_with(&self, hint: Option<&str>) -> String {
        let error = json!({ "kind": self.word(), "message": self.text(), "hint": hint });
        json!({ "error": error }).to_string()
    }

    /// Returns the exit code.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit_code())
    }

    /// Returns the exit code as a number.
    pub fn exit_code(&self) -> u8 {
        let usage = match self {
            Self::Server { code, .. } => return *code,
            Self::Usage(_)
            | Self::Repository(vbk_repo::Error::BadSpec { .. })
            | Self::Engine(vbk::Error::DiskTwice(_)) => true,
            Self::Engine(vbk::Error::Domain(error)) => error.is_refusal(),
            _ => false,
        };
        match self.kind() {
            _ if usage => USAGE,
            ErrorKind::Corrupt => 4,
            ErrorKind::Locked => 75,
            ErrorKind::Interrupted => 130,
            ErrorKind::NotFound
            | ErrorKind::Unavailable
            | ErrorKind::NoSpace
            | ErrorKind::Denied
            | ErrorKind::ReadOnly
            | ErrorKind::Invalid
            | ErrorKind::Unsupported
            | ErrorKind::Internal => 1,
        }
    }

    /// Returns the error and its causes in one line.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut source = match self {
            // The store's own words name its files, and say no more than that it is full. They are logged.
            Self::Engine(vbk::Error::RepositoryFull { .. }) => None,
            error => std::error::Error::source(error),
        };
        while let Some(error) = source {
            let why = error.to_string();
            if !text.contains(&why) {
                text.push_str(": ");
                text.push_str(&why);
            }
            source = error.source();
        }
        text
    }

    /// Returns the whole message: the error, its causes, and the next step.
    pub fn message(&self) -> String {
        let mut text = self.text();
        if let Some(hint) = self.shown_hint() {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        text
    }

    /// Returns the hint, unless the text has it already.
    fn shown_hint(&self) -> Option<&'static str> {
        self.hint().filter(|_| !self.text().contains("run as root"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind as Io;

    use super::*;

    #[test]
    fn every_kind_has_a_word_and_the_help_lists_all() {
        let errors = [
            Error::Usage("x".into()),
            Error::TimeOver("x".into()),
            Error::Busy("x".into()),
            Error::NotThere("x".into()),
            Error::Bug("x".into()),
        ];
        let words = errors.iter().map(Error::word).collect::<Vec<_>>();
        assert_eq!(words, ["usage", "time-limit", "locked", "not-found", "internal"]);
        assert!(words.iter().all(|word| KINDS.contains(word)));
        for kind in KINDS {
            assert!(crate::args::kinds_help().contains(kind), "{kind}");
        }
        let json = Error::Usage("a \"b\"\nc".into()).json();
        assert_eq!(json, r#"{"error":{"hint":null,"kind":"usage","message":"a \"b\"\nc"}}"#);
    }

    #[test]
    fn the_help_and_the_documentation_have_the_same_exit_codes() {
        let help = crate::args::kinds_help().replace('\n', " ");
        let short: Vec<_> = CODES.iter().map(|(code, short, _)| format!("{code} {short}")).collect();
        let sentence = format!("Exit codes: {}.", short.join(", "));
        assert!(help.contains(&sentence), "{sentence}");
        let page = include_str!("../../docs/troubleshooting.md");
        let table = page.split("| code | meaning |").nth(1).expect("has a table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let rows: Vec<_> = rows
            .map(|line| line.split(" | ").take(2).collect::<Vec<_>>().join(" | "))
            .collect();
        let expected = CODES.map(|(code, _, long)| format!("| {code} | {long}"));
        assert_eq!(rows, expected);
    }

    #[test]
    fn what_a_server_refuses_is_no_damage_and_no_matter_of_this_machine() {
        let refused = || vbk_repo::Error::Remote {
            kind: ErrorKind::Denied,
            message: "the server lets this client add backups and not read them".into(),
        };
        let io = || std::io::Error::other(refused());
        let image = || "web1@2026-11-20T00-00-00Z/vda".to_owned();
        for error in [
            Error::Repository(refused()),
            Error::Engine(refused().into()),
            Error::Engine(vbk::Error::ReadImage {
                image: image(),
                offset_bytes: 0,
                source: refused(),
            }),
            Error::Mount(vbk_fuse::Error::Inspect {
                image: image(),
                source: io(),
            }),
            Error::Inside {
                what: image(),
                source: io().into(),
            },
        ] {
            assert_eq!((error.word(), error.exit_code()), ("denied", 1), "{error:?}");
            assert!(!error.message().contains("hint"), "{}", error.message());
        }
        let local = Error::io("write /srv/x")(Io::PermissionDenied.into());
        assert!(local.message().contains("hint"), "{}", local.message());
    }

    #[test]
    fn damage_of_a_store_that_does_not_open_is_mended_by_repair() {
        let error = Error::Repository(vbk_repo::Error::Store {
            kind: ErrorKind::Corrupt,
            doing: "open",
            message: "x".into(),
        });
        assert_eq!(error.exit_code(), 4);
        assert!(
            error.message().contains("`vbk repair`") && !error.message().contains("`vbk verify`"),
            "{}",
            error.message()
        );
    }

    #[test]
    fn a_wrong_key_is_no_matter_of_permissions() {
        let wrong = Error::Repository(vbk_repo::Error::WrongKey { what: "x".into() });
        assert_eq!((wrong.word(), wrong.exit_code()), ("denied", 1));
        assert!(wrong.message().contains("`vbk key list`"), "{}", wrong.message());
    }

    #[test]
    fn a_system_error_is_not_reported_as_a_bug() {
        for kind in [
            Io::NotFound,
            Io::PermissionDenied,
            Io::IsADirectory,
            Io::AlreadyExists,
            Io::InvalidData,
            Io::StorageFull,
            Io::WouldBlock,
            Io::Other,
        ] {
            let key = Error::KeyFile {
                what: "key file",
                path: "/srv/key".into(),
                source: kind.into(),
            };
            assert!(key.message().contains("`vbk key list`"), "{}", key.message());
            let other = Error::io("write /srv/x")(kind.into());
            for error in [key, other] {
                assert_ne!(error.kind(), ErrorKind::Internal);
                assert!(!error.message().contains("bug"), "{}", error.message());
                assert_eq!(error.message().matches(&error.to_string()).count(), 1);
            }
        }
    }
}
