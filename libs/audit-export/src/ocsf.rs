//! Open Cybersecurity Schema Framework, schema 1.8.0. Written by hand: the crates that exist are too young.
//!
//! | action | class | activity |
//! |---|---|---|
//! | `session.created` | 3002 Authentication | 1 Logon ("a new logon session was requested") |
//! | `session.authenticated` | 3002 | 1 Logon |
//! | `session.renewed` | 3002 | 3 Authentication Ticket |
//! | `session.ended` | 3002 | 2 Logoff |
//! | `session.token_reused` | 3002 | 99 Other |
//! | `key.created` | 3003 Authorize Session | 1 Assign Privileges: the roles of the key |
//! | `key.revoked` | 6003 API Activity | 4 Delete |
//! | `session.updated` | 6003 | 3 Update |
//! | `session.read`, `audit.read` | 6003 | 2 Read |
//! | `service.…`, `view.quarantined` | 6003 | 99 Other |
//!
//! `index` and `leaf_hash` stand in `unmapped`, and the index in `metadata.sequence` too: the schema has no place for a hash.

use std::net::IpAddr;

use serde::Serialize;
use session_model::{Action, Detail, Outcome};

use crate::Record;
use crate::line::{json, protocol, role, subject};

/// An event of any of the three classes: the attributes that the class does not have are absent.
#[derive(Serialize)]
struct OcsfEvent<'a> {
    activity_id: u8,
    activity_name: &'static str,
    category_uid: u8,
    category_name: &'static str,
    class_uid: u16,
    class_name: &'static str,
    type_uid: u32,
    severity_id: u8,
    severity: &'static str,
    /// Milliseconds since the epoch.
    time: i64,
    message: &'static str,
    status_id: u8,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_detail: Option<&'a str>,
    metadata: Metadata<'a>,
    actor: ActorObject<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<User<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    privileges: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<Api<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources: Option<[Resource; 1]>,
    unmapped: Unmapped<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    version: &'static str,
    product: Product,
    uid: String,
    sequence: u64,
    event_code: &'static str,
    log_name: &'static str,
    log_provider: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_uid: Option<&'a str>,
    tenant_uid: String,
}

#[derive(Serialize)]
struct Product {
    name: &'static str,
    vendor_name: &'static str,
}

#[derive(Serialize)]
struct ActorObject<'a> {
    user: User<'a>,
}

#[derive(Serialize)]
struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    uid: String,
    /// 0 unknown, 3 system (the service itself), 99 other (a credential).
    type_id: u8,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

#[derive(Serialize)]
struct SessionObject {
    uid: String,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
}

#[derive(Serialize)]
struct Api<'a> {
    operation: &'static str,
    service: Named,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<ApiRequest<'a>>,
}

#[derive(Serialize)]
struct ApiRequest<'a> {
    uid: &'a str,
}

#[derive(Serialize)]
struct Endpoint<'a> {
    /// Whose endpoint it is: an address is personal data, and there only if it was revealed.
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
}

#[derive(Serialize)]
struct Resource {
    #[serde(rename = "type")]
    kind: &'static str,
    uid: String,
}

#[derive(Serialize)]
struct Unmapped<'a> {
    index: u64,
    leaf_hash: String,
    outcome: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_key: Option<String>,
    #[serde(skip_serializing_if = "Detail::is_empty")]
    detail: &'a Detail,
}

/// A class, and an activity of it.
#[derive(Clone, Copy)]
enum Class {
    Authentication(u8, &'static str),
    AuthorizeSession(u8, &'static str),
    ApiActivity(u8, &'static str),
}

const fn class(action: Action) -> Class {
    match action {
        Action::SessionCreated | Action::SessionAuthenticated => Class::Authentication(1, "Logon"),
        Action::SessionEnded => Class::Authentication(2, "Logoff"),
        Action::SessionRenewed => Class::Authentication(3, "Authentication Ticket"),
        Action::SessionTokenReused => Class::Authentication(99, "Rotated Token Used"),
        Action::KeyCreated => Class::AuthorizeSession(1, "Assign Privileges"),
        Action::KeyRevoked => Class::ApiActivity(4, "Delete"),
        Action::KeyRotated | Action::KeyRewrapped => Class::ApiActivity(3, "Update"),
        Action::RetentionPruned => Class::ApiActivity(4, "Delete"),
        Action::SessionUpdated => Class::ApiActivity(3, "Update"),
        Action::SessionRead | Action::AuditRead => Class::ApiActivity(2, "Read"),
        Action::RequestRefused => Class::ApiActivity(99, "Refuse"),
        Action::SubjectErased => Class::ApiActivity(4, "Delete"),
        Action::SubjectHeld => Class::ApiActivity(99, "Hold"),
        Action::SubjectReleased => Class::ApiActivity(99, "Release"),
        Action::ServiceStarted => Class::ApiActivity(99, "Start"),
        Action::ServiceStopped => Class::ApiActivity(99, "Stop"),
        Action::ViewQuarantined => Class::ApiActivity(99, "Quarantine"),
    }
}

const fn severity(action: Action, outcome: Outcome) -> (u8, &'static str) {
    match (action, outcome) {
        (Action::SessionTokenReused, _) => (4, "High"),
        (Action::ViewQuarantined, _) => (3, "Medium"),
        (_, Outcome::Refused) => (2, "Low"),
        (_, Outcome::Success) => (1, "Informational"),
    }
}

pub(crate) fn line(record: &Record<'_>) -> Result<String, serde_json::Error> {
    json(&event(record))
}

fn event<'a>(record: &Record<'a>) -> OcsfEvent<'a> {
    let leaf = record.leaf;
    let class = class(leaf.action);
    let (category_uid, category_name, class_uid, class_name, activity_id, activity_name) = match class {
        Class::Authentication(id, name) => (3, "Identity & Access Management", 3002, "Authentication", id, name),
        Class::AuthorizeSession(id, name) => (3, "Identity & Access Management", 3003, "Authorize Session", id, name),
        Class::ApiActivity(id, name) => (6, "Application Activity", 6003, "API Activity", id, name),
    };
    let (severity_id, severity) = severity(leaf.action, leaf.outcome);
    let (status_id, status) = match leaf.outcome {
        Outcome::Success => (1, "Success"),
        Outcome::Refused => (2, "Failure"),
    };
    let is_node = matches!(leaf.actor.role, session_model::Role::Node);
    let actor = ActorObject {
        user: User {
            name: None,
            uid: leaf.actor.id.clone(),
            type_id: if is_node { 3 } else { 99 },
            kind: Some(role(leaf.actor.role)),
        },
    };
    let user = match class {
        Class::Authentication(..) => Some(User {
            name: subject(record.opened),
            // The pseudonymous handle; a session without one is its own.
            uid: leaf
                .data_key
                .map(|key| key.to_string())
                .or(leaf.session_id.map(|id| id.to_string()))
                .unwrap_or_default(),
            type_id: 0,
            kind: None,
        }),
        Class::AuthorizeSession(..) => Some(User {
            name: None,
            uid: leaf.detail.get("key").cloned().unwrap_or_else(|| leaf.actor.id.clone()),
            type_id: 99,
            kind: Some("API key"),
        }),
        Class::ApiActivity(..) => None,
    };
    let is_api = matches!(class, Class::ApiActivity(..));
    let address = record.opened.and_then(|opened| opened.origin);
    let session = leaf.session_id.map(|id| id.to_string());
    OcsfEvent {
        activity_id,
        activity_name,
        category_uid,
        category_name,
        class_uid,
        class_name,
        type_uid: u32::from(class_uid) * 100 + u32::from(activity_id),
        severity_id,
        severity,
        time: leaf.time.as_micros().div_euclid(1_000),
        message: leaf.action.name(),
        status_id,
        status,
        status_detail: leaf.detail.get("reason").map(String::as_str),
        metadata: Metadata {
            version: "1.8.0",
            product: Product { name: "Counterfoil", vendor_name: "Counterfoil" },
            uid: leaf.entry_id.to_string(),
            sequence: record.index.0,
            event_code: leaf.action.name(),
            log_name: "audit",
            log_provider: &leaf.node,
            correlation_uid: leaf.trace_id.as_deref(),
            tenant_uid: leaf.realm.to_string(),
        },
        actor,
        user,
        session: session.clone().filter(|_| !is_api).map(|uid| SessionObject { uid }),
        service: matches!(class, Class::Authentication(..)).then_some(Named { name: "Counterfoil" }),
        privileges: matches!(class, Class::AuthorizeSession(..))
            .then(|| leaf.detail.get("roles").map(|roles| roles.split(',').collect()).unwrap_or_default()),
        api: is_api.then(|| Api {
            operation: leaf.action.name(),
            service: Named { name: "Counterfoil" },
            request: leaf.request_id.as_deref().or(leaf.trace_id.as_deref()).map(|uid| ApiRequest { uid }),
        }),
        src_endpoint: (is_api || address.is_some()).then_some(Endpoint { uid: &leaf.actor.id, ip: address }),
        resources: session.filter(|_| is_api).map(|uid| [Resource { kind: "session", uid }]),
        unmapped: Unmapped {
            index: record.index.0,
            leaf_hash: record.leaf_hash.to_string(),
            outcome: leaf.outcome.name(),
            protocol: protocol(leaf.protocol),
            version: leaf.version.map(|version| version.0),
            data_key: leaf.data_key.map(|key| key.to_string()),
            detail: &leaf.detail,
        },
    }
}
