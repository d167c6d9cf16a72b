//! Who is at the console: signing in with an API key, the visit that follows, and its end. Signing in with an identity provider is in
//! `people.rs`; the visit is the same.
//!
//! A visit is a Counterfoil session of the credential's realm, of kind `browser`; without a subject, where it is a key that signed in. The cookie
//! carries its token, the id of the credential or what a person's groups are, and a tag that binds the two: an application of the realm may
//! keep attributes in any session, so nothing that a session holds decides who its visitor is, or what he may do. Roles come from the
//! credential, or from what is granted to the groups, as it is now. Revoking the key ends the visit.

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
use session_model::{
    Actor, Attributes, Client, EndReason, Kind, Protocol, RealmName, Role, Session, Token, check_text,
};
use session_service::{Caller, NewSession, ServiceError, Validation};
use tracing::{error, warn};

use crate::Console;
use crate::form::{Form, given, link, within};
use crate::page::{self, Section};
use crate::people::Person;

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
    /// What a person is called, for that person: kept in the session, where an application could change it.
    pub(crate) name: Option<String>,
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
        let Some(shown) = cookie(request, Cookie::Visit) else { return Err(Turned::SignedOut) };
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
        let person = Person::read(&id);
        let holder = match &person {
            Some(person) => {
                let people = self.people.as_ref().ok_or(Turned::SignedOut)?;
                let holder = people.holder(person).ok_or(Turned::SignedOut)?;
                self.audit.gate.count(request, &holder)?;
                holder
            }
            None => match self.audit.gate.holder_by_id(request, &id) {
                Err(problem) if problem.code() == ProblemCode::CredentialRequired => return Err(Turned::SignedOut),
                other => other?,
            },
        };
        let actor = holder.actor().ok_or(Turned::SignedOut)?;
        let visitor = caller(request, &holder, actor, None);
        let Validation::Active(session) = self.sessions.of(&visitor.realm).validate(&visitor, text).await? else {
            return Err(Turned::SignedOut);
        };
        let form_tag = self.form_tag(&session, &holder)?;
        let cookie = self.renewed(request, &visitor, &id, &session, &token).await;
        let name = person.is_some().then(|| name_in(&session)).flatten();
        Ok(Visit { holder, name, session, form_tag, cookie })
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
        who: &str,
        session: &Session,
        token: &Token,
    ) -> Option<HeaderValue> {
        let sessions = self.sessions.of(&visitor.realm);
        let interval = sessions.policy(&visitor.realm).ok()?.renewal_interval;
        let due = sessions.now().micros_since(session.token_issued_at) > interval.as_micros();
        // A page that loads beside this one may have renewed already: then the overlap carries this one.
        if !due || request.method() != Method::GET || !session.token.matches(&token_digest(token)) {
            return None;
        }
        match sessions.renew(visitor, session.id, None).await {
            Ok(changed) => cookie_of(self, request, who, &changed.token?).ok(),
            Err(failure) => {
                warn!(%failure, "a visit's token could not be renewed");
                None
            }
        }
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

pub(crate) fn internal(failure: SealError) -> Problem {
    error!(failure = &failure as &dyn std::error::Error, "the console cannot make or check a tag");
    Problem::new(ProblemCode::Internal, "the fault is ours")
}

/// The cookie of a visit: its token, and of whom it is.
pub(crate) fn cookie_of(
    console: &Console,
    request: &HttpRequest,
    who: &str,
    token: &Token,
) -> Result<HeaderValue, Problem> {
    let text = token.expose();
    let tag = console.keyring.console_tag(VISIT, &[text.as_bytes(), who.as_bytes()]).map_err(internal)?;
    set_cookie(request, Cookie::Visit, &format!("{text}.{}.{tag}", URL_SAFE_NO_PAD.encode(who)))
}

/// What a person is called, as the provider said when the visit began.
fn name_in(session: &Session) -> Option<String> {
    let attributes: serde_json::Value = serde_json::from_str(session.attributes.as_json()).ok()?;
    Some(attributes.get("name")?.as_str()?.to_owned())
}

/// The console's cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cookie {
    /// Of who is signed in.
    Visit,
    /// Of the form that begins a visit.
    Door,
    /// Of who is at the identity provider: comes back from another site, so that `Strict` would lose it.
    Away,
}

impl Cookie {
    /// Over HTTPS a cookie is bound to this host by its name, and for that its path must be all of it (RFC 6265bis section 4.1.3.2).
    const fn name(self, secure: bool) -> &'static str {
        match (self, secure) {
            (Self::Visit, true) => "__Host-counterfoil-console",
            (Self::Visit, false) => "counterfoil-console",
            (Self::Door, true) => "__Host-counterfoil-door",
            (Self::Door, false) => "counterfoil-door",
            (Self::Away, true) => "__Host-counterfoil-away",
            (Self::Away, false) => "counterfoil-away",
        }
    }

    const fn same_site(self) -> &'static str {
        match self {
            Self::Visit | Self::Door => "Strict",
            Self::Away => "Lax",
        }
    }
}

/// Whether the browser came by HTTPS, as far as the proxy in front says. Who lies about it only spoils his own cookie.
fn secure(request: &HttpRequest) -> bool {
    request.connection_info().scheme() == "https"
}

pub(crate) fn cookie(request: &HttpRequest, which: Cookie) -> Option<&str> {
    let name = which.name(secure(request));
    let lines = request.headers().get_all(header::COOKIE).filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// A cookie of this value; without a value the browser forgets it.
pub(crate) fn set_cookie(request: &HttpRequest, which: Cookie, value: &str) -> Result<HeaderValue, Problem> {
    let secure = secure(request);
    let (name, same_site) = (which.name(secure), which.same_site());
    let place = if secure { "Path=/; Secure" } else { "Path=/console" };
    let age = if value.is_empty() { "; Max-Age=0" } else { "" };
    HeaderValue::try_from(format!("{name}={value}; {place}; HttpOnly; SameSite={same_site}{age}"))
        .map_err(|_| Problem::new(ProblemCode::Internal, "the cookie cannot be written"))
}

pub(crate) fn see_other(to: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, to)).finish()
}

fn to_sign_in(request: &HttpRequest) -> HttpResponse {
    let here = request.uri().path_and_query().map_or("", |here| here.as_str());
    let next = within(here).filter(|_| request.method() == Method::GET);
    let mut response = see_other(&link("/console/sign-in", &[("next", next)]));
    if cookie(request, Cookie::Visit).is_some()
        && let Ok(gone) = set_cookie(request, Cookie::Visit, "")
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
pub(crate) fn door(
    console: &Console,
    request: &HttpRequest,
    status: StatusCode,
    wrong: Option<&str>,
    next: Option<&str>,
) -> HttpResponse {
    let nonce = match cookie(request, Cookie::Door) {
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
    let mut response =
        page::answer(console, None, status, "Sign in", Section::Door, &door_form(console, &tag, wrong, next));
    if let Ok(cookie) = set_cookie(request, Cookie::Door, &nonce) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

fn door_form(console: &Console, tag: &str, wrong: Option<&str>, next: Option<&str>) -> Markup {
    let next = next.and_then(within);
    html! {
        div.door {
            h1 { "Sign in" }
            p { "The console is for auditors and operators of a realm. What you look at is recorded in the log under your key"
                @if console.people.is_some() { ", or under a handle of yours" } "." }
            @if let Some(wrong) = wrong { p.alert role="alert" { (wrong) } }
            @if let Some(people) = &console.people {
                a.button.main href=(link("/console/oidc", &[("next", next)])) { "Sign in with " (people.label) }
            }
            form method="post" action="/console/sign-in" {
                input type="hidden" name="form_tag" value=(tag);
                @if let Some(next) = next { input type="hidden" name="next" value=(next); }
                label for="key" { "API key" }
                input #key type="password" name="key" required autofocus[console.people.is_none()] autocomplete="current-password"
                    spellcheck="false" autocapitalize="none" placeholder="cfk_…";
                button.main[console.people.is_none()] type="submit" { @if console.people.is_some() { "Sign in with the key" } @else { "Sign in" } }
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
    let nonce = cookie(&request, Cookie::Door).unwrap_or_default();
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
            if let Ok(gone) = set_cookie(&request, Cookie::Door, "") {
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
    let new = visit_of(request, &visitor);
    let begun = console.sessions.of(&visitor.realm).create(&visitor, new, None).await?;
    let token = begun.token.ok_or_else(|| Problem::new(ProblemCode::Internal, "the visit has no token"))?;
    cookie_of(console, request, &holder.id, &token)
}

/// The session that a visit is.
fn visit_of(request: &HttpRequest, visitor: &Caller) -> NewSession {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let agent: Option<String> = agent.map(|agent| agent.chars().take(USER_AGENT).collect());
    let agent = agent.filter(|agent| check_text(agent, USER_AGENT).is_ok());
    NewSession {
        subject: None,
        kind: Kind::Browser,
        attributes: Attributes::empty(),
        authentication: None,
        client: Some(Client { address: visitor.origin, user_agent: agent }),
        idle_timeout: None,
        absolute_timeout: None,
    }
}

/// Somebody whom the identity provider vouches for.
pub(crate) struct Newcomer {
    pub(crate) realm: RealmName,
    /// The first of his roles.
    pub(crate) role: Role,
    /// Issuer and subject there.
    pub(crate) subject: Box<str>,
    /// Attributes of the visit, as JSON.
    pub(crate) attributes: String,
    pub(crate) methods: Vec<String>,
    pub(crate) level: Option<String>,
}

/// A visit that has begun.
pub(crate) struct Begun {
    /// The handle under which leaves know the visitor.
    pub(crate) handle: String,
    pub(crate) token: Token,
}

/// Begins the visit of a person: a session of that person, who is also the actor of its first entry.
pub(crate) async fn begin_of(console: &Console, request: &HttpRequest, new: Newcomer) -> Result<Begun, Problem> {
    let nobody = Keyholder::new("console".to_owned(), new.realm, vec![new.role], 0);
    let actor = Actor { id: nobody.id.clone(), role: new.role };
    let mut visitor = caller(request, &nobody, actor, None);
    visitor.detail.insert("sign_in".to_owned(), "oidc".to_owned());
    let sessions = console.sessions.of(&visitor.realm);
    let limits = &sessions.policy(&visitor.realm)?.limits;
    let session = NewSession {
        subject: Some(new.subject),
        // A realm that keeps less is not a reason to keep an auditor out.
        attributes: Attributes::parse(&new.attributes, limits).unwrap_or_else(|_| Attributes::empty()),
        authentication: Some((new.methods, new.level)),
        ..visit_of(request, &visitor)
    };
    let begun = sessions.create_by_subject(&visitor, session).await?;
    let token = begun.token.ok_or_else(|| Problem::new(ProblemCode::Internal, "the visit has no token"))?;
    Ok(Begun { handle: begun.session.data_key.uuid().to_string(), token })
}

pub(crate) async fn sign_out(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let ended = async {
        let visit = console.visit(&request).await?;
        let form = Form::read(&request, payload, &["form_tag"]).await?;
        console.own_form(&visit, &form)?;
        let actor = visit.holder.actor().ok_or(Turned::SignedOut)?;
        let reason = EndReason::requested("logout")
            .ok_or_else(|| Problem::new(ProblemCode::Internal, "there is no such reason"))?;
        let visitor = caller(&request, &visit.holder, actor, None);
        console.sessions.of(&visitor.realm).end(&visitor, visit.session.id, reason).await?;
        Ok(())
    };
    match ended.await {
        Ok(()) | Err(Turned::SignedOut) => to_sign_in(&request),
        Err(Turned::Problem(problem)) => page::problem(&console, &request, None, &problem),
    }
}
