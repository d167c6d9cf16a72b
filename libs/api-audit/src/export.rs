//! `GET /v1/audit/export`: the realm's entries, oldest first, streamed in a format of [`audit_export`].
//!
//! The stream is pulled by the client's reading: a page of the log is read, written in the format, and let go before the next, so that memory
//! does not grow with the log. A failure in the middle breaks the connection off (a chunked answer without its last chunk), and whoever
//! asked goes on with `after=` the last index received.

use std::error::Error;
use std::sync::Arc;

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemDocument, answer, query};
use audit_export::{Format, Record};
use audit_log::LogReader;
use audit_search::{Archive, EntryFilter, Order, Personal};
use futures::stream::try_unfold;
use merkle_log::leaf_hash;
use session_model::{Leaf, LeafIndex, SealedPart, TreeSize};
use tracing::error;

use crate::AuditApi;
use crate::documents::OutcomeWord;
use crate::entries::{EntriesQuery, Wanted, read_problem, revealing};
use crate::routes::{missing, number, record};

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

/// The realm's entries that fit every filter, oldest first, as one stream. With `reveal=true` what is sealed is opened; that takes a
/// `purpose`, which is recorded.
#[utoipa::path(
    get,
    path = "/v1/audit/export",
    tag = "Audit",
    operation_id = "exportEntries",
    security(("api_key" = [])),
    params(
        ("format" = String, Query, pattern = "^(jsonl|csv|ocsf|cef)$", description = "jsonl, csv, ocsf or cef"),
        ("after" = Option<u64>, Query, description = "Only entries behind this leaf index: the last one received"),
        ("from" = Option<String>, Query, format = DateTime, description = "Not before this time"),
        ("to" = Option<String>, Query, format = DateTime, description = "Before this time"),
        ("session" = Option<String>, Query, format = "uuid", description = "Of this session; with action audit.read, who asked for it"),
        ("subject" = Option<String>, Query, min_length = 1, max_length = 256, description = "Of this subject's sessions, or about it; with action audit.read, who asked for it"),
        ("actor" = Option<String>, Query, min_length = 1, max_length = 128, description = "By this credential, or node"),
        ("action" = Option<String>, Query, pattern = "^[a-z_]+\\.[a-z_]+$", description = "That record this, for instance session.ended"),
        ("outcome" = Option<OutcomeWord>, Query, description = "That ended so"),
        ("address" = Option<String>, Query, min_length = 2, max_length = 45, description = "Asked for from this IP address, or beginning a session whose client is there"),
        ("reveal" = Option<bool>, Query, description = "Opens what is sealed; needs purpose"),
        ("purpose" = Option<String>, Query, min_length = 1, max_length = 200, description = "What the personal data is for: recorded"),
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
    let caller = api.gate.admit(request, Permission::ReadLog)?.caller;
    let names = [
        "format", "after", "from", "to", "session", "subject", "actor", "action", "outcome", "address", "reveal",
        "purpose",
    ];
    let [format, after, from, to, session, subject, actor, action, outcome, address, reveal, purpose] =
        query(request, names)?;
    let format = format.ok_or_else(|| missing("format"))?.parse::<Format>();
    let format = format.map_err(|failure| Problem::malformed("#query/format", &failure.to_string()))?;
    let after = number("after", after)?.map(LeafIndex);
    let asked = EntriesQuery { from, to, session, subject, actor, action, outcome, address };
    let wanted = asked.filter(api, &caller.realm).await?;
    let purpose = revealing(reveal, purpose)?;
    let mut detail = asked.detail(&wanted);
    detail.insert("format".to_owned(), format.to_string());
    record(api, request, &caller, detail, purpose.as_deref()).await?;
    let audited = api.of(&caller.realm);
    let size = audited.log.head().await.map_err(read_problem)?.size();
    let filter = match wanted {
        Wanted::These(filter) => Some(filter),
        Wanted::Nothing => None,
    };
    let export = Export {
        log: Arc::clone(&audited.log),
        archive: audited.archive.clone(),
        filter,
        reveal: purpose.is_some(),
        format,
        after,
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

type Failure = Box<dyn Error>;

/// How far an export has come.
struct Export {
    log: Arc<dyn LogReader>,
    archive: Archive,
    /// What is wanted; `None` when there is no more.
    filter: Option<Box<EntryFilter>>,
    reveal: bool,
    format: Format,
    after: Option<LeafIndex>,
    /// Where the log ended when the export began.
    size: TreeSize,
    begun: bool,
}

/// An entry to write: its place, its leaf's bytes, and what was sealed beside them, if that is to be shown.
type Written = (LeafIndex, Vec<u8>, Option<Box<SealedPart>>);

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
        let Some(filter) = self.filter.take() else { return Ok(None) };
        let broke_off = |failure: &dyn Error| error!(%failure, "an export broke off");
        let found = self.archive.search(&filter, Order::OldestFirst(self.after), PAGE).await;
        let found = found.inspect_err(|failure| broke_off(failure))?;
        let indices: Vec<LeafIndex> = found.indices.into_iter().filter(|index| index.0 < self.size.0).collect();
        let Some(last) = indices.last().copied() else { return Ok(None) };
        self.after = Some(last);
        let entries = self.read(&filter, &indices).await.inspect_err(|failure| broke_off(&**failure))?;
        self.filter = found.more.then_some(filter);
        let format = self.format;
        // Decoding and writing a page takes milliseconds, for which nobody else's request should have to wait.
        let bytes = web::block(move || write(entries, format)).await?.map_err(|failure| -> Failure { failure })?;
        Ok(Some((bytes.into(), self)))
    }

    async fn read(&self, filter: &EntryFilter, indices: &[LeafIndex]) -> Result<Vec<Written>, Failure> {
        if self.reveal {
            let opened = self.archive.open(&filter.realm, indices).await?;
            let written = opened.into_iter().map(|entry| match entry.personal {
                Personal::Open(part) => (entry.stored.index, entry.stored.leaf, Some(part)),
                Personal::None | Personal::Erased | Personal::Pruned | Personal::Broken => {
                    (entry.stored.index, entry.stored.leaf, None)
                }
            });
            return Ok(written.collect());
        }
        let stored = self.log.entries(indices).await?;
        Ok(stored.into_iter().flatten().map(|entry| (entry.index, entry.leaf, None)).collect())
    }
}

fn write(entries: Vec<Written>, format: Format) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let mut written = Vec::new();
    for (index, bytes, part) in entries {
        let leaf = Leaf::decode(&bytes).inspect_err(|_| error!(%index, "an entry of the log is not a leaf"))?;
        let record = Record { index, leaf_hash: leaf_hash(&bytes), leaf: &leaf, opened: part.as_deref() };
        format.write(&record, &mut written)?;
    }
    Ok(written)
}
