//! Who holds which key: a copy of the store's credentials in memory, kept fresh.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use audit_log::{Credential, LogStore, ReadError};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::RwLock;
use session_model::{Actor, Digest, RealmName, Role};

use crate::{ApiKey, Permission, may};

/// Somebody who presented a good credential.
#[derive(Debug)]
pub struct Keyholder {
    /// Id of the credential.
    pub id: String,
    /// Realm it belongs to.
    pub realm: RealmName,
    roles: Vec<Role>,
    limiter: Option<DefaultDirectRateLimiter>,
}

impl Keyholder {
    /// A holder known by other means than an API key: `requests_per_second` 0 is no limit.
    pub fn new(id: String, realm: RealmName, roles: Vec<Role>, requests_per_second: u32) -> Self {
        let limiter = NonZeroU32::new(requests_per_second).map(|rate| RateLimiter::direct(Quota::per_second(rate)));
        Self { id, realm, roles, limiter }
    }

    /// Counts a request against the holder's rate.
    ///
    /// # Errors
    /// [`Denied::TooMany`].
    pub fn counted(self: &Arc<Self>) -> Result<(), Denied> {
        match &self.limiter {
            Some(limiter) if limiter.check().is_err() => Err(Denied::TooMany(Arc::clone(self))),
            Some(_) | None => Ok(()),
        }
    }

    /// The holder in the first of its roles that may do this.
    pub fn acting(&self, permission: Permission) -> Option<Actor> {
        let role = self.roles.iter().copied().find(|role| may(*role, permission))?;
        Some(Actor { id: self.id.clone(), role })
    }
}

impl Keyholder {
    /// The holder in the first of its roles: for what is recorded of a request that was refused.
    pub fn actor(&self) -> Option<Actor> {
        self.roles.first().map(|role| Actor { id: self.id.clone(), role: *role })
    }
}

/// Why a credential opens nothing.
#[derive(Debug, Clone)]
pub enum Denied {
    /// No key, or no known key, or a revoked one.
    Unknown,
    /// Too many requests of this holder for now.
    TooMany(Arc<Keyholder>),
}

/// Every keyholder, by the digest of the key.
#[derive(Debug, Default)]
pub struct Keyholders {
    known: RwLock<HashMap<Digest, Arc<Keyholder>>>,
    /// Requests a second a key of each realm may make.
    rates: HashMap<RealmName, u32>,
}

impl Keyholders {
    /// Nobody yet; `rates` says how many requests a second a key of each realm may make, where that is limited.
    pub fn new(rates: HashMap<RealmName, u32>) -> Self {
        Self { known: RwLock::default(), rates }
    }

    /// Reads anew the credentials of the realms that live in this log. A revoked key opens nothing from here on. What the log has of other
    /// realms opens nothing either: who can write one log makes no keys for what lives in another.
    ///
    /// # Errors
    /// [`ReadError`]: those known stay known.
    pub async fn refresh(&self, log: &dyn LogStore, lives_here: impl Fn(&RealmName) -> bool) -> Result<(), ReadError> {
        let credentials = log.credentials().await?;
        let mut known = self.known.write();
        let (mut before, mut fresh): (HashMap<_, _>, HashMap<_, _>) =
            known.drain().partition(|(_, holder)| lives_here(&holder.realm));
        let valid = |credential: &Credential| credential.revoked_at.is_none() && lives_here(&credential.realm);
        for credential in credentials.into_iter().filter(valid) {
            // A known holder keeps its rate limiter, and with it what it has used up; one of another log keeps its key.
            let digest = credential.digest;
            let holder = before.remove(&digest);
            fresh.entry(digest).or_insert_with(|| holder.unwrap_or_else(|| Arc::new(self.holder(credential))));
        }
        *known = fresh;
        Ok(())
    }

    fn holder(&self, credential: Credential) -> Keyholder {
        let rate = self.rates.get(&credential.realm).copied().unwrap_or_default();
        Keyholder::new(credential.id, credential.realm, credential.roles, rate)
    }

    /// Who holds the credential with this id: for those who have shown the key before.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn by_id(&self, id: &str) -> Result<Arc<Keyholder>, Denied> {
        // A few keys a realm: a second map to keep true would cost more than it saves.
        let known = self.known.read().values().find(|holder| holder.id == id).cloned();
        let holder = known.ok_or(Denied::Unknown)?;
        holder.counted()?;
        Ok(holder)
    }

    /// Who holds this key.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authenticate(&self, key: &str) -> Result<Arc<Keyholder>, Denied> {
        let digest = ApiKey::digest_of(key).map_err(|_| Denied::Unknown)?;
        // Found by a digest of 256 random bits: what the look-up's time may tell is of no use without the key.
        let holder = self.known.read().get(&digest).cloned().ok_or(Denied::Unknown)?;
        holder.counted()?;
        Ok(holder)
    }
}
