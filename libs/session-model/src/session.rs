//! The state of a session: the fold of its entries.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Attributes, KeyId, LeafHash, LeafIndex, RealmName, Seconds, SessionId, Timestamp, TokenDigest, TreeSize, Version,
};

/// What kind of client a session serves. Policies and queries tell kinds apart; behaviour does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each kind is the word itself")]
pub enum Kind {
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

impl Kind {
    /// Every kind, in the order of the interface contract.
    pub const ALL: [Self; 9] =
        [Self::Web, Self::Api, Self::Soap, Self::Login, Self::Sip, Self::Tcp, Self::Sms, Self::Desktop, Self::Browser];

    /// The word used in every interface.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Api => "api",
            Self::Soap => "soap",
            Self::Login => "login",
            Self::Sip => "sip",
            Self::Tcp => "tcp",
            Self::Sms => "sms",
            Self::Desktop => "desktop",
            Self::Browser => "browser",
        }
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// Unused for the idle timeout.
    ExpiredIdle,
    /// Older than the absolute timeout.
    ExpiredAbsolute,
    /// Made room for a newer session of its subject.
    Evicted,
    /// A rotated token was used after its overlap, and the policy ends the session for it.
    TokenReuse,
    /// Someone asked, in their own word: `logout` unless they said otherwise.
    Requested(Box<str>),
}

impl EndReason {
    /// Bytes a requested reason may have.
    pub const MAX: usize = 64;

    /// The word shown in every interface and kept in the leaf.
    pub fn name(&self) -> &str {
        match self {
            Self::ExpiredIdle => "expired_idle",
            Self::ExpiredAbsolute => "expired_absolute",
            Self::Evicted => "evicted",
            Self::TokenReuse => "token_reuse",
            Self::Requested(word) => word,
        }
    }

    /// Reads a word somebody gives as their reason: 1 to 64 of `a-z`, `0-9` and `_`, so that it can stand in a leaf
    /// without ever being personal data. The words of the service itself are not theirs to use.
    pub fn requested(word: &str) -> Option<Self> {
        let plain = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let reason = Self::from_name(word);
        (plain && (1..=Self::MAX).contains(&word.len()) && matches!(reason, Self::Requested(_))).then_some(reason)
    }

    fn from_name(word: &str) -> Self {
        match word {
            "expired_idle" => Self::ExpiredIdle,
            "expired_absolute" => Self::ExpiredAbsolute,
            "evicted" => Self::Evicted,
            "token_reuse" => Self::TokenReuse,
            other => Self::Requested(other.into()),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for EndReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for EndReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&std::borrow::Cow::<'de, str>::deserialize(deserializer)?))
    }
}

/// How the subject proved who they are, as the application says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authentication {
    /// For instance RFC 8176 method references: `pwd`, `otp`, `hwk`.
    pub methods: Vec<String>,
    /// Assurance level, for instance `aal2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Where the session's client is, as the application says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Client {
    /// IP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// `User-Agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client(…)")
    }
}

/// The token before the last rotation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreviousToken {
    /// Its digest.
    pub digest: TokenDigest,
    /// Until when its use is taken for a request that was already under way.
    pub until: Timestamp,
    /// Whether it still validates until then: yes after a renewal; no after authentication, where the old token may be
    /// an attacker's (session fixation, OWASP ASVS 5.0 7.2.4).
    pub honoured: bool,
}

/// Where in the log the newest entry of a session stands: its receipt, short of the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Position of the entry.
    pub index: LeafIndex,
    /// Hash of its leaf.
    pub hash: LeafHash,
    /// Size of the tree whose checkpoint was stored in the transaction that stored the entry.
    pub tree_size: TreeSize,
}

/// Whether a session may still be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It may, within its deadlines.
    Active,
    /// It may not, ever again.
    Ended(Ended),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// When: for an expiry the deadline that passed, not the later moment that it was noticed.
    pub at: Timestamp,
}

/// A session: the fold of its entries, through [`crate::apply`].
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its realm.
    pub realm: RealmName,
    /// How many entries it has.
    pub version: Version,
    /// Its newest entry.
    pub head: Head,
    /// Whether it may be used.
    #[serde(flatten)]
    pub state: State,
    /// Who it belongs to, once authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Box<str>>,
    /// The data key that seals its personal data.
    pub data_key: KeyId,
    /// What kind of client it serves.
    pub kind: Kind,
    /// What the application keeps in it.
    pub attributes: Attributes,
    /// How its subject was authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// When it began.
    pub created_at: Timestamp,
    /// The last use that was marked; a later one within a tenth of the idle timeout may be unmarked.
    pub last_seen_at: Timestamp,
    /// How long it may stay unused.
    pub idle_timeout: Seconds,
    /// When it expires, used or not.
    pub expires_at: Timestamp,
    /// Digest of its token.
    pub token: TokenDigest,
    /// When that token was issued.
    pub token_issued_at: Timestamp,
    /// The token before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousToken>,
    /// Older tokens, newest last, so that a late use is known for what it is. At most [`Session::RETIRED`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<TokenDigest>,
    /// Whether a late use of a rotated token was recorded since the last rotation: once is enough.
    #[serde(default)]
    pub reuse_recorded: bool,
}

impl Session {
    /// How many older tokens are remembered: a session renewed every 15 minutes for four hours.
    pub const RETIRED: usize = 16;

    /// When it expires if it is not used again.
    pub fn idle_expires_at(&self) -> Timestamp {
        self.last_seen_at.plus(self.idle_timeout).min(self.expires_at)
    }

    /// Whether a use at `now` is far enough from the last mark to be worth one: a tenth of the idle timeout.
    pub fn use_is_worth_a_mark(&self, now: Timestamp) -> bool {
        now.micros_since(self.last_seen_at) >= self.idle_timeout.as_micros() / 10
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<&Ended> {
        match &self.state {
            State::Active => None,
            State::Ended(ended) => Some(ended),
        }
    }

    /// What a view keeps once it has ended.
    pub fn tombstone(&self) -> Option<Tombstone> {
        self.ended().map(|ended| Tombstone {
            id: self.id,
            realm: self.realm.clone(),
            version: self.version,
            head: self.head,
            ended: ended.clone(),
            token: self.token,
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} v{} {:?})", self.id, self.version, self.state)
    }
}

/// What is left of an ended session in a view, so that it cannot come back: no personal data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tombstone {
    /// The session's id.
    pub id: SessionId,
    /// Its realm.
    pub realm: RealmName,
    /// Its last version.
    pub version: Version,
    /// The entry that ended it.
    pub head: Head,
    /// How it ended.
    pub ended: Ended,
    /// Digest of its last token, so that the holder alone is told that it ended.
    pub token: TokenDigest,
}
