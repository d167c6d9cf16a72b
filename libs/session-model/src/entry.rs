//! The entry of the log: a leaf, kept for ever and hashed as its exact bytes, and the sealed part beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Digest, EntryId, Event, KeyId, LeafHash, LeafIndex, RealmName, SessionId, Timestamp, Version};

/// Makes an enum whose variants are words of the leaf: for ever as they stand here.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word in the leaf.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The one with this word.
            pub fn named(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name() == word)
            }
        }
    };
}

words! {
    /// What an entry records.
    Action {
        /// A session began.
        SessionCreated = "session.created",
        /// Its attributes changed.
        SessionUpdated = "session.updated",
        /// A subject was bound to it.
        SessionAuthenticated = "session.authenticated",
        /// Its token was rotated.
        SessionRenewed = "session.renewed",
        /// A rotated token was used too late.
        SessionTokenReused = "session.token_reused",
        /// It ended.
        SessionEnded = "session.ended",
        /// It was read, in a realm that audits reads.
        SessionRead = "session.read",
        /// The log was read.
        AuditRead = "audit.read",
        /// Requests were refused; one entry for all of a kind within some seconds.
        RequestRefused = "request.refused",
        /// A subject's data key was destroyed.
        SubjectErased = "subject.erased",
        /// A subject was put under legal hold.
        SubjectHeld = "subject.held",
        /// A legal hold was lifted.
        SubjectReleased = "subject.released",
        /// A credential was added.
        KeyCreated = "key.created",
        /// A credential was revoked.
        KeyRevoked = "key.revoked",
        /// Another key of several is the one in use from now on.
        KeyRotated = "key.rotated",
        /// Data keys are wrapped anew, by the wrapping key in use.
        KeyRewrapped = "key.rewrapped",
        /// Sealed parts whose time was over were archived and dropped.
        RetentionPruned = "retention.pruned",
        /// The service began on a node.
        ServiceStarted = "service.started",
        /// The service stopped on a node.
        ServiceStopped = "service.stopped",
        /// A view held something that was none of its own.
        ViewQuarantined = "view.quarantined",
    }
}

impl Action {
    /// The action that records an event.
    pub const fn of(event: &Event) -> Self {
        match event {
            Event::Created(_) => Self::SessionCreated,
            Event::Updated { .. } => Self::SessionUpdated,
            Event::Authenticated { .. } => Self::SessionAuthenticated,
            Event::Renewed { .. } => Self::SessionRenewed,
            Event::TokenReused => Self::SessionTokenReused,
            Event::Ended(_) => Self::SessionEnded,
        }
    }
}

words! {
    /// Whether what was asked for happened.
    Outcome {
        /// It did.
        Success = "success",
        /// It was refused.
        Refused = "refused",
    }
}

/// What an actor may do. A credential has one or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Keeps sessions.
    Application,
    /// Reads the log.
    Auditor,
    /// Runs the service: ends sessions in bulk, manages keys; sees no personal data.
    Operator,
    /// The service itself.
    Node,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// Id of the credential; name of the node; or `subject:` and the handle of a subject that asked itself.
    pub id: String,
    /// In which role.
    pub role: Role,
}

/// Through which mouth of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// REST.
    Rest,
    /// SOAP.
    Soap,
    /// The command line.
    Cli,
    /// The service itself.
    Internal,
}

/// The entry of the same session before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousLeaf {
    /// Hash of its leaf.
    pub hash: LeafHash,
    /// Its place.
    pub index: LeafIndex,
}

/// Further facts in clear: never personal data. Keys and values are ASCII words chosen by the service.
pub type Detail = BTreeMap<String, String>;

/// The leaf of an entry. Encodes to canonical JSON (RFC 8785): fields stand in the order of their names, and every value is
/// a string, a small whole number or an object of such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// What happened.
    pub action: Action,
    /// Who asked.
    pub actor: Actor,
    /// `HMAC-SHA-256(k_c, sealed plaintext)`, if there is a sealed part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<Digest>,
    /// Which data key seals the sealed part: the pseudonymous handle of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<KeyId>,
    /// Further facts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: Detail,
    /// Id of the entry, from before it was appended.
    pub entry_id: EntryId,
    /// Version of this format: 1.
    pub format: Format,
    /// Which node appended it.
    pub node: String,
    /// Whether what was asked for happened.
    pub outcome: Outcome,
    /// The entry of the same session before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousLeaf>,
    /// Through which mouth.
    pub protocol: Protocol,
    /// In which realm.
    pub realm: RealmName,
    /// Id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Which session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// When: never earlier than the entry before it in the log.
    pub time: Timestamp,
    /// W3C trace id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Which version of the session this entry made; absent where it made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// Version of the leaf format. Every version ever written stays readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Format {
    /// The first.
    V1,
}

impl TryFrom<u8> for Format {
    type Error = &'static str;
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::V1),
            _ => Err("a leaf format this program does not know"),
        }
    }
}

impl From<Format> for u8 {
    fn from(format: Format) -> Self {
        match format {
            Format::V1 => 1,
        }
    }
}

/// A leaf that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// More than fit a C2SP tlog-tiles entry bundle record.
    #[error("the leaf has {0} bytes, more than 65,535")]
    TooLong(usize),
    /// The encoder failed.
    #[error("the leaf cannot be encoded")]
    Json(#[source] serde_json::Error),
}

/// Bytes that are not a leaf.
#[derive(Debug, thiserror::Error)]
#[error("not a leaf of a known format")]
pub struct LeafError(#[source] serde_json::Error);

impl Leaf {
    /// Bytes a leaf may have: what the 16-bit length of a C2SP tlog-tiles entry bundle can say.
    pub const MAX: usize = 65_535;

    /// The exact bytes the log keeps.
    ///
    /// # Errors
    /// [`EncodeError`] if there are too many.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::with_capacity(640);
        serde_json::to_writer(&mut bytes, self).map_err(EncodeError::Json)?;
        if bytes.len() > Self::MAX { Err(EncodeError::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads a leaf of any format ever written.
    ///
    /// # Errors
    /// [`LeafError`] if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, LeafError> {
        serde_json::from_slice(bytes).map_err(LeafError)
    }
}

/// The plaintext of a sealed part: personal data, encrypted beside the leaf and committed to in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SealedPart {
    /// What happened to the session, whole: the log alone rebuilds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    /// Address the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<IpAddr>,
    /// Further facts that may be personal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

impl SealedPart {
    /// The plaintext's bytes.
    ///
    /// # Errors
    /// [`EncodeError`] if the encoder fails.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        serde_json::to_vec(self).map_err(EncodeError::Json)
    }

    /// Reads a plaintext.
    ///
    /// # Errors
    /// [`LeafError`] if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, LeafError> {
        serde_json::from_slice(bytes).map_err(LeafError)
    }

    /// The addresses it names: where the request came from, and the client that began the session. IPv4 in IPv6 counts as IPv4.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let client = match &self.event {
            Some(Event::Created(beginning)) => beginning.client.as_ref().and_then(|client| client.address),
            Some(
                Event::Updated { .. }
                | Event::Authenticated { .. }
                | Event::Renewed { .. }
                | Event::TokenReused
                | Event::Ended(_),
            )
            | None => None,
        };
        let mut addresses: Vec<IpAddr> =
            self.origin.into_iter().chain(client).map(|address| address.to_canonical()).collect();
        addresses.dedup();
        addresses
    }
}
