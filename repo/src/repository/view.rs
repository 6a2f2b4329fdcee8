//! The right to read a repository, as it was after some commit.

use std::sync::Arc;

use super::Repository;
use super::home::Snapshot;
use crate::catalogue::Catalogue;
use crate::error::{ErrorKind, Result};
use crate::id::BlockId;
use crate::standing::Standing;
use crate::state::States;
use crate::store::checked::Checked;
use crate::store::encrypted::Encrypted;
use crate::store::{Distance, Forgotten, Identity, StoreReader, Wanted};

/// A repository as it was after some commit. It stays readable, whatever is done to the repository, until it and all
/// clones of its store are dropped.
pub struct View {
    store: Arc<dyn StoreReader>,
    identity: Identity,
    standing: Standing,
    number: u64,
}

impl View {
    pub(super) fn new(snapshot: Snapshot, repository: &Repository) -> Result<Self> {
        let Snapshot { store: reader, number } = snapshot;
        let identity = reader.identity()?;
        let generation = reader.generation()?;
        let reader = Arc::new(Checked::new(reader));
        let store: Arc<dyn StoreReader> = match repository.keys_for(&identity)? {
            Some(keys) => Arc::new(Checked::new(Arc::new(Encrypted::new(reader, keys, &identity).begun()))),
            None => reader,
        };
        // A restore must be possible from what is there.
        if let Err(error) = super::check_id(repository.path(), repository.home.marker(), &identity) {
            tracing::warn!("{error}");
        }
        // A view without a readable epoch can be read all the same.
        let epoch = store.epoch().unwrap_or_default();
        Ok(Self {
            standing: Standing::of(&*store, &identity, generation).with_epoch(epoch),
            store,
            identity,
            number,
        })
    }

    /// Identity of the repository.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Identity and age of the repository, as the view itself states them.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Greater in a newer view.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn StoreReader> {
        Arc::clone(&self.store)
    }

    /// The store for reading much of it once: see [`StoreReader::to_scan`].
    pub fn store_to_scan(&self) -> Arc<dyn StoreReader> {
        self.store().to_scan().unwrap_or_else(|| self.store())
    }

    /// An error if the server of the repository lets this client read no blocks, for a command that would begin and fail in each
    /// read. Costs a round trip; nothing where the repository is on this machine.
    pub fn check_reads(&self) -> Result<()> {
        if self.store.distance() == Distance::Near {
            return Ok(());
        }
        // No block has this id. A server that refuses does so before it looks.
        let wanted = Wanted {
            id: BlockId([0; 32]),
            pages: 0..1,
        };
        match self.store.get(&[wanted]).pop() {
            Some(Err(error)) if error.kind() == ErrorKind::Denied => Err(error),
            _ => Ok(()),
        }
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// The backups in the bin: see [`super::Manager::forgotten`].
    pub fn forgotten(&self) -> Result<Vec<Forgotten>> {
        super::managing::forgotten_of(&*self.store)
    }

    /// Notes about the backups.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }
}
