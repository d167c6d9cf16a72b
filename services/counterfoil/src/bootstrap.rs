//! The first API keys: those that the configuration names, or one for each role, made at the first start.

use std::error::Error;
use std::path::Path;

use access::ApiKey;
use audit_log::LogStore;
use session_model::{RealmName, Role};
use session_service::SessionService;

use crate::config::Config;
use crate::key_commands::credential;

type Failure = Box<dyn Error + Send + Sync>;

/// A key made at the first start.
pub(crate) struct Minted {
    /// What it is for.
    pub role: &'static str,
    /// The key: shown once.
    pub key: ApiKey,
}

/// Accepts the keys that the configuration names; at the first start without any, makes one for each role.
///
/// # Errors
/// If a file holds no key, or a key cannot be recorded.
pub(crate) async fn bootstrap(
    config: &Config,
    service: &SessionService,
    log: &dyn LogStore,
) -> Result<Vec<Minted>, Failure> {
    let files = [
        ("application", Role::Application, &config.bootstrap.application_key_file),
        ("auditor", Role::Auditor, &config.bootstrap.auditor_key_file),
        ("operator", Role::Operator, &config.bootstrap.operator_key_file),
    ];
    let known = log.credentials().await?;
    let realm: RealmName = "default".parse()?;
    let caller = service.node_caller(&realm);
    let mut minted = Vec::new();
    let none_given = files.iter().all(|(_, _, file)| file.is_none());
    for (name, role, file) in files {
        let key = match file {
            Some(file) => read_key(file)?,
            None if none_given && known.is_empty() && service.policy(&realm).is_ok() => {
                let key = ApiKey::mint()?;
                minted.push(Minted { role: name, key: key.clone() });
                key
            }
            None => continue,
        };
        if service.policy(&realm).is_err() {
            return Err("bootstrap keys belong to realm default, which the configuration does not have".into());
        }
        if !known.iter().any(|known| known.digest == key.digest()) {
            let made = credential(&key, &realm, vec![role], &format!("bootstrap {name}"), service.now())?;
            service.add_credential(&caller, made).await?;
        }
    }
    Ok(minted)
}

fn read_key(file: &Path) -> Result<ApiKey, Failure> {
    let text = std::fs::read_to_string(file).map_err(|failure| format!("{}: {failure}", file.display()))?;
    ApiKey::parse(text.trim()).map_err(|failure| format!("{}: {failure}", file.display()).into())
}
