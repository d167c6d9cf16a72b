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
use session_service::{ByRealm, SessionService};

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
    sessions: ByRealm<Arc<SessionService>>,
    keyring: Keyring,
    people: Option<Arc<People>>,
    assets: Arc<Assets>,
}

impl Console {
    /// A console over the auditor's interfaces. `sessions` keeps the visits of those who signed in, in the log that each one's realm lives in, and says how the service does;
    /// by `keyring` the console knows its own cookies and forms on every node.
    pub fn new(evidence: EvidenceApi, sessions: ByRealm<Arc<SessionService>>, keyring: Keyring) -> Self {
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

/// Every page: its method, its path below `/console`, and what answers. The one list: [`configure`] serves it, and [`pages`] tells of it.
fn routes() -> Vec<(&'static str, &'static str, Route)> {
    vec![
        ("GET", "", web::get().to(visit::home)),
        ("GET", "/", web::get().to(visit::home)),
        ("GET", "/assets/{name}", web::get().to(assets::serve)),
        ("GET", "/sign-in", web::get().to(visit::sign_in_page)),
        ("POST", "/sign-in", web::post().to(visit::sign_in)),
        ("GET", "/oidc", web::get().to(people::begin)),
        ("GET", "/oidc/callback", web::get().to(people::callback)),
        ("POST", "/sign-out", web::post().to(visit::sign_out)),
        ("GET", "/entries", web::get().to(entries::list)),
        ("GET", "/entries/{index}", web::get().to(entries::one)),
        ("GET", "/sessions/{id}", web::get().to(timeline::show)),
        ("GET", "/bundle", web::get().to(entries::bundle)),
        ("GET", "/checkpoints", web::get().to(chart::show)),
        ("GET", "/subjects", web::get().to(subjects::ask)),
        ("POST", "/subjects", web::post().to(subjects::find)),
        ("POST", "/subjects/export", web::post().to(subjects::export)),
        ("POST", "/subjects/hold", web::post().to(subjects::hold)),
        ("POST", "/subjects/release", web::post().to(subjects::release)),
        ("POST", "/subjects/erase", web::post().to(subjects::erase)),
        ("GET", "/status", web::get().to(status::show)),
    ]
}

/// Method and path of every page, for whoever checks who is let in where.
pub fn pages() -> Vec<(&'static str, String)> {
    routes().into_iter().map(|(method, path, _)| (method, format!("/console{path}"))).collect()
}

/// Adds the pages. Expects [`Console`] among the application's data.
pub fn configure(config: &mut web::ServiceConfig) {
    let mut scope = web::scope("/console").wrap(
        DefaultHeaders::new()
            .add((header::CONTENT_SECURITY_POLICY, POLICY))
            .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .add((header::REFERRER_POLICY, "no-referrer"))
            .add(("Cross-Origin-Resource-Policy", "same-origin"))
            .add((header::CACHE_CONTROL, "no-store")),
    );
    let mut resources: Vec<(&str, Vec<&str>, Resource)> = Vec::new();
    for (method, path, route) in routes() {
        match resources.pop() {
            Some((known, mut methods, resource)) if known == path => {
                methods.push(method);
                resources.push((known, methods, resource.route(route)));
            }
            other => {
                resources.extend(other);
                resources.push((path, vec![method], web::resource(path).route(route)));
            }
        }
    }
    for (_, methods, resource) in resources {
        let allow = methods.join(", ");
        scope = scope.service(resource.default_service(web::route().to(move |c, r| wrong_method(c, r, allow.clone()))));
    }
    config.service(scope.default_service(web::route().to(nothing_here)));
}

async fn wrong_method(console: web::Data<Console>, request: HttpRequest, allow: String) -> HttpResponse {
    let problem = Problem::new(ProblemCode::MethodNotAllowed, format!("one of {allow}"));
    let mut response = page::problem(&console, &request, None, &problem);
    if let Ok(allow) = header::HeaderValue::try_from(allow) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

async fn nothing_here(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    let problem = Problem::new(ProblemCode::NotFound, "the console has no such page");
    page::problem(&console, &request, None, &problem)
}
