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
//! Keys, with the namespace as hash tag so that all fall into one slot of a Redis Cluster: `{ns}:s:<session id>`,
//! `{ns}:due` (sorted set, deadline in microseconds), `{ns}:n:<nonce>`, `{ns}:reflects`, `{ns}:quarantine` (hash, at most 1,000).

mod link;
mod near;
mod nonces;
mod tracking;

pub use nonces::RedisNonces;

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use redis::{Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, ServerErrorKind, Value};
use session_model::{Session, SessionId, Timestamp, TreeSize};
use session_value::{Encoded, Sealer, Undecodable};
use session_view::{Applied, SessionView, ViewError, ViewStatus, Viewed};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::link::{CallError, Lane, Link};
use crate::near::NearCache;

/// How to reach Redis, and how much to keep in front of it.
#[derive(Clone)]
pub struct RedisViewConfig {
    /// `redis://[user[:password]@]host[:port][/database]`, `rediss://…` for TLS, or `unix:///path`.
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
    link: Arc<Link>,
    near: Arc<NearCache>,
    sealer: Sealer,
    namespace: String,
    near_cache_bytes: usize,
    tasks: Vec<JoinHandle<()>>,
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
        let sealer = Sealer::new(&namespace, &sealing_key).map_err(ConfigError::Seal)?;
        let info = url.into_connection_info().map_err(ConfigError::Url)?;
        let resp3 = info.redis_settings().clone().set_protocol(redis::ProtocolVersion::RESP3);
        let tracked = Client::open(info.clone().set_redis_settings(resp3)).map_err(ConfigError::Url)?;
        let client = Client::open(info).map_err(ConfigError::Url)?;

        let link = Arc::new(Link::new(client, operation_timeout));
        if let Err(error) = link.connect().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "Redis is not there yet: the session view will be without it"
            );
        }
        let near = Arc::new(NearCache::new(near_cache_bytes));
        let mut tasks = vec![tokio::spawn({
            let link = Arc::clone(&link);
            async move { link.keep().await }
        })];
        if near_cache_bytes > 0 {
            let prefix = format!("{{{namespace}}}:s:");
            tasks.push(tokio::spawn(tracking::keep(tracked, Arc::clone(&near), prefix, max_staleness)));
        }
        Ok(Self { link, near, sealer, namespace, near_cache_bytes, tasks })
    }

    /// Whether `peek` may answer: whether changes by others are being told of.
    pub fn is_tracking(&self) -> bool {
        self.near.is_open()
    }

    fn key(&self, id: SessionId) -> String {
        format!("{{{}}}:s:{id}", self.namespace)
    }

    /// `{ns}:due`, `{ns}:reflects` or `{ns}:quarantine`.
    fn shared_key(&self, what: &str) -> String {
        format!("{{{}}}:{what}", self.namespace)
    }

    /// Calls a script by its hash, and by its text if Redis does not know it (any more).
    async fn run(&self, script: &Script, keys: &[String], arguments: &[&[u8]]) -> Result<Value, ViewError> {
        let command = |name: &str, script: &str| -> Cmd {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        match self.link.call(Lane::Write, &command("EVALSHA", &script.hash)).await {
            Err(CallError::Failed(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.link.call(Lane::Write, &command("EVAL", script.text)).await.map_err(unavailable)
            }
            answer => answer.map_err(unavailable),
        }
    }

    async fn apply_chunk(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        let mut keys = vec![self.shared_key("due"), self.shared_key("quarantine")];
        let mut texts = Vec::with_capacity(states.len());
        for state in states {
            let Encoded { bytes, lifetime_ms } = self.sealer.encode(state).map_err(unavailable)?;
            keys.push(self.key(state.id));
            texts.push((state.id.to_string(), lifetime_ms.to_string(), bytes));
        }
        let arguments: Vec<&[u8]> =
            texts.iter().flat_map(|(id, ttl, value)| [id.as_bytes(), ttl.as_bytes(), value]).collect();
        let answer = self.run(&APPLY, &keys, &arguments).await;
        // Also after a failure: it may have been done.
        for state in states {
            self.near.invalidate(state.id);
        }
        let applied: Vec<u8> = parse(answer?)?;
        let applied: Vec<_> =
            applied.into_iter().map(|answer| if answer == b'1' { Applied::Yes } else { Applied::Stale }).collect();
        if applied.len() == states.len() { Ok(applied) } else { Err(unavailable(Unexpected)) }
    }

    /// What stands under a session's key; an error of type `WRONGTYPE` if that is no string.
    async fn read(&self, id: SessionId) -> Result<Option<Vec<u8>>, CallError> {
        let mut command = redis::cmd("GET");
        command.arg(self.key(id));
        match self.link.call(Lane::Read, &command).await? {
            Value::Nil => Ok(None),
            Value::BulkString(value) => Ok(Some(value)),
            other => Ok(Some(Vec::from_redis_value(other).map_err(RedisError::from)?)),
        }
    }
}

#[async_trait]
impl SessionView for RedisView {
    fn peek(&self, id: SessionId) -> Option<Viewed> {
        self.near.peek(id)
    }

    async fn get(&self, id: SessionId) -> Result<Option<Viewed>, ViewError> {
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

    async fn apply(&self, states: &[Arc<Session>]) -> Result<Vec<Applied>, ViewError> {
        if states.len() <= STATES_PER_CALL {
            return if states.is_empty() { Ok(Vec::new()) } else { self.apply_chunk(states).await };
        }
        let calls: Vec<_> = states.chunks(STATES_PER_CALL).map(|chunk| self.apply_chunk(chunk)).collect();
        stream::iter(calls).buffered(CALLS_UNDER_WAY).try_concat().await
    }

    async fn mark_used(&self, uses: &[(SessionId, Timestamp)]) -> Result<(), ViewError> {
        for uses in uses.chunks(STATES_PER_CALL) {
            let mut keys = vec![self.shared_key("due")];
            keys.extend(uses.iter().map(|(id, _)| self.key(*id)));
            let texts: Vec<_> = uses.iter().map(|(id, at)| (id.to_string(), at.as_micros().to_be_bytes())).collect();
            let arguments: Vec<&[u8]> = texts.iter().flat_map(|(id, at)| [id.as_bytes(), at]).collect();
            let answer = self.run(&MARK_USED, &keys, &arguments).await;
            for (id, _) in uses {
                self.near.invalidate(*id);
            }
            answer?;
        }
        Ok(())
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<SessionId>, ViewError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(self.shared_key("due")).arg("-inf").arg(format!("({}", before.as_micros()));
        command.arg("LIMIT").arg(0).arg(i64::try_from(limit).unwrap_or(i64::MAX));
        let members: Vec<Vec<u8>> = parse(self.link.call(Lane::Read, &command).await.map_err(unavailable)?)?;
        let (mut due, mut foreign) = (Vec::with_capacity(members.len()), Vec::new());
        for member in members {
            match std::str::from_utf8(&member).ok().and_then(|id| id.parse().ok()) {
                Some(id) => due.push(id),
                None => foreign.push(member),
            }
        }
        if !foreign.is_empty() {
            // Left where they are they would be the earliest for ever.
            let mut command = redis::cmd("ZREM");
            command.arg(self.shared_key("due")).arg(&foreign);
            self.link.call(Lane::Write, &command).await.map_err(unavailable)?;
        }
        Ok(due)
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
        let answer = self.run(&QUARANTINE, &[self.key(id), self.shared_key("quarantine")], &arguments).await;
        self.near.invalidate(id);
        answer.map(drop)
    }

    async fn reflects(&self) -> Result<TreeSize, ViewError> {
        let mut command = redis::cmd("GET");
        command.arg(self.shared_key("reflects"));
        let answer = self.link.call(Lane::Read, &command).await.map_err(unavailable)?;
        // What is no number says nothing: begin at 0.
        Ok(TreeSize(Option::from_redis_value(answer).ok().flatten().unwrap_or(0)))
    }

    async fn set_reflects(&self, size: TreeSize) -> Result<(), ViewError> {
        let size = size.0.to_string();
        self.run(&RAISE, &[self.shared_key("reflects")], &[size.as_bytes()]).await.map(drop)
    }

    async fn identity(&self) -> Result<Option<[u8; 16]>, ViewError> {
        let mut get = redis::cmd("GET");
        get.arg(self.shared_key("identity"));
        let stands: Option<Vec<u8>> = parse(self.link.call(Lane::Read, &get).await.map_err(unavailable)?)?;
        if let Some(stands) = stands {
            return Ok(stands.try_into().ok());
        }
        let mut fresh = [0; 16];
        openssl::rand::rand_bytes(&mut fresh).map_err(unavailable)?;
        let mut set = redis::cmd("SET");
        set.arg(self.shared_key("identity")).arg(&fresh).arg("NX");
        self.link.call(Lane::Write, &set).await.map_err(unavailable)?;
        // Of several that found none one was the first.
        let stands: Option<Vec<u8>> = parse(self.link.call(Lane::Read, &get).await.map_err(unavailable)?)?;
        Ok(stands.and_then(|stands| stands.try_into().ok()))
    }

    fn status(&self) -> ViewStatus {
        let (held, bytes) = self.near.size();
        let available = self.link.is_closed();
        ViewStatus { kind: "redis", available, held, bytes, budget: Some(self.near_cache_bytes) }
    }
}

impl Drop for RedisView {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

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
