//! The OpenAPI document, and a page to read it with.

use actix_web::{HttpResponse, web};
use utoipa::openapi::RefOr;
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
        api_audit::session_history,
        api_audit::erase_subject,
        api_audit::hold_subject,
        api_audit::release_subject,
        api_audit::export_subject,
        api_audit::get_checkpoint,
        api_audit::get_keys,
        api_audit::prove_inclusion,
        api_audit::prove_consistency,
        api_audit::get_tile,
        api_audit::get_bundle,
        api_audit::get_evidence,
        api_audit::get_check,
    ),
    modifiers(&Credentials, &Refusals),
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

struct Refusals;

impl Modify for Refusals {
    /// The routes declare their refusals once, as `4XX` with the codes in words; here each code becomes an answer of its own, so
    /// that a code that is not listed counts as undocumented. 405 is the router's, on every path.
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
            for operation in methods.into_iter().flatten() {
                let answers = &mut operation.responses.responses;
                let Some(RefOr::T(refusal)) = answers.remove("4XX") else { continue };
                let codes = refusal.description.clone();
                for code in codes.split(", ").chain(["405"]) {
                    let mut one = refusal.clone();
                    one.description = meaning(code).to_owned();
                    answers.entry(code.to_owned()).or_insert(RefOr::T(one));
                }
            }
        }
    }
}

fn meaning(code: &str) -> &'static str {
    match code {
        "400" => "Malformed: not JSON, or a parameter or header that cannot be read",
        "401" => "No credential that is known",
        "403" => "The credential's roles do not include this",
        "404" => "The realm has nothing of that name",
        "405" => "The path has other methods; see Allow",
        "409" => {
            "It contradicts what is there: the session has ended, a cap is reached, a hold is in force, or the first request is still under way"
        }
        "412" => "The session has another version",
        "413" => "The body is too large",
        "415" => "Another media type is wanted",
        "422" => "Read, but against a rule; errors names each bad field",
        "429" => "Too many requests of this credential",
        _ => "Refused",
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

#[cfg(test)]
mod tests {
    #[test]
    fn every_refusal_is_documented_by_its_code_and_meaning() {
        let json = super::openapi_json().expect("the document can be written");
        assert!(!json.contains("4XX"), "a range hides codes that are not listed");
        assert!(!json.contains("\"Refused\""), "a code without a meaning");
    }
}
