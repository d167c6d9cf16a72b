//! The routes of sessions and receipts.

use access::Permission;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::rules::{self, METHODS, SUBJECT, USER_AGENT};
use api_http::{
    BadField, Cursor, Fields, Problem, ProblemCode, ProblemDocument, Request, answer, next_link, query, read_body,
};
use serde::Deserialize;
use session_model::{
    Attributes, Client, EndReason, Kind, LeafIndex, Limits, MergePatch, RealmName, Seconds, Session, SessionId,
    Version, check_text,
};
use session_service::{Happened, ListQuery, NewSession, ServiceError, Validation};
use utoipa::ToSchema;

use crate::documents::{EndedDocument, KindWord, PageDocument, ReceiptDocument, SessionDocument, ValidationDocument};
use crate::{Observed, RestApi};

const JSON: &[&str] = &["application/json"];
const MERGE_PATCH: &[&str] = &["application/merge-patch+json"];

/// Adds the routes.
pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/v1/sessions")
                .route(web::post().to(create))
                .route(web::get().to(list))
                .route(web::delete().to(end_matching))
                .default_service(web::route().to(|r| wrong_method(r, "GET, POST, DELETE"))),
        )
        .service(
            web::resource("/v1/sessions/validate")
                .route(web::post().to(validate))
                .default_service(web::route().to(|r| wrong_method(r, "POST"))),
        )
        .service(
            web::resource("/v1/sessions/{id}")
                .route(web::get().to(get))
                .route(web::patch().to(update))
                .route(web::delete().to(end))
                .default_service(web::route().to(|r| wrong_method(r, "GET, PATCH, DELETE"))),
        )
        .service(
            web::resource("/v1/sessions/{id}/touch")
                .route(web::post().to(touch))
                .default_service(web::route().to(|r| wrong_method(r, "POST"))),
        )
        .service(
            web::resource("/v1/sessions/{id}/authenticate")
                .route(web::post().to(authenticate))
                .default_service(web::route().to(|r| wrong_method(r, "POST"))),
        )
        .service(
            web::resource("/v1/sessions/{id}/renew")
                .route(web::post().to(renew))
                .default_service(web::route().to(|r| wrong_method(r, "POST"))),
        )
        .service(
            web::resource("/v1/subjects/{subject}/sessions")
                .route(web::delete().to(end_subject))
                .default_service(web::route().to(|r| wrong_method(r, "DELETE"))),
        )
        .service(
            web::resource("/v1/receipts/{index}")
                .route(web::get().to(receipt))
                .default_service(web::route().to(|r| wrong_method(r, "GET"))),
        );
}

async fn wrong_method(request: HttpRequest, allow: &'static str) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, format!("one of {allow}")).with(header::ALLOW, allow);
    answer(&request, Err(problem))
}

/// What a session begins with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "describes what is read field by field, so that every bad one can be named at once")]
pub(crate) struct NewSessionBody {
    /// Who it belongs to, if known.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    subject: Option<String>,
    /// What kind of client it serves; default `api`.
    kind: Option<KindWord>,
    /// What the application keeps in it.
    #[schema(value_type = Option<Object>)]
    attributes: Option<serde_json::Value>,
    /// Where its client is.
    client: Option<NewClientBody>,
    /// How its subject authenticated.
    authentication: Option<NewAuthenticationBody>,
    /// Seconds without use until it expires; at most the realm's.
    #[schema(minimum = 1)]
    idle_timeout_s: Option<u32>,
    /// Seconds until it expires; at most the realm's.
    #[schema(minimum = 1)]
    absolute_timeout_s: Option<u32>,
}

/// Where a client is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "as above")]
pub(crate) struct NewClientBody {
    /// IP address.
    #[schema(min_length = 1, max_length = 45)]
    address: Option<String>,
    /// `User-Agent`.
    #[schema(
        min_length = 1,
        max_length = 1024,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    user_agent: Option<String>,
}

/// One authentication method reference.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(min_length = 1, max_length = 64, pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$")]
#[allow(dead_code, reason = "as above")]
pub(crate) struct MethodWord(String);

/// How a subject authenticated.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "as above")]
pub(crate) struct NewAuthenticationBody {
    /// For instance RFC 8176 method references.
    #[schema(min_items = 1, max_items = 16, value_type = Vec<MethodWord>)]
    methods: Vec<String>,
    /// Assurance level: a text such as `aal2`, or a number from 1 to 4.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    level: Option<String>,
}

/// Binds an authenticated subject.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "as above")]
pub(crate) struct AuthenticateBody {
    /// Who.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    subject: String,
    /// For instance RFC 8176 method references.
    #[schema(min_items = 1, max_items = 16, value_type = Vec<MethodWord>)]
    methods: Vec<String>,
    /// Assurance level: a text such as `aal2`, or a number from 1 to 4.
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = "^[^\\u0000-\\u0008\\u000B\\u000C\\u000E-\\u001F\\uFFFE\\uFFFF]+$"
    )]
    level: Option<String>,
}

/// A token to validate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ValidateBody<'a> {
    /// The token as the client sent it.
    #[serde(borrow)]
    token: &'a str,
}

impl RestApi {
    fn document<'a>(&self, session: &'a Session) -> SessionDocument<'a> {
        let interval = self.service.policy(&session.realm).map_or(Seconds(0), |policy| policy.renewal_interval);
        SessionDocument::new(session, interval)
    }

    fn limits(&self, realm: &RealmName) -> Limits {
        self.service.policy(realm).map(|policy| policy.limits).unwrap_or_default()
    }

    /// The answer to a change.
    fn changed(&self, status: StatusCode, changed: &Happened) -> Result<HttpResponse, Problem> {
        if changed.replayed {
            (self.observer)(Observed::Replayed);
        }
        let mut body = Vec::with_capacity(1_024);
        let origin = self.origin.of(&changed.session.realm);
        write(&self.document(&changed.session).changed(origin, changed), &mut body)?;
        let mut response = HttpResponse::build(status);
        response
            .content_type("application/json")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::ETAG, etag(changed.session.version)));
        if let Some(place) = &changed.place {
            response.insert_header(("counterfoil-index", place.index.0.to_string()));
        }
        if status == StatusCode::CREATED {
            response.insert_header((header::LOCATION, format!("/v1/sessions/{}", changed.session.id)));
        }
        Ok(response.body(body))
    }

    fn session(&self, session: &Session) -> Result<HttpResponse, Problem> {
        let mut body = Vec::with_capacity(1_024);
        write(&self.document(session), &mut body)?;
        Ok(HttpResponse::Ok()
            .content_type("application/json")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::ETAG, etag(session.version)))
            .body(body))
    }

    fn ended(&self, realm: &RealmName, all: &[Happened]) -> HttpResponse {
        all.iter().for_each(|_| (self.observer)(Observed::Ended("requested")));
        let origin = self.origin.of(realm);
        let places: Vec<_> = all.iter().filter_map(|one| one.place).collect();
        let receipts: Vec<_> = places.iter().map(|place| ReceiptDocument::new(origin, place)).collect();
        let mut response = HttpResponse::Ok();
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(last) = places.iter().map(|place| place.index.0).max() {
            response.insert_header(("counterfoil-index", last.to_string()));
        }
        response.json(EndedDocument { ended: all.len(), receipts })
    }
}

fn write(document: &SessionDocument<'_>, body: &mut Vec<u8>) -> Result<(), Problem> {
    document.write(body).map_err(|_| Problem::new(ProblemCode::Internal, "the session cannot be written"))
}

fn etag(version: Version) -> String {
    format!("\"{version}\"")
}

/// A path that is no id leads to no session: whether one exists is not told apart from whether one could.
fn session_id(request: &HttpRequest) -> Result<SessionId, Problem> {
    let id = request.match_info().get("id").and_then(|id| id.parse().ok());
    id.ok_or_else(|| Problem::from(ServiceError::NotFound))
}

fn reason(given: Option<String>) -> Result<EndReason, Problem> {
    rules::reason(given.as_deref()).ok_or_else(|| Problem::invalid(vec![BadField::new("#query/reason", rules::REASON)]))
}

fn kind(given: Option<String>) -> Result<Option<Kind>, Problem> {
    given
        .map(|word| rules::kind(&word).ok_or_else(|| Problem::malformed("#query/kind", "is not a kind of session")))
        .transpose()
}

fn subject_of(given: Option<String>) -> Result<Option<Box<str>>, Problem> {
    match given {
        Some(subject) => match check_text(&subject, SUBJECT) {
            Ok(()) => Ok(Some(subject.into())),
            Err(fault) => Err(Problem::malformed("#query/subject", &fault.to_string())),
        },
        None => Ok(None),
    }
}

/// Begins a session. Its token is shown in this answer only.
#[utoipa::path(
    post,
    path = "/v1/sessions",
    tag = "Sessions",
    operation_id = "createSession",
    security(("api_key" = [])),
    request_body(content = NewSessionBody, content_type = "application/json"),
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$", description = "The same key and body replay the first answer for 24 hours"),
    ),
    responses(
        (status = 201, body = SessionDocument, description = "The session, with its token", headers(
            ("Location" = String, description = "Its path"),
            ("ETag" = String, description = "Its version"),
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry; not there in a realm of profile transient"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 409, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Nothing was changed, unless the code is outcome_unknown"),
    )
)]
pub(crate) async fn create(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        let body = read_body(&request, payload, JSON, api.max_body).await?;
        let new = new_session(&body, &api.limits(&asked.caller.realm))?;
        let idempotency = asked.idempotency(&request, &body)?;
        let changed = api.service.create(&asked.caller, new, idempotency).await?;
        if !changed.replayed {
            (api.observer)(Observed::Created);
        }
        api.changed(StatusCode::CREATED, &changed)
    };
    answer(&request, outcome.await)
}

fn new_session(body: &[u8], limits: &Limits) -> Result<NewSession, Problem> {
    let mut fields = Fields::of_body(body, false)?;
    let subject = fields.text("subject", SUBJECT);
    let kind = match fields.text("kind", 16) {
        None => Kind::Api,
        Some(word) => rules::kind(&word).unwrap_or_else(|| {
            fields.refuse("kind", "is not a kind of session");
            Kind::Api
        }),
    };
    let attributes = match fields.raw("attributes").map(|raw| Attributes::parse(raw.get(), limits)) {
        None => Attributes::empty(),
        Some(Ok(attributes)) => attributes,
        Some(Err(fault)) => {
            fields.refuse_at(&format!("/attributes{}", fault.pointer()), &fault.to_string());
            Attributes::empty()
        }
    };
    let client = fields.object("client").map(|mut inner| {
        let client = Client { address: inner.address("address"), user_agent: inner.text("user_agent", USER_AGENT) };
        fields.finish_inner(inner);
        client
    });
    let authentication = fields.object("authentication").map(|mut inner| {
        let methods = inner.texts("methods", METHODS.0, METHODS.1);
        if methods.is_none() {
            inner.refuse("methods", "is required: a list of method references");
        }
        let level = inner.level("level");
        fields.finish_inner(inner);
        (methods.unwrap_or_default(), level)
    });
    let idle_timeout = fields.seconds("idle_timeout_s").map(Seconds);
    let absolute_timeout = fields.seconds("absolute_timeout_s").map(Seconds);
    if authentication.is_some() && subject.is_none() {
        fields.refuse("subject", "is required where there is an authentication");
    }
    fields.done()?;
    let subject = subject.map(String::into_boxed_str);
    Ok(NewSession { subject, kind, attributes, authentication, client, idle_timeout, absolute_timeout })
}

/// Says what a token is worth, and counts as use of its session.
#[utoipa::path(
    post,
    path = "/v1/sessions/validate",
    tag = "Sessions",
    operation_id = "validateSession",
    security(("api_key" = [])),
    request_body(content = ValidateBody, content_type = "application/json"),
    params(("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the answer must reflect")),
    responses(
        (status = 200, body = ValidationDocument, description = "What it is worth"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Neither the view nor the log could tell"),
    )
)]
pub(crate) async fn validate(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let body = read_body(&request, payload, JSON, api.max_body).await?;
        let validation = match serde_json::from_slice::<ValidateBody<'_>>(&body) {
            Ok(body) => api.service.validate(&asked.caller, body.token).await?,
            // Something is wrong with it, or the text is escaped: read it the slow way, which can say what.
            Err(_) => {
                let mut fields = Fields::of_body(&body, false)?;
                let token = fields.required_text("token", 4_096);
                fields.done()?;
                api.service.validate(&asked.caller, &token).await?
            }
        };
        let mut body = Vec::with_capacity(1_024);
        match &validation {
            Validation::Active(session) => {
                (api.observer)(Observed::Validated("active"));
                body.extend_from_slice(b"{\"active\":true,\"session\":");
                write(&api.document(session), &mut body)?;
                body.push(b'}');
            }
            Validation::Inactive(reason) => {
                (api.observer)(Observed::Validated(reason.name()));
                body.extend_from_slice(b"{\"active\":false,\"reason\":\"");
                body.extend_from_slice(reason.name().as_bytes());
                body.extend_from_slice(b"\"}");
            }
        }
        Ok(HttpResponse::Ok()
            .content_type("application/json")
            .insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
            .body(body))
    };
    answer(&request, outcome.await)
}

/// A session by its id. Does not count as use.
#[utoipa::path(
    get,
    path = "/v1/sessions/{id}",
    tag = "Sessions",
    operation_id = "getSession",
    security(("api_key" = [])),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the answer must reflect"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The session", headers(("ETag" = String, description = "Its version"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Neither the view nor the log could tell"),
    )
)]
pub(crate) async fn get(api: web::Data<RestApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        api.session(&*api.service.get(&asked.caller, session_id(&request)?).await?)
    };
    answer(&request, outcome.await)
}

/// Changes attributes by an RFC 7396 merge patch. Without `If-Match` disjoint changes all survive.
#[utoipa::path(
    patch,
    path = "/v1/sessions/{id}",
    tag = "Sessions",
    operation_id = "updateSession",
    security(("api_key" = [])),
    request_body(content = Object, content_type = "application/merge-patch+json"),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("If-Match" = Option<String>, Header, pattern = "^(\\*|\"[^\"]*\")$", description = "The version it must still have, as its ETag"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the change must build on"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The session", headers(
            ("ETag" = String, description = "Its new version"),
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry; not there in a realm of profile transient"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 409, 412, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Nothing was changed, unless the code is outcome_unknown"),
    )
)]
pub(crate) async fn update(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        let id = session_id(&request)?;
        let expected = if_match(&request)?;
        let body = read_body(&request, payload, MERGE_PATCH, api.max_body).await?;
        // Read as an object first: what is not JSON, or not UTF-8, is told apart from what is not allowed.
        Fields::of_body(&body, false)?;
        let text = std::str::from_utf8(&body).unwrap_or_default();
        let patch = MergePatch::parse(text, &api.limits(&asked.caller.realm))
            .map_err(|fault| Problem::invalid(vec![BadField::new(fault.pointer(), &fault.to_string())]))?;
        let changed = api.service.update(&asked.caller, id, patch, expected).await?;
        api.changed(StatusCode::OK, &changed)
    };
    answer(&request, outcome.await)
}

/// The version in `If-Match` (RFC 9110 section 13.1.1): one strong tag; `*` is any version of a session that exists.
fn if_match(request: &HttpRequest) -> Result<Option<Version>, Problem> {
    let mut values = request.headers().get_all(header::IF_MATCH);
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" && values.next().is_none() {
        return Ok(None);
    }
    let malformed = || Problem::malformed("#header/if-match", "must be one ETag of this session, or *");
    if values.next().is_some() {
        return Err(malformed());
    }
    let tag = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(malformed)?;
    // A tag that was never ours matches no version: stale, not malformed.
    Ok(Some(Version(tag.parse().unwrap_or(u64::MAX))))
}

/// Counts as use; answers the new deadlines. No entry.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/touch",
    tag = "Sessions",
    operation_id = "touchSession",
    security(("api_key" = [])),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the answer must reflect"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The session", headers(("ETag" = String, description = "Its version"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 409, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Neither the view nor the log could tell"),
    )
)]
pub(crate) async fn touch(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        let id = session_id(&request)?;
        no_body(&api, &request, payload).await?;
        api.session(&*api.service.touch(&asked.caller, id).await?)
    };
    answer(&request, outcome.await)
}

/// A request that says everything by its path may have an empty object as its body, or none.
async fn no_body(api: &RestApi, request: &HttpRequest, payload: web::Payload) -> Result<web::Bytes, Problem> {
    if !request.headers().contains_key(header::CONTENT_TYPE) {
        return match payload.to_bytes_limited(2).await {
            Ok(Ok(bytes)) if bytes.is_empty() => Ok(bytes),
            Ok(Ok(_)) | Err(_) => {
                Err(Problem::new(ProblemCode::UnsupportedMediaType, "send no body, or application/json"))
            }
            Ok(Err(_)) => Err(Problem::new(ProblemCode::MalformedRequest, "the body broke off or is wrongly framed")),
        };
    }
    let body = read_body(request, payload, JSON, api.max_body).await?;
    Fields::of_body(&body, true)?.done()?;
    Ok(body)
}

/// Binds an authenticated subject. The token is rotated, and the old one refused from now on.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/authenticate",
    tag = "Sessions",
    operation_id = "authenticateSession",
    security(("api_key" = [])),
    request_body(content = AuthenticateBody, content_type = "application/json"),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$", description = "The same key and body replay the first answer for 24 hours"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the change must build on"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The session, with its new token", headers(
            ("ETag" = String, description = "Its new version"),
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry; not there in a realm of profile transient"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 409, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Nothing was changed, unless the code is outcome_unknown"),
    )
)]
pub(crate) async fn authenticate(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        let id = session_id(&request)?;
        let body = read_body(&request, payload, JSON, api.max_body).await?;
        let mut fields = Fields::of_body(&body, false)?;
        let subject = fields.required_text("subject", SUBJECT);
        let methods = fields.texts("methods", METHODS.0, METHODS.1);
        if methods.is_none() {
            fields.refuse("methods", "is required: a list of method references");
        }
        let level = fields.level("level");
        fields.done()?;
        let idempotency = asked.idempotency(&request, &body)?;
        let methods = methods.unwrap_or_default();
        let changed = api.service.authenticate(&asked.caller, id, subject.into(), methods, level, idempotency).await?;
        (api.observer)(Observed::Renewed);
        api.changed(StatusCode::OK, &changed)
    };
    answer(&request, outcome.await)
}

/// Rotates the token. The old one is honoured for the realm's overlap only.
#[utoipa::path(
    post,
    path = "/v1/sessions/{id}/renew",
    tag = "Sessions",
    operation_id = "renewSession",
    security(("api_key" = [])),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[ -~]+$", description = "The same key and body replay the first answer for 24 hours"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the change must build on"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The session, with its new token", headers(
            ("ETag" = String, description = "Its new version"),
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry; not there in a realm of profile transient"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 409, 413, 415, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Nothing was changed, unless the code is outcome_unknown"),
    )
)]
pub(crate) async fn renew(api: web::Data<RestApi>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [] = query(&request, [])?;
        let id = session_id(&request)?;
        let body = no_body(&api, &request, payload).await?;
        let idempotency = asked.idempotency(&request, &body)?;
        let changed = api.service.renew(&asked.caller, id, idempotency).await?;
        (api.observer)(Observed::Renewed);
        api.changed(StatusCode::OK, &changed)
    };
    answer(&request, outcome.await)
}

/// Ends a session. Ending it again answers the same, with the same receipt.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{id}",
    tag = "Sessions",
    operation_id = "endSession",
    security(("api_key" = [])),
    params(
        ("id" = String, Path, format = "uuid", description = "Session id"),
        ("reason" = Option<String>, Query, pattern = "^[a-z0-9_]{1,64}$", description = "A word for the log; default logout"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the change must build on"),
    ),
    responses(
        (status = 200, body = SessionDocument, description = "The ended session", headers(
            ("ETag" = String, description = "Its last version"),
            ("Counterfoil-Index" = u64, description = "Leaf index of the entry; not there in a realm of profile transient"))),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "Nothing was changed, unless the code is outcome_unknown"),
    )
)]
pub(crate) async fn end(api: web::Data<RestApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [word] = query(&request, ["reason"])?;
        let changed = api.service.end(&asked.caller, session_id(&request)?, reason(word)?).await?;
        if !changed.replayed {
            (api.observer)(Observed::Ended("requested"));
        }
        api.changed(StatusCode::OK, &Happened { replayed: false, ..changed })
    };
    answer(&request, outcome.await)
}

/// Sessions of the realm, newest first.
#[utoipa::path(
    get,
    path = "/v1/sessions",
    tag = "Sessions",
    operation_id = "listSessions",
    security(("api_key" = [])),
    params(
        ("subject" = Option<String>, Query, min_length = 1, max_length = 256, description = "Of this subject"),
        ("state" = Option<String>, Query, pattern = "^(active|ended)$", description = "active or ended"),
        ("kind" = Option<KindWord>, Query, description = "Of this kind"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Sessions a page; default 50"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "next_cursor of the page before"),
        ("Counterfoil-Min-Index" = Option<u64>, Header, description = "Leaf index that the answer must reflect"),
    ),
    responses(
        (status = 200, body = PageDocument, description = "A page"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub(crate) async fn list(api: web::Data<RestApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [subject, state, kind_word, limit, cursor] =
            query(&request, ["subject", "state", "kind", "limit", "cursor"])?;
        let active = match state.as_deref() {
            None => None,
            Some("active") => Some(true),
            Some("ended") => Some(false),
            Some(_) => return Err(Problem::malformed("#query/state", "must be active or ended")),
        };
        let limit = match limit.as_deref().map(str::parse::<usize>) {
            None => 50,
            Some(Ok(limit @ 1..=500)) => limit,
            Some(Ok(_) | Err(_)) => return Err(Problem::malformed("#query/limit", "must be from 1 to 500")),
        };
        let before = match cursor.as_deref().map(Cursor::decode) {
            None => None,
            Some(Some(Cursor::Session(id))) => Some(SessionId::new(id)),
            Some(Some(Cursor::Entry(_)) | None) => {
                return Err(Problem::malformed("#query/cursor", "is not a cursor of this list"));
            }
        };
        let query = ListQuery { subject: subject_of(subject)?, active, kind: kind(kind_word)?, before, limit };
        let page = api.service.list(&asked.caller, &query).await?;
        let mut body = b"{\"items\":[".to_vec();
        for (at, session) in page.items.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            write(&api.document(session), &mut body)?;
        }
        body.push(b']');
        let mut response = HttpResponse::Ok();
        if let Some(next) = page.next.map(|id| Cursor::Session(id.uuid()).encode()) {
            body.extend_from_slice(format!(",\"next_cursor\":\"{next}\"").as_bytes());
            response.insert_header((header::LINK, next_link(&request, &next)));
        }
        body.push(b'}');
        Ok(response.content_type("application/json").insert_header((header::CACHE_CONTROL, "no-store")).body(body))
    };
    answer(&request, outcome.await)
}

/// Ends every session of a subject: log out everywhere.
#[utoipa::path(
    delete,
    path = "/v1/subjects/{subject}/sessions",
    tag = "Sessions",
    operation_id = "endSubjectSessions",
    security(("api_key" = [])),
    params(
        ("subject" = String, Path, description = "The subject"),
        ("except" = Option<String>, Query, format = "uuid", description = "Id of the one session to leave open"),
        ("reason" = Option<String>, Query, pattern = "^[a-z0-9_]{1,64}$", description = "A word for the log; default logout"),
    ),
    responses(
        (status = 200, body = EndedDocument, description = "How many, and a receipt for each that is an entry"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable; some may have ended"),
    )
)]
pub(crate) async fn end_subject(
    api: web::Data<RestApi>,
    request: HttpRequest,
    subject: web::Path<String>,
) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::KeepSessions)?;
        let [except, word] = query(&request, ["except", "reason"])?;
        if let Err(fault) = check_text(&subject, SUBJECT) {
            return Err(Problem::malformed("#path/subject", &fault.to_string()));
        }
        let except = except
            .map(|id| id.parse().map_err(|_| Problem::malformed("#query/except", "must be a session id")))
            .transpose()?;
        let ended = api.service.end_subject(&asked.caller, &subject, except, reason(word)?).await?;
        Ok(api.ended(&asked.caller.realm, &ended))
    };
    answer(&request, outcome.await)
}

/// Ends every session of the realm that matches. For operators; asks for `confirm=true`.
#[utoipa::path(
    delete,
    path = "/v1/sessions",
    tag = "Sessions",
    operation_id = "endMatchingSessions",
    security(("api_key" = [])),
    params(
        ("confirm" = bool, Query, description = "Must be true"),
        ("subject" = Option<String>, Query, min_length = 1, max_length = 256, description = "Of this subject"),
        ("kind" = Option<KindWord>, Query, description = "Of this kind"),
        ("reason" = Option<String>, Query, pattern = "^[a-z0-9_]{1,64}$", description = "A word for the log; default logout"),
    ),
    responses(
        (status = 200, body = EndedDocument, description = "How many, and a receipt for each that is an entry"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 422, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable; some may have ended"),
    )
)]
pub(crate) async fn end_matching(api: web::Data<RestApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let asked: Request = api.gate.admit(&request, Permission::EndInBulk)?;
        let [confirm, subject, kind_word, word] = query(&request, ["confirm", "subject", "kind", "reason"])?;
        if confirm.as_deref() != Some("true") {
            let rule = "must be true: this ends every session that matches";
            return Err(Problem::invalid(vec![BadField::new("#query/confirm", rule)]));
        }
        let subject = subject_of(subject)?;
        let ended =
            api.service.end_matching(&asked.caller, subject.as_deref(), kind(kind_word)?, reason(word)?).await?;
        Ok(api.ended(&asked.caller.realm, &ended))
    };
    answer(&request, outcome.await)
}

/// The full receipt of an entry of the realm: C2SP tlog-proof text, to be kept and verified without us.
#[utoipa::path(
    get,
    path = "/v1/receipts/{index}",
    tag = "Receipts",
    operation_id = "getReceipt",
    security(("api_key" = [])),
    params(("index" = u64, Path, description = "Leaf index")),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "Index, inclusion proof and signed checkpoint"),
        (status = "4XX", body = ProblemDocument, content_type = "application/problem+json", description = "400, 401, 403, 404, 429"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json", description = "The log is unavailable"),
    )
)]
pub(crate) async fn receipt(api: web::Data<RestApi>, request: HttpRequest) -> HttpResponse {
    let outcome = async {
        let asked = api.gate.admit(&request, Permission::ReadReceipts)?;
        let [] = query(&request, [])?;
        let absent = || Problem::new(ProblemCode::NotFound, "the realm has no entry at this index");
        let index: u64 = request.match_info().get("index").and_then(|i| i.parse().ok()).ok_or_else(absent)?;
        let receipt = match api.service.receipt(&asked.caller.realm, LeafIndex(index)).await {
            Ok(receipt) => receipt,
            Err(ServiceError::NotFound) => return Err(absent()),
            Err(failure) => return Err(failure.into()),
        };
        Ok(HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .body(receipt.to_string()))
    };
    answer(&request, outcome.await)
}
