//! The auditor's routes.

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Cursor, Problem, ProblemCode, ProblemDocument, answer, query};
use audit_log::{LogReader, ReadError, StoredEntry};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::{Plan, leaf_hash};
use serde::Serialize;
use session_model::{Detail, Digest, Leaf, LeafIndex, RealmName, SessionId, TreeSize, Version};
use session_service::Caller;
use tracing::{error, warn};

use crate::documents::{
    ConsistencyDocument, EntriesDocument, EntryDocument, InclusionDocument, KeyDocument, KeysDocument,
};
use crate::{AuditApi, export};

/// Adds the auditor's routes.
pub fn configure(config: &mut web::ServiceConfig) {
    let only_get = || web::route().to(only_get);
    config
        .service(web::resource("/v1/audit/entries").route(web::get().to(list_entries)).default_service(only_get()))
        .service(web::resource("/v1/audit/entries/{index}").route(web::get().to(get_entry)).default_service(only_get()))
        .service(web::resource("/v1/audit/checkpoint").route(web::get().to(get_checkpoint)).default_service(only_get()))
        .service(web::resource("/v1/audit/keys").route(web::get().to(get_keys)).default_service(only_get()))
        .service(
            web::resource("/v1/audit/proofs/inclusion")
                .route(web::get().to(prove_inclusion))
                .default_service(only_get()),
        )
        .service(
            web::resource("/v1/audit/proofs/consistency")
                .route(web::get().to(prove_consistency))
                .default_service(only_get()),
        )
        .configure(export::configure);
}

pub(crate) async fn only_get(request: HttpRequest) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, "GET only").with(header::ALLOW, "GET");
    answer(&request, Err(problem))
}

/// Lets an auditor in, and records what is about to be read before anything is.
pub(crate) async fn admit(api: &AuditApi, request: &HttpRequest, detail: Detail) -> Result<Caller, Problem> {
    let caller = api.gate.admit(request, Permission::ReadLog)?.caller;
    let route = request.match_pattern().unwrap_or_default();
    let mut what = detail;
    what.insert("route".to_owned(), route);
    api.recorder.record(&caller, what).await?;
    Ok(caller)
}

fn fact(name: &str, value: impl ToString) -> Detail {
    [(name.to_owned(), value.to_string())].into()
}

fn json(document: &impl Serialize) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(document))
}

/// Entries of the realm, newest first; of one session if asked.
#[utoipa::path(
    get,
    path = "/v1/audit/entries",
    tag = "Audit",
    operation_id = "listEntries",
    security(("api_key" = [])),
    params(
        ("session" = Option<String>, Query, format = "uuid", description = "Entries of this session only"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Entries a page; default 50"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
    ),
    responses(
        (status = 200, body = EntriesDocument, description = "A page"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn list_entries(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [session, limit, cursor] = query(&request, ["session", "limit", "cursor"])?;
        let detail = session.as_ref().map(|session| fact("session", plain_id(session))).unwrap_or_default();
        let caller = admit(&api, &request, detail).await?;
        let limit = page_limit(limit)?;
        let before = match cursor.as_deref().map(Cursor::decode) {
            None => None,
            Some(Some(Cursor::Entry(index))) => Some(index),
            Some(Some(Cursor::Session(_)) | None) => {
                return Err(Problem::malformed("#query/cursor", "is not a cursor of this list"));
            }
        };
        let (items, next) = match session {
            Some(session) => {
                let id: SessionId =
                    session.parse().map_err(|_| Problem::malformed("#query/session", "must be a session id"))?;
                of_session(&*api.log, &caller.realm, id, before, limit).await?
            }
            None => of_realm(&*api.log, &caller.realm, before, limit).await?,
        };
        let next_cursor = next.map(|index| Cursor::Entry(index).encode());
        let link = next_cursor.as_ref().map(|cursor| next_link(&request, cursor, limit));
        let mut response = json(&EntriesDocument { items, next_cursor })?;
        if let Some(Ok(link)) = link.map(header::HeaderValue::try_from) {
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    };
    answer(&request, outcome.await)
}

/// Only an id is a fact for the leaf: whatever else somebody asks for may be personal data.
pub(crate) fn plain_id(text: &str) -> String {
    text.parse::<SessionId>().map_or_else(|_| "malformed".to_owned(), |id| id.to_string())
}

fn next_link(request: &HttpRequest, cursor: &str, limit: usize) -> String {
    let session = query(request, ["session", "limit", "cursor"]).ok().and_then(|[session, ..]| session);
    let session = session.map(|session| format!("&session={}", plain_id(&session))).unwrap_or_default();
    format!("<{}?limit={limit}&cursor={cursor}{session}>; rel=\"next\"", request.path())
}

fn page_limit(given: Option<String>) -> Result<usize, Problem> {
    match given.as_deref().map(str::parse::<usize>) {
        None => Ok(50),
        Some(Ok(limit @ 1..=500)) => Ok(limit),
        Some(Ok(_) | Err(_)) => Err(Problem::malformed("#query/limit", "must be from 1 to 500")),
    }
}

async fn of_session(
    log: &dyn LogReader,
    realm: &RealmName,
    id: SessionId,
    before: Option<u64>,
    limit: usize,
) -> Result<(Vec<EntryDocument>, Option<u64>), Problem> {
    const PAGE: usize = 4_096;
    let mut places = Vec::new();
    loop {
        let after = places.last().map_or(Version::NONE, |(version, _)| *version);
        let page = log.session_entries(id, after, PAGE).await.map_err(read_problem)?;
        let last = page.len() < PAGE;
        places.extend(page);
        if last {
            break;
        }
    }
    let older = places.iter().rev().map(|(_, index)| *index).filter(|index| before.is_none_or(|b| index.0 < b));
    let mut wanted: Vec<LeafIndex> = older.take(limit + 1).collect();
    let more = wanted.len() > limit;
    wanted.truncate(limit);
    let stored = log.entries(&wanted).await.map_err(read_problem)?;
    let items = documents(stored.into_iter().flatten(), realm)?;
    let next = wanted.last().map(|index| index.0).filter(|_| more);
    Ok((items, next))
}

/// Walks the log backwards; stops when the page is full, or after a bounded stretch of other realms' entries.
async fn of_realm(
    log: &dyn LogReader,
    realm: &RealmName,
    before: Option<u64>,
    limit: usize,
) -> Result<(Vec<EntryDocument>, Option<u64>), Problem> {
    const STRETCH: u64 = 10_000;
    let size = log.head().await.map_err(read_problem)?.size().0;
    let mut end = before.unwrap_or(size).min(size);
    let floor = end.saturating_sub(STRETCH);
    let mut items = Vec::new();
    while items.len() < limit && end > floor {
        let start = end.saturating_sub(limit as u64).max(floor);
        let wanted: Vec<LeafIndex> = (start..end).rev().map(LeafIndex).collect();
        let stored = log.entries(&wanted).await.map_err(read_problem)?;
        items.extend(documents(stored.into_iter().flatten(), realm)?);
        end = start;
    }
    items.truncate(limit);
    let reached = if items.len() == limit { items.last().map_or(end, |item| item.index) } else { end };
    Ok((items, (reached > 0).then_some(reached)))
}

fn documents(stored: impl Iterator<Item = StoredEntry>, realm: &RealmName) -> Result<Vec<EntryDocument>, Problem> {
    stored.filter_map(|entry| document(entry, realm).transpose()).collect()
}

/// `None` if the entry is another realm's.
fn document(stored: StoredEntry, realm: &RealmName) -> Result<Option<EntryDocument>, Problem> {
    let broken = |_| {
        error!(index = %stored.index, "an entry of the log is not a leaf");
        Problem::new(ProblemCode::Internal, format!("entry {} is not a leaf: the log was damaged", stored.index))
    };
    let leaf = Leaf::decode(&stored.leaf).map_err(|failure| broken(failure.to_string()))?;
    if leaf.realm != *realm {
        return Ok(None);
    }
    Ok(Some(EntryDocument {
        index: stored.index.0,
        leaf_hash: leaf_hash(&stored.leaf).to_string(),
        leaf: STANDARD.encode(&stored.leaf),
        entry: serde_json::from_slice(&stored.leaf).map_err(|failure| broken(failure.to_string()))?,
        tree_size: stored.tree_size.0,
    }))
}

pub(crate) fn read_problem(failure: ReadError) -> Problem {
    warn!(failure = &failure as &dyn std::error::Error, "the log cannot be read for an auditor");
    match failure {
        ReadError::Unavailable(_) => Problem::new(ProblemCode::LogUnavailable, "try again shortly"),
        ReadError::Corrupt(_) => Problem::new(ProblemCode::Internal, "the log holds something it cannot have written"),
    }
}

fn nothing_there(what: &str) -> Problem {
    Problem::new(ProblemCode::NotFound, what)
}

/// One entry.
#[utoipa::path(
    get,
    path = "/v1/audit/entries/{index}",
    tag = "Audit",
    operation_id = "getEntry",
    security(("api_key" = [])),
    params(("index" = u64, Path, description = "Leaf index")),
    responses(
        (status = 200, body = EntryDocument, description = "The entry"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_entry(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let index: Option<u64> = request.match_info().get("index").and_then(|index| index.parse().ok());
        let detail = fact("index", index.map_or_else(|| "malformed".to_owned(), |index| index.to_string()));
        let [] = query(&request, [])?;
        let caller = admit(&api, &request, detail).await?;
        let absent = || nothing_there("the realm has no entry at this index");
        let stored = api.log.entries(&[LeafIndex(index.ok_or_else(absent)?)]).await.map_err(read_problem)?;
        let entry = stored.into_iter().next().flatten().ok_or_else(absent)?;
        json(&document(entry, &caller.realm)?.ok_or_else(absent)?)
    };
    answer(&request, outcome.await)
}

/// The newest signed checkpoint, as C2SP tlog-checkpoint text.
#[utoipa::path(
    get,
    path = "/v1/audit/checkpoint",
    tag = "Audit",
    operation_id = "getCheckpoint",
    security(("api_key" = [])),
    params(("cosigned" = Option<bool>, Query, description = "true: the newest that a quorum of witnesses has cosigned, their lines included")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "C2SP signed note"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_checkpoint(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [cosigned] = query(&request, ["cosigned"])?;
        admit(&api, &request, Detail::new()).await?;
        let checkpoint = match cosigned.as_deref() {
            None | Some("false") => {
                let head = api.log.head().await.map_err(read_problem)?;
                head.checkpoint.ok_or_else(|| nothing_there("the log is empty"))?
            }
            Some("true") => api
                .cosigned
                .newest()
                .ok_or_else(|| nothing_there("no checkpoint has been cosigned by a quorum of witnesses"))?,
            Some(_) => return Err(Problem::malformed("#query/cosigned", "must be true or false")),
        };
        Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(checkpoint))
    };
    answer(&request, outcome.await)
}

/// The log's verifier keys: JSON, or with `Accept: text/plain` one C2SP vkey line each.
#[utoipa::path(
    get,
    path = "/v1/audit/keys",
    tag = "Audit",
    operation_id = "getKeys",
    security(("api_key" = [])),
    responses(
        (status = 200, content((KeysDocument = "application/json"), (String = "text/plain")), description = "The keys, the current one first"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_keys(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [] = query(&request, [])?;
        admit(&api, &request, Detail::new()).await?;
        let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        if accepted.starts_with("text/plain") {
            let lines: String = api.keys.iter().map(|key| format!("{}\n", key.vkey)).collect();
            return Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(lines));
        }
        let keys = api.keys.iter().enumerate();
        let keys = keys.map(|(at, key)| KeyDocument { vkey: key.vkey.clone(), current: at == 0 }).collect();
        json(&KeysDocument { keys })
    };
    answer(&request, outcome.await)
}

/// Proof that an entry is in the tree of a size; the newest, if none is given.
#[utoipa::path(
    get,
    path = "/v1/audit/proofs/inclusion",
    tag = "Audit",
    operation_id = "proveInclusion",
    security(("api_key" = [])),
    params(
        ("index" = u64, Query, description = "Leaf index"),
        ("size" = Option<u64>, Query, description = "Tree size; the newest if absent"),
    ),
    responses(
        (status = 200, body = InclusionDocument, description = "The proof"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn prove_inclusion(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [index, size] = query(&request, ["index", "size"])?;
        admit(&api, &request, Detail::new()).await?;
        let index = LeafIndex(number("index", index)?.ok_or_else(|| missing("index"))?);
        let newest = api.log.head().await.map_err(read_problem)?.size();
        let size = number("size", size)?.map_or(newest, TreeSize);
        let outside = || nothing_there("the log has no such index or size");
        if size > newest {
            return Err(outside());
        }
        let plan = Plan::inclusion(index, size).map_err(|_| outside())?;
        let hashes = prove(&*api.log, &plan).await?;
        let leaf = api.log.hashes(0, index.0, 1).await.map_err(read_problem)?;
        json(&InclusionDocument {
            index: index.0,
            size: size.0,
            leaf_hash: leaf.first().map(ToString::to_string).unwrap_or_default(),
            hashes,
        })
    };
    answer(&request, outcome.await)
}

/// Proof that the tree of one size is a prefix of the tree of another; the newest, if `to` is not given.
#[utoipa::path(
    get,
    path = "/v1/audit/proofs/consistency",
    tag = "Audit",
    operation_id = "proveConsistency",
    security(("api_key" = [])),
    params(
        ("from" = u64, Query, description = "The smaller tree size, at least 1"),
        ("to" = Option<u64>, Query, description = "The larger tree size; the newest if absent"),
    ),
    responses(
        (status = 200, body = ConsistencyDocument, description = "The proof"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn prove_consistency(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [from, to] = query(&request, ["from", "to"])?;
        admit(&api, &request, Detail::new()).await?;
        let from = TreeSize(number("from", from)?.ok_or_else(|| missing("from"))?);
        let newest = api.log.head().await.map_err(read_problem)?.size();
        let to = number("to", to)?.map_or(newest, TreeSize);
        let outside = || nothing_there("the log has no such sizes");
        if to > newest {
            return Err(outside());
        }
        let plan = Plan::consistency(from, to).map_err(|_| outside())?;
        json(&ConsistencyDocument { from: from.0, to: to.0, hashes: prove(&*api.log, &plan).await? })
    };
    answer(&request, outcome.await)
}

pub(crate) fn number(name: &str, given: Option<String>) -> Result<Option<u64>, Problem> {
    let malformed = |_| Problem::malformed(&format!("#query/{name}"), "must be a whole number");
    given.map(|text| text.parse::<u64>().map_err(malformed)).transpose()
}

pub(crate) fn missing(name: &str) -> Problem {
    Problem::malformed(&format!("#query/{name}"), "is required")
}

async fn prove(log: &dyn LogReader, plan: &Plan) -> Result<Vec<String>, Problem> {
    let mut runs: Vec<Vec<Digest>> = Vec::new();
    for range in plan.ranges() {
        runs.push(log.hashes(range.level, range.start, range.count).await.map_err(read_problem)?);
    }
    let proof = plan.finish(&runs).map_err(|failure| {
        error!(%failure, "the stored hashes do not make a proof");
        Problem::new(ProblemCode::Internal, "the log's stored hashes do not fit its size")
    })?;
    Ok(proof.iter().map(|hash| STANDARD.encode(hash.0)).collect())
}
