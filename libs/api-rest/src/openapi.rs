//! The OpenAPI document, and a page to read it with.

use actix_web::{HttpResponse, web};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::sessions;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Counterfoil",
        description = "Audited sessions: every change is an entry of an append-only, signed log before it is acknowledged.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        sessions::create,
        sessions::validate,
        sessions::get,
        sessions::update,
        sessions::touch,
        sessions::authenticate,
        sessions::renew,
        sessions::end,
        sessions::list,
        sessions::end_subject,
        sessions::end_matching,
        sessions::receipt,
        api_audit::list_entries,
        api_audit::get_entry,
        api_audit::get_checkpoint,
        api_audit::get_keys,
        api_audit::prove_inclusion,
        api_audit::prove_consistency,
        api_audit::export_entries,
    ),
    modifiers(&Credentials),
    tags(
        (name = "Sessions", description = "For applications, but where operators are named"),
        (name = "Receipts", description = "What a client keeps"),
        (name = "Audit", description = "For auditors; every call is itself an entry"),
    ),
)]
struct Document;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("cfk_…").build();
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("api_key", SecurityScheme::Http(bearer));
    }
}

/// The OpenAPI document as JSON, with a line end.
///
/// # Errors
/// If it cannot be written, which would be a fault of the code's annotations.
pub fn openapi_json() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&Document::openapi()).map(|json| json + "\n")
}

/// Adds `/openapi.json` and, if `page`, `/docs`: Swagger UI from the program itself, with no outside assets.
///
/// # Errors
/// See [`openapi_json`].
pub fn configure_docs(config: &mut web::ServiceConfig, json: web::Bytes, page: bool) {
    let serve = move || {
        let json = json.clone();
        async move { HttpResponse::Ok().content_type("application/json").body(json) }
    };
    config.route("/openapi.json", web::get().to(serve));
    if page {
        let assets = utoipa_swagger_ui::SwaggerUi::new("/docs/{_:.*}")
            .config(utoipa_swagger_ui::Config::new(["/openapi.json"]).validator_url("none"));
        config.service(assets).service(web::redirect("/docs", "/docs/"));
    }
}
