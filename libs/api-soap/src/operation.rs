//! The operations, by the name of the body's child.

use access::Permission;

/// What may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its own name; the WSDL documents them")]
pub enum Operation {
    CreateSession,
    ValidateSession,
    GetSession,
    TouchSession,
    UpdateSession,
    AuthenticateSession,
    RenewSession,
    TerminateSession,
    TerminateSubjectSessions,
    ListSessions,
    QueryAudit,
    GetReceipt,
}

impl Operation {
    /// Every operation, in the order of the interface contract.
    pub const ALL: [Self; 12] = [
        Self::CreateSession,
        Self::ValidateSession,
        Self::GetSession,
        Self::TouchSession,
        Self::UpdateSession,
        Self::AuthenticateSession,
        Self::RenewSession,
        Self::TerminateSession,
        Self::TerminateSubjectSessions,
        Self::ListSessions,
        Self::QueryAudit,
        Self::GetReceipt,
    ];

    /// The local name of its request element.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CreateSession => "CreateSession",
            Self::ValidateSession => "ValidateSession",
            Self::GetSession => "GetSession",
            Self::TouchSession => "TouchSession",
            Self::UpdateSession => "UpdateSession",
            Self::AuthenticateSession => "AuthenticateSession",
            Self::RenewSession => "RenewSession",
            Self::TerminateSession => "TerminateSession",
            Self::TerminateSubjectSessions => "TerminateSubjectSessions",
            Self::ListSessions => "ListSessions",
            Self::QueryAudit => "QueryAudit",
            Self::GetReceipt => "GetReceipt",
        }
    }

    /// The operation of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// What it needs.
    pub const fn permission(self) -> Permission {
        match self {
            Self::CreateSession
            | Self::ValidateSession
            | Self::GetSession
            | Self::TouchSession
            | Self::UpdateSession
            | Self::AuthenticateSession
            | Self::RenewSession
            | Self::TerminateSession
            | Self::TerminateSubjectSessions
            | Self::ListSessions => Permission::KeepSessions,
            Self::QueryAudit => Permission::ReadLog,
            Self::GetReceipt => Permission::ReadReceipts,
        }
    }

    /// What it does, for the WSDL.
    pub const fn documentation(self) -> &'static str {
        match self {
            Self::CreateSession => "Begins a session. Its token is shown in this answer only.",
            Self::ValidateSession => "Says what a token is worth, and counts as use of its session.",
            Self::GetSession => "A session by its id. Does not count as use.",
            Self::TouchSession => "Counts as use; answers the new deadlines.",
            Self::UpdateSession => {
                "Sets and removes attributes. With expectedVersion it fails if the session is at another version."
            }
            Self::AuthenticateSession => "Binds an authenticated subject. The old token is refused from now on.",
            Self::RenewSession => "Rotates the token. The old one is honoured for the realm's overlap only.",
            Self::TerminateSession => "Ends a session. Ending it again answers the same.",
            Self::TerminateSubjectSessions => "Ends every session of a subject: log out everywhere.",
            Self::ListSessions => "Sessions of the realm, newest first, a page at a time.",
            Self::QueryAudit => "Entries of the log, newest first. For auditors; every call is itself an entry.",
            Self::GetReceipt => "The receipt of an entry, as C2SP tlog-proof text.",
        }
    }
}
