//! Who asks, in which trace, having seen what.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use access::{Denied, Keyholder, Keyholders, Permission};
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpMessage, HttpRequest};
use sealing::{Ids, sha256};
use session_model::{Actor, Detail, Digest, LeafIndex, Protocol, RealmName};
use session_service::{Caller, Idempotency};

use crate::problem::{Problem, ProblemCode};

/// The W3C trace context of a request: taken from `traceparent` if that is good, else new.
#[derive(Debug, Clone)]
pub struct Trace {
    parent: String,
}

impl Trace {
    /// The trace of a request; the same each time it is asked for.
    pub fn of(request: &HttpRequest) -> Self {
        if let Some(known) = request.extensions().get::<Self>() {
            return known.clone();
        }
        let trace = Self::read(request.headers());
        request.extensions_mut().insert(trace.clone());
        trace
    }

    fn read(headers: &HeaderMap) -> Self {
        let random: [u8; 24] = Ids.public().unwrap_or([1; 24]);
        let mut digits = [0; 48];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(random) {
            if let [high, low] = pair {
                *high = hex_digit(byte >> 4);
                *low = hex_digit(byte & 15);
            }
        }
        let digits = std::str::from_utf8(&digits).unwrap_or_default();
        let (trace, span) = digits.split_at_checked(32).unwrap_or_default();
        let given = headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(given_trace);
        let mut parent = String::with_capacity(55);
        for part in ["00-", given.unwrap_or(trace), "-", span, "-01"] {
            parent.push_str(part);
        }
        Self { parent }
    }

    /// The trace id: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        self.parent.get(3..35).unwrap_or_default()
    }

    /// The `traceparent` to answer with.
    pub fn parent(&self) -> &str {
        &self.parent
    }
}

const fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// The trace id of a `traceparent` header (W3C Trace Context section 3.2).
fn given_trace(value: &str) -> Option<&str> {
    let mut parts = value.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let good = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    (good && trace.bytes().any(|b| b != b'0') && span.bytes().any(|b| b != b'0')).then_some(trace)
}

/// A request that was not let in.
#[derive(Debug)]
pub struct RefusedRequest<'a> {
    /// `credential`, `rate` or `role`.
    pub reason: &'static str,
    /// Who asked, if the credential is known.
    pub holder: Option<(&'a RealmName, Actor)>,
    /// The route, as a pattern: never what a client wrote.
    pub route: &'a str,
    /// Where it came from.
    pub origin: Option<IpAddr>,
}

/// Told of every refusal at the gate.
pub type GateKeeper = Arc<dyn Fn(&RefusedRequest<'_>) + Send + Sync>;

/// Lets requests in.
#[derive(Clone)]
pub struct Gate {
    holders: Arc<Keyholders>,
    certificates: Arc<HashMap<Digest, Arc<Keyholder>>>,
    refused: GateKeeper,
}

/// SHA-256 of the client certificate of a connection, which was verified when the connection was made.
#[derive(Debug, Clone, Copy)]
pub struct ClientCertificate(pub Digest);

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// A gate for these keyholders.
    pub fn new(holders: Arc<Keyholders>, refused: GateKeeper) -> Self {
        Self { holders, certificates: Arc::default(), refused }
    }

    /// With those who are known by their client certificate, too.
    #[must_use]
    pub fn with_certificates(mut self, certificates: HashMap<Digest, Arc<Keyholder>>) -> Self {
        self.certificates = Arc::new(certificates);
        self
    }

    /// Lets a request in, if its credential allows what it asks.
    ///
    /// # Errors
    /// A [`Problem`]: 401 without a good credential, 403 without the permission, 429 if there are too many requests,
    /// 400 if a header of ours is malformed.
    pub fn admit(&self, request: &HttpRequest, permission: Permission) -> Result<Request, Problem> {
        let holder = self.holder(request)?;
        self.admit_holder(request, &holder, permission, Protocol::Rest)
    }

    /// Whose API key a request carries; if none, whose client certificate its connection has.
    ///
    /// # Errors
    /// A [`Problem`]: 401 without a good credential, 429 if there are too many requests.
    pub fn holder(&self, request: &HttpRequest) -> Result<Arc<Keyholder>, Problem> {
        let found = match request.conn_data() {
            Some(ClientCertificate(fingerprint)) if !has_bearer(request) => {
                let holder = self.certificates.get(fingerprint).ok_or(Denied::Unknown);
                holder.and_then(|holder| holder.counted().map(|()| Arc::clone(holder)))
            }
            Some(_) | None => self.holders.authenticate(bearer(request.headers())),
        };
        found.map_err(|denied| {
            let wanted = "send Authorization: Bearer with an API key";
            let problem = self.denied(request, &denied, wanted);
            match denied {
                Denied::Unknown => problem.with(header::WWW_AUTHENTICATE, "Bearer realm=\"counterfoil\""),
                Denied::TooMany(_) => problem,
            }
        })
    }

    /// Who holds a key that came otherwise than in a header.
    ///
    /// # Errors
    /// A [`Problem`]: 401 if nobody does, 429 if there are too many requests.
    pub fn holder_of_key(&self, request: &HttpRequest, key: &str) -> Result<Arc<Keyholder>, Problem> {
        self.holders.authenticate(key).map_err(|denied| self.denied(request, &denied, "nobody holds this key"))
    }

    /// Whose certificate this is, by its SHA-256, if it is anybody's. That the asker has its key must be known by other means.
    pub fn holder_of_certificate(&self, fingerprint: &Digest) -> Option<Arc<Keyholder>> {
        self.certificates.get(fingerprint).cloned()
    }

    /// Who holds the credential with this id, as of now.
    ///
    /// # Errors
    /// A [`Problem`]: 401 if it was revoked, 429 if there are too many requests.
    pub fn holder_by_id(&self, request: &HttpRequest, id: &str) -> Result<Arc<Keyholder>, Problem> {
        self.holders.by_id(id).map_err(|denied| self.denied(request, &denied, "the credential was revoked"))
    }

    /// Counts a request of a holder known by other means than an API key.
    ///
    /// # Errors
    /// A 429 [`Problem`] if there are too many.
    pub fn count(&self, request: &HttpRequest, holder: &Arc<Keyholder>) -> Result<(), Problem> {
        holder.counted().map_err(|denied| self.denied(request, &denied, ""))
    }

    /// Notes a refusal that was found elsewhere than here.
    pub fn refused(&self, request: &HttpRequest, reason: &'static str) {
        self.refuse(request, reason, None);
    }

    /// Lets a request of a known holder in, if its roles allow what it asks.
    ///
    /// # Errors
    /// A [`Problem`]: 403 without the permission, 400 if a header of ours is malformed.
    pub fn admit_holder(
        &self,
        request: &HttpRequest,
        holder: &Keyholder,
        permission: Permission,
        protocol: Protocol,
    ) -> Result<Request, Problem> {
        let Some(actor) = holder.acting(permission) else {
            self.refuse(request, "role", Some(holder));
            return Err(Problem::new(ProblemCode::NotAllowed, "the credential's roles do not include this"));
        };
        let min_index = match request.headers().get("counterfoil-min-index") {
            None => None,
            Some(value) => match value.to_str().ok().and_then(leaf_index) {
                Some(index) => Some(index),
                None => return Err(Problem::malformed("#header/counterfoil-min-index", "must be a leaf index")),
            },
        };
        let mut caller = caller(request, holder, actor, min_index);
        caller.protocol = protocol;
        Ok(Request { caller })
    }

    fn denied(&self, request: &HttpRequest, denied: &Denied, wanted: &str) -> Problem {
        match denied {
            Denied::Unknown => {
                self.refuse(request, "credential", None);
                Problem::new(ProblemCode::CredentialRequired, wanted)
            }
            Denied::TooMany(holder) => {
                self.refuse(request, "rate", Some(holder));
                Problem::new(ProblemCode::RateLimited, "the realm limits requests per second and key")
            }
        }
    }
}

/// A holder as the caller of a request.
pub fn caller(request: &HttpRequest, holder: &Keyholder, actor: Actor, min_index: Option<LeafIndex>) -> Caller {
    Caller {
        realm: holder.realm.clone(),
        actor,
        protocol: Protocol::Rest,
        origin: request.peer_addr().map(|peer| plain(peer.ip())),
        request_id: None,
        trace_id: Some(Trace::of(request).id().to_owned()),
        min_index,
        detail: Detail::new(),
    }
}

impl Gate {
    fn refuse(&self, request: &HttpRequest, reason: &'static str, holder: Option<&Keyholder>) {
        (self.refused)(&RefusedRequest {
            reason,
            holder: holder.and_then(|holder| Some((&holder.realm, holder.actor()?))),
            route: request.match_pattern().as_deref().unwrap_or("unmatched"),
            origin: request.peer_addr().map(|peer| plain(peer.ip())),
        });
    }
}

/// A leaf index as clients write it: what a signed 64-bit reader can hold, as the OpenAPI document says.
fn leaf_index(text: &str) -> Option<LeafIndex> {
    let number = text.parse::<i64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    u64::try_from(number).ok().map(LeafIndex)
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether a request brings an API key, good or not.
pub fn has_bearer(request: &HttpRequest) -> bool {
    !bearer(request.headers()).is_empty()
}

fn bearer(headers: &HeaderMap) -> &str {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
    match value.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        Some(_) | None => "",
    }
}

/// A request that was let in.
#[derive(Debug)]
pub struct Request {
    /// Who asks.
    pub caller: Caller,
}

impl Request {
    /// The request's idempotency key, if it has one, and what it stands for.
    ///
    /// # Errors
    /// A 400 [`Problem`] if the key is empty, longer than 255 bytes or not visible ASCII.
    pub fn idempotency(&self, request: &HttpRequest, body: &[u8]) -> Result<Option<Idempotency>, Problem> {
        let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
        let key = value.as_bytes();
        if key.is_empty() || key.len() > 255 || !key.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(Problem::malformed("#header/idempotency-key", "must be 1 to 255 visible ASCII characters"));
        }
        let scoped = [self.caller.actor.id.as_bytes(), &[0], key].concat();
        let what = [request.method().as_str().as_bytes(), &[0], request.path().as_bytes(), &[0], body].concat();
        Ok(Some(Idempotency { key: sha256(&scoped), request: sha256(&what) }))
    }
}

/// The query parameters of a request, each at most once, of these names only.
///
/// # Errors
/// A 400 [`Problem`] naming what is unknown, doubled or not UTF-8.
pub fn query<const N: usize>(request: &HttpRequest, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let mut found = [const { None }; N];
    let text = request.query_string();
    if text.is_empty() {
        return Ok(found);
    }
    let pairs = actix_web::web::Query::<Vec<(String, String)>>::from_query(text)
        .map_err(|_| Problem::malformed("#query", "is not a query string in UTF-8"))?;
    for (name, value) in pairs.into_inner() {
        let pointer = format!("#query/{name}");
        let known = names.iter().position(|known| *known == name);
        let slot = known.and_then(|at| found.get_mut(at));
        match slot {
            None => return Err(Problem::malformed(&pointer, "is not a parameter of this request")),
            Some(Some(_)) => return Err(Problem::malformed(&pointer, "stands twice")),
            Some(slot @ None) => *slot = Some(value),
        }
    }
    Ok(found)
}

/// The `Link` header to the next page: the same query, from the next cursor on (RFC 8288).
pub fn next_link(request: &HttpRequest, cursor: &str) -> String {
    let kept = request.query_string().split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let kept: String = kept.map(|pair| format!("{pair}&")).collect();
    format!("<{}?{kept}cursor={cursor}>; rel=\"next\"", request.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_traceparent_is_kept_and_a_bad_one_replaced() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(given_trace(&good), Some(trace));
        for bad in ["", "00", &good.to_uppercase(), &good.replace(trace, &"0".repeat(32)), &format!("ff{}", &good[2..])]
        {
            assert_eq!(given_trace(bad), None, "{bad}");
        }
        assert_eq!(Trace::read(&HeaderMap::new()).id().len(), 32);
    }
}
