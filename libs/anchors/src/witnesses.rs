//! A witness, asked as C2SP tlog-witness says.

use std::path::Path;
use std::time::Duration;

use http_client::HttpClient;
use merkle_log::{AddCheckpoint, Verifier, good_lines};
use sealing::CosignerVerifier;
use session_model::TreeSize;

use crate::PlaceError;

/// What a witness made of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It cosigned it: the line, its end included.
    Cosigned(String),
    /// It has cosigned another size last: ask again from there.
    At(TreeSize),
    /// It has seen another history.
    Contradicts(String),
}

/// A witness that others run.
#[derive(Debug, Clone)]
pub struct WitnessClient {
    client: HttpClient,
    url: String,
    key: CosignerVerifier,
}

impl WitnessClient {
    /// The witness at a submission prefix, known by its verifier key.
    ///
    /// # Errors
    /// If the key is none, or the authorities cannot be read.
    pub fn new(
        url: &str,
        vkey: &str,
        timeout: Duration,
        ca_file: Option<&Path>,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let key = CosignerVerifier::parse(vkey)?;
        let client = HttpClient::new(timeout, ca_file)?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), key })
    }

    /// Where it is.
    pub fn place(&self) -> &str {
        &self.url
    }

    /// Its name, as in its key.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// What verifies its cosignatures.
    pub const fn verifier(&self) -> &CosignerVerifier {
        &self.key
    }

    /// Asks it to cosign. Blocks. A cosignature is verified before it is answered.
    ///
    /// # Errors
    /// [`PlaceError`] if it did not answer, or with something that the protocol does not have.
    pub fn add(&self, request: &AddCheckpoint) -> Result<Added, PlaceError> {
        let url = format!("{}/add-checkpoint", self.url);
        let body = request.to_string();
        let headers = [("Content-Type", "text/plain; charset=utf-8")];
        let answer = self.client.send("POST", &url, &headers, body.as_bytes());
        let answer = answer.map_err(|failure| PlaceError::caused(&self.url, "no answer", failure))?;
        let text = || String::from_utf8_lossy(&answer.body).into_owned();
        let media_type = answer.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
        match answer.status {
            200 => {
                let note = format!("{}{}", request.checkpoint, text());
                let key: Box<dyn Verifier> = Box::new(self.key.clone());
                let lines = good_lines(&note, vec![key])
                    .map_err(|failure| PlaceError::caused(&self.url, "answered no signature lines", failure))?;
                let line = lines.into_iter().next();
                line.map(Added::Cosigned)
                    .ok_or_else(|| PlaceError::new(&self.url, "answered no good cosignature of its key"))
            }
            409 if media_type.starts_with("text/x.tlog.size") => match text().trim_end().parse() {
                Ok(size) => Ok(Added::At(TreeSize(size))),
                Err(failure) => Err(PlaceError::caused(&self.url, "answered 409 without a size", failure)),
            },
            409 | 422 => Ok(Added::Contradicts(answer.excerpt())),
            status => Err(PlaceError::new(&self.url, format!("answered {status}: {}", answer.excerpt()))),
        }
    }
}
