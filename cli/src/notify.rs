//! Reports the state of the service to systemd (sd_notify(3)). Does nothing without systemd.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use sd_notify::NotifyState;

/// Length limit of a status, which systemd shows in one line.
const MAX_STATUS_LETTERS: usize = 200;

/// Connection to the service manager.
pub struct Notifier {
    /// Thread that keeps the watchdog alive, if there is one.
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Notifier {
    /// Connects as the environment says: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    ///
    /// A thread of its own notifies the watchdog, because a step may rightly be silent for long, e.g. while it waits for a
    /// disk or compares two snapshots. Steps that need a time limit have their own.
    pub fn from_environment() -> Self {
        let mut limit_us = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut limit_us) && limit_us > 0;
        // A quarter of the limit, not half as the manual advises: the host may be slow.
        let every = Duration::from_micros(limit_us / 4);
        let (stop, stopped) = channel();
        let beat = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                send(&[NotifyState::Watchdog]);
            }
        };
        let start = || std::thread::Builder::new().name("vbk-watchdog".into()).spawn(beat);
        let heart = match wanted.then(start).transpose() {
            Ok(thread) => thread.map(|thread| (stop, thread)),
            Err(error) => {
                tracing::warn!("can't notify systemd's watchdog: {error}");
                None
            }
        };
        Self { heart }
    }

    /// Reports that the service has started: the configuration is read and the repository is open.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        // A line break would start another message, e.g. `READY=1`.
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_STATUS_LETTERS)
            .collect();
        send(&[NotifyState::Status(&line)]);
    }

    /// Reports that the service ends and only cleans up.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.heart.take() {
            drop(stop);
            // The thread can't panic.
            let _ = thread.join();
        }
    }
}

fn send(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!("can't notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Run by the other test in a process with the environment of a service.
    #[test]
    #[ignore = "part of another test"]
    fn a_service() {
        let notifier = Notifier::from_environment();
        notifier.ready();
        notifier.status("backing up web1 (3 of 40)\nREADY=1");
        std::thread::sleep(Duration::from_millis(1200));
        notifier.stopping();
    }

    /// Runs a service; returns its messages and whether it succeeded.
    fn told(prepare: impl FnOnce(&mut Command, &std::path::Path)) -> (String, bool) {
        let dir = tempfile::tempdir().expect("makes a directory");
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("binds");
        socket.set_nonblocking(true).expect("is ours");
        let mut command = Command::new(std::env::current_exe().expect("has a name"));
        command.args(["--exact", "notify::tests::a_service", "--ignored"]);
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        prepare(&mut command, &path);
        let ended = command.output().expect("runs");
        let mut text = String::new();
        let mut buffer = [0; 1000];
        while let Ok(len) = socket.recv(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        (text, ended.status.success())
    }

    #[test]
    fn systemd_is_notified_only_through_a_notify_socket() {
        let usual = "READY=1\nSTATUS=backing up web1 (3 of 40) READY=1\nSTOPPING=1\n";
        let (text, done) = told(|service, path| {
            service.env("NOTIFY_SOCKET", path);
        });
        assert_eq!((text.as_str(), done), (usual, true));
        assert_eq!(told(|_, _| ()), (String::new(), true));
        // A manager that is gone does not stop a backup.
        let gone = told(|service, path| {
            service.env("NOTIFY_SOCKET", path.with_extension("gone"));
        });
        assert_eq!(gone, (String::new(), true));
    }

    #[test]
    fn the_watchdog_is_notified_during_a_long_step() {
        // The process id is known only in the process: a shell says it and becomes the service.
        let dir = std::env::current_exe().expect("has a name");
        let socket = tempfile::tempdir().expect("makes a directory");
        let path = socket.path().join("notify");
        let ear = UnixDatagram::bind(&path).expect("binds");
        ear.set_nonblocking(true).expect("is ours");
        let script = r#"WATCHDOG_PID=$$ exec "$0" --exact notify::tests::a_service --ignored"#;
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(script)
            .arg(dir)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "2000000");
        assert!(command.output().expect("runs").status.success());
        let mut buffer = [0; 1000];
        let mut said = Vec::new();
        while let Ok(len) = ear.recv(&mut buffer) {
            said.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        let beats = said.iter().filter(|text| *text == "WATCHDOG=1\n").count();
        // Each half a second. The socket holds ten messages: more would have to wait for somebody who reads.
        assert!((1..=9).contains(&beats), "{said:?}");
    }
}
