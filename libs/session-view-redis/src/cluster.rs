//! The masters of a Redis Cluster, and which of them has what.
//!
//! Sessions are spread over [`BUCKETS`] buckets, each with keys of its own in one slot, so that one script call sees all that
//! it needs. For each master there is a [`Link`]; a map says whose each bucket is. It is read anew every half second, and at
//! once when a server says that something has moved. A bucket that comes to another master may lack what was applied last
//! (its replica was promoted): that is a loss, counted before anybody reads from there. Moving slots on purpose looks the
//! same and costs the same: reads of the log, for the moment it takes to apply the last of it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind, Value};
use session_view::Doubt;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::address::{elsewhere, host_of};
use crate::link::{CallError, Lane, Link, Target};
use crate::tracking::{self, Ears};

/// A power of two well above any number of masters, so that they share evenly.
pub(crate) const BUCKETS: usize = 256;

/// How often the map is read.
const REFRESH: Duration = Duration::from_millis(500);
/// How long a node may take to tell it.
const PATIENCE: Duration = Duration::from_secs(2);

type Place = (String, u16);

pub(crate) struct Cluster {
    seeds: Vec<ConnectionInfo>,
    timeout: Duration,
    max_staleness: Duration,
    doubt: Arc<Doubt>,
    /// Who listens to the masters, and for keys that begin how, if anybody does.
    ears: Option<(Arc<Ears>, String)>,
    /// The slot of each bucket.
    slots: Vec<u16>,
    routes: RwLock<Arc<Routes>>,
    moved: Notify,
    next: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Routes {
    masters: HashMap<Place, Master>,
    /// The master of each bucket, if there is one.
    of_bucket: Vec<Option<Place>>,
}

#[derive(Clone)]
struct Master {
    number: u64,
    link: Arc<Link>,
    tasks: Vec<AbortHandle>,
}

impl Cluster {
    pub(crate) fn new(
        seeds: Vec<ConnectionInfo>,
        timeout: Duration,
        max_staleness: Duration,
        doubt: Arc<Doubt>,
        ears: Option<(Arc<Ears>, String)>,
        tag_of: impl Fn(usize) -> String,
    ) -> Self {
        Self {
            seeds,
            timeout,
            max_staleness,
            doubt,
            ears,
            slots: (0..BUCKETS).map(|bucket| slot(tag_of(bucket).as_bytes())).collect(),
            routes: RwLock::default(),
            moved: Notify::new(),
            next: AtomicU64::new(0),
            tasks: Mutex::default(),
        }
    }

    /// Whether every bucket has a master that is connected to.
    pub(crate) fn is_whole(&self) -> bool {
        let routes = Arc::clone(&self.routes.read());
        let connected = |place: &Option<Place>| {
            place.as_ref().and_then(|place| routes.masters.get(place)).is_some_and(|master| master.link.is_closed())
        };
        !routes.of_bucket.is_empty() && routes.of_bucket.iter().all(connected)
    }

    /// Sends one command about a bucket, once; and once more where a server says that another has its slot for now.
    pub(crate) async fn call(&self, bucket: usize, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        let routes = Arc::clone(&self.routes.read());
        let master = routes.of_bucket.get(bucket).and_then(Option::as_ref).and_then(|place| routes.masters.get(place));
        let answer = master.ok_or(CallError::Open)?.link.call(lane, command).await;
        let Err(CallError::Failed(error)) = &answer else { return answer };
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => {
                let asked = error.redirect_node().and_then(|(place, _)| place_of(place));
                let asked = asked.and_then(|place| routes.masters.get(&place));
                match asked {
                    Some(master) => master.link.call_asking(lane, command).await,
                    None => answer,
                }
            }
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::ReadOnly | ServerErrorKind::ClusterDown) => {
                self.moved.notify_one();
                answer
            }
            _ => answer,
        }
    }

    /// Reads the map and keeps it true. Never returns.
    pub(crate) async fn keep(&self) {
        loop {
            if let Err(error) = self.refresh().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "no node of the Redis Cluster tells the map");
            }
            let _ = timeout(REFRESH, self.moved.notified()).await;
            // However much moves, the nodes are not asked without a pause.
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reads the map once.
    pub(crate) async fn refresh(&self) -> Result<(), RedisError> {
        let known: Vec<_> = self.routes.read().masters.values().map(|master| Arc::clone(&master.link)).collect();
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        for link in known {
            let server = link.connected().borrow().clone();
            if let (Some(server), Ok(map)) = (server, link.call(Lane::Read, &command).await) {
                return self.take(&server, &map).await;
            }
        }
        let mut failure = RedisError::from((ErrorKind::Io, "no node of the Redis Cluster is known"));
        for seed in &self.seeds {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            let map = async {
                let client = Client::open(seed.clone())?;
                let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                connection.send_packed_command(&command).await?.extract_error()
            };
            match map.await {
                Ok(map) => return self.take(seed, &map).await,
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Takes a map that a server told.
    async fn take(&self, told_by: &ConnectionInfo, map: &Value) -> Result<(), RedisError> {
        let ranges = ranges_of(map, told_by);
        let owner = |slot: u16| ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        let of_bucket: Vec<Option<Place>> =
            self.slots.iter().map(|slot| owner(*slot).map(|(_, _, place)| place.clone())).collect();
        let before = Arc::clone(&self.routes.read());
        if of_bucket == before.of_bucket {
            return Ok(());
        }
        let wanted: HashSet<&Place> = of_bucket.iter().flatten().collect();
        let mut masters: HashMap<Place, Master> = HashMap::with_capacity(wanted.len());
        for place in wanted {
            let known = before.masters.get(place).cloned();
            masters.insert(place.clone(), known.unwrap_or_else(|| self.master(told_by, place)));
        }
        let gone: Vec<_> =
            before.masters.iter().filter(|(place, _)| !masters.contains_key(*place)).map(|(_, gone)| gone).collect();
        // Who had a bucket before and has it no more may have been given up with what it had not passed on.
        let moved = before.of_bucket.iter().zip(&of_bucket).any(|(before, after)| before != after);
        if moved {
            tracing::info!("buckets of the session view are with other masters now");
            self.doubt.lost();
        }
        if let Some((ears, _)) = &self.ears {
            ears.expect(masters.values().map(|master| master.number));
        }
        *self.routes.write() = Arc::new(Routes { masters, of_bucket });
        for gone in gone {
            gone.tasks.iter().for_each(AbortHandle::abort);
        }
        Ok(())
    }

    /// A master that was not known yet: connected to in a moment, by a task of its own.
    fn master(&self, like: &ConnectionInfo, (host, port): &Place) -> Master {
        let target = Target::Master(elsewhere(like, host.clone(), *port));
        let link = Arc::new(Link::new(target, self.timeout, self.max_staleness, Arc::clone(&self.doubt)));
        let number = self.next.fetch_add(1, Relaxed);
        let mut all = self.tasks.lock();
        while all.try_join_next().is_some() {}
        let mut tasks = vec![all.spawn({
            let link = Arc::clone(&link);
            async move { link.keep().await }
        })];
        if let Some((ears, prefix)) = &self.ears {
            tasks.push(all.spawn(tracking::keep(Arc::clone(&link), Arc::clone(ears), number, prefix.clone())));
        }
        Master { number, link, tasks }
    }
}

/// `[[first, last, [host, port, …], …], …]`: the slots from first to last, with their master first.
fn ranges_of(map: &Value, told_by: &ConnectionInfo) -> Vec<(u16, u16, Place)> {
    let Value::Array(ranges) = map else { return Vec::new() };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = parts.as_slice() else { return None };
        let [host, Value::Int(port), ..] = master.as_slice() else { return None };
        let named = match host {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            _ => String::new(),
        };
        // A node that does not know its own name has the one it was reached by.
        let host = if named.is_empty() || named == "?" { host_of(told_by)?.0 } else { named };
        Some((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, (host, u16::try_from(*port).ok()?)))
    };
    ranges.iter().filter_map(range).collect()
}

fn place_of(text: &str) -> Option<Place> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// The slot of a hash tag: CRC-16/XMODEM modulo 16,384 (Redis Cluster specification, "Key distribution model").
fn slot(tag: &[u8]) -> u16 {
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    });
    crc % 16_384
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;

    use super::*;

    #[test]
    fn slots_are_as_specified() {
        // The specification's own example, and answers of `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        assert_eq!(slot(b""), 0);
    }

    #[test]
    fn maps_are_read_and_what_is_no_range_is_left_out() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        let map = Value::Array(vec![
            Value::Array(vec![Value::Int(0), Value::Int(99), node(text("10.0.0.1"), 1), node(text("10.0.0.2"), 2)]),
            Value::Array(vec![Value::Int(100), Value::Int(199), node(Value::Nil, 3)]),
            Value::Array(vec![Value::Int(200), Value::Int(70_000), node(text("10.0.0.3"), 4)]),
            Value::Nil,
        ]);
        let told_by = "redis://here:7".into_connection_info().unwrap();
        let found = ranges_of(&map, &told_by);
        assert_eq!(found, [(0, 99, ("10.0.0.1".to_owned(), 1)), (100, 199, ("here".to_owned(), 3))]);
        assert_eq!(place_of("10.0.0.1:7"), Some(("10.0.0.1".to_owned(), 7)));
    }
}
