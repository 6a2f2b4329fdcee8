//! Records the result of a rehearsal in the state of its backup.

use crate::error::Result;
use crate::repository::{Change, Manager};
use crate::state::{Attempt, note_of};

impl Manager {
    /// Records a rehearsal of the backup named `GUEST@TIME`, in place of an earlier one; one whose guest could not be started
    /// leaves the earlier result as it is. Returns false, and records nothing,
    /// if the backup was forgotten meanwhile.
    ///
    /// A state that can't be read is replaced by one that protects the backup, because it may have said so.
    pub fn record_rehearsal(&self, backup: &str, attempt: Attempt) -> Result<bool> {
        self.change(|catalogue, states| {
            if !catalogue.entries().iter().any(|entry| entry.backup.spec() == backup) {
                return Ok((Change::default(), false));
            }
            let mut state = states.noted(backup);
            match attempt {
                Attempt::Ended(rehearsed) => (state.rehearsed, state.unstarted) = (Some(rehearsed), None),
                Attempt::Unstarted(at) => state.unstarted = Some(at),
            }
            let change = Change {
                notes: vec![note_of(backup, state)],
                ..Change::default()
            };
            Ok((change, true))
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use crate::block::BlockSize;
    use crate::repository::{CreateOptions, Repository};
    use crate::state::{Attempt, BootAccelerator, BootProof, Rehearsed, State};
    use crate::tests::testing::{backup, mixed_bytes, store_image};

    const REHEARSED: Rehearsed = Rehearsed {
        at: Timestamp::UNIX_EPOCH,
        proof: Some(BootProof::Login),
        duration_ms: 1500,
        accelerator: BootAccelerator::Kvm,
    };

    #[test]
    fn a_rehearsal_is_recorded_and_goes_with_its_backup() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = CreateOptions::plain(BlockSize::MIN);
        let repository = Repository::create(&directory.path().join("repo"), &options).expect("creates");
        let manager = repository.manager("test", &mut |_| true).expect("opens");
        let image = store_image(manager.store(), "vda", &mixed_bytes(1, 100_000));
        let made = backup("web1", "2026-11-20T00-00-00Z", vec![image]);
        let entry = manager.writer().commit(made).expect("commits").entry;
        let spec = entry.backup.spec();
        let at = Timestamp::UNIX_EPOCH;
        for (attempt, unstarted) in [(Attempt::Ended(REHEARSED), None), (Attempt::Unstarted(at), Some(at))] {
            assert!(manager.record_rehearsal(&spec, attempt).expect("records"));
            let state = manager.states().expect("loads").of(&entry.backup);
            assert_eq!((state.rehearsed, state.unstarted), (Some(REHEARSED), unstarted));
        }
        manager.amend(std::slice::from_ref(&spec), &[]).expect("forgets");
        assert_eq!(manager.states().expect("loads").noted(&spec), State::default());
        assert!(
            !manager
                .record_rehearsal(&spec, Attempt::Ended(REHEARSED))
                .expect("finds nothing")
        );
    }

    #[test]
    fn a_result_of_a_later_version_can_be_read() {
        let read = |text: &str| serde_json::from_str::<Rehearsed>(text);
        let good = serde_json::to_string(&REHEARSED).expect("has a JSON form");
        assert_eq!(read(&good).expect("reads"), REHEARSED);
        let later = good
            .replacen("login", "hope", 1)
            .replacen("kvm", "xen", 1)
            .replacen('{', "{\"other\":1,", 1);
        let later = read(&later).expect("reads");
        assert_eq!(
            (later.proof, later.accelerator),
            (Some(BootProof::Other), BootAccelerator::Other)
        );
        assert!(read(&good.replacen("1500", "-1", 1)).is_err());
    }
}
