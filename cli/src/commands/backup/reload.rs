//! SIGHUP: the configuration is read again, and the read limits in it hold from then on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::SIGHUP;
use signal_hook::flag;
use vbk::limit::{ReadLimit, Reload};
use vbk_repo::name::GuestName;

use crate::config::Config;
use crate::exit::{Error, Result};

#[derive(Default)]
struct Reloader {
    path: Option<PathBuf>,
    config: Option<Config>,
    /// How often it was read.
    readings: u64,
    /// Which reading each guest has been told of.
    told: BTreeMap<GuestName, u64>,
}

/// What limiters ask once a second. From now on SIGHUP does not end the process.
pub fn on_hangup(path: Option<PathBuf>) -> Result<Reload> {
    let hangup = Arc::new(AtomicBool::new(false));
    flag::register(SIGHUP, Arc::clone(&hangup)).map_err(|error| Error::Other(error.to_string()))?;
    let reloader = Mutex::new(Reloader {
        path,
        ..Reloader::default()
    });
    Ok(Arc::new(move |guest| {
        let mut reloader = reloader.lock().unwrap_or_else(PoisonError::into_inner);
        if hangup.swap(false, Ordering::SeqCst) {
            reloader.read();
        }
        reloader.news_for(guest)
    }))
}

impl Reloader {
    fn read(&mut self) {
        match Config::find(self.path.as_deref()) {
            Ok(config) => {
                self.config = Some(config);
                self.readings += 1;
            }
            Err(error) => tracing::warn!("read limits stay as they are: {}", error.message()),
        }
    }

    fn news_for(&mut self, guest: &GuestName) -> Option<ReadLimit> {
        let config = self.config.as_ref()?;
        if self.told.insert(guest.clone(), self.readings) == Some(self.readings) {
            return None;
        }
        config.guest(guest).read_limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_hears_of_a_new_limit_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config.toml");
        std::fs::write(
            &path,
            "[guest.web1]\ndisks = { vda = \"/dev/x\" }\nread-limit = \"50MB/s\"\n",
        )
        .expect("writes");
        let (web1, db1) = ("web1".parse().expect("a name"), "db1".parse().expect("a name"));
        let mut reloader = Reloader {
            path: Some(path.clone()),
            ..Reloader::default()
        };
        assert_eq!(reloader.news_for(&web1), None);
        reloader.read();
        assert_eq!(reloader.news_for(&web1), Some(ReadLimit::BytesPerSec(50_000_000)));
        assert_eq!(reloader.news_for(&web1), None);
        assert_eq!(reloader.news_for(&db1), None, "nothing is said of it");
        std::fs::write(&path, "nonsense").expect("writes");
        reloader.read();
        assert_eq!(reloader.news_for(&web1), None);
    }
}
