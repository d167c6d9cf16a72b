//! Bad input: a clear problem document, the right status, nothing echoed, nothing broken.

use serde_json::{Value, json};

use crate::program::{APPLICATION, Home};

#[test]
fn each_kind_of_bad_input_has_its_answer() {
    let home = Home::new();
    let program = home.start();
    let created = program.app("POST", "/v1/sessions", Some(json!({}))).json();
    let id = created["id"].as_str().unwrap();
    let (session, bearer) = (format!("/v1/sessions/{id}"), format!("Bearer {APPLICATION}"));
    let json_type = "application/json";
    let merge = "application/merge-patch+json";
    let deep = format!("{{\"attributes\":{{\"a\":{}1{}}}}}", "[".repeat(500), "]".repeat(500));
    let deepest = format!("/attributes/a{}", "/0".repeat(15));
    let many: Vec<String> = (0..300).map(|n| format!("\"k{n}\":1")).collect();
    let many = format!("{{\"attributes\":{{{}}}}}", many.join(","));
    let large = format!("{{\"attributes\":{{\"a\":\"{}\"}}}}", "x".repeat(40_000));
    let huge = format!("{{\"attributes\":{{\"a\":\"{}\"}}}}", "x".repeat(200_000));
    let long_key = format!("{{\"attributes\":{{\"{}\":1}}}}", "k".repeat(200));
    let long_subject = format!("{{\"subject\":\"{}\"}}", "s".repeat(300));
    let table: &[(&str, &str, &str, &[u8], u16, &str, &str)] = &[
        ("POST", "/v1/sessions", json_type, b"{", 400, "malformed_json", ""),
        ("POST", "/v1/sessions", json_type, b"", 400, "malformed_json", ""),
        ("POST", "/v1/sessions", json_type, b"\xff\xfe{}", 400, "malformed_json", ""),
        ("POST", "/v1/sessions", json_type, b"{\"subject\":\"\xc3\x28\"}", 400, "malformed_json", ""),
        ("POST", "/v1/sessions", json_type, b"[]", 422, "validation_failed", ""),
        ("POST", "/v1/sessions", json_type, b"{\"subject\":1}", 422, "validation_failed", "/subject"),
        ("POST", "/v1/sessions", json_type, b"{\"subject\":\"\"}", 422, "validation_failed", "/subject"),
        ("POST", "/v1/sessions", json_type, b"{\"subject\":\"a\\u0001\"}", 422, "validation_failed", "/subject"),
        ("POST", "/v1/sessions", json_type, b"{\"kind\":\"x\"}", 422, "validation_failed", "/kind"),
        ("POST", "/v1/sessions", json_type, b"{\"odd\":1}", 422, "validation_failed", "/odd"),
        ("POST", "/v1/sessions", json_type, b"{\"kind\":\"api\",\"kind\":\"web\"}", 422, "validation_failed", "/kind"),
        (
            "POST",
            "/v1/sessions",
            json_type,
            b"{\"attributes\":{\"a\":1,\"a\":2}}",
            422,
            "validation_failed",
            "/attributes/a",
        ),
        ("POST", "/v1/sessions", json_type, b"{\"attributes\":{\"n\":1e400}}", 422, "validation_failed", "/attributes"),
        (
            "POST",
            "/v1/sessions",
            json_type,
            b"{\"attributes\":{\"n\":99999999999999999999}}",
            422,
            "validation_failed",
            "/attributes/n",
        ),
        ("POST", "/v1/sessions", json_type, b"{\"idle_timeout_s\":-1}", 422, "validation_failed", "/idle_timeout_s"),
        (
            "POST",
            "/v1/sessions",
            json_type,
            b"{\"idle_timeout_s\":99999999999}",
            422,
            "validation_failed",
            "/idle_timeout_s",
        ),
        (
            "POST",
            "/v1/sessions",
            json_type,
            b"{\"idle_timeout_s\":999999}",
            422,
            "validation_failed",
            "/idle_timeout_s",
        ),
        ("POST", "/v1/sessions", json_type, b"{\"idle_timeout_s\":1.5}", 422, "validation_failed", "/idle_timeout_s"),
        (
            "POST",
            "/v1/sessions",
            json_type,
            b"{\"client\":{\"address\":\"nowhere\"}}",
            422,
            "validation_failed",
            "/client/address",
        ),
        ("POST", "/v1/sessions", json_type, deep.as_bytes(), 422, "validation_failed", &deepest),
        ("POST", "/v1/sessions", json_type, many.as_bytes(), 422, "validation_failed", "/attributes"),
        ("POST", "/v1/sessions", json_type, large.as_bytes(), 422, "validation_failed", "/attributes"),
        ("POST", "/v1/sessions", json_type, long_key.as_bytes(), 422, "validation_failed", "/attributes"),
        ("POST", "/v1/sessions", json_type, long_subject.as_bytes(), 422, "validation_failed", "/subject"),
        ("POST", "/v1/sessions", json_type, huge.as_bytes(), 413, "body_too_large", ""),
        ("POST", "/v1/sessions", "text/plain", b"{}", 415, "unsupported_media_type", ""),
        ("POST", "/v1/sessions", "application/json; charset=latin1", b"{}", 415, "unsupported_media_type", ""),
        ("PATCH", &session, json_type, b"{}", 415, "unsupported_media_type", ""),
        ("PATCH", &session, merge, b"[]", 422, "validation_failed", ""),
        ("PATCH", &session, merge, b"{\"a\":\"\\uffff\"}", 422, "validation_failed", "/a"),
        ("POST", "/v1/sessions/validate", json_type, b"{}", 422, "validation_failed", "/token"),
        ("POST", "/v1/sessions/validate", json_type, b"{\"token\":7}", 422, "validation_failed", "/token"),
        ("POST", "/v1/sessions/validate", json_type, b"{\"token\":\"a\",\"x\":1}", 422, "validation_failed", "/x"),
        ("GET", "/v1/sessions?limit=0", "", b"", 400, "malformed_request", "#query/limit"),
        ("GET", "/v1/sessions?limit=501", "", b"", 400, "malformed_request", "#query/limit"),
        ("GET", "/v1/sessions?cursor=zzz", "", b"", 400, "malformed_request", "#query/cursor"),
        ("GET", "/v1/sessions?odd=1", "", b"", 400, "malformed_request", "#query/odd"),
        ("GET", "/v1/sessions?state=odd", "", b"", 400, "malformed_request", "#query/state"),
        ("GET", "/v1/sessions/not-an-id", "", b"", 404, "session_not_found", ""),
        ("GET", "/v1/sessions/01a1fca1-4541-73ec-9436-4c6bac6a9c2e", "", b"", 404, "session_not_found", ""),
        ("GET", "/v1/receipts/999999", "", b"", 404, "not_found", ""),
        ("GET", "/v1/receipts/-1", "", b"", 404, "not_found", ""),
        ("GET", "/v1/nothing", "", b"", 404, "not_found", ""),
        ("PUT", "/v1/sessions", "", b"", 405, "method_not_allowed", ""),
        ("DELETE", &format!("{session}?reason=expired_idle"), "", b"", 422, "validation_failed", "#query/reason"),
        ("DELETE", &format!("{session}?reason=Bad%20Words"), "", b"", 422, "validation_failed", "#query/reason"),
    ];
    for (method, path, media_type, body, status, code, pointer) in table {
        let mut headers = vec![("Authorization", bearer.as_str())];
        if !media_type.is_empty() {
            headers.push(("Content-Type", media_type));
        }
        let body = (!media_type.is_empty()).then_some(*body);
        let answer = program.ask(method, path, &headers, body).unwrap();
        let shown = format!(
            "{method} {path} {}",
            String::from_utf8_lossy(body.unwrap_or_default()).chars().take(80).collect::<String>()
        );
        assert_eq!((answer.status, answer.json()["code"].as_str()), (*status, Some(*code)), "{shown}: {}", answer.text);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{shown}");
        let problem = answer.json();
        assert_eq!(
            (problem["status"].as_u64(), problem["trace_id"].as_str().map(str::len)),
            (Some(u64::from(*status)), Some(32))
        );
        if !pointer.is_empty() {
            let errors = problem["errors"].as_array().unwrap();
            let named = |error: &Value| error["pointer"].as_str().unwrap() == *pointer;
            assert!(errors.iter().any(named), "{shown}: {pointer} is not among {errors:?}");
        }
        if *status == 405 {
            assert_eq!(answer.header("allow"), "GET, POST, DELETE");
        }
    }
    // Nothing of all this was recorded, or changed anything.
    assert_eq!(program.app("GET", &session, None).json()["version"], 1);
}

#[test]
fn headers_of_ours_are_read_strictly_and_trace_context_is_kept() {
    let home = Home::new();
    let program = home.start();
    let created = program.app("POST", "/v1/sessions", Some(json!({}))).json();
    let session = format!("/v1/sessions/{}", created["id"].as_str().unwrap());
    let bearer = format!("Bearer {APPLICATION}");
    let patch = |name: &str, value: &str| {
        let headers =
            [("Authorization", bearer.as_str()), ("Content-Type", "application/merge-patch+json"), (name, value)];
        program.ask("PATCH", &session, &headers, Some(b"{\"a\":1}")).unwrap()
    };
    for (name, value, status) in [
        ("If-Match", "1", 400),
        ("If-Match", "\"77\"", 412),
        ("If-Match", "\"x\"", 412),
        ("Counterfoil-Min-Index", "x", 400),
        ("Counterfoil-Min-Index", "999999", 503),
        ("If-Match", "\"1\"", 200),
        ("If-Match", "*", 200),
    ] {
        assert_eq!(patch(name, value).status, status, "{name}: {value}");
    }
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let kept = patch("traceparent", trace);
    assert!(kept.header("traceparent").starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    let post = |key: &str, body: &[u8]| {
        let headers =
            [("Authorization", bearer.as_str()), ("Content-Type", "application/json"), ("Idempotency-Key", key)];
        program.ask("POST", "/v1/sessions", &headers, Some(body)).unwrap()
    };
    let first = post("k", b"{\"kind\":\"web\"}");
    let again = post("k", b"{\"kind\":\"web\"}");
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.text, again.text, "the first answer, byte for byte, token included");
    assert_eq!(post("k", b"{\"kind\":\"api\"}").status, 422);
    assert_eq!(post(&"k".repeat(256), b"{}").status, 400);
}
