//! Searching entries, and one entry with its proof.

use access::Permission;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use api_audit::{
    EntriesDocument, EntriesQuery, EntryDocument, cursor_entry, find_entries, find_entry, proof_of, read_problem,
    revealing,
};
use api_http::{Problem, ProblemCode, query};
use audit_log::LogReader;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};
use merkle_log::{Plan, Receipt};
use session_model::{Action, LeafIndex, Outcome, Timestamp};

use crate::form::{given, link, time};
use crate::page::{self, Section};
use crate::visit::admitted;
use crate::{Console, show};

/// Entries a page.
const PAGE: usize = 50;

/// What the search form asks for.
#[derive(Debug, Default)]
struct Search {
    asked: EntriesQuery,
    /// Given where personal data is to be shown.
    purpose: Option<String>,
    cursor: Option<String>,
}

impl Search {
    fn read(request: &HttpRequest) -> Result<(Self, Result<(), Problem>), Problem> {
        let [from, to, session, subject, actor, action, outcome, address, reveal, purpose, cursor] = query(
            request,
            [
                "from", "to", "session", "subject", "actor", "action", "outcome", "address", "reveal", "purpose",
                "cursor",
            ],
        )?;
        let asked = EntriesQuery {
            from: given(from),
            to: given(to),
            session: given(session),
            subject: given(subject),
            actor: given(actor),
            action: given(action),
            outcome: given(outcome),
            address: given(address),
        };
        // A purpose alone shows nothing; it is no mistake either.
        let reveal = given(reveal);
        let purpose = given(purpose).filter(|_| reveal.is_some());
        let (purpose, checked) = match revealing(reveal, purpose) {
            Ok(purpose) => (purpose, Ok(())),
            Err(problem) => (None, Err(problem)),
        };
        Ok((Self { asked, purpose, cursor: given(cursor) }, checked))
    }

    /// The same search from another place on.
    fn link(&self, cursor: Option<&str>) -> String {
        let asked = &self.asked;
        link(
            "/console/entries",
            &[
                ("from", asked.from.as_deref()),
                ("to", asked.to.as_deref()),
                ("session", asked.session.as_deref()),
                ("subject", asked.subject.as_deref()),
                ("actor", asked.actor.as_deref()),
                ("action", asked.action.as_deref()),
                ("outcome", asked.outcome.as_deref()),
                ("address", asked.address.as_deref()),
                ("reveal", self.purpose.as_ref().map(|_| "true")),
                ("purpose", self.purpose.as_deref()),
                ("cursor", cursor),
            ],
        )
    }

    fn form(&self) -> Markup {
        let asked = &self.asked;
        let text = |name: &str, label: &str, value: &Option<String>, hint: &str| {
            html! {
                div.field {
                    label for=(name) { (label) }
                    input id=(name) type="text" name=(name) value=[value.as_deref()] placeholder=(hint)
                        autocomplete="off" spellcheck="false";
                }
            }
        };
        let choice = |name: &str, label: &str, value: &Option<String>, words: Vec<&'static str>| {
            html! {
                div.field {
                    label for=(name) { (label) }
                    select id=(name) name=(name) {
                        option value="" { "any" }
                        @for word in words { option value=(word) selected[value.as_deref() == Some(word)] { (word) } }
                    }
                }
            }
        };
        html! {
            form.search method="get" action="/console/entries" role="search" aria-label="Entries" {
                div.fields {
                    (text("subject", "Subject", &asked.subject, "exact name"))
                    (text("session", "Session", &asked.session, "session id"))
                    (choice("action", "Action", &asked.action, Action::ALL.iter().map(|action| action.name()).collect()))
                    (choice("outcome", "Outcome", &asked.outcome, Outcome::ALL.iter().map(|outcome| outcome.name()).collect()))
                    (text("actor", "Actor", &asked.actor, "credential or node"))
                    (text("address", "Address", &asked.address, "IP address"))
                    (text("from", "From (UTC)", &asked.from, "2026-11-21 08:30"))
                    (text("to", "Before (UTC)", &asked.to, "2026-11-22"))
                }
                div.below {
                    (show::reveal(self.purpose.as_deref()))
                    div.actions {
                        span.dim.keys { kbd { "/" } " first field" }
                        a href="/console/entries" { "Clear" }
                        button.main type="submit" { "Search" }
                    }
                }
            }
        }
    }
}

pub(crate) async fn list(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::ReadLog, async |visit, caller| {
        let (search, checked) = Search::read(&request)?;
        let found = async {
            checked?;
            let before = cursor_entry(search.cursor.clone())?;
            let asked = EntriesQuery {
                from: search.asked.from.as_deref().map(time),
                to: search.asked.to.as_deref().map(time),
                ..search.asked.clone()
            };
            find_entries(&console.audit, &request, &caller, &asked, search.purpose.as_deref(), (before, PAGE)).await
        };
        match found.await {
            Ok(found) => Ok(page::shown(&console, visit, "Entries", Section::Entries, &results(&search, &found))),
            // What was asked for stays in the form, to be mended.
            Err(problem) if problem.code() == ProblemCode::MalformedRequest => {
                let main = html! { h1 { "Entries" } (page::said(&problem, &request)) (search.form()) };
                Ok(page::answer(&console, Some(visit), StatusCode::BAD_REQUEST, "Entries", Section::Entries, &main))
            }
            Err(problem) => Err(problem),
        }
    })
    .await
}

fn results(search: &Search, found: &EntriesDocument) -> Markup {
    html! {
        h1 { "Entries" }
        (search.form())
        @if found.items.is_empty() {
            p.empty { "No entry fits." }
        } @else {
            (show::table(&found.items, "Entries, newest first"))
            nav.pages aria-label="Pages" {
                @if search.cursor.is_some() { a href=(search.link(None)) { "Newest" } }
                @if let Some(cursor) = &found.next_cursor {
                    a rel="next" href=(search.link(Some(cursor))) accesskey="o" { "Older" }
                } @else {
                    span.dim { "No older entries." }
                }
            }
        }
    }
}

/// Where the bundle of an entry without a session is: of all that stands at its time.
fn bundle_of_time(entry: &EntryDocument) -> String {
    let from = show::at(&entry.entry, "/time");
    let next = Timestamp::parse(&from).map(|time| Timestamp::from_micros(time.as_micros() + 1).to_string());
    link("/console/bundle", &[("from", Some(&from)), ("to", next.as_deref())])
}

/// What the browser proves an entry with.
struct Evidence {
    receipt: Receipt,
}

pub(crate) async fn one(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::ReadLog, async |visit, caller| {
        let index: Option<u64> = request.match_info().get("index").and_then(|index| index.parse().ok());
        let [reveal, purpose] = query(&request, ["reveal", "purpose"])?;
        let reveal = given(reveal);
        let purpose = revealing(reveal.clone(), given(purpose).filter(|_| reveal.is_some()))?;
        let entry = find_entry(&console.audit, &request, &caller, index, purpose.as_deref()).await?;
        let audited = console.audit.of(&caller.realm);
        let evidence = evidence(&*audited.log, entry.index).await?;
        let published = audited.keys.borrow().clone();
        let keys: Vec<&str> = published.iter().map(|key| key.vkey.as_str()).collect();
        let main = whole(&entry, &evidence, &keys, purpose.as_deref());
        Ok(page::shown(&console, visit, &format!("Entry {}", entry.index), Section::Entries, &main))
    })
    .await
}

/// The proof that the entry is in the newest tree.
async fn evidence(log: &dyn LogReader, index: u64) -> Result<Evidence, Problem> {
    let head = log.head().await.map_err(read_problem)?;
    let damaged = |_| Problem::new(ProblemCode::Internal, "the log has an entry beyond its own size");
    let plan = Plan::inclusion(LeafIndex(index), head.size()).map_err(damaged)?;
    let proof = proof_of(log, &plan).await?;
    let checkpoint =
        head.checkpoint.ok_or_else(|| Problem::new(ProblemCode::Internal, "the log has entries and no checkpoint"))?;
    Ok(Evidence { receipt: Receipt { index: LeafIndex(index), proof, checkpoint } })
}

fn whole(entry: &EntryDocument, evidence: &Evidence, keys: &[&str], purpose: Option<&str>) -> Markup {
    let session = show::at(&entry.entry, "/session_id");
    let previous = show::at(&entry.entry, "/previous/index");
    html! {
        div.title {
            h1 { "Entry " (entry.index) }
            p {
                code { (show::at(&entry.entry, "/action")) } " · " (show::time(&show::at(&entry.entry, "/time"))) " UTC"
                @if !session.is_empty() { " · " a href={ "/console/sessions/" (session) } { "Session timeline" } }
                @if !previous.is_empty() {
                    " · " a href={ "/console/entries/" (previous) } { "The session’s entry before this" }
                }
            }
        }
        (proof(entry, evidence, keys))
        section aria-labelledby="decoded" {
            h2 #decoded { "The leaf, decoded" }
            table.pairs #fields {
                @for (path, value) in show::flat(&entry.entry) {
                    tr { th scope="row" { (path) } td data-field=(path) { (value) } }
                }
            }
        }
        section aria-labelledby="sealed" {
            h2 #sealed { "Sealed beside it" }
            @if let Some(personal) = &entry.personal {
                (show::personal(personal))
            } @else if show::at(&entry.entry, "/commitment").is_empty() {
                p.dim { "Nothing: the leaf commits to nothing." }
            } @else {
                p.dim { "Personal data is opened for a stated purpose only." }
                form.below method="get" { (show::reveal(purpose)) div.actions { button type="submit" { "Open" } } }
            }
        }
        (bytes(entry, evidence))
    }
}

/// What is proved, step by step. The script fills in what it finds; it takes everything from this page as it is shown.
fn proof(entry: &EntryDocument, evidence: &Evidence, keys: &[&str]) -> Markup {
    html! {
        section.proof #proof aria-labelledby="proof-title" {
            h2 #proof-title { "Proof" }
            p.verdict #verdict role="status" { "Not checked" }
            ol.steps #steps {
                li data-step="leaf" { "The leaf’s bytes have the leaf hash" }
                li data-step="fields" { "What is decoded below is what the bytes say" }
                li data-step="root" { "Leaf hash and proof lead to the root of the checkpoint" }
                li data-step="signature" { "The checkpoint is signed by the log’s key" }
            }
            noscript { p { "JavaScript is off, so the browser has not checked. The receipt below is checked by " code { "counterfoil-verify" } "." } }
            p.dim {
                "The check runs in your browser, on what this page shows. The page and its script come from the server, though: "
                "proof against the server itself is the receipt below, checked with " code { "counterfoil-verify" }
                " and a verifier key and checkpoint that you have kept."
            }
            dl.proof-parts {
                dt { "Leaf index" } dd { code #leaf-index { (entry.index) } }
                dt { "Leaf hash" } dd { code #leaf-hash { (entry.leaf_hash) } }
                dt { "Inclusion proof" }
                dd {
                    @if evidence.receipt.proof.is_empty() { span.dim { "none: the tree is this leaf" } }
                    ol #hashes { @for hash in &evidence.receipt.proof { li { code { (STANDARD.encode(hash.0)) } } } }
                }
                dt { "Root, recomputed" } dd { code #recomputed { "–" } }
                dt { "Checkpoint" } dd { pre #checkpoint { (evidence.receipt.checkpoint) } }
                dt { "Verifier keys" } dd #vkeys { @for key in keys { code.vkey { (key) } } }
            }
        }
    }
}

/// What to keep.
fn bytes(entry: &EntryDocument, evidence: &Evidence) -> Markup {
    let session = show::at(&entry.entry, "/session_id");
    html! {
        section aria-labelledby="keep" {
            h2 #keep { "To keep" }
            p {
                @if session.is_empty() {
                    a href=(bundle_of_time(entry)) download { "Evidence bundle of this moment" }
                } @else {
                    a href=(bundle_of_session(&session)) download { "Evidence bundle of the session" }
                }
                span.dim { " a zip to verify offline with " code { "counterfoil-verify" } }
            }
            details {
                summary { "The leaf’s exact bytes, base64" }
                pre.wrap #leaf-bytes { (entry.leaf) }
            }
            details {
                summary { "Receipt (C2SP tlog-proof)" }
                p.dim { "Save it as a file, then " code { "counterfoil verify FILE --key-file LOG.vkey --leaf-hash " (entry.leaf_hash) } }
                pre { (evidence.receipt) }
            }
        }
    }
}

/// An evidence bundle: a zip that people and the offline verifier read. It names what it is of, and opens nothing.
pub(crate) async fn bundle(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::ReadLog, async |_, caller| {
        let [from, to, session, subject] = query(&request, ["from", "to", "session", "subject"])?;
        let asked = [from, to, session, subject, None, None, None].map(given);
        api_audit::bundle(&console.evidence, &request, &caller, asked).await
    })
    .await
}

/// Where a session's bundle is.
pub(crate) fn bundle_of_session(id: &str) -> String {
    link("/console/bundle", &[("session", Some(id))])
}

/// The newest entries about a subject, for its page; recorded as a reading.
pub(crate) async fn newest_of(
    console: &Console,
    request: &HttpRequest,
    caller: &session_service::Caller,
    subject: &str,
    limit: usize,
) -> Result<EntriesDocument, Problem> {
    let asked = EntriesQuery { subject: Some(subject.to_owned()), ..EntriesQuery::default() };
    find_entries(&console.audit, request, caller, &asked, None, (None, limit)).await
}

/// All entries about a subject.
pub(crate) fn all_of(subject: &str) -> String {
    link("/console/entries", &[("subject", Some(subject))])
}
