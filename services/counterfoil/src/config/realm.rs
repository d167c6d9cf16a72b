//! What a realm is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_model::{Overrides, Profile};

/// A realm: its profile, and what it tightens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Map<String, serde_json::Value>")]
pub(crate) struct Realm {
    /// The preset it starts from.
    pub profile: Profile,
    /// What it sets differently.
    #[serde(flatten)]
    pub overrides: Overrides,
}

impl TryFrom<serde_json::Map<String, serde_json::Value>> for Realm {
    type Error = String;

    /// By hand, because `flatten` would let unknown keys through.
    fn try_from(mut keys: serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let profile = match keys.remove("profile") {
            None => Profile::Default,
            Some(name) => name.as_str().and_then(|name| name.parse().ok()).ok_or_else(|| {
                let names: Vec<_> = Profile::ALL.iter().map(|profile| profile.name()).collect();
                format!("profile must be one of {}", names.join(", "))
            })?,
        };
        let overrides = serde_json::from_value(serde_json::Value::Object(keys)).map_err(|f| f.to_string())?;
        Ok(Self { profile, overrides })
    }
}

impl JsonSchema for Realm {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Realm".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let profiles: Vec<_> = Profile::ALL.iter().map(|profile| profile.name()).collect();
        let count =
            |description: &str| serde_json::json!({"type": "integer", "minimum": 0, "description": description});
        schemars::json_schema!({
            "type": "object",
            "additionalProperties": false,
            "description": "A realm: its profile, and what it tightens",
            "properties": {
                "profile": {"enum": profiles, "description": "The preset it starts from. Default: default"},
                "idle_timeout_s": count("Seconds without use until a session has expired"),
                "absolute_timeout_s": count("Seconds from creation until a session has expired"),
                "renewal_interval_s": count("Seconds until a client should renew its token"),
                "renewal_overlap_s": count("Seconds the previous token is honoured after a renewal"),
                "sessions_per_subject": count("Open sessions one subject may have"),
                "beyond_cap": {"enum": ["deny", "evict_oldest", "evict_least_recent"], "description": "What happens beyond that"},
                "reused_token": {"enum": ["record", "end"], "description": "What the late use of a rotated token leads to"},
                "audited_reads": {"type": "boolean", "description": "Whether reading a session by id is itself an entry"},
                "retention_days": count("Days after which what is sealed beside an entry may be dropped; absent is never"),
                "requests_per_second": count("Requests a second each credential may make; 0 is no limit"),
                "acknowledged_by": count("Profile transient over transport partner: other nodes that must have a change before it is answered"),
                "max_attribute_bytes": count("Bytes of JSON the attributes of a session may take"),
                "max_attributes": count("Top-level attributes a session may have"),
            },
        })
    }
}
