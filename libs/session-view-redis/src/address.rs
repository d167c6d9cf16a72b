//! What a URL says of where Redis is.

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError};

/// Where the servers are to be found.
#[derive(Clone)]
pub(crate) enum Address {
    /// One server, by its own address.
    Fixed(ConnectionInfo),
    /// A master that sentinels know.
    Sentinel(SentinelAddress),
    /// The nodes of a cluster that are asked for the others.
    Cluster(Vec<ConnectionInfo>),
}

/// Sentinels, and what they know.
#[derive(Clone)]
pub(crate) struct SentinelAddress {
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// The name that the master is monitored by.
    pub(crate) service: String,
    /// How to talk to the master; its address is what the sentinels say.
    pub(crate) master: ConnectionInfo,
}

impl Address {
    /// * `redis://…`, `rediss://…`, `unix://…`: one server.
    /// * `redis+sentinel://[user:password@]host[:port],…/service[/database][?sentinel_user=…&sentinel_password=…]`
    /// * `redis+cluster://[user:password@]host[:port],…`
    ///
    /// `rediss+…` speaks TLS to all of them.
    pub(crate) fn parse(url: &str) -> Result<Self, RedisError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| unusable("no scheme"))?;
        let (plain, kind) = match scheme.split_once('+') {
            None => return Ok(Self::Fixed(url.into_connection_info()?)),
            Some((plain @ ("redis" | "rediss"), kind)) => (plain, kind),
            Some(_) => return Err(unusable("an unknown scheme")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
        let login = if login.is_empty() { String::new() } else { format!("{login}@") };
        let all = |login: &str, database: &str, port: u16| -> Result<Vec<ConnectionInfo>, RedisError> {
            let with_port = |host: &str| {
                let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if has_port { host.to_owned() } else { format!("{host}:{port}") }
            };
            let infos = hosts
                .split(',')
                .map(|host| format!("{plain}://{login}{}/{database}", with_port(host)).into_connection_info());
            infos.collect()
        };
        match kind {
            "sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(unusable("no service that the sentinels know"));
                }
                let (mut user, mut password) = ("", "");
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    match pair.split_once('=') {
                        Some(("sentinel_user", value)) => user = value,
                        Some(("sentinel_password", value)) => password = value,
                        _ => return Err(unusable("an unknown option")),
                    }
                }
                let their_login = if password.is_empty() { String::new() } else { format!("{user}:{password}@") };
                let master = all(&login, database, 6_379)?.into_iter().next().ok_or_else(|| unusable("no sentinel"))?;
                let sentinels = all(&their_login, "", 26_379)?;
                Ok(Self::Sentinel(SentinelAddress { sentinels, service: service.to_owned(), master }))
            }
            "cluster" if path.is_empty() && query.is_empty() => Ok(Self::Cluster(all(&login, "", 6_379)?)),
            "cluster" => Err(unusable("a cluster has no databases and no options")),
            _ => Err(unusable("an unknown scheme")),
        }
    }
}

/// The same way of talking, to another address.
pub(crate) fn elsewhere(like: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match like.addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    like.clone().set_addr(address)
}

/// Host and port; none of a socket.
pub(crate) fn host_of(info: &ConnectionInfo) -> Option<(String, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

fn unusable(why: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, "the URL of Redis is not usable", why.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(infos: &[ConnectionInfo]) -> Vec<(String, u16)> {
        infos.iter().filter_map(host_of).collect()
    }

    #[test]
    fn urls_are_read() {
        assert!(matches!(Address::parse("redis://127.0.0.1:7/2"), Ok(Address::Fixed(_))));
        let url = "redis+sentinel://me:pa%40ss@one:1,two/mine/3?sentinel_password=hers";
        let Ok(Address::Sentinel(found)) = Address::parse(url) else { panic!("{url}") };
        assert_eq!(hosts(&found.sentinels), [("one".to_owned(), 1), ("two".to_owned(), 26_379)]);
        assert_eq!(found.service, "mine");
        assert_eq!(found.master.redis_settings().username(), Some("me"));
        assert_eq!(found.master.redis_settings().password(), Some("pa@ss"));
        assert_eq!(found.master.redis_settings().db(), 3);
        assert_eq!(found.sentinels[0].redis_settings().password(), Some("hers"));
        let there = elsewhere(&found.master, "three".to_owned(), 9);
        assert_eq!((host_of(&there), there.redis_settings().db()), (Some(("three".to_owned(), 9)), 3));
        let Ok(Address::Cluster(found)) = Address::parse("rediss+cluster://one:1,two") else { panic!("a cluster") };
        assert_eq!(hosts(&found), [("one".to_owned(), 1), ("two".to_owned(), 6_379)]);
        assert!(found.iter().all(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. })));
        for url in [
            "one:1",
            "http+sentinel://one/mine",
            "redis+sentinel://one",
            "redis+sentinel://one/mine?what=ever",
            "redis+cluster://one/3",
            "redis+other://one",
            "redis+cluster://",
        ] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
