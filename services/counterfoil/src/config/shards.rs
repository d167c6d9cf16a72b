//! More than one log: which realms live in which, and what each log's part of the configuration is.
//!
//! A shard is a whole log with a name: a database, key files, an origin, checkpoints and anchors of its own. A realm lives in exactly one. So what is
//! true within a realm (its caps, leaf indices, cursors, erasures) is as exact as with one log, and nobody who asks has to say which log he means.
//!
//! [`Config::logs`] makes of the whole configuration one for each log, as a service would have it that had nothing but this log. All that opens and
//! runs a log is given one of those, and knows nothing of the others.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_model::RealmName;

use super::{Bootstrap, Config, ConfigError};

/// A log of their own for some realms. What is not said here is as for the first log.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shard {
    /// `sqlite:PATH` or `postgres://…`: a database that no other log is in. Default: `sqlite:<data_dir>/shards/<name>/log.db`.
    #[serde(default)]
    pub url: Option<String>,
    /// File that holds the URL, for one with a password.
    #[serde(default)]
    pub url_file: Option<PathBuf>,
    /// URL of the schema's owner, for `migrate`. Default: the shard's URL.
    #[serde(default)]
    pub owner_url: Option<String>,
    /// File that holds the owner's URL.
    #[serde(default)]
    pub owner_url_file: Option<PathBuf>,
    /// The realms that live in it: at least one, and none of another shard. All others live in the first log.
    pub realms: Vec<String>,
}

/// Name of a log: 1 to 63 of a-z, 0-9 and '-'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShardName(Arc<str>);

impl ShardName {
    /// Of the log that `log.url` names.
    const FIRST: &str = "first";

    /// The name of the first log.
    pub(crate) fn first() -> Self {
        Self(Self::FIRST.into())
    }

    /// Whether it is the first log's.
    pub(crate) fn is_first(&self) -> bool {
        &*self.0 == Self::FIRST
    }

    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not the name of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a shard is 1 to 63 of a-z, 0-9 and '-'")]
pub(crate) struct NoShardName;

impl FromStr for ShardName {
    type Err = NoShardName;

    fn from_str(text: &str) -> Result<Self, NoShardName> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 63 || !text.chars().all(plain) {
            return Err(NoShardName);
        }
        Ok(Self(text.into()))
    }
}

/// One log, and the configuration of a service that had nothing but it.
#[derive(Debug, Clone)]
pub(crate) struct OneLog {
    /// Its name.
    pub name: ShardName,
    /// Where it is, and what of the whole configuration concerns it.
    pub config: Config,
}

fn wrong(shard: &str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: format!("log.shards.{shard}"), why: why.into() }
}

/// Whether the shards can be, as far as the configuration itself tells.
///
/// # Errors
/// [`ConfigError::Value`], naming the shard.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let mut lives_in: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, shard) in &config.log.shards {
        let parsed = name.parse::<ShardName>().map_err(|failure| wrong(name, failure.to_string()))?;
        if parsed.is_first() {
            return Err(wrong(name, "this is the name of the log that log.url names"));
        }
        if shard.realms.is_empty() {
            return Err(wrong(name, "realms: no realm would live in it"));
        }
        for realm in &shard.realms {
            if !config.realms.contains_key(realm) {
                return Err(wrong(name, format!("realms: the configuration has no realm {realm}")));
            }
            if let Some(other) = lives_in.insert(realm, name) {
                return Err(wrong(name, format!("realms: realm {realm} lives in shard {other} already")));
            }
        }
    }
    if lives_in.len() == config.realms.len() {
        let why = "every realm lives in another shard: one must be left for the log that log.url names".into();
        return Err(ConfigError::Value { key: "log.shards".into(), why });
    }
    Ok(())
}

impl Config {
    /// The logs, the first before the others.
    pub(crate) fn logs(&self) -> Vec<OneLog> {
        let others = self.log.shards.iter().map(|(name, shard)| self.shard(name, shard));
        std::iter::once(self.first_log()).chain(others).collect()
    }

    /// The log with this name; the first without one.
    ///
    /// # Errors
    /// [`ConfigError::Value`] if there is none.
    pub(crate) fn log_named(&self, name: Option<&ShardName>) -> Result<OneLog, ConfigError> {
        let wanted = name.cloned().unwrap_or_else(ShardName::first);
        let found = self.logs().into_iter().find(|log| log.name == wanted);
        found.ok_or_else(|| wrong(wanted.as_str(), "the configuration has no such shard"))
    }

    /// The log that a realm lives in.
    pub(crate) fn log_of(&self, realm: &RealmName) -> OneLog {
        let has = |shard: &Shard| shard.realms.iter().any(|name| *name == realm.as_str());
        let found = self.log.shards.iter().find(|(_, shard)| has(shard));
        found.map_or_else(|| self.first_log(), |(name, shard)| self.shard(name, shard))
    }

    fn first_log(&self) -> OneLog {
        let elsewhere: Vec<&String> = self.log.shards.values().flat_map(|shard| &shard.realms).collect();
        OneLog { name: ShardName::first(), config: self.with_realms(|realm| !elsewhere.contains(&realm)) }
    }

    fn shard(&self, name: &str, shard: &Shard) -> OneLog {
        let mut own = self.with_realms(|realm| shard.realms.contains(realm));
        let folder = Path::new("shards").join(name);
        // Beside what the first log has there, under the same name.
        let beside = |file: &PathBuf| file.with_file_name(&folder).join(file.file_name().unwrap_or_default());
        let Shard { url, url_file, owner_url, owner_url_file, realms: _ } = shard.clone();
        (own.log.url, own.log.url_file) = (url, url_file);
        (own.log.owner_url, own.log.owner_url_file) = (owner_url, owner_url_file);
        own.data_dir = self.data_dir.join(&folder);
        own.keys.dir = self.keys.dir.as_ref().map(|dir| dir.join(&folder));
        own.anchor.file = self.anchor.file.as_ref().map(beside);
        if let Some(tsa) = &mut own.anchors.tsa {
            tsa.folder = tsa.folder.as_ref().map(beside);
        }
        if let Some(s3) = &mut own.anchors.s3 {
            s3.prefix = format!("{}shards/{name}/", s3.prefix);
        }
        OneLog { name: ShardName(name.into()), config: own }
    }

    /// What concerns these realms, and a log's share of the memory.
    fn with_realms(&self, here: impl Fn(&String) -> bool) -> Self {
        let mut own = self.clone();
        own.log.shards.clear();
        own.realms.retain(|realm, _| here(realm));
        own.sinks.retain(|_, sink| {
            let all = sink.realms.is_empty();
            sink.realms.retain(|realm| here(realm));
            all || !sink.realms.is_empty()
        });
        if self.realms.contains_key("default") && !own.realms.contains_key("default") {
            own.bootstrap = Bootstrap::default();
        }
        let logs = self.log.shards.len() + 1;
        if own.view.memory_bytes > 0 {
            own.view.memory_bytes = (own.view.memory_bytes / logs).max(1);
        }
        own.view.near_cache_bytes /= logs;
        own
    }

    /// Whether each log has a place of its own, and every shard that this machine has key files of is named.
    ///
    /// # Errors
    /// [`ConfigError`], naming the shard.
    pub(crate) fn check_places(&self) -> Result<(), ConfigError> {
        let mut places: BTreeMap<String, ShardName> = BTreeMap::new();
        for OneLog { name, config } in self.logs() {
            let place = place(&config.log_url()?);
            if let Some(other) = places.insert(place.clone(), name.clone()) {
                return Err(wrong(name.as_str(), format!("is in the database of shard {other}: {place}")));
            }
        }
        let folder = self.keys.dir.as_ref().unwrap_or(&self.data_dir).join("shards");
        let Ok(found) = std::fs::read_dir(&folder) else { return Ok(()) };
        for dir in found.flatten() {
            let name = dir.file_name().to_string_lossy().into_owned();
            let has_keys = ["kek", "keys/kek"].iter().any(|kek| dir.path().join(kek).exists());
            if has_keys && !self.log.shards.contains_key(&name) {
                let why = format!(
                    "is missing, but its keys are in {}: its realms would begin anew in another log. Name it again; if it is retired, \
                     and none of its realms is in the configuration any more, move that folder away",
                    dir.path().display()
                );
                return Err(wrong(&name, why));
            }
        }
        Ok(())
    }
}

/// What two URLs of one database have in common: where it is, without who connects to it and how.
fn place(url: &str) -> String {
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = Path::new(path.trim_start_matches("//"));
        let path = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
        return path.display().to_string();
    }
    let Ok(parsed) = url::Url::parse(url) else { return super::blot(url) };
    let option = |name: &str| parsed.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let host =
        option("host").or_else(|| parsed.host_str().map(str::to_lowercase)).unwrap_or_else(|| "localhost".into());
    let port = option("port").unwrap_or_else(|| parsed.port().unwrap_or(5_432).to_string());
    let database = option("dbname").unwrap_or_else(|| parsed.path().trim_matches('/').to_owned());
    format!("{host}:{port}/{database}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("counterfoil.toml");
        std::fs::write(&file, toml).unwrap();
        Config::load(Some(&file), [], [])
    }

    const REALMS: &str = "[realms.payments]\n[realms.cards]\n";

    #[test]
    fn what_cannot_be_names_the_shard_and_says_why() {
        for (toml, said) in [
            ("[log.shards.Pay]\nrealms = ['cards']", "log.shards.Pay: the name of a shard"),
            ("[log.shards.first]\nrealms = ['cards']", "log.shards.first: this is the name of"),
            ("[log.shards.a]\nrealms = []", "log.shards.a: realms: no realm would live in it"),
            ("[log.shards.a]\nrealms = ['shop']", "log.shards.a: realms: the configuration has no realm shop"),
            (
                "[log.shards.a]\nrealms = ['cards']\n[log.shards.b]\nrealms = ['payments', 'cards']",
                "log.shards.b: realms: realm cards lives in shard a already",
            ),
            (
                "[log.shards.a]\nrealms = ['cards', 'cards']",
                "log.shards.a: realms: realm cards lives in shard a already",
            ),
            ("[log.shards.a]\nrealms = ['cards', 'payments', 'default']", "log.shards: every realm lives in another"),
            ("[log.shards.a]\nrealms = ['cards']\nkeys = 'x'", "unknown field"),
            ("[log.shards.a]\nurl = 'sqlite:x'", "missing field `realms`"),
        ] {
            let refused = load(&format!("{REALMS}{toml}")).unwrap_err().to_string();
            assert!(refused.contains(said), "{toml}: {refused}");
        }
    }

    #[test]
    fn two_logs_in_one_database_are_refused() {
        let shards = |first: &str, second: &str| {
            let toml = format!("{REALMS}[log]\nurl = '{first}'\n[log.shards.a]\nrealms = ['cards']\nurl = '{second}'");
            load(&toml).unwrap().check_places().map_err(|failure| failure.to_string())
        };
        for (first, second) in [
            ("postgres://me@db/one", "postgresql://you:secret@DB:5432/one?sslmode=require"),
            ("postgres://me@db/one", "postgres:///?host=db&dbname=one"),
            ("sqlite:x.db", "sqlite://./x.db"),
        ] {
            let refused = shards(first, second).unwrap_err();
            assert!(refused.starts_with("log.shards.a: is in the database of shard first"), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        for (first, second) in [
            ("postgres://me@db/one", "postgres://me@db/two"),
            ("postgres://me@db/one", "postgres://me@db:5433/one"),
            ("postgres://me@db/one", "postgres://me@other/one"),
            ("sqlite:x.db", "sqlite:y.db"),
        ] {
            shards(first, second).unwrap();
        }
    }

    #[test]
    fn a_log_has_its_own_realms_places_and_share() {
        let config = load(&format!(
            "data_dir = '/d'\n{REALMS}
            [log.shards.bank]
            realms = ['payments', 'cards']
            [view]
            memory_bytes = 1000
            [bootstrap]
            auditor_key_file = '/k'
            [sinks.all]
            kind = 'syslog'
            address = 'x:1'
            [sinks.some]
            kind = 'syslog'
            address = 'x:1'
            realms = ['cards', 'default']
            [sinks.shop]
            kind = 'syslog'
            address = 'x:1'
            realms = ['default']"
        ))
        .unwrap();
        let logs = config.logs();
        let [first, bank] = logs.as_slice() else { panic!("{logs:?}") };
        let keys = |map: &OneLog| map.config.realms.keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!((first.name.as_str(), bank.name.as_str()), ("first", "bank"));
        assert_eq!((keys(first).as_str(), keys(bank).as_str()), ("default", "cards payments"));
        assert_eq!(first.config.log_url().unwrap(), "sqlite:/d/log.db");
        assert_eq!(bank.config.log_url().unwrap(), "sqlite:/d/shards/bank/log.db");
        assert_eq!(bank.config.keys_dir(), Path::new("/d/shards/bank/keys"));
        assert_eq!(bank.config.anchor_file(), Path::new("/d/shards/bank/checkpoint"));
        assert_eq!(bank.config.stamps_folder(), Path::new("/d/shards/bank/time-stamps"));
        assert_eq!((first.config.view.memory_bytes, bank.config.view.memory_bytes), (500, 500));
        assert!(first.config.bootstrap.auditor_key_file.is_some() && bank.config.bootstrap.auditor_key_file.is_none());
        let sinks = |log: &OneLog| log.config.sinks.keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!((sinks(first).as_str(), sinks(bank).as_str()), ("all shop some", "all some"));
        assert_eq!(bank.config.sinks["some"].realms, ["cards"]);
        assert_eq!(config.log_of(&"cards".parse().unwrap()).name, bank.name);
        assert_eq!(config.log_of(&"default".parse().unwrap()).name, first.name);
        assert!(config.log_named(Some(&"shop".parse().unwrap())).is_err());
    }

    #[test]
    fn what_is_elsewhere_for_the_first_is_beside_it_for_the_others() {
        let config = load(&format!(
            "{REALMS}[keys]\ndir = '/k'\n[anchor]\nfile = '/worm/newest'\n[log.shards.a]\nrealms = ['cards']
            [anchors.tsa]
            url = 'http://t'
            ca_file = '/c'
            folder = '/worm/stamps'
            [anchors.s3]
            endpoint = 'https://s3'
            bucket = 'b'
            access_key_file = '/a'
            secret_key_file = '/s'"
        ))
        .unwrap();
        let own = config.log_named(Some(&"a".parse().unwrap())).unwrap().config;
        assert_eq!(own.keys_dir(), Path::new("/k/shards/a"));
        assert_eq!(own.anchor_file(), Path::new("/worm/shards/a/newest"));
        assert_eq!(own.stamps_folder(), Path::new("/worm/shards/a/stamps"));
        let prefix = |config: &Config| config.anchors.s3.as_ref().unwrap().prefix.clone();
        assert_eq!((prefix(&config).as_str(), prefix(&own).as_str()), ("counterfoil/", "counterfoil/shards/a/"));
    }

    #[test]
    fn one_log_is_configured_as_before() {
        let config = load("[view]\nmemory_bytes = 1001").unwrap();
        let logs = config.logs();
        assert_eq!(logs.len(), 1);
        assert_eq!(logs[0].config.to_string(), config.to_string());
        assert!(!config.to_string().contains("shards"), "{config}");
    }

    #[test]
    fn a_shard_that_is_not_named_any_more_is_missed() {
        let folder = tempfile::tempdir().unwrap();
        let data = format!("data_dir = '{}'\n{REALMS}", folder.path().display());
        std::fs::create_dir_all(folder.path().join("shards/bank/keys")).unwrap();
        load(&data).unwrap().check_places().unwrap();
        std::fs::write(folder.path().join("shards/bank/keys/kek"), "x").unwrap();
        let refused = load(&data).unwrap().check_places().unwrap_err().to_string();
        assert!(refused.starts_with("log.shards.bank: is missing"), "{refused}");
        load(&format!("{data}[log.shards.bank]\nrealms = ['cards']")).unwrap().check_places().unwrap();
    }
}
