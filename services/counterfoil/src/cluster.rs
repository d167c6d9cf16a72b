//! How nodes share state: the configuration, from its words to a transport, and what people are shown of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Subcommand;
use cluster::{
    Cluster, ClusterConfig, Commit, Heard, Host, Incarnation, LineId, Member, Page, Presence, Rejected, Standing,
    Transport,
};
use sealing::{ClusterKey, Ids, Keyring, sha256};
use serde::{Deserialize, Serialize};
use session_model::TreeSize;
use session_service::SessionService;
use telemetry::Gauges;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep};
use tracing::{info, warn};

use crate::config::{ClusterSection, Config, ConfigError, ShardName, TransportKind};
use crate::management::Clustered;
use crate::output::{Output, write};
use crate::shard::Shards;

type Failure = Box<dyn Error + Send + Sync>;

/// How often the key file is looked at.
const KEYS_AGAIN: Duration = Duration::from_secs(5);
/// How long a node may be without others before it says so, if it does not know how many there should be.
const LONELY: Duration = Duration::from_secs(10);

fn refused(key: &str, why: impl Into<String>) -> Failure {
    ConfigError::Value { key: key.into(), why: why.into() }.into()
}

/// The cluster's keys: those of the file, or the one derived from the key-encryption key, which every node of one log has anyway.
fn keys(section: &ClusterSection, keyring: &Keyring, origin: &str) -> Result<Vec<ClusterKey>, Failure> {
    let Some(path) = &section.keys_file else {
        return Ok(vec![ClusterKey::new(keyring.cluster_secret(), origin)?]);
    };
    let text = fs::read_to_string(path).map_err(|failure| format!("{}: {failure}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<ClusterKey> = lines
        .map(|line| {
            let secret = secret_of(line).ok_or_else(|| format!("{}: a key is 64 hex digits", path.display()))?;
            Ok(ClusterKey::new(&secret, origin)?)
        })
        .collect::<Result<_, Failure>>()?;
    if keys.is_empty() {
        Err(refused("cluster.keys_file", format!("{} holds no key", path.display())))
    } else {
        Ok(keys)
    }
}

fn secret_of(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    digits.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

fn shown(id: [u8; 4]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What tells this cluster from others on one medium: nothing that says which log it is.
fn name(origin: &str) -> String {
    format!("cf-{:.16}", sha256(origin.as_bytes()).to_string())
}

/// Opens the transport that the configuration names; `None` for none.
///
/// # Errors
/// If it cannot be, or lacks what the configuration requires of it.
async fn open(config: &Config, origin: &str, life: Incarnation) -> Result<Option<Arc<dyn Transport>>, Failure> {
    let transport = crate::backends::open_transport(config, &name(origin), life).await?;
    if let Some(transport) = &transport {
        let can = transport.capabilities();
        let lacking = [
            (config.cluster.require_encrypted_link && !can.encrypted_link, "cluster.require_encrypted_link"),
            (config.cluster.require_peer_certificates && !can.peer_authentication, "cluster.require_peer_certificates"),
        ];
        for (lacks, key) in lacking {
            if lacks {
                return Err(refused(key, format!("transport {}, as it is configured, does not have it", can.name)));
            }
        }
    }
    Ok(transport)
}

fn settings(config: &Config, node: String, life: Incarnation, keys: Vec<ClusterKey>) -> Result<ClusterConfig, Failure> {
    let (beat, lease) = (config.cluster.beat_ms, config.cluster.lease_ms);
    if beat == 0 || lease < beat.saturating_mul(3) {
        return Err(refused("cluster.lease_ms", "must be at least three times cluster.beat_ms, and that more than 0"));
    }
    Ok(ClusterConfig {
        node,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: life,
        keys,
        beat: Duration::from_millis(beat),
        lease: Duration::from_millis(lease),
        // Only a node that serves holds anything.
        copies: None,
    })
}

/// This node's part in a cluster, while the service runs.
pub(crate) struct Joined {
    cluster: Arc<Cluster>,
    tasks: Vec<JoinHandle<()>>,
}

/// Joins the cluster that the configuration names, for each log one, in the order of the logs; none if it names none.
///
/// The nodes of each log are a cluster, with keys of the log's own. Only the first has a transport of its own, which carries the frames of the others;
/// but for `postgres`, where each log's database is there anyway and tells of that log only.
///
/// # Errors
/// If it cannot be joined. That nobody else is there is no reason: they may come.
pub(crate) async fn join(config: &Config, shards: &Shards) -> Result<Vec<Joined>, Failure> {
    let life = Incarnation(Ids.secret()?.first_chunk().copied().ok_or("a secret is too short")?);
    let mut joined: Vec<Joined> = Vec::new();
    for shard in shards.each() {
        let own_medium = config.cluster.transport == TransportKind::Postgres;
        let carrier = joined.first().filter(|_| !own_medium);
        let transport = match carrier {
            Some(first) => first.cluster.line(line(&shard.origin)),
            None => match open(&shard.config, &shard.origin, life).await? {
                Some(transport) => transport,
                None => return Ok(Vec::new()),
            },
        };
        let keys = keys(&config.cluster, &shard.keyring, &shard.origin)?;
        let mut settings = settings(config, config.node.clone(), life, keys)?;
        settings.copies = (config.cluster.transport == TransportKind::Partner).then_some(config.cluster.partner.copies);
        let cluster = Cluster::start(transport, settings, shard.service.host())?;
        let mut tasks = Vec::new();
        if joined.is_empty() {
            // Who is missed by the first is missed by all: it is said once.
            tasks.push(tokio::spawn(watch(Arc::clone(&cluster), config.cluster.nodes)));
        }
        if config.cluster.keys_file.is_some() {
            let (section, keyring, origin) = (config.cluster.clone(), shard.keyring.clone(), shard.origin.to_string());
            tasks.push(tokio::spawn(follow_keys(Arc::clone(&cluster), section, keyring, origin)));
        }
        joined.push(Joined { cluster, tasks });
    }
    if let Some(first) = joined.first() {
        info!(transport = first.cluster.capabilities().name, "joined the cluster");
    }
    Ok(joined)
}

/// Tells the line of a log from others: nothing that says which log it is.
fn line(origin: &str) -> LineId {
    let digest = sha256(format!("line {origin}").as_bytes());
    LineId(digest.0.first_chunk().copied().unwrap_or_default())
}

impl Joined {
    /// The cluster.
    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// What the management port is shown of it.
    pub(crate) fn shown(&self, config: &Config) -> Clustered {
        let (node, expected) = (config.node.clone(), config.cluster.nodes);
        Clustered { cluster: Arc::clone(&self.cluster), node, expected }
    }

    /// Tells the others that this node goes.
    pub(crate) async fn leave(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.cluster.leave().await;
    }
}

/// Takes up the keys of the file when they change, so that they can be rotated while the nodes run.
async fn follow_keys(cluster: Arc<Cluster>, section: ClusterSection, keyring: Keyring, origin: String) {
    let mut ticks = interval(KEYS_AGAIN);
    loop {
        ticks.tick().await;
        match keys(&section, &keyring, &origin) {
            Ok(keys) if keys.iter().map(ClusterKey::id).ne(cluster.key_ids()) => match cluster.rekey(keys) {
                Ok(()) => {
                    let ids: Vec<String> = cluster.key_ids().into_iter().map(shown).collect();
                    info!(keys = ids.join(" "), "the cluster's keys have changed");
                }
                Err(failure) => warn!(%failure, "the cluster's new keys cannot be used: going on with those known"),
            },
            Ok(_) => {}
            Err(failure) => warn!(%failure, "the cluster's keys cannot be read: going on with those known"),
        }
    }
}

/// Says it loudly when this node is alone, or with too few.
async fn watch(cluster: Arc<Cluster>, expected: usize) {
    let mut ticks = interval(LONELY);
    ticks.tick().await;
    let mut said = None;
    loop {
        ticks.tick().await;
        let up = 1 + up(&cluster.members());
        let short = up < expected.max(2);
        if short && said != Some(up) {
            warn!(
                up,
                expected,
                state = cluster.describe().join("; "),
                "this node sees fewer nodes than there should be: `counterfoil cluster check` says why"
            );
        } else if !short && said.is_some() {
            info!(up, "the cluster is complete again");
        }
        said = short.then_some(up);
    }
}

fn up(members: &[Member]) -> usize {
    members.iter().filter(|member| member.presence == Presence::Up).count()
}

/// What people are shown of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClusterStatus {
    /// How frames travel.
    transport: String,
    /// This node.
    node: String,
    /// This life of it.
    incarnation: String,
    /// Whether the link itself is encrypted, beneath the sealed frames.
    encrypted_link: bool,
    /// Whether peers prove who they are by certificates.
    peer_certificates: bool,
    /// Ids of the cluster's keys; the first seals.
    keys: Vec<String>,
    /// Nodes that are up, this one included.
    up: usize,
    /// How many there should be; 0 if that is not known.
    expected: usize,
    /// The other nodes.
    members: Vec<MemberStatus>,
    frames: Frames,
    /// The transport's own words.
    state: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MemberStatus {
    node: String,
    /// `up`; `one_way`: heard, but it does not hear us; `silent`; `gone`.
    presence: String,
    program: String,
    incarnation: String,
    known_s: u64,
    /// Milliseconds since it was heard.
    heard_ms: u64,
    /// Entries that it had not applied when it last said so.
    behind: u64,
    /// Milliseconds since it had asked the log, when it last said so.
    log_age_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Frames {
    sent: u64,
    unsent: u64,
    received: u64,
    overrun: u64,
    rejected: BTreeMap<String, u64>,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl ClusterStatus {
    /// As this node sees it. `size` is how long it knows the log to be.
    pub(crate) fn of(cluster: &Cluster, node: &str, expected: usize, size: TreeSize) -> Self {
        let (can, traffic, now) = (cluster.capabilities(), cluster.traffic(), Instant::now());
        let members = cluster.members();
        let longest = members.iter().map(|member| member.size).fold(size, Ord::max);
        Self {
            transport: can.name.to_owned(),
            node: node.to_owned(),
            incarnation: cluster.incarnation().to_string(),
            encrypted_link: can.encrypted_link,
            peer_certificates: can.peer_authentication,
            keys: cluster.key_ids().into_iter().map(shown).collect(),
            up: 1 + up(&members),
            expected,
            members: members
                .into_iter()
                .map(|member| MemberStatus {
                    node: member.node,
                    presence: member.presence.name().to_owned(),
                    program: member.program,
                    incarnation: member.incarnation.to_string(),
                    known_s: now.duration_since(member.since).as_secs(),
                    heard_ms: millis(now.duration_since(member.heard)),
                    behind: longest.0.saturating_sub(member.reflects.0),
                    log_age_ms: member.log_age.map(millis),
                })
                .collect(),
            frames: Frames {
                sent: traffic.sent,
                unsent: traffic.unsent,
                received: traffic.received,
                overrun: traffic.overrun,
                rejected: traffic.rejected.iter().map(|(why, count)| (why.name().to_owned(), *count)).collect(),
            },
            state: cluster.describe(),
        }
    }
}

/// Shows the cluster as metrics.
pub(crate) fn show(cluster: &Arc<Cluster>, gauges: &Gauges<'_>) {
    let gauge = |name, read: fn(&Cluster) -> f64| {
        let cluster = Arc::clone(cluster);
        gauges.gauge(name, "", move || read(&cluster));
    };
    gauge("cluster_members_up", |cluster| 1.0 + up(&cluster.members()) as f64);
    gauge("cluster_frames_sent", |cluster| cluster.traffic().sent as f64);
    gauge("cluster_frames_unsent", |cluster| cluster.traffic().unsent as f64);
    gauge("cluster_frames_received", |cluster| cluster.traffic().received as f64);
    gauge("cluster_frames_overrun", |cluster| cluster.traffic().overrun as f64);
    let rejecting = Arc::clone(cluster);
    gauges.gauges("cluster_frames_rejected", "", "reason", move || {
        let rejected = rejecting.traffic().rejected.into_iter();
        rejected.map(|(why, count)| (why.name().to_owned(), count as f64)).collect()
    });
    let of_members = |name, unit, read: fn(&Member, TreeSize) -> f64| {
        let cluster = Arc::clone(cluster);
        gauges.gauges(name, unit, "node", move || {
            let members = cluster.members();
            let longest = members.iter().map(|member| member.size).max().unwrap_or(TreeSize(0));
            members.iter().map(|member| (member.node.clone(), read(member, longest))).collect()
        });
    };
    of_members("cluster_peer_silence", "s", |member, _| member.heard.elapsed().as_secs_f64());
    of_members("cluster_peer_entries_behind", "", |member, longest| longest.0.saturating_sub(member.reflects.0) as f64);
}

/// Shows this node's share of the sessions as metrics, where nodes share them out.
pub(crate) fn show_share(service: &Arc<SessionService>, gauges: &Gauges<'_>) {
    if service.share().is_none() {
        return;
    }
    let gauge = |name, read: fn((usize, bool)) -> f64| {
        let service = Arc::clone(service);
        gauges.gauge(name, "", move || service.share().map_or(0.0, read));
    };
    gauge("cluster_slots_held", |(slots, _)| slots as f64);
    gauge("cluster_share_filled", |(_, filled)| f64::from(u8::from(filled)));
}

/// The cluster, from outside.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Asks a running node how it sees the cluster
    Status {
        /// Its management address; the configuration's if absent
        #[arg(long)]
        address: Option<String>,
        /// The nodes of this log; those of the first if absent
        #[arg(long)]
        shard: Option<ShardName>,
    },
    /// Listens in as one more node for a while, and says who is there, or why nobody is (exit status 4 if alone)
    Check {
        /// Seconds to listen
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Prints a new key for `cluster.keys_file`
    NewKey,
}

/// Runs a command.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_cluster_command(
    config: &Config,
    command: ClusterCommand,
    output: Output,
) -> Result<ExitCode, Failure> {
    match command {
        ClusterCommand::Status { address, shard } => {
            let address = address.unwrap_or_else(|| config.management.listen.clone());
            status(&address, shard.as_ref(), output)?;
            Ok(ExitCode::SUCCESS)
        }
        ClusterCommand::Check { seconds } => check(config, Duration::from_secs(seconds), output).await,
        ClusterCommand::NewKey => {
            let key: String = Ids.secret()?.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(std::io::stdout(), "{key}")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn status(address: &str, shard: Option<&ShardName>, output: Output) -> Result<(), Failure> {
    let path = shard.map_or_else(|| "/cluster".to_owned(), |shard| format!("/cluster?shard={shard}"));
    let body = get(address, &path)?;
    let status: ClusterStatus = serde_json::from_str(&body).map_err(|_| format!("{address} answered: {body}"))?;
    if matches!(output, Output::Table) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "node {} over {}: {} up{}", status.node, status.transport, status.up, of(status.expected))?;
        write(output, &status.members)?;
        for line in &status.state {
            writeln!(out, "{line}")?;
        }
        return Ok(());
    }
    Ok(write(output, &status)?)
}

fn of(expected: usize) -> String {
    if expected > 0 { format!(" of {expected}") } else { String::new() }
}

/// Asks the management port, with nothing but a socket: this runs in images that have no other tool.
fn get(address: &str, path: &str) -> Result<String, Failure> {
    let limit = Some(Duration::from_secs(5));
    let mut stream = TcpStream::connect(address).map_err(|failure| format!("{address}: {failure}"))?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is none of HTTP")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.to_owned()),
        Some("404") => Err(format!("{address}: this node is in no such cluster").into()),
        _ => Err(format!("{address}: {}", head.lines().next().unwrap_or_default()).into()),
    }
}

/// One who only listens.
struct Listener;

#[async_trait]
impl Host for Listener {
    fn standing(&self) -> Standing {
        Standing { size: TreeSize(0), reflects: TreeSize(0), log_age: None }
    }
    async fn committed(&self, _commit: Commit) {}
    fn grown(&self, _size: TreeSize) {}
    fn heard(&self, _heard: Heard) {}
    fn missed(&self) {}
    async fn page(&self, _who: Incarnation, _from: u64, _bytes: usize) -> Option<Page> {
        None
    }
}

/// What a self-test found.
#[derive(Debug, Serialize)]
struct Finding {
    transport: &'static str,
    alone: bool,
    members: Vec<MemberStatus>,
    findings: Vec<String>,
    state: Vec<String>,
}

async fn check(config: &Config, listen: Duration, output: Output) -> Result<ExitCode, Failure> {
    let mut config = config.clone();
    // The node that runs has the address: who only listens takes any, and looks for that node too.
    listen_anywhere(&mut config);
    let keys_dir = config.keys_dir();
    let (keyring, origin) = crate::key_files::keyring_and_origin(&keys_dir)?;
    let life = Incarnation(Ids.secret()?.first_chunk().copied().ok_or("a secret is too short")?);
    let Some(transport) = open(&config, &origin, life).await? else {
        return Err("cluster.transport is none: there is nothing to check".into());
    };
    let keys = keys(&config.cluster, &keyring, &origin)?;
    let settings = settings(&config, format!("{}-check", config.node), life, keys)?;
    let cluster = Cluster::start(transport, settings, Arc::new(Listener))?;
    sleep(listen).await;
    let status = ClusterStatus::of(&cluster, &config.node, config.cluster.nodes, TreeSize(0));
    let findings = findings(&cluster, &config);
    cluster.leave().await;
    let found = Finding {
        transport: cluster.capabilities().name,
        alone: status.up < 2,
        members: status.members,
        findings,
        state: status.state,
    };
    let alone = found.alone;
    if matches!(output, Output::Table) {
        let mut out = std::io::stdout().lock();
        for line in found.state.iter().chain(&found.findings) {
            writeln!(out, "{line}")?;
        }
        write(output, &found.members)?;
    } else {
        write(output, &found)?;
    }
    Ok(if alone { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

fn listen_anywhere(config: &mut Config) {
    let unicast = &mut config.cluster.unicast;
    let own = std::mem::replace(&mut unicast.listen, vec!["0.0.0.0:0".into()]);
    let here = |address: String| address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
    unicast.peers.extend(own.into_iter().map(here));
}

/// In words, what a listener's counters mean.
fn findings(cluster: &Cluster, config: &Config) -> Vec<String> {
    let (traffic, members) = (cluster.traffic(), cluster.members());
    let mut found = Vec::new();
    let up = up(&members);
    if up > 0 {
        found.push(format!("{up} nodes hear us and are heard"));
    }
    for member in members.iter().filter(|member| member.presence == Presence::OneWay) {
        found.push(format!("{} is heard, but does not hear us: is the way there filtered?", member.node));
    }
    for (why, count) in traffic.rejected.iter().filter(|(_, count)| *count > 0) {
        let means = match why {
            Rejected::ForeignKey => "sealed with another key: another cluster, or a node with other key files",
            Rejected::Version => "of another format: a node of another version",
            Rejected::NotAuthentic => "altered or forged",
            Rejected::Replayed => "come twice",
            Rejected::Malformed => "no frames at all: something else uses this address",
            Rejected::Undecodable => "not to be read: a node of another version",
        };
        found.push(format!("{count} frames were {means}"));
    }
    if traffic.unsent > 0 {
        found.push(format!("{} of our own frames could not be sent", traffic.unsent));
    }
    if traffic.received == 0 && traffic.rejected.iter().all(|(_, count)| *count == 0) {
        found.push(format!("nothing was heard from anybody: {}", hint(config.cluster.transport)));
    }
    found
}

const fn hint(transport: TransportKind) -> &'static str {
    match transport {
        TransportKind::None => "there is no transport",
        TransportKind::Multicast => {
            "is another node running, on this group and port? Many networks, and nearly all clouds, carry no multicast"
        }
        TransportKind::Unicast | TransportKind::Partner => {
            "is another node running, and does cluster.unicast.peers name it? Is its port open?"
        }
        TransportKind::Redis => "is another node running, on this Redis, with the same key files?",
        TransportKind::Postgres => "is another node running, on this database, with the same key files?",
    }
}
