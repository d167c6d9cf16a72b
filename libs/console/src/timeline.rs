//! The timeline of a session: every entry, what it changed, and the state after it.

use std::collections::BTreeMap;

use access::Permission;
use actix_web::{HttpRequest, HttpResponse, web};
use api_audit::{StateDocument, StepDocument, Steps, cursor_entry, find_history, revealing};
use api_http::{Cursor, Problem, ProblemCode, query};
use maud::{Markup, html};
use serde_json::Value;
use session_model::{SessionId, Version};

use crate::entries::bundle_of_session;
use crate::form::{given, link};
use crate::page::{self, Section};
use crate::visit::admitted;
use crate::{Console, show};

/// Entries a page: each may bring a whole set of attributes.
const PAGE: usize = 25;

pub(crate) async fn show(console: web::Data<Console>, request: HttpRequest) -> HttpResponse {
    admitted(&console, &request, Permission::ReadLog, async |visit, caller| {
        let [reveal, purpose, cursor] = query(&request, ["reveal", "purpose", "cursor"])?;
        let reveal = given(reveal);
        let purpose = revealing(reveal.clone(), given(purpose).filter(|_| reveal.is_some()))?;
        let after = cursor_entry(given(cursor))?.map_or(0, |version| version.0);
        let id: Option<SessionId> = request.match_info().get("id").and_then(|id| id.parse().ok());
        // On a later page the entry before the first is read too: what the first changed is told from its state.
        let (from, count) = if after == 0 { (0, PAGE) } else { (after - 1, PAGE + 1) };
        let steps = Steps::After(Version(from), count);
        let history = find_history(&console.audit, &request, &caller, id, steps, purpose.as_deref()).await?;
        let mut items = history.items.as_slice();
        let mut before = None;
        if after > 0 {
            let absent = || Problem::new(ProblemCode::NotFound, "the session has no such version");
            let (first, rest) = items.split_first().ok_or_else(absent)?;
            before = first.state.as_ref().map(fields).transpose()?;
            items = rest;
        }
        let last = items.last().filter(|_| history.next_cursor.is_some());
        let next = last.and_then(|step| step.entry.entry.get("version")).and_then(Value::as_u64);
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let address = |cursor: Option<String>| {
            let reveal = purpose.as_ref().map(|_| "true");
            let path = format!("/console/sessions/{id}");
            link(&path, &[("reveal", reveal), ("purpose", purpose.as_deref()), ("cursor", cursor.as_deref())])
        };
        let next = next.map(|version| address(Some(Cursor::Entry(version).encode())));
        let first = (after > 0).then(|| address(None));
        let main = html! {
            div.title {
                h1 { "Session " code { (id) } }
                p { a href=(link("/console/entries", &[("session", Some(&id))])) { "All entries about it, readings included" }
                    " · " a href=(bundle_of_session(&id)) download { "Evidence bundle" } }
            }
            form.below method="get" { (show::reveal(purpose.as_deref())) div.actions { button type="submit" { "Show" } } }
            (timeline(items, before)?)
            nav.pages aria-label="Pages" {
                @if let Some(first) = first { a href=(first) { "First" } }
                @if let Some(next) = next { a rel="next" href=(next) accesskey="o" { "Later" } }
                @else { span.dim { "No later entries." } }
            }
        };
        Ok(page::shown(&console, visit, &format!("Session {}", show::short(&id)), Section::Entries, &main))
    })
    .await
}

type Fields = BTreeMap<String, String>;

/// A state as fields: each attribute is one, whatever it holds.
fn fields(state: &StateDocument) -> Result<Fields, Problem> {
    let unreadable = |_| Problem::new(ProblemCode::Internal, "a state cannot be written");
    let document = serde_json::to_value(state).map_err(unreadable)?;
    let mut all = Fields::new();
    for (name, value) in document.as_object().into_iter().flatten() {
        match value {
            Value::Object(attributes) if name == "attributes" => {
                all.extend(attributes.iter().map(|(key, value)| (format!("attributes.{key}"), value.to_string())));
            }
            Value::Null => {}
            // The entry says which version it made.
            _ if name == "version" => {}
            other => drop(all.insert(name.clone(), show::text(other))),
        }
    }
    Ok(all)
}

fn timeline(items: &[StepDocument], mut before: Option<Fields>) -> Result<Markup, Problem> {
    let mut steps = Vec::with_capacity(items.len());
    for item in items {
        let after = item.state.as_ref().map(fields).transpose()?;
        steps.push(step(item, before.as_ref(), after.as_ref()));
        before = after;
    }
    Ok(html! { ol.timeline { @for step in &steps { (step) } } })
}

fn step(item: &StepDocument, before: Option<&Fields>, after: Option<&Fields>) -> Markup {
    let entry = &item.entry.entry;
    let outcome = show::at(entry, "/outcome");
    html! {
        li {
            div.head {
                span.version { "v" (show::at(entry, "/version")) }
                code.action { (show::at(entry, "/action")) }
                (show::time(&show::at(entry, "/time")))
                span title=(show::at(entry, "/actor/id")) {
                    (show::at(entry, "/actor/role")) " " code { (show::short(&show::at(entry, "/actor/id"))) }
                }
                @if outcome != "success" { span.bad { (outcome) } }
                a href={ "/console/entries/" (item.entry.index) } { "entry " (item.entry.index) }
            }
            @match after {
                None => p.dim { "The state cannot be rebuilt from here on: what was sealed is erased, or dropped after its retention period." },
                Some(after) => (changes(before, after)),
            }
            @if let Some(personal) = &item.entry.personal {
                details { summary { "What was sealed" } (show::personal(personal)) }
            }
        }
    }
}

/// What an entry changed, and the whole state below it.
fn changes(before: Option<&Fields>, after: &Fields) -> Markup {
    let old = |name: &str| before.and_then(|before| before.get(name));
    let changed: Vec<_> = after.iter().filter(|(name, value)| old(name) != Some(value)).collect();
    let gone: Vec<_> = before.into_iter().flatten().filter(|(name, _)| !after.contains_key(*name)).collect();
    html! {
        @if before.is_some() {
            table.changes {
                thead { tr { th scope="col" { "Field" } th scope="col" { "Before" } th scope="col" { "After" } } }
                tbody {
                    @for (name, value) in &changed {
                        tr {
                            th scope="row" { (name) }
                            td { @if let Some(old) = old(name) { del { (old) } } @else { span.dim { "absent" } } }
                            td { ins { (value) } }
                        }
                    }
                    @for (name, value) in &gone {
                        tr { th scope="row" { (name) } td { del { (value) } } td { span.dim { "absent" } } }
                    }
                }
            }
        }
        details open[before.is_none()] {
            summary { "State after it" }
            table.pairs {
                @for (name, value) in after {
                    tr { th scope="row" { (name) }
                        td { @if before.is_some() && old(name) != Some(value) { ins { (value) } } @else { (value) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_came_and_went_is_told_and_what_stayed_is_not() {
        let fields =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Fields>();
        let before = fields(&[("stays", "1"), ("changes", "<old>"), ("goes", "3")]);
        let after = fields(&[("stays", "1"), ("changes", "new"), ("comes", "4")]);
        let shown = changes(Some(&before), &after).into_string();
        let (table, _) = shown.split_once("<details").unwrap();
        assert!(table.contains("<del>&lt;old&gt;</del></td><td><ins>new</ins>"), "{table}");
        assert!(table.contains("<ins>4</ins>") && table.contains("<del>3</del>"), "{table}");
        assert!(!table.contains("stays"), "{table}");
    }
}
