//! Nonces beside the log, for nodes that share nothing else.

use std::fmt;

use async_trait::async_trait;
use nonce_store::{Claimed, NonceError, NonceStore};
use session_model::{Digest, Timestamp};

use crate::PostgresLog;
use crate::readers::Readers;

/// Nonces in the log's database. A claim is a committed transaction: a nonce survives whatever the log survives.
pub struct PostgresNonces {
    pool: Readers,
}

impl fmt::Debug for PostgresNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresNonces")
    }
}

impl PostgresLog {
    /// The nonces beside this log; `None` if its schema is from before there were any.
    ///
    /// # Errors
    /// [`NonceError::Unavailable`] if that cannot be found out.
    pub async fn nonces(&self) -> Result<Option<PostgresNonces>, NonceError> {
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('counterfoil') AND proname = 'claim_nonce')",
        )
        .fetch_one(&self.readers)
        .await
        .map_err(unavailable)?;
        Ok(there.then(|| PostgresNonces { pool: self.readers.clone() }))
    }
}

fn unavailable(failure: sqlx::Error) -> NonceError {
    NonceError::Unavailable(failure.into())
}

#[async_trait]
impl NonceStore for PostgresNonces {
    async fn claim(&self, key: &Digest, now: Timestamp, until: Timestamp) -> Result<Claimed, NonceError> {
        let first: bool = sqlx::query_scalar("SELECT counterfoil.claim_nonce($1, $2, $3)")
            .bind(key.0.as_slice())
            .bind(now.as_micros())
            .bind(until.as_micros())
            .fetch_one(&self.pool)
            .await
            .map_err(unavailable)?;
        Ok(if first { Claimed::First } else { Claimed::Again })
    }

    fn since(&self) -> Timestamp {
        Timestamp::default()
    }
}
