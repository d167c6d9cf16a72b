//! A provider that says whatever a test tells it to, forged tokens included. Not one to sign in with: it asks nobody for anything.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey};
use openssl::ecdsa::EcdsaSig;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The client that it knows, and that client's secret.
pub const CLIENT: (&str, &str) = ("counterfoil", "a secret: with % and ü");

/// A key of a provider, with the id under which it is published.
#[derive(Debug, Clone)]
pub struct SigningKey {
    id: String,
    key: PKey<Private>,
}

impl SigningKey {
    /// A new RSA key of 2,048 bits.
    pub fn rsa(id: &str) -> Self {
        Self { id: id.to_owned(), key: PKey::from_rsa(Rsa::generate(2_048).unwrap()).unwrap() }
    }

    /// A new key on P-256.
    pub fn p256(id: &str) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        Self { id: id.to_owned(), key: PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap() }
    }

    fn algorithm(&self) -> &'static str {
        if self.key.rsa().is_ok() { "RS256" } else { "ES256" }
    }

    /// As it is published (RFC 7517).
    pub fn published(&self) -> Value {
        let text = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
        let mut known = json!({"kid": self.id, "use": "sig", "alg": self.algorithm()});
        let more = if let Ok(rsa) = self.key.rsa() {
            json!({"kty": "RSA", "n": text(rsa.n().to_vec()), "e": text(rsa.e().to_vec())})
        } else {
            let key = self.key.ec_key().unwrap();
            let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
            let mut context = BigNumContext::new().unwrap();
            key.public_key().affine_coordinates(key.group(), &mut x, &mut y, &mut context).unwrap();
            let padded = |number: &BigNum| text(number.to_vec_padded(32).unwrap());
            json!({"kty": "EC", "crv": "P-256", "x": padded(&x), "y": padded(&y)})
        };
        known.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        known
    }

    /// The public key as PEM: what an attacker signs HS256 tokens with.
    pub fn public_pem(&self) -> Vec<u8> {
        self.key.public_key_to_pem().unwrap()
    }

    /// The header of its tokens.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "kid": self.id, "typ": "JWT"})
    }

    /// A token of this header and these claims, signed by this key, whatever the header says.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).unwrap();
        let mut signature = signer.sign_oneshot_to_vec(signed.as_bytes()).unwrap();
        if self.key.ec_key().is_ok() {
            let both = EcdsaSig::from_der(&signature).unwrap();
            signature = [both.r(), both.s()].map(|number| number.to_vec_padded(32).unwrap()).concat();
        }
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims as they are signed.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// A token signed by HMAC-SHA-256 with a secret that is none.
pub fn hmac_signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let signed = unsigned(header, claims);
    let key = PKey::hmac(secret).unwrap();
    let signature = Signer::new(MessageDigest::sha256(), &key).unwrap().sign_oneshot_to_vec(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A code, and what it can be redeemed for.
struct Grant {
    challenge: String,
    redirect_url: String,
    token: String,
}

#[derive(Default)]
struct State {
    keys: Vec<Value>,
    metadata: Value,
    grants: HashMap<String, Grant>,
    asked: Vec<String>,
}

/// A running provider on a loopback port.
pub struct FakeProvider {
    /// Its issuer.
    pub issuer: String,
    state: Arc<Mutex<State>>,
    stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for FakeProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeProvider({})", self.issuer)
    }
}

impl FakeProvider {
    /// One that publishes these keys.
    pub fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let metadata = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize?tenant=1"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/keys"),
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
        });
        let state = State { keys: keys.iter().map(|key| key.published()).collect(), metadata, ..State::default() };
        let (state, stopped) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (serving, ending) = (Arc::clone(&state), Arc::clone(&stopped));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                // A client that has gone away hears nothing.
                let _gone = answer(&serving, stream);
            }
        });
        Self { issuer, state, stopped }
    }

    /// Publishes other keys.
    pub fn publish(&self, keys: &[&SigningKey]) {
        self.state.lock().keys = keys.iter().map(|key| key.published()).collect();
    }

    /// Says something else of itself.
    pub fn says(&self, member: &str, value: Value) {
        self.state.lock().metadata[member] = value;
    }

    /// Makes a code for whoever was sent here with this URL, to be redeemed once for this token.
    pub fn grants(&self, authorization_url: &str, token: String) -> String {
        let asked = query(authorization_url);
        let mut state = self.state.lock();
        let code = format!("code {}", state.grants.len());
        let grant =
            Grant { challenge: asked["code_challenge"].clone(), redirect_url: asked["redirect_uri"].clone(), token };
        state.grants.insert(code.clone(), grant);
        code
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.state.lock().asked.iter().filter(|asked| *asked == path).count()
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees it.
        let _gone = TcpStream::connect(self.issuer.trim_start_matches("http://"));
    }
}

/// The query of a URL.
pub fn query(url: &str) -> HashMap<String, String> {
    let (_, query) = url.split_once('?').unwrap();
    form_urlencoded::parse(query.as_bytes()).map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

fn answer(state: &Mutex<State>, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length, mut login) = (String::new(), 0, String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => value.trim().trim_start_matches("Basic ").clone_into(&mut login),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock();
    state.asked.push(path.clone());
    let (status, said) = match path.as_str() {
        "/.well-known/openid-configuration" => (200, state.metadata.clone()),
        "/keys" => (200, json!({"keys": state.keys})),
        "/token" => redeem(&mut state, &login, &body),
        _ => (404, json!({})),
    };
    let said = said.to_string();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{said}", said.len())
}

/// As RFC 6749 section 4.1.3 and RFC 7636 section 4.6 say a token endpoint does.
fn redeem(state: &mut State, login: &str, body: &[u8]) -> (u16, Value) {
    let form: HashMap<String, String> =
        form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let login = STANDARD.decode(login).ok().and_then(|pair| String::from_utf8(pair).ok()).unwrap_or_default();
    let parts: Vec<String> = login
        .split(':')
        .flat_map(|part| form_urlencoded::parse(part.as_bytes()).next())
        .map(|one| one.0.into())
        .collect();
    let client: Vec<&str> = if login.is_empty() {
        [form.get("client_id"), form.get("client_secret")].into_iter().flatten().map(String::as_str).collect()
    } else {
        parts.iter().map(String::as_str).collect()
    };
    if client != [CLIENT.0, CLIENT.1] {
        return (401, json!({"error": "invalid_client"}));
    }
    let grant = form.get("code").and_then(|code| state.grants.remove(code));
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let challenge = URL_SAFE_NO_PAD.encode(openssl::sha::sha256(field("code_verifier").as_bytes()));
    match grant {
        Some(grant) if grant.challenge == challenge && grant.redirect_url == field("redirect_uri") => {
            (200, json!({"access_token": "x", "token_type": "Bearer", "id_token": grant.token}))
        }
        Some(_) | None => (400, json!({"error": "invalid_grant"})),
    }
}
