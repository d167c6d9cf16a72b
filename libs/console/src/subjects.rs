//! What is held on a subject: found, downloaded, kept under legal hold, erased. A subject's name is sent in forms, so that it
//! stays out of addresses.

use access::Permission;
use actix_web::{HttpRequest, HttpResponse, web};
use api_audit::{EntriesDocument, export as download, revealing, search_problem};
use api_http::{Problem, ProblemCode, query};
use audit_search::{EntryFilter, Order};
use maud::{Markup, html};
use session_model::{Action, KeyId, RealmName, Timestamp, check_text};
use session_service::Caller;

use crate::entries::{all_of, newest_of};
use crate::form::{Form, given};
use crate::page::{self, Section};
use crate::visit::{Visit, admitted, sent};
use crate::{Console, show};

/// Bytes of a subject's name and of a reason: as the API has them.
const SUBJECT: usize = 256;
const REASON: usize = 200;
/// Entries shown of a subject.
const NEWEST: usize = 20;

/// When a subject was put under legal hold, and by which entry.
#[derive(Debug)]
struct Held {
    since: Timestamp,
    index: u64,
}

pub(crate) async fn ask(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::KeepSubjects, async |visit, _| {
        query(&request, [])?;
        let main = html! {
            h1 { "Subjects" }
            p { "Whose sessions these are: find what is held on a subject, hand it out, keep it under legal hold, or erase it." }
            (finder(visit, ""))
        };
        Ok(page::shown(&console, visit, "Subjects", Section::Subjects, &main))
    })
    .await
}

fn finder(visit: &Visit, subject: &str) -> Markup {
    html! {
        form.search method="post" action="/console/subjects" role="search" aria-label="Subject" {
            input type="hidden" name="form_tag" value=(visit.form_tag);
            div.fields.one {
                div.field {
                    label for="subject" { "Subject" }
                    input #subject type="text" name="subject" value=(subject) required maxlength="256" autocomplete="off"
                        spellcheck="false" autocapitalize="none" placeholder="exact name";
                }
                button.main type="submit" { "Find" }
            }
        }
    }
}

fn named(form: &Form) -> Result<&str, Problem> {
    text(form, "subject", SUBJECT)
}

fn text<'a>(form: &'a Form, name: &str, most: usize) -> Result<&'a str, Problem> {
    let text = form.field(name).trim();
    match check_text(text, most) {
        Ok(()) => Ok(text),
        Err(fault) => Err(Problem::malformed(&format!("#form/{name}"), &fault.to_string())),
    }
}

pub(crate) async fn find(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    sent(&console, &request, payload, &["subject"], Permission::KeepSubjects, async |visit, caller, form| {
        shown(&console, &request, visit, &caller, named(&form)?, None).await
    })
    .await
}

/// The page of a subject, with what was just done to it.
async fn shown(
    console: &Console,
    request: &HttpRequest,
    visit: &Visit,
    caller: &Caller,
    subject: &str,
    done: Option<Markup>,
) -> Result<HttpResponse, Problem> {
    let newest = newest_of(console, request, caller, subject, NEWEST).await?;
    let key =
        console.audit.of(&caller.realm).archive.subject_key(&caller.realm, subject).await.map_err(search_problem)?;
    let held = match key {
        Some(key) => held(console, &caller.realm, key).await?,
        None => None,
    };
    let main = html! {
        h1 { "Subject" }
        @if let Some(done) = done { div.done role="status" { (done) } }
        (finder(visit, subject))
        (held_on(visit, subject, key, held.as_ref(), &newest))
    };
    Ok(page::shown(console, visit, "Subject", Section::Subjects, &main))
}

/// The newest entry about a hold says whether there is one.
async fn held(console: &Console, realm: &RealmName, key: KeyId) -> Result<Option<Held>, Problem> {
    let archive = &console.audit.of(realm).archive;
    let newest = async |action| {
        let filter = EntryFilter { subject: Some(key), action: Some(action), ..EntryFilter::all(realm.clone()) };
        let found = archive.search(&filter, Order::NewestFirst(None), 1).await.map_err(search_problem)?;
        Ok::<_, Problem>(found.indices.first().copied())
    };
    let (put, released) = (newest(Action::SubjectHeld).await?, newest(Action::SubjectReleased).await?);
    let Some(put) = put.filter(|put| released.is_none_or(|released| *put > released)) else { return Ok(None) };
    let opened = archive.open(realm, &[put]).await.map_err(search_problem)?;
    Ok(opened.first().map(|entry| Held { since: entry.leaf.time, index: put.0 }))
}

fn held_on(visit: &Visit, subject: &str, key: Option<KeyId>, held: Option<&Held>, newest: &EntriesDocument) -> Markup {
    let hidden = html! {
        input type="hidden" name="form_tag" value=(visit.form_tag);
        input type="hidden" name="subject" value=(subject);
    };
    html! {
        section aria-labelledby="held" {
            h2 #held { "Held on “" (subject) "”" }
            @if let Some(key) = key {
                dl.facts {
                    dt { "Handle in leaves" } dd { code { (key.uuid()) } }
                    dt { "Legal hold" }
                    dd {
                        @if let Some(held) = held {
                            strong { "held" } " since " (show::time(&held.since.to_string())) " UTC, by "
                            a href={ "/console/entries/" (held.index) } { "entry " (held.index) }
                        } @else { "none" }
                    }
                }
            } @else {
                p.empty { "The realm holds nothing on this subject." }
            }
        }
        div.deeds {
            @if key.is_some() {
                form method="post" action="/console/subjects/export" {
                    h2 { "Hand out" }
                    (hidden)
                    p.dim { "Everything held on the subject, opened, one entry a line (JSON Lines)." }
                    div.field { label for="export-purpose" { "Purpose, recorded in the log" }
                        input #export-purpose type="text" name="purpose" required maxlength="200"; }
                    button type="submit" { "Download" }
                }
            }
            @if held.is_some() {
                form method="post" action="/console/subjects/release" {
                    h2 { "Release from legal hold" }
                    (hidden)
                    p.dim { "Afterwards the subject can be erased." }
                    div.field { label for="release-reason" { "Reason, sealed in the log" }
                        input #release-reason type="text" name="reason" required maxlength="200"; }
                    button type="submit" { "Release" }
                }
            } @else {
                form method="post" action="/console/subjects/hold" {
                    h2 { "Put under legal hold" }
                    (hidden)
                    p.dim { "Until it is released the subject cannot be erased." }
                    div.field { label for="hold-reason" { "Reason, sealed in the log" }
                        input #hold-reason type="text" name="reason" required maxlength="200"; }
                    button type="submit" { "Hold" }
                }
            }
            @if key.is_some() {
                form method="post" action="/console/subjects/erase" {
                    h2 { "Erase" }
                    (hidden)
                    p.dim {
                        @if held.is_some() { "Not while the subject is under legal hold." }
                        @else { "Ends its open sessions and destroys the key that seals its personal data. Asks once more." }
                    }
                    button.danger type="submit" disabled[held.is_some()] { "Erase …" }
                }
            }
        }
        @if key.is_some() {
            section aria-labelledby="newest" {
                h2 #newest { "The newest entries about it" }
                @if newest.items.is_empty() { p.empty { "No entry." } } @else {
                    (show::table(&newest.items, "The newest entries about the subject"))
                    @if newest.next_cursor.is_some() { nav.pages aria-label="Pages" { a href=(all_of(subject)) { "All entries" } } }
                }
            }
        }
    }
}

pub(crate) async fn export(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let names = ["subject", "purpose"];
    sent(&console, &request, payload, &names, Permission::ReadLog, async |_, caller, form| {
        let subject = named(&form)?;
        let purpose = revealing(Some("true".to_owned()), given(Some(form.field("purpose").to_owned())))?;
        download(&console.audit, &request, caller, subject, purpose.as_deref()).await
    })
    .await
}

pub(crate) async fn hold(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    put(console, request, payload, true).await
}

pub(crate) async fn release(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    put(console, request, payload, false).await
}

async fn put(console: web::Data<Console>, request: HttpRequest, payload: web::Payload, on: bool) -> HttpResponse {
    let names = ["subject", "reason"];
    sent(&console, &request, payload, &names, Permission::KeepSubjects, async |visit, caller, form| {
        let subject = named(&form)?;
        let reason = text(&form, "reason", REASON)?.to_owned();
        let held = console.audit.of(&caller.realm).custodian.hold(&caller, subject, on, Some(reason)).await?;
        let done = html! {
            @if on { "The subject is under legal hold: " } @else { "The subject was released: " }
            a href={ "/console/entries/" (held.receipt.index) } { "entry " (held.receipt.index) } "."
        };
        shown(&console, &request, visit, &caller, subject, Some(done)).await
    })
    .await
}

/// Erases a subject once its name was typed again; before that, asks.
pub(crate) async fn erase(console: web::Data<Console>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let names = ["subject", "again"];
    sent(&console, &request, payload, &names, Permission::KeepSubjects, async |visit, caller, form| {
        let subject = named(&form)?;
        let again = form.field("again").trim();
        if again != subject {
            let main = confirm(visit, subject, !again.is_empty());
            return Ok(page::shown(&console, visit, "Erase", Section::Subjects, &main));
        }
        let erased = match console.audit.of(&caller.realm).custodian.erase(&caller, subject, None).await {
            Ok(erased) => erased,
            Err(problem) if problem.code() == ProblemCode::NothingHeld => {
                let done = html! { "Nothing is held on the subject, so nothing was erased." };
                return shown(&console, &request, visit, &caller, subject, Some(done)).await;
            }
            Err(problem) => return Err(problem),
        };
        let main = html! {
            h1 { "Erased" }
            div.done role="status" {
                p { "The subject’s personal data can no longer be read by anybody." }
                dl.facts {
                    @if let Some(key) = erased.subject_key {
                        dt { "Handle in leaves" } dd { code { (key) } " means nobody from now on" }
                    }
                    dt { "Sessions ended" } dd { (erased.sessions_ended) }
                    dt { "Keys destroyed" } dd { (erased.keys_destroyed) }
                    dt { "Recorded as" } dd { a href={ "/console/entries/" (erased.receipt.index) } { "entry " (erased.receipt.index) } }
                }
            }
            p { a href="/console/subjects" { "Another subject" } }
        };
        Ok(page::shown(&console, visit, "Erased", Section::Subjects, &main))
    })
    .await
}

fn confirm(visit: &Visit, subject: &str, wrong: bool) -> Markup {
    html! {
        h1 { "Erase “" (subject) "”?" }
        @if wrong { div.alert role="alert" { p { "What was typed is not the subject’s name. Nothing was erased." } } }
        p { "Its open sessions end, and the key that seals its personal data is destroyed: in the log, its views, exports and backups "
            "nobody can read it any more. Entries and proofs stay. This is final." }
        form.narrow method="post" action="/console/subjects/erase" {
            input type="hidden" name="form_tag" value=(visit.form_tag);
            input type="hidden" name="subject" value=(subject);
            div.field { label for="again" { "Type the subject’s name again" }
                input #again type="text" name="again" required autocomplete="off" spellcheck="false" autocapitalize="none" autofocus; }
            div.actions { button.danger type="submit" { "Erase for ever" } a href="/console/subjects" { "No, go back" } }
        }
    }
}
