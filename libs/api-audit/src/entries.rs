//! Entries: found by filters, one by its index, and those of a session with the state after each.

use access::Permission;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Cursor, Problem, ProblemCode, ProblemDocument, answer, next_link, query};
use audit_log::{ReadError, StoredEntry};
use audit_search::{EntryFilter, Moment, Opened, Order, Personal, SearchError, Step};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use merkle_log::leaf_hash;
use session_model::{
    Action, Detail, Leaf, LeafIndex, Outcome, RealmName, SealedPart, Session, SessionId, Timestamp, Version, check_text,
};
use session_service::Caller;
use tracing::{error, warn};

use crate::AuditApi;
use crate::documents::{
    EntriesDocument, EntryDocument, HistoryDocument, OutcomeWord, PersonalDocument, PersonalState, StateDocument,
    StepDocument,
};
use crate::routes::{fact, json, nothing_there, record};

/// Bytes of a stated purpose, of a subject's name, and of an actor's id.
const PURPOSE: usize = 200;
pub(crate) const SUBJECT: usize = 256;
const ACTOR: usize = 128;

/// Entries of the realm, newest first: those that fit every filter given. The whole log is considered, up to the moment of
/// the request. With `reveal=true` what is sealed is opened; that takes a `purpose`, which is recorded.
#[utoipa::path(
    get,
    path = "/v1/audit/entries",
    tag = "Audit",
    operation_id = "listEntries",
    security(("api_key" = [])),
    params(
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
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Entries a page; default 50"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "next_cursor of the page before"),
    ),
    responses(
        (status = 200, body = EntriesDocument, description = "A page"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn list_entries(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let caller = api.gate.admit(&request, Permission::ReadLog)?.caller;
        let [from, to, session, subject, actor, action, outcome, address, reveal, purpose, limit, cursor] = query(
            &request,
            [
                "from", "to", "session", "subject", "actor", "action", "outcome", "address", "reveal", "purpose",
                "limit", "cursor",
            ],
        )?;
        let asked = EntriesQuery { from, to, session, subject, actor, action, outcome, address };
        let purpose = revealing(reveal, purpose)?;
        let limit = page_limit(limit)?;
        let before = cursor_entry(cursor)?;
        let EntriesDocument { items, next_cursor } =
            find_entries(&api, &request, &caller, &asked, purpose.as_deref(), (before, limit)).await?;
        let link = next_cursor.as_ref().map(|cursor| next_link(&request, cursor));
        let mut response = json(&EntriesDocument { items, next_cursor })?;
        if let Some(Ok(link)) = link.map(header::HeaderValue::try_from) {
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    };
    answer(&request, outcome.await)
}

/// A page of entries that fit, newest first: at most so many, from before this index. Recorded before anything is read.
///
/// # Errors
/// A [`Problem`]: 400 names the filter that is malformed.
pub async fn find_entries(
    api: &AuditApi,
    request: &HttpRequest,
    caller: &Caller,
    asked: &EntriesQuery,
    purpose: Option<&str>,
    (before, limit): (Option<LeafIndex>, usize),
) -> Result<EntriesDocument, Problem> {
    let filter = asked.filter(api, &caller.realm).await?;
    record(api, request, caller, asked.detail(&filter), purpose).await?;
    let Wanted::These(filter) = filter else {
        return Ok(EntriesDocument { items: Vec::new(), next_cursor: None });
    };
    let found = api
        .of(&caller.realm)
        .archive
        .search(&filter, Order::NewestFirst(before), limit)
        .await
        .map_err(search_problem)?;
    let items = read(api, &caller.realm, &found.indices, purpose.is_some()).await?;
    let next_cursor = found.indices.last().filter(|_| found.more).map(|index| Cursor::Entry(index.0).encode());
    Ok(EntriesDocument { items, next_cursor })
}

/// The filters as they stand in the query.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the document of listEntries says what each means")]
pub struct EntriesQuery {
    pub from: Option<String>,
    pub to: Option<String>,
    pub session: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<String>,
    pub action: Option<String>,
    pub outcome: Option<String>,
    pub address: Option<String>,
}

/// What a query asks for.
pub(crate) enum Wanted {
    /// Entries that fit.
    These(Box<EntryFilter>),
    /// Nothing: the realm holds nothing on that subject.
    Nothing,
}

impl EntriesQuery {
    pub(crate) async fn filter(&self, api: &AuditApi, realm: &RealmName) -> Result<Wanted, Problem> {
        let bad = |name: &str, what: &str| Problem::malformed(&format!("#query/{name}"), what);
        let time = |name: &'static str, text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => Timestamp::parse(text).map(Some).ok_or_else(|| bad(name, "must be an RFC 3339 time")),
        };
        if let Some(subject) = &self.subject {
            check_text(subject, SUBJECT).map_err(|fault| bad("subject", &fault.to_string()))?;
        }
        if let Some(actor) = &self.actor {
            check_text(actor, ACTOR).map_err(|fault| bad("actor", &fault.to_string()))?;
        }
        let action = match &self.action {
            None => None,
            Some(word) => Some(Action::named(word).ok_or_else(|| bad("action", "is not an action of the log"))?),
        };
        let outcome = match &self.outcome {
            None => None,
            Some(word) => Some(Outcome::named(word).ok_or_else(|| bad("outcome", "must be success or refused"))?),
        };
        let session = self.session.as_ref().map(|id| id.parse().map_err(|_| bad("session", "must be a session id")));
        let address =
            self.address.as_ref().map(|text| text.parse().map_err(|_| bad("address", "must be an IP address")));
        let mut filter = EntryFilter {
            realm: realm.clone(),
            from: time("from", &self.from)?,
            to: time("to", &self.to)?,
            session: session.transpose()?,
            subject: None,
            actor: self.actor.clone(),
            action,
            outcome,
            address: address.transpose()?,
        };
        // Last: what is malformed is said to be, whether or not there is such a subject.
        if let Some(subject) = &self.subject {
            filter.subject = api.of(realm).archive.subject_key(realm, subject).await.map_err(search_problem)?;
            if filter.subject.is_none() {
                return Ok(Wanted::Nothing);
            }
        }
        Ok(Wanted::These(Box::new(filter)))
    }

    /// What the entry about this reading says: ids and words, never a subject's name or an address.
    pub(crate) fn detail(&self, filter: &Wanted) -> Detail {
        let mut detail = Detail::new();
        if let Wanted::These(filter) = filter {
            detail.extend(filter.session.map(|id| ("session".to_owned(), id.to_string())));
            detail.extend(filter.subject.map(|key| ("subject_key".to_owned(), key.uuid().to_string())));
        }
        let given = [
            ("from", self.from.is_some()),
            ("to", self.to.is_some()),
            ("subject", self.subject.is_some()),
            ("actor", self.actor.is_some()),
            ("action", self.action.is_some()),
            ("outcome", self.outcome.is_some()),
            ("address", self.address.is_some()),
        ];
        let names: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if !names.is_empty() {
            detail.insert("filters".to_owned(), names.join(","));
        }
        detail
    }
}

/// The purpose, if personal data is to be shown.
///
/// # Errors
/// A 400 [`Problem`] if one is given without the other.
pub fn revealing(reveal: Option<String>, purpose: Option<String>) -> Result<Option<String>, Problem> {
    let reveal = match reveal.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Problem::malformed("#query/reveal", "must be true or false")),
    };
    match (reveal, purpose) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Problem::malformed("#query/purpose", "belongs to reveal=true")),
        (true, None) => Err(Problem::malformed("#query/purpose", "is required with reveal=true")),
        (true, Some(purpose)) => match check_text(&purpose, PURPOSE) {
            Ok(()) => Ok(Some(purpose)),
            Err(fault) => Err(Problem::malformed("#query/purpose", &fault.to_string())),
        },
    }
}

/// The index that a cursor names.
///
/// # Errors
/// A 400 [`Problem`] if it is none of this list.
pub fn cursor_entry(cursor: Option<String>) -> Result<Option<LeafIndex>, Problem> {
    match cursor.as_deref().map(Cursor::decode) {
        None => Ok(None),
        Some(Some(Cursor::Entry(index))) => Ok(Some(LeafIndex(index))),
        Some(Some(Cursor::Session(_)) | None) => {
            Err(Problem::malformed("#query/cursor", "is not a cursor of this list"))
        }
    }
}

fn page_limit(given: Option<String>) -> Result<usize, Problem> {
    match given.as_deref().map(str::parse::<usize>) {
        None => Ok(50),
        Some(Ok(limit @ 1..=500)) => Ok(limit),
        Some(Ok(_) | Err(_)) => Err(Problem::malformed("#query/limit", "must be from 1 to 500")),
    }
}

/// These entries of the realm, opened if they are to be revealed.
pub(crate) async fn read(
    api: &AuditApi,
    realm: &RealmName,
    indices: &[LeafIndex],
    reveal: bool,
) -> Result<Vec<EntryDocument>, Problem> {
    if reveal {
        let opened = api.of(realm).archive.open(realm, indices).await.map_err(search_problem)?;
        return opened.iter().map(revealed).collect();
    }
    let stored = api.of(realm).log.entries(indices).await.map_err(read_problem)?;
    stored.into_iter().flatten().filter_map(|entry| document(&entry, realm).transpose()).collect()
}

/// `None` if the entry is another realm's.
fn document(stored: &StoredEntry, realm: &RealmName) -> Result<Option<EntryDocument>, Problem> {
    let leaf = Leaf::decode(&stored.leaf).map_err(|_| broken(stored.index))?;
    if leaf.realm == *realm { shown(stored).map(Some) } else { Ok(None) }
}

fn shown(stored: &StoredEntry) -> Result<EntryDocument, Problem> {
    Ok(EntryDocument {
        index: stored.index.0,
        leaf_hash: leaf_hash(&stored.leaf).to_string(),
        leaf: STANDARD.encode(&stored.leaf),
        entry: serde_json::from_slice(&stored.leaf).map_err(|_| broken(stored.index))?,
        tree_size: stored.tree_size.0,
        personal: None,
    })
}

/// An entry with what is sealed in it.
///
/// # Errors
/// A [`Problem`]: 500 if it is not a leaf.
pub fn revealed(opened: &Opened) -> Result<EntryDocument, Problem> {
    let personal = match &opened.personal {
        Personal::None => PersonalDocument::bare(PersonalState::None),
        Personal::Erased => PersonalDocument::bare(PersonalState::Erased),
        Personal::Pruned => PersonalDocument::bare(PersonalState::Pruned),
        Personal::Broken => PersonalDocument::bare(PersonalState::Broken),
        Personal::Open(part) => open_part(part, opened.stored.index)?,
    };
    Ok(EntryDocument { personal: Some(personal), ..shown(&opened.stored)? })
}

fn open_part(part: &SealedPart, index: LeafIndex) -> Result<PersonalDocument, Problem> {
    let event = part.event.as_ref().map(serde_json::to_value).transpose().map_err(|_| broken(index))?;
    let facts = (!part.facts.is_empty()).then(|| part.facts.clone());
    Ok(PersonalDocument { state: PersonalState::Open, origin: part.origin.map(|at| at.to_string()), event, facts })
}

fn broken(index: LeafIndex) -> Problem {
    error!(%index, "an entry of the log is not a leaf");
    Problem::new(ProblemCode::Internal, format!("entry {index} is not a leaf: the log was damaged"))
}

/// Why the log could not be read, as a problem.
pub fn read_problem(failure: ReadError) -> Problem {
    warn!(failure = &failure as &dyn std::error::Error, "the log cannot be read for an auditor");
    match failure {
        ReadError::Unavailable(_) => Problem::new(ProblemCode::LogUnavailable, "try again shortly"),
        ReadError::Corrupt(_) => Problem::new(ProblemCode::Internal, "the log holds something it cannot have written"),
    }
}

/// Why the log could not be searched, as a problem.
pub fn search_problem(failure: SearchError) -> Problem {
    match failure {
        SearchError::Read(failure) => read_problem(failure),
        SearchError::Seal(_) | SearchError::Postings => {
            error!(%failure, "the log cannot be searched");
            Problem::new(ProblemCode::Internal, "the log cannot be searched; the fault is ours")
        }
    }
}

/// One entry. With `reveal=true` what is sealed is opened; that takes a `purpose`, which is recorded.
#[utoipa::path(
    get,
    path = "/v1/audit/entries/{index}",
    tag = "Audit",
    operation_id = "getEntry",
    security(("api_key" = [])),
    params(
        ("index" = u64, Path, description = "Leaf index"),
        ("reveal" = Option<bool>, Query, description = "Opens what is sealed; needs purpose"),
        ("purpose" = Option<String>, Query, min_length = 1, max_length = 200, description = "What the personal data is for: recorded"),
    ),
    responses(
        (status = 200, body = EntryDocument, description = "The entry"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn get_entry(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let caller = api.gate.admit(&request, Permission::ReadLog)?.caller;
        let index: Option<u64> = request.match_info().get("index").and_then(|index| index.parse().ok());
        let [reveal, purpose] = query(&request, ["reveal", "purpose"])?;
        let purpose = revealing(reveal, purpose)?;
        json(&find_entry(&api, &request, &caller, index, purpose.as_deref()).await?)
    };
    answer(&request, outcome.await)
}

/// One entry; `index` is `None` where it was no number. Recorded before it is read.
///
/// # Errors
/// A [`Problem`]: 404 if the realm has no such entry.
pub async fn find_entry(
    api: &AuditApi,
    request: &HttpRequest,
    caller: &Caller,
    index: Option<u64>,
    purpose: Option<&str>,
) -> Result<EntryDocument, Problem> {
    let detail = fact("index", index.map_or_else(|| "malformed".to_owned(), |index| index.to_string()));
    record(api, request, caller, detail, purpose).await?;
    let absent = || nothing_there("the realm has no entry at this index");
    let index = LeafIndex(index.ok_or_else(absent)?);
    read(api, &caller.realm, &[index], purpose.is_some()).await?.into_iter().next().ok_or_else(absent)
}

/// Every entry of a session, oldest first, with the state after each; or, with `version` or `at`, the one entry that made the
/// state at that version or time. Personal data of entries and states is shown with `reveal=true` only, which takes a `purpose`.
#[utoipa::path(
    get,
    path = "/v1/audit/sessions/{id}/history",
    tag = "Audit",
    operation_id = "getSessionHistory",
    security(("api_key" = [])),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("version" = Option<u64>, Query, minimum = 1, description = "The state at this version only"),
        ("at" = Option<String>, Query, format = DateTime, description = "The state at this time only"),
        ("reveal" = Option<bool>, Query, description = "Opens what is sealed; needs purpose"),
        ("purpose" = Option<String>, Query, min_length = 1, max_length = 200, description = "What the personal data is for: recorded"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Entries a page; default 50"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "next_cursor of the page before"),
    ),
    responses(
        (status = 200, body = HistoryDocument, description = "The entries and states"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub async fn session_history(api: web::Data<AuditApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let caller = api.gate.admit(&request, Permission::ReadLog)?.caller;
        let [version, at, reveal, purpose, limit, cursor] =
            query(&request, ["version", "at", "reveal", "purpose", "limit", "cursor"])?;
        let moment = moment(version, at)?;
        let purpose = revealing(reveal, purpose)?;
        let limit = page_limit(limit)?;
        let after = Version(cursor_entry(cursor)?.map_or(0, |version| version.0));
        let id: Option<SessionId> = request.match_info().get("id").and_then(|id| id.parse().ok());
        let which = match moment {
            Some(moment) => Steps::At(moment),
            None => Steps::After(after, limit),
        };
        json(&find_history(&api, &request, &caller, id, which, purpose.as_deref()).await?)
    };
    answer(&request, outcome.await)
}

/// Which steps of a history.
#[derive(Debug, Clone, Copy)]
pub enum Steps {
    /// The one that made the state at a moment.
    At(Moment),
    /// Those after a version, at most so many.
    After(Version, usize),
}

/// The history of a session; `id` is `None` where it was no session id. Recorded before it is read.
///
/// # Errors
/// A [`Problem`]: 404 if the realm has no such session, or it had no such state.
pub async fn find_history(
    api: &AuditApi,
    request: &HttpRequest,
    caller: &Caller,
    id: Option<SessionId>,
    which: Steps,
    purpose: Option<&str>,
) -> Result<HistoryDocument, Problem> {
    let absent = || nothing_there("the realm has no such session, or it had no such state");
    let detail = fact("session", id.map_or_else(|| "malformed".to_owned(), |id| id.to_string()));
    record(api, request, caller, detail, purpose).await?;
    let id = id.ok_or_else(absent)?;
    let reveal = purpose.is_some();
    match which {
        Steps::At(moment) => {
            let step =
                api.of(&caller.realm).archive.state_at(&caller.realm, id, moment).await.map_err(search_problem)?;
            let items = vec![step_document(&step.ok_or_else(absent)?, reveal)?];
            Ok(HistoryDocument { items, next_cursor: None })
        }
        Steps::After(after, limit) => history(api, caller, id, after, limit, reveal).await,
    }
}

async fn history(
    api: &AuditApi,
    caller: &Caller,
    id: SessionId,
    after: Version,
    limit: usize,
    reveal: bool,
) -> Result<HistoryDocument, Problem> {
    let mut steps =
        api.of(&caller.realm).archive.history(&caller.realm, id, after, limit + 1).await.map_err(search_problem)?;
    if steps.is_empty() && after == Version::NONE {
        return Err(nothing_there("the realm has no such session, or it had no such state"));
    }
    let more = steps.len() > limit;
    steps.truncate(limit);
    let last = steps.last().and_then(|step| step.entry.leaf.version).filter(|_| more);
    let items = steps.iter().map(|step| step_document(step, reveal)).collect::<Result<Vec<_>, _>>()?;
    Ok(HistoryDocument { items, next_cursor: last.map(|version| Cursor::Entry(version.0).encode()) })
}

fn moment(version: Option<String>, at: Option<String>) -> Result<Option<Moment>, Problem> {
    match (version, at) {
        (None, None) => Ok(None),
        (Some(version), None) => match version.parse() {
            Ok(version @ 1..) => Ok(Some(Moment::Version(Version(version)))),
            Ok(_) | Err(_) => Err(Problem::malformed("#query/version", "must be a whole number from 1")),
        },
        (None, Some(at)) => match Timestamp::parse(&at) {
            Some(time) => Ok(Some(Moment::Time(time))),
            None => Err(Problem::malformed("#query/at", "must be an RFC 3339 time")),
        },
        (Some(_), Some(_)) => Err(Problem::malformed("#query/at", "is either version or at")),
    }
}

fn step_document(step: &Step, reveal: bool) -> Result<StepDocument, Problem> {
    let entry = if reveal { revealed(&step.entry)? } else { shown(&step.entry.stored)? };
    Ok(StepDocument { entry, state: step.state.as_ref().map(|session| state_document(session, reveal)).transpose()? })
}

fn state_document(session: &Session, reveal: bool) -> Result<StateDocument, Problem> {
    let ended = session.ended();
    let attributes = if reveal {
        let parsed = serde_json::from_str(session.attributes.as_json());
        Some(parsed.map_err(|_| Problem::new(ProblemCode::Internal, "the attributes cannot be read"))?)
    } else {
        None
    };
    let subject = session.subject.as_ref().filter(|_| reveal).map(ToString::to_string);
    let client = session.client.as_ref().filter(|_| reveal);
    Ok(StateDocument {
        version: session.version.0,
        state: if ended.is_some() { "ended" } else { "active" },
        kind: session.kind.name(),
        subject_bound: session.subject.is_some(),
        methods: session.authentication.as_ref().map(|how| how.methods.clone()),
        level: session.authentication.as_ref().and_then(|how| how.level.clone()),
        created_at: session.created_at,
        last_seen_at: session.last_seen_at,
        idle_expires_at: session.idle_expires_at(),
        expires_at: session.expires_at,
        ended_at: ended.map(|ended| ended.at),
        end_reason: ended.map(|ended| ended.reason.name().to_owned()),
        subject,
        attributes,
        client_address: client.and_then(|client| client.address).map(|address| address.to_string()),
        user_agent: client.and_then(|client| client.user_agent.as_ref()).map(ToString::to_string),
    })
}
