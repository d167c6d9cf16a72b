//! Fetching a bundle from a running service. What comes is believed no more than any other bundle.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::receipt::text;
use crate::{VerifyArgs, VerifyError};

/// Fetches what the service lets this auditor have of the whole log, and asks that the saved checkpoints can be checked.
pub(crate) fn fetch(args: &VerifyArgs) -> Result<NamedTempFile, VerifyError> {
    let failed = |source: io::Error| VerifyError::Read { path: PathBuf::from(&args.what), source };
    let key = match &args.api_key_file {
        Some(file) => text(file)?,
        None => return Err(failed(io::Error::other("a service wants an auditor's key: --api-key-file"))),
    };
    let mut sizes: Vec<String> = Vec::new();
    for file in &args.saved {
        // The size stands on the second line of a checkpoint; whether it is one is checked with the bundle.
        sizes.extend(text(file)?.lines().nth(1).and_then(|line| line.parse::<u64>().ok()).map(|size| size.to_string()));
    }
    let keep = if sizes.is_empty() { String::new() } else { format!("?keep={}", sizes.join(",")) };
    let address = format!("{}/v1/audit/bundle{keep}", args.what.trim_end_matches('/'));
    let agent = ureq::Agent::config_builder()
        .tls_config(ureq::tls::TlsConfig::builder().provider(ureq::tls::TlsProvider::NativeTls).build())
        .timeout_connect(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let mut response = agent
        .get(&address)
        .header("Authorization", format!("Bearer {}", key.trim()))
        .call()
        .map_err(|failure| failed(io::Error::other(failure)))?;
    if response.status().as_u16() != 200 {
        let mut said = String::new();
        let _partly = response.body_mut().as_reader().take(500).read_to_string(&mut said);
        return Err(failed(io::Error::other(format!("the service answered {}: {said}", response.status()))));
    }
    let mut file = NamedTempFile::with_suffix(".zip").map_err(failed)?;
    io::copy(&mut response.body_mut().as_reader(), &mut file).map_err(failed)?;
    Ok(file)
}
