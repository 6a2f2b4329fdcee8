//! A repository as it was after some commit, open for reading.

use std::sync::Arc;

use super::Repository;
use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::standing::Standing;
use crate::state::States;
use crate::store::checked::Checked;
use crate::store::encrypted::Encrypted;
use crate::store::rocks::RocksReader;
use crate::store::{Identity, StoreReader};

/// A repository as it was after some commit. It stays readable, whatever is done to the repository, until it and all
/// clones of its store are dropped.
pub struct View {
    store: Arc<dyn StoreReader>,
    identity: Identity,
    standing: Standing,
    number: u64,
}

impl View {
    pub(super) fn new(reader: RocksReader, number: u64, repository: &Repository) -> Result<Self> {
        let identity = reader.identity()?;
        let generation = reader.generation()?;
        let reader = Arc::new(Checked::new(Arc::new(reader)));
        let store: Arc<dyn StoreReader> = match repository.keys_for(&identity)? {
            Some(keys) => Arc::new(Checked::new(Arc::new(Encrypted::new(reader, keys).begun()))),
            None => reader,
        };
        // A restore must be possible from what is there.
        if let Err(error) = repository.check_id(&identity) {
            tracing::warn!("{error}");
        }
        // A view is read also where that can't be told.
        let epoch = store.epoch().unwrap_or_default();
        Ok(Self {
            standing: Standing::new(&identity, generation).with_epoch(epoch),
            store,
            identity,
            number,
        })
    }

    /// What the repository is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The repository's identity and age, as the view itself says.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Greater in a newer view.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What keeps the bytes.
    pub fn store(&self) -> Arc<dyn StoreReader> {
        Arc::clone(&self.store)
    }

    /// All backups.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::load(&*self.store)
    }

    /// What is known of the backups besides their records.
    pub fn states(&self) -> Result<States> {
        States::load(&*self.store)
    }
}
