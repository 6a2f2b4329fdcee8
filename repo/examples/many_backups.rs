//! Adds many backups to a repository: copies of its newest one, of a hundred guests or as many as are given, an hour apart.
//! `scripts/bench-view` and `scripts/bench-growth` measure with it how long a mount of all backups takes to be ready.
//!
//! Usage: `many_backups REPOSITORY COUNT [GUESTS]`

use std::path::Path;

use jiff::SignedDuration;
use vbk_repo::backup::Backup;
use vbk_repo::name::BackupTime;
use vbk_repo::repository::Repository;
use vbk_repo::store::Record;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: many_backups REPOSITORY COUNT [GUESTS]";
    let directory = arguments.next().ok_or(usage)?;
    let count: u32 = arguments.next().ok_or(usage)?.parse()?;
    let guests: u32 = arguments.next().map_or(Ok(100), |guests| guests.parse())?;
    let repository = Repository::open(Path::new(&directory))?;
    let writer = repository.writer("bench", &mut |_| false)?;
    let catalogue = writer.catalogue()?;
    let newest = catalogue.newest().ok_or("the repository has no backup")?.backup.clone();
    let add = |number: u32| {
        let before = SignedDuration::from_hours((count / guests - number / guests).into());
        Ok::<_, Box<dyn std::error::Error>>(Backup {
            guest: format!("guest{}", number % guests).parse()?,
            time: BackupTime::new(newest.time.timestamp() - before),
            ..Backup::clone(&newest)
        })
    };
    // The last one alone is shown to readers, which takes longer than to store it.
    for number in 1..count {
        let mut backup = add(number)?;
        backup.sequence = writer.store().generation()? + 1;
        let (key, bytes) = (backup.spec(), backup.encode());
        writer.store().commit(&Record { key, bytes })?;
    }
    writer.commit(add(0)?)?;
    Ok(())
}
