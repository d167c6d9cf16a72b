//! From a credential to an actor, and what that actor may do.
//!
//! A credential belongs to one realm and has roles; roles are separate (DESIGN section 4, guarantee 13): an application cannot
//! read the log, an auditor cannot touch a session, an operator sees neither attributes nor personal data. [`may`] is the
//! one table that says so.

mod api_key;
mod keyholders;

pub use api_key::{ApiKey, ApiKeyError};
pub use keyholders::{Denied, Keyholder, Keyholders};

use session_model::Role;

/// What a request asks to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Begin, read, change, end and list sessions; end a subject's.
    KeepSessions,
    /// Read the receipt of an entry of the realm.
    ReadReceipts,
    /// End sessions of the realm in bulk.
    EndInBulk,
    /// Read the log, its proofs and its keys.
    ReadLog,
    /// Erase subjects, and put them under legal hold.
    KeepSubjects,
    /// See how the service does: sizes and progress, never what anybody keeps in it.
    SeeStatus,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 6] =
        [Self::KeepSessions, Self::ReadReceipts, Self::EndInBulk, Self::ReadLog, Self::KeepSubjects, Self::SeeStatus];
}

/// Whether a role may do something.
pub const fn may(role: Role, permission: Permission) -> bool {
    use Permission as P;
    match (role, permission) {
        (Role::Application, P::KeepSessions | P::ReadReceipts) => true,
        (Role::Auditor, P::ReadLog | P::ReadReceipts | P::KeepSubjects) => true,
        (Role::Operator, P::EndInBulk | P::SeeStatus) => true,
        (Role::Application, P::EndInBulk | P::ReadLog | P::KeepSubjects | P::SeeStatus) => false,
        (Role::Auditor, P::KeepSessions | P::EndInBulk | P::SeeStatus) => false,
        (Role::Operator, P::KeepSessions | P::ReadReceipts | P::ReadLog | P::KeepSubjects) => false,
        (Role::Node, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_has_what_another_is_kept_from() {
        let holders = |permission| {
            let roles = [Role::Application, Role::Auditor, Role::Operator, Role::Node];
            roles.into_iter().filter(|role| may(*role, permission)).collect::<Vec<_>>()
        };
        assert_eq!(holders(Permission::KeepSessions), [Role::Application]);
        assert_eq!(holders(Permission::ReadLog), [Role::Auditor]);
        assert_eq!(holders(Permission::KeepSubjects), [Role::Auditor]);
        assert_eq!(holders(Permission::EndInBulk), [Role::Operator]);
        assert_eq!(holders(Permission::SeeStatus), [Role::Operator]);
        assert_eq!(holders(Permission::ReadReceipts), [Role::Application, Role::Auditor]);
    }
}
