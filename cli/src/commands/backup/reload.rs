//! SIGHUP reads the configuration again; its read limits apply from then on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use signal_hook::consts::SIGHUP;
use signal_hook::flag;
use vbk::limit::{ReadLimit, Reload};
use vbk_repo::name::GuestName;

use super::plan::usual_limit;
use crate::config::Config;
use crate::exit::{Error, Result};

#[derive(Default)]
struct Reloader {
    path: Option<PathBuf>,
    /// The disks are named on the command line.
    is_named: bool,
    config: Option<Config>,
    /// Number of times the configuration was read again.
    readings: u64,
    /// For each disk, the reading whose limit it has got.
    told: BTreeMap<(GuestName, PathBuf), u64>,
}

/// Returns the function that limiters call once a second. From now on SIGHUP does not end the process. `is_named`: the
/// disks are named on the command line.
pub fn on_hangup(path: Option<PathBuf>, is_named: bool) -> Result<Reload> {
    let hangup = Arc::new(AtomicBool::new(false));
    flag::register(SIGHUP, Arc::clone(&hangup)).map_err(Error::io("watch for signals"))?;
    let reloader = Mutex::new(Reloader {
        path,
        is_named,
        ..Reloader::default()
    });
    Ok(Arc::new(move |guest, disk| {
        let mut reloader = reloader.lock();
        if hangup.swap(false, Ordering::SeqCst) {
            reloader.read();
        }
        reloader.news_for(guest, disk)
    }))
}

impl Reloader {
    fn read(&mut self) {
        match Config::find(self.path.as_deref()) {
            Ok(config) => {
                self.config = Some(config);
                self.readings += 1;
            }
            Err(error) => tracing::warn!(
                "the configuration was not read again, so read limits stay as they are: {}",
                error.message()
            ),
        }
    }

    /// Returns the limit that a new run would use, once for each reading. A limit that was removed from the file no longer
    /// applies.
    fn news_for(&mut self, guest: &GuestName, disk: &Path) -> Option<ReadLimit> {
        let config = self.config.as_ref()?;
        let key = (guest.clone(), disk.to_owned());
        if self.told.insert(key, self.readings) == Some(self.readings) {
            return None;
        }
        Some(
            config
                .guest(guest)
                .read_limit
                .unwrap_or_else(|| usual_limit(self.is_named, disk)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_reloads_a_new_limit_once() {
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
        let disk = path.as_path();
        assert_eq!(reloader.news_for(&web1, disk), None);
        reloader.read();
        let limit = Some(ReadLimit::BytesPerSec(50_000_000));
        assert_eq!(reloader.news_for(&web1, disk), limit);
        assert_eq!(reloader.news_for(&web1, disk), None);
        assert_eq!(reloader.news_for(&web1, Path::new("/dev/y")), limit, "another disk");
        assert_eq!(
            reloader.news_for(&db1, disk),
            Some(ReadLimit::DEFAULT),
            "nothing is said of it"
        );
        std::fs::write(&path, "nonsense").expect("writes");
        reloader.read();
        assert_eq!(reloader.news_for(&web1, disk), None);
        // Taken out: as if it had never been there, which for a file that was named is no limit.
        std::fs::write(&path, "").expect("writes");
        reloader.read();
        assert_eq!(reloader.news_for(&web1, disk), Some(ReadLimit::DEFAULT));
        reloader.is_named = true;
        reloader.read();
        assert_eq!(reloader.news_for(&web1, disk), Some(ReadLimit::Unlimited));
        assert_eq!(
            reloader.news_for(&web1, Path::new("/dev/null")),
            Some(ReadLimit::DEFAULT)
        );
    }
}
