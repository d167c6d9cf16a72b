//! What clients read.

use std::net::IpAddr;

use audit_log::Place;
use serde::{Deserialize, Serialize, Serializer};
use session_model::{Kind, Session, Timestamp};
use session_service::Happened;
use utoipa::ToSchema;
use uuid::Uuid;

/// A session, as it is at the moment of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionDocument<'a> {
    /// Not secret: the token is.
    pub id: Uuid,
    /// Realm it belongs to.
    pub realm: &'a str,
    /// What kind of client it serves.
    #[schema(value_type = KindWord)]
    pub kind: Kind,
    /// Whether it may be used.
    pub state: StateWord,
    /// How often it was changed, each time by an entry of the log where its realm keeps one; its `ETag`.
    #[schema(minimum = 1)]
    pub version: u64,
    /// Who it belongs to; `null` until authenticated.
    pub subject: Option<&'a str>,
    /// How its subject authenticated.
    pub authentication: Option<AuthenticationDocument<'a>>,
    /// Where its client is.
    pub client: Option<ClientDocument<'a>>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The last use that was marked.
    #[schema(value_type = String, format = DateTime)]
    pub last_seen_at: Timestamp,
    /// When it expires if it is not used again.
    #[schema(value_type = String, format = DateTime)]
    pub idle_expires_at: Timestamp,
    /// When it expires, used or not.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When its token should be renewed.
    #[schema(value_type = String, format = DateTime)]
    pub renew_at: Timestamp,
    /// When it ended; only then there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    pub ended_at: Option<Timestamp>,
    /// Why it ended; only then there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub end_reason: Option<&'a str>,
    /// The bearer token: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub token: Option<String>,
    /// Where the change stands in the log: only in answers to changes, and not in a realm of profile `transient`, which keeps no log.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub receipt: Option<ReceiptDocument<'a>>,
    /// What the application keeps in it. Last, because its text goes in as it is kept: see [`SessionDocument::write`].
    #[schema(value_type = Object)]
    attributes: Verbatim<'a>,
}

/// Stands for text that is JSON already; written as `null` and then put in its place.
#[derive(Debug)]
struct Verbatim<'a>(&'a str);

impl Serialize for Verbatim<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// Whether a session may be used.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub enum StateWord {
    Active,
    Ended,
}

/// The kinds of client.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub enum KindWord {
    Web,
    Api,
    Soap,
    Login,
    Sip,
    Tcp,
    Sms,
    Desktop,
    Browser,
}

/// How a subject authenticated.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuthenticationDocument<'a> {
    /// For instance RFC 8176 method references.
    pub methods: &'a [String],
    /// Assurance level.
    pub level: Option<&'a str>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

/// Where a client is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClientDocument<'a> {
    /// IP address.
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// `User-Agent`.
    pub user_agent: Option<&'a str>,
}

/// Where a change stands in the log: the receipt, short of the proof (`GET /v1/receipts/{index}`).
#[derive(Debug, Serialize, ToSchema)]
pub struct ReceiptDocument<'a> {
    /// Which log.
    pub origin: &'a str,
    /// The entry's leaf index.
    pub index: u64,
    /// Hash of its leaf, hexadecimal.
    pub leaf_hash: String,
    /// Size of the tree whose signed checkpoint was stored in the same transaction.
    pub tree_size: u64,
}

impl<'a> ReceiptDocument<'a> {
    pub(crate) fn new(origin: &'a str, place: &Place) -> Self {
        Self { origin, index: place.index.0, leaf_hash: place.hash.to_string(), tree_size: place.tree_size.0 }
    }
}

/// What a token is worth.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what sessions::validate writes by hand, for speed")]
pub struct ValidationDocument<'a> {
    /// Whether it opens a session.
    active: bool,
    /// The session, if it does.
    #[schema(nullable = false)]
    session: Option<SessionDocument<'a>>,
    /// Why not, if it does not.
    #[schema(nullable = false)]
    reason: Option<ReasonWord>,
}

/// Why a token opens nothing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, missing_docs, reason = "the words themselves, for the document")]
pub enum ReasonWord {
    Unknown,
    ExpiredIdle,
    ExpiredAbsolute,
    Ended,
    Rotated,
}

/// A page of sessions, newest first.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "describes what sessions::list writes by hand")]
pub struct PageDocument<'a> {
    /// The sessions.
    items: Vec<SessionDocument<'a>>,
    /// Where the next page begins; absent on the last.
    #[schema(nullable = false)]
    next_cursor: Option<String>,
}

/// How many sessions a request ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndedDocument<'a> {
    /// How many.
    pub ended: usize,
    /// One receipt each; none in a realm of profile `transient`, which keeps no log.
    pub receipts: Vec<ReceiptDocument<'a>>,
}

impl<'a> SessionDocument<'a> {
    /// A session as clients see it.
    pub fn new(session: &'a Session, renewal_interval: session_model::Seconds) -> Self {
        let ended = session.ended();
        Self {
            id: session.id.uuid(),
            realm: session.realm.as_str(),
            kind: session.kind,
            state: if ended.is_some() { StateWord::Ended } else { StateWord::Active },
            version: session.version.0,
            subject: session.subject.as_deref(),
            authentication: session.authentication.as_ref().map(|authentication| AuthenticationDocument {
                methods: &authentication.methods,
                level: authentication.level.as_deref(),
                at: authentication.at,
            }),
            client: session
                .client
                .as_ref()
                .map(|client| ClientDocument { address: client.address, user_agent: client.user_agent.as_deref() }),
            created_at: session.created_at,
            last_seen_at: session.last_seen_at,
            idle_expires_at: session.idle_expires_at(),
            expires_at: session.expires_at,
            renew_at: session.token_issued_at.plus(renewal_interval).min(session.expires_at),
            ended_at: ended.map(|ended| ended.at),
            end_reason: ended.map(|ended| ended.reason.name()),
            token: None,
            receipt: None,
            attributes: Verbatim(session.attributes.as_json()),
        }
    }

    /// With what only the answer to a change has.
    #[must_use]
    pub fn changed(mut self, origin: &'a str, changed: &Happened) -> Self {
        self.token = changed.token.as_ref().map(session_model::Token::expose);
        self.receipt = changed.place.as_ref().map(|place| ReceiptDocument::new(origin, place));
        self
    }

    /// Writes the document. The attributes are compact JSON already and have been checked; parsing them only to write them
    /// again would be most of the cost of validating a token.
    ///
    /// # Errors
    /// If a text cannot be written, which cannot be.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        const HELD_OPEN: &[u8] = b"null}";
        serde_json::to_writer(&mut *out, self)?;
        out.truncate(out.len().saturating_sub(HELD_OPEN.len()));
        out.extend_from_slice(self.attributes.0.as_bytes());
        out.push(b'}');
        Ok(())
    }
}
