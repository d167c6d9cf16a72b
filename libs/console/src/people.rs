//! Signing in with an identity provider: the way there and back, and who somebody is who came back.
//!
//! The browser keeps what ties the answer to it (RFC 9700 section 4.7): 32 random bytes in a cookie of ten minutes, out of which state, nonce and
//! code verifier are made with the console's key. So no node keeps anything, any node takes the answer, and the cookie alone tells nothing. That
//! cookie is `SameSite=Lax`, because the provider's page is another site; the visit's own stays `Strict`, which is why the way back
//! ends in a page of ours that goes on by itself and not in a redirection.
//!
//! A person is known to the log by the handle of a subject: the id of the data key that seals what is personal. Entries name it as their
//! actor; who that is stands, sealed, in the entry that began the visit.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use access::Keyholder;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::rules::{LEVEL, METHODS};
use api_http::{Problem, ProblemCode, query};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use maud::{DOCTYPE, html};
use moka::sync::Cache;
use nonce_store::{Claimed, NonceStore};
use oidc::{Attempt, AuthorizationAnswer, IdToken, OidcError, Provider};
use sealing::{Ids, Keyring, SealError, sha256};
use serde::{Deserialize, Serialize};
use session_model::{RealmName, Role, Seconds, Timestamp, check_text};
use tracing::{error, warn};

use crate::Console;
use crate::form::{given, within};
use crate::page::{self, Section};
use crate::visit::{self, Cookie, Newcomer, cookie, internal, see_other, set_cookie};

/// How long somebody may take at the provider.
const AWAY: Seconds = Seconds(600);
/// Of the cookie, and of what is made of it.
const ATTEMPT: &[u8; 4] = b"oidc";
const STATE: &[u8; 4] = b"stat";
const NONCE: &[u8; 4] = b"nonc";
const VERIFIER: &[u8; 4] = b"pkce";
/// Visitors whose rates are remembered.
const REMEMBERED: u64 = 10_000;
/// Bytes of a name, and of a subject, that are kept.
const NAME: usize = 200;
const SUBJECT: usize = 256;

/// What a group of the provider may do here.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The group: a value of the roles claim, as it is.
    pub group: String,
    /// In which realm.
    pub realm: RealmName,
    /// In which roles.
    pub roles: Vec<Role>,
}

/// Who may sign in through an identity provider, and as what.
pub struct People {
    /// The provider.
    pub provider: Provider,
    /// What the provider is called, for people.
    pub label: String,
    /// Where it sends browsers back to: `…/console/oidc/callback`. Without it, where the request came to.
    pub redirect_url: Option<String>,
    /// The claim that holds groups: a name, or a JSON pointer.
    pub roles_claim: String,
    /// The claim that holds a person's name, for people.
    pub name_claim: String,
    /// What groups may do. The realm of the first that fits is the visit's.
    pub grants: Vec<Grant>,
    /// Requests a second that a visitor of each realm may make, where that is limited.
    pub rates: HashMap<RealmName, u32>,
    /// What was used once.
    pub nonces: Arc<dyn NonceStore>,
    /// Known visitors, with what they have used up of their rates.
    holders: Cache<String, Arc<Keyholder>>,
}

impl fmt::Debug for People {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "People({:?})", self.provider)
    }
}

/// A visitor as the cookie has him: nothing that is personal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Person {
    /// The subject's handle in leaves.
    handle: String,
    realm: RealmName,
    /// Those of his groups that grant something in the realm. What they grant is looked up anew for each page.
    groups: Vec<String>,
}

impl Person {
    /// As text; begins with what no credential's id begins with.
    pub(crate) fn written(&self) -> Result<String, Problem> {
        serde_json::to_string(self).map_err(|_| Problem::new(ProblemCode::Internal, "the visitor cannot be written"))
    }

    /// Reads one; `None` if the text is a credential's id.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl People {
    /// Nobody has come yet.
    #[expect(clippy::too_many_arguments, reason = "the fields, given once")]
    pub fn new(
        provider: Provider,
        label: String,
        redirect_url: Option<String>,
        roles_claim: String,
        name_claim: String,
        grants: Vec<Grant>,
        rates: HashMap<RealmName, u32>,
        nonces: Arc<dyn NonceStore>,
    ) -> Self {
        let holders = Cache::builder().max_capacity(REMEMBERED).time_to_idle(Duration::from_secs(3_600)).build();
        Self { provider, label, redirect_url, roles_claim, name_claim, grants, rates, nonces, holders }
    }

    /// What a person may do as of now; `None` if that is nothing any more.
    pub(crate) fn holder(&self, person: &Person) -> Option<Arc<Keyholder>> {
        let roles = self.roles(&person.realm, &person.groups);
        if roles.is_empty() {
            return None;
        }
        let id = session_service::subject_actor(&person.handle);
        let rate = self.rates.get(&person.realm).copied().unwrap_or_default();
        let known = format!("{id} {} {roles:?}", person.realm);
        Some(self.holders.get_with(known, || Arc::new(Keyholder::new(id, person.realm.clone(), roles, rate))))
    }

    /// In which realm somebody of these groups is let in, and by which of them.
    fn let_in(&self, groups: &[&str]) -> Option<(RealmName, Vec<String>)> {
        let fits = |grant: &&Grant| groups.contains(&grant.group.as_str());
        let realm = &self.grants.iter().find(fits)?.realm;
        let mut by: Vec<String> = self
            .grants
            .iter()
            .filter(|grant| grant.realm == *realm)
            .filter(fits)
            .map(|grant| grant.group.clone())
            .collect();
        by.dedup();
        Some((realm.clone(), by))
    }

    fn roles(&self, realm: &RealmName, groups: &[String]) -> Vec<Role> {
        let granting = self.grants.iter().filter(|grant| grant.realm == *realm && groups.contains(&grant.group));
        let mut roles: Vec<Role> = granting.flat_map(|grant| grant.roles.iter().copied()).collect();
        roles.sort_unstable();
        roles.dedup();
        roles
    }

    fn redirect_url(&self, request: &HttpRequest) -> String {
        let here = request.connection_info();
        let derived = || format!("{}://{}/console/oidc/callback", here.scheme(), here.host());
        self.redirect_url.clone().unwrap_or_else(derived)
    }
}

/// What a browser keeps while its user is at the provider.
struct Away {
    random: String,
    began: Timestamp,
    next: String,
}

impl Away {
    fn begin(now: Timestamp, next: Option<&str>) -> Result<Self, SealError> {
        let random = URL_SAFE_NO_PAD.encode(Ids.secret()?);
        Ok(Self { random, began: now, next: next.unwrap_or_default().to_owned() })
    }

    fn tag(&self, keyring: &Keyring, purpose: &[u8; 4]) -> Result<String, SealError> {
        let began = self.began.as_micros().to_be_bytes();
        Ok(keyring.console_tag(purpose, &[self.random.as_bytes(), &began, self.next.as_bytes()])?.to_string())
    }

    fn written(&self, keyring: &Keyring) -> Result<String, SealError> {
        let next = URL_SAFE_NO_PAD.encode(&self.next);
        Ok(format!("{}.{}.{next}.{}", self.random, self.began.as_micros(), self.tag(keyring, ATTEMPT)?))
    }

    /// Reads what this service wrote not too long ago.
    fn read(text: &str, keyring: &Keyring, now: Timestamp) -> Result<Option<Self>, SealError> {
        let parts: Vec<&str> = text.split('.').collect();
        let &[random, began, next, tag] = parts.as_slice() else { return Ok(None) };
        let next = URL_SAFE_NO_PAD.decode(next).ok().and_then(|next| String::from_utf8(next).ok());
        let (Some(next), Ok(began)) = (next, began.parse()) else { return Ok(None) };
        let away = Self { random: random.to_owned(), began: Timestamp::from_micros(began), next };
        let micros = away.began.as_micros().to_be_bytes();
        let parts: [&[u8]; 3] = [away.random.as_bytes(), &micros, away.next.as_bytes()];
        let ours = keyring.is_console_tag(tag, ATTEMPT, &parts)?;
        let in_time = away.began <= now && now < away.began.plus(AWAY);
        Ok((ours && in_time).then_some(away))
    }

    /// The three values that tie the answer, the token and the code to this browser.
    fn secrets(&self, keyring: &Keyring) -> Result<[String; 3], SealError> {
        Ok([self.tag(keyring, STATE)?, self.tag(keyring, NONCE)?, self.tag(keyring, VERIFIER)?])
    }
}

/// Sends the browser to the provider.
pub(crate) async fn begin(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    let Some(people) = &console.people else { return crate::nothing_here(console, request).await };
    let next = match query(&request, ["next"]) {
        Ok([next]) => given(next),
        Err(problem) => return page::problem(&console, &request, None, &problem),
    };
    let begun = Away::begin(console.sessions.first().now(), next.as_deref().and_then(within)).and_then(|away| {
        let secrets = away.secrets(&console.keyring)?;
        Ok((away.written(&console.keyring)?, secrets, away.began))
    });
    let (kept, [state, nonce, code_verifier], began) = match begun {
        Ok(begun) => begun,
        Err(failure) => return page::problem(&console, &request, None, &internal(failure)),
    };
    let redirect_url = people.redirect_url(&request);
    let attempt =
        Attempt { state: &state, nonce: &nonce, code_verifier: &code_verifier, redirect_url: &redirect_url, began };
    match people.provider.authorization_url(&attempt).await {
        Ok(url) => {
            let mut response = see_other(&url);
            match set_cookie(&request, Cookie::Away, &kept) {
                Ok(cookie) => response.headers_mut().append(header::SET_COOKIE, cookie),
                Err(problem) => return page::problem(&console, &request, None, &problem),
            }
            response
        }
        Err(failure) => turned_away(&console, &request, &failure),
    }
}

/// Takes what the browser brings back from the provider.
pub(crate) async fn callback(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    let Some(people) = &console.people else { return crate::nothing_here(console, request).await };
    let mut response = match came_back(&console, people, &request).await {
        Ok(response) => response,
        Err(NotIn::Provider(failure)) => turned_away(&console, &request, &failure),
        Err(NotIn::NoRole) => {
            console.audit.gate.refused(&request, "role");
            no_role(&console)
        }
        Err(NotIn::Problem(problem)) => page::problem(&console, &request, None, &problem),
    };
    // Whatever came of it, this attempt is over.
    if let Ok(gone) = set_cookie(&request, Cookie::Away, "") {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

/// Why somebody who came back is not let in.
enum NotIn {
    Provider(OidcError),
    NoRole,
    Problem(Problem),
}

impl From<OidcError> for NotIn {
    fn from(failure: OidcError) -> Self {
        Self::Provider(failure)
    }
}

impl From<Problem> for NotIn {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

async fn came_back(console: &Console, people: &People, request: &HttpRequest) -> Result<HttpResponse, NotIn> {
    let not_ours = |why| NotIn::Provider(OidcError::NotOurs(why));
    let now = console.sessions.first().now();
    let kept = cookie(request, Cookie::Away).unwrap_or_default();
    let away = Away::read(kept, &console.keyring, now).map_err(internal)?;
    let away = away.ok_or(not_ours("the browser did not begin here, or too long ago"))?;
    if away.began < people.nonces.since() {
        return Err(not_ours("it began before this process"));
    }
    let [state, nonce, code_verifier] = away.secrets(&console.keyring).map_err(internal)?;
    let redirect_url = people.redirect_url(request);
    let attempt = Attempt {
        state: &state,
        nonce: &nonce,
        code_verifier: &code_verifier,
        redirect_url: &redirect_url,
        began: away.began,
    };
    let answer = AuthorizationAnswer::parse(request.query_string())?;
    let token = people.provider.redeem(&answer, &attempt).await?;
    let (realm, groups) = people.let_in(&token.texts(&people.roles_claim)).ok_or(NotIn::NoRole)?;
    // Last, so that only those who are let in take room in the store.
    match people.nonces.claim(&sha256(state.as_bytes()), now, away.began.plus(AWAY)).await {
        Ok(Claimed::First) => {}
        Ok(Claimed::Again) => return Err(not_ours("it was used before")),
        Err(failure) => {
            error!(failure = &failure as &dyn std::error::Error, "whether a sign-in is used twice cannot be said");
            return Err(Problem::new(ProblemCode::Overloaded, "try again in a moment").into());
        }
    }
    let newcomer = newcomer(people, &token, realm.clone(), &groups)?;
    let begun = visit::begin_of(console, request, newcomer).await?;
    let person = Person { handle: begun.handle, realm, groups };
    let visit = visit::cookie_of(console, request, &person.written()?, &begun.token)?;
    Ok(go_on(visit, within(&away.next).unwrap_or("/console")))
}

/// What the visit of somebody new begins with; all that is personal is sealed in its first entry.
fn newcomer(people: &People, token: &IdToken, realm: RealmName, groups: &[String]) -> Result<Newcomer, NotIn> {
    // `sub` is unique within its issuer only (OpenID Connect Core section 5.7), and an issuer has no fragment.
    let subject = format!("{}#{}", people.provider.issuer(), token.subject);
    if check_text(&subject, SUBJECT).is_err() {
        let why = "the identity provider's name for you, with its own, is longer than 256 bytes";
        return Err(Problem::new(ProblemCode::NotAllowed, why).into());
    }
    let name = token.text(&people.name_claim).filter(|name| check_text(name, NAME).is_ok());
    let methods = token.texts("amr").into_iter().filter(|method| check_text(method, METHODS.1).is_ok());
    let mut methods: Vec<String> = methods.take(METHODS.0).map(str::to_owned).collect();
    if methods.is_empty() {
        methods.push("oidc".to_owned());
    }
    let level = token.text("acr").filter(|level| check_text(level, LEVEL).is_ok()).map(str::to_owned);
    let role = people.roles(&realm, groups).first().copied().ok_or(NotIn::NoRole)?;
    Ok(Newcomer {
        realm,
        role,
        subject: subject.into(),
        attributes: serde_json::json!({"name": name, "groups": groups}).to_string(),
        methods,
        level,
    })
}

/// A page that goes on by itself: from here on the browser is at home, and sends the visit's cookie.
fn go_on(visit: HeaderValue, next: &str) -> HttpResponse {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content={ "0;url=" (next) };
                meta name="color-scheme" content="light dark";
                title { "Signed in · Counterfoil" }
                link rel="icon" href=(page::ICON);
            }
            body { p { "Signed in. " a href=(next) { "Go on" } } }
        }
    };
    HttpResponse::Ok()
        .insert_header((header::SET_COOKIE, visit))
        .content_type("text/html; charset=utf-8")
        .body(page.into_string())
}

/// Says at the door why nobody was let in.
fn turned_away(console: &Console, request: &HttpRequest, failure: &OidcError) -> HttpResponse {
    let (status, said) = match failure {
        OidcError::NotOurs(_) => {
            (StatusCode::FORBIDDEN, "This sign-in was not begun here, took too long, or was used before. Begin anew.")
        }
        OidcError::Refused(_) => (StatusCode::FORBIDDEN, "The identity provider did not sign you in."),
        OidcError::Token(_) => {
            (StatusCode::FORBIDDEN, "What the identity provider says of you does not hold. Tell who runs this service.")
        }
        OidcError::Unreachable(_) | OidcError::Busy | OidcError::Unexpected { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The identity provider cannot be asked now. Try again, or use an API key.",
        ),
        OidcError::Metadata(_) | OidcError::Unreadable(..) | OidcError::NoWayToAuthenticate => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The identity provider and this service do not fit. Tell who runs this service.",
        ),
    };
    warn!(failure = failure as &dyn std::error::Error, "nobody was signed in by the identity provider");
    if status == StatusCode::FORBIDDEN {
        console.audit.gate.refused(request, "credential");
    }
    let mut response = visit::door(console, request, status, Some(said), None);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

fn no_role(console: &Console) -> HttpResponse {
    let main = html! {
        h1 { "You have no role here" }
        p { "The identity provider knows you, but none of your groups is an auditor’s or an operator’s. Ask who runs this service." }
        p { a href="/console/sign-in" { "Sign in otherwise" } }
    };
    page::answer(console, None, StatusCode::FORBIDDEN, "No role", Section::Door, &main)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn what_a_browser_brings_back_is_ours_and_not_too_old() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let away = Away::begin(at(1_000), Some("/console/entries?a=.b")).unwrap();
        let kept = away.written(&keyring).unwrap();
        let read = |kept: &str, now| Away::read(kept, &keyring, at(now)).unwrap();
        let back = read(&kept, 1_599).unwrap();
        assert_eq!(
            (back.next.as_str(), back.secrets(&keyring).unwrap()),
            ("/console/entries?a=.b", away.secrets(&keyring).unwrap())
        );
        assert!(read(&kept, 1_600).is_none() && read(&kept, 999).is_none());
        let mut parts: Vec<String> = kept.split('.').map(str::to_owned).collect();
        for part in 0..4 {
            let good = parts[part].clone();
            parts[part] = if part == 1 { "1000000001".to_owned() } else { format!("{good}A") };
            assert!(read(&parts.join("."), 1_000).is_none(), "part {part}");
            parts[part] = good;
        }
        assert!(Away::read(&kept, &Keyring::new(&[2; 32]).unwrap(), at(1_000)).unwrap().is_none());
        for odd in ["", "a.b.c", "a.b.c.d", "a.1.c.d.e"] {
            assert!(read(odd, 1_000).is_none(), "{odd}");
        }
    }

    #[test]
    fn state_nonce_and_verifier_tell_nothing_of_one_another() {
        let keyring = Keyring::new(&[1; 32]).unwrap();
        let away = Away::begin(at(1), None).unwrap();
        let [state, nonce, verifier] = away.secrets(&keyring).unwrap();
        assert!(state != nonce && nonce != verifier && state != verifier);
        // RFC 7636 section 4.1.
        assert!((43..=128).contains(&verifier.len()) && verifier.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert!(!away.written(&keyring).unwrap().contains(&verifier));
    }
}
