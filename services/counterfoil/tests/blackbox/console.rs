//! The console as browsers meet it, honest ones and others.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::program::{APPLICATION, AUDITOR, Answer, Home, OPERATOR, Program};

/// What a browser does of its own: keeps cookies, and sends forms as the page has them.
pub(crate) struct Browser<'a> {
    program: &'a Program,
    pub(crate) cookies: RefCell<BTreeMap<String, String>>,
    /// Headers of a proxy in front, if there is one.
    headers: Vec<(&'static str, &'static str)>,
}

const VISIT: &str = "counterfoil-console";

impl<'a> Browser<'a> {
    pub(crate) fn new(program: &'a Program) -> Self {
        Self { program, cookies: RefCell::default(), headers: Vec::new() }
    }

    fn signed_in(program: &'a Program, key: &str) -> Self {
        let browser = Self::new(program);
        let answer = browser.sign_in(key);
        assert_eq!((answer.status, answer.header("location")), (303, "/console"), "{}", answer.text);
        browser
    }

    pub(crate) fn sign_in(&self, key: &str) -> Answer {
        let page = self.get("/console/sign-in");
        self.post("/console/sign-in", &[("form_tag", &tag(&page)), ("key", key)])
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    pub(crate) fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let encoded = fields.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect::<Vec<_>>();
        self.ask("POST", path, Some(encoded.join("&").into_bytes()))
    }

    /// Sends a form with the tag of the visit.
    pub(crate) fn send(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let tag = tag(&self.get("/console/subjects"));
        self.post(path, &[fields, &[("form_tag", &tag)]].concat())
    }

    fn ask(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Answer {
        let cookies: Vec<String> =
            self.cookies.borrow().iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let mut headers = vec![("Cookie", cookies.as_str()), ("User-Agent", "<b>agent</b>")];
        headers.extend(self.headers.iter().copied());
        if body.is_some() {
            headers.push(("Content-Type", "application/x-www-form-urlencoded"));
        }
        let answer = self.program.ask(method, path, &headers, body.as_deref()).unwrap();
        for line in answer.headers.get_all("set-cookie") {
            let (name, value) = line.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            if value.is_empty() {
                self.cookies.borrow_mut().remove(name);
            } else {
                self.cookies.borrow_mut().insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    fn cookie(&self) -> String {
        self.cookies.borrow()[VISIT].clone()
    }

    fn with_cookie(&self, value: &str) -> Browser<'a> {
        let other = Browser::new(self.program);
        other.cookies.borrow_mut().insert(VISIT.to_owned(), value.to_owned());
        other
    }
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

pub(crate) fn tag(page: &Answer) -> String {
    let (_, rest) = page.text.split_once("name=\"form_tag\" value=\"").unwrap_or_else(|| panic!("{}", page.text));
    rest.split('"').next().unwrap().to_owned()
}

pub(crate) fn to_the_door(answer: &Answer) -> bool {
    answer.status == 303 && answer.header("location").starts_with("/console/sign-in")
}

pub(crate) fn entries(program: &Program, query: &str) -> Vec<Value> {
    let found = program.json(AUDITOR, "GET", &format!("/v1/audit/entries?limit=500&{query}"), None);
    assert_eq!(found.status, 200, "{}", found.text);
    found.json()["items"].as_array().unwrap().clone()
}

fn actions(program: &Program, query: &str) -> Vec<String> {
    entries(program, query).iter().map(|item| item["entry"]["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn signing_in_begins_a_session_and_signing_out_ends_it() {
    let home = Home::new();
    let program = home.start();
    let browser = Browser::new(&program);
    assert!(to_the_door(&browser.get("/console/entries")));
    let wrong = browser.sign_in("cfk_wrong_wrong_wrong_wrong_wrong_wrong_wrong_wron");
    assert_eq!(wrong.status, 401, "{}", wrong.text);
    assert!(wrong.text.contains("This key does not open the console") && !wrong.text.contains("cfk_wrong"));
    let no_key = browser.sign_in("");
    assert_eq!(
        no_key.text.replace(&tag(&no_key), ""),
        wrong.text.replace(&tag(&wrong), ""),
        "why is nobody's business"
    );
    let page = browser.get("/console/sign-in?next=/console/entries?actor=x");
    let fields = [("form_tag", tag(&page)), ("next", "/console/entries?actor=x".into()), ("key", AUDITOR.into())];
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let begun = browser.post("/console/sign-in", &fields);
    assert_eq!((begun.status, begun.header("location")), (303, "/console/entries?actor=x"));
    let line = begun.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap());
    let line = line.into_iter().find(|line| line.starts_with(VISIT)).unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/console"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!line.contains(&AUDITOR[4..]), "the key is not in the cookie");

    let shown = browser.get("/console/entries");
    assert_eq!(shown.status, 200, "{}", shown.text);
    let policy = shown.header("content-security-policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "frame-ancestors 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(shown.header("cache-control"), "no-store");
    assert_eq!(shown.header("x-content-type-options"), "nosniff");
    assert_eq!(shown.header("referrer-policy"), "no-referrer");
    for (kept, name) in [("text/css", "css"), ("text/javascript", "js")] {
        let (before, _) = shown.text.split_once(&format!(".{name}\"")).unwrap();
        let path = format!("{}.{name}", before.rsplit('"').next().unwrap());
        let asset = browser.get(&path);
        assert_eq!(asset.status, 200, "{path}");
        assert!(asset.header("content-type").starts_with(kept));
        assert!(asset.header("cache-control").contains("immutable"));
    }

    let session = entries(&program, "action=session.created");
    assert_eq!(session.len(), 1, "a visit is a session like others");
    let id = session[0]["entry"]["session_id"].as_str().unwrap().to_owned();
    assert_eq!(session[0]["entry"]["actor"]["role"], "auditor");
    let old = browser.cookie();
    let no_tag = browser.post("/console/sign-out", &[]);
    assert_eq!(no_tag.status, 403);
    assert!(to_the_door(&browser.send("/console/sign-out", &[])));
    assert!(!browser.cookies.borrow().contains_key(VISIT));
    assert!(to_the_door(&browser.with_cookie(&old).get("/console/entries")), "the old cookie opens nothing");
    assert_eq!(actions(&program, &format!("session={id}&action=session.ended")), ["session.ended"]);

    program.stop();
    let program = home.start();
    let refused = entries(&program, "action=request.refused");
    let at_the_door = |item: &&Value| {
        let detail = &item["entry"]["detail"];
        detail["route"] == "/console/sign-in" && detail["reason"] == "credential" && detail["count"] == "2"
    };
    assert_eq!(refused.iter().filter(at_the_door).count(), 1, "{refused:?}");
}

#[test]
fn nobody_is_signed_in_by_another_site_or_sent_elsewhere() {
    let home = Home::new();
    let program = home.start();
    let browser = Browser::new(&program);
    assert_eq!(browser.post("/console/sign-in", &[("key", AUDITOR)]).status, 403);
    let theirs = tag(&Browser::new(&program).get("/console/sign-in"));
    browser.get("/console/sign-in");
    assert_eq!(browser.post("/console/sign-in", &[("form_tag", &theirs), ("key", AUDITOR)]).status, 403);
    assert!(!browser.cookies.borrow().contains_key(VISIT));
    let page = browser.get("/console/sign-in?next=https://example.org/");
    assert!(!page.text.contains("example.org"));
    let fields = [("form_tag", tag(&page)), ("next", "//example.org/".into()), ("key", AUDITOR.into())];
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(browser.post("/console/sign-in", &fields).header("location"), "/console");
    let both = browser.ask("POST", "/console/sign-in", Some(b"key=a&key=b".to_vec()));
    assert_eq!(both.status, 400);
}

#[test]
fn behind_https_the_cookie_is_bound_to_the_host() {
    let home = Home::new();
    let program = home.start();
    let mut browser = Browser::new(&program);
    browser.headers.push(("X-Forwarded-Proto", "https"));
    let begun = browser.sign_in(AUDITOR);
    let lines: Vec<_> = begun.headers.get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    let line = lines.iter().find(|line| line.starts_with("__Host-counterfoil-console=")).unwrap();
    assert!(line.contains("; Secure") && line.contains("; Path=/;") && !line.contains("Domain"), "{line}");
    assert_eq!(browser.get("/console/entries").status, 200);
    // One that came by HTTP, as who sits in between could set, is not looked at.
    let value = browser.cookies.borrow()["__Host-counterfoil-console"].clone();
    let mut other = browser.with_cookie(&value);
    other.headers.push(("X-Forwarded-Proto", "https"));
    assert!(to_the_door(&other.get("/console/entries")));
}

#[test]
fn every_page_is_for_its_role_and_an_application_has_none() {
    let home = Home::new();
    let program = home.start();
    let session = program.app("POST", "/v1/sessions", Some(json!({"subject": "a"}))).json();
    let id = session["id"].as_str().unwrap();
    let index = &session["receipt"]["index"];
    let get = |path: &'static str| ("GET", path, path.to_owned());
    let post = |path: &'static str| ("POST", path, path.to_owned());
    let auditor = [
        get("/console/entries"),
        ("GET", "/console/entries/{index}", format!("/console/entries/{index}")),
        ("GET", "/console/sessions/{id}", format!("/console/sessions/{id}")),
        get("/console/checkpoints"),
        ("GET", "/console/bundle", format!("/console/bundle?session={id}")),
        get("/console/subjects"),
        post("/console/subjects"),
        post("/console/subjects/export"),
        post("/console/subjects/hold"),
        post("/console/subjects/release"),
        post("/console/subjects/erase"),
    ];
    let operator = [get("/console/status")];
    // What everybody may ask for, because it shows nothing of the log: tried by other tests here.
    let anybody = [
        ("GET", "/console"),
        ("GET", "/console/"),
        ("GET", "/console/assets/{name}"),
        ("GET", "/console/sign-in"),
        ("POST", "/console/sign-in"),
        ("GET", "/console/oidc"),
        ("GET", "/console/oidc/callback"),
        ("POST", "/console/sign-out"),
    ];
    let mut tried: Vec<_> =
        auditor.iter().chain(&operator).map(|(method, page, _)| (*method, (*page).to_owned())).collect();
    tried.extend(anybody.map(|(method, page)| (method, page.to_owned())));
    let mut all = ::console::pages();
    all.sort();
    tried.sort();
    assert_eq!(tried, all, "a page is not in the table");
    let (as_auditor, as_operator) = (Browser::signed_in(&program, AUDITOR), Browser::signed_in(&program, OPERATOR));
    assert_eq!(as_auditor.get("/console").header("location"), "/console/entries");
    assert_eq!(as_operator.get("/console").header("location"), "/console/status");
    let visits = [(&as_auditor, AUDITOR), (&as_operator, OPERATOR)];
    for (pages, allowed) in [(&auditor[..], AUDITOR), (&operator[..], OPERATOR)] {
        for (method, _, path) in pages {
            for (browser, key) in visits {
                let page = if key == AUDITOR { "/console/subjects" } else { "/console/status" };
                let tag = tag(&browser.get(page));
                let body = format!("subject=a&form_tag={tag}");
                let status = browser.ask(method, path, (*method == "POST").then(|| body.into_bytes())).status;
                assert_eq!(status != 403, key == allowed, "{method} {path} with {key}: {status}");
                assert!(status < 500, "{method} {path}: {status}");
            }
            let nobody = Browser::new(&program).ask(method, path, (*method == "POST").then(Vec::new));
            assert!(to_the_door(&nobody), "{method} {path}: {}", nobody.status);
            let other = if *method == "GET" { "DELETE" } else { "PUT" };
            assert_eq!(as_auditor.ask(other, path, None).status, 405, "{other} {path}");
        }
    }
    let refused = Browser::new(&program).sign_in(APPLICATION);
    assert_eq!(refused.status, 403);
    assert!(refused.text.contains("for auditors and operators"), "{}", refused.text);
    assert!(refused.headers.get_all("set-cookie").iter().all(|line| !line.to_str().unwrap().starts_with(VISIT)));
    assert!(!as_operator.get("/console/status").text.contains("/console/entries"), "no way to what is closed");
    assert_eq!(as_auditor.get("/console/none").status, 404);
    assert_eq!(as_auditor.ask("DELETE", "/console/sign-in", None).header("allow"), "GET, POST");
    assert_eq!(as_auditor.ask("DELETE", "/console/status", None).header("allow"), "GET");
}

#[test]
fn the_services_own_last_check_is_shown() {
    let home = Home::new().with("VERIFY__WITHIN_S", "1");
    let program = home.start();
    let browser = Browser::signed_in(&program, AUDITOR);
    let began = std::time::Instant::now();
    let checked = loop {
        let found = program.json(AUDITOR, "GET", "/v1/audit/verify", None).json();
        if found["result"] == "good" {
            break browser.get("/console/checkpoints");
        }
        assert!(began.elapsed().as_secs() < 20, "{found}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(checked.text.contains("<span class=\"good\">Every entry is what it was.</span>"), "{}", checked.text);
    assert!(checked.text.contains("<th scope=\"row\">Entries covered</th>"), "{}", checked.text);
}

#[test]
fn forms_of_another_visit_are_refused_and_change_nothing() {
    let home = Home::new();
    let program = home.start();
    program.app("POST", "/v1/sessions", Some(json!({"subject": "alice"})));
    let browser = Browser::signed_in(&program, AUDITOR);
    let theirs = tag(&Browser::signed_in(&program, AUDITOR).get("/console/subjects"));
    let none = "0".repeat(64);
    for tag in ["", "x", &none, &theirs] {
        for path in ["hold", "erase", "export", "release"] {
            let reason = if path == "export" { "purpose" } else { "reason" };
            let mut fields = vec![("subject", "alice"), ("form_tag", tag)];
            fields.push(if path == "erase" { ("again", "alice") } else { (reason, "x") });
            let answer = browser.post(&format!("/console/subjects/{path}"), &fields);
            assert_eq!(answer.status, 403, "{path} with {tag:?}");
        }
    }
    assert!(actions(&program, "subject=alice").iter().all(|action| !action.starts_with("subject.")));
    assert_eq!(browser.send("/console/subjects/hold", &[("subject", "alice"), ("reason", "case")]).status, 200);
}

#[test]
fn a_cookie_opens_only_for_whom_it_was_made() {
    let home = Home::new().with("REALMS__default__PROFILE", "default").with("REALMS__other__PROFILE", "default");
    let (code, said) = home.run(&["key", "create", "--realm", "other", "--role", "auditor", "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let foreign: Value = serde_json::from_str(&said).unwrap();
    let program = home.start();
    let begun = program.app("POST", "/v1/sessions", Some(json!({"subject": "alice", "kind": "browser"}))).json();
    let own = Browser::signed_in(&program, AUDITOR);
    let other = Browser::signed_in(&program, foreign["key"].as_str().unwrap());
    let (own_cookie, other_cookie) = (own.cookie(), other.cookie());
    let parts = |cookie: &str| cookie.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (mine, theirs) = (parts(&own_cookie), parts(&other_cookie));
    let token = begun["token"].as_str().unwrap();
    let forged = [
        String::new(),
        "x".into(),
        token.into(),
        // A session that an application made, with an auditor's id.
        format!("{token}.{}.{}", mine[1], mine[2]),
        // Another realm's credential, another realm's session, another's tag.
        format!("{}.{}.{}", mine[0], theirs[1], mine[2]),
        format!("{}.{}.{}", theirs[0], mine[1], mine[2]),
        format!("{}.{}.{}", mine[0], mine[1], theirs[2]),
        format!("{}.{}.{}", mine[0], mine[1], "0".repeat(64)),
        format!("{}.{}", mine[0], mine[1]),
    ];
    for cookie in forged {
        assert!(to_the_door(&own.with_cookie(&cookie).get("/console/entries")), "{cookie}");
    }
    assert_eq!(own.with_cookie(&own_cookie).get("/console/entries").status, 200);

    // What another realm has is not there.
    let (id, index) = (begun["id"].as_str().unwrap(), &begun["receipt"]["index"]);
    for path in [format!("/console/entries/{index}"), format!("/console/sessions/{id}")] {
        assert_eq!((own.get(&path).status, other.get(&path).status), (200, 404), "{path}");
    }
    assert!(other.get(&format!("/console/entries?session={id}&action=session.created")).text.contains("No entry fits"));
    assert!(other.send("/console/subjects", &[("subject", "alice")]).text.contains("holds nothing"));

    // An application of the realm may write to any session; that makes nobody an auditor, nor what he was not.
    let visit = &entries(&program, "action=session.created")[0]["entry"]["session_id"];
    let visit = visit.as_str().unwrap();
    let patched = program.app("PATCH", &format!("/v1/sessions/{visit}"), Some(json!({"role": "operator"})));
    assert_eq!(patched.status, 200);
    assert_eq!(own.get("/console/status").status, 403);
    let renewed = program.app("POST", &format!("/v1/sessions/{visit}/renew"), None).json();
    let stolen = format!("{}.{}.{}", renewed["token"].as_str().unwrap(), mine[1], mine[2]);
    assert!(to_the_door(&own.with_cookie(&stolen).get("/console/entries")), "a token alone is no visit");
}

#[test]
fn revoking_a_key_ends_its_visit() {
    let home = Home::new();
    let (_, said) = home.run(&["key", "create", "--role", "auditor", "--output", "json"]);
    let made: Value = serde_json::from_str(&said).unwrap();
    let program = home.start();
    let browser = Browser::signed_in(&program, made["key"].as_str().unwrap());
    assert_eq!(browser.get("/console/entries").status, 200);
    let cookie = browser.cookie();
    assert_eq!(home.run(&["key", "revoke", made["id"].as_str().unwrap()]).0, Some(0));
    let began = std::time::Instant::now();
    while !to_the_door(&browser.with_cookie(&cookie).get("/console/entries")) {
        assert!(began.elapsed().as_secs() < 5, "still signed in");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_visit_ends_unused_by_the_realms_policy() {
    let home = Home::new().with("REALMS__default__IDLE_TIMEOUT_S", "1");
    let program = home.start();
    let browser = Browser::signed_in(&program, AUDITOR);
    assert_eq!(browser.get("/console/entries").status, 200);
    std::thread::sleep(std::time::Duration::from_millis(1_300));
    assert!(to_the_door(&browser.get("/console/entries")));
}

#[test]
fn the_token_of_a_visit_is_renewed_at_the_realms_interval() {
    let home = Home::new().with("REALMS__default__RENEWAL_INTERVAL_S", "1");
    let program = home.start();
    let browser = Browser::signed_in(&program, AUDITOR);
    let first = browser.cookie();
    let tag = tag(&browser.get("/console/subjects"));
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    assert_eq!(browser.get("/console/entries").status, 200);
    assert_ne!(browser.cookie(), first, "a new token, a new cookie");
    let old_form = browser.post("/console/subjects", &[("subject", "a"), ("form_tag", &tag)]);
    assert_eq!(old_form.status, 200, "a form that was open goes on");
    // A page that was loading beside it came with the old one.
    assert_eq!(browser.with_cookie(&first).get("/console/entries").status, 200);
}

#[test]
fn the_console_limits_requests_as_the_api_does() {
    let home = Home::new().with("REALMS__default__REQUESTS_PER_SECOND", "5");
    let program = home.start();
    let browser = Browser::signed_in(&program, AUDITOR);
    let limited = (0..20).map(|_| browser.get("/console/checkpoints")).find(|answer| answer.status == 429).unwrap();
    assert_eq!(limited.header("retry-after"), "1");
}

#[test]
fn whatever_a_client_writes_is_text() {
    let home = Home::new();
    let evil = "<img src=x onerror=alert(1)>\"'&</script><script>";
    let (code, said) = home.run(&["key", "create", "--role", "application", "--label", evil, "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let program = home.start();
    let body = json!({
        "subject": evil, "kind": "web",
        "attributes": {evil: evil, "deep": {evil: [evil]}},
        "client": {"address": "198.51.100.7", "user_agent": evil},
        "authentication": {"methods": ["<b>pwd"], "level": "<i>aal2"},
    });
    let created = program.app("POST", "/v1/sessions", Some(body));
    assert_eq!(created.status, 201, "{}", created.text);
    let session = created.json();
    let id = session["id"].as_str().unwrap();
    program.app("PATCH", &format!("/v1/sessions/{id}"), Some(json!({evil: {"<u>": evil}, "deep": null})));
    let browser = Browser::signed_in(&program, AUDITOR);
    let (shown, word) = (percent(evil), format!("reveal=true&purpose={}", percent(evil)));
    let gets = [
        format!("entries?subject={shown}&{word}"),
        format!("entries?{word}"),
        format!("entries?actor={shown}&from={shown}&session={shown}&address={shown}&action={shown}"),
        format!("entries?cursor={shown}"),
        format!("entries?{shown}=1"),
        format!("entries/{}?{word}", session["receipt"]["index"]),
        format!("entries/{shown}"),
        format!("sessions/{id}?{word}"),
        format!("sessions/{shown}"),
        format!("sign-in?next={shown}"),
        shown.clone(),
    ];
    let mut pages: Vec<(String, Answer)> =
        gets.iter().map(|path| (path.clone(), browser.get(&format!("/console/{path}")))).collect();
    let forms: [(&str, &[(&str, &str)]); 5] = [
        ("subjects", &[("subject", evil)]),
        ("subjects/hold", &[("subject", evil), ("reason", evil)]),
        ("subjects/release", &[("subject", evil), ("reason", evil)]),
        ("subjects/erase", &[("subject", evil)]),
        ("subjects/erase", &[("subject", evil), ("again", "<s>")]),
    ];
    for (path, fields) in forms {
        pages.push((path.to_owned(), browser.send(&format!("/console/{path}"), fields)));
    }
    for path in [format!("entries?action=audit.read&{word}"), format!("entries?action=key.created&{word}")] {
        pages.push((path.clone(), browser.get(&format!("/console/{path}"))));
    }
    let mut escaped = 0;
    for (path, page) in &pages {
        assert!(page.status < 500, "{path}: {}", page.status);
        assert!(page.header("content-type").starts_with("text/html"), "{path}");
        for raw in ["<img", "<b>", "<i>", "<u>", "<s>", "</script><script>", "onerror=alert(1)>", "\"'&<"] {
            assert!(!page.text.contains(raw), "{path} has {raw}: {}", page.text);
        }
        escaped += usize::from(page.text.contains("&lt;img src=x onerror=alert(1)&gt;"));
    }
    assert!(escaped >= 9, "the test shows what was written on {escaped} pages only");
    let timeline = &pages.iter().find(|(path, _)| path.starts_with("sessions/0")).unwrap().1;
    assert!(timeline.text.contains("&lt;i&gt;aal2") && timeline.text.contains("&lt;b&gt;pwd"), "{}", timeline.text);
}

#[test]
fn reading_at_the_console_is_an_entry_and_personal_data_needs_a_purpose() {
    let home = Home::new();
    let program = home.start();
    let body = json!({"subject": "alice", "attributes": {"plan": "gold-members"}});
    let session = program.app("POST", "/v1/sessions", Some(body)).json();
    let (id, index) = (session["id"].as_str().unwrap(), &session["receipt"]["index"]);
    let browser = Browser::signed_in(&program, AUDITOR);
    for path in [format!("sessions/{id}"), format!("entries/{index}"), "entries".into(), "entries?subject=alice".into()]
    {
        let (path, word) = (format!("/console/{path}"), if path.contains('?') { '&' } else { '?' });
        let plain = browser.get(&path);
        assert_eq!(plain.status, 200, "{path}");
        assert!(!plain.text.contains("gold-members"), "{path}");
        let alone = browser.get(&format!("{path}{word}reveal=true"));
        assert_eq!(alone.status, 400, "{path} shows nothing without a purpose");
        assert!(!alone.text.contains("gold-members"), "{path}");
        let revealed = browser.get(&format!("{path}{word}reveal=true&purpose=case"));
        assert!(revealed.text.contains("gold-members"), "{path}: {}", revealed.text);
    }
    browser.get("/console/checkpoints");
    browser.send("/console/subjects", &[("subject", "alice")]);
    let export = browser.send("/console/subjects/export", &[("subject", "alice"), ("purpose", "request 7")]);
    assert_eq!((export.status, export.text.matches("gold-members").count()), (200, 1), "{}", export.text);
    assert_eq!(browser.send("/console/subjects/export", &[("subject", "alice"), ("purpose", "")]).status, 400);

    let readings = entries(&program, "action=audit.read&reveal=true&purpose=x");
    let of = |route: &str, revealed: bool| {
        let fits = |item: &&Value| {
            let detail = &item["entry"]["detail"];
            detail["route"] == route && (detail["revealed"] == "true") == revealed
        };
        readings.iter().filter(fits).count()
    };
    for (route, plain, revealed) in [
        ("/console/entries", 2, 2),
        ("/console/entries/{index}", 1, 1),
        ("/console/sessions/{id}", 1, 1),
        ("/console/checkpoints", 1, 0),
        ("/console/subjects", 1, 0),
        ("/console/subjects/export", 0, 1),
    ] {
        assert_eq!((of(route, false), of(route, true)), (plain, revealed), "{route}");
    }
    assert!(readings.iter().any(|item| item["personal"]["facts"]["purpose"] == "request 7"));
}

#[test]
fn a_subject_is_held_released_and_erased_once_its_name_was_typed_again() {
    let home = Home::new();
    let program = home.start();
    program.app("POST", "/v1/sessions", Some(json!({"subject": "alice"})));
    let browser = Browser::signed_in(&program, AUDITOR);
    let with = |path: &str, more: &[(&str, &str)]| {
        browser.send(&format!("/console/subjects{path}"), &[&[("subject", "alice")], more].concat())
    };
    assert!(with("", &[]).text.contains("<dd>none</dd>"));
    assert_eq!(with("/hold", &[]).status, 400, "a reason is needed");
    let held = with("/hold", &[("reason", "case 9")]);
    assert!(held.text.contains("<strong>held</strong>"), "{}", held.text);
    assert_eq!(with("/erase", &[("again", "alice")]).status, 409, "not under hold");
    let released = with("/release", &[("reason", "closed")]);
    assert!(released.text.contains("<dd>none</dd>"), "{}", released.text);
    assert!(with("/erase", &[]).text.contains("Type the subject"));
    assert!(with("/erase", &[("again", "alicia")]).text.contains("Nothing was erased"));
    assert!(!actions(&program, "action=subject.erased&outcome=success").contains(&"subject.erased".to_owned()));
    let erased = with("/erase", &[("again", "alice")]);
    assert!(erased.status == 200 && erased.text.contains("Sessions ended"), "{}", erased.text);
    assert_eq!(actions(&program, "action=subject.erased&outcome=success").len(), 1);
    assert!(with("", &[]).text.contains("holds nothing"));
    assert!(with("/erase", &[("again", "alice")]).text.contains("nothing was erased"));
}

#[test]
fn a_long_history_goes_on_over_pages_and_tells_each_change_once() {
    let home = Home::new();
    let program = home.start();
    let session = program.app("POST", "/v1/sessions", Some(json!({"attributes": {"n": 0}}))).json();
    let id = session["id"].as_str().unwrap();
    for n in 1..=30 {
        assert_eq!(program.app("PATCH", &format!("/v1/sessions/{id}"), Some(json!({"n": n}))).status, 200);
    }
    let browser = Browser::signed_in(&program, AUDITOR);
    let mut path = format!("/console/sessions/{id}?reveal=true&purpose=x");
    let mut all = String::new();
    for page in 0..2 {
        let shown = browser.get(&path);
        assert_eq!(shown.status, 200, "{}", shown.text);
        let next = shown.text.split_once("<a rel=\"next\" href=\"").map(|(_, rest)| rest.split('"').next().unwrap());
        assert_eq!(next.is_some(), page == 0);
        path = next.unwrap_or_default().replace("&amp;", "&");
        all.push_str(&shown.text);
    }
    assert_eq!(all.matches("class=\"version\"").count(), 31);
    for n in 1..=30 {
        let change = format!("<td><del>{}</del></td><td><ins>{n}</ins></td>", n - 1);
        assert_eq!(all.matches(&change).count(), 1, "{n}");
    }
}

#[test]
fn where_it_is_turned_off_there_is_no_console() {
    let home = Home::new().with("CONSOLE__ENABLED", "false");
    let program = home.start();
    for path in ["/console", "/console/sign-in", "/console/entries"] {
        let answer = Browser::new(&program).get(path);
        assert_eq!((answer.status, answer.header("content-type")), (404, "application/problem+json"), "{path}");
    }
}
