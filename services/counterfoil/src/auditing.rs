//! What auditors' interfaces are given of the service: the recorder of readings, the custodian of subjects, the projection that
//! searches use, and the ledger of refused requests.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api_audit::{Custodian, ErasureDocument, HoldDocument, ReadRecorder, SubjectReceipt};
use api_http::{Problem, RefusedRequest};
use async_trait::async_trait;
use audit_log::LogStore;
use audit_search::{Archive, SearchError};
use parking_lot::Mutex;
use session_model::{Action, Actor, Detail, KeyId, Outcome, Protocol, RealmName, Session, Timestamp};
use session_service::{Caller, Idempotency, Record, ServiceError, SessionService, Sessions, Unavailable};
use telemetry::Gauges;
use tokio::time::interval;
use tracing::{error, warn};

/// Records every reading of the log.
pub(crate) struct Recorder(pub(crate) Arc<SessionService>);

#[async_trait]
impl ReadRecorder for Recorder {
    async fn record(&self, caller: &Caller, detail: Detail, purpose: Option<&str>) -> Result<(), Problem> {
        let record = Record {
            action: Action::AuditRead,
            outcome: Outcome::Success,
            detail,
            facts: purpose.map(|purpose| ("purpose".to_owned(), purpose.to_owned())).into_iter().collect(),
            credential: None,
        };
        self.0.record(caller, record).await.map(drop).map_err(Problem::from)
    }
}

/// Erases and holds subjects.
pub(crate) struct Keeper {
    pub(crate) service: Arc<Sessions>,
    pub(crate) archive: Archive,
    pub(crate) origin: Arc<str>,
}

#[async_trait]
impl Custodian for Keeper {
    async fn erase(
        &self,
        caller: &Caller,
        subject: &str,
        idempotency: Option<Idempotency>,
    ) -> Result<ErasureDocument, Problem> {
        // While the key still exists: afterwards nobody knows which addresses its entries named.
        let forget = async |key| self.archive.forget_addresses(&caller.realm, key).await.map_err(not_forgotten);
        let erased = match self.service.erase_subject(caller, subject, idempotency, forget).await {
            Ok(erased) => erased,
            Err(refused @ (ServiceError::LegalHold | ServiceError::NothingHeld)) => {
                let why = if matches!(refused, ServiceError::LegalHold) { "legal_hold" } else { "nothing_held" };
                self.service.record(caller, not_erased(why)).await?;
                return Err(refused.into());
            }
            Err(failure) => return Err(failure.into()),
        };
        Ok(ErasureDocument {
            subject_key: erased.key.map(KeyId::uuid),
            sessions_ended: erased.ended,
            keys_destroyed: erased.keys,
            receipt: SubjectReceipt::new(&self.origin, &erased.place),
        })
    }

    async fn hold(
        &self,
        caller: &Caller,
        subject: &str,
        held: bool,
        reason: Option<String>,
    ) -> Result<HoldDocument, Problem> {
        let (key, place) = self.service.hold_subject(caller, subject, held, reason).await?;
        Ok(HoldDocument { subject_key: key.uuid(), held, receipt: SubjectReceipt::new(&self.origin, &place) })
    }

    async fn beside_the_log(&self, realm: &RealmName, subject: &str) -> Result<Vec<Arc<Session>>, Problem> {
        Ok(self.service.beside_the_log(realm, subject).await?)
    }
}

/// The entry about an erasure that was refused. Says nothing of whom it was to concern.
fn not_erased(why: &str) -> Record {
    Record {
        action: Action::SubjectErased,
        outcome: Outcome::Refused,
        detail: [("reason".to_owned(), why.to_owned())].into(),
        facts: Default::default(),
        credential: None,
    }
}

fn not_forgotten(failure: SearchError) -> ServiceError {
    error!(failure = &failure as &dyn std::error::Error, "the addresses of a subject cannot be forgotten");
    match failure {
        SearchError::Read(_) => ServiceError::Unavailable(Unavailable::LogRead),
        SearchError::Seal(_) | SearchError::Postings => ServiceError::Internal("the postings cannot be changed"),
    }
}

/// How often what was appended is put into the postings. A search does not wait for it: it has the rest done at once.
const PROJECT: Duration = Duration::from_millis(750);

/// Keeps the postings close behind the log, so that no search finds much to do.
pub(crate) async fn project(archive: Archive, log: Arc<dyn LogStore>) {
    let mut ticks = interval(PROJECT);
    loop {
        ticks.tick().await;
        let caught_up = async {
            let size = log.head().await?.size();
            archive.projector().catch_up(size).await
        };
        if let Err(failure) = caught_up.await {
            warn!(failure = &failure as &dyn std::error::Error, "the postings cannot follow the log");
        }
    }
}

/// Shows how far the postings have come, as a gauge.
pub(crate) fn show(archive: &Archive, gauges: &Gauges<'_>) {
    let projector = Arc::clone(archive.projector());
    gauges.gauge("search_entries_projected", "", move || projector.status().size.0 as f64);
}

/// How often refusals become entries: one for each kind that there was, however many requests it stands for.
const GATHER: Duration = Duration::from_secs(5);
/// Kinds of refusal told apart within that time. Beyond it the rest are one kind: a flood must not fill the log.
const KINDS: usize = 256;
/// Addresses kept for each kind.
const ADDRESSES: usize = 16;

/// Who was refused what, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RefusalKind {
    realm: RealmName,
    /// Whose credential it was, if it is known.
    actor: Option<Actor>,
    reason: &'static str,
    route: String,
}

#[derive(Debug)]
struct Refusals {
    count: u64,
    first: Timestamp,
    last: Timestamp,
    addresses: Vec<IpAddr>,
}

/// Gathers refused requests, and records them: guarantee 12.
pub(crate) struct RefusalLedger {
    service: Arc<SessionService>,
    /// Where refusals stand that belong to no realm: nobody knows whose a made-up key is.
    house: RealmName,
    gathered: Mutex<HashMap<RefusalKind, Refusals>>,
}

impl RefusalLedger {
    pub(crate) fn new(service: Arc<SessionService>, house: RealmName) -> Self {
        Self { service, house, gathered: Mutex::default() }
    }

    /// Notes a refusal. Touches memory only: who is refused costs the log nothing.
    pub(crate) fn note(&self, refused: &RefusedRequest<'_>) {
        let now = self.service.now();
        let kind = RefusalKind {
            realm: refused.holder.as_ref().map_or_else(|| self.house.clone(), |(realm, _)| (*realm).clone()),
            actor: refused.holder.as_ref().map(|(_, actor)| actor.clone()),
            reason: refused.reason,
            route: refused.route.to_owned(),
        };
        let mut gathered = self.gathered.lock();
        let full = gathered.len() >= KINDS && !gathered.contains_key(&kind);
        let kind = if full {
            RefusalKind { realm: self.house.clone(), actor: None, reason: "overflow", route: String::new() }
        } else {
            kind
        };
        let all = match gathered.entry(kind) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Refusals { count: 0, first: now, last: now, addresses: Vec::new() }),
        };
        all.count += 1;
        all.last = now;
        if let Some(origin) = refused.origin
            && all.addresses.len() < ADDRESSES
            && !all.addresses.contains(&origin)
        {
            all.addresses.push(origin);
        }
    }

    /// Makes entries of what has gathered. What cannot be recorded is kept for the next time.
    pub(crate) async fn flush(&self) {
        let gathered: Vec<_> = self.gathered.lock().drain().collect();
        for (kind, refusals) in gathered {
            if let Err(failure) = self.service.record(&self.caller(&kind), record(&kind, &refusals)).await {
                warn!(%failure, "refused requests cannot be recorded yet");
                self.put_back(kind, refusals);
            }
        }
    }

    fn put_back(&self, kind: RefusalKind, refusals: Refusals) {
        match self.gathered.lock().entry(kind) {
            Entry::Vacant(gone) => drop(gone.insert(refusals)),
            Entry::Occupied(mut newer) => {
                let newer = newer.get_mut();
                newer.count += refusals.count;
                newer.first = refusals.first;
            }
        }
    }

    fn caller(&self, kind: &RefusalKind) -> Caller {
        let node = self.service.node_caller(&kind.realm);
        match &kind.actor {
            Some(actor) => Caller { actor: actor.clone(), protocol: Protocol::Rest, ..node },
            None => node,
        }
    }
}

fn record(kind: &RefusalKind, refusals: &Refusals) -> Record {
    let detail = [
        ("reason", kind.reason.to_owned()),
        ("route", kind.route.clone()),
        ("count", refusals.count.to_string()),
        ("first", refusals.first.to_string()),
        ("last", refusals.last.to_string()),
    ];
    let addresses: Vec<String> = refusals.addresses.iter().map(ToString::to_string).collect();
    Record {
        action: Action::RequestRefused,
        outcome: Outcome::Refused,
        detail: detail.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        facts: [("addresses".to_owned(), addresses.join(" "))].into(),
        credential: None,
    }
}

/// Records refusals as they gather.
pub(crate) async fn gather(ledger: Arc<RefusalLedger>) {
    let mut ticks = interval(GATHER);
    loop {
        ticks.tick().await;
        ledger.flush().await;
    }
}
