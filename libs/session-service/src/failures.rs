//! What the layers below report, as what the caller of the service does next.

use audit_log::ReadError;
use session_model::{Rejection, Session};
use tracing::{error, warn};

use crate::data_keys::KeyError;
use crate::error::{ServiceError, Unavailable};
use crate::replay::ReplayError;

pub(crate) fn of(rejection: Rejection) -> ServiceError {
    match rejection {
        Rejection::NotFound => ServiceError::NotFound,
        Rejection::Ended(ended) => ServiceError::Ended(ended),
        Rejection::StaleVersion { current } => ServiceError::StaleVersion { current },
        Rejection::Attributes(failure) => ServiceError::Attributes(failure),
        Rejection::Timeout { field, limit } => ServiceError::Timeout { field, limit },
        Rejection::Nothing => ServiceError::NothingToDo,
    }
}

pub(crate) fn of_read(failure: ReadError) -> ServiceError {
    match failure {
        ReadError::Unavailable(cause) => {
            warn!(failure = &*cause as &dyn std::error::Error, "the log cannot be read");
            ServiceError::Unavailable(Unavailable::LogRead)
        }
        ReadError::Corrupt(what) => {
            error!(what, "the log holds something it cannot have written");
            ServiceError::Internal("the log holds something it cannot have written")
        }
    }
}

pub(crate) fn of_key(failure: KeyError) -> ServiceError {
    match failure {
        KeyError::Read(failure) => of_read(failure),
        KeyError::Seal(failure) => internal(failure),
    }
}

/// What was erased is not there any more.
pub(crate) fn of_replay(failure: ReplayError) -> Result<Option<Session>, ServiceError> {
    match failure {
        ReplayError::Erased => Ok(None),
        ReplayError::Read(failure) => Err(of_read(failure)),
        ReplayError::Key(failure) => Err(of_key(failure)),
    }
}

pub(crate) fn internal(failure: impl std::error::Error) -> ServiceError {
    error!(%failure, "an operation that cannot fail did");
    ServiceError::Internal("an operation that cannot fail did")
}
