//! The auditor's routes.

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, ProblemDocument, answer, query};
use audit_log::LogReader;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::Plan;
use serde::Serialize;
use session_model::{Detail, Digest, LeafIndex, TreeSize};
use session_service::Caller;
use tracing::error;

use crate::documents::{ConsistencyDocument, InclusionDocument, KeyDocument, KeysDocument};
use crate::entries::{get_entry, list_entries, read_problem, session_history};
use crate::subjects::{erase_subject, export_subject, hold_subject, release_subject};
use crate::{AuditApi, PublishedKey, export};

/// Adds the auditor's routes.
pub fn configure(config: &mut web::ServiceConfig) {
    let only_get = || web::route().to(only_get);
    config
        .service(web::resource("/v1/audit/entries").route(web::get().to(list_entries)).default_service(only_get()))
        .service(web::resource("/v1/audit/entries/{index}").route(web::get().to(get_entry)).default_service(only_get()))
        .service(
            web::resource("/v1/audit/sessions/{id}/history")
                .route(web::get().to(session_history))
                .default_service(only_get()),
        )
        .service(
            web::resource("/v1/audit/subjects/{subject}/erasure")
                .route(web::post().to(erase_subject))
                .default_service(web::route().to(|r| wrong_method(r, "POST"))),
        )
        .service(
            web::resource("/v1/audit/subjects/{subject}/legal-hold")
                .route(web::put().to(hold_subject))
                .route(web::delete().to(release_subject))
                .default_service(web::route().to(|r| wrong_method(r, "PUT, DELETE"))),
        )
        .service(
            web::resource("/v1/audit/subjects/{subject}/export")
                .route(web::get().to(export_subject))
                .default_service(only_get()),
        )
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
        .configure(crate::tiles::configure_tiles)
        .configure(export::configure);
}

pub(crate) async fn only_get(request: HttpRequest) -> HttpResponse {
    wrong_method(request, "GET").await
}

async fn wrong_method(request: HttpRequest, allow: &'static str) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, format!("one of {allow}")).with(header::ALLOW, allow);
    answer(&request, Err(problem))
}

/// Lets an auditor in, and records what is about to be read before anything is.
pub(crate) async fn admit(api: &AuditApi, request: &HttpRequest, detail: Detail) -> Result<Caller, Problem> {
    let caller = api.gate.admit(request, Permission::ReadLog)?.caller;
    record(api, request, &caller, detail, None).await?;
    Ok(caller)
}

/// Records a reading, with its purpose if personal data is shown.
///
/// # Errors
/// A [`Problem`] if it cannot be recorded: then nothing may be shown.
pub async fn record(
    api: &AuditApi,
    request: &HttpRequest,
    caller: &Caller,
    mut detail: Detail,
    purpose: Option<&str>,
) -> Result<(), Problem> {
    detail.insert("route".to_owned(), request.match_pattern().unwrap_or_default());
    if purpose.is_some() {
        detail.insert("revealed".to_owned(), "true".to_owned());
    }
    api.of(&caller.realm).recorder.record(caller, detail, purpose).await
}

pub(crate) fn fact(name: &str, value: impl ToString) -> Detail {
    [(name.to_owned(), value.to_string())].into()
}

pub(crate) fn json(document: &impl Serialize) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(document))
}

pub(crate) fn nothing_there(what: &str) -> Problem {
    Problem::new(ProblemCode::NotFound, what)
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
        let caller = admit(&api, &request, Detail::new()).await?;
        let audited = api.of(&caller.realm);
        let checkpoint = match cosigned.as_deref() {
            None | Some("false") => {
                let head = audited.log.head().await.map_err(read_problem)?;
                head.checkpoint.ok_or_else(|| nothing_there("the log is empty"))?
            }
            Some("true") => audited
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
        (status = 200, content((KeysDocument = "application/json"), (String = "text/plain")), description = "The keys, those that sign first"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_keys(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [] = query(&request, [])?;
        let caller = admit(&api, &request, Detail::new()).await?;
        let keys = &api.of(&caller.realm).keys;
        let accepted = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        if accepted.starts_with("text/plain") {
            let lines: String = keys.borrow().iter().map(|key| format!("{}\n", key.vkey)).collect();
            return Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(lines));
        }
        let document = |key: &PublishedKey| KeyDocument {
            vkey: key.vkey.clone(),
            current: key.until.is_none(),
            signs_from: key.from.map(|time| time.to_string()),
            signed_until: key.until.map(|time| time.to_string()),
        };
        let keys = keys.borrow().iter().map(document).collect();
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
        let caller = admit(&api, &request, Detail::new()).await?;
        let log = &*api.of(&caller.realm).log;
        let index = LeafIndex(number("index", index)?.ok_or_else(|| missing("index"))?);
        let newest = log.head().await.map_err(read_problem)?.size();
        let size = number("size", size)?.map_or(newest, TreeSize);
        let outside = || nothing_there("the log has no such index or size");
        if size > newest {
            return Err(outside());
        }
        let plan = Plan::inclusion(index, size).map_err(|_| outside())?;
        let hashes = prove(log, &plan).await?;
        let leaf = log.hashes(0, index.0, 1).await.map_err(read_problem)?;
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
        let caller = admit(&api, &request, Detail::new()).await?;
        let log = &*api.of(&caller.realm).log;
        let from = TreeSize(number("from", from)?.ok_or_else(|| missing("from"))?);
        let newest = log.head().await.map_err(read_problem)?.size();
        let to = number("to", to)?.map_or(newest, TreeSize);
        let outside = || nothing_there("the log has no such sizes");
        if to > newest {
            return Err(outside());
        }
        let plan = Plan::consistency(from, to).map_err(|_| outside())?;
        json(&ConsistencyDocument { from: from.0, to: to.0, hashes: prove(log, &plan).await? })
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
    Ok(proof_of(log, plan).await?.iter().map(|hash| STANDARD.encode(hash.0)).collect())
}

/// The hashes of a proof.
///
/// # Errors
/// A [`Problem`] if the log cannot be read, or its stored hashes do not make the proof.
pub async fn proof_of(log: &dyn LogReader, plan: &Plan) -> Result<Vec<Digest>, Problem> {
    let mut runs: Vec<Vec<Digest>> = Vec::new();
    for range in plan.ranges() {
        runs.push(log.hashes(range.level, range.start, range.count).await.map_err(read_problem)?);
    }
    plan.finish(&runs).map_err(|failure| {
        error!(%failure, "the stored hashes do not make a proof");
        Problem::new(ProblemCode::Internal, "the log's stored hashes do not fit its size")
    })
}
