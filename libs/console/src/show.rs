//! What several pages show.

use std::collections::BTreeMap;

use api_audit::{EntryDocument, PersonalDocument, PersonalState};
use maud::{Markup, html};
use serde_json::Value;

/// Characters of a UUID.
const UUID: usize = 36;

/// The end of an id, where its whole stands in a title or behind a link: of a UUIDv7 that is what differs.
pub(crate) fn short(id: &str) -> String {
    let length = id.chars().count();
    if length <= 14 { id.to_owned() } else { format!("…{}", id.chars().skip(length - 12).collect::<String>()) }
}

/// A time for people, in UTC; the whole of it for machines.
pub(crate) fn time(rfc3339: &str) -> Markup {
    let plain = rfc3339.replacen('T', " ", 1);
    html! { time datetime=(rfc3339) { (plain.trim_end_matches('Z')) } }
}

/// A value at a place of a document, as text; empty if there is none.
pub(crate) fn at(document: &Value, pointer: &str) -> String {
    document.pointer(pointer).map(text).unwrap_or_default()
}

/// A value as text: a string as it is, all else as JSON.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The members of a document by their path, `actor.role` for instance: as the script makes them of the leaf's bytes.
pub(crate) fn flat(document: &Value) -> BTreeMap<String, String> {
    fn walk(at: &str, value: &Value, all: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(members) if !members.is_empty() => {
                for (name, member) in members {
                    let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                    walk(&path, member, all);
                }
            }
            other => drop(all.insert(at.to_owned(), text(other))),
        }
    }
    let mut all = BTreeMap::new();
    walk("", document, &mut all);
    all
}

/// Entries, one a row; with what is sealed in a row below where it is revealed.
pub(crate) fn table(items: &[EntryDocument], caption: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption) {
            table.entries {
                thead { tr {
                    th scope="col" { "Index" } th scope="col" { "Time (UTC)" } th scope="col" { "Action" }
                    th scope="col" { "Outcome" } th scope="col" { "Actor" } th scope="col" { "Session" }
                    th scope="col" { "Details" }
                } }
                tbody { @for item in items { (row(item)) } }
            }
        }
    }
}

fn row(item: &EntryDocument) -> Markup {
    let entry = &item.entry;
    let session = at(entry, "/session_id");
    let outcome = at(entry, "/outcome");
    html! {
        tr {
            td.number { a href={ "/console/entries/" (item.index) } { (item.index) } }
            td.nowrap { (time(&at(entry, "/time"))) }
            td.nowrap { code { (at(entry, "/action")) } }
            td class=(if outcome == "refused" { "bad" } else { "" }) { (outcome) }
            td.nowrap title=(at(entry, "/actor/id")) { (at(entry, "/actor/role")) " " code { (short(&at(entry, "/actor/id"))) } }
            td.nowrap title=(session) {
                @if !session.is_empty() {
                    a href={ "/console/sessions/" (session) } { code { (short(&session)) } }
                    @let version = at(entry, "/version");
                    @if !version.is_empty() { span.dim { " v" (version) } }
                }
            }
            td { (details(entry)) }
        }
        @if let Some(personal) = &item.personal {
            tr.personal { td {} td colspan="6" { (self::personal(personal)) } }
        }
    }
}

fn details(entry: &Value) -> Markup {
    let facts = entry.get("detail").and_then(Value::as_object);
    html! {
        @for (name, value) in facts.into_iter().flatten() {
            @let value = text(value);
            span.fact title=(value) {
                span.dim { (name) "=" }
                @if name == "session" { a href={ "/console/sessions/" (value) } { (short(&value)) } }
                @else if value.len() == UUID && !value.contains('/') { (short(&value)) }
                @else { (value) }
            } " "
        }
    }
}

/// What is sealed beside a leaf, opened.
pub(crate) fn personal(personal: &PersonalDocument) -> Markup {
    let said = match personal.state {
        PersonalState::None => Some("Nothing is sealed."),
        PersonalState::Erased => Some("Erased: the key that sealed it was destroyed. Nobody can open it."),
        PersonalState::Pruned => Some("Dropped when its retention period had passed."),
        PersonalState::Broken => Some("DAMAGED: what is stored is not what the leaf commits to."),
        PersonalState::Open => None,
    };
    html! {
        @if let Some(said) = said {
            p class=(if matches!(personal.state, PersonalState::Broken) { "alert" } else { "dim" }) { (said) }
        } @else {
            dl.facts {
                @if let Some(origin) = &personal.origin { dt { "asked from" } dd { code { (origin) } } }
                @for (name, value) in personal.facts.iter().flatten() { dt { (name) } dd { (value) } }
                @for (name, value) in personal.event.iter().flat_map(flat) { dt { (name) } dd { code { (value) } } }
            }
        }
    }
}

/// The part of a form that asks for personal data.
pub(crate) fn reveal(purpose: Option<&str>) -> Markup {
    html! {
        fieldset.reveal {
            legend { "Personal data" }
            label.check { input type="checkbox" name="reveal" value="true" checked[purpose.is_some()]; " Show it" }
            div.field.grow {
                label for="purpose" { "Purpose, recorded in the log" }
                input #purpose type="text" name="purpose" maxlength="200" value=[purpose] placeholder="for instance a case number";
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_flattened_by_path() {
        let document = json!({"a": {"b": "x", "c": 1, "d": {}}, "e": null, "f": [1, "y"]});
        let all: Vec<_> = flat(&document).into_iter().map(|(path, value)| format!("{path}={value}")).collect();
        assert_eq!(all, ["a.b=x", "a.c=1", "a.d={}", "e=null", "f=[1,\"y\"]"]);
    }

    #[test]
    fn long_ids_are_shortened_by_characters() {
        assert_eq!(short("019ab3f2-7c11-7000-8000-0123456789ab"), "…0123456789ab");
        assert_eq!(short("ünïcödé-ünïcödé"), "…cödé-ünïcödé");
        assert_eq!(short("node"), "node");
    }
}
