//! The same JSON always: what actix-web alone costs here.

use actix_web::http::header::ContentType;
use actix_web::{HttpResponse, web};

/// The shape of an answer to a validation, with a subject and an authentication.
pub(crate) const BODY: &str = r#"{"active":true,"session":{"id":"0199f2d4-6c1e-7b52-9a4e-2f8f0f6f6c11","realm":"default","kind":"api","state":"active","version":1,"subject":"someone@example.org","attributes":{"cart":["a","b"],"theme":"dark"},"authentication":{"methods":["pwd","otp"],"level":"aal2","authenticated_at":"2025-01-01T12:00:00.000000Z"},"client":{"address":"192.0.2.17","user_agent":"Mozilla/5.0 (X11; Linux x86_64)"},"created_at":"2025-01-01T12:00:00.000000Z","last_seen_at":"2025-01-01T12:00:01.000000Z","idle_expires_at":"2025-01-01T12:30:01.000000Z","expires_at":"2025-01-02T00:00:00.000000Z"}}"#;

pub(crate) fn configure(config: &mut web::ServiceConfig) {
    config.route("/constant", web::get().to(constant));
}

async fn constant() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(BODY)
}
