//! The views that commands read.

use vbk_repo::repository::{Repository, View};

use super::{Context, Purpose};
use crate::exit::Result;

impl Context<'_> {
    /// Opens the newest view of the repository, for its records and notes.
    pub fn view(&self) -> Result<View> {
        self.view_of(&self.repository()?)
    }

    /// Opens the newest view of a repository that this context opened.
    pub fn view_of(&self, repository: &Repository) -> Result<View> {
        let view = repository.view()?;
        vbk::host::memory::prepare_for_blocks_of(view.identity().block_size.bytes());
        self.judge(repository, view.standing(), Purpose::Read)?;
        self.is_known(repository, view.standing());
        Ok(view)
    }

    /// Opens the newest view of the repository for a command that reads blocks. A server that does not let this client do that
    /// refuses it here, before anything is begun.
    pub fn view_to_read(&self) -> Result<View> {
        self.view_to_read_of(&self.repository()?)
    }

    /// The same of a repository that this context opened.
    pub fn view_to_read_of(&self, repository: &Repository) -> Result<View> {
        let view = self.view_of(repository)?;
        view.check_reads()?;
        Ok(view)
    }
}
