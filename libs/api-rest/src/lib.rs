//! REST: JSON to commands and back. No logic of its own: what may happen is decided in `session-model`, and done in
//! `session-service`.

mod documents;
mod openapi;
mod sessions;

pub use documents::{
    AuthenticationDocument, ClientDocument, EndedDocument, KindWord, PageDocument, ReasonWord, ReceiptDocument,
    SessionDocument, StateWord, ValidationDocument,
};
pub use openapi::{configure_docs, openapi_json};

use std::fmt;
use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Gate, Problem, ProblemCode, answer};
pub use api_http::{Observed, Observer};
use session_service::{ByRealm, Sessions};

/// What the REST interface is made of.
#[derive(Clone)]
pub struct RestApi {
    /// Does what is asked.
    pub service: Arc<Sessions>,
    /// Lets requests in.
    pub gate: Gate,
    /// Counts.
    pub observer: Observer,
    /// Origin of the log that each realm lives in, as receipts name it.
    pub origin: ByRealm<Arc<str>>,
    /// Bytes a body may have.
    pub max_body: usize,
}

impl fmt::Debug for RestApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RestApi({})", self.origin.first())
    }
}

/// Adds the routes of sessions and receipts.
pub fn configure(config: &mut web::ServiceConfig) {
    sessions::configure(config);
}

/// Answers every path that is not there.
pub async fn not_found(request: HttpRequest) -> HttpResponse {
    answer(&request, Err(Problem::new(ProblemCode::NotFound, "see /openapi.json for what there is")))
}
