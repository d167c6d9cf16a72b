//! What entries are found by.

use std::net::IpAddr;

use audit_log::Term;
use sealing::{Keyring, SealError, sha256};
use session_model::{Action, Digest, KeyId, Leaf, Outcome, RealmName, SessionId};

/// The kinds of term. Each has a digest space of its own: the word goes in first.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Realm,
    Session,
    Subject,
    ReadingOfSession,
    ReadingOfSubject,
    Actor,
    Action,
    Outcome,
}

impl Kind {
    const fn word(self) -> &'static [u8] {
        match self {
            Self::Realm => b"realm",
            Self::Session => b"session",
            Self::Subject => b"subject",
            Self::ReadingOfSession => b"reading of session",
            Self::ReadingOfSubject => b"reading of subject",
            Self::Actor => b"actor",
            Self::Action => b"action",
            Self::Outcome => b"outcome",
        }
    }
}

fn term(kind: Kind, realm: &RealmName, value: &[u8]) -> Term {
    shortened(&sha256(&[kind.word(), &[0], realm.as_str().as_bytes(), &[0], value].concat()))
}

/// 128 bits: two values of one realm never meet by chance.
fn shortened(digest: &Digest) -> Term {
    Term(digest.0.first_chunk().copied().unwrap_or_default())
}

pub(crate) fn realm(realm: &RealmName) -> Term {
    term(Kind::Realm, realm, &[])
}

pub(crate) fn session(realm: &RealmName, id: SessionId) -> Term {
    term(Kind::Session, realm, id.uuid().as_bytes())
}

pub(crate) fn subject(realm: &RealmName, key: KeyId) -> Term {
    term(Kind::Subject, realm, key.uuid().as_bytes())
}

/// Readings of the log that asked for a session are no part of what happened to it: they are found only where readings are asked for.
pub(crate) fn reading_of_session(realm: &RealmName, id: SessionId) -> Term {
    term(Kind::ReadingOfSession, realm, id.uuid().as_bytes())
}

/// The same, of a subject.
pub(crate) fn reading_of_subject(realm: &RealmName, key: KeyId) -> Term {
    term(Kind::ReadingOfSubject, realm, key.uuid().as_bytes())
}

pub(crate) fn actor(realm: &RealmName, id: &str) -> Term {
    term(Kind::Actor, realm, id.as_bytes())
}

pub(crate) fn action(realm: &RealmName, action: Action) -> Term {
    term(Kind::Action, realm, action.name().as_bytes())
}

pub(crate) fn outcome(realm: &RealmName, outcome: Outcome) -> Term {
    term(Kind::Outcome, realm, outcome.name().as_bytes())
}

pub(crate) fn address(keyring: &Keyring, realm: &RealmName, address: IpAddr) -> Result<Term, SealError> {
    keyring.address(realm, address).map(|digest| shortened(&digest))
}

/// What every entry stands under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common {
    pub(crate) realm: Term,
    pub(crate) actor: Term,
    pub(crate) action: Term,
    pub(crate) outcome: Term,
}

impl Common {
    pub(crate) fn of(leaf: &Leaf) -> Self {
        Self {
            realm: realm(&leaf.realm),
            actor: actor(&leaf.realm, &leaf.actor.id),
            action: action(&leaf.realm, leaf.action),
            outcome: outcome(&leaf.realm, leaf.outcome),
        }
    }
}

/// What else a leaf is found by, addresses aside. `former` is the data key that sealed the session before this entry.
///
/// Entries that make a version of a session are found by that session, and by its subject, through the log's own index; only
/// what that does not know stands here: entries about a session or a subject that change no session, and the entry that takes
/// a session from one subject to another.
pub(crate) fn of_few(leaf: &Leaf, former: Option<KeyId>) -> Vec<Term> {
    let realm_name = &leaf.realm;
    let mut terms = Vec::new();
    let named_session = leaf.detail.get("session").and_then(|id| id.parse().ok());
    let named_subject = leaf.detail.get("subject_key").and_then(|id| id.parse::<KeyId>().ok());
    if leaf.action == Action::AuditRead {
        terms.extend(named_session.map(|id| reading_of_session(realm_name, id)));
        terms.extend(named_subject.map(|key| reading_of_subject(realm_name, key)));
    } else if leaf.version.is_none() {
        terms.extend(leaf.session_id.map(|id| session(realm_name, id)));
        terms.extend(leaf.data_key.into_iter().chain(named_subject).map(|key| subject(realm_name, key)));
    }
    terms.extend(former.filter(|former| leaf.data_key != Some(*former)).map(|former| subject(realm_name, former)));
    terms
}
