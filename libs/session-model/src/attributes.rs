//! The attributes of a session: one JSON object, checked once, kept as compact text.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::text::is_xml_char;

/// How large the attributes of one session may be. The defaults keep the sealed part of any entry within what one
/// C2SP entry bundle record (65,535 bytes) could hold, so that no entry needs to be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of compact JSON. Default 32,768.
    pub bytes: usize,
    /// Members of the top-level object. Default 256.
    pub count: usize,
    /// Nesting of objects and arrays, the top-level object being 1. Default 16.
    pub depth: usize,
    /// Bytes of UTF-8 in one member name. Default 128.
    pub key_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 32_768, count: 256, depth: 16, key_bytes: 128 }
    }
}

/// Why attributes, or a merge patch of them, are refused. `pointer` is an RFC 6901 JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// Not JSON at all, or not the top-level object that is asked for.
    #[error("not a JSON object: {0}")]
    NotAnObject(String),
    /// The same name twice in one object (RFC 8259 section 4: unpredictable, so refused).
    #[error("the name stands twice in one object")]
    DuplicateKey {
        /// Where.
        pointer: String,
    },
    /// A name or text holds a character XML 1.0 cannot carry.
    #[error("holds a character that XML 1.0 cannot carry")]
    NotXml {
        /// Where.
        pointer: String,
    },
    /// A number that not every reader of JSON gets right: outside ±(2^53 - 1) if whole, or not finite (RFC 7493 section 2.2).
    #[error("the number is outside what every JSON reader keeps exactly (RFC 7493 section 2.2)")]
    Number {
        /// Where.
        pointer: String,
    },
    /// A name that is empty or longer than the limit.
    #[error("a name must be 1 to {limit} bytes of UTF-8")]
    Key {
        /// Where.
        pointer: String,
        /// The limit.
        limit: usize,
    },
    /// Nested deeper than the limit.
    #[error("nested deeper than {limit}")]
    Depth {
        /// Where.
        pointer: String,
        /// The limit.
        limit: usize,
    },
    /// More members than the limit.
    #[error("more than {limit} attributes")]
    Count {
        /// The limit.
        limit: usize,
    },
    /// More bytes than the limit.
    #[error("more than {limit} bytes of JSON")]
    Bytes {
        /// The limit.
        limit: usize,
    },
}

impl AttributeError {
    /// The JSON pointer of what is wrong, relative to the attributes; empty for the object itself.
    pub fn pointer(&self) -> &str {
        match self {
            Self::DuplicateKey { pointer }
            | Self::NotXml { pointer }
            | Self::Number { pointer }
            | Self::Key { pointer, .. }
            | Self::Depth { pointer, .. } => pointer,
            Self::NotAnObject(_) | Self::Count { .. } | Self::Bytes { .. } => "",
        }
    }
}

/// A session's attributes: compact JSON text of one object that has passed the [`Limits`]. Cloning shares the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Attributes(Arc<str>);

impl Attributes {
    /// No attributes.
    pub fn empty() -> Self {
        Self("{}".into())
    }

    /// Reads a JSON object, refusing what other readers (SOAP among them) could not represent.
    ///
    /// # Errors
    /// The first [`AttributeError`] found.
    pub fn parse(json: &str, limits: &Limits) -> Result<Self, AttributeError> {
        Self::from_map(&read_object(json, limits)?, limits)
    }

    /// The compact JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in them.
    pub fn is_empty(&self) -> bool {
        &*self.0 == "{}"
    }

    /// Applies an RFC 7396 merge patch.
    ///
    /// # Errors
    /// [`AttributeError::Count`] or [`AttributeError::Bytes`] if the result would be too large.
    pub fn merged(&self, patch: &MergePatch, limits: &Limits) -> Result<Self, AttributeError> {
        let mut map: Map<String, Value> = serde_json::from_str(&self.0).unwrap_or_default();
        merge(&mut map, &patch.0);
        Self::from_map(&map, limits)
    }

    fn from_map(map: &Map<String, Value>, limits: &Limits) -> Result<Self, AttributeError> {
        if map.len() > limits.count {
            return Err(AttributeError::Count { limit: limits.count });
        }
        let json = serde_json::to_string(map).map_err(|error| AttributeError::NotAnObject(error.to_string()))?;
        if json.len() > limits.bytes {
            return Err(AttributeError::Bytes { limit: limits.bytes });
        }
        Ok(Self(json.into()))
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are personal data: a log line gets the size only.
        write!(f, "Attributes({} bytes)", self.0.len())
    }
}

impl Serialize for Attributes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Attributes {
    /// For stored state only: the text was checked when it came in.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().into()))
    }
}

/// An RFC 7396 merge patch on attributes: a member with `null` removes, any other value sets, objects merge.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MergePatch(Map<String, Value>);

impl MergePatch {
    /// Reads a merge patch. The same rules as for attributes hold, so that no patch can bring in what a create could not.
    ///
    /// # Errors
    /// The first [`AttributeError`] found.
    pub fn parse(json: &str, limits: &Limits) -> Result<Self, AttributeError> {
        if json.len() > limits.bytes.saturating_mul(2) {
            return Err(AttributeError::Bytes { limit: limits.bytes });
        }
        read_object(json, limits).map(Self)
    }
}

impl fmt::Debug for MergePatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MergePatch({} members)", self.0.len())
    }
}

/// RFC 7396 section 2, for a target that is an object.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(inner) => {
                let slot = target.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(map) = slot {
                    merge(map, inner);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn read_object(json: &str, limits: &Limits) -> Result<Map<String, Value>, AttributeError> {
    let fault = std::cell::RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let seed = Checked { limits, depth: 0, at: Path::Root, fault: &fault };
    let value = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match (value, fault.into_inner()) {
        (_, Some(fault)) => Err(fault),
        (Ok(Value::Object(map)), None) => Ok(map),
        (Ok(_), None) => Err(AttributeError::NotAnObject("another kind of value".into())),
        (Err(error), None) => {
            Err(AttributeError::NotAnObject(format!("at line {} column {}", error.line(), error.column())))
        }
    }
}

/// Where in the document the reader stands, as a list that lives on the stack.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn pointer(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Key(parent, key) => format!("{}/{}", parent.pointer(), key.replace('~', "~0").replace('/', "~1")),
            Path::Item(parent, index) => format!("{}/{index}", parent.pointer()),
        }
    }
}

/// Reads any JSON value, refusing duplicates and everything past the limits as it goes, before a tree is built of it.
struct Checked<'a> {
    limits: &'a Limits,
    depth: usize,
    at: Path<'a>,
    fault: &'a std::cell::RefCell<Option<AttributeError>>,
}

impl Checked<'_> {
    fn refuse<E: serde::de::Error>(&self, fault: AttributeError) -> E {
        self.fault.borrow_mut().get_or_insert(fault);
        E::custom("refused")
    }

    fn text<E: serde::de::Error>(&self, text: &str) -> Result<(), E> {
        if text.chars().all(is_xml_char) {
            Ok(())
        } else {
            Err(self.refuse(AttributeError::NotXml { pointer: self.at.pointer() }))
        }
    }

    fn child<'b>(&'b self, at: Path<'b>) -> Checked<'b> {
        Checked { limits: self.limits, depth: self.depth + 1, at, fault: self.fault }
    }

    fn too_deep<E: serde::de::Error>(&self) -> Result<(), E> {
        if self.depth < self.limits.depth {
            return Ok(());
        }
        Err(self.refuse(AttributeError::Depth { pointer: self.at.pointer(), limit: self.limits.depth }))
    }
}

const LARGEST_EXACT: u64 = (1 << 53) - 1;

impl<'de> DeserializeSeed<'de> for Checked<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > LARGEST_EXACT {
            return Err(self.refuse(AttributeError::Number { pointer: self.at.pointer() }));
        }
        Ok(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > LARGEST_EXACT {
            return Err(self.refuse(AttributeError::Number { pointer: self.at.pointer() }));
        }
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // serde_json hands whole numbers beyond 64 bits over as floats: they are past exactness too.
        if !value.is_finite() || (value.fract() == 0.0 && value.abs() > LARGEST_EXACT as f64) {
            return Err(self.refuse(AttributeError::Number { pointer: self.at.pointer() }));
        }
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.text(value)?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.too_deep()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self.child(Path::Item(&self.at, items.len())))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.too_deep()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let at = Path::Key(&self.at, &key);
            let member = self.child(at);
            member.text(&key)?;
            if key.is_empty() || key.len() > self.limits.key_bytes {
                let pointer = self.at.pointer();
                return Err(self.refuse(AttributeError::Key { pointer, limit: self.limits.key_bytes }));
            }
            if map.contains_key(&key) {
                return Err(self.refuse(AttributeError::DuplicateKey { pointer: at.pointer() }));
            }
            if self.depth == 0 && map.len() >= self.limits.count {
                return Err(self.refuse(AttributeError::Count { limit: self.limits.count }));
            }
            let value = access.next_value_seed(member)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Attributes, AttributeError> {
        Attributes::parse(json, &Limits::default())
    }

    #[test]
    fn each_rule_names_the_place() {
        let cases = [
            (r#"{"a":1,"a":2}"#, "/a"),
            (r#"{"a":{"b":[1,{"c":1,"c":1}]}}"#, "/a/b/1/c"),
            (r#"{"a":"\u0000"}"#, "/a"),
            (r#"{"a/b":["\uffff"]}"#, "/a~1b/0"),
            (r#"{"n":9007199254740992}"#, "/n"),
            (r#"{"n":-9007199254740992}"#, "/n"),
            (r#"{"n":123456789012345678901234567890}"#, "/n"),
        ];
        for (json, pointer) in cases {
            assert_eq!(parse(json).unwrap_err().pointer(), pointer, "{json}");
        }
        assert!(matches!(parse(r#"{"":1}"#), Err(AttributeError::Key { .. })));
        assert!(matches!(parse(&format!("{{\"{}\":1}}", "k".repeat(129))), Err(AttributeError::Key { .. })));
        assert!(matches!(
            parse(&format!("{{\"a\":{}1{}}}", "[".repeat(16), "]".repeat(16))),
            Err(AttributeError::Depth { .. })
        ));
        assert!(parse(&format!("{{\"a\":{}1{}}}", "[".repeat(15), "]".repeat(15))).is_ok());
        assert!(matches!(parse(&format!("{{\"a\":\"{}\"}}", "x".repeat(40_000))), Err(AttributeError::Bytes { .. })));
        let many: Vec<String> = (0..257).map(|i| format!("\"k{i}\":1")).collect();
        assert!(matches!(parse(&format!("{{{}}}", many.join(","))), Err(AttributeError::Count { .. })));
        for bad in ["", "[]", "1", "{", "{} {}", r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#, "nul"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_very_deep_document_is_refused_not_recursed_into() {
        assert!(parse(&format!("{{\"a\":{}", "[".repeat(1_000_000))).is_err());
    }

    #[test]
    fn merges_as_rfc_7396_appendix_a_says() {
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, "{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (target, patch, result) in cases {
            let patch = MergePatch::parse(patch, &Limits::default()).unwrap();
            let merged = parse(target).unwrap().merged(&patch, &Limits::default()).unwrap();
            assert_eq!(merged.as_json(), result);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_what_is_read_reads_again(text in "\\PC{0,200}") {
            if let Ok(attributes) = parse(&text) {
                prop_assert_eq!(parse(attributes.as_json()).unwrap(), attributes);
            }
        }

        #[test]
        fn patches_of_disjoint_members_commute(a in "[a-f]{1,3}", b in "[g-m]{1,3}", x: u16, y: u16) {
            let limits = Limits::default();
            let one = MergePatch::parse(&format!("{{\"{a}\":{x}}}"), &limits).unwrap();
            let two = MergePatch::parse(&format!("{{\"{b}\":{y}}}"), &limits).unwrap();
            let start = Attributes::empty();
            let ab = start.merged(&one, &limits).unwrap().merged(&two, &limits).unwrap();
            let ba = start.merged(&two, &limits).unwrap().merged(&one, &limits).unwrap();
            prop_assert_eq!(ab, ba);
        }
    }
}
