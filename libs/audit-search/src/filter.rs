//! What to look for.

use std::net::IpAddr;

use session_model::{Action, KeyId, Outcome, RealmName, SessionId, Timestamp};

/// Which entries to find: those of the realm that fit everything that is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFilter {
    /// Of this realm: nothing else exists for who asks.
    pub realm: RealmName,
    /// Not before this time.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
    /// Of this session; with [`Action::AuditRead`], readings that asked for it.
    pub session: Option<SessionId>,
    /// Of the sessions that are or were the subject's with this data key, or about the subject; with [`Action::AuditRead`], readings that
    /// asked for it.
    pub subject: Option<KeyId>,
    /// By this actor: id of the credential, or name of the node.
    pub actor: Option<String>,
    /// That record this.
    pub action: Option<Action>,
    /// That ended so.
    pub outcome: Option<Outcome>,
    /// That were asked for from this address, or begin a session whose client is there.
    pub address: Option<IpAddr>,
}

impl EntryFilter {
    /// Every entry of a realm.
    pub const fn all(realm: RealmName) -> Self {
        Self {
            realm,
            from: None,
            to: None,
            session: None,
            subject: None,
            actor: None,
            action: None,
            outcome: None,
            address: None,
        }
    }
}
