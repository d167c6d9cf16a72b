//! What privacy law asks for: erasing a subject, keeping it under legal hold, and handing out all that is held on it.

use std::collections::HashSet;
use std::sync::Arc;

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Fields, Problem, ProblemCode, ProblemDocument, Request, answer, query, read_body};
use audit_search::{EntryFilter, Opened, Order};
use futures::stream::{self, StreamExt};
use session_model::{
    Attributes, Authentication, Client, KeyId, Kind, LeafIndex, RealmName, Session, Timestamp, check_text,
};
use session_service::Caller;
use tracing::error;

use crate::AuditApi;
use crate::documents::{ErasureDocument, HoldDocument, SubjectReceipt};
use crate::entries::{SUBJECT, revealed, revealing, search_problem};
use crate::routes::{fact, json, record};

/// Bytes of a body here, and of the reason in it.
const BODY: usize = 4_096;
const REASON: usize = 200;
/// Entries exported at once.
const PAGE: usize = 200;

/// Erases a subject: its open sessions are ended, and the key that seals its personal data is destroyed, so that nobody can read
/// it any more, in the log, its views, exports and backups. Entries and proofs stay valid. Final.
#[utoipa::path(
    post,
    path = "/v1/audit/subjects/{subject}/erasure",
    tag = "Audit",
    operation_id = "eraseSubject",
    security(("api_key" = [])),
    params(
        ("subject" = String, Path, description = "The subject"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$", description = "The same key and body replay the first answer for 24 hours"),
    ),
    responses(
        (status = 200, body = ErasureDocument, description = "It is erased", headers(
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 409, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable; sessions may have ended"),
    )
)]
pub async fn erase_subject(
    api: web::Data<AuditApi>,
    request: HttpRequest,
    subject: web::Path<String>,
    payload: web::Payload,
) -> HttpResponse {
    let outcome = async {
        let asked = admit(&api, &request, &subject)?;
        let mut body = web::Bytes::new();
        if request.headers().contains_key(header::CONTENT_TYPE) {
            body = read_body(&request, payload, &["application/json"], BODY).await?;
            Fields::of_body(&body, true)?.done()?;
        }
        let idempotency = asked.idempotency(&request, &body)?;
        let erased = api.of(&asked.caller.realm).custodian.erase(&asked.caller, &subject, idempotency).await?;
        let index = erased.receipt.index;
        changed(index, &erased)
    };
    answer(&request, outcome.await)
}

/// Puts a subject under legal hold: it is not erased until it is released. May be put again, with another reason.
#[utoipa::path(
    put,
    path = "/v1/audit/subjects/{subject}/legal-hold",
    tag = "Audit",
    operation_id = "holdSubject",
    security(("api_key" = [])),
    request_body(content = HoldBody, content_type = "application/json"),
    params(("subject" = String, Path, description = "The subject")),
    responses(
        (status = 200, body = HoldDocument, description = "It is held", headers(
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn hold_subject(
    api: web::Data<AuditApi>,
    request: HttpRequest,
    subject: web::Path<String>,
    payload: web::Payload,
) -> HttpResponse {
    let outcome = async {
        let caller = admit(&api, &request, &subject)?.caller;
        let body = read_body(&request, payload, &["application/json"], BODY).await?;
        let mut fields = Fields::of_body(&body, false)?;
        let reason = fields.required_text("reason", REASON);
        fields.done()?;
        let held = api.of(&caller.realm).custodian.hold(&caller, &subject, true, Some(reason)).await?;
        changed(held.receipt.index, &held)
    };
    answer(&request, outcome.await)
}

/// Why a subject is held.
#[derive(Debug, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes what is read field by field")]
pub struct HoldBody {
    /// For instance the case it is held for: sealed, as personal data is.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    reason: String,
}

/// Releases a subject from legal hold.
#[utoipa::path(
    delete,
    path = "/v1/audit/subjects/{subject}/legal-hold",
    tag = "Audit",
    operation_id = "releaseSubject",
    security(("api_key" = [])),
    params(("subject" = String, Path, description = "The subject")),
    responses(
        (status = 200, body = HoldDocument, description = "It is not held any more", headers(
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn release_subject(
    api: web::Data<AuditApi>,
    request: HttpRequest,
    subject: web::Path<String>,
) -> HttpResponse {
    let outcome = async {
        let caller = admit(&api, &request, &subject)?.caller;
        let held = api.of(&caller.realm).custodian.hold(&caller, &subject, false, None).await?;
        changed(held.receipt.index, &held)
    };
    answer(&request, outcome.await)
}

/// Everything that is held on a subject: each entry sealed under its keys, opened, oldest first, as JSON Lines. Takes a
/// `purpose`, which is recorded.
#[utoipa::path(
    get,
    path = "/v1/audit/subjects/{subject}/export",
    tag = "Audit",
    operation_id = "exportSubject",
    security(("api_key" = [])),
    params(
        ("subject" = String, Path, description = "The subject"),
        ("purpose" = String, Query, min_length = 1, max_length = 200, description = "What the personal data is for: recorded"),
    ),
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson", description = "An entry a line, as in getEntry with reveal=true"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn export_subject(
    api: web::Data<AuditApi>,
    request: HttpRequest,
    subject: web::Path<String>,
) -> HttpResponse {
    let outcome = async {
        let caller = api.gate.admit(&request, Permission::ReadLog)?.caller;
        named(&subject)?;
        let [purpose] = query(&request, ["purpose"])?;
        let purpose = revealing(Some("true".to_owned()), purpose)?;
        export(&api, &request, caller, &subject, purpose.as_deref()).await
    };
    answer(&request, outcome.await)
}

/// Everything that is held on a subject, as it is downloaded. Recorded before anything is read.
///
/// # Errors
/// A [`Problem`]: 404 if the realm holds nothing on the subject.
pub async fn export(
    api: &web::Data<AuditApi>,
    request: &HttpRequest,
    caller: Caller,
    subject: &str,
    purpose: Option<&str>,
) -> Result<HttpResponse, Problem> {
    let (api, log) = (api.clone(), api.of(&caller.realm));
    let key = log.archive.subject_key(&caller.realm, subject).await.map_err(search_problem)?;
    let detail = key.map(|key| fact("subject_key", key.uuid())).unwrap_or_default();
    record(&api, request, &caller, detail, purpose).await?;
    let nothing = || Problem::new(ProblemCode::NothingHeld, "the realm holds nothing on the subject");
    let beside = beside_the_log(&log.custodian.beside_the_log(&caller.realm, subject).await?)?;
    if key.is_none() && beside.is_empty() {
        return Err(nothing());
    }
    let beside = stream::iter([Ok::<_, actix_web::Error>(beside)]);
    let keys = match key {
        Some(key) => log.archive.keys_of_subject(key).await.map_err(search_problem)?,
        None => HashSet::new(),
    };
    let entries = stream::iter(key).flat_map(move |key| lines(api.clone(), caller.realm.clone(), key, keys.clone()));
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"subject.jsonl\""))
        .streaming(beside.chain(entries)))
}

/// A session that no entry tells of.
#[derive(Debug, serde::Serialize)]
struct BesideTheLog<'a> {
    transient_session: uuid::Uuid,
    realm: &'a RealmName,
    kind: Kind,
    version: u64,
    subject: Option<&'a str>,
    attributes: &'a Attributes,
    authentication: Option<&'a Authentication>,
    client: Option<&'a Client>,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    expires_at: Timestamp,
}

/// One line each.
fn beside_the_log(sessions: &[Arc<Session>]) -> Result<web::Bytes, Problem> {
    let mut bytes = Vec::new();
    for session in sessions {
        let line = BesideTheLog {
            transient_session: session.id.uuid(),
            realm: &session.realm,
            kind: session.kind,
            version: session.version.0,
            subject: session.subject.as_deref(),
            attributes: &session.attributes,
            authentication: session.authentication.as_ref(),
            client: session.client.as_ref(),
            created_at: session.created_at,
            last_seen_at: session.last_seen_at,
            expires_at: session.expires_at,
        };
        let written = serde_json::to_writer(&mut bytes, &line);
        written.map_err(|_| Problem::new(ProblemCode::Internal, "a session cannot be written"))?;
        bytes.push(b'\n');
    }
    Ok(bytes.into())
}

/// Page after page, until there are no more. A failure ends the answer before its end, which the client sees.
fn lines(
    api: web::Data<AuditApi>,
    realm: RealmName,
    key: KeyId,
    keys: HashSet<KeyId>,
) -> impl futures::Stream<Item = Result<web::Bytes, actix_web::Error>> {
    let filter = EntryFilter { subject: Some(key), ..EntryFilter::all(realm) };
    stream::try_unfold((api, filter, keys, Some(None)), |(api, filter, keys, place)| async move {
        let Some(after) = place else { return Ok(None) };
        match page(&api, &filter, &keys, after).await {
            Ok((bytes, next)) => Ok(Some((bytes, (api, filter, keys, next.map(Some))))),
            Err(problem) => {
                error!(code = problem.code().name(), "the export of a subject broke off");
                Err(actix_web::error::ErrorServiceUnavailable("the log cannot be read"))
            }
        }
    })
    .boxed()
}

async fn page(
    api: &AuditApi,
    filter: &EntryFilter,
    keys: &HashSet<KeyId>,
    after: Option<LeafIndex>,
) -> Result<(web::Bytes, Option<LeafIndex>), Problem> {
    let archive = &api.of(&filter.realm).archive;
    let found = archive.search(filter, Order::OldestFirst(after), PAGE).await.map_err(search_problem)?;
    let opened = archive.open(&filter.realm, &found.indices).await.map_err(search_problem)?;
    let mut bytes = Vec::new();
    // A session may have gone on as another subject's: what that key seals is not this one's.
    let own = |entry: &&Opened| entry.leaf.data_key.is_some_and(|key| keys.contains(&key));
    for entry in opened.iter().filter(own) {
        let written = serde_json::to_writer(&mut bytes, &revealed(entry)?);
        written.map_err(|_| Problem::new(ProblemCode::Internal, "an entry cannot be written"))?;
        bytes.push(b'\n');
    }
    Ok((bytes.into(), found.indices.last().copied().filter(|_| found.more)))
}

fn admit(api: &AuditApi, request: &HttpRequest, subject: &str) -> Result<Request, Problem> {
    let asked = api.gate.admit(request, Permission::KeepSubjects)?;
    let [] = query(request, [])?;
    named(subject)?;
    Ok(asked)
}

fn named(subject: &str) -> Result<(), Problem> {
    check_text(subject, SUBJECT).map_err(|fault| Problem::malformed("#path/subject", &fault.to_string()))
}

fn changed(index: u64, document: &impl serde::Serialize) -> Result<HttpResponse, Problem> {
    let mut response = json(document)?;
    response.headers_mut().insert(header::HeaderName::from_static("counterfoil-index"), index.into());
    Ok(response)
}

impl SubjectReceipt {
    /// Where an entry stands.
    pub fn new(origin: &str, place: &audit_log::Place) -> Self {
        Self {
            origin: origin.to_owned(),
            index: place.index.0,
            leaf_hash: place.hash.to_string(),
            tree_size: place.tree_size.0,
        }
    }
}
