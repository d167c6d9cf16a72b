//! Transient sessions in a Redis that the nodes share: one script call lets a state stand if what it was made from does.
//!
//! Here Redis is no view: nobody else knows these sessions. What it loses (a restart without persistence, keys it evicts, the last moment
//! before a replica is promoted) is lost. **Trust:** as for the view, values are sealed and bound to their session; whoever controls Redis
//! can withhold or forget sessions, put an earlier state back, and keep sessions from idling out. Subjects stand in names of keys as MACs.
//!
//! Keys: `{ns}:t:<session id>`, `{ns}:tdue` (deadline), `{ns}:tr:<realm>` (its sessions), `{ns}:tu:<MAC of realm and subject>` (a subject's
//! active ones), `{ns}:ta:<idempotency key>`, `{ns}:tgraves` (when to forget). One server, because a session and its subject's others change
//! in one call.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashMap;
use redis::{Cmd, ErrorKind, FromRedisValue, ServerErrorKind, Value};
use session_model::transient::Stamped;
use session_model::{Digest, RealmName, Session, SessionId, Timestamp};
use session_value::{Sealer, stamp_bytes};
use session_view::Doubt;
use tokio::task::JoinHandle;
use transient_store::{KeptAnswer, Listing, Outcome, Put, REMEMBERED, StoreError, StoreStatus, TransientStore};
use zeroize::Zeroizing;

use crate::address::Address;
use crate::link::{CallError, Lane, Link, Target};
use crate::{ConfigError, Script};

/// How to reach the Redis that keeps transient sessions.
#[derive(Clone)]
pub struct RedisTransientsConfig {
    /// As for the view, but for a Redis Cluster.
    pub url: String,
    /// Tells deployments apart that share a Redis: 1 to 64 of `A-Z`, `a-z`, `0-9`, `-`, `_`, `.`.
    pub namespace: String,
    /// Seals the values: 32 bytes, the same on every node.
    pub sealing_key: [u8; 32],
    /// How long an operation may take.
    pub operation_timeout: Duration,
}

impl fmt::Debug for RedisTransientsConfig {
    /// Without the key, and without the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTransientsConfig").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Transient sessions in Redis.
pub struct RedisTransients {
    link: Arc<Link>,
    namespace: String,
    sealer: Sealer,
    /// Names subjects.
    subjects: Zeroizing<[u8; 32]>,
    task: JoinHandle<()>,
}

static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/transient_put.lua")));
static USED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/transient_used.lua")));

/// How long a master is believed to be one without the word of the sentinels.
const STALENESS: Duration = Duration::from_secs(2);
/// Sessions read in one call.
const PAGE: usize = 256;
/// Sessions forgotten in one round.
const FORGOTTEN: usize = 4_096;

impl fmt::Debug for RedisTransients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisTransients({})", self.namespace)
    }
}

impl RedisTransients {
    /// Connects. If Redis is not there the store is made nevertheless, is unavailable, and connects when it can.
    ///
    /// # Errors
    /// [`ConfigError`] for a configuration that can never work.
    pub async fn connect(config: RedisTransientsConfig) -> Result<Self, ConfigError> {
        let RedisTransientsConfig { url, namespace, sealing_key, operation_timeout } = config;
        let plain = namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !plain || !(1..=64).contains(&namespace.len()) {
            return Err(ConfigError::Namespace);
        }
        if operation_timeout < Duration::from_millis(1) {
            return Err(ConfigError::Span);
        }
        let target = match Address::parse(&url).map_err(ConfigError::Url)? {
            Address::Fixed(server) => Target::Fixed(server),
            Address::Sentinel(address) => Target::Sentinel(address),
            Address::Cluster(_) => return Err(ConfigError::Cluster),
        };
        let sealer = Sealer::new(&namespace, &sealing_key);
        let subjects =
            sealing::hmac(&sealing_key, &[b"counterfoil transient subjects v1"]).map_err(ConfigError::Seal)?;
        // What it lost is lost: nobody has it to apply again.
        let link = Arc::new(Link::new(target, operation_timeout, STALENESS, Arc::new(Doubt::default())));
        if let Err(error) = link.connect().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the Redis of transient sessions is not there yet: what is asked of them is refused"
            );
        }
        let keeping = Arc::clone(&link);
        let task = tokio::spawn(async move { keeping.keep().await });
        Ok(Self { link, namespace, sealer, subjects: Zeroizing::new(subjects.0), task })
    }

    fn key(&self, what: impl fmt::Display) -> String {
        format!("{{{}}}:{what}", self.namespace)
    }

    fn session_key(&self, id: SessionId) -> String {
        self.key(format_args!("t:{id}"))
    }

    fn realm_key(&self, realm: &RealmName) -> String {
        self.key(format_args!("tr:{realm}"))
    }

    /// The key of a subject's active sessions; a name that nothing is under, for nobody.
    fn subject_key(&self, realm: &RealmName, subject: Option<&str>) -> Result<String, StoreError> {
        let Some(subject) = subject else { return Ok(self.key("tu:")) };
        let digest =
            sealing::hmac(&self.subjects, &[realm.as_str().as_bytes(), &[0], subject.as_bytes()]).map_err(internal)?;
        Ok(self.key(format_args!("tu:{digest}")))
    }

    /// Asks for something that changes nothing.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let answer = self.link.call(Lane::Read, command).await.map_err(internal)?;
        T::from_redis_value(answer).map_err(internal)
    }

    /// Changes something that may as well not be changed.
    async fn tidy(&self, command: &Cmd) {
        if let Err(error) = self.link.call(Lane::Write, command).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the Redis of transient sessions was not tidied");
        }
    }

    async fn run(&self, script: &Script, keys: &[String], arguments: &[&[u8]]) -> Result<Value, StoreError> {
        let command = |name: &str, script: &str| -> Cmd {
            let mut command = redis::cmd(name);
            command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
            command
        };
        let answer = match self.link.call(Lane::Write, &command("EVALSHA", &script.hash)).await {
            Err(CallError::Failed(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.link.call(Lane::Write, &command("EVAL", script.text)).await
            }
            answer => answer,
        };
        answer.map_err(|failure| match &failure {
            CallError::Failed(error) if !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                StoreError::Unknown(failure.into())
            }
            CallError::Failed(_) | CallError::Open => StoreError::Unavailable(failure.into()),
        })
    }

    fn open(&self, id: SessionId, value: &[u8]) -> Result<Stamped, StoreError> {
        self.sealer.decode_stamped(id, value).map_err(|_| StoreError::Undecodable(id))
    }

    /// What stands of sessions, and those of which nothing does that could be read: nobody else has them.
    async fn read(&self, ids: &[SessionId]) -> Result<(Vec<Arc<Session>>, Vec<SessionId>), StoreError> {
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        if ids.is_empty() {
            return Ok((found, lost));
        }
        let mut command = redis::cmd("MGET");
        ids.iter().for_each(|id| {
            command.arg(self.session_key(*id));
        });
        let values: Vec<Option<Vec<u8>>> = self.ask(&command).await?;
        for (id, value) in ids.iter().zip(values) {
            match value.map(|value| self.open(*id, &value)) {
                Some(Ok(state)) => found.push(state.session),
                Some(Err(failure)) => {
                    tracing::error!(%failure, "a transient session is given up");
                    lost.push(*id);
                }
                None => lost.push(*id),
            }
        }
        Ok((found, lost))
    }

    async fn remove(&self, key: &str, members: &[impl AsRef<str>]) {
        if !members.is_empty() {
            let mut command = redis::cmd("ZREM");
            command.arg(key);
            members.iter().for_each(|member| {
                command.arg(member.as_ref());
            });
            self.tidy(&command).await;
        }
    }
}

fn texts(ids: &[SessionId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

/// Redis answered something else than the command answers.
#[derive(Debug, thiserror::Error)]
#[error("Redis gave an answer of an unexpected form")]
struct Unexpected;

/// Milliseconds, of a store with a clock of its own: never shorter than asked, and never none.
fn span(from: Timestamp, to: Timestamp) -> String {
    (to.micros_since(from) / 1_000 + 1).to_string()
}

/// `request (32) ‖ session (16) ‖ expires (8) ‖ token`: the token is sealed, and nothing else of it is a secret or personal.
fn write_answer(answer: &KeptAnswer) -> Vec<u8> {
    let expires = answer.expires.as_micros().to_be_bytes();
    [answer.request.0.as_slice(), answer.session.uuid().as_bytes(), &expires, &answer.token].concat()
}

fn read_answer(bytes: &[u8]) -> Option<KeptAnswer> {
    let (request, rest) = bytes.split_first_chunk()?;
    let (session, rest) = rest.split_first_chunk()?;
    let (expires, token) = rest.split_first_chunk()?;
    Some(KeptAnswer {
        request: Digest(*request),
        session: SessionId::new(uuid::Uuid::from_bytes(*session)),
        token: token.to_vec(),
        expires: Timestamp::from_micros(i64::from_be_bytes(*expires)),
    })
}

#[async_trait]
impl TransientStore for RedisTransients {
    async fn get(&self, id: SessionId) -> Result<Option<Stamped>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.session_key(id));
        let value: Option<Vec<u8>> = self.ask(&command).await?;
        value.map(|value| self.open(id, &value)).transpose()
    }

    async fn put(&self, put: Put) -> Result<Outcome, StoreError> {
        // One Redis is one place.
        let Put { state, base, cap, answer, acknowledged_by: _ } = put;
        let (id, now) = (state.session.id, state.stamp.at);
        let realm = state.session.realm.clone();
        let before = match (base, state.session.ended().is_some() || cap.is_some()) {
            // Whose seat it leaves, only who holds the state before can say.
            (Some(_), true) => self.get(id).await?,
            (Some(_) | None, _) => None,
        };
        let leaves = before.as_ref().and_then(|before| before.session.subject.as_deref());
        let joins = state.session.subject.as_deref().filter(|_| cap.is_some());
        let forget = state.session.expires_at.plus(REMEMBERED);
        let kept = state.clone().kept();
        let value = self.sealer.encode_stamped(&kept).map_err(internal)?;
        let answer_key = answer.as_ref().map_or_else(|| self.key("ta:"), |(key, _)| self.key(format_args!("ta:{key}")));
        let keys = [
            self.session_key(id),
            self.key("tdue"),
            self.realm_key(&realm),
            self.key("tgraves"),
            answer_key,
            self.subject_key(&realm, joins)?,
            self.subject_key(&realm, leaves)?,
        ];
        let name = id.to_string();
        let base = base.map(|base| stamp_bytes(&base).to_vec()).unwrap_or_default();
        let cap = cap.filter(|_| joins.is_some()).map_or_else(|| "-1".to_owned(), |cap| cap.to_string());
        let (written, lifetime) = match &answer {
            Some((_, answer)) => (write_answer(answer), span(now, answer.expires)),
            None => (Vec::new(), String::new()),
        };
        let (ttl, forget, grave) = (span(now, forget), forget.as_micros().to_string(), format!("{id} {realm}"));
        let arguments: [&[u8]; 10] = [
            name.as_bytes(),
            &base,
            &value,
            ttl.as_bytes(),
            cap.as_bytes(),
            if leaves.is_some() && leaves != joins { b"1" } else { b"0" },
            &written,
            lifetime.as_bytes(),
            forget.as_bytes(),
            grave.as_bytes(),
        ];
        let outcome = String::from_redis_value(self.run(&PUT, &keys, &arguments).await?).map_err(internal)?;
        match outcome.as_str() {
            "done" => Ok(Outcome::Done),
            "moved" => Ok(Outcome::Moved),
            "cap" => Ok(Outcome::CapReached),
            "answered" => Ok(Outcome::Answered),
            _ => Err(internal(Unexpected)),
        }
    }

    async fn mark_used(&self, id: SessionId, at: Timestamp) -> Result<Option<Stamped>, StoreError> {
        let name = id.to_string();
        let keys = [self.session_key(id), self.key("tdue")];
        let answer = self.run(&USED, &keys, &[name.as_bytes(), &at.as_micros().to_be_bytes()]).await?;
        let value: Option<Vec<u8>> = FromRedisValue::from_redis_value(answer).map_err(internal)?;
        value.map(|value| self.open(id, &value)).transpose()
    }

    async fn due(&self, before: Timestamp, limit: usize) -> Result<Vec<Arc<Session>>, StoreError> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(self.key("tdue")).arg("-inf").arg(format!("({}", before.as_micros()));
        command.arg("LIMIT").arg(0).arg(limit);
        let members: Vec<String> = self.ask(&command).await?;
        let ids: Vec<SessionId> = members.iter().filter_map(|member| member.parse().ok()).collect();
        let mut due = Vec::with_capacity(ids.len());
        for page in ids.chunks(PAGE) {
            let (found, lost) = self.read(page).await?;
            due.extend(found);
            self.remove(&self.key("tdue"), &texts(&lost)).await;
        }
        Ok(due)
    }

    async fn list(&self, listing: &Listing) -> Result<Vec<Arc<Session>>, StoreError> {
        let key = match &listing.subject {
            Some(subject) => self.subject_key(&listing.realm, Some(subject))?,
            None => self.realm_key(&listing.realm),
        };
        let (mut listed, mut before) = (Vec::new(), listing.before);
        loop {
            let mut command = redis::cmd("ZREVRANGEBYLEX");
            command.arg(&key).arg(before.map_or_else(|| "+".to_owned(), |id| format!("({id}")));
            command.arg("-").arg("LIMIT").arg(0).arg(PAGE);
            let members: Vec<String> = self.ask(&command).await?;
            let ids: Vec<SessionId> = members.iter().filter_map(|member| member.parse().ok()).collect();
            before = ids.last().copied();
            let (found, lost) = self.read(&ids).await?;
            // What Redis has lost takes no seat.
            self.remove(&key, &texts(&lost)).await;
            listed.extend(found.into_iter().filter(|session| listing.wants(session)));
            if before.is_none() || listed.len() >= listing.limit {
                listed.truncate(listing.limit);
                return Ok(listed);
            }
        }
    }

    async fn answer(&self, key: &Digest, now: Timestamp) -> Result<Option<KeptAnswer>, StoreError> {
        let mut command = redis::cmd("GET");
        command.arg(self.key(format_args!("ta:{key}")));
        let kept: Option<Vec<u8>> = self.ask(&command).await?;
        let kept = kept.map(|kept| read_answer(&kept).ok_or_else(|| internal(Unexpected))).transpose()?;
        Ok(kept.filter(|kept| kept.expires > now))
    }

    /// Redis forgets values by itself; this forgets that there were any.
    async fn sweep(&self, now: Timestamp) {
        let graves = self.key("tgraves");
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(&graves).arg("-inf").arg(now.as_micros()).arg("LIMIT").arg(0).arg(FORGOTTEN);
        let Ok(names) = self.ask::<Vec<String>>(&command).await else { return };
        let mut by_realm: HashMap<RealmName, Vec<&str>> = HashMap::new();
        for (id, realm) in names.iter().filter_map(|name| name.split_once(' ')) {
            if let Ok(realm) = realm.parse() {
                by_realm.entry(realm).or_default().push(id);
            }
        }
        for (realm, ids) in by_realm {
            self.remove(&self.realm_key(&realm), &ids).await;
            self.remove(&self.key("tdue"), &ids).await;
        }
        self.remove(&graves, &names).await;
    }

    fn status(&self) -> StoreStatus {
        StoreStatus { kind: "redis", available: self.link.is_closed(), held: 0, bytes: 0 }
    }
}

impl Drop for RedisTransients {
    fn drop(&mut self) {
        self.task.abort();
    }
}
