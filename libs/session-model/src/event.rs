//! What happened to a session, and the one function that makes state of it.

use serde::{Deserialize, Serialize};

use crate::{
    Attributes, Authentication, Client, Ended, Head, KeyId, Kind, Limits, MergePatch, PreviousToken, RealmName,
    Seconds, Session, SessionId, State, Timestamp, TokenDigest, Version,
};

/// What happened. Lives, sealed, beside its leaf; the words are for ever (golden bytes in `tests/golden.rs`).
///
/// Tagged from outside (`{"updated": {…}}`): an inner tag would make serde take everything apart before it knows what it
/// reads, and attributes must stay the text they are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A session began.
    Created(Box<Beginning>),
    /// Its attributes changed.
    Updated {
        /// How.
        patch: MergePatch,
    },
    /// Its subject authenticated; the token was rotated and the old one refused from then on.
    Authenticated {
        /// Who.
        subject: Box<str>,
        /// How.
        methods: Vec<String>,
        /// With what assurance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        level: Option<String>,
        /// The new token.
        token: TokenDigest,
        /// How long a use of the old token passes for a request already under way.
        overlap: Seconds,
    },
    /// Its token was rotated.
    Renewed {
        /// The new token.
        token: TokenDigest,
        /// How long the old token is still honoured.
        overlap: Seconds,
    },
    /// A rotated token was used after its overlap.
    TokenReused,
    /// It ended.
    Ended(Ended),
}

/// Everything a session begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beginning {
    /// Who it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Box<str>>,
    /// What kind of client it serves.
    pub kind: Kind,
    /// What the application keeps in it.
    pub attributes: Attributes,
    /// Authentication methods, if it begins authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<(Vec<String>, Option<String>)>,
    /// Its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Client>,
    /// How long it may stay unused.
    pub idle_timeout: Seconds,
    /// How old it may become.
    pub absolute_timeout: Seconds,
    /// Digest of its token.
    pub token: TokenDigest,
}

/// What the log gave an event when it recorded it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Which session.
    pub session: SessionId,
    /// Of which realm.
    pub realm: RealmName,
    /// Which version of it the event made.
    pub version: Version,
    /// The time in the leaf.
    pub time: Timestamp,
    /// Its place in the log.
    pub head: Head,
    /// The key that seals it.
    pub data_key: KeyId,
}

/// Makes the state after an event. Total: what the log has recorded cannot be refused any more, so an event that
/// [`crate::decide`] would not have let through (none can, unless the log was tampered with) changes nothing but the
/// version. `None` comes out only where an event other than `Created` finds no session.
pub fn apply(session: Option<Session>, event: &Event, recorded: &Recorded) -> Option<Session> {
    let mut session = match (session, event) {
        (None, Event::Created(beginning)) => return Some(begin(beginning, recorded)),
        (None, _) => return None,
        (Some(session), _) => session,
    };
    session.version = recorded.version;
    session.head = recorded.head;
    if matches!(session.state, State::Ended(_)) {
        return Some(session);
    }
    session.data_key = recorded.data_key;
    match event {
        Event::Created(_) => {}
        Event::Updated { patch } => {
            let unbounded = Limits { bytes: usize::MAX, count: usize::MAX, depth: usize::MAX, key_bytes: usize::MAX };
            if let Ok(merged) = session.attributes.merged(patch, &unbounded) {
                session.attributes = merged;
            }
            session.last_seen_at = recorded.time;
        }
        Event::Authenticated { subject, methods, level, token, overlap } => {
            session.subject = Some(subject.clone());
            session.authentication =
                Some(Authentication { methods: methods.clone(), level: level.clone(), at: recorded.time });
            rotate(&mut session, *token, *overlap, false, recorded.time);
        }
        Event::Renewed { token, overlap } => rotate(&mut session, *token, *overlap, true, recorded.time),
        Event::TokenReused => session.reuse_recorded = true,
        Event::Ended(ended) => session.state = State::Ended(ended.clone()),
    }
    Some(session)
}

fn begin(beginning: &Beginning, recorded: &Recorded) -> Session {
    let authentication = beginning.authentication.as_ref().map(|(methods, level)| Authentication {
        methods: methods.clone(),
        level: level.clone(),
        at: recorded.time,
    });
    Session {
        id: recorded.session,
        realm: recorded.realm.clone(),
        version: recorded.version,
        head: recorded.head,
        state: State::Active,
        subject: beginning.subject.clone(),
        data_key: recorded.data_key,
        kind: beginning.kind,
        attributes: beginning.attributes.clone(),
        authentication,
        client: beginning.client.clone(),
        created_at: recorded.time,
        last_seen_at: recorded.time,
        idle_timeout: beginning.idle_timeout,
        expires_at: recorded.time.plus(beginning.absolute_timeout),
        token: beginning.token,
        token_issued_at: recorded.time,
        previous: None,
        retired: Vec::new(),
        reuse_recorded: false,
    }
}

fn rotate(session: &mut Session, token: TokenDigest, overlap: Seconds, honoured: bool, now: Timestamp) {
    if let Some(older) = session.previous.take() {
        if session.retired.len() == Session::RETIRED {
            session.retired.remove(0);
        }
        session.retired.push(older.digest);
    }
    session.previous = Some(PreviousToken { digest: session.token, until: now.plus(overlap), honoured });
    session.token = token;
    session.token_issued_at = now;
    session.last_seen_at = now;
    session.reuse_recorded = false;
}
