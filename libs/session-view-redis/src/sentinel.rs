//! Asking sentinels which server is the master.
//!
//! Not the first that answers is believed, but the majority of those that are configured: a sentinel that is cut off
//! together with an old master goes on to name it.

use std::time::Duration;

use futures::future::join_all;
use hashbrown::HashMap;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, FromRedisValue, RedisError};

use crate::address::{SentinelAddress, elsewhere};

/// How long one sentinel may take. They do nothing but answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why nobody knows the master.
#[derive(Debug, thiserror::Error)]
#[error("no majority of the sentinels names the same master")]
pub(crate) struct NoMaster;

/// The master that most sentinels name.
pub(crate) async fn master(address: &SentinelAddress) -> Result<ConnectionInfo, NoMaster> {
    let answers = join_all(address.sentinels.iter().map(|sentinel| ask(sentinel, &address.service))).await;
    let mut votes: HashMap<(String, u16), usize> = HashMap::new();
    for answer in answers {
        match answer {
            Ok(Some(master)) => *votes.entry(master).or_default() += 1,
            Ok(None) => tracing::debug!(service = address.service, "a sentinel does not know the service"),
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "a sentinel does not answer"),
        }
    }
    let (master, most) = votes.into_iter().max_by_key(|(_, votes)| *votes).ok_or(NoMaster)?;
    if most * 2 <= address.sentinels.len() {
        return Err(NoMaster);
    }
    Ok(elsewhere(&address.master, master.0, master.1))
}

async fn ask(sentinel: &ConnectionInfo, service: &str) -> Result<Option<(String, u16)>, RedisError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let client = Client::open(sentinel.clone())?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let answer = connection.send_packed_command(&command).await?.extract_error()?;
    Ok(Option::<(String, u16)>::from_redis_value(answer)?)
}
