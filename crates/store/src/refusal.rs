//! How a failure of the store reads to a caller.

use base::{Kind, Refusal};

use crate::{CommitError, Error};

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Sealed => Self::sealed(),
            Error::NotInitialised => Self::of(Kind::Uninitialised, "server is not yet initialized"),
            Error::TooLarge { .. } => Self::of(Kind::TooLarge, error.to_string()),
            other => Self::internal(other.to_string()),
        }
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict => Self::of(Kind::Overloaded, "too many concurrent changes to the same records; try again"),
            CommitError::Overloaded => Self::of(Kind::Overloaded, error.to_string()),
            CommitError::TooLarge { .. } => Self::of(Kind::TooLarge, error.to_string()),
            CommitError::Poisoned { .. } => {
                Self { log: Some(error.to_string()), ..Self::of(Kind::Unavailable, "the log is not available") }
            }
        }
    }
}
