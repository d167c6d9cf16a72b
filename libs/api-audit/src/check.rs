//! `GET /v1/audit/verify`: what the server's own last check of the whole log came to.

use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{ProblemDocument, answer, query};
use serde::Serialize;
use session_model::Detail;
use utoipa::ToSchema;

use crate::EvidenceApi;
use crate::routes::{admit, json};

/// Knows the last check.
pub trait LastCheck: Send + Sync + 'static {
    /// The last check that ended, and how far the one that is running has come.
    fn last_check(&self) -> CheckDocument;
}

/// The server's own checks of the log. It believes itself: what proves is the offline verifier on a bundle, with a checkpoint that
/// was kept elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CheckDocument {
    /// `good`, `wrong`, `unfinished` (the log could not be read to its end), or `none` before the first has ended.
    pub result: String,
    /// Entries that it covered.
    pub size: u64,
    /// Root hash over them, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The first entry that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_wrong_index: Option<u64>,
    /// What is wrong, or why it did not end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Size of the outside checkpoint that the log was compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside_size: Option<u64>,
    /// Entries that the running check has covered; 0 if none is running.
    pub covered_by_running: u64,
}

/// What the server's own last check of the whole log came to.
#[utoipa::path(
    get,
    path = "/v1/audit/verify",
    tag = "Audit",
    operation_id = "getCheck",
    security(("api_key" = [])),
    responses(
        (status = 200, body = CheckDocument, description = "The last check"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_check(api: web::Data<EvidenceApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let [] = query(&request, [])?;
        let caller = admit(&api.audit, &request, Detail::new()).await?;
        json(&api.of(&caller.realm).last_check.last_check())
    };
    answer(&request, outcome.await)
}
