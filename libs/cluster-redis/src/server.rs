//! Where connections are made to, and whether what is there is what frames should go through.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    ProtocolVersion, RedisError,
};

/// How long connecting may take, TLS handshake included.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take. A Redis that is slower is no use to a cluster that has a lease of about as much.
const ANSWER: Duration = Duration::from_secs(2);

/// Where Redis is.
pub(crate) struct Server(ConnectionInfo);

impl Server {
    pub(crate) fn new(url: &str) -> Result<Self, RedisError> {
        let info = url.into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.set_redis_settings(settings);
        // Refuses what is malformed now rather than at the first attempt.
        Client::open(info.clone())?;
        Ok(Self(info))
    }

    /// Whether nobody between here and there can read along.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.0.addr(), ConnectionAddr::TcpTls { insecure: false, .. })
    }

    /// Where to connect to now. Asked before each attempt: names are resolved anew, and another server may have taken over.
    async fn find(&self) -> Result<Client, RedisError> {
        Client::open(self.0.clone())
    }

    /// Connects, to a server that frames should go through.
    pub(crate) async fn connect(&self, config: AsyncConnectionConfig) -> Result<MultiplexedConnection, RedisError> {
        let config = config.set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(ANSWER));
        let mut connection = self.find().await?.get_multiplexed_async_connection_with_config(&config).await?;
        check(&mut connection).await?;
        Ok(connection)
    }
}

impl fmt::Display for Server {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.addr().fmt(f)
    }
}

/// Whether the server answers, and still is what frames should go through. What is published to a replica stays there: the nodes at the master
/// would never hear of it. (Of a Redis Cluster any server will do: they pass on to one another.)
pub(crate) async fn check(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let answer = connection.send_packed_command(redis::cmd("HELLO").arg(3)).await?.extract_error()?;
    let said = HashMap::<String, redis::Value>::from_redis_value(answer)?;
    let is = |key: &str, value: &[u8]| {
        said.get(key).is_some_and(|said| matches!(said, redis::Value::BulkString(said) if said == value))
    };
    if is("role", b"replica") && !is("mode", b"cluster") {
        return Err(
            (ErrorKind::Client, "the server is a replica: what is published there does not reach the master").into()
        );
    }
    Ok(())
}
