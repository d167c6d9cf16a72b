//! The style sheet and the script: part of the program, named by their content, so that a browser may keep them for ever.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use api_http::{Problem, ProblemCode};
use sealing::sha256;

use crate::{Console, page};

const STYLE: &str = include_str!("../assets/console.css");
const SCRIPT: &str = include_str!("../assets/console.js");

/// The names under which they are served.
#[derive(Debug)]
pub(crate) struct Assets {
    style: String,
    script: String,
}

impl Assets {
    pub(crate) fn new() -> Self {
        let named = |content: &str, ending: &str| {
            let hash = sha256(content.as_bytes()).to_string();
            format!("console.{}.{ending}", hash.get(..16).unwrap_or(&hash))
        };
        Self { style: named(STYLE, "css"), script: named(SCRIPT, "js") }
    }

    pub(crate) fn style_path(&self) -> String {
        format!("/console/assets/{}", self.style)
    }

    pub(crate) fn script_path(&self) -> String {
        format!("/console/assets/{}", self.script)
    }
}

pub(crate) async fn serve(console: web::Data<Console>, request: HttpRequest, name: web::Path<String>) -> HttpResponse {
    let (media_type, content) = match name.as_str() {
        name if name == console.assets.style => ("text/css; charset=utf-8", STYLE),
        name if name == console.assets.script => ("text/javascript; charset=utf-8", SCRIPT),
        _ => {
            let problem = Problem::new(ProblemCode::NotFound, "the console has no such asset");
            return page::problem(&console, &request, None, &problem);
        }
    };
    HttpResponse::Ok()
        .content_type(media_type)
        .insert_header((header::CACHE_CONTROL, "public, max-age=31536000, immutable"))
        .body(content)
}
