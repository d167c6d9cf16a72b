//! The console: pages for auditors and operators, rendered here, working without JavaScript but for the proof that the browser
//! recomputes.
//!
//! It reads through [`AuditApi`], so each page that shows entries is recorded as a reading, as the API's answers are. Of
//! the session service it uses what any application does, for the visit of whoever signed in: a Counterfoil session like others,
//! with the realm's own timeouts. It shows no page to an application's key.
//!
//! What a browser runs or loads comes from here alone: one style sheet and one script, under names that change with their content.
//!
//! Start with [`Console`], then `visit.rs`.

mod assets;
mod chart;
mod entries;
mod form;
mod page;
mod people;
mod show;
mod status;
mod subjects;
mod timeline;
mod visit;

use std::fmt;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpRequest, HttpResponse, Resource, Route, web};
use api_audit::{AuditApi, EvidenceApi};
use api_http::{Problem, ProblemCode};
use sealing::Keyring;
use session_service::SessionService;

use crate::assets::Assets;
pub use crate::people::{Grant, People};

/// Nothing but our own style, script and forms; no inline code; no frame around us (CSP level 3).
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// What the console is made of.
#[derive(Clone)]
pub struct Console {
    audit: web::Data<AuditApi>,
    evidence: EvidenceApi,
    sessions: Arc<SessionService>,
    keyring: Keyring,
    people: Option<Arc<People>>,
    assets: Arc<Assets>,
}

impl Console {
    /// A console over the auditor's interfaces. `sessions` keeps the visits of those who signed in, and says how the service does;
    /// by `keyring` the console knows its own cookies and forms on every node.
    pub fn new(evidence: EvidenceApi, sessions: Arc<SessionService>, keyring: Keyring) -> Self {
        Self {
            audit: web::Data::new(evidence.audit.clone()),
            evidence,
            sessions,
            keyring,
            people: None,
            assets: Arc::new(Assets::new()),
        }
    }

    /// With people who sign in through an identity provider, too.
    #[must_use]
    pub fn with_people(mut self, people: Option<People>) -> Self {
        self.people = people.map(Arc::new);
        self
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

/// Adds the pages. Expects [`Console`] among the application's data.
pub fn configure(config: &mut web::ServiceConfig) {
    let get = |path: &str, route: Route| only(path, route, "GET");
    let post = |path: &str, route: Route| only(path, route, "POST");
    config.service(
        web::scope("/console")
            .wrap(
                DefaultHeaders::new()
                    .add((header::CONTENT_SECURITY_POLICY, POLICY))
                    .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
                    .add((header::REFERRER_POLICY, "no-referrer"))
                    .add(("Cross-Origin-Resource-Policy", "same-origin"))
                    .add((header::CACHE_CONTROL, "no-store")),
            )
            .service(get("/assets/{name}", web::get().to(assets::serve)))
            .service(
                web::resource("/sign-in")
                    .route(web::get().to(visit::sign_in_page))
                    .route(web::post().to(visit::sign_in))
                    .default_service(web::route().to(|c, r| wrong_method(c, r, "GET, POST"))),
            )
            .service(get("/oidc", web::get().to(people::begin)))
            .service(get("/oidc/callback", web::get().to(people::callback)))
            .service(post("/sign-out", web::post().to(visit::sign_out)))
            .service(get("/entries", web::get().to(entries::list)))
            .service(get("/entries/{index}", web::get().to(entries::one)))
            .service(get("/sessions/{id}", web::get().to(timeline::show)))
            .service(get("/bundle", web::get().to(entries::bundle)))
            .service(get("/checkpoints", web::get().to(chart::show)))
            .service(
                web::resource("/subjects")
                    .route(web::get().to(subjects::ask))
                    .route(web::post().to(subjects::find))
                    .default_service(web::route().to(|c, r| wrong_method(c, r, "GET, POST"))),
            )
            .service(post("/subjects/export", web::post().to(subjects::export)))
            .service(post("/subjects/hold", web::post().to(subjects::hold)))
            .service(post("/subjects/release", web::post().to(subjects::release)))
            .service(post("/subjects/erase", web::post().to(subjects::erase)))
            .service(get("/status", web::get().to(status::show)))
            .service(get("", web::get().to(visit::home)))
            .service(get("/", web::get().to(visit::home)))
            .default_service(web::route().to(nothing_here)),
    );
}

fn only(path: &str, route: Route, allow: &'static str) -> Resource {
    web::resource(path).route(route).default_service(web::route().to(move |c, r| wrong_method(c, r, allow)))
}

async fn wrong_method(console: web::Data<Console>, request: HttpRequest, allow: &'static str) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, format!("one of {allow}"));
    let mut response = page::problem(&console, &request, None, &problem);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allow));
    response
}

async fn nothing_here(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    let problem = Problem::new(ProblemCode::NotFound, "the console has no such page");
    page::problem(&console, &request, None, &problem)
}
