//! The frame of every page.

use access::Permission;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use api_http::{Problem, ProblemCode, Trace};
use maud::{DOCTYPE, Markup, html};

use crate::Console;
use crate::visit::Visit;

/// Which part of the console a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// Before anybody is let in.
    Door,
    /// Entries, and sessions made of them.
    Entries,
    /// The tree.
    Checkpoints,
    /// What is held on whom.
    Subjects,
    /// How the service does.
    Status,
}

/// Title, address and access key of each part, and who may go there.
const PARTS: [(Section, &str, &str, &str, Permission); 4] = [
    (Section::Entries, "Entries", "/console/entries", "e", Permission::ReadLog),
    (Section::Checkpoints, "Checkpoints", "/console/checkpoints", "c", Permission::ReadLog),
    (Section::Subjects, "Subjects", "/console/subjects", "s", Permission::KeepSubjects),
    (Section::Status, "Status", "/console/status", "t", Permission::SeeStatus),
];

/// The picture of a browser's tab: a torn-off ticket, without another request.
pub(crate) const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' \
                    height='16' rx='3' fill='%23175c4c'/%3E%3Cpath d='M4 3h8v10l-2-1.500-2 1.500-2-1.500-2 1.500z' \
                    fill='%23fff'/%3E%3C/svg%3E";

/// A page.
pub(crate) fn answer(
    console: &Console,
    visit: Option<&Visit>,
    status: StatusCode,
    title: &str,
    section: Section,
    main: &Markup,
) -> HttpResponse {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Counterfoil" }
                link rel="icon" href=(ICON);
                link rel="stylesheet" href=(console.assets.style_path());
                script src=(console.assets.script_path()) defer {}
            }
            body {
                a.skip href="#main" { "Skip to content" }
                header.top {
                    a.mark href="/console" { "Counterfoil" }
                    @if let Some(visit) = visit {
                        nav aria-label="Console" {
                            @for (part, name, path, key, permission) in PARTS {
                                @if visit.may(permission) {
                                    a href=(path) accesskey=(key) aria-current=[(part == section).then_some("page")] { (name) }
                                }
                            }
                        }
                        (visitor(visit))
                    }
                }
                main #main tabindex="-1" { (main) }
            }
        }
    };
    HttpResponse::build(status).content_type("text/html; charset=utf-8").body(page.into_string())
}

fn visitor(visit: &Visit) -> Markup {
    html! {
        div.visitor {
            span { "realm " strong { (visit.holder.realm) } }
            @if let Some(name) = &visit.name {
                span title=(visit.holder.id) { (name) }
            } @else {
                span title=(visit.holder.id) { "key " code { (crate::show::short(&visit.holder.id)) } }
            }
            form method="post" action="/console/sign-out" {
                input type="hidden" name="form_tag" value=(visit.form_tag);
                button.quiet type="submit" { "Sign out" }
            }
        }
    }
}

/// A page for a visitor that shows what was asked for.
pub(crate) fn shown(console: &Console, visit: &Visit, title: &str, section: Section, main: &Markup) -> HttpResponse {
    answer(console, Some(visit), StatusCode::OK, title, section, main)
}

/// What went wrong, as a page.
pub(crate) fn problem(
    console: &Console,
    request: &HttpRequest,
    visit: Option<&Visit>,
    problem: &Problem,
) -> HttpResponse {
    let document = problem.document(&Trace::of(request));
    let main = html! {
        h1 { (document.title) }
        (said(problem, request))
        p.dim { "Status " (document.status) " · trace " code { (document.trace_id) } }
        p { a href="/console" { "To the console" } }
    };
    let mut response = answer(console, visit, problem.code().status(), document.title, Section::Door, &main);
    if problem.code().status() == StatusCode::SERVICE_UNAVAILABLE || problem.code() == ProblemCode::RateLimited {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// What went wrong, in a page.
pub(crate) fn said(problem: &Problem, request: &HttpRequest) -> Markup {
    let document = problem.document(&Trace::of(request));
    html! {
        div.alert role="alert" {
            @if document.errors.is_empty() {
                p { (document.title) ": " (document.detail) }
            } @else {
                @for field in &document.errors {
                    p { strong { (field.pointer.rsplit('/').next().unwrap_or_default()) } " " (field.detail) }
                }
            }
        }
    }
}
