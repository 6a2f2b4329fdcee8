//! The way through the ssh program: keys, agents, jump hosts and known hosts stay OpenSSH's business.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use vbk_repo::{Error, ErrorKind, Result};

use super::{Again, Bandwidth, LaneOptions, RemoteHome};
use crate::address::SshAddress;

/// The programs that make the connection.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// The ssh program and options for it, as a shell reads them.
    pub rsh: String,
    /// vbk on the other host.
    pub remote_program: String,
    /// Keeps ssh from the standard error of this process: who reads that would wait until ssh ends too.
    pub is_silent: bool,
    /// Directory that ssh runs in, if not that of this process.
    pub directory: Option<PathBuf>,
    /// Limits of the connections.
    pub lanes: LaneOptions,
    /// Limit of the bytes.
    pub bandwidth: Bandwidth,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            rsh: "ssh".to_owned(),
            remote_program: "vbk".to_owned(),
            is_silent: false,
            directory: None,
            lanes: LaneOptions::default(),
            bandwidth: Bandwidth::default(),
        }
    }
}

impl Ssh {
    /// Connects to a repository on another host. Messages of ssh, and its questions, go to the terminal.
    pub fn open(&self, address: &SshAddress, again: Again) -> Result<RemoteHome> {
        let connect = |ssh: &Self, address: &SshAddress, again| {
            let (ssh, to) = (ssh.clone(), address.clone());
            RemoteHome::connect(address.to_string().into(), again, move || {
                Ok(ssh.bandwidth.limit(ssh.spawn(&to)?))
            })
        };
        let home = connect(self, address, again.clone()).map_err(|error| self.explained(address, error))?;
        let (ssh, address) = (self.quiet(), address.clone());
        Ok(home.with_lanes(self.lanes, move || connect(&ssh, &address, again.clone().silent())))
    }

    /// The same without a word, and without a question that nobody would expect: where a password is needed, one connection has to
    /// do.
    fn quiet(&self) -> Self {
        Self {
            rsh: format!("{} -o BatchMode=yes", self.rsh),
            is_silent: true,
            ..self.clone()
        }
    }

    /// Adds the next step to the error of a host that did not answer.
    pub(super) fn explained(&self, address: &SshAddress, error: Error) -> Error {
        let Error::Remote {
            kind: kind @ ErrorKind::Unavailable,
            message,
        } = error
        else {
            return error;
        };
        let port = address.port.map(|port| format!("-p {port} ")).unwrap_or_default();
        let above = if self.is_silent { "" } else { "see ssh's line above; " };
        Error::Remote {
            kind,
            message: format!(
                "{message}; {above}try `{} {port}{} {} --version`",
                self.rsh,
                address.destination(),
                self.remote_program
            ),
        }
    }

    pub(super) fn spawn(&self, address: &SshAddress) -> io::Result<(Output, ChildStdin)> {
        let spawned = self.command(address).spawn();
        let mut child =
            spawned.map_err(|error| io::Error::new(error.kind(), format!("can't start a shell: {error}")))?;
        let missing = || io::Error::other("a pipe to ssh is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let is_at_end = false;
        Ok((
            Output {
                output,
                child,
                is_at_end,
            },
            input,
        ))
    }

    fn command(&self, address: &SshAddress) -> Command {
        let mut command = Command::new("sh");
        // Ctrl-C at the terminal reaches ssh too, which would take the connection from a command that ends in order.
        command
            .arg("-c")
            .arg(format!("trap '' INT; exec {} \"$@\"", self.rsh))
            .arg("sh");
        if let Some(port) = address.port {
            command.arg("-p").arg(port.to_string());
        }
        command
            // An address that starts with a dash is refused when it is parsed.
            .arg(address.destination())
            .arg(self.remote_command(address))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if self.is_silent {
            command.stderr(Stdio::null());
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// The command for the shell of the other host.
    fn remote_command(&self, address: &SshAddress) -> OsString {
        let path = address.path.replace('\'', r"'\''");
        format!("{} serve --stdio -- '{path}'", self.remote_program).into()
    }
}

/// Standard output of ssh. If it is dropped before its end, ssh is killed: one that still tries to connect does not see that its
/// standard input is closed.
pub(super) struct Output {
    output: ChildStdout,
    /// The runtime waits for it when it is dropped.
    child: Child,
    is_at_end: bool,
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.output).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.is_at_end = true;
        }
        read
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.is_at_end {
            // One that has ended already needs nothing.
            let _ = self.child.start_kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_shell_gets_the_path_as_one_word() {
        for (address, command) in [
            ("ssh://h/srv/vbk", "vbk serve --stdio -- '/srv/vbk'"),
            ("ssh://h/~/a b", "vbk serve --stdio -- 'a b'"),
            ("ssh://h/a'b;rm", r"vbk serve --stdio -- '/a'\''b;rm'"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(Ssh::default().remote_command(&address), command);
        }
    }

    #[test]
    fn a_host_that_does_not_answer_is_an_error_with_the_command_that_shows_why() {
        let ssh = Ssh {
            rsh: "false".to_owned(),
            ..Ssh::default()
        };
        let address = "ssh://vbk@dc2:2222/srv/vbk".parse().expect("an address");
        let error = ssh.open(&address, Again::never()).expect_err("no answer");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(
            error.to_string(),
            "can't open ssh://vbk@dc2:2222/srv/vbk: the other side closed the connection without a word; see ssh's line above; try \
             `false -p 2222 vbk@dc2 vbk --version`"
        );
    }

    #[test]
    fn ssh_gets_the_port_and_the_user_before_the_command() {
        let command = Ssh::default().command(&"ssh://backup@dc2:2222/srv".parse().expect("an address"));
        let arguments: Vec<_> = command
            .as_std()
            .get_args()
            .skip(3)
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect();
        assert_eq!(arguments, ["-p", "2222", "backup@dc2", "vbk serve --stdio -- '/srv'"]);
    }
}
