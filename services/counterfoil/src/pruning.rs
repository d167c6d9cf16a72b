//! Retention: what is sealed and past its realm's time is archived in an evidence bundle, recorded, and then dropped; by `counterfoil audit prune`, or by a
//! node in the background. What is left in the log proves as much as before.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api_audit::PublishedKey;
use audit_log::{Claimed, DeliveryCursors, LogStore};
use clap::Args;
use evidence::{Order, Selection, ZipSink, write_bundle};
use retention::{Finished, drop_parts, survey};
use serde::Serialize;
use session_model::{Action, LeafIndex, Outcome, RealmName, Timestamp};
use session_service::{Caller, Record, SessionService};
use telemetry::Gauges;
use tokio::sync::watch;
use tokio::time::interval;
use tracing::{error, info};

use crate::at_hand::AtHand;
use crate::config::{Config, ConfigError, OneLog};
use crate::evidence_commands::Vault;
use crate::key_commands::at_the_command_line;
use crate::output::{Output, write};
use crate::serve::{Core, open_core};

type Failure = Box<dyn Error + Send + Sync>;

/// Sealed parts that one bundle archives, and one entry records, at most about.
const PARTS: u64 = 200_000;

/// What `audit prune` is told.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only what is this realm's; every realm that has a `retention_days` if absent
    #[arg(long)]
    realm: Option<RealmName>,
    /// Only says what would be dropped
    #[arg(long)]
    dry_run: bool,
}

/// What was dropped, or would be.
#[derive(Debug, Serialize)]
pub(crate) struct Pruned {
    realm: RealmName,
    before: Timestamp,
    first: u64,
    end: u64,
    parts: u64,
    /// Old enough, and kept for a legal hold or an open session.
    kept: u64,
    /// The bundle that has them.
    bundle: Option<PathBuf>,
    /// SHA-256 of it.
    sha256: Option<String>,
}

/// Archives and drops.
pub(crate) struct Pruner {
    log: Arc<dyn LogStore>,
    service: Arc<SessionService>,
    vault: Vault,
    keys: watch::Receiver<Vec<PublishedKey>>,
    config: Config,
    /// The realms that do not keep everything for ever, and for how many days they do.
    realms: Vec<(RealmName, u32)>,
}

impl Pruner {
    /// What prunes the realms that say for how long they keep what is sealed.
    ///
    /// # Errors
    /// If a realm is not as its profile demands.
    pub(crate) fn new(
        config: &Config,
        log: &Arc<dyn LogStore>,
        service: &Arc<SessionService>,
        vault: Vault,
        keys: watch::Receiver<Vec<PublishedKey>>,
    ) -> Result<Self, ConfigError> {
        let bounded = config.policies()?.into_iter();
        let realms = bounded.filter_map(|(realm, _, policy)| Some((realm, policy.retention_days?))).collect();
        Ok(Self { log: Arc::clone(log), service: Arc::clone(service), vault, keys, config: config.clone(), realms })
    }

    /// Archives, records and drops everything that is past its time at `now`. Cut short, it is begun anew by the next run: what was archived and not
    /// dropped is archived again.
    ///
    /// # Errors
    /// Whatever made it fail; nothing is dropped that is not archived and recorded.
    pub(crate) async fn run(
        &self,
        now: Timestamp,
        only: Option<&RealmName>,
        caller: impl Fn(&RealmName) -> Caller,
    ) -> Result<Vec<Pruned>, Failure> {
        let folder = archive_dir(&self.config)?;
        // What the run itself appends is none of its business, whatever the clock says.
        let size = self.log.head().await?.size();
        let mut done = Vec::new();
        for (realm, days) in self.realms.iter().filter(|(realm, _)| only.is_none_or(|only| only == realm)) {
            while let Some(finished) = survey(&*self.log, realm, before(now, *days), PARTS).await? {
                if finished.first.0 >= size.0 {
                    break;
                }
                let (bundle, sha256) = self.archive(&finished, folder, now).await?;
                self.record(&finished, &sha256, &caller(realm)).await?;
                let parts = drop_parts(&*self.log, &finished).await?;
                info!(%realm, parts, bundle = %bundle.display(), "sealed parts were archived and dropped");
                done.push(Pruned { parts, bundle: Some(bundle), sha256: Some(sha256), ..told(&finished) });
                // Everything that is left came under a hold since: the next run sees to it.
                if parts == 0 {
                    break;
                }
            }
        }
        Ok(done)
    }

    /// What a run would drop first in each realm.
    async fn survey(&self, now: Timestamp, only: Option<&RealmName>) -> Result<Vec<Pruned>, Failure> {
        let mut found = Vec::new();
        for (realm, days) in self.realms.iter().filter(|(realm, _)| only.is_none_or(|only| only == realm)) {
            found.extend(survey(&*self.log, realm, before(now, *days), u64::MAX).await?.as_ref().map(told));
        }
        Ok(found)
    }

    /// A bundle of exactly the range, on disk before this returns; answers where, and its SHA-256.
    async fn archive(&self, finished: &Finished, folder: &Path, now: Timestamp) -> Result<(PathBuf, String), Failure> {
        fs::create_dir_all(folder)?;
        let name = format!("{}-{:020}-{:020}-{}", finished.realm, finished.first.0, finished.end.0, now.as_micros());
        let (part, whole) = (folder.join(format!("{name}.part")), folder.join(format!("{name}.zip")));
        let file = File::create(&part)?;
        let order = Order {
            selection: Selection {
                realm: Some(finished.realm.clone()),
                within: Some(finished.first.0..finished.end.0),
                ..Selection::default()
            },
            reveal: None,
            keep: Vec::new(),
            stamps: crate::anchors::stamps(&self.config),
            made_at: now,
            made_by: "retention".into(),
            vkeys: self.keys.borrow().iter().map(|key| key.vkey.clone()).collect(),
        };
        let mut sink = ZipSink::new(file.try_clone()?);
        write_bundle(&*self.log, &self.vault, order, &mut sink).await?;
        file.sync_all()?;
        fs::rename(&part, &whole)?;
        File::open(folder)?.sync_all()?;
        let path = whole.clone();
        let sha256 = tokio::task::spawn_blocking(move || digest(&path)).await??;
        Ok((whole, sha256))
    }

    async fn record(&self, finished: &Finished, sha256: &str, caller: &Caller) -> Result<(), Failure> {
        let detail = [
            ("before", finished.before.to_string()),
            ("first", finished.first.to_string()),
            ("end", finished.end.to_string()),
            ("parts", finished.parts.to_string()),
            ("bundle", sha256.to_owned()),
        ];
        let record = Record {
            action: Action::RetentionPruned,
            outcome: Outcome::Success,
            detail: detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            facts: Default::default(),
            credential: None,
        };
        self.service.record(caller, record).await?;
        Ok(())
    }
}

fn told(finished: &Finished) -> Pruned {
    Pruned {
        realm: finished.realm.clone(),
        before: finished.before,
        first: finished.first.0,
        end: finished.end.0,
        parts: finished.parts,
        kept: finished.kept,
        bundle: None,
        sha256: None,
    }
}

fn before(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_micros(now.as_micros().saturating_sub(i64::from(days) * 86_400_000_000))
}

fn archive_dir(config: &Config) -> Result<&Path, ConfigError> {
    config.retention.archive_dir.as_deref().ok_or_else(|| ConfigError::Value {
        key: "retention.archive_dir".into(),
        why: "nothing is dropped that is not archived first: say where".into(),
    })
}

/// SHA-256 of a file, hexadecimal.
pub(crate) fn digest(path: &Path) -> io::Result<String> {
    let mut hash = openssl::sha::Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            None | Some([]) => break,
            Some(bytes) => hash.update(bytes),
        }
    }
    Ok(hash.finish().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Prunes, beside a running service or without one.
///
/// # Errors
/// Whatever made it fail.
pub(crate) async fn run_prune(config: &Config, args: PruneArgs, output: Output) -> Result<(), Failure> {
    let only = args.realm.as_ref();
    if let Some(realm) = only.filter(|realm| !config.realms.contains_key(realm.as_str())) {
        return Err(format!("the configuration has no realm {realm}").into());
    }
    let logs = only.map_or_else(|| config.logs(), |realm| vec![config.log_of(realm)]);
    let mut pruned = Vec::new();
    for OneLog { config, .. } in &logs {
        let (pruner, at_hand) = at_hand(open_core(config).await?, config)?;
        let now = at_hand.service().now();
        let of_it = if args.dry_run {
            pruner.survey(now, only).await
        } else {
            pruner.run(now, only, at_the_command_line).await
        };
        at_hand.close().await;
        pruned.extend(of_it?);
    }
    if pruned.is_empty() {
        writeln!(io::stderr(), "nothing is past its time")?;
    }
    Ok(write(output, &pruned)?)
}

fn at_hand(core: Core, config: &Config) -> Result<(Pruner, AtHand), Failure> {
    let (_, keys) = watch::channel(core.keys.published());
    let (log, keyring) = (Arc::clone(&core.log), core.keys.keyring.clone());
    let vault = Vault { log: Arc::clone(&log), keyring };
    let at_hand = AtHand::start(core, config)?;
    Ok((Pruner::new(config, &log, at_hand.service(), vault, keys)?, at_hand))
}

/// How pruning in the background is doing.
#[derive(Debug, Default)]
pub(crate) struct PruneStatus {
    parts: AtomicU64,
    failures: AtomicU64,
    ended: AtomicU64,
}

impl PruneStatus {
    /// Shows it as gauges.
    pub(crate) fn show(self: &Arc<Self>, gauges: &Gauges<'_>) {
        let gauge = |name, read: fn(&Self) -> &AtomicU64| {
            let status = Arc::clone(self);
            gauges.gauge(name, "", move || read(&status).load(Ordering::Relaxed) as f64);
        };
        gauge("retention_dropped_parts", |status| &status.parts);
        gauge("retention_failed_runs", |status| &status.failures);
        gauge("retention_ended_timestamp_seconds", |status| &status.ended);
    }
}

/// As what the lease stands beside those of sinks: not a name that a sink can have.
const LEASE: &str = "\u{2}retention";
/// For how long a node keeps others from pruning: a bundle should be written in that time. If it is not, another writes one of the same, which
/// does no harm.
const LEASED: Duration = Duration::from_secs(3_600);

/// Checks that what pruning in the background needs is configured.
///
/// # Errors
/// [`ConfigError`] if it is enabled, and has no folder for what it archives.
pub(crate) fn check(config: &Config) -> Result<(), ConfigError> {
    if config.retention.enabled { archive_dir(config).map(drop) } else { Ok(()) }
}

/// Prunes every `retention.interval_s`, one node of all that share the log at a time.
pub(crate) async fn prune_now_and_then(pruner: Pruner, cursors: Arc<dyn DeliveryCursors>, status: Arc<PruneStatus>) {
    let holder = pruner.config.node.clone();
    let mut ticks = interval(Duration::from_secs(pruner.config.retention.interval_s.max(1)));
    loop {
        ticks.tick().await;
        let pruned = async {
            match cursors.claim(LEASE, &holder, LeafIndex(0), LEASED).await? {
                Claimed::Held => return Ok(Vec::new()),
                Claimed::Yes(_) => {}
            }
            let service = Arc::clone(&pruner.service);
            let pruned = pruner.run(service.now(), None, |realm| service.node_caller(realm)).await;
            cursors.release(LEASE, &holder).await?;
            pruned
        };
        let pruned: Result<Vec<Pruned>, Failure> = pruned.await;
        match pruned {
            Ok(pruned) => {
                status.parts.fetch_add(pruned.iter().map(|pruned| pruned.parts).sum(), Ordering::Relaxed);
                let now = u64::try_from(pruner.service.now().as_micros() / 1_000_000).unwrap_or_default();
                status.ended.store(now, Ordering::Relaxed);
            }
            Err(failure) => {
                status.failures.fetch_add(1, Ordering::Relaxed);
                error!(failure = &*failure as &dyn Error, "what is past its time could not be archived and dropped");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use session_model::{Attributes, EndReason, Kind};
    use session_service::NewSession;

    use super::*;
    use crate::archives::OpenArgs;

    fn day(now: Timestamp, days: i64) -> Timestamp {
        Timestamp::from_micros(now.as_micros() + days * 86_400_000_000)
    }

    fn configured(folder: &Path) -> Config {
        let text = format!(
            "data_dir = '{0}/data'\n[retention]\narchive_dir = '{0}/archive'\n[realms.default]\nretention_days = 90\n[realms.kept]\n",
            folder.display()
        );
        let file = folder.join("counterfoil.toml");
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), [], []).unwrap()
    }

    async fn begun(service: &SessionService, realm: &str, subject: &str) -> session_model::SessionId {
        let new = NewSession {
            subject: Some(subject.into()),
            kind: Kind::Web,
            attributes: Attributes::empty(),
            authentication: None,
            client: None,
            idle_timeout: None,
            absolute_timeout: None,
        };
        service.create(&at_the_command_line(&realm.parse().unwrap()), new, None).await.unwrap().session.id
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_past_its_time_is_archived_recorded_and_dropped_and_still_proved() {
        let folder = tempfile::tempdir().unwrap();
        let config = configured(folder.path());
        let core = open_core(&config).await.unwrap();
        let log = Arc::clone(&core.log);
        let key = core.keys.known[0].vkey.clone();
        let (pruner, at_hand) = at_hand(core, &config).unwrap();
        let service = Arc::clone(at_hand.service());
        let caller = |realm: &str| at_the_command_line(&realm.parse().unwrap());
        for number in 0..20 {
            for realm in ["default", "kept"] {
                let id = begun(&service, realm, &format!("s{number}")).await;
                service.end(&caller(realm), id, EndReason::Requested("logout".into())).await.unwrap();
            }
        }
        let open = begun(&service, "default", "open").await;
        let held = begun(&service, "default", "held").await;
        service.end(&caller("default"), held, EndReason::Requested("logout".into())).await.unwrap();
        service.hold_subject(&caller("default"), "held", true, Some("case 7".into())).await.unwrap();
        let now = service.now();

        assert!(pruner.run(day(now, 89), None, at_the_command_line).await.unwrap().is_empty(), "not yet");
        assert!(!folder.path().join("archive").exists());
        let dry = pruner.survey(day(now, 90), None).await.unwrap();
        let pruned = pruner.run(day(now, 90), None, at_the_command_line).await.unwrap();
        assert_eq!((pruned.len(), pruned[0].parts, dry[0].parts), (1, 40, 40), "{pruned:?}");
        assert!(pruned[0].kept >= 4, "an open session, a held subject: {pruned:?}");
        assert!(pruner.run(day(now, 90), None, at_the_command_line).await.unwrap().is_empty(), "it is done");

        // What stays: all of the other realm's, the open session's, the held subject's.
        let mut left = std::collections::BTreeMap::<String, u64>::new();
        for batch in log.batches(LeafIndex(0), 10_000).await.unwrap() {
            for (leaf, sealed) in batch.leaves.iter().zip(&batch.sealed) {
                let leaf = session_model::Leaf::decode(leaf).unwrap();
                let whose = match leaf.session_id {
                    Some(id) if id == open => "open".to_owned(),
                    Some(id) if id == held => "held".to_owned(),
                    _ => leaf.realm.to_string(),
                };
                *left.entry(whose).or_default() += u64::from(sealed.is_some());
            }
        }
        assert_eq!((left["kept"], left["open"], left["held"]), (40, 1, 2), "{left:?}");

        // The archive proves itself, and is the one that the entry names. So does the log, and its verifier says what is gone and why.
        let bundle = pruned[0].bundle.clone().unwrap();
        assert_eq!(digest(&bundle).unwrap(), pruned[0].sha256.clone().unwrap());
        let verified = |what: &Path| {
            let args = counterfoil_verify::VerifyArgs {
                what: what.display().to_string(),
                key: Some(key.clone()),
                key_file: None,
                leaf_hash: None,
                leaf: None,
                saved: Vec::new(),
                tsa_ca: None,
                api_key_file: None,
                report: counterfoil_verify::ReportFormat::Text,
                threads: Some(1),
            };
            counterfoil_verify::verify_evidence(&args).unwrap()
        };
        let report = verified(&bundle);
        assert!(report.proved && report.pruned.is_none() && report.closed >= 40, "{report}");
        let out = folder.path().join("after.zip");
        let order = Order {
            selection: Selection::default(),
            reveal: None,
            keep: Vec::new(),
            stamps: Vec::new(),
            made_at: now,
            made_by: "test".into(),
            vkeys: Vec::new(),
        };
        let mut sink = ZipSink::new(File::create(&out).unwrap());
        write_bundle(&*log, &pruner.vault, order.clone(), &mut sink).await.unwrap();
        let report = verified(&out);
        let gone = report.pruned.clone().unwrap();
        assert!(report.proved, "{report}");
        assert_eq!((gone.entries, gone.unexplained, gone.by.len()), (40, 0, 1), "{report}");
        assert_eq!(Some(&gone.by[0].bundle), pruned[0].sha256.as_ref());

        // What was dropped can be opened again, for a purpose, which is an entry; what was erased since cannot.
        let mut lines = Vec::new();
        crate::archives::run_open(&config, asked(&bundle, "case-117"), &mut lines).await.unwrap();
        let lines: Vec<Value> =
            String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 40);
        assert!(lines.iter().all(|line| line["personal"]["state"] == "open"), "{lines:?}");
        assert!(lines.is_sorted_by_key(|line| line["index"].as_u64()));
        assert_eq!(lines[0]["personal"]["event"]["created"]["subject"], "s0");
        let size = log.head().await.unwrap().size().0;
        let newest = log.entries(&[LeafIndex(size - 1)]).await.unwrap().remove(0).unwrap();
        let newest = session_model::Leaf::decode(&newest.leaf).unwrap();
        assert_eq!((newest.action, newest.detail["purpose"].as_str()), (Action::AuditRead, "case-117"));
        assert_eq!(newest.detail["bundle"], digest(&bundle).unwrap());
        service.erase_subject(&caller("default"), "s0", None, async |_| Ok(())).await.unwrap();
        let mut lines = Vec::new();
        crate::archives::run_open(&config, asked(&bundle, "case-117"), &mut lines).await.unwrap();
        let text = String::from_utf8(lines).unwrap();
        assert_eq!((text.matches("\"erased\"").count(), text.matches("\"open\"").count()), (2, 38), "{text}");
        assert!(!text.contains("\"s0\""), "{text}");
        // A part of another entry is not what the leaf commits to.
        let altered = folder.path().join("altered.zip");
        swapped(&bundle, &altered);
        let mut lines = Vec::new();
        let refused = crate::archives::run_open(&config, asked(&altered, "case-117"), &mut lines).await.unwrap_err();
        assert!(refused.to_string().contains("2 parts do not open"), "{refused}");
        assert_eq!(String::from_utf8(lines).unwrap().matches("\"broken\"").count(), 2);

        // Dropped behind the back of retention: every proof holds, and the report has what no entry explains.
        let batch = log.sealed_batches(LeafIndex(0), 1).await.unwrap().remove(0);
        let behind = batch.sealed.iter().flatten().count() as u64;
        let none = vec![None; batch.sealed.len()];
        assert!(log.prune(&audit_log::Prune { first: batch.first, was: batch.sealed, kept: none }).await.unwrap());
        let again = folder.path().join("behind.zip");
        let mut sink = ZipSink::new(File::create(&again).unwrap());
        write_bundle(&*log, &pruner.vault, order, &mut sink).await.unwrap();
        let report = verified(&again);
        assert_eq!(report.pruned.unwrap().unexplained, behind);
        at_hand.close().await;
    }

    fn asked(archive: &Path, purpose: &str) -> OpenArgs {
        let (realm, purpose) = ("default".parse().unwrap(), purpose.parse().unwrap());
        OpenArgs { archive: archive.to_owned(), purpose, realm, session: None }
    }

    /// The same archive with the sealed parts of its last two entries changed for each other.
    fn swapped(bundle: &Path, altered: &Path) {
        let mut from = zip::ZipArchive::new(File::open(bundle).unwrap()).unwrap();
        let mut to = zip::ZipWriter::new(File::create(altered).unwrap());
        for at in 0..from.len() {
            let mut file = from.by_index(at).unwrap();
            let name = file.name().unwrap().into_owned();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            if name.starts_with("sealed/") {
                let text = String::from_utf8(bytes).unwrap();
                let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                let last = lines.len() - 1;
                let one = lines[last]["sealed"].take();
                lines[last]["sealed"] = lines[last - 1]["sealed"].take();
                lines[last - 1]["sealed"] = one;
                bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
            }
            to.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            to.write_all(&bytes).unwrap();
        }
        to.finish().unwrap();
    }

    #[test]
    fn nothing_is_dropped_without_a_place_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = configured(folder.path());
        config.retention.enabled = true;
        assert!(check(&config).is_ok());
        config.retention.archive_dir = None;
        assert!(check(&config).unwrap_err().to_string().contains("retention.archive_dir"));
    }
}
