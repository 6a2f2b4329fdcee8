//! Which repository a directory has in it, and how old its state is.

use super::Repository;
use crate::error::{Error, Result};
use crate::spare;
use crate::standing::Standing;
use crate::store::{Identity, StoreReader};
use crate::views;

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
        }
    }

    /// The same, as the newest view itself says; `None` if that can't be read. A damaged marker changes nothing of it.
    pub fn standing_of_view(&self) -> Option<Standing> {
        let held = views::open(&self.path).ok()??;
        let generation = held.reader.generation().ok()?;
        Some(Standing::new(&held.reader.identity().ok()?, generation))
    }

    /// Makes sure that loss of power does not take the newest view's name back, which another process may just have
    /// changed. Changes nothing where nothing can be written.
    pub fn settle(&self) {
        // A reader that can't do it is on storage that it can't write to either.
        let _ = spare::sync_directory(&views::directory(&self.path));
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
