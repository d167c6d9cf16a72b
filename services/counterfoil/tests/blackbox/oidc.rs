//! Signing in to the console with an identity provider, honest ones and others.

use oidc::testing::{CLIENT, FakeProvider, SigningKey, hmac_signed, query, unsigned};
use serde_json::{Value, json};

use crate::console::{Browser, entries, tag, to_the_door};
use crate::program::{APPLICATION, AUDITOR, Answer, Home, OPERATOR, Program};

const VISIT: &str = "counterfoil-console";
const AWAY: &str = "counterfoil-away";

/// A home whose people are known to this provider: `auditors`, `operators`, and `seconds`, who are auditors of another realm.
fn home(provider: &FakeProvider) -> Home {
    let home = Home::new();
    let secret = home.folder.path().join("client-secret");
    std::fs::write(&secret, format!("{}\n", CLIENT.1)).unwrap();
    home.with("CONSOLE__OIDC__ISSUER", &provider.issuer)
        .with("CONSOLE__OIDC__CLIENT_ID", CLIENT.0)
        .with("CONSOLE__OIDC__CLIENT_SECRET_FILE", secret.display().to_string())
        .with("CONSOLE__OIDC__LABEL", "Example & Co")
        .with("CONSOLE__OIDC__SCOPES", "[\"groups\"]")
        .with("CONSOLE__OIDC__ROLES_CLAIM", "/resource/roles")
        .with("CONSOLE__OIDC__GRANTS__a__GROUP", "auditors")
        .with("CONSOLE__OIDC__GRANTS__b__GROUP", "operators")
        .with("CONSOLE__OIDC__GRANTS__b__ROLES", "[\"operator\"]")
        .with("CONSOLE__OIDC__GRANTS__c__GROUP", "seconds")
        .with("CONSOLE__OIDC__GRANTS__c__REALM", "second")
        .with("REALMS__default__PROFILE", "default")
        .with("REALMS__second__PROFILE", "default")
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What the provider says of a person.
fn claims(provider: &FakeProvider, url: &str, groups: &[&str]) -> Value {
    json!({
        "iss": provider.issuer, "sub": "00u-jane-7", "aud": CLIENT.0, "nonce": query(url)["nonce"], "iat": now(), "exp": now() + 300,
        "preferred_username": "jane <b>roe", "resource": {"roles": groups}, "amr": ["hwk", "pin"], "acr": "phr",
    })
}

/// Where the console sends a browser to.
fn leaves(browser: &Browser<'_>) -> String {
    let answer = browser.get("/console/oidc?next=/console/checkpoints");
    assert_eq!(answer.status, 303, "{}", answer.text);
    answer.header("location").to_owned()
}

fn comes_back(browser: &Browser<'_>, provider: &FakeProvider, url: &str, code: &str) -> Answer {
    let asked = query(url);
    let back = form(&[("code", code), ("state", &asked["state"]), ("iss", &provider.issuer)]);
    browser.get(&format!("/console/oidc/callback?{back}"))
}

fn form(pairs: &[(&str, &str)]) -> String {
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    pairs.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&")
}

fn signs_in<'a>(
    program: &'a Program,
    provider: &FakeProvider,
    key: &SigningKey,
    groups: &[&str],
) -> (Browser<'a>, Answer) {
    let browser = Browser::new(program);
    let url = leaves(&browser);
    let code = provider.grants(&url, key.sign(&key.header(), &claims(provider, &url, groups)));
    let answer = comes_back(&browser, provider, &url, &code);
    (browser, answer)
}

fn is_in(browser: &Browser<'_>) -> bool {
    browser.cookies.borrow().contains_key(VISIT)
}

#[test]
fn a_person_is_let_in_and_stands_in_the_log_under_a_handle() {
    let key = SigningKey::rsa("a");
    let provider = FakeProvider::start(&[&key]);
    let home = home(&provider);
    let program = home.start();
    let page = Browser::new(&program).get("/console/sign-in?next=/console/checkpoints");
    assert!(page.text.contains("href=\"/console/oidc?next=%2Fconsole%2Fcheckpoints\""), "{}", page.text);
    assert!(page.text.contains("Sign in with Example &amp; Co") && page.text.contains("name=\"key\""));

    let browser = Browser::new(&program);
    let begun = browser.get("/console/oidc?next=/console/checkpoints");
    let url = begun.header("location").to_owned();
    let asked = query(&url);
    assert_eq!(asked["redirect_uri"], format!("{}/console/oidc/callback", program.base));
    assert_eq!((asked["scope"].as_str(), asked["code_challenge_method"].as_str()), ("openid groups", "S256"));
    let kept = begun.header("set-cookie");
    assert!(kept.starts_with(AWAY) && kept.contains("; HttpOnly; SameSite=Lax"), "{kept}");
    for secret in [&asked["state"], &asked["nonce"]] {
        assert!(!kept.contains(secret.as_str()), "the cookie alone tells nothing");
    }
    let code = provider.grants(&url, key.sign(&key.header(), &claims(&provider, &url, &["staff", "auditors"])));
    let back = comes_back(&browser, &provider, &url, &code);
    assert_eq!(back.status, 200, "{}", back.text);
    assert!(back.text.contains("content=\"0;url=/console/checkpoints\""), "{}", back.text);
    let lines: Vec<&str> = back.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    let visit = lines.iter().find(|line| line.starts_with(VISIT)).unwrap();
    assert!(visit.contains("; HttpOnly; SameSite=Strict"), "{visit}");
    assert!(!browser.cookies.borrow().contains_key(AWAY), "the attempt is over");
    assert_eq!(back.header("referrer-policy"), "no-referrer");

    let shown = browser.get("/console/entries");
    assert_eq!(shown.status, 200, "{}", shown.text);
    assert!(shown.text.contains("jane &lt;b&gt;roe") && !shown.text.contains("<b>roe"), "{}", shown.text);
    assert_eq!(browser.get("/console/status").status, 403, "an auditor is no operator");

    let created = entries(&program, "action=session.created");
    let created = &created[0];
    let handle = created["entry"]["data_key"].as_str().unwrap();
    assert_eq!(created["entry"]["actor"], json!({"id": format!("subject:{handle}"), "role": "auditor"}));
    assert_eq!(created["entry"]["detail"], json!({"kind": "browser", "sign_in": "oidc"}));
    let read = entries(&program, &format!("actor=subject:{handle}&action=audit.read"));
    assert_eq!(read.len(), 1, "what the person looked at is found by the same handle");
    let subject = format!("{}#00u-jane-7", provider.issuer);
    let found = entries(&program, &format!("{}&reveal=true&purpose=x", form(&[("subject", &subject)])));
    let event = found.iter().find(|item| item["entry"]["action"] == "session.created").unwrap()["personal"].to_string();
    for personal in [subject.as_str(), "jane <b>roe", "hwk", "phr", "auditors"] {
        assert!(event.contains(personal), "{personal}: {event}");
    }
    for item in entries(&program, "") {
        let leaf = item["entry"].to_string();
        assert!(!leaf.contains("jane") && !leaf.contains("00u"), "{leaf}");
    }

    let cookie = browser.cookies.borrow()[VISIT].clone();
    assert!(to_the_door(&browser.send("/console/sign-out", &[])));
    browser.cookies.borrow_mut().insert(VISIT.to_owned(), cookie);
    assert!(to_the_door(&browser.get("/console/entries")), "the old cookie opens nothing");
    assert_eq!(entries(&program, &format!("actor=subject:{handle}&action=session.ended")).len(), 1);
    let (again, _) = signs_in(&program, &provider, &key, &["auditors"]);
    assert!(is_in(&again));
    assert_eq!(
        entries(&program, &format!("actor=subject:{handle}&action=session.created")).len(),
        2,
        "one person, one handle"
    );
}

/// Everything that is brought back and does not hold, through the whole service.
#[test]
fn what_is_forged_replayed_or_anothers_lets_nobody_in_and_is_recorded() {
    let (key, stranger) = (SigningKey::rsa("a"), SigningKey::rsa("a"));
    let provider = FakeProvider::start(&[&key]);
    let home = home(&provider);
    let program = home.start();
    type Forge = fn(&SigningKey, &SigningKey, Value) -> String;
    let with = |claims: Value, claim: &str, value: Value| {
        let mut claims = claims;
        claims[claim] = value;
        claims
    };
    let forged: [(&str, Forge); 4] = [
        ("none", |_, _, claims| format!("{}.", unsigned(&json!({"alg": "none"}), &claims))),
        ("HS256 with the public key", |key, _, claims| {
            hmac_signed(&json!({"alg": "HS256", "kid": "a"}), &claims, &key.public_pem())
        }),
        ("another key", |_, stranger, claims| stranger.sign(&stranger.header(), &claims)),
        ("an access token", |key, _, claims| key.sign(&json!({"alg": "RS256", "kid": "a", "typ": "at+jwt"}), &claims)),
    ];
    let said = [
        ("iss", json!("https://idp.example")),
        ("aud", json!("another")),
        ("aud", json!([CLIENT.0, "another"])),
        ("azp", json!("another")),
        ("nonce", json!("another")),
        ("exp", json!(now() - 100)),
        ("iat", json!(now() - 1_000)),
        ("sub", Value::Null),
    ];
    let mut refused = 0;
    let mut turned_away = |what: &str, browser: &Browser<'_>, answer: &Answer| {
        assert_eq!(answer.status, 403, "{what}: {}", answer.text);
        assert!(!is_in(browser) && !browser.cookies.borrow().contains_key(AWAY), "{what}");
        assert!(answer.text.contains("name=\"key\""), "{what}: there is another way in");
        refused += 1;
    };
    let attempt = |token: &dyn Fn(&str) -> String| {
        let browser = Browser::new(&program);
        let url = leaves(&browser);
        let code = provider.grants(&url, token(&url));
        (browser, url, code)
    };
    let good = |url: &str| claims(&provider, url, &["auditors"]);
    for (what, forge) in forged {
        let (browser, url, code) = attempt(&|url| forge(&key, &stranger, good(url)));
        turned_away(what, &browser, &comes_back(&browser, &provider, &url, &code));
    }
    for (claim, value) in said {
        let (browser, url, code) = attempt(&|url| key.sign(&key.header(), &with(good(url), claim, value.clone())));
        turned_away(claim, &browser, &comes_back(&browser, &provider, &url, &code));
    }
    let honest = |url: &str| key.sign(&key.header(), &good(url));

    // A code that was made for somebody else's attempt, brought by a link: login CSRF (RFC 9700 section 4.7).
    let (theirs, url, code) = attempt(&honest);
    let victim = Browser::new(&program);
    turned_away("no attempt of its own", &victim, &comes_back(&victim, &provider, &url, &code));
    leaves(&victim);
    turned_away("another's attempt", &victim, &comes_back(&victim, &provider, &url, &code));
    // The provider never saw the code: it is still good for whoever began.
    assert_eq!(comes_back(&theirs, &provider, &url, &code).status, 200);

    // The same answer once more, with all that the browser had.
    let (browser, url, code) = attempt(&honest);
    let kept = browser.cookies.borrow()[AWAY].clone();
    assert_eq!(comes_back(&browser, &provider, &url, &code).status, 200);
    let replaying = Browser::new(&program);
    replaying.cookies.borrow_mut().insert(AWAY.to_owned(), kept.clone());
    turned_away("a code replayed", &replaying, &comes_back(&replaying, &provider, &url, &code));
    // Even where the provider gives another code, and a token with the same nonce, for the state that was used.
    replaying.cookies.borrow_mut().insert(AWAY.to_owned(), kept);
    let code = provider.grants(&url, honest(&url));
    turned_away("a state replayed", &replaying, &comes_back(&replaying, &provider, &url, &code));

    // An answer by another issuer, or by none (RFC 9207).
    let callback =
        |browser: &Browser<'_>, pairs: &[(&str, &str)]| browser.get(&format!("/console/oidc/callback?{}", form(pairs)));
    for issuer in [Some("https://evil.example"), None] {
        let (browser, url, code) = attempt(&honest);
        let state = query(&url)["state"].clone();
        let mut pairs = vec![("code", code.as_str()), ("state", state.as_str())];
        pairs.extend(issuer.map(|issuer| ("iss", issuer)));
        turned_away("another issuer", &browser, &callback(&browser, &pairs));
    }
    let (browser, url, _) = attempt(&honest);
    let state = query(&url)["state"].clone();
    let refusal =
        [("error", "access_denied"), ("error_description", "<script>"), ("state", &state), ("iss", &provider.issuer)];
    let answer = callback(&browser, &refusal);
    assert!(answer.text.contains("did not sign you in") && !answer.text.contains("<script>"), "{}", answer.text);
    turned_away("a refusal", &browser, &answer);
    turned_away("nothing", &browser, &callback(&browser, &[]));

    program.stop();
    let program = home.start();
    let recorded: usize = entries(&program, "action=request.refused")
        .iter()
        .map(|item| &item["entry"]["detail"])
        .filter(|detail| detail["route"] == "/console/oidc/callback" && detail["reason"] == "credential")
        .map(|detail| detail["count"].as_str().unwrap().parse::<usize>().unwrap())
        .sum();
    assert_eq!(recorded, refused);
}

#[test]
fn groups_decide_the_realm_and_the_roles_and_only_as_long_as_they_are_granted() {
    let key = SigningKey::p256("a");
    let provider = FakeProvider::start(&[&key]);
    let mut home = home(&provider);
    let program = home.start();
    let pages = |browser: &Browser<'_>| ["/console/entries", "/console/status"].map(|path| browser.get(path).status);
    let visit = |groups: &[&str]| signs_in(&program, &provider, &key, groups).0;
    let (auditor, operator, both) = (visit(&["auditors"]), visit(&["operators"]), visit(&["operators", "auditors"]));
    assert_eq!([pages(&auditor), pages(&operator), pages(&both)], [[200, 403], [403, 200], [200, 200]]);
    assert_eq!(operator.get("/console").header("location"), "/console/status");
    let second = visit(&["seconds"]);
    assert!(second.get("/console/entries").text.contains("<strong>second</strong>"));
    let first = visit(&["seconds", "operators"]);
    assert!(first.get("/console/status").text.contains("<strong>default</strong>"), "the first grant that fits");
    for groups in [&[][..], &["staff"], &["Auditors"], &["auditors "]] {
        let (browser, answer) = signs_in(&program, &provider, &key, groups);
        assert_eq!(answer.status, 403, "{groups:?}");
        assert!(answer.text.contains("You have no role here") && !is_in(&browser), "{}", answer.text);
    }
    // A form of one visit is none of another's.
    let theirs = tag(&both.get("/console/subjects"));
    assert_eq!(auditor.post("/console/subjects", &[("subject", "a"), ("form_tag", &theirs)]).status, 403);
    // An operator ends every visit.
    let ended = program.json(OPERATOR, "DELETE", "/v1/sessions?kind=browser&confirm=true", None);
    assert_eq!(ended.status, 200, "{}", ended.text);
    assert!(to_the_door(&auditor.get("/console/entries")));

    let kept = visit(&["auditors"]).cookies.borrow().clone();
    program.stop();
    let with_cookie = |program: &Program| {
        let browser = Browser::new(program);
        browser.cookies.borrow_mut().clone_from(&kept);
        browser.get("/console/entries")
    };
    let program = home.start();
    assert_eq!(with_cookie(&program).status, 200, "a visit outlives a restart");
    program.stop();
    home.environment.retain(|(name, _)| !name.starts_with("CONSOLE__OIDC__GRANTS__a"));
    let program = home.start();
    assert!(to_the_door(&with_cookie(&program)), "what is not granted any more opens nothing");
    program.stop();
    home.environment.retain(|(name, _)| !name.starts_with("CONSOLE__OIDC"));
    let program = home.start();
    assert!(to_the_door(&with_cookie(&program)));
    let browser = Browser::new(&program);
    assert_eq!((browser.get("/console/oidc").status, browser.get("/console/oidc/callback").status), (404, 404));
    assert!(!browser.get("/console/sign-in").text.contains("/console/oidc"));
}

#[test]
fn a_person_is_a_subject_who_can_be_erased_and_whose_sessions_an_application_can_end() {
    let key = SigningKey::p256("a");
    let provider = FakeProvider::start(&[&key]);
    let home = home(&provider);
    let program = home.start();
    let subject = form(&[("", &format!("{}#00u-jane-7", provider.issuer))]).trim_start_matches('=').to_owned();
    let (browser, _) = signs_in(&program, &provider, &key, &["auditors"]);
    assert_eq!(browser.get("/console/entries").status, 200);
    let ended = program.app("DELETE", &format!("/v1/subjects/{subject}/sessions"), None);
    assert_eq!(ended.json()["ended"], 1, "{}", ended.text);
    assert!(to_the_door(&browser.get("/console/entries")));

    let (browser, _) = signs_in(&program, &provider, &key, &["auditors"]);
    let created = entries(&program, "action=session.created");
    let handle = created[0]["entry"]["data_key"].as_str().unwrap().to_owned();
    // The session is an application's to see; the token in the cookie's place is not, so nobody becomes the visitor.
    let id = created[0]["entry"]["session_id"].as_str().unwrap();
    let renewed = program.json(APPLICATION, "POST", &format!("/v1/sessions/{id}/renew"), None).json();
    let thief = Browser::new(&program);
    let mut parts: Vec<String> = browser.cookies.borrow()[VISIT].split('.').map(str::to_owned).collect();
    parts[0] = renewed["token"].as_str().unwrap().to_owned();
    thief.cookies.borrow_mut().insert(VISIT.to_owned(), parts.join("."));
    assert!(to_the_door(&thief.get("/console/entries")));

    let erased = program.json(AUDITOR, "POST", &format!("/v1/audit/subjects/{subject}/erasure"), None);
    assert_eq!(erased.status, 200, "{}", erased.text);
    assert!(to_the_door(&browser.get("/console/entries")));
    let left = entries(&program, &format!("actor=subject:{handle}&reveal=true&purpose=x"));
    assert!(!left.is_empty());
    assert!(left.iter().all(|item| !item.to_string().contains("00u-jane-7")), "{left:?}");
    let (again, _) = signs_in(&program, &provider, &key, &["auditors"]);
    assert_eq!(again.get("/console/entries").status, 200);
    let newest = &entries(&program, "action=session.created")[0]["entry"]["data_key"];
    assert_ne!(newest, handle.as_str(), "nothing ties the old handle to the person");
}

#[test]
fn where_the_provider_is_away_keys_still_open() {
    let key = SigningKey::p256("a");
    let provider = FakeProvider::start(&[&key]);
    let home = home(&provider);
    drop(provider);
    let program = home.start();
    let browser = Browser::new(&program);
    let away = browser.get("/console/oidc");
    assert_eq!((away.status, away.header("retry-after")), (503, "5"));
    assert!(away.text.contains("cannot be asked now"), "{}", away.text);
    assert_eq!(browser.sign_in(AUDITOR).status, 303);
    assert_eq!(browser.get("/console/entries").status, 200);
}
