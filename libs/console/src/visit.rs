//! Who is at the console: signing in with an API key, the visit that follows, and its end.
//!
//! A visit is a Counterfoil session of the credential's realm, of kind `browser` and without a subject. The cookie carries its token,
//! the id of the credential, and a tag that binds the two: an application of the realm may keep attributes in any session, so
//! nothing that a session holds says who its visitor is. Roles come from the credential as it is now. Revoking the key ends the visit.

use std::sync::Arc;

use access::{Keyholder, Permission};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode, caller, query};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::{Markup, html};
use sealing::{Ids, SealError, token_digest};
use session_model::{Attributes, Client, EndReason, Kind, Protocol, Session, Token, check_text};
use session_service::{Caller, NewSession, ServiceError, Validation};
use tracing::{error, warn};

use crate::Console;
use crate::form::{Form, given, link, within};
use crate::page::{self, Section};

/// Of a cookie: which visit, of whom.
const VISIT: &[u8; 4] = b"visi";
/// Of a form on a page of a visit.
const FORM: &[u8; 4] = b"form";
/// Of the form that begins a visit.
const DOOR: &[u8; 4] = b"door";
/// Characters of a `User-Agent` that are kept.
const USER_AGENT: usize = 256;

/// Somebody who has signed in, and may still be here.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) holder: Arc<Keyholder>,
    session: Arc<Session>,
    /// For every form of the visit: what another site cannot know.
    pub(crate) form_tag: String,
    /// The cookie, where it has changed.
    cookie: Option<HeaderValue>,
}

impl Visit {
    /// Whether a role of the visitor allows this.
    pub(crate) fn may(&self, permission: Permission) -> bool {
        self.holder.acting(permission).is_some()
    }
}

/// Why there is no page.
#[derive(Debug)]
pub(crate) enum Turned {
    /// Nobody is signed in.
    SignedOut,
    /// Something is wrong.
    Problem(Problem),
}

impl From<Problem> for Turned {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<ServiceError> for Turned {
    fn from(failure: ServiceError) -> Self {
        Self::Problem(failure.into())
    }
}

/// Answers with a page that only those see who may do this. What goes wrong becomes a page too.
pub(crate) async fn admitted<F>(
    console: &Console,
    request: &HttpRequest,
    permission: Permission,
    show: F,
) -> HttpResponse
where
    F: AsyncFnOnce(&Visit, Caller) -> Result<HttpResponse, Problem>,
{
    let visit = match console.visit(request).await {
        Ok(visit) => visit,
        Err(Turned::SignedOut) => return to_sign_in(request),
        Err(Turned::Problem(problem)) => return page::problem(console, request, None, &problem),
    };
    let shown = match console.audit.gate.admit_holder(request, &visit.holder, permission, Protocol::Rest) {
        Ok(admitted) => show(&visit, admitted.caller).await,
        Err(problem) => Err(problem),
    };
    let mut response = shown.unwrap_or_else(|problem| page::problem(console, request, Some(&visit), &problem));
    if let Some(cookie) = visit.cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// As [`admitted`], for a form that was sent: only one that this visit was given.
pub(crate) async fn sent<F>(
    console: &Console,
    request: &HttpRequest,
    payload: web::Payload,
    names: &[&str],
    permission: Permission,
    act: F,
) -> HttpResponse
where
    F: AsyncFnOnce(&Visit, Caller, Form) -> Result<HttpResponse, Problem>,
{
    admitted(console, request, permission, async |visit, caller| {
        let names: Vec<&str> = names.iter().copied().chain(["form_tag"]).collect();
        let form = Form::read(request, payload, &names).await?;
        console.own_form(visit, &form)?;
        act(visit, caller, form).await
    })
    .await
}

impl Console {
    async fn visit(&self, request: &HttpRequest) -> Result<Visit, Turned> {
        let Some(shown) = cookie(request, visit_cookie(request)) else { return Err(Turned::SignedOut) };
        let mut parts = shown.splitn(3, '.');
        let (Some(text), Some(id), Some(tag)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Turned::SignedOut);
        };
        let id = URL_SAFE_NO_PAD.decode(id).ok().and_then(|id| String::from_utf8(id).ok());
        let (Some(id), Ok(token)) = (id, Token::parse(text)) else { return Err(Turned::SignedOut) };
        if !self.keyring.is_console_tag(tag, VISIT, &[text.as_bytes(), id.as_bytes()]).map_err(internal)? {
            self.audit.gate.refused(request, "credential");
            return Err(Turned::SignedOut);
        }
        let holder = match self.audit.gate.holder_by_id(request, &id) {
            Err(problem) if problem.code() == ProblemCode::CredentialRequired => return Err(Turned::SignedOut),
            other => other?,
        };
        let actor = holder.actor().ok_or(Turned::SignedOut)?;
        let visitor = caller(request, &holder, actor, None);
        let Validation::Active(session) = self.sessions.validate(&visitor, text).await? else {
            return Err(Turned::SignedOut);
        };
        let form_tag = self.form_tag(&session, &holder)?;
        let cookie = self.renewed(request, &visitor, &holder, &session, &token).await;
        Ok(Visit { holder, session, form_tag, cookie })
    }

    fn form_tag(&self, session: &Session, holder: &Keyholder) -> Result<String, Problem> {
        let session = session.id.uuid().into_bytes();
        Ok(self.keyring.console_tag(FORM, &[&session, holder.id.as_bytes()]).map_err(internal)?.to_string())
    }

    /// A new token, and the cookie with it, when the old one has served for the realm's renewal interval.
    async fn renewed(
        &self,
        request: &HttpRequest,
        visitor: &Caller,
        holder: &Keyholder,
        session: &Session,
        token: &Token,
    ) -> Option<HeaderValue> {
        let interval = self.sessions.policy(&visitor.realm).ok()?.renewal_interval;
        let due = self.sessions.now().micros_since(session.token_issued_at) > interval.as_micros();
        // A page that loads beside this one may have renewed already: then the overlap carries this one.
        if !due || request.method() != Method::GET || !session.token.matches(&token_digest(token)) {
            return None;
        }
        match self.sessions.renew(visitor, session.id, None).await {
            Ok(changed) => self.cookie_of(request, holder, &changed.token?).ok(),
            Err(failure) => {
                warn!(%failure, "a visit's token could not be renewed");
                None
            }
        }
    }

    fn cookie_of(&self, request: &HttpRequest, holder: &Keyholder, token: &Token) -> Result<HeaderValue, Problem> {
        let text = token.expose();
        let tag = self.keyring.console_tag(VISIT, &[text.as_bytes(), holder.id.as_bytes()]).map_err(internal)?;
        let value = format!("{text}.{}.{tag}", URL_SAFE_NO_PAD.encode(&holder.id));
        set_cookie(request, visit_cookie(request), &value)
    }

    fn own_form(&self, visit: &Visit, form: &Form) -> Result<(), Problem> {
        let session = visit.session.id.uuid().into_bytes();
        let parts: [&[u8]; 2] = [&session, visit.holder.id.as_bytes()];
        if self.keyring.is_console_tag(form.field("form_tag"), FORM, &parts).map_err(internal)? {
            return Ok(());
        }
        Err(Problem::new(
            ProblemCode::NotAllowed,
            "the form is not of this visit: go back, load the page anew and try again",
        ))
    }
}

fn internal(failure: SealError) -> Problem {
    error!(failure = &failure as &dyn std::error::Error, "the console cannot make or check a tag");
    Problem::new(ProblemCode::Internal, "the fault is ours")
}

/// Over HTTPS the cookie is bound to this host by its name, and for that its path must be all of it (RFC 6265bis section 4.1.3.2).
fn visit_cookie(request: &HttpRequest) -> &'static str {
    if secure(request) { "__Host-counterfoil-console" } else { "counterfoil-console" }
}

fn door_cookie(request: &HttpRequest) -> &'static str {
    if secure(request) { "__Host-counterfoil-door" } else { "counterfoil-door" }
}

/// Whether the browser came by HTTPS, as far as the proxy in front says. Who lies about it only spoils his own cookie.
fn secure(request: &HttpRequest) -> bool {
    request.connection_info().scheme() == "https"
}

fn cookie<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let lines = request.headers().get_all(header::COOKIE).filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn set_cookie(request: &HttpRequest, name: &str, value: &str) -> Result<HeaderValue, Problem> {
    let place = if secure(request) { "Path=/; Secure" } else { "Path=/console" };
    let age = if value.is_empty() { "; Max-Age=0" } else { "" };
    HeaderValue::try_from(format!("{name}={value}; {place}; HttpOnly; SameSite=Strict{age}"))
        .map_err(|_| Problem::new(ProblemCode::Internal, "the cookie cannot be written"))
}

fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, to)).finish()
}

fn to_sign_in(request: &HttpRequest) -> HttpResponse {
    let here = request.uri().path_and_query().map_or("", |here| here.as_str());
    let next = within(here).filter(|_| request.method() == Method::GET);
    let mut response = see_other(&link("/console/sign-in", &[("next", next)]));
    if cookie(request, visit_cookie(request)).is_some()
        && let Ok(gone) = set_cookie(request, visit_cookie(request), "")
    {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

/// Where each role begins.
pub(crate) async fn home(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    match console.visit(&request).await {
        Ok(visit) if visit.may(Permission::ReadLog) => see_other("/console/entries"),
        Ok(_) => see_other("/console/status"),
        Err(Turned::SignedOut) => see_other("/console/sign-in"),
        Err(Turned::Problem(problem)) => page::problem(&console, &request, None, &problem),
    }
}

pub(crate) async fn sign_in_page(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    match query(&request, ["next"]) {
        Ok([next]) => door(&console, &request, StatusCode::OK, None, given(next).as_deref()),
        Err(problem) => page::problem(&console, &request, None, &problem),
    }
}

/// The form that begins a visit. It is tied to a cookie of the same browser, so that no other site can sign somebody in.
fn door(
    console: &Console,
    request: &HttpRequest,
    status: StatusCode,
    wrong: Option<&str>,
    next: Option<&str>,
) -> HttpResponse {
    let nonce = match cookie(request, door_cookie(request)) {
        Some(known) if known.len() == 22 => Ok(known.to_owned()),
        Some(_) | None => Ids.public::<16>().map(|random| URL_SAFE_NO_PAD.encode(random)),
    };
    let made = nonce.and_then(|nonce| {
        let tag = console.keyring.console_tag(DOOR, &[nonce.as_bytes()])?;
        Ok((nonce, tag.to_string()))
    });
    let (nonce, tag) = match made {
        Ok(made) => made,
        Err(failure) => return page::problem(console, request, None, &internal(failure)),
    };
    let mut response = page::answer(console, None, status, "Sign in", Section::Door, &door_form(&tag, wrong, next));
    if let Ok(cookie) = set_cookie(request, door_cookie(request), &nonce) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn door_form(tag: &str, wrong: Option<&str>, next: Option<&str>) -> Markup {
    html! {
        div.door {
            h1 { "Sign in" }
            p { "The console is for auditors and operators of a realm. What you look at is recorded in the log under your key." }
            @if let Some(wrong) = wrong { p.alert role="alert" { (wrong) } }
            form method="post" action="/console/sign-in" {
                input type="hidden" name="form_tag" value=(tag);
                @if let Some(next) = next.and_then(within) { input type="hidden" name="next" value=(next); }
                label for="key" { "API key" }
                input #key type="password" name="key" required autofocus autocomplete="current-password"
                    spellcheck="false" autocapitalize="none" placeholder="cfk_…";
                button.main type="submit" { "Sign in" }
            }
        }
    }
}

pub(crate) async fn sign_in(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let form = match Form::read(&request, payload, &["form_tag", "next", "key"]).await {
        Ok(form) => form,
        Err(problem) => return page::problem(&console, &request, None, &problem),
    };
    let next = within(form.field("next"));
    let again = |status, wrong: &str| door(&console, &request, status, Some(wrong), next);
    let nonce = cookie(&request, door_cookie(&request)).unwrap_or_default();
    match console.keyring.is_console_tag(form.field("form_tag"), DOOR, &[nonce.as_bytes()]) {
        Ok(true) => {}
        Ok(false) => return again(StatusCode::FORBIDDEN, "The form was too old, or cookies are off. Try again."),
        Err(failure) => return page::problem(&console, &request, None, &internal(failure)),
    }
    let holder = match console.audit.gate.holder_of_key(&request, form.field("key").trim()) {
        Ok(holder) => holder,
        Err(problem) if problem.code() == ProblemCode::CredentialRequired => {
            return again(StatusCode::UNAUTHORIZED, "This key does not open the console.");
        }
        Err(problem) => return page::problem(&console, &request, None, &problem),
    };
    if holder.acting(Permission::ReadLog).or_else(|| holder.acting(Permission::SeeStatus)).is_none() {
        // Asked again only so that the refusal is recorded.
        let refused = console.audit.gate.admit_holder(&request, &holder, Permission::ReadLog, Protocol::Rest);
        let main = html! {
            h1 { "This key is an application’s" }
            p { "The console is for auditors and operators. Applications use the API: see " a href="/docs/" { "its description" } "." }
            p { a href="/console/sign-in" { "Sign in with another key" } }
        };
        let status = refused.err().map_or(StatusCode::FORBIDDEN, |problem| problem.code().status());
        return page::answer(&console, None, status, "Not for applications", Section::Door, &main);
    }
    match begin(&console, &request, &holder).await {
        Ok(cookie) => {
            let mut response = see_other(next.unwrap_or("/console"));
            response.headers_mut().append(header::SET_COOKIE, cookie);
            if let Ok(gone) = set_cookie(&request, door_cookie(&request), "") {
                response.headers_mut().append(header::SET_COOKIE, gone);
            }
            response
        }
        Err(problem) => page::problem(&console, &request, None, &problem),
    }
}

async fn begin(console: &Console, request: &HttpRequest, holder: &Keyholder) -> Result<HeaderValue, Problem> {
    let actor = holder.acting(Permission::ReadLog).or_else(|| holder.acting(Permission::SeeStatus));
    let actor = actor.ok_or_else(|| Problem::new(ProblemCode::NotAllowed, "the console is not for this key"))?;
    let visitor = caller(request, holder, actor, None);
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let agent: Option<String> = agent.map(|agent| agent.chars().take(USER_AGENT).collect());
    let client =
        Client { address: visitor.origin, user_agent: agent.filter(|agent| check_text(agent, USER_AGENT).is_ok()) };
    let new = NewSession {
        subject: None,
        kind: Kind::Browser,
        attributes: Attributes::empty(),
        authentication: None,
        client: Some(client),
        idle_timeout: None,
        absolute_timeout: None,
    };
    let begun = console.sessions.create(&visitor, new, None).await?;
    let token = begun.token.ok_or_else(|| Problem::new(ProblemCode::Internal, "the visit has no token"))?;
    console.cookie_of(request, holder, &token)
}

pub(crate) async fn sign_out(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let ended = async {
        let visit = console.visit(&request).await?;
        let form = Form::read(&request, payload, &["form_tag"]).await?;
        console.own_form(&visit, &form)?;
        let actor = visit.holder.actor().ok_or(Turned::SignedOut)?;
        let reason = EndReason::requested("logout")
            .ok_or_else(|| Problem::new(ProblemCode::Internal, "there is no such reason"))?;
        console.sessions.end(&caller(&request, &visit.holder, actor, None), visit.session.id, reason).await?;
        Ok(())
    };
    match ended.await {
        Ok(()) | Err(Turned::SignedOut) => to_sign_in(&request),
        Err(Turned::Problem(problem)) => page::problem(&console, &request, None, &problem),
    }
}
