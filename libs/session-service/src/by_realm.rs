//! What each realm has of its own, where most have the same.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use session_model::RealmName;

/// A thing for each realm: its own, or else the first.
///
/// A realm lives in one log. Whatever is made of a log (its service, its origin, what auditors read of it) is found by the realm of
/// whoever asks, and in no other way: no path, number or cursor says which log is meant, so none can name another's.
#[derive(Clone)]
pub struct ByRealm<T> {
    first: T,
    others: Arc<HashMap<RealmName, T>>,
}

impl<T> ByRealm<T> {
    /// The first, for all realms that `others` does not name.
    pub fn new(first: T, others: impl IntoIterator<Item = (RealmName, T)>) -> Self {
        Self { first, others: Arc::new(others.into_iter().collect()) }
    }

    /// That of a realm. A realm that nobody knows has the first: whoever is asked there says so.
    pub fn of(&self, realm: &RealmName) -> &T {
        // Most installations have one log: nothing is hashed for them.
        if self.others.is_empty() { &self.first } else { self.others.get(realm).unwrap_or(&self.first) }
    }

    /// The first: for what belongs to no realm.
    pub const fn first(&self) -> &T {
        &self.first
    }
}

impl<T: fmt::Debug> fmt::Debug for ByRealm<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByRealm").field("first", &self.first).field("others", &self.others).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_has_its_own_or_the_first() {
        let realm = |name: &str| name.parse::<RealmName>().unwrap();
        let one = ByRealm::new(1, []);
        let two = ByRealm::new(1, [(realm("cards"), 2), (realm("payments"), 2)]);
        assert_eq!((*one.of(&realm("cards")), *one.first()), (1, 1));
        assert_eq!((*two.of(&realm("cards")), *two.of(&realm("payments")), *two.of(&realm("shop"))), (2, 2, 1));
    }
}
