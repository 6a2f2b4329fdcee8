//! Reasons that end a copy.

use crate::block::BlockSize;
use crate::error::Error;

/// An error that ends a copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Both are one repository.
    #[error("both are the same repository, {id}; nothing was copied")]
    Same {
        /// [`crate::store::Identity::id`].
        id: String,
    },
    /// Blocks of one size can't be those of another.
    #[error("the blocks of the two repositories have different sizes, {from} and {to} bytes; nothing was copied")]
    BlockSizes {
        /// Of the repository that is copied from.
        from: u64,
        /// Of the other one.
        to: u64,
    },
    /// Without the key things can only be copied as they are sealed.
    #[error("the two repositories do not have the same key; nothing was copied")]
    OtherKey,
    /// Without the key only sums show what is damaged.
    #[error(
        "a repository that an older vbk made has no sums, by which a copy without the key tells damage; nothing was copied"
    )]
    NoSums,
    /// The repository that is copied from failed.
    #[error(transparent)]
    From(Error),
    /// The repository that is copied to failed.
    #[error(transparent)]
    To(Error),
}

/// Fails if nothing can be copied between these repositories.
pub fn check(from: (&str, BlockSize), to: (&str, BlockSize)) -> std::result::Result<(), CopyError> {
    if from.0 == to.0 {
        return Err(CopyError::Same { id: from.0.to_owned() });
    }
    match from.1 == to.1 {
        true => Ok(()),
        false => Err(CopyError::BlockSizes {
            from: from.1.into(),
            to: to.1.into(),
        }),
    }
}
