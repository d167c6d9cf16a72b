//! TLS on the main listener, by OpenSSL, with client certificates if asked for.

use std::any::Any;
use std::path::PathBuf;

use actix_tls::accept::openssl::TlsStream;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use api_http::ClientCertificate;
use openssl::error::ErrorStack;
use openssl::ssl::{SslAcceptor, SslAcceptorBuilder, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::X509Name;
use schemars::JsonSchema;
use sealing::sha256;
use serde::{Deserialize, Serialize};

/// TLS on the main listener: 1.2 and 1.3.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// File with the certificate and what leads up to its root, PEM. Read at start.
    pub certificate_file: PathBuf,
    /// File with the private key, PEM.
    pub key_file: PathBuf,
    /// File with the roots of client certificates, PEM. A client need not have one; one that it has must lead up to a root here. Default:
    /// none, clients are not asked.
    pub client_ca_file: Option<PathBuf>,
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file holds no certificate or key, or not those that belong together.
    #[error("server.tls.{key}: {file}: cannot be used")]
    File {
        /// Which key of the configuration.
        key: &'static str,
        /// Which file.
        file: PathBuf,
        /// Why.
        source: ErrorStack,
    },
    /// OpenSSL failed.
    #[error("OpenSSL cannot be set up")]
    OpenSsl(#[from] ErrorStack),
}

/// What accepts connections.
///
/// # Errors
/// [`TlsError`].
pub(crate) fn acceptor(tls: &Tls) -> Result<SslAcceptorBuilder, TlsError> {
    // Mozilla's "intermediate": TLS 1.2 with forward secrecy, and 1.3. Older consumers speak 1.2.
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    let file = |key, file: &PathBuf| {
        let file = file.clone();
        move |source| TlsError::File { key, file, source }
    };
    acceptor
        .set_certificate_chain_file(&tls.certificate_file)
        .map_err(file("certificate_file", &tls.certificate_file))?;
    acceptor.set_private_key_file(&tls.key_file, SslFiletype::PEM).map_err(file("key_file", &tls.key_file))?;
    acceptor.check_private_key().map_err(file("key_file", &tls.key_file))?;
    if let Some(roots) = &tls.client_ca_file {
        acceptor.set_ca_file(roots).map_err(file("client_ca_file", roots))?;
        let names = X509Name::load_client_ca_file(roots).map_err(file("client_ca_file", roots))?;
        acceptor.set_client_ca_list(names);
        // Asked for, not demanded: one that comes is verified, or there is no connection.
        acceptor.set_verify(SslVerifyMode::PEER);
        acceptor.set_session_id_context(b"counterfoil")?;
    }
    Ok(acceptor)
}

/// Notes the client certificate of a new connection.
pub(crate) fn note_certificate(connection: &dyn Any, data: &mut Extensions) {
    let Some(stream) = connection.downcast_ref::<TlsStream<TcpStream>>() else { return };
    let der = stream.ssl().peer_certificate().map(|certificate| certificate.to_der());
    if let Some(Ok(der)) = der {
        data.insert(ClientCertificate(sha256(&der)));
    }
}
