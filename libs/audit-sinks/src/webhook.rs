//! An HTTPS webhook: one POST with a line for each entry, signed.
//!
//! `Counterfoil-Signature: v1=` and the hexadecimal HMAC-SHA-256, under the shared secret, of `Counterfoil-Timestamp`, a full stop and the body.
//! The receiver computes it over the bytes it got, compares in constant time, and refuses a timestamp that is too old. Any 2xx says
//! that it has them all; anything else has them sent again.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_client::{HttpClient, HttpError};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use session_model::Timestamp;

use crate::{Delivery, PushError, Sink};

/// A webhook.
#[derive(Clone)]
pub struct WebhookConfig {
    /// Where to POST to.
    pub url: String,
    /// What the lines are, as a media type.
    pub media_type: &'static str,
    /// Shared secret of the signature.
    pub secret: Vec<u8>,
    /// PEM file of the authorities to trust; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// How long a POST may take.
    pub timeout: Duration,
    /// The wall clock, for the signature's time.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookConfig({})", self.url)
    }
}

/// Pushes to a webhook.
pub struct WebhookSink {
    config: WebhookConfig,
    client: HttpClient,
    key: PKey<Private>,
}

impl fmt::Debug for WebhookSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSink({})", self.config.url)
    }
}

impl WebhookSink {
    /// A sink.
    ///
    /// # Errors
    /// If the authorities cannot be read, or the secret cannot be a key.
    pub fn new(config: WebhookConfig) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let client = HttpClient::new(config.timeout, config.ca_file.as_deref())?;
        let key = PKey::hmac(&config.secret)?;
        Ok(Self { config, client, key })
    }

    fn sign(&self, timestamp: &str, body: &[u8]) -> Result<String, ErrorStack> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key)?;
        signer.update(timestamp.as_bytes())?;
        signer.update(b".")?;
        signer.update(body)?;
        let digits: String = signer.sign_to_vec()?.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("v1={digits}"))
    }
}

impl Sink for WebhookSink {
    fn push(&self, deliveries: &[Delivery]) -> Result<(), PushError> {
        let broken =
            |failure: Box<dyn std::error::Error + Send + Sync>| PushError::Connection(self.config.url.clone(), failure);
        let (Some(first), Some(last)) = (deliveries.first(), deliveries.last()) else { return Ok(()) };
        let mut body = Vec::with_capacity(deliveries.iter().map(|delivery| delivery.line.len() + 1).sum());
        for delivery in deliveries {
            body.extend_from_slice(delivery.line.as_bytes());
            body.push(b'\n');
        }
        let timestamp = (self.config.clock)().as_micros().div_euclid(1_000_000).to_string();
        let signature = self.sign(&timestamp, &body).map_err(|failure| broken(failure.into()))?;
        let headers = [
            ("Content-Type", self.config.media_type),
            ("Counterfoil-Timestamp", &timestamp),
            ("Counterfoil-Signature", &signature),
            ("Counterfoil-First-Index", &first.index.to_string()),
            ("Counterfoil-Last-Index", &last.index.to_string()),
        ];
        let answer = self.client.send("POST", &self.config.url, &headers, &body);
        let answer = answer.map_err(|failure: HttpError| broken(failure.into()))?;
        match answer.status {
            200..=299 => Ok(()),
            status => Err(PushError::Refused { status, said: answer.excerpt() }),
        }
    }
}
