//! The files of a node's certificate: whether they can be used, and whether they have changed.

use std::path::Path;

use openssl::pkey::PKey;
use openssl::x509::X509;

use crate::{UnicastError, UnicastTls};

/// The bytes of the three files, when they fitted together.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificates([Vec<u8>; 3]);

impl Certificates {
    /// Reads the files, and refuses what zenoh would only stumble over later.
    pub(crate) fn read(tls: &UnicastTls) -> Result<Self, UnicastError> {
        let refuse = |path: &Path, why: String| UnicastError::Certificate(path.into(), why);
        let read = |path: &Path| std::fs::read(path).map_err(|failure| refuse(path, failure.to_string()));
        let files = [read(&tls.ca)?, read(&tls.certificate)?, read(&tls.key)?];
        let [ca, certificate, key] = &files;
        let authorities = X509::stack_from_pem(ca).map_err(|failure| refuse(&tls.ca, failure.to_string()))?;
        if authorities.is_empty() {
            return Err(refuse(&tls.ca, "holds no certificate".into()));
        }
        // A stack may be cut short by a writer that has not finished; its first must be there, and fit the key.
        let certificate =
            X509::from_pem(certificate).map_err(|failure| refuse(&tls.certificate, failure.to_string()))?;
        let key = PKey::private_key_from_pem(key).map_err(|failure| refuse(&tls.key, failure.to_string()))?;
        match certificate.public_key() {
            Ok(public) if public.public_eq(&key) => Ok(Self(files)),
            Ok(_) => Err(refuse(&tls.key, "is not the key of the certificate".into())),
            Err(failure) => Err(refuse(&tls.certificate, failure.to_string())),
        }
    }
}
