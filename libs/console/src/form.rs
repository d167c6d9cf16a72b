//! What a browser sends, read; and links that keep it.

use actix_web::HttpRequest;
use actix_web::web::Payload;
use api_http::{Problem, ProblemCode, read_body};

/// Bytes of a form: a subject, a purpose and a tag, percent-encoded.
const FORM: usize = 8_192;

/// A form that was sent: each field once.
#[derive(Debug)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a form of these fields only.
    ///
    /// # Errors
    /// A [`Problem`]: 415, 413 or 400.
    pub(crate) async fn read(request: &HttpRequest, payload: Payload, names: &[&str]) -> Result<Self, Problem> {
        let body = read_body(request, payload, &["application/x-www-form-urlencoded"], FORM).await?;
        let mut fields: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(&body) {
            if !names.contains(&&*name) || fields.iter().any(|(known, _)| *known == name) {
                return Err(Problem::new(
                    ProblemCode::MalformedRequest,
                    "the form has a field that is not this page's",
                ));
            }
            fields.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(fields))
    }

    /// A field; empty if it is not there.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// A field of a query that was left empty was not given.
pub(crate) fn given(field: Option<String>) -> Option<String> {
    field.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A path with those parameters that are given.
pub(crate) fn link(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A time as people write it, in UTC, as RFC 3339: a day, a day and a minute or second, or RFC 3339 itself.
pub(crate) fn time(text: &str) -> String {
    let digits = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                b'T' => byte == b'T' || byte == b' ',
                other => byte == other,
            })
    };
    let joined = text.replacen(' ', "T", 1);
    if digits(text, "0000-00-00") {
        format!("{text}T00:00:00Z")
    } else if digits(text, "0000-00-00T00:00") {
        format!("{joined}:00Z")
    } else if digits(text, "0000-00-00T00:00:00") {
        format!("{joined}Z")
    } else {
        joined
    }
}

/// A path of the console to go on to after signing in: never another place.
pub(crate) fn within(next: &str) -> Option<&str> {
    let plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\' && byte != b'#');
    (next.starts_with("/console/") && plain && !next.contains("//") && next.len() <= 2_048).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(time("2026-11-21"), "2026-11-21T00:00:00Z");
        assert_eq!(time("2026-11-21 08:30"), "2026-11-21T08:30:00Z");
        assert_eq!(time("2026-11-21T08:30:01"), "2026-11-21T08:30:01Z");
        assert_eq!(time("2026-11-21 08:30:01.5+01:00"), "2026-11-21T08:30:01.5+01:00");
        assert_eq!(time("yesterday"), "yesterday");
    }

    #[test]
    fn nobody_is_sent_elsewhere() {
        assert_eq!(within("/console/entries?actor=a"), Some("/console/entries?actor=a"));
        for elsewhere in
            ["https://example.org/", "//example.org", "/console", "/console//example.org", "/console/\\a", "/v1", ""]
        {
            assert_eq!(within(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn links_keep_what_is_given_and_escape_it() {
        assert_eq!(link("/a", &[("b", Some("c&d=\"")), ("e", None)]), "/a?b=c%26d%3D%22");
        assert_eq!(link("/a", &[("e", None)]), "/a");
    }
}
