//! An encrypted repository as it is stored, for work that needs no key: copies, and prunes by whoever keeps it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::directory::lock::PRUNE;
use super::home::{Keeper, Session, Snapshot, Wait};
use super::pruning::{Turn, prune_without_key_until_awaited};
use super::{Repository, check_id};
use crate::error::{Error, Result};
use crate::store::checked::Checked;
use crate::store::{Identity, PruneOptions, StoreReader, StoreWriter};

/// A state of the store with everything sealed.
pub struct SealedView {
    /// The store. The view stays readable as long as it is used.
    pub store: Arc<dyn StoreReader>,
    /// Identity of the repository.
    pub identity: Identity,
    /// See [`super::View::number`].
    pub number: u64,
}

/// A store open for adding sealed backups.
pub struct SealedWriter {
    /// The store.
    pub store: Arc<dyn StoreWriter>,
    /// Identity of the repository.
    pub identity: Identity,
    pub(crate) keeper: Arc<dyn Keeper>,
}

impl Repository {
    /// Opens the newest state for reading without the key.
    pub fn sealed_view(&self) -> Result<SealedView> {
        let Snapshot { store, number } = self.home.read()?;
        Ok(SealedView {
            identity: self.sealed_identity(store.identity()?)?,
            store: Arc::new(Checked::new(store)),
            number,
        })
    }

    /// Opens the repository for adding sealed backups, as `command`.
    pub fn sealed_writer(&self, command: &str, wait: Wait<'_>) -> Result<SealedWriter> {
        let Session { store, keeper } = self.home.write(command, wait)?;
        Ok(SealedWriter {
            identity: self.sealed_identity(store.identity()?)?,
            store: Arc::new(Checked::new(store)),
            keeper,
        })
    }

    /// Like [`super::Manager::prune_until_awaited`], without the key.
    pub fn prune_sealed(
        &self,
        options: PruneOptions,
        threads: usize,
        cancel: &AtomicBool,
        progress: &dyn Fn(u64),
        wait: Wait<'_>,
    ) -> Result<Turn> {
        let Session { store, keeper } = self.home.manage(PRUNE, wait)?;
        self.sealed_identity(store.identity()?)?;
        match keeper.prune(options, cancel, progress) {
            Some(pruned) => pruned.map(Turn::Done),
            None => {
                let store = Checked::new(store);
                prune_without_key_until_awaited(&store, &*keeper, options, threads, cancel, progress)
            }
        }
    }

    /// An error if the repository is another one than its marker says, or not encrypted.
    fn sealed_identity(&self, identity: Identity) -> Result<Identity> {
        identity.check(self.path())?;
        check_id(self.path(), self.home.marker(), &identity)?;
        match (identity.is_encrypted(), self.is_encrypted()) {
            (true, _) => Ok(identity),
            (false, true) => Err(Error::EncryptionGone {
                path: self.owned_path(),
            }),
            (false, false) => Err(Error::NotEncrypted {
                path: self.owned_path(),
            }),
        }
    }
}
