//! A time-stamping authority (RFC 3161): somebody else's signature and clock over a checkpoint, kept in a folder beside it.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_client::HttpClient;
use sealing::Ids;
use session_model::TreeSize;
use time_stamp::{Request, RequestError, Roots};

use crate::{Anchor, PlaceError, replace_file};

/// An authority, and where its stamps are kept.
#[derive(Debug, Clone)]
pub struct TsaConfig {
    /// Where requests are posted to. Plain `http` will do: what comes back is signed, what goes there is a hash.
    pub url: String,
    /// The policy asked for, an object identifier; the authority's own if absent.
    pub policy: Option<String>,
    /// PEM file of the certificates that the authority's must lead up to.
    pub ca_file: PathBuf,
    /// PEM file of the authorities to trust for `https`; the system's if absent.
    pub tls_ca_file: Option<PathBuf>,
    /// Folder of the stamps. Made if it is not there.
    pub folder: PathBuf,
    /// How long a request may take.
    pub timeout: Duration,
}

/// Checkpoints with a time stamp each: `<size>.checkpoint`, a signed note, and `<size>.tsr`, the authority's response over its bytes.
pub struct TsaAnchor {
    config: TsaConfig,
    roots: Roots,
    client: HttpClient,
}

impl fmt::Debug for TsaAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TsaAnchor({})", self.config.url)
    }
}

/// A checkpoint and its time stamp, in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampFiles {
    /// Size of the tree that the checkpoint is of, as the name of the file says.
    pub size: TreeSize,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The authority's response.
    pub response: PathBuf,
}

/// The checkpoints of a folder that have time stamps, the smallest first; none if there is no such folder. Nothing is verified.
///
/// # Errors
/// If the folder cannot be read.
pub fn stamps_in(folder: &Path) -> io::Result<Vec<StampFiles>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(failure) => return Err(failure),
    };
    let mut found = Vec::new();
    for entry in listed {
        let response = entry?.path();
        let checkpoint = response.with_extension("checkpoint");
        let size = response.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok()).map(TreeSize);
        if let Some(size) = size.filter(|_| response.extension().is_some_and(|is| is == "tsr") && checkpoint.exists()) {
            found.push(StampFiles { size, checkpoint, response });
        }
    }
    found.sort_by_key(|stamp| stamp.size);
    Ok(found)
}

impl TsaAnchor {
    /// The authority of this configuration.
    ///
    /// # Errors
    /// If its certificates cannot be read, or the policy is none.
    pub fn new(config: TsaConfig) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let shown = config.ca_file.display();
        let pem = fs::read(&config.ca_file).map_err(|failure| format!("{shown}: {failure}"))?;
        let roots = Roots::from_pem(&pem).map_err(|failure| format!("{shown} {failure}"))?;
        // Says now what would be wrong with every request.
        let _well_formed: Request = Request::new(b"", [0; 16], config.policy.as_deref())?;
        let client = HttpClient::new(config.timeout, config.tls_ca_file.as_deref())?;
        Ok(Self { config, roots, client })
    }

    fn failed(&self, what: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PlaceError {
        PlaceError::caused(&self.config.url, what, source)
    }

    /// Has a message stamped; answers the response, which is verified.
    fn stamp(&self, message: &[u8]) -> Result<Vec<u8>, PlaceError> {
        let nonce = Ids.public().map_err(|failure| self.failed("no nonce", failure))?;
        let request = Request::new(message, nonce, self.config.policy.as_deref());
        let request = request.map_err(|failure: RequestError| self.failed("no request", failure))?;
        let headers = [("Content-Type", "application/timestamp-query"), ("Accept", "application/timestamp-reply")];
        let answer = self.client.send("POST", &self.config.url, &headers, request.der());
        let answer = answer.map_err(|failure| self.failed("no answer", failure))?;
        if answer.status != 200 {
            let what = format!("answered {}: {}", answer.status, answer.excerpt());
            return Err(PlaceError::new(&self.config.url, what));
        }
        let stamp = self.roots.verify_answer(&answer.body, &request, message);
        stamp.map_err(|failure| self.failed("answered no good time stamp", failure))?;
        Ok(answer.body)
    }
}

impl Anchor for TsaAnchor {
    fn kind(&self) -> &'static str {
        "tsa"
    }

    fn place(&self) -> &str {
        &self.config.url
    }

    fn keep(&self, size: TreeSize, checkpoint: &str) -> Result<(), PlaceError> {
        let response = self.stamp(checkpoint.as_bytes())?;
        let name = |extension: &str| self.config.folder.join(format!("{:020}.{extension}", size.0));
        // The response last: what has one is whole.
        let kept = fs::create_dir_all(&self.config.folder)
            .and_then(|()| replace_file(&name("checkpoint"), checkpoint.as_bytes()))
            .and_then(|()| replace_file(&name("tsr"), &response));
        kept.map_err(|failure| self.failed("the time stamp cannot be written", failure))
    }

    fn newest(&self) -> Result<Option<String>, PlaceError> {
        let unreadable = |failure| self.failed("its time stamps cannot be read", failure);
        let stamps = stamps_in(&self.config.folder).map_err(unreadable)?;
        stamps.last().map(|stamp| fs::read_to_string(&stamp.checkpoint)).transpose().map_err(unreadable)
    }
}
