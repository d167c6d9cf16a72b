//! Signing in to the console with an identity provider: its configuration, and what the console is given of it.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use console::{Grant, People};
use nonce_store::NonceStore;
use oidc::{ClientSecret, Provider, ProviderConfig, is_safe_url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_model::{RealmName, Role, Timestamp};

use crate::config::Realm;

type Failure = Box<dyn Error + Send + Sync>;

/// Where a provider sends browsers back to, below the console's own address.
const CALLBACK: &str = "/console/oidc/callback";

/// Signing in to the console with an identity provider (OpenID Connect, authorization code flow with PKCE).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Oidc {
    /// The provider's issuer, character by character as it names itself: `https`, or `http` to a loopback address. Its metadata is below
    /// `/.well-known/openid-configuration` there.
    pub issuer: String,
    /// The id of this service at the provider.
    pub client_id: String,
    /// File with the client's secret. Default: none, for a public client.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// Where the provider sends browsers back to, as it is registered there: the console's address with `/oidc/callback` behind it.
    /// Default: made of the address that the browser used.
    #[serde(default)]
    pub redirect_url: Option<String>,
    /// What to ask the provider for beside `openid`: for instance `["groups"]`, where it needs that to put groups into the ID token. Default: nothing.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// The claim of the ID token that holds a person's groups: its name, or a JSON pointer such as `/realm_access/roles`. Default `groups`.
    #[serde(default = "groups")]
    pub roles_claim: String,
    /// The claim with the person's name, for people: shown at the console, sealed in the log. Default `preferred_username`.
    #[serde(default = "preferred_username")]
    pub name_claim: String,
    /// What the provider is called on the sign-in page. Default: its host.
    #[serde(default)]
    pub label: Option<String>,
    /// PEM file of the certificate authorities to trust. Default: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What groups may do, each by a name of your own. A visit is in one realm: that of the first, by name, that fits the person.
    pub grants: BTreeMap<String, GrantSection>,
}

/// What a group may do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantSection {
    /// The group: a value of the claim, as it is.
    pub group: String,
    /// In which realm. Default `default`.
    #[serde(default = "default_realm")]
    pub realm: String,
    /// In which roles. Default `["auditor"]`.
    #[serde(default = "auditor")]
    pub roles: Vec<VisitorRole>,
}

/// A role that has pages at the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words themselves")]
pub(crate) enum VisitorRole {
    Auditor,
    Operator,
}

impl From<VisitorRole> for Role {
    fn from(role: VisitorRole) -> Self {
        match role {
            VisitorRole::Auditor => Self::Auditor,
            VisitorRole::Operator => Self::Operator,
        }
    }
}

fn groups() -> String {
    "groups".to_owned()
}

fn preferred_username() -> String {
    "preferred_username".to_owned()
}

fn default_realm() -> String {
    "default".to_owned()
}

fn auditor() -> Vec<VisitorRole> {
    vec![VisitorRole::Auditor]
}

impl Oidc {
    /// Whether it can be: the bad key and why, if not.
    pub(crate) fn check(&self, realms: &BTreeMap<String, Realm>) -> Result<(), (String, String)> {
        let bad = |key: &str, why: &str| Err((format!("console.oidc.{key}"), why.to_owned()));
        if !is_safe_url(&self.issuer) || self.issuer.contains('?') {
            return bad("issuer", "must be https, or http to a loopback address, without a query");
        }
        if self.client_id.is_empty() {
            return bad("client_id", "must not be empty");
        }
        if self.redirect_url.as_ref().is_some_and(|url| !is_safe_url(url) || !url.ends_with(CALLBACK)) {
            return bad(
                "redirect_url",
                "must be https, or http to a loopback address, and end in /console/oidc/callback",
            );
        }
        if self.scopes.iter().any(|scope| scope.is_empty() || scope.contains(char::is_whitespace)) {
            return bad("scopes", "are one word each");
        }
        if self.roles_claim.is_empty() || self.name_claim.is_empty() {
            return bad("roles_claim", "a claim has a name");
        }
        if self.grants.is_empty() {
            return bad("grants", "without one nobody could sign in");
        }
        for (name, grant) in &self.grants {
            let key = format!("grants.{name}");
            if grant.group.is_empty() || grant.roles.is_empty() {
                return bad(&key, "needs a group and a role");
            }
            if !realms.contains_key(&grant.realm) {
                return bad(&key, "there is no such realm");
            }
        }
        Ok(())
    }

    /// What the console is given. `now` is the service's clock, `rates` the requests a second in realms that limit them.
    ///
    /// # Errors
    /// If a file cannot be used.
    pub(crate) fn people(
        &self,
        rates: HashMap<RealmName, u32>,
        nonces: Arc<dyn NonceStore>,
        now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Result<People, Failure> {
        let secret = match &self.client_secret_file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|failure| format!("console.oidc.client_secret_file: {}: {failure}", file.display()))?;
                Some(ClientSecret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
        };
        let grants = self.grants.values().map(|grant| {
            let realm = grant.realm.parse::<RealmName>()?;
            Ok(Grant {
                group: grant.group.clone(),
                realm,
                roles: grant.roles.iter().copied().map(Role::from).collect(),
            })
        });
        let grants = grants.collect::<Result<Vec<Grant>, Failure>>()?;
        let host = || url::Url::parse(&self.issuer).ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let config = ProviderConfig {
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            client_secret: secret,
            scopes: self.scopes.clone(),
            ca_file: self.ca_file.clone(),
        };
        Ok(People::new(
            Provider::new(config, now)?,
            self.label.clone().or_else(host).unwrap_or_default(),
            self.redirect_url.clone(),
            self.roles_claim.clone(),
            self.name_claim.clone(),
            grants,
            rates,
            nonces,
        ))
    }
}

#[cfg(test)]
mod tests {
    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;
    use crate::config::Config;

    fn read(toml: &str) -> Result<Oidc, Box<figment::Error>> {
        let good = "issuer = 'https://idp.example/r'\nclient_id = 'c'\n[grants.a]\ngroup = 'g'";
        Figment::from(Toml::string(good)).merge(Toml::string(toml)).extract().map_err(Box::new)
    }

    fn check(oidc: &Oidc) -> Result<(), String> {
        oidc.check(&Config::default().realms).map_err(|(key, _)| key)
    }

    #[test]
    fn what_cannot_be_names_its_key() {
        let good = read("redirect_url = 'http://127.0.0.1:8080/console/oidc/callback'").unwrap();
        assert_eq!(check(&good), Ok(()));
        for (toml, key) in [
            ("issuer = 'http://idp.example'", "issuer"),
            ("issuer = 'https://idp.example/?a=b'", "issuer"),
            ("issuer = 'idp'", "issuer"),
            ("client_id = ''", "client_id"),
            ("grants.a.group = ''", "grants.a"),
            ("grants.a.roles = []", "grants.a"),
            ("grants.a.realm = 'x'", "grants.a"),
            ("redirect_url = 'http://us.example/console/oidc/callback'", "redirect_url"),
            ("redirect_url = 'https://us.example/elsewhere'", "redirect_url"),
            ("scopes = ['a b']", "scopes"),
            ("roles_claim = ''", "roles_claim"),
        ] {
            assert_eq!(check(&read(toml).unwrap()), Err(format!("console.oidc.{key}")), "{toml}");
        }
        let nobody = Oidc { grants: BTreeMap::new(), ..good };
        assert_eq!(check(&nobody), Err("console.oidc.grants".to_owned()));
        for toml in ["grants.a.roles = ['application']", "secret = 'x'", "grants.a.x = 1"] {
            assert!(read(toml).is_err(), "{toml}");
        }
    }
}
