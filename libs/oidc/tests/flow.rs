//! The way to a provider and back, with a provider that misbehaves.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that cannot go on should stop")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use oidc::testing::{CLIENT, FakeProvider, SigningKey, query};
use oidc::{Attempt, AuthorizationAnswer, ClientSecret, IdToken, OidcError, Provider, ProviderConfig, TokenFault};
use serde_json::{Value, json};
use session_model::Timestamp;

const NOW: i64 = 1_800_000_000;
const VERIFIER: &str = "0123456789012345678901234567890123456789012";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

struct World {
    fake: FakeProvider,
    provider: Provider,
    clock: Arc<AtomicI64>,
}

impl World {
    fn new(key: &SigningKey) -> Self {
        Self::with(key, Some(CLIENT.1))
    }

    fn with(key: &SigningKey, secret: Option<&str>) -> Self {
        let fake = FakeProvider::start(&[key]);
        let clock = Arc::new(AtomicI64::new(NOW));
        let config = ProviderConfig {
            issuer: fake.issuer.clone(),
            client_id: CLIENT.0.to_owned(),
            client_secret: secret.map(|secret| ClientSecret::new(secret.to_owned())),
            scopes: vec!["groups".to_owned()],
            ca_file: None,
        };
        let reading = Arc::clone(&clock);
        let provider = Provider::new(config, Arc::new(move || at(reading.load(Ordering::Relaxed)))).unwrap();
        Self { fake, provider, clock }
    }

    fn attempt(&self) -> Attempt<'static> {
        Attempt {
            state: "st",
            nonce: "n-1",
            code_verifier: VERIFIER,
            redirect_url: "https://us.example/console/oidc/callback",
            began: at(self.clock.load(Ordering::Relaxed) - 5),
        }
    }

    fn claims(&self) -> Value {
        let now = self.clock.load(Ordering::Relaxed);
        json!({"iss": self.fake.issuer, "sub": "s", "aud": CLIENT.0, "exp": now + 300, "iat": now, "nonce": "n-1"})
    }

    async fn code(&self, token: String) -> String {
        self.fake.grants(&self.provider.authorization_url(&self.attempt()).await.unwrap(), token)
    }

    async fn signs(&self, key: &SigningKey) -> Result<IdToken, OidcError> {
        let code = self.code(key.sign(&key.header(), &self.claims())).await;
        self.provider.redeem(&self.answer(&code), &self.attempt()).await
    }

    fn answer(&self, code: &str) -> AuthorizationAnswer {
        let text = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("state", "st"), ("code", code), ("iss", &self.fake.issuer)])
            .finish();
        AuthorizationAnswer::parse(&text).unwrap()
    }
}

#[tokio::test]
async fn a_code_is_redeemed_once_by_who_began() {
    let key = SigningKey::rsa("a");
    let world = World::new(&key);
    let url = world.provider.authorization_url(&world.attempt()).await.unwrap();
    assert!(url.starts_with(&format!("{}/authorize?tenant=1&", world.fake.issuer)), "{url}");
    let asked = query(&url);
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", CLIENT.0),
        ("redirect_uri", "https://us.example/console/oidc/callback"),
        ("scope", "openid groups"),
        ("state", "st"),
        ("nonce", "n-1"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(asked[name], value);
    }
    assert!(!url.contains(VERIFIER));
    let code = world.code(key.sign(&key.header(), &world.claims())).await;
    assert_eq!(world.provider.redeem(&world.answer(&code), &world.attempt()).await.unwrap().subject, "s");
    let again = world.provider.redeem(&world.answer(&code), &world.attempt()).await;
    assert!(matches!(again, Err(OidcError::NotOurs(_))), "{again:?}");
    let code = world.code(key.sign(&key.header(), &world.claims())).await;
    let stolen = Attempt { code_verifier: "9999999999999999999999999999999999999999999", ..world.attempt() };
    let stolen = world.provider.redeem(&world.answer(&code), &stolen).await;
    assert!(matches!(stolen, Err(OidcError::NotOurs(_))), "{stolen:?}");
    assert_eq!((world.fake.asked("/keys"), world.fake.asked("/.well-known/openid-configuration")), (1, 1));
}

#[tokio::test]
async fn an_answer_of_another_attempt_or_issuer_redeems_nothing() {
    let key = SigningKey::p256("a");
    let world = World::new(&key);
    let code = world.code(key.sign(&key.header(), &world.claims())).await;
    let good = world.answer(&code);
    for answer in [
        AuthorizationAnswer { state: "su".into(), ..good.clone() },
        AuthorizationAnswer { state: String::new(), ..good.clone() },
        AuthorizationAnswer { issuer: Some("https://evil.example".into()), ..good.clone() },
        AuthorizationAnswer { issuer: None, ..good.clone() },
    ] {
        let refused = world.provider.redeem(&answer, &world.attempt()).await;
        assert!(matches!(refused, Err(OidcError::NotOurs(_))), "{answer:?}: {refused:?}");
    }
    assert_eq!(world.fake.asked("/token"), 0, "the code is not shown to anybody");
    let refused =
        AuthorizationAnswer::parse(&format!("error=access_denied&state=st&iss={}", world.fake.issuer)).unwrap();
    let refused = world.provider.redeem(&refused, &world.attempt()).await;
    assert!(matches!(&refused, Err(OidcError::Refused(word)) if word == "access_denied"), "{refused:?}");
    assert!(world.provider.redeem(&good, &world.attempt()).await.is_ok());
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it_and_not_looked_for_more_often_than_that() {
    let (old, new) = (SigningKey::rsa("old"), SigningKey::p256("new"));
    let world = World::new(&old);
    world.signs(&old).await.unwrap();
    world.fake.publish(&[&old, &new]);
    assert_eq!(world.signs(&new).await.unwrap().subject, "s", "rotated");
    assert_eq!(world.fake.asked("/keys"), 2);
    // Whoever makes up key ids makes us ask no more often than every half minute.
    let stranger = SigningKey::rsa("stranger");
    for _ in 0..5 {
        let refused = world.signs(&stranger).await;
        assert!(matches!(refused, Err(OidcError::Token(TokenFault::UnknownKey))), "{refused:?}");
    }
    assert_eq!(world.fake.asked("/keys"), 2);
    world.clock.fetch_add(31, Ordering::Relaxed);
    assert!(world.signs(&stranger).await.is_err());
    assert_eq!(world.fake.asked("/keys"), 3);
    // A key that was withdrawn is good for an hour at most.
    world.fake.publish(&[&new]);
    world.clock.fetch_add(3_601, Ordering::Relaxed);
    assert!(matches!(world.signs(&old).await, Err(OidcError::Token(TokenFault::UnknownKey))));
    assert!(world.signs(&new).await.is_ok());
}

#[tokio::test]
async fn a_secret_goes_the_way_that_the_provider_takes_it() {
    let key = SigningKey::p256("a");
    for methods in [json!(["client_secret_basic", "client_secret_post"]), json!(["client_secret_post"])] {
        let world = World::new(&key);
        world.fake.says("token_endpoint_auth_methods_supported", methods.clone());
        assert!(world.signs(&key).await.is_ok(), "{methods}");
    }
    let world = World::new(&key);
    world.fake.says("token_endpoint_auth_methods_supported", json!(["private_key_jwt"]));
    assert!(matches!(world.signs(&key).await, Err(OidcError::NoWayToAuthenticate)));
    for secret in [Some("wrong"), None] {
        let refused = World::with(&key, secret).signs(&key).await;
        assert!(matches!(refused, Err(OidcError::Unexpected { status: 401, .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_provider_that_is_away_or_another_is_not_asked_for_a_code() {
    let key = SigningKey::p256("a");
    let world = World::new(&key);
    world.fake.says("issuer", json!("https://evil.example"));
    let refused = world.provider.authorization_url(&world.attempt()).await;
    assert!(matches!(refused, Err(OidcError::Metadata(_))), "{refused:?}");
    let gone = world.fake.issuer.clone();
    drop(world);
    let config =
        ProviderConfig { issuer: gone, client_id: "c".into(), client_secret: None, scopes: Vec::new(), ca_file: None };
    let provider = Provider::new(config, Arc::new(|| at(NOW))).unwrap();
    let attempt = Attempt { state: "", nonce: "", code_verifier: VERIFIER, redirect_url: "", began: at(NOW) };
    assert!(matches!(provider.authorization_url(&attempt).await, Err(OidcError::Unreachable(_))));
}
