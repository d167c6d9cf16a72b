//! Whether an ID token holds (OpenID Connect Core section 3.1.3.7; RFC 8725, best current practice for JSON Web Tokens).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealing::JwsAlgorithm;
use serde::Deserialize;
use serde_json::{Map, Value};
use session_model::Timestamp;

use crate::keys::KeySet;

/// Bytes of a token: one with hundreds of groups in it has some tens of thousands.
const TOKEN: usize = 64 << 10;
/// Characters of `sub` (Core section 2).
const SUBJECT: usize = 255;
/// How far the provider's clock may be from ours.
const SKEW_S: f64 = 60.0;

/// What a token must say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The issuer, character by character.
    pub issuer: &'a str,
    /// Our client id.
    pub client_id: &'a str,
    /// The nonce of this attempt.
    pub nonce: &'a str,
    /// When this attempt began: the token is not older.
    pub began: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// A token that holds.
#[derive(Debug, Clone)]
pub struct IdToken {
    /// Who it is of: unique within the issuer, for ever (Core section 5.7).
    pub subject: String,
    claims: Map<String, Value>,
}

impl IdToken {
    /// A claim that is text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.claim(claim)?.as_str()
    }

    /// A claim that is one text or a list of them, such as groups; nothing if it is not there, or is something else. `claim` is the name of
    /// a member, or the JSON pointer of one further down (RFC 6901: `/realm_access/roles`).
    pub fn texts(&self, claim: &str) -> Vec<&str> {
        match self.claim(claim) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    fn claim(&self, claim: &str) -> Option<&Value> {
        let Some(path) = claim.strip_prefix('/') else { return self.claims.get(claim) };
        let mut steps = path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
        let first = self.claims.get(&steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(&step))
    }
}

/// Why a token does not hold. Says nothing of what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Not three parts, not JSON, or not what such a token has in it.
    #[error("it is not a signed token in compact form with the claims of an ID token")]
    Malformed,
    /// `alg` is not among those that are taken: `none` and HMACs never are.
    #[error("its algorithm is not among those that are taken")]
    Algorithm,
    /// `crit` demands what nobody here understands (RFC 7515 section 4.1.11).
    #[error("it demands extensions")]
    Critical,
    /// It is a token of another kind: an access token for instance (RFC 8725 section 3.11).
    #[error("it is a token of another kind")]
    Kind,
    /// None of the provider's keys can have signed it: perhaps a new one has.
    #[error("none of the provider's keys can have signed it")]
    UnknownKey,
    /// The signature is not good.
    #[error("its signature is not good")]
    Signature,
    /// It is another issuer's.
    #[error("it is of another issuer")]
    Issuer,
    /// It is not for us, or for others too.
    #[error("it is not for this client alone")]
    Audience,
    /// It was issued to another client.
    #[error("it was issued to another client")]
    AuthorizedParty,
    /// Its time is over.
    #[error("its time is over")]
    Expired,
    /// Its time has not come, or it is from before the attempt.
    #[error("it is not from this attempt's time")]
    NotNow,
    /// It is the answer to another attempt.
    #[error("it is not of this attempt: the nonce is another")]
    Nonce,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    azp: Option<String>,
    exp: f64,
    iat: f64,
    nbf: Option<f64>,
    nonce: Option<String>,
}

/// Reads a token and says whether it holds. Nothing of what it claims is looked at before its signature was found good, and of its header only
/// what names the key: `jku`, `x5u` and `jwk` bring no key in (RFC 8725 section 3.10).
///
/// # Errors
/// [`TokenFault`]; the first that is found.
pub fn check(token: &str, keys: &KeySet, expected: &Expected<'_>) -> Result<IdToken, TokenFault> {
    if token.len() > TOKEN {
        return Err(TokenFault::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
    let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenFault::Malformed);
    let header: Header = serde_json::from_slice(&part(header)?).map_err(|_| TokenFault::Malformed)?;
    let algorithm = JwsAlgorithm::named(&header.alg).ok_or(TokenFault::Algorithm)?;
    if header.crit.is_some() {
        return Err(TokenFault::Critical);
    }
    // Explicit types are compared without `application/` and case (RFC 7515 section 4.1.9).
    if header.typ.as_deref().is_some_and(|typ| !typ.eq_ignore_ascii_case("jwt")) {
        return Err(TokenFault::Kind);
    }
    let candidates = keys.candidates(header.kid.as_deref(), algorithm);
    if candidates.is_empty() {
        return Err(TokenFault::UnknownKey);
    }
    let signature = part(signature)?;
    if !candidates.iter().any(|key| key.verifies(algorithm, signed.as_bytes(), &signature)) {
        return Err(TokenFault::Signature);
    }
    let claims = part(claims)?;
    // Read twice: what is checked by what it must be, and the rest for whoever asks. Names that stand twice are errors in the first reading.
    let known: Claims = serde_json::from_slice(&claims).map_err(|_| TokenFault::Malformed)?;
    let all: Map<String, Value> = serde_json::from_slice(&claims).map_err(|_| TokenFault::Malformed)?;
    holds(&known, expected)?;
    Ok(IdToken { subject: known.sub, claims: all })
}

fn holds(claims: &Claims, expected: &Expected<'_>) -> Result<(), TokenFault> {
    if claims.iss != expected.issuer {
        return Err(TokenFault::Issuer);
    }
    // Only ours: a token that is good elsewhere too may have been taken from there (Core section 3.1.3.7, step 3).
    let for_us = match &claims.aud {
        Audience::One(one) => one == expected.client_id,
        Audience::Several(all) => matches!(all.as_slice(), [one] if one == expected.client_id),
    };
    if !for_us {
        return Err(TokenFault::Audience);
    }
    if claims.azp.as_ref().is_some_and(|party| party != expected.client_id) {
        return Err(TokenFault::AuthorizedParty);
    }
    let seconds = |time: Timestamp| time.as_micros() as f64 / 1e6;
    let (began, now) = (seconds(expected.began), seconds(expected.now));
    if claims.exp <= now - SKEW_S {
        return Err(TokenFault::Expired);
    }
    let issued_now = claims.iat >= began - SKEW_S && claims.iat <= now + SKEW_S;
    if !issued_now || !claims.nbf.is_none_or(|from| from <= now + SKEW_S) {
        return Err(TokenFault::NotNow);
    }
    let nonce = claims.nonce.as_deref().unwrap_or_default();
    if nonce.is_empty() || !sealing::same(nonce.as_bytes(), expected.nonce.as_bytes()) {
        return Err(TokenFault::Nonce);
    }
    if claims.sub.is_empty() || claims.sub.len() > SUBJECT {
        return Err(TokenFault::Malformed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{SigningKey, hmac_signed, unsigned};

    const NOW: i64 = 1_800_000_000;

    fn expected() -> Expected<'static> {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        Expected {
            issuer: "https://idp.example",
            client_id: "counterfoil",
            nonce: "n-1",
            began: at(NOW - 30),
            now: at(NOW),
        }
    }

    fn claims() -> Value {
        json!({
            "iss": "https://idp.example", "sub": "248289761001", "aud": "counterfoil", "nonce": "n-1",
            "exp": NOW + 300, "iat": NOW - 5, "groups": ["staff", "auditors"], "amr": ["pwd", "otp"],
            "realm_access": {"roles": ["a/b"]}, "https://idp.example/role": "one",
        })
    }

    fn set(keys: &[&SigningKey]) -> KeySet {
        let published: Vec<Value> = keys.iter().map(|key| key.published()).collect();
        KeySet::parse(json!({"keys": published}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_good_token_of_either_kind_of_key_holds() {
        for key in [SigningKey::rsa("a"), SigningKey::p256("a")] {
            let token = check(&key.sign(&key.header(), &claims()), &set(&[&key]), &expected()).unwrap();
            assert_eq!(token.subject, "248289761001");
            assert_eq!(token.texts("groups"), ["staff", "auditors"]);
            assert_eq!(token.texts("/realm_access/roles"), ["a/b"]);
            assert_eq!(token.texts("https://idp.example/role"), ["one"]);
            assert_eq!((token.text("nonce"), token.text("amr"), token.texts("/groups/x")), (Some("n-1"), None, vec![]));
        }
    }

    /// Each claim changed to what an attacker or a careless provider might say.
    #[test]
    fn what_a_token_must_say_it_says() {
        use TokenFault as F;
        let key = SigningKey::p256("a");
        let keys = set(&[&key]);
        let other_issuer = json!("https://idp.example/");
        let table = [
            ("iss", json!("https://evil.example"), F::Issuer),
            ("iss", other_issuer, F::Issuer),
            ("iss", Value::Null, F::Malformed),
            ("aud", json!("other"), F::Audience),
            ("aud", json!([]), F::Audience),
            ("aud", json!(["other", "counterfoil"]), F::Audience),
            ("aud", json!(["counterfoil", "counterfoil"]), F::Audience),
            ("aud", Value::Null, F::Malformed),
            ("azp", json!("other"), F::AuthorizedParty),
            ("exp", json!(NOW - 60), F::Expired),
            ("exp", json!(0), F::Expired),
            ("exp", json!("9999999999"), F::Malformed),
            ("exp", Value::Null, F::Malformed),
            ("iat", json!(NOW - 91), F::NotNow),
            ("iat", json!(NOW + 61), F::NotNow),
            ("iat", Value::Null, F::Malformed),
            ("nbf", json!(NOW + 61), F::NotNow),
            ("nonce", json!("n-2"), F::Nonce),
            ("nonce", json!(""), F::Nonce),
            ("nonce", Value::Null, F::Nonce),
            ("sub", json!(""), F::Malformed),
            ("sub", json!("s".repeat(256)), F::Malformed),
            ("sub", Value::Null, F::Malformed),
        ];
        for (claim, value, fault) in table {
            let mut claims = claims();
            claims[claim] = value.clone();
            let found = check(&key.sign(&key.header(), &claims), &keys, &expected()).unwrap_err();
            assert_eq!(found, fault, "{claim}: {value}");
        }
        for (claim, value) in [
            ("aud", json!(["counterfoil"])),
            ("azp", json!("counterfoil")),
            ("exp", json!(NOW - 59)),
            ("exp", json!(NOW as f64 + 0.5)),
            ("iat", json!(NOW + 59)),
            ("nbf", json!(NOW)),
            ("amr", json!("pwd")),
            ("groups", json!({"a": 1})),
        ] {
            let mut claims = claims();
            claims[claim] = value.clone();
            assert!(check(&key.sign(&key.header(), &claims), &keys, &expected()).is_ok(), "{claim}: {value}");
        }
    }

    #[test]
    fn an_empty_nonce_is_never_the_one_that_was_expected() {
        let key = SigningKey::p256("a");
        let mut claims = claims();
        claims["nonce"] = json!("");
        let expected = Expected { nonce: "", ..expected() };
        assert_eq!(check(&key.sign(&key.header(), &claims), &set(&[&key]), &expected).unwrap_err(), TokenFault::Nonce);
    }

    /// Signatures as they are forged.
    #[test]
    fn only_a_published_key_signs_and_only_by_its_own_algorithm() {
        use TokenFault as F;
        let (rsa, ec, stranger) = (SigningKey::rsa("r"), SigningKey::p256("e"), SigningKey::rsa("r"));
        let keys = set(&[&rsa, &ec]);
        let claims = claims();
        let with = |key: &SigningKey, member: &str, value: Value| {
            let mut header = key.header();
            header[member] = value;
            header
        };
        let good = rsa.sign(&rsa.header(), &claims);
        let (head, signature) = good.rsplit_once('.').unwrap();
        let mut other = claims.clone();
        other["sub"] = json!("admin");
        let altered = format!("{}.{signature}", unsigned(&rsa.header(), &other));
        let none = |word: &str| format!("{}.", unsigned(&json!({"alg": word}), &claims));
        let hs = |secret: &[u8]| hmac_signed(&with(&rsa, "alg", json!("HS256")), &claims, secret);
        let table = [
            ("alg none", none("none"), F::Algorithm),
            ("alg None", none("None"), F::Algorithm),
            ("alg none with a signature", rsa.sign(&with(&rsa, "alg", json!("none")), &claims), F::Algorithm),
            ("HS256 with the public key", hs(&rsa.public_pem()), F::Algorithm),
            ("HS256 with the client id", hs(b"counterfoil"), F::Algorithm),
            ("no alg", rsa.sign(&json!({"kid": "r"}), &claims), F::Malformed),
            ("another's key under a known kid", stranger.sign(&rsa.header(), &claims), F::Signature),
            ("a kid that nobody has", rsa.sign(&with(&rsa, "kid", json!("x")), &claims), F::UnknownKey),
            ("another key's kid", rsa.sign(&with(&rsa, "kid", json!("e")), &claims), F::UnknownKey),
            ("a digest that the key is not for", rsa.sign(&with(&rsa, "alg", json!("RS512")), &claims), F::Signature),
            ("ES256 by an RSA key", rsa.sign(&with(&rsa, "alg", json!("ES256")), &claims), F::UnknownKey),
            ("claims changed", altered, F::Signature),
            ("no signature", format!("{head}."), F::Signature),
            ("two parts", head.to_owned(), F::Malformed),
            ("five parts", format!("{good}.a.b"), F::Malformed),
            ("padding", format!("{good}="), F::Malformed),
            (
                "its own key in the header",
                stranger.sign(&with(&stranger, "jwk", stranger.published()), &claims),
                F::Signature,
            ),
            ("extensions", rsa.sign(&with(&rsa, "crit", json!(["exp"])), &claims), F::Critical),
            ("an access token", rsa.sign(&with(&rsa, "typ", json!("at+jwt")), &claims), F::Kind),
            ("a logout token", rsa.sign(&with(&rsa, "typ", json!("logout+jwt")), &claims), F::Kind),
            ("nothing", String::new(), F::Malformed),
            ("too much", "a".repeat(70_000), F::Malformed),
        ];
        for (what, token, fault) in table {
            assert_eq!(check(&token, &keys, &expected()).unwrap_err(), fault, "{what}");
        }
    }

    #[test]
    fn without_a_kid_there_must_be_one_key_only() {
        let (one, two) = (SigningKey::p256("a"), SigningKey::p256("b"));
        let token = one.sign(&json!({"alg": "ES256"}), &claims());
        assert!(check(&token, &set(&[&one]), &expected()).is_ok());
        assert!(check(&token, &set(&[&one, &SigningKey::rsa("r")]), &expected()).is_ok(), "of another kind");
        assert_eq!(check(&token, &set(&[&one, &two]), &expected()).unwrap_err(), TokenFault::UnknownKey);
    }

    #[test]
    fn a_key_for_encryption_or_of_an_unknown_kind_signs_nothing() {
        let key = SigningKey::rsa("a");
        let mut published = key.published();
        published["use"] = json!("enc");
        let odd = json!({"kty": "oct", "k": "c2VjcmV0", "kid": "a"});
        let keys = KeySet::parse(json!({"keys": [published, odd, {"kty": 1}, "x"]}).to_string().as_bytes()).unwrap();
        assert!(keys.is_empty());
        assert_eq!(check(&key.sign(&key.header(), &claims()), &keys, &expected()).unwrap_err(), TokenFault::UnknownKey);
    }
}
