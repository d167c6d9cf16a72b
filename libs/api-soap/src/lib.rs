//! SOAP 1.1 and 1.2: a second mouth of the same service. No logic of its own: what may happen is decided in `session-model`, and
//! done in `session-service`; what a request may hold is in `api_http::rules`, and what a refusal is called in
//! `api_http::ProblemCode`.
//!
//! A message goes through here in this order: size, encoding, limits and forbidden things (a scan, before there is a tree),
//! the tree, the envelope, headers that must be understood, addressing, who asks, what they ask for. Nothing of the body but
//! its name is looked at before it is known who asks.
//!
//! Deliberately not here: encryption of messages, WS-Trust and WS-SecureConversation, attachments, any call to an address that
//! a message names.
//!
//! Start reading at [`SoapApi`], then `endpoint.rs`.

mod addressing;
mod audit;
mod canonical;
mod endpoint;
mod envelope;
mod fault;
mod operation;
mod perform;
#[cfg(any(test, feature = "test-util"))]
mod read_only;
mod reader;
mod security;
mod signature;
mod writer;
mod wsdl;

pub use endpoint::{MAX_BODY, configure};
pub use operation::Operation;
#[cfg(any(test, feature = "test-util"))]
pub use read_only::{read_only, read_signed};
pub use security::{Consumer, Consumers, PasswordText};
pub use signature::Certificates;
pub use wsdl::{SchemaLocation, Soap, wsdl, xsd};

use std::fmt;
use std::sync::Arc;

use api_http::{Gate, Observer};
use audit_search::Archive;
use nonce_store::NonceStore;
use session_service::{ByRealm, Sessions};

/// Namespace of every element of ours.
pub const NAMESPACE: &str = "urn:counterfoil:session:v1";

/// What the SOAP interface is made of.
#[derive(Clone)]
pub struct SoapApi {
    /// Does what is asked.
    pub service: Arc<Sessions>,
    /// Finds entries of the log that each realm lives in, for auditors.
    pub archive: ByRealm<Archive>,
    /// Lets requests in.
    pub gate: Gate,
    /// Counts.
    pub observer: Observer,
    /// Origin of the log that each realm lives in, as receipts name it.
    pub origin: ByRealm<Arc<str>>,
    /// Who may ask with a user name and a secret.
    pub consumers: Arc<Consumers>,
    /// Certificates that a signature may name without holding them. Whose they are the gate knows, as of all.
    pub certificates: Arc<Certificates>,
    /// Whether a secret may come in clear over a connection without TLS.
    pub password_text: PasswordText,
    /// Remembers the nonces of messages.
    pub nonces: Arc<dyn NonceStore>,
    /// URL of the endpoint as clients reach it, for the WSDL.
    pub public_url: Arc<str>,
}

impl fmt::Debug for SoapApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoapApi({})", self.public_url)
    }
}
