//! Certificates: which this node shows, and which it believes.

use std::net::IpAddr;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslFiletype, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};
use openssl::stack::Stack;
use openssl::x509::store::{X509Lookup, X509Store, X509StoreBuilder};
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use openssl::x509::{X509, X509Ref, X509StoreContext};

use crate::{UnicastError, UnicastTls};

/// The files as they were read.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
    crl: Option<Vec<u8>>,
}

/// What one reading of the files amounts to. Connections are made by it, and measured against the newest.
pub(crate) struct Trust {
    files: Files,
    context: SslContext,
    allowed_names: Option<Vec<String>>,
    verify_host: bool,
    /// A line for people.
    shown: String,
}

/// What a peer showed.
pub(crate) struct Credentials {
    certificate: X509,
    chain: Vec<X509>,
    /// The common name first, if there is one, then DNS names.
    names: Vec<String>,
}

impl Trust {
    /// Reads the files, and refuses those that do not fit together.
    pub(crate) fn read(tls: &UnicastTls) -> Result<Self, UnicastError> {
        let read = |path: &Path| std::fs::read(path).map_err(|failure| refuse(path)(failure.to_string()));
        let files = Files {
            ca: read(&tls.ca)?,
            certificate: read(&tls.certificate)?,
            key: read(&tls.key)?,
            crl: tls.crl.as_deref().map(read).transpose()?,
        };
        let chain = X509::stack_from_pem(&files.certificate).map_err(of(&tls.certificate))?;
        let (certificate, above) = chain.split_first().ok_or_else(|| refuse(&tls.certificate)(NONE.into()))?;
        let key = PKey::private_key_from_pem(&files.key).map_err(of(&tls.key))?;
        if !certificate.public_key().map_err(of(&tls.certificate))?.public_eq(&key) {
            return Err(refuse(&tls.key)("is not the key of the certificate".into()));
        }
        let store = authorities(tls, &files)?;
        let context = context(certificate, above, &key, store).map_err(of(&tls.certificate))?;
        let name = names(certificate).into_iter().next().unwrap_or_else(|| "no name".into());
        let shown = format!("our certificate is of {name} and ends {}", certificate.not_after());
        let (allowed_names, verify_host) = (tls.allowed_names.clone(), tls.verify_host);
        Ok(Self { files, context, allowed_names, verify_host, shown })
    }

    /// Whether the files say what they said then.
    pub(crate) fn is_that_of(&self, other: &Self) -> bool {
        self.files == other.files
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// The side of a connection that accepts.
    pub(crate) fn server(&self) -> Result<Ssl, ErrorStack> {
        Ssl::new(&self.context)
    }

    /// The side that connects to this host.
    pub(crate) fn client(&self, host: &str) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.context)?;
        let ip = host.parse::<IpAddr>().ok();
        if ip.is_none() {
            ssl.set_hostname(host)?;
        }
        if self.verify_host {
            let wanted = ssl.param_mut();
            // The common name is no host, RFC 9525 section 2.
            wanted.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT);
            match ip {
                Some(ip) => wanted.set_ip(ip)?,
                None => wanted.set_host(host)?,
            }
        }
        Ok(ssl)
    }

    /// Whether a peer may take part by its name.
    pub(crate) fn allows(&self, peer: &Credentials) -> bool {
        self.allowed_names.as_ref().is_none_or(|allowed| peer.names.iter().any(|name| allowed.contains(name)))
    }

    /// Whether a certificate that was believed once still is: it may have expired, been revoked, or its authority been taken away.
    pub(crate) fn still_believes(&self, peer: &Credentials) -> Result<(), String> {
        let verify = || {
            let mut chain = Stack::new()?;
            peer.chain.iter().try_for_each(|certificate| chain.push(certificate.clone()))?;
            let mut context = X509StoreContext::new()?;
            context.init(self.context.cert_store(), &peer.certificate, &chain, |context| {
                Ok(if context.verify_cert()? { None } else { Some(context.error().to_string()) })
            })
        };
        match verify() {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(failure) => Err(ErrorStack::to_string(&failure)),
        }
    }
}

impl Credentials {
    /// Those of the peer of a finished handshake.
    pub(crate) fn of(ssl: &SslRef) -> Option<Self> {
        let certificate = ssl.peer_certificate()?;
        let chain =
            ssl.peer_cert_chain().map(|chain| chain.iter().map(ToOwned::to_owned).collect()).unwrap_or_default();
        let names = names(&certificate);
        Some(Self { certificate, chain, names })
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("no name", String::as_str)
    }
}

const NONE: &str = "holds no certificate";

fn refuse(path: &Path) -> impl FnOnce(String) -> UnicastError {
    move |why| UnicastError::Certificate(path.into(), why)
}

fn of(path: &Path) -> impl FnOnce(ErrorStack) -> UnicastError {
    move |failure| refuse(path)(failure.to_string())
}

/// The authorities, with what they have taken back.
fn authorities(tls: &UnicastTls, files: &Files) -> Result<X509Store, UnicastError> {
    let authorities = X509::stack_from_pem(&files.ca).map_err(of(&tls.ca))?;
    if authorities.is_empty() {
        return Err(refuse(&tls.ca)(NONE.into()));
    }
    let mut store = X509StoreBuilder::new().map_err(of(&tls.ca))?;
    for authority in authorities {
        store.add_cert(authority).map_err(of(&tls.ca))?;
    }
    if let Some(path) = &tls.crl {
        // OpenSSL's loader takes a path as text and stops the process at another.
        if path.to_str().is_none_or(|path| path.contains('\0')) {
            return Err(refuse(path)("the path is no text".into()));
        }
        let lists = store.add_lookup(X509Lookup::file()).map_err(of(path))?;
        let lists = lists.load_crl_file(path, SslFiletype::PEM).map_err(of(path))?;
        if lists < 1 {
            return Err(refuse(path)("holds no revocation list".into()));
        }
        store.set_flags(X509VerifyFlags::CRL_CHECK).map_err(of(path))?;
    }
    Ok(store.build())
}

/// For both sides of connections.
fn context(
    certificate: &X509,
    above: &[X509],
    key: &openssl::pkey::PKeyRef<openssl::pkey::Private>,
    store: X509Store,
) -> Result<SslContext, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    context.set_mode(SslMode::AUTO_RETRY | SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::ENABLE_PARTIAL_WRITE);
    context.set_read_ahead(true);
    // Each connection is proved anew: a session that is taken up again would stand on a certificate that may have been revoked since.
    context.set_options(SslOptions::NO_TICKET | SslOptions::NO_COMPRESSION);
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_num_tickets(0)?;
    context.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    context.set_cert_store(store);
    context.set_certificate(certificate)?;
    for one in above {
        context.add_extra_chain_cert(one.clone())?;
    }
    context.set_private_key(key)?;
    context.check_private_key()?;
    Ok(context.build())
}

fn names(certificate: &X509Ref) -> Vec<String> {
    let common = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
    let common = common.filter_map(|entry| entry.data().to_string().ok());
    let others = certificate.subject_alt_names();
    let others = others.iter().flatten().filter_map(|name| name.dnsname().map(str::to_owned));
    common.chain(others).collect()
}
