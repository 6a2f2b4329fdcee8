//! Tells systemd how far a service is (sd_notify(3)). Without systemd nothing is told.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// systemd shows one line.
const MAX_STATUS_LETTERS: usize = 200;

/// The service manager's ear.
pub struct Notifier {
    /// How often it wants to hear that all is well, and when it last did.
    watchdog: Option<(Duration, Mutex<Instant>)>,
}

impl Notifier {
    /// As the environment says: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    pub fn from_environment() -> Self {
        let mut limit_us = 0;
        let wanted = sd_notify::watchdog_enabled(false, &mut limit_us) && limit_us > 0;
        let watchdog = wanted.then(|| {
            // The manual's advice is half of it; a step between two calls may be long.
            let every = Duration::from_micros(limit_us / 4);
            (every, Mutex::new(Instant::now()))
        });
        Self { watchdog }
    }

    /// The service has started: it is configured and the repository is there.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// What it does now, for `systemctl status`.
    pub fn status(&self, text: &str) {
        // A line break would begin another message, as in `READY=1`.
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_STATUS_LETTERS)
            .collect();
        send(&[NotifyState::Status(&line)]);
        self.alive();
    }

    /// Work goes on. To be called for each step; tells the watchdog, if there is one, when it is due.
    pub fn alive(&self) {
        let Some((every, last)) = &self.watchdog else {
            return;
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= *every {
            *last = Instant::now();
            send(&[NotifyState::Watchdog]);
        }
    }

    /// The service ends: what is left is to clean up.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

fn send(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!("systemd is not told: {error}");
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
        std::thread::sleep(Duration::from_millis(60));
        notifier.alive();
        notifier.alive();
        notifier.stopping();
    }

    /// What a service tells, and how it ended.
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
    fn systemd_is_told_and_nobody_else() {
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
    fn a_watchdog_hears_of_work_when_it_is_due() {
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
            .env("WATCHDOG_USEC", "200000");
        assert!(command.output().expect("runs").status.success());
        let mut buffer = [0; 1000];
        let mut said = Vec::new();
        while let Ok(len) = ear.recv(&mut buffer) {
            said.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        assert_eq!(
            said.iter().filter(|text| *text == "WATCHDOG=1\n").count(),
            1,
            "{said:?}"
        );
    }
}
