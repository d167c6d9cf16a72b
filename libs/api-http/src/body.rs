//! Reading a JSON body strictly: unknown fields, duplicates, wrong types and unreadable text are each named by JSON pointer.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use actix_web::web::{Bytes, Payload};
use actix_web::{HttpRequest, http::header};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use session_model::check_text;

use crate::problem::{Problem, ProblemCode, ProblemField};

/// A field that is bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadField {
    pointer: String,
    detail: String,
}

impl BadField {
    /// Names a field and what is wrong with it, never its value.
    pub fn new(pointer: &str, detail: &str) -> Self {
        Self { pointer: pointer.to_owned(), detail: detail.to_owned() }
    }

    pub(crate) fn parts(&self) -> (&str, &str) {
        (&self.pointer, &self.detail)
    }

    pub(crate) fn into_problem_field(self) -> ProblemField {
        ProblemField { pointer: self.pointer, detail: self.detail }
    }
}

/// Reads a body of one of these media types, at most `limit` bytes.
///
/// # Errors
/// A [`Problem`]: 415 for another media type, 413 for too many bytes, 400 if it breaks off.
pub async fn read_body(
    request: &HttpRequest,
    payload: Payload,
    media_types: &[&str],
    limit: usize,
) -> Result<Bytes, Problem> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut parts = given.split(';').map(str::trim);
    let essence = parts.next().unwrap_or("");
    let utf8 = parts.all(|part| match part.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        Some(_) | None => true,
    });
    if !utf8 || !media_types.iter().any(|allowed| essence.eq_ignore_ascii_case(allowed)) {
        let wanted = format!("send {} in UTF-8", media_types.join(" or "));
        return Err(Problem::new(ProblemCode::UnsupportedMediaType, wanted));
    }
    let too_large = || Problem::new(ProblemCode::BodyTooLarge, format!("at most {limit} bytes"));
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    match payload.to_bytes_limited(limit).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(Problem::new(ProblemCode::MalformedRequest, "the body broke off or is wrongly framed")),
        Err(_) => Err(too_large()),
    }
}

/// The members of a JSON object, not yet read further. Take them by name; then [`Fields::done`] refuses what is left.
#[derive(Debug)]
pub struct Fields<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    bad: Vec<BadField>,
    at: String,
}

impl<'a> Fields<'a> {
    /// Reads a body as a JSON object; an empty body is an empty object if `or_empty`.
    ///
    /// # Errors
    /// A [`Problem`]: 400 if it is not JSON, 422 if it is not an object.
    pub fn of_body(body: &'a [u8], or_empty: bool) -> Result<Self, Problem> {
        if or_empty && body.is_empty() {
            return Ok(Self { members: Vec::new(), bad: Vec::new(), at: String::new() });
        }
        let text =
            std::str::from_utf8(body).map_err(|_| Problem::new(ProblemCode::MalformedJson, "the body is not UTF-8"))?;
        let malformed = |failure: serde_json::Error| {
            let place = format!("at line {} column {}", failure.line(), failure.column());
            Problem::new(ProblemCode::MalformedJson, place)
        };
        // The whole is checked as JSON first: a member's own fault must not pass for a fault of validation.
        let whole: &RawValue = serde_json::from_str(text).map_err(malformed)?;
        Self::of(whole, String::new()).map_err(|bad| Problem::invalid(vec![bad]))
    }

    fn of(raw: &'a RawValue, at: String) -> Result<Self, BadField> {
        let members: Members<'a> =
            serde_json::from_str(raw.get()).map_err(|_| BadField::new(&at, "must be a JSON object"))?;
        let mut fields = Self { members: Vec::with_capacity(members.0.len()), bad: Vec::new(), at };
        for (name, value) in members.0 {
            if fields.members.iter().any(|(known, _)| *known == name) {
                fields.refuse(&name, "stands twice");
            } else {
                fields.members.push((name, value));
            }
        }
        Ok(fields)
    }

    /// Notes that a member is bad.
    pub fn refuse(&mut self, name: &str, detail: &str) {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        self.bad.push(BadField { pointer: format!("{}/{escaped}", self.at), detail: detail.to_owned() });
    }

    /// Notes a bad field found further in, by its pointer from this object.
    pub fn refuse_at(&mut self, pointer: &str, detail: &str) {
        self.bad.push(BadField { pointer: format!("{}{pointer}", self.at), detail: detail.to_owned() });
    }

    /// Takes a member as it stands; `null` counts as absent.
    pub fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.members.iter().position(|(known, _)| known == name)?;
        let (_, raw) = self.members.swap_remove(at);
        (raw.get() != "null").then_some(raw)
    }

    fn value<T: Deserialize<'a>>(&mut self, name: &str, what: &str) -> Option<T> {
        let raw = self.raw(name)?;
        let value = serde_json::from_str(raw.get());
        if value.is_err() {
            self.refuse(name, what);
        }
        value.ok()
    }

    /// Takes a text of 1 to `max` bytes that XML can carry.
    pub fn text(&mut self, name: &str, max: usize) -> Option<String> {
        let text: String = self.value(name, "must be a string")?;
        match check_text(&text, max) {
            Ok(()) => Some(text),
            Err(fault) => {
                self.refuse(name, &fault.to_string());
                None
            }
        }
    }

    /// Takes a text that must be there.
    pub fn required_text(&mut self, name: &str, max: usize) -> String {
        let before = self.bad.len();
        match self.text(name, max) {
            Some(text) => text,
            None => {
                if self.bad.len() == before {
                    self.refuse(name, "is required");
                }
                String::new()
            }
        }
    }

    /// Takes a whole number of seconds.
    pub fn seconds(&mut self, name: &str) -> Option<u32> {
        self.value(name, "must be a whole number of seconds from 1 to 4294967295")
    }

    /// Takes an IP address.
    pub fn address(&mut self, name: &str) -> Option<IpAddr> {
        self.value(name, "must be an IP address")
    }

    /// Takes an assurance level: a text, or a number from 1 to 4 that stands for `aal1` to `aal4`.
    pub fn level(&mut self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        if let Ok(number @ 1..=4) = serde_json::from_str::<u8>(raw.get()) {
            return Some(format!("aal{number}"));
        }
        match serde_json::from_str::<String>(raw.get()) {
            Ok(text) if check_text(&text, 64).is_ok() => Some(text),
            Ok(_) | Err(_) => {
                self.refuse(name, "must be a text of 1 to 64 bytes, or a number from 1 to 4");
                None
            }
        }
    }

    /// Takes a list of 1 to `most` texts, each 1 to `max` bytes.
    pub fn texts(&mut self, name: &str, most: usize, max: usize) -> Option<Vec<String>> {
        let texts: Vec<String> = self.value(name, "must be a list of strings")?;
        if texts.is_empty() || texts.len() > most {
            self.refuse(name, &format!("must have 1 to {most} items"));
            return None;
        }
        if let Some((at, fault)) =
            texts.iter().enumerate().find_map(|(at, text)| check_text(text, max).err().map(|fault| (at, fault)))
        {
            self.refuse_at(&format!("/{name}/{at}"), &fault.to_string());
            return None;
        }
        Some(texts)
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Option<Fields<'a>> {
        let raw = self.raw(name)?;
        match Self::of(raw, format!("{}/{name}", self.at)) {
            Ok(fields) => Some(fields),
            Err(bad) => {
                self.bad.push(bad);
                None
            }
        }
    }

    /// Takes over what an inner object found bad, or left.
    pub fn finish_inner(&mut self, mut inner: Fields<'a>) {
        inner.refuse_left();
        self.bad.append(&mut inner.bad);
    }

    fn refuse_left(&mut self) {
        for (name, _) in std::mem::take(&mut self.members) {
            self.refuse(&name, "is not a field of this request");
        }
    }

    /// Ends the reading: refuses members nobody took, and reports everything that was bad.
    ///
    /// # Errors
    /// A 422 [`Problem`] naming each bad field.
    pub fn done(mut self) -> Result<(), Problem> {
        self.refuse_left();
        if self.bad.is_empty() { Ok(()) } else { Err(Problem::invalid(self.bad)) }
    }
}

/// Members in order, duplicates included.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = access.next_key::<Cow<'de, str>>()? {
                    members.push((name, access.next_value()?));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Reader).map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_field_is_named_at_once() {
        let body = br#"{"a":1,"a":2,"text":"","odd":true,"inner":{"x":"\u0000","y":1},"s":-1}"#;
        let mut fields = Fields::of_body(body, false).unwrap();
        fields.text("text", 10);
        fields.seconds("s");
        fields.raw("a");
        let mut inner = fields.object("inner").unwrap();
        inner.text("x", 10);
        fields.finish_inner(inner);
        let shown = format!("{:?}", fields.done().unwrap_err());
        for pointer in ["\"/a\"", "\"/text\"", "\"/odd\"", "\"/inner/x\"", "\"/inner/y\"", "\"/s\""] {
            assert!(shown.contains(pointer), "{pointer} not in {shown}");
        }
    }

    #[test]
    fn what_is_not_json_is_400_and_what_is_no_object_is_422() {
        for body in ["{", "", "{\"a\":}", "{\"a\":1}x", "\u{feff}{}"] {
            assert_eq!(
                Fields::of_body(body.as_bytes(), false).unwrap_err().code(),
                ProblemCode::MalformedJson,
                "{body}"
            );
        }
        assert_eq!(Fields::of_body(b"\xff{}", false).unwrap_err().code(), ProblemCode::MalformedJson);
        assert_eq!(Fields::of_body(b"[]", false).unwrap_err().code(), ProblemCode::ValidationFailed);
    }
}
