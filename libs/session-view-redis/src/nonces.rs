//! Nonces in the Redis of the view.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use nonce_store::{Claimed, NonceError, NonceStore};
use redis::Value;
use session_model::{Digest, Timestamp};

use crate::RedisView;
use crate::Servers;
use crate::link::Lane;

/// Nonces in the Redis of a view, over the view's own connections: one round trip each. **Trust:** whoever controls Redis can have a
/// nonce forgotten, and so can a Redis that evicts, or fails over to a replica that lags. What is then open is the replay of a
/// message that somebody has seen in clear, for as long as the message is fresh.
pub struct RedisNonces {
    servers: Arc<Servers>,
}

impl fmt::Debug for RedisNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisNonces")
    }
}

impl RedisView {
    /// Nonces beside this view. They are there while the view is: it keeps the connections.
    pub fn nonces(&self) -> RedisNonces {
        RedisNonces { servers: Arc::clone(&self.servers) }
    }
}

#[async_trait]
impl NonceStore for RedisNonces {
    async fn claim(&self, key: &Digest, now: Timestamp, until: Timestamp) -> Result<Claimed, NonceError> {
        let mut command = redis::cmd("SET");
        // Redis counts by its own clock, and in milliseconds: never shorter than asked.
        let span = until.micros_since(now) / 1_000 + 1;
        let [random, ..] = key.0;
        let bucket = self.servers.bucket_of(random);
        command.arg(self.servers.shared_key(bucket, &format!("n:{key}"))).arg(1).arg("NX").arg("PX").arg(span);
        match self.servers.call(bucket, Lane::Write, &command).await {
            Ok(Value::Nil) => Ok(Claimed::Again),
            Ok(_) => Ok(Claimed::First),
            Err(failure) => Err(NonceError::Unavailable(failure.into())),
        }
    }

    fn since(&self) -> Timestamp {
        Timestamp::default()
    }
}
