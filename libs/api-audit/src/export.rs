//! `GET /v1/audit/export`: the realm's entries, oldest first, streamed in a format of [`audit_export`].
//!
//! The stream is pulled by the client's reading: a page of the log is read, written in the format, and let go before the next, so that memory
//! does not grow with the log. A failure in the middle breaks the connection off (a chunked answer without its last chunk), and whoever
//! asked goes on with `after=` the last index received.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, ProblemDocument, answer, query};
use audit_export::{Format, Record};
use audit_log::{LogReader, ReadError, StoredBatch};
use futures::stream::try_unfold;
use merkle_log::leaf_hash;
use serde::de::DeserializeOwned;
use session_model::{Action, Detail, Leaf, LeafIndex, Outcome, RealmName, SessionId, Timestamp, TreeSize};
use tracing::error;

use crate::AuditApi;
use crate::routes::{admit, missing, number, plain_id, read_problem};

/// Entries read from the log at once.
const PAGE: usize = 1_000;

/// Adds the route.
pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config.service(
        web::resource("/v1/audit/export")
            .route(web::get().to(export_entries))
            .default_service(web::route().to(crate::routes::only_get)),
    );
}

/// The realm's entries, oldest first, as one stream.
#[utoipa::path(
    get,
    path = "/v1/audit/export",
    tag = "Audit",
    operation_id = "exportEntries",
    security(("api_key" = [])),
    params(
        ("format" = String, Query, description = "jsonl, csv, ocsf or cef"),
        ("after" = Option<u64>, Query, description = "Only entries behind this leaf index: the last one received"),
        ("from" = Option<String>, Query, format = "date-time", description = "Only entries of this time or later"),
        ("to" = Option<String>, Query, format = "date-time", description = "Only entries earlier than this"),
        ("session" = Option<String>, Query, format = "uuid", description = "Only entries of this session"),
        ("actor" = Option<String>, Query, description = "Only entries of the actor with this id"),
        ("action" = Option<String>, Query, description = "Only entries of this action, for instance session.ended"),
        ("outcome" = Option<String>, Query, description = "success or refused"),
    ),
    responses(
        (
            status = 200,
            content((String = "application/x-ndjson"), (String = "text/csv"), (String = "text/plain")),
            headers(
                ("Counterfoil-Export-Size" = u64, description = "Tree size up to which entries were considered: resume with after = this - 1"),
            ),
            description = "One record a line, each with index and leaf_hash; CSV begins with a line of names"
        ),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn export_entries(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    answer(&request, export(&api, &request).await)
}

async fn export(api: &AuditApi, request: &HttpRequest) -> Result<HttpResponse, Problem> {
    let names = ["format", "after", "from", "to", "session", "actor", "action", "outcome"];
    let [format, after, from, to, session, actor, action, outcome] = query(request, names)?;
    // What is recorded holds no more than words of ours, ids and numbers: what else is asked for may be personal data.
    let mut detail = Detail::new();
    if let Some(session) = &session {
        detail.insert("session".to_owned(), plain_id(session));
    }
    let asked = format.as_deref().map(str::parse::<Format>);
    if let Some(Ok(format)) = asked {
        detail.insert("format".to_owned(), format.to_string());
    }
    let caller = admit(api, request, detail).await?;
    let format = asked.ok_or_else(|| missing("format"))?;
    let format = format.map_err(|failure| Problem::malformed("#query/format", &failure.to_string()))?;
    let wanted = Wanted {
        realm: caller.realm,
        from: time("from", from)?,
        to: time("to", to)?,
        session: session
            .map(|text| {
                text.parse::<SessionId>().map_err(|_| Problem::malformed("#query/session", "must be a session id"))
            })
            .transpose()?,
        actor,
        action: word("action", "is not an action", action)?,
        outcome: word("outcome", "must be success or refused", outcome)?,
    };
    let size = api.log.head().await.map_err(read_problem)?.size();
    let first = number("after", after)?.map_or(0, |after| after.saturating_add(1));
    let first = match wanted.from {
        Some(from) => first.max(first_at(&*api.log, from, size).await?),
        None => first,
    };
    let export = Export {
        log: Arc::clone(&api.log),
        wanted: Arc::new(wanted),
        format,
        next: LeafIndex(first),
        size,
        begun: false,
    };
    Ok(HttpResponse::Ok()
        .content_type(format.media_type())
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_DISPOSITION, format!("attachment; filename=\"entries.{format}\"")))
        .insert_header(("Counterfoil-Export-Size", size.to_string()))
        .streaming(try_unfold(export, Export::next)))
}

fn time(name: &str, given: Option<String>) -> Result<Option<Timestamp>, Problem> {
    let malformed = || Problem::malformed(&format!("#query/{name}"), "must be an RFC 3339 time");
    given.map(|text| Timestamp::parse(&text).ok_or_else(malformed)).transpose()
}

fn word<T: DeserializeOwned>(name: &str, wrong: &str, given: Option<String>) -> Result<Option<T>, Problem> {
    let malformed = |_| Problem::malformed(&format!("#query/{name}"), wrong);
    given.map(|text| serde_json::from_value(text.into()).map_err(malformed)).transpose()
}

/// Which entries are wanted.
#[derive(Debug)]
struct Wanted {
    realm: RealmName,
    /// Of this time or later.
    from: Option<Timestamp>,
    /// Earlier than this.
    to: Option<Timestamp>,
    session: Option<SessionId>,
    actor: Option<String>,
    action: Option<Action>,
    outcome: Option<Outcome>,
}

impl Wanted {
    fn has(&self, leaf: &Leaf) -> bool {
        leaf.realm == self.realm
            && self.from.is_none_or(|from| leaf.time >= from)
            && self.to.is_none_or(|to| leaf.time < to)
            && self.session.is_none_or(|session| leaf.session_id == Some(session))
            && self.actor.as_deref().is_none_or(|actor| leaf.actor.id == actor)
            && self.action.is_none_or(|action| leaf.action == action)
            && self.outcome.is_none_or(|outcome| leaf.outcome == outcome)
    }

    /// Whether nothing wanted can follow: times in a log never go back.
    fn is_over(&self, leaf: &Leaf) -> bool {
        self.to.is_some_and(|to| leaf.time >= to)
    }
}

/// The first entry of a time or later, by halving: times in a log never go back.
async fn first_at(log: &dyn LogReader, time: Timestamp, size: TreeSize) -> Result<u64, Problem> {
    let (mut low, mut high) = (0, size.0);
    while low < high {
        let middle = low + (high - low) / 2;
        let found = log.entries(&[LeafIndex(middle)]).await.map_err(read_problem)?.pop().flatten();
        let leaf = found.and_then(|entry| Leaf::decode(&entry.leaf).ok()).ok_or_else(|| {
            error!(index = middle, "an entry of the log is not a leaf");
            Problem::new(ProblemCode::Internal, format!("entry {middle} is not a leaf: the log was damaged"))
        })?;
        if leaf.time < time { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

type Failure = Box<dyn Error>;

/// How far an export has come.
struct Export {
    log: Arc<dyn LogReader>,
    wanted: Arc<Wanted>,
    format: Format,
    next: LeafIndex,
    /// Where the log ended when the export began.
    size: TreeSize,
    begun: bool,
}

impl Export {
    /// The next bytes to send; `None` at the end.
    async fn next(mut self) -> Result<Option<(web::Bytes, Self)>, Failure> {
        if !self.begun {
            self.begun = true;
            let header = self.format.header();
            if !header.is_empty() {
                return Ok(Some((web::Bytes::from_static(header.as_bytes()), self)));
            }
        }
        while self.next.0 < self.size.0 {
            let page = select(&*self.log, self.next, self.size).await.inspect_err(|failure| {
                error!(failure = failure as &dyn Error, next = %self.next, "an export broke off");
            })?;
            let (wanted, format) = (Arc::clone(&self.wanted), self.format);
            // Decoding and writing a page takes milliseconds, for which nobody else's request should have to wait.
            let written =
                web::block(move || write(page, &wanted, format)).await?.map_err(|failure| -> Failure { failure })?;
            self.next =
                if written.is_over { LeafIndex(self.size.0) } else { written.next.max(LeafIndex(self.next.0 + 1)) };
            if !written.bytes.is_empty() {
                return Ok(Some((written.bytes.into(), self)));
            }
        }
        Ok(None)
    }
}

/// The candidates from `next` on: where a search of the log by its projections takes over, this is what it replaces.
async fn select(
    log: &dyn LogReader,
    next: LeafIndex,
    size: TreeSize,
) -> Result<VecDeque<(LeafIndex, Vec<u8>)>, ReadError> {
    let candidates = |batch: StoredBatch| (batch.first.0..).map(LeafIndex).zip(batch.leaves);
    let batches = log.batches(next, PAGE).await?;
    let wanted = |(index, _): &(LeafIndex, _)| *index >= next && index.0 < size.0;
    Ok(batches.into_iter().flat_map(candidates).filter(wanted).collect())
}

struct Written {
    bytes: Vec<u8>,
    /// Behind the last candidate.
    next: LeafIndex,
    /// Whether nothing wanted can follow.
    is_over: bool,
}

fn write(
    page: VecDeque<(LeafIndex, Vec<u8>)>,
    wanted: &Wanted,
    format: Format,
) -> Result<Written, Box<dyn Error + Send + Sync>> {
    let mut written = Written { bytes: Vec::new(), next: LeafIndex(0), is_over: false };
    for (index, bytes) in page {
        let leaf = Leaf::decode(&bytes).inspect_err(|_| error!(%index, "an entry of the log is not a leaf"))?;
        written.next = LeafIndex(index.0 + 1);
        if wanted.is_over(&leaf) {
            written.is_over = true;
            break;
        }
        if wanted.has(&leaf) {
            let record = Record { index, leaf_hash: leaf_hash(&bytes), leaf: &leaf, opened: None };
            format.write(&record, &mut written.bytes)?;
        }
    }
    Ok(written)
}
