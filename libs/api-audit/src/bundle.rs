//! `GET /v1/audit/bundle`: an evidence bundle as a zip, streamed.

use std::io;
use std::sync::Arc;

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, ProblemDocument, answer, query};
use async_trait::async_trait;
use evidence::{ChunkTo, KeySource, Order, Purpose, Selection, StampFile, ZipSink, write_bundle};
use futures::{StreamExt, stream};
use session_model::{Detail, RealmName, SessionId, Timestamp, TreeSize};
use session_service::{ByRealm, Caller};
use tokio::sync::{Semaphore, mpsc};
use tracing::error;

use crate::entries::read_problem;
use crate::routes::{nothing_there, only_get, record};
use crate::{AuditApi, AuditedLog, LastCheck};

/// What bundles, and the result of the server's own checks, are made of.
#[derive(Clone)]
pub struct EvidenceApi {
    /// Lets auditors in, reads the log, records each reading.
    pub audit: AuditApi,
    /// Of the log that each realm lives in.
    pub logs: ByRealm<Arc<LogEvidence>>,
    /// Bundles that may be written at a time: each reads a good part of a log.
    pub room: Arc<Semaphore>,
}

impl EvidenceApi {
    /// Of the log that a realm lives in.
    pub fn of(&self, realm: &RealmName) -> &LogEvidence {
        self.logs.of(realm)
    }
}

/// What bundles of one log, and the result of the checks of it, are made of.
pub struct LogEvidence {
    /// Knows subjects and their keys.
    pub keys: Arc<dyn KeySource>,
    /// The checkpoints that have time stamps, the smallest tree first. Reads a folder, and so blocks.
    pub stamps: Arc<dyn Fn() -> Vec<StampFile> + Send + Sync>,
    /// The time of the service.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// The server's own checks of the log.
    pub last_check: Arc<dyn LastCheck>,
}

impl std::fmt::Debug for EvidenceApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EvidenceApi")
    }
}

/// Adds the routes of bundles and of the server's own checks.
pub fn configure_evidence(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/v1/audit/bundle")
                .route(web::get().to(get_evidence))
                .default_service(web::route().to(only_get)),
        )
        .service(
            web::resource("/v1/audit/verify")
                .route(web::get().to(crate::check::get_check))
                .default_service(web::route().to(only_get)),
        );
}

/// Chunks of a zip on their way to the client. One waits while one is sent: a slow client holds the writing up, and no memory.
struct ToClient(mpsc::Sender<io::Result<web::Bytes>>);

#[async_trait]
impl ChunkTo for ToClient {
    async fn send(&mut self, chunk: Vec<u8>) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone");
        self.0.send(Ok(web::Bytes::from(chunk))).await.map_err(gone)
    }
}

/// An evidence bundle of what the auditor's realm may see: a zip that people and the offline verifier read.
#[utoipa::path(
    get,
    path = "/v1/audit/bundle",
    tag = "Audit",
    operation_id = "getEvidenceBundle",
    security(("api_key" = [])),
    params(
        ("from" = Option<String>, Query, format = "date-time", description = "Entries not earlier than this"),
        ("to" = Option<String>, Query, format = "date-time", description = "Entries earlier than this"),
        ("session" = Option<String>, Query, format = "uuid", description = "Entries of this session"),
        ("subject" = Option<String>, Query, description = "Entries of the sessions of this subject"),
        ("reveal" = Option<bool>, Query, description = "Put in what opens the sealed parts; needs a purpose"),
        ("purpose" = Option<String>, Query, description = "Why they are opened, a case number say: 1 to 64 of letters, digits and . _ / -; stands in the log for ever"),
        ("keep" = Option<String>, Query, description = "Sizes of checkpoints that you keep, at most 16, with commas between: what proves them consistent is put in"),
    ),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/zip", description = "The bundle; cut short if the log fails on the way, and then not a zip"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable, or other bundles are being written"),
    )
)]
pub async fn get_evidence(api: web::Data<EvidenceApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let names = ["from", "to", "session", "subject", "reveal", "purpose", "keep"];
        let [from, to, session, subject, reveal, purpose, keep] = query(&request, names)?;
        let caller = api.audit.gate.admit(&request, Permission::ReadLog)?.caller;
        bundle(&api, &request, &caller, [from, to, session, subject, reveal, purpose, keep]).await
    };
    answer(&request, outcome.await)
}

/// A bundle, as it is downloaded, of what the parameters of `getEvidenceBundle` ask for, in their order. Recorded before anything
/// is read.
///
/// # Errors
/// A [`Problem`]: 400 names the parameter that is malformed, 503 if as many bundles are being written as may be.
pub async fn bundle(
    api: &EvidenceApi,
    request: &HttpRequest,
    caller: &Caller,
    [from, to, session, subject, reveal, purpose, keep]: [Option<String>; 7],
) -> Result<HttpResponse, Problem> {
    let asked = Asked::read(from, to, session, subject, reveal, purpose, keep);
    // A request that cannot be read is recorded as one.
    let detail = asked.as_ref().map_or_else(|_| Detail::new(), Asked::detail);
    record(&api.audit, request, caller, detail, None).await?;
    let (audited, evidence) = (api.audit.of(&caller.realm), api.of(&caller.realm));
    let mut order = asked?.order(caller, audited, evidence);
    let stamps = Arc::clone(&evidence.stamps);
    // A bundle without its time stamps proves less, and nothing wrong.
    order.stamps = web::block(move || stamps()).await.unwrap_or_default();
    let size = audited.log.head().await.map_err(read_problem)?.size();
    if size == TreeSize(0) {
        return Err(nothing_there("the log is empty"));
    }
    let room = Arc::clone(&api.room).try_acquire_owned();
    let room = room.map_err(|_| Problem::new(ProblemCode::Overloaded, "other bundles are being written"))?;
    let (sender, receiver) = mpsc::channel(1);
    let (log, keys) = (Arc::clone(&audited.log), Arc::clone(&evidence.keys));
    let writing = async move {
        let _room = room;
        let mut sink = ZipSink::new(ToClient(sender));
        let written = write_bundle(&*log, &*keys, order, &mut sink).await;
        written.err().map(|failure| {
            error!(failure = &failure as &dyn std::error::Error, "an evidence bundle was cut short");
            Err(io::Error::other(failure))
        })
    };
    // The answer drives the writing: when the client goes, so does it.
    let chunks = stream::unfold(receiver, |mut chunks| async move { chunks.recv().await.map(|chunk| (chunk, chunks)) });
    let body = stream::select(chunks, stream::once(writing).filter_map(|failed| async move { failed }));
    Ok(HttpResponse::Ok()
        .content_type("application/zip")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_DISPOSITION, format!("attachment; filename=\"evidence-{size}.zip\"")))
        .streaming(body))
}

/// What a request asks for.
#[derive(Debug)]
struct Asked {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    session: Option<SessionId>,
    subject: Option<String>,
    reveal: Option<Purpose>,
    keep: Vec<TreeSize>,
}

impl Asked {
    fn read(
        from: Option<String>,
        to: Option<String>,
        session: Option<String>,
        subject: Option<String>,
        reveal: Option<String>,
        purpose: Option<String>,
        keep: Option<String>,
    ) -> Result<Self, Problem> {
        let time = |name: &str, given: Option<String>| {
            let malformed = || Problem::malformed(&format!("#query/{name}"), "must be an RFC 3339 time");
            given.map(|text| Timestamp::parse(&text).ok_or_else(malformed)).transpose()
        };
        let session = session.map(|text| text.parse()).transpose();
        let reveal = match (reveal.as_deref(), purpose) {
            (None | Some("false"), None) => None,
            (Some("true"), Some(purpose)) => {
                let parsed = purpose.parse::<Purpose>();
                Some(parsed.map_err(|failure| Problem::malformed("#query/purpose", &failure.to_string()))?)
            }
            (Some("true"), None) => return Err(Problem::malformed("#query/purpose", "is required to reveal anything")),
            (None | Some("false"), Some(_)) => {
                return Err(Problem::malformed("#query/purpose", "is for reveal=true only"));
            }
            (Some(_), _) => return Err(Problem::malformed("#query/reveal", "must be true or false")),
        };
        let sizes = keep.as_deref().unwrap_or_default().split(',').filter(|size| !size.is_empty());
        let sizes: Option<Vec<TreeSize>> = sizes.map(|size| size.parse().ok().map(TreeSize)).collect();
        let keep = sizes.filter(|sizes| sizes.len() <= 16);
        Ok(Self {
            from: time("from", from)?,
            to: time("to", to)?,
            session: session.map_err(|_| Problem::malformed("#query/session", "must be a session id"))?,
            subject,
            reveal,
            keep: keep
                .ok_or_else(|| Problem::malformed("#query/keep", "must be at most 16 sizes with commas between"))?,
        })
    }

    /// What is recorded: never whose sessions were asked for.
    fn detail(&self) -> Detail {
        let mut detail = Detail::new();
        let mut fact = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                detail.insert(name.to_owned(), value);
            }
        };
        fact("from", self.from.map(|time| time.to_string()));
        fact("to", self.to.map(|time| time.to_string()));
        fact("session", self.session.map(|id| id.to_string()));
        fact("subject", self.subject.as_ref().map(|_| "one".to_owned()));
        fact("reveal", self.reveal.as_ref().map(|_| "true".to_owned()));
        fact("purpose", self.reveal.as_ref().map(ToString::to_string));
        detail
    }

    fn order(self, caller: &Caller, audited: &AuditedLog, evidence: &LogEvidence) -> Order {
        Order {
            selection: Selection {
                realm: Some(caller.realm.clone()),
                from: self.from,
                to: self.to,
                within: None,
                session: self.session,
                subject: self.subject.map(|subject| (vec![caller.realm.clone()], subject)),
            },
            reveal: self.reveal,
            keep: self.keep,
            stamps: Vec::new(),
            made_at: (evidence.now)(),
            made_by: caller.actor.id.clone(),
            vkeys: audited.keys.borrow().iter().map(|key| key.vkey.clone()).collect(),
        }
    }
}
