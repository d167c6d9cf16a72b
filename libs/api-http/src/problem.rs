//! RFC 9457 problem documents: every answer of 400 and above.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use session_service::{ServiceError, Unavailable};
use tracing::error;
use utoipa::ToSchema;

use crate::body::BadField;
use crate::request::Trace;

/// A stable, machine-readable name of what went wrong. With each comes its status and its title.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "title() says what each means")]
pub enum ProblemCode {
    MalformedJson,
    MalformedRequest,
    ValidationFailed,
    CredentialRequired,
    NotAllowed,
    NotFound,
    MethodNotAllowed,
    SessionNotFound,
    SessionEnded,
    VersionConflict,
    LimitReached,
    NothingHeld,
    LegalHold,
    NoLog,
    IdempotencyKeyReused,
    IdempotencyInFlight,
    BodyTooLarge,
    UnsupportedMediaType,
    RateLimited,
    LogUnavailable,
    StoreUnavailable,
    TooFewNodes,
    ViewFull,
    Overloaded,
    NotCaughtUp,
    OutcomeUnknown,
    Internal,
}

impl ProblemCode {
    /// Every code.
    pub const ALL: [Self; 27] = [
        Self::MalformedJson,
        Self::MalformedRequest,
        Self::ValidationFailed,
        Self::CredentialRequired,
        Self::NotAllowed,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::SessionNotFound,
        Self::SessionEnded,
        Self::VersionConflict,
        Self::LimitReached,
        Self::NothingHeld,
        Self::LegalHold,
        Self::NoLog,
        Self::IdempotencyKeyReused,
        Self::IdempotencyInFlight,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::RateLimited,
        Self::LogUnavailable,
        Self::StoreUnavailable,
        Self::TooFewNodes,
        Self::ViewFull,
        Self::Overloaded,
        Self::NotCaughtUp,
        Self::OutcomeUnknown,
        Self::Internal,
    ];

    /// The word in `code`, and the last part of `type`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::MalformedRequest => "malformed_request",
            Self::ValidationFailed => "validation_failed",
            Self::CredentialRequired => "credential_required",
            Self::NotAllowed => "not_allowed",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::SessionNotFound => "session_not_found",
            Self::SessionEnded => "session_ended",
            Self::VersionConflict => "version_conflict",
            Self::LimitReached => "limit_reached",
            Self::NothingHeld => "nothing_held",
            Self::LegalHold => "legal_hold",
            Self::NoLog => "no_log",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::IdempotencyInFlight => "idempotency_in_flight",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
            Self::LogUnavailable => "log_unavailable",
            Self::StoreUnavailable => "store_unavailable",
            Self::TooFewNodes => "too_few_nodes",
            Self::ViewFull => "view_full",
            Self::Overloaded => "overloaded",
            Self::NotCaughtUp => "not_caught_up",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Internal => "internal",
        }
    }

    /// One sentence for people; the same for every occurrence.
    pub const fn title(self) -> &'static str {
        match self {
            Self::MalformedJson => "The body is not JSON",
            Self::MalformedRequest => "A header or a query parameter is malformed",
            Self::ValidationFailed => "The request does not pass validation",
            Self::CredentialRequired => "A valid credential is required",
            Self::NotAllowed => "The credential does not allow this",
            Self::NotFound => "There is nothing at this path",
            Self::MethodNotAllowed => "The path does not have this method",
            Self::SessionNotFound => "There is no such session",
            Self::SessionEnded => "The session has ended",
            Self::VersionConflict => "The session is at another version",
            Self::LimitReached => "The subject has as many open sessions as it may",
            Self::NothingHeld => "Nothing is held on the subject",
            Self::LegalHold => "The subject is under legal hold, so nothing was erased",
            Self::NoLog => "The realm keeps no log, so this cannot be promised",
            Self::IdempotencyKeyReused => "The idempotency key was used with another request",
            Self::IdempotencyInFlight => "A request with this idempotency key is still under way",
            Self::BodyTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "The body has the wrong media type",
            Self::RateLimited => "Too many requests",
            Self::LogUnavailable => "The audit log is unavailable, so nothing was changed",
            Self::StoreUnavailable => "The store of the realm's sessions is unavailable, so nothing was changed",
            Self::TooFewNodes => "Too few nodes are within reach, so nothing was done",
            Self::ViewFull => "There is no room for another session, so nothing was changed",
            Self::Overloaded => "Too many changes are waiting, so nothing was changed",
            Self::NotCaughtUp => "This node has not seen the leaf index asked for",
            Self::OutcomeUnknown => "It is not known whether the change was recorded",
            Self::Internal => "The service failed",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson | Self::MalformedRequest => StatusCode::BAD_REQUEST,
            Self::ValidationFailed | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::CredentialRequired => StatusCode::UNAUTHORIZED,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::NotFound | Self::SessionNotFound | Self::NothingHeld => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::SessionEnded | Self::LimitReached | Self::LegalHold | Self::NoLog | Self::IdempotencyInFlight => {
                StatusCode::CONFLICT
            }
            Self::VersionConflict => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::LogUnavailable
            | Self::StoreUnavailable
            | Self::TooFewNodes
            | Self::ViewFull
            | Self::Overloaded
            | Self::NotCaughtUp
            | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// How a problem is told through SOAP: one row for each code, here beside its HTTP status so that the two cannot part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoapFault {
    /// The word of the interface contract, in the fault's detail.
    pub code: &'static str,
    /// Whether the fault is the sender's (`Client`, `Sender`) or ours (`Server`, `Receiver`).
    pub sender: bool,
    /// Whether the same message may succeed later.
    pub retryable: bool,
}

impl ProblemCode {
    /// The SOAP fault that tells of it.
    pub const fn soap(self) -> SoapFault {
        let (code, sender, retryable) = match self {
            Self::MalformedJson
            | Self::MalformedRequest
            | Self::ValidationFailed
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::IdempotencyKeyReused
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType => ("VALIDATION_FAILED", true, false),
            Self::CredentialRequired | Self::NotAllowed => ("NOT_ALLOWED", true, false),
            Self::SessionNotFound => ("SESSION_NOT_FOUND", true, false),
            Self::SessionEnded => ("SESSION_ENDED", true, false),
            Self::VersionConflict => ("VERSION_CONFLICT", true, false),
            Self::LimitReached => ("LIMIT_REACHED", true, false),
            Self::NothingHeld | Self::LegalHold | Self::NoLog => ("VALIDATION_FAILED", true, false),
            Self::RateLimited => ("LIMIT_REACHED", true, true),
            Self::IdempotencyInFlight
            | Self::LogUnavailable
            | Self::StoreUnavailable
            | Self::TooFewNodes
            | Self::ViewFull
            | Self::Overloaded
            | Self::NotCaughtUp => ("UNAVAILABLE", false, true),
            // Repeating it blindly could do it twice.
            Self::OutcomeUnknown => ("UNAVAILABLE", false, false),
            Self::Internal => ("INTERNAL", false, false),
        };
        SoapFault { code, sender, retryable }
    }
}

/// A problem on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    code: ProblemCode,
    detail: String,
    fields: Vec<BadField>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The document that the client reads.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemDocument {
    /// `urn:counterfoil:problem:` and the code.
    #[schema(example = "urn:counterfoil:problem:session_ended")]
    pub r#type: String,
    /// One sentence for people, the same for every occurrence.
    pub title: &'static str,
    /// The HTTP status.
    #[schema(example = 409)]
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// Stable and machine-readable.
    pub code: ProblemCode,
    /// W3C trace id of the request, to be quoted when asking for help.
    pub trace_id: String,
    /// Each field that is bad.
    pub errors: Vec<ProblemField>,
}

/// A field that is bad.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProblemField {
    /// JSON pointer (RFC 6901) into the body, or `#query/name`, `#header/name`, `#path/name`.
    #[schema(example = "/attributes/a")]
    pub pointer: String,
    /// What is wrong with it. Never repeats its value.
    pub detail: String,
}

impl Problem {
    /// A problem with this code.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), fields: Vec::new(), headers: Vec::new() }
    }

    /// Fields that do not pass validation.
    pub fn invalid(fields: Vec<BadField>) -> Self {
        Self { fields, ..Self::new(ProblemCode::ValidationFailed, "see errors for each bad field") }
    }

    /// A header or a query parameter that cannot be read.
    pub fn malformed(pointer: &str, detail: &str) -> Self {
        let fields = vec![BadField::new(pointer, detail)];
        Self { fields, ..Self::new(ProblemCode::MalformedRequest, "a header or a query parameter is malformed") }
    }

    /// With a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    /// What kind of problem.
    pub const fn code(&self) -> ProblemCode {
        self.code
    }

    /// What went wrong this time.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The bad fields: pointer, and what is wrong.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(BadField::parts)
    }

    /// What the client reads.
    pub fn document(&self, trace: &Trace) -> ProblemDocument {
        ProblemDocument {
            r#type: format!("urn:counterfoil:problem:{}", self.code.name()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: self.detail.clone(),
            code: self.code,
            trace_id: trace.id().to_owned(),
            errors: self.fields.iter().cloned().map(BadField::into_problem_field).collect(),
        }
    }

    /// The answer.
    pub fn response(self, trace: &Trace) -> HttpResponse {
        let document = self.document(trace);
        let mut response = HttpResponse::build(self.code.status());
        for header in self.headers {
            response.append_header(header);
        }
        if self.code.status() == StatusCode::SERVICE_UNAVAILABLE || self.code == ProblemCode::RateLimited {
            response.insert_header((header::RETRY_AFTER, "1"));
        }
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        response.insert_header(("traceparent", trace.parent()));
        response.content_type("application/problem+json");
        match serde_json::to_vec(&document) {
            Ok(body) => response.body(body),
            Err(failure) => {
                error!(%failure, "a problem document cannot be written");
                response.finish()
            }
        }
    }
}

/// What became of a request, as an answer.
pub fn answer(request: &HttpRequest, outcome: Result<HttpResponse, Problem>) -> HttpResponse {
    let trace = Trace::of(request);
    match outcome {
        Ok(mut response) => {
            if let Ok(parent) = HeaderValue::from_str(trace.parent()) {
                response.headers_mut().insert(HeaderName::from_static("traceparent"), parent);
            }
            response
        }
        Err(problem) => problem.response(&trace),
    }
}

impl From<ServiceError> for Problem {
    fn from(failure: ServiceError) -> Self {
        use ProblemCode as C;
        match failure {
            ServiceError::NotFound => Self::new(C::SessionNotFound, "there is no such session in this realm"),
            ServiceError::Ended(ended) => {
                Self::new(C::SessionEnded, format!("ended at {}: {}", ended.at, ended.reason))
            }
            ServiceError::StaleVersion { current } => {
                Self::new(C::VersionConflict, format!("the session is at version {current}"))
            }
            ServiceError::Attributes(failure) => {
                Self::invalid(vec![BadField::new(failure.pointer(), &failure.to_string())])
            }
            ServiceError::Timeout { field, limit } => Self::invalid(vec![BadField::new(
                &format!("/{field}"),
                &format!("must be from 1 to {}, the realm's policy", limit.0),
            )]),
            ServiceError::LimitReached { cap } => {
                Self::new(C::LimitReached, format!("the subject has {cap} open sessions, as many as the realm allows"))
            }
            ServiceError::NothingHeld => {
                Self::new(C::NothingHeld, "the realm holds nothing of this kind on the subject")
            }
            ServiceError::LegalHold => Self::new(C::LegalHold, "release the hold first"),
            ServiceError::NoLog => Self::new(C::NoLog, "its profile is transient"),
            ServiceError::IdempotencyMismatch => {
                Self::new(C::IdempotencyKeyReused, "use a new key for another request")
            }
            ServiceError::IdempotencyInFlight => Self::new(C::IdempotencyInFlight, "wait for the first request"),
            ServiceError::Unavailable(Unavailable::LogWrite | Unavailable::LogRead) => {
                Self::new(C::LogUnavailable, "try again shortly")
            }
            ServiceError::Unavailable(Unavailable::Overloaded) => Self::new(C::Overloaded, "try again shortly"),
            ServiceError::Unavailable(Unavailable::ViewFull) => {
                Self::new(C::ViewFull, "end sessions, or raise view.memory_bytes, or transient.memory_bytes")
            }
            ServiceError::Unavailable(Unavailable::Store) => Self::new(C::StoreUnavailable, "try again shortly"),
            ServiceError::Unavailable(Unavailable::TooFewNodes) => {
                Self::new(C::TooFewNodes, "ask another node, or try again shortly")
            }
            ServiceError::Unavailable(Unavailable::Behind) => Self::new(C::NotCaughtUp, "try again shortly"),
            ServiceError::OutcomeUnknown => {
                Self::new(C::OutcomeUnknown, "read the session, or repeat the request with the same Idempotency-Key")
            }
            ServiceError::NothingToDo | ServiceError::Internal(_) => {
                error!(%failure, "a request failed by our own fault");
                Self::new(C::Internal, "the fault is ours; quote the trace id")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_as_it_is_named() {
        for code in ProblemCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{}\"", code.name()));
            assert!(code.status().as_u16() >= 400 && !code.title().is_empty());
        }
    }

    #[test]
    fn a_problem_is_the_senders_through_both_mouths_or_neither() {
        for code in ProblemCode::ALL {
            let fault = code.soap();
            let ours = code.status().is_server_error() || code == ProblemCode::IdempotencyInFlight;
            assert_eq!(fault.sender, !ours, "{code:?}");
        }
    }
}
