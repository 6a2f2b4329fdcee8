//! Which repository a directory has in it, and how old its state is.

use std::sync::Arc;

use super::Repository;
use crate::error::{Error, Result};
use crate::repository::second_copies;
use crate::repository::views;
use crate::standing::Standing;
use crate::store::encrypted::Encrypted;
use crate::store::{Identity, StoreReader};

impl Repository {
    /// The repository's identity and age, as its marker and the name of its newest view say: cheap, and known before a key
    /// is asked for or the store is touched.
    pub fn standing(&self) -> Standing {
        Standing {
            id: match &self.id {
                Some(id) => Some(id.clone()),
                None => self.identity_of_view().map(|identity| identity.id),
            },
            key_check: self.key_check.clone(),
            // A link that can't be read is told by what opens the view, and is put right by a repair.
            generation: self.newest_view().ok().flatten(),
            epoch: None,
        }
    }

    /// The same, as the newest view itself says, with the epoch if the keys are at hand; `None` if the view can't be read. A
    /// damaged marker changes nothing of it.
    pub fn standing_of_view(&self) -> Option<Standing> {
        let held = views::open(&self.path).ok()??;
        let (identity, generation) = (held.reader.identity().ok()?, held.reader.generation().ok()?);
        let keys = self.keys_for(&identity).ok().flatten();
        let epoch = keys.and_then(|keys| Encrypted::new(Arc::new(held.reader), keys).epoch().ok()?);
        Some(Standing::new(&identity, generation).with_epoch(epoch))
    }

    /// Makes sure that loss of power does not take the newest view's name back, which another process may just have
    /// changed. Changes nothing where nothing can be written.
    pub fn settle(&self) {
        // A reader that can't do it is on storage that it can't write to either.
        let _ = second_copies::sync_directory(&views::directory(&self.path));
    }

    /// What the newest view says that the repository is, if that can be read.
    pub(super) fn identity_of_view(&self) -> Option<Identity> {
        views::open(&self.path).ok()??.reader.identity().ok()
    }

    /// An error if the marker is that of another repository than the store.
    pub(super) fn check_id(&self, identity: &Identity) -> Result<()> {
        match &self.id {
            Some(id) if *id != identity.id => Err(Error::OtherStore {
                path: self.path.clone(),
                store: identity.id.clone(),
                marker: id.clone(),
            }),
            _ => Ok(()),
        }
    }
}
