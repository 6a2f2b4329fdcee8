//! The way through the ssh program: keys, agents, jump hosts and known hosts stay OpenSSH's business.

use std::ffi::OsString;
use std::io;
use std::process::Stdio;

use tokio::process::{ChildStdin, ChildStdout, Command};
use vbk_repo::Result;

use super::RemoteHome;
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
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            rsh: "ssh".to_owned(),
            remote_program: "vbk".to_owned(),
            is_silent: false,
        }
    }
}

impl Ssh {
    /// Connects to a repository on another host. Messages of ssh, and its questions, go to the terminal.
    pub fn open(&self, address: &SshAddress) -> Result<RemoteHome> {
        RemoteHome::connect(address.to_string().into(), || self.spawn(address))
    }

    fn spawn(&self, address: &SshAddress) -> io::Result<(ChildStdout, ChildStdin)> {
        let spawned = self.command(address).spawn();
        let mut child =
            spawned.map_err(|error| io::Error::new(error.kind(), format!("can't start a shell: {error}")))?;
        let missing = || io::Error::other("a pipe to ssh is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        // It ends when its standard input does, and is no zombie then.
        tokio::spawn(async move { child.wait().await });
        Ok((output, input))
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
        command
    }

    /// The command for the shell of the other host.
    fn remote_command(&self, address: &SshAddress) -> OsString {
        let path = address.path.replace('\'', r"'\''");
        format!("{} serve --stdio -- '{path}'", self.remote_program).into()
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
