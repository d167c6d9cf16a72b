//! Session view in Redis, shared by the nodes of a cluster.
//!
//! * One key a session, sealed (`session-value`); one script call applies a batch if newer and keeps the index by deadline.
//! * A cache in this process (module `near`), kept true by client tracking (module `tracking`).
//! * Timeouts and a circuit breaker (module `link`): a dead Redis costs callers microseconds.
//!
//! What it deliberately lacks: retries (the caller has the log), keyspace notifications, blocking sweeps, and any trust in
//! Redis beyond being there. **Trust:** whoever controls Redis can withhold or forget sessions, put an earlier value of a
//! session back under its own key, and keep sessions from idling out; not read a session, make one up, or move one.
//!
//! Redis is one server, the master that sentinels name (module `sentinel`), or a cluster (module `cluster`). Replicas lag: one
//! that is promoted lacks the last moment of its master. That, and a server that was restarted, is a loss that the view counts
//! ([`session_view::Doubt`]); until the log from what the server claims to reflect was applied again, reads come from the log.
//!
//! Keys: `{ns}:s:<session id>`, `{ns}:due` (sorted set, deadline in microseconds), `{ns}:n:<nonce>`, `{ns}:reflects`,
//! `{ns}:quarantine` (hash, at most 1,000). On a cluster each of 256 buckets has its own, `{ns:<bucket>}:due` and so on, and
//! sessions are `s:{ns:<bucket>}:<session id>`: what one script call sees is in one slot, and the slots are spread.

mod address;
mod cluster;
mod link;
mod near;
mod nonces;
mod sentinel;
mod tracking;
mod transients;

pub use nonces::RedisNonces;
pub use transients::{RedisTransients, RedisTransientsConfig};

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use hashbrown::HashMap;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value};
use session_model::{Session, SessionId, Timestamp, TreeSize};
use session_value::{Encoded, Sealer, Undecodable};
use session_view::{Applied, Doubt, Reflected, SessionView, ViewError, ViewStatus, Viewed};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::address::Address;
use crate::cluster::{BUCKETS, Cluster};
use crate::link::{CallError, Lane, Link, Target};
use crate::near::NearCache;
use crate::tracking::Ears;

/// How to reach Redis, and how much to keep in front of it.
#[derive(Clone)]
pub struct RedisViewConfig {
    /// `redis://[user[:password]@]host[:port][/database]`, `rediss://…` for TLS, or `unix:///path`;
    /// `redis+sentinel://[user:password@]host[:port],…/service[/database][?sentinel_user=…&sentinel_password=…]`;
    /// `redis+cluster://[user:password@]host[:port],…`. With `rediss+…` all are spoken to by TLS.
    pub url: String,
    /// Tells deployments apart that share a Redis: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
    pub namespace: String,
    /// Seals the values: 32 bytes, the same on every node. With another key everything is undecodable, and rebuilt.
    pub sealing_key: [u8; 32],
    /// How long an operation may take. Default 250 ms.
    pub operation_timeout: Duration,
    /// Bytes of sessions kept in this process, by estimate. 0 keeps none. Default 64 MiB.
    pub near_cache_bytes: usize,
    /// How old what is kept in this process may be, when Redis cannot tell us of changes. Default 2 s.
    pub max_staleness: Duration,
}

impl RedisViewConfig {
    /// With the defaults for all that has one.
    #[must_use]
    pub fn new(url: impl Into<String>, namespace: impl Into<String>, sealing_key: [u8; 32]) -> Self {
        Self {
            url: url.into(),
            namespace: namespace.into(),
            sealing_key,
            operation_timeout: Duration::from_millis(250),
            near_cache_bytes: 64 << 20,
            max_staleness: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for RedisViewConfig {
    /// Without the key, and without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisViewConfig")
            .field("namespace", &self.namespace)
            .field("operation_timeout", &self.operation_timeout)
            .field("near_cache_bytes", &self.near_cache_bytes)
            .field("max_staleness", &self.max_staleness)
            .finish_non_exhaustive()
    }
}

/// Why a configuration cannot be used. That Redis is not there is no reason: it may come.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The URL is none that Redis can be reached by.
    #[error("the URL of Redis is not usable")]
    Url(#[source] RedisError),
    /// The namespace is malformed.
    #[error("a namespace is 1 to 64 of A-Z, a-z, 0-9, '-', '_' and '.'")]
    Namespace,
    /// Transient sessions in a Redis Cluster, where a session and its subject's others are in different places.
    #[error("transient sessions need one server, or one that sentinels name")]
    Cluster,
    /// A timeout of zero, or one that tracking cannot keep.
    #[error("the timeout must be at least 1 ms and the staleness at least 100 ms")]
    Span,
    /// OpenSSL lacks AES-256-GCM or HMAC-SHA-256.
    #[error("OpenSSL cannot seal")]
    Seal(#[source] openssl::error::ErrorStack),
}

/// States applied by one script call. Redis does nothing else meanwhile, so it must stay well under a millisecond or two.
const STATES_PER_CALL: usize = 128;
/// Script calls of one batch under way at once: a batch as large as a group commit's is one round trip.
const CALLS_UNDER_WAY: usize = 8;
/// The same for a cluster, where a batch is in many buckets.
const CLUSTER_CALLS_UNDER_WAY: usize = 64;
/// On a cluster, what is reflected is written to each bucket at most this often. What was applied since is applied again by
/// whoever comes next.
const REFLECTS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the start waits for a cluster's masters.
const FIRST_CONTACT: Duration = Duration::from_secs(2);

/// A script, by its text and by the SHA-1 of it that Redis knows it by.
struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

static APPLY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/apply.lua")));
static MARK_USED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/mark_used.lua")));
static QUARANTINE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/quarantine.lua")));
static RAISE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/raise.lua")));

/// The view in Redis.
///
/// `get` always asks Redis, so it is at least as new as what any node had applied when it was called; `peek` answers
/// from this process and may be older by the time Redis takes to tell of a change, at worst by `max_staleness`.
pub struct RedisView {
    servers: Arc<Servers>,
    near: Arc<NearCache>,
    doubt: Arc<Doubt>,
    reflected: Reflected,
    sealer: Sealer,
    near_cache_bytes: usize,
    tasks: Vec<JoinHandle<()>>,
}

/// Where the keys are.
enum Servers {
    One { link: Arc<Link>, namespace: String },
    Cluster { cluster: Arc<Cluster>, namespace: String },
}

impl Servers {
    /// How many buckets keys are in.
    fn buckets(&self) -> usize {
        match self {
            Self::One { .. } => 1,
            Self::Cluster { .. } => BUCKETS,
        }
    }

    /// The bucket of what has this byte, which is random.
    fn bucket_of(&self, random: u8) -> usize {
        usize::from(random) % self.buckets()
    }

    fn bucket(&self, id: SessionId) -> usize {
        let [.., random] = *id.uuid().as_bytes();
        self.bucket_of(random)
    }

    fn key(&self, id: SessionId) -> String {
        match self {
            Self::One { namespace, .. } => format!("{{{namespace}}}:s:{id}"),
            Self::Cluster { namespace, .. } => format!("s:{{{}}}:{id}", tag(namespace, self.bucket(id))),
        }
    }

    /// `{…}:due`, `{…}:reflects` or `{…}:quarantine` of a bucket, or a nonce in it.
    fn shared_key(&self, bucket: usize, what: &str) -> String {
        match self {
            Self::One { namespace, .. } => format!("{{{namespace}}}:{what}"),
            Self::Cluster { namespace, .. } => format!("{{{}}}:{what}", tag(namespace, bucket)),
        }
    }

    fn calls_under_way(&self) -> usize {
        match self {
            Self::One { .. } => CALLS_UNDER_WAY,
            Self::Cluster { .. } => CLUSTER_CALLS_UNDER_WAY,
        }
    }

    fn are_available(&self) -> bool {
        match self {
            Self::One { link, .. } => link.is_closed(),
            Self::Cluster { cluster, .. } => cluster.is_whole(),
        }
    }

    async fn call(&self, bucket: usize, lane: Lane, command: &Cmd) -> Result<Value, CallError> {
        match self {
            Self::One { link, .. } => link.call(lane, command).await,
            Self::Cluster { cluster, .. } => cluster.call(bucket, lane, command).await,
        }
    }
}

/// The hash tag of a bucket of a cluster. No namespace has a colon in it.
fn tag(namespace: &str, bucket: usize) -> String {
    format!("{namespace}:{bucket:02x}")
}

impl RedisView {
    /// Connects. If Redis is not there the view is made nevertheless, is unavailable, and connects when it can.
    ///
    /// # Errors
    /// [`ConfigError`] for a configuration that can never work.
    pub async fn connect(config: RedisViewConfig) -> Result<Self, ConfigError> {
        let RedisViewConfig { url, namespace, sealing_key, operation_timeout, near_cache_bytes, max_staleness } =
            config;
        let sealing_key = Zeroizing::new(sealing_key);
        let plain = namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || !(1..=64).contains(&namespace.len()) {
            return Err(ConfigError::Namespace);
        }
        if operation_timeout < Duration::from_millis(1) || max_staleness < Duration::from_millis(100) {
            return Err(ConfigError::Span);
        }
        let sealer = Sealer::new(&namespace, &sealing_key);
        let address = Address::parse(&url).map_err(ConfigError::Url)?;

        let doubt = Arc::new(Doubt::default());
        let near = Arc::new(NearCache::new(near_cache_bytes));
        let ears = (near_cache_bytes > 0).then(|| Arc::new(Ears::new(Arc::clone(&near), max_staleness)));
        let mut tasks = Vec::new();
        let target = match address {
            Address::Fixed(server) => Ok(Target::Fixed(server)),
            Address::Sentinel(address) => Ok(Target::Sentinel(address)),
            Address::Cluster(seeds) => Err(seeds),
        };
        let servers = match target {
            Ok(target) => {
                let link = Arc::new(Link::new(target, operation_timeout, max_staleness, Arc::clone(&doubt)));
                if let Err(error) = link.connect().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "Redis is not there yet: the session view will be without it"
                    );
                }
                tasks.push(tokio::spawn({
                    let link = Arc::clone(&link);
                    async move { link.keep().await }
                }));
                if let Some(ears) = ears {
                    ears.expect([0]);
                    let prefix = format!("{{{namespace}}}:s:");
                    tasks.push(tokio::spawn(tracking::keep(Arc::clone(&link), ears, 0, prefix)));
                }
                Servers::One { link, namespace }
            }
            Err(seeds) => {
                let listeners = ears.map(|ears| (ears, format!("s:{{{namespace}:")));
                let tag_of = |bucket| tag(&namespace, bucket);
                let cluster =
                    Cluster::new(seeds, operation_timeout, max_staleness, Arc::clone(&doubt), listeners, tag_of);
                let cluster = Arc::new(cluster);
                if let Err(error) = cluster.refresh().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the Redis Cluster is not there yet: the session view will be without it"
                    );
                }
                tasks.push(tokio::spawn({
                    let cluster = Arc::clone(&cluster);
                    async move { cluster.keep().await }
                }));
                let start = tokio::time::Instant::now();
                while !cluster.is_whole() && start.elapsed() < FIRST_CONTACT {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Servers::Cluster { cluster, namespace }
            }
        };
        let (servers, reflected) = (Arc::new(servers), Reflected::every(REFLECTS_INTERVAL));
        Ok(Self { servers, near, doubt, reflected, sealer, near_cache_bytes, tasks })
    }

    /// Whether `peek` may answer: whether changes by others are being told of.
    pub fn is_tracking(&self) -> bool {
        self.near.is_open()
    }

    /// Calls a script by its hash, and by its text if Redis does not know it (any more).
    async fn run(
        &self,
        bucket: usize,
        script: &Script,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<Value, ViewError> {
        let command = |name: &str, script: &str| -> Cmd {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        match self.servers.call(bucket, Lane::Write, &command("EVALSHA", &script.hash)).await {
            Err(CallError::Failed(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.servers.call(bucket, Lane::Write, &command("EVAL", script.text)).await.map_err(unavailable)
            }
            answer => answer.map_err(unavailable),
        }
    }

    async fn apply_chunk(&self, bucket: usize, states: &[&Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        let done = self.send_chunk(bucket, states).await;
        // Also after a failure: it may have been done.
        for state in states {
            self.near.invalidate(state.id);
        }
        match &done {
            Ok(_) => states.iter().for_each(|state| self.doubt.settled(state)),
            Err(_) => self.doubt.failed(states.iter().map(|state| &***state)),
        }
        done
    }

    async fn send_chunk(&self, bucket: usize, states: &[&Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        let mut keys = vec![self.servers.shared_key(bucket, "due"), self.servers.shared_key(bucket, "quarantine")];
        let mut texts = Vec::with_capacity(states.len());
        for state in states {
            let Encoded { bytes, lifetime_ms } = self.sealer.encode(state).map_err(unavailable)?;
            keys.push(self.servers.key(state.id));
            texts.push((state.id.to_string(), lifetime_ms.to_string(), bytes));
        }
        let arguments: Vec<&[u8]> =
            texts.iter().flat_map(|(id, ttl, value)| [id.as_bytes(), ttl.as_bytes(), value]).collect();
        let applied: Vec<u8> = parse(self.run(bucket, &APPLY, &keys, &arguments).await?)?;
        let applied: Vec<_> =
            applied.into_iter().map(|answer| if answer == b'1' { Applied::Yes } else { Applied::Stale }).collect();
        if applied.len() == states.len() { Ok(applied) } else { Err(unavailable(Unexpected)) }
    }

    /// Places in a batch, by bucket, and no more of one than a script call takes.
    fn chunks(&self, ids: impl Iterator<Item = SessionId>) -> Vec<(usize, Vec<usize>)> {
        let mut buckets: HashMap<usize, Vec<usize>> = HashMap::new();
        for (place, id) in ids.enumerate() {
            buckets.entry(self.servers.bucket(id)).or_default().push(place);
        }
        let chunks = buckets.into_iter().flat_map(|(bucket, places)| {
            places.chunks(STATES_PER_CALL).map(|places| (bucket, places.to_vec())).collect::<Vec<_>>()
        });
        chunks.collect()
    }

    async fn mark_chunk(&self, bucket: usize, uses: Vec<(SessionId, Timestamp)>) -> Result<(), ViewError> {
        let mut keys = vec![self.servers.shared_key(bucket, "due")];
        keys.extend(uses.iter().map(|(id, _)| self.servers.key(*id)));
        let texts: Vec<_> = uses.iter().map(|(id, at)| (id.to_string(), at.as_micros().to_be_bytes())).collect();
        let arguments: Vec<&[u8]> = texts.iter().flat_map(|(id, at)| [id.as_bytes(), at]).collect();
        let answer = self.run(bucket, &MARK_USED, &keys, &arguments).await;
        for (id, _) in uses {
            self.near.invalidate(id);
        }
        answer.map(drop)
    }

    /// The earliest of one bucket, with their deadlines.
    async fn due_in(&self, bucket: usize, before: Timestamp, limit: usize) -> Result<Vec<(i64, SessionId)>, ViewError> {
        let key = self.servers.shared_key(bucket, "due");
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&key).arg("-inf").arg(format!("({}", before.as_micros())).arg("WITHSCORES");
        command.arg("LIMIT").arg(0).arg(i64::try_from(limit).unwrap_or(i64::MAX));
        let answer = self.servers.call(bucket, Lane::Read, &command).await.map_err(unavailable)?;
        let members: Vec<(Vec<u8>, f64)> = parse(answer)?;
        let (mut due, mut foreign) = (Vec::with_capacity(members.len()), Vec::new());
        for (member, deadline) in members {
            match std::str::from_utf8(&member).ok().and_then(|id| id.parse().ok()) {
                Some(id) => due.push((deadline as i64, id)),
                None => foreign.push(member),
            }
        }
        if !foreign.is_empty() {
            // Left where they are they would be the earliest for ever.
            let mut command = redis::cmd("ZREM");
            command.arg(&key).arg(&foreign);
            self.servers.call(bucket, Lane::Write, &command).await.map_err(unavailable)?;
        }
        Ok(due)
    }

    async fn reflects_in(&self, bucket: usize) -> Result<TreeSize, ViewError> {
        let mut command = redis::cmd("GET");
        command.arg(self.servers.shared_key(bucket, "reflects"));
        let answer = self.servers.call(bucket, Lane::Read, &command).await.map_err(unavailable)?;
        // What is no number says nothing: begin at 0.
        Ok(TreeSize(Option::from_redis_value(answer).ok().flatten().unwrap_or(0)))
    }

    async fn look_up(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        let ticket = self.near.ticket(id);
        let viewed = match self.read(id).await {
            Ok(None) => None,
            Ok(Some(value)) => match self.sealer.decode(id, &value) {
                Ok(viewed) => Some(viewed),
                Err(Undecodable) => {
                    self.near.invalidate(id);
                    return Err(ViewError::Undecodable(id));
                }
            },
            Err(error) if is_wrong_type(&error) => {
                self.near.invalidate(id);
                return Err(ViewError::Undecodable(id));
            }
            Err(error) => return Err(unavailable(error)),
        };
        self.near.learn(id, viewed.as_ref(), ticket);
        Ok(viewed)
    }

    /// What stands under a session's key; an error of type `WRONGTYPE` if that is no string.
    async fn read(&self, id: SessionId) -> Result<Option<Vec<u8>>, CallError> {
        let mut command = redis::cmd("GET");
        command.arg(self.servers.key(id));
        match self.servers.call(self.servers.bucket(id), Lane::Read, &command).await? {
            Value::Nil => Ok(None),
            Value::BulkString(value) => Ok(Some(value)),
            other => Ok(Some(Vec::from_redis_value(other).map_err(RedisError::from)?)),
        }
    }
}

#[async_trait]
impl SessionView for RedisView {
    fn peek(&self, id: SessionId) -> Option<Viewed> {
        if self.doubt.spares(id) { self.near.peek(id) } else { None }
    }

    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        if !self.doubt.spares(id) {
            return Err(unavailable(InDoubt));
        }
        let viewed = self.look_up(id).await?;
        // What was read from a server that turned out another meanwhile is not to be believed.
        if self.doubt.spares(id) { Ok(viewed) } else { Err(unavailable(InDoubt)) }
    }

    async fn held(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
        self.look_up(id).await
    }

    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        let calls: Vec<_> = self
            .chunks(states.iter().map(|state| state.id))
            .into_iter()
            .map(|(bucket, places)| async move {
                let chunk: Vec<_> = places.iter().filter_map(|place| states.get(*place)).collect();
                let applied = self.apply_chunk(bucket, &chunk).await?;
                Ok::<Vec<_>, ViewError>(places.into_iter().zip(applied).collect())
            })
            .collect();
        // All of them come to their end, so that what failed is known.
        let done: Vec<_> = stream::iter(calls).buffer_unordered(self.servers.calls_under_way()).collect().await;
        let done: Vec<_> = done.into_iter().collect::<Result<_, _>>()?;
        let mut applied: Vec<_> = done.into_iter().flatten().collect();
        applied.sort_unstable_by_key(|(place, _)| *place);
        Ok(applied.into_iter().map(|(_, applied)| applied).collect())
    }

    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError> {
        let calls: Vec<_> = self
            .chunks(uses.iter().map(|(id, _)| *id))
            .into_iter()
            .map(|(bucket, places)| {
                self.mark_chunk(bucket, places.iter().filter_map(|place| uses.get(*place)).copied().collect())
            })
            .collect();
        stream::iter(calls).buffer_unordered(self.servers.calls_under_way()).try_collect().await
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        // Of each bucket a little more than its share; of one that has more than that among the earliest, all.
        let buckets = self.servers.buckets();
        let share = if buckets == 1 { limit } else { (limit / buckets * 4 + 16).min(limit) };
        let calls: Vec<_> =
            (0..buckets).map(|bucket| async move { (bucket, self.due_in(bucket, before, share).await) }).collect();
        let answers: Vec<_> = stream::iter(calls).buffer_unordered(self.servers.calls_under_way()).collect().await;
        let (mut due, mut more, mut failure, mut answered) = (Vec::new(), Vec::new(), None, 0);
        for (bucket, answer) in answers {
            match answer {
                Ok(found) => {
                    answered += 1;
                    if found.len() == share && share < limit {
                        more.extend(found.last().map(|(deadline, _)| (bucket, *deadline)));
                    }
                    due.extend(found);
                }
                Err(error) => failure = Some(error),
            }
        }
        // Sessions of a master that is down are reaped later; the others are not made to wait for it.
        if let (0, Some(failure)) = (answered, failure) {
            return Err(failure);
        }
        due.sort_unstable();
        for (bucket, last) in more {
            if due.get(limit - 1).is_none_or(|(cut, _)| last < *cut) {
                let mut whole = self.due_in(bucket, before, limit).await?;
                due.append(&mut whole);
                due.sort_unstable();
                due.dedup();
            }
        }
        due.truncate(limit);
        Ok(due.into_iter().map(|(_, id)| id).collect())
    }

    /// Always: how much Redis holds is bounded by its own configuration, and what it drops is rebuilt.
    fn has_room(&self) -> bool {
        true
    }

    async fn quarantine(&self, id: SessionId) -> Result<(), ViewError> {
        let text = id.to_string();
        let found = match self.read(id).await {
            Ok(None) => return Ok(()),
            Ok(Some(value)) if self.sealer.decode(id, &value).is_ok() => return Ok(()),
            Ok(Some(value)) => Some(value),
            Err(error) if is_wrong_type(&error) => None,
            Err(error) => return Err(unavailable(error)),
        };
        let mut arguments = vec![text.as_bytes()];
        arguments.extend(found.as_deref());
        let bucket = self.servers.bucket(id);
        let keys = [self.servers.key(id), self.servers.shared_key(bucket, "quarantine")];
        let answer = self.run(bucket, &QUARANTINE, &keys, &arguments).await;
        self.near.invalidate(id);
        answer.map(drop)
    }

    async fn reflects(&self) -> Result<TreeSize, ViewError> {
        match &*self.servers {
            Servers::One { .. } => self.reflects_in(0).await,
            Servers::Cluster { .. } => {
                // Each master may go back by itself: what all of them reflect is what the least of them does.
                let calls = (0..self.servers.buckets()).map(|bucket| self.reflects_in(bucket));
                let calls: Vec<_> = calls.collect();
                let calls = stream::iter(calls).buffer_unordered(self.servers.calls_under_way());
                let all: Vec<TreeSize> = calls.try_collect().await?;
                Ok(self.reflected.found(all.into_iter().min().unwrap_or_default()))
            }
        }
    }

    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError> {
        let one = matches!(&*self.servers, Servers::One { .. });
        if !one && !self.reflected.said(size) {
            return Ok(());
        }
        let text = size.0.to_string();
        let raise = async |bucket: usize| {
            let key = self.servers.shared_key(bucket, "reflects");
            self.run(bucket, &RAISE, &[key], &[text.as_bytes()]).await.map(drop)
        };
        let calls: Vec<_> = (0..self.servers.buckets()).map(raise).collect();
        stream::iter(calls).buffer_unordered(self.servers.calls_under_way()).try_collect::<()>().await?;
        self.reflected.written(size);
        Ok(())
    }

    fn losses(&self) -> u64 {
        self.doubt.losses()
    }

    fn restored(&self, losses: u64) {
        self.doubt.restored(losses);
    }

    async fn identity(&self) -> Result<Option<[u8; 16]>, ViewError> {
        let mut get = redis::cmd("GET");
        get.arg(self.servers.shared_key(0, "identity"));
        let stands: Option<Vec<u8>> = parse(self.servers.call(0, Lane::Read, &get).await.map_err(unavailable)?)?;
        if let Some(stands) = stands {
            return Ok(stands.try_into().ok());
        }
        let mut fresh = [0; 16];
        openssl::rand::rand_bytes(&mut fresh).map_err(unavailable)?;
        let mut set = redis::cmd("SET");
        set.arg(self.servers.shared_key(0, "identity")).arg(&fresh).arg("NX");
        self.servers.call(0, Lane::Write, &set).await.map_err(unavailable)?;
        // Of several that found none one was the first.
        let stands: Option<Vec<u8>> = parse(self.servers.call(0, Lane::Read, &get).await.map_err(unavailable)?)?;
        Ok(stands.and_then(|stands| stands.try_into().ok()))
    }

    fn status(&self) -> ViewStatus {
        let (held, bytes) = self.near.size();
        let available = self.servers.are_available();
        let in_doubt = !self.doubt.is_over();
        ViewStatus { kind: "redis", available, in_doubt, held, bytes, budget: Some(self.near_cache_bytes) }
    }
}

impl Drop for RedisView {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What was applied last may not be there.
#[derive(Debug, thiserror::Error)]
#[error("what was applied last may be missing in Redis")]
struct InDoubt;

/// Redis answered something else than the command answers.
#[derive(Debug, thiserror::Error)]
#[error("Redis gave an answer of an unexpected form")]
struct Unexpected;

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> ViewError {
    ViewError::Unavailable(Box::new(error))
}

fn parse<T: FromRedisValue>(value: Value) -> Result<T, ViewError> {
    T::from_redis_value(value).map_err(unavailable)
}

fn is_wrong_type(error: &CallError) -> bool {
    matches!(error, CallError::Failed(error) if error.code() == Some("WRONGTYPE"))
}
