//! What may be asked of a session, and whether it may happen.

use crate::event::Beginning;
use crate::{
    AttributeError, Attributes, Client, EndReason, Ended, Event, Kind, MergePatch, Policy, Seconds, Session, State,
    Timestamp, TokenDigest, Version,
};

/// What somebody asks for.
#[derive(Debug, Clone)]
pub enum Command {
    /// Begin a session.
    Create(Box<Created>),
    /// Change attributes.
    Update {
        /// How.
        patch: MergePatch,
        /// The version it must still have, if the caller cares.
        expected: Option<Version>,
    },
    /// Bind an authenticated subject, and rotate the token.
    Authenticate {
        /// Who.
        subject: Box<str>,
        /// How they authenticated.
        methods: Vec<String>,
        /// With what assurance.
        level: Option<String>,
        /// Digest of the new token.
        token: TokenDigest,
    },
    /// Rotate the token.
    Renew {
        /// Digest of the new token.
        token: TokenDigest,
    },
    /// Note that a rotated token was used after its overlap.
    ReportReuse,
    /// End the session.
    End {
        /// Why.
        reason: EndReason,
    },
    /// End the session if a deadline has passed.
    Expire,
}

/// What a session is asked to begin with.
#[derive(Debug, Clone)]
pub struct Created {
    /// Who it belongs to, if known.
    pub subject: Option<Box<str>>,
    /// What kind of client it serves.
    pub kind: Kind,
    /// What the application keeps in it.
    pub attributes: Attributes,
    /// How the subject authenticated: methods and level.
    pub authentication: Option<(Vec<String>, Option<String>)>,
    /// Its client.
    pub client: Option<Client>,
    /// A shorter idle timeout than the policy's.
    pub idle_timeout: Option<Seconds>,
    /// A shorter absolute timeout than the policy's.
    pub absolute_timeout: Option<Seconds>,
    /// Digest of its token.
    pub token: TokenDigest,
}

/// Why a command may not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such session.
    #[error("there is no such session")]
    NotFound,
    /// The session has ended.
    #[error("the session has ended")]
    Ended(Ended),
    /// The session's version is another than the caller expected.
    #[error("the session is at version {current}")]
    StaleVersion {
        /// Its version now.
        current: Version,
    },
    /// The attributes would break a limit.
    #[error("the attributes are refused: {0}")]
    Attributes(#[from] AttributeError),
    /// A longer timeout than the policy's, or none.
    #[error("{field} must be from 1 to {limit}")]
    Timeout {
        /// Which.
        field: &'static str,
        /// The policy's.
        limit: Seconds,
    },
    /// Nothing to do: the session is within its deadlines, or the reuse is already recorded.
    #[error("nothing to do")]
    Nothing,
}

/// The deadline that has passed by `now`, if one has: enforced at the moment of use, whatever a view says
/// (OWASP ASVS 5.0 7.3.1 and 7.3.2). The earlier of two passed deadlines is the one that ended the session.
pub fn expiry(session: &Session, now: Timestamp) -> Option<Ended> {
    if session.idle_expires_at() > now {
        return None;
    }
    let at = session.idle_expires_at();
    let reason = if at < session.expires_at { EndReason::ExpiredIdle } else { EndReason::ExpiredAbsolute };
    Some(Ended { reason, at })
}

/// Decides whether a command may happen to a session at `now`, and what then has happened. Pure.
///
/// # Errors
/// A [`Rejection`]; nothing has happened.
pub fn decide(
    session: Option<&Session>,
    command: Command,
    now: Timestamp,
    policy: &Policy,
) -> Result<Event, Rejection> {
    let session = match (session, command) {
        (_, Command::Create(created)) => return create(*created, policy),
        (None, _) => return Err(Rejection::NotFound),
        (Some(session), command) => (session, command),
    };
    let (session, command) = session;
    if let State::Ended(ended) = &session.state {
        return Err(Rejection::Ended(ended.clone()));
    }
    match (expiry(session, now), &command) {
        (Some(ended), Command::Expire) => return Ok(Event::Ended(ended)),
        (Some(ended), _) => return Err(Rejection::Ended(ended)),
        (None, _) => {}
    }
    match command {
        Command::Create(created) => create(*created, policy),
        Command::Update { patch, expected } => {
            if let Some(expected) = expected
                && expected != session.version
            {
                return Err(Rejection::StaleVersion { current: session.version });
            }
            session.attributes.merged(&patch, &policy.limits)?;
            Ok(Event::Updated { patch })
        }
        Command::Authenticate { subject, methods, level, token } => {
            Ok(Event::Authenticated { subject, methods, level, token, overlap: policy.renewal_overlap })
        }
        Command::Renew { token } => Ok(Event::Renewed { token, overlap: policy.renewal_overlap }),
        Command::ReportReuse => match policy.reused_token {
            crate::ReusedToken::End => Ok(Event::Ended(Ended { reason: EndReason::TokenReuse, at: now })),
            crate::ReusedToken::Record if session.reuse_recorded => Err(Rejection::Nothing),
            crate::ReusedToken::Record => Ok(Event::TokenReused),
        },
        Command::End { reason } => Ok(Event::Ended(Ended { reason, at: now })),
        Command::Expire => Err(Rejection::Nothing),
    }
}

fn create(created: Created, policy: &Policy) -> Result<Event, Rejection> {
    let within = |field, asked: Option<Seconds>, limit: Seconds| match asked {
        Some(asked) if asked > limit || asked == Seconds(0) => Err(Rejection::Timeout { field, limit }),
        Some(asked) => Ok(asked),
        None => Ok(limit),
    };
    Ok(Event::Created(Box::new(Beginning {
        idle_timeout: within("idle_timeout_s", created.idle_timeout, policy.idle_timeout)?,
        absolute_timeout: within("absolute_timeout_s", created.absolute_timeout, policy.absolute_timeout)?,
        subject: created.subject,
        kind: created.kind,
        attributes: created.attributes,
        authentication: created.authentication,
        client: created.client,
        token: created.token,
    })))
}
