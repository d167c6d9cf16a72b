//! What is asked of the service, and who asks.

use std::net::IpAddr;

use audit_log::CredentialChange;
use session_model::{
    Action, Actor, Attributes, Client, Detail, Digest, Kind, LeafIndex, Outcome, Protocol, RealmName, Seconds,
    SessionId,
};

/// Who asks, on whose behalf, and what they have seen.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Realm of the credential: nothing outside it exists for the caller.
    pub realm: RealmName,
    /// Who.
    pub actor: Actor,
    /// Through which mouth.
    pub protocol: Protocol,
    /// From which address.
    pub origin: Option<IpAddr>,
    /// Id of the request.
    pub request_id: Option<String>,
    /// W3C trace id.
    pub trace_id: Option<String>,
    /// The leaf index that must be visible to the answer.
    pub min_index: Option<LeafIndex>,
    /// Facts about the request that its entries carry in clear: never personal data.
    pub detail: Detail,
}

/// What a session begins with, as asked for.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Who it belongs to, if known.
    pub subject: Option<Box<str>>,
    /// What kind of client it serves.
    pub kind: Kind,
    /// What the application keeps in it: checked against the realm's limits.
    pub attributes: Attributes,
    /// How the subject authenticated: methods and level.
    pub authentication: Option<(Vec<String>, Option<String>)>,
    /// Its client.
    pub client: Option<Client>,
    /// A shorter idle timeout than the policy's.
    pub idle_timeout: Option<Seconds>,
    /// A shorter absolute timeout than the policy's.
    pub absolute_timeout: Option<Seconds>,
}

/// Who asks for a session.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asking {
    /// Whoever has the credential.
    Caller,
    /// Its subject.
    Subject,
}

/// An idempotency key, and the request it stands for.
#[derive(Debug, Clone, Copy)]
pub struct Idempotency {
    /// SHA-256 over credential and key.
    pub key: Digest,
    /// SHA-256 over method, path and body.
    pub request: Digest,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Of this subject.
    pub subject: Option<Box<str>>,
    /// Active (`true`) or ended (`false`) ones only.
    pub active: Option<bool>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Older than this one: where the last page ended.
    pub before: Option<SessionId>,
    /// How many at most.
    pub limit: usize,
}

/// Something to record that is no change of a session.
#[derive(Debug, Clone)]
pub struct Record {
    /// What happened.
    pub action: Action,
    /// Whether it did.
    pub outcome: Outcome,
    /// Facts in clear: never personal data.
    pub detail: Detail,
    /// Facts to seal.
    pub facts: std::collections::BTreeMap<String, String>,
    /// A change to the credentials that it records.
    pub credential: Option<CredentialChange>,
}

/// How an entry names a subject that is its actor: by its handle, the id of its data key.
pub fn subject_actor(handle: &str) -> String {
    format!("subject:{handle}")
}
