//! An object store that speaks the S3 API, with object lock: what was put there, nobody deletes or alters before its time is over, whatever
//! credentials he holds.
//!
//! Each checkpoint is an object of its own. Its key begins with 2^64 - 1 minus the tree's size, so that a listing has the newest first. The
//! listing is of *versions*: somebody with our credentials can hide a locked object behind a delete marker, not remove it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_client::{Answer, HttpClient};
use openssl::sha::sha256;
use quick_xml::Reader;
use quick_xml::events::Event;
use session_model::{Seconds, Timestamp, TreeSize};

use crate::sigv4::{Credentials, Unsigned, canonical_query, encode, sign};
use crate::{Anchor, PlaceError};

/// How long objects are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Retention {
    /// `COMPLIANCE`: nobody shortens it; else `GOVERNANCE`: who has the special permission may.
    pub compliance: bool,
    /// Days.
    pub days: u32,
}

/// A bucket.
#[derive(Clone)]
pub struct S3Config {
    /// `https://s3.eu-central-1.amazonaws.com`, or another store's. Buckets are named in the path.
    pub endpoint: String,
    /// Region that requests are signed for.
    pub region: String,
    /// The bucket: versioned, with object lock enabled.
    pub bucket: String,
    /// Put before every key, for instance the log's name and a slash.
    pub prefix: String,
    /// Credentials that may put and get objects and list their versions, and no more.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// How long each checkpoint is locked; `None` leaves that to the bucket's default.
    pub retention: Option<S3Retention>,
    /// PEM file of the authorities to trust; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// How long a request may take.
    pub timeout: Duration,
    /// The wall clock: signatures and retention need it.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Config({}/{}/{})", self.endpoint, self.bucket, self.prefix)
    }
}

/// Checkpoints in an object store.
pub struct S3Anchor {
    config: S3Config,
    credentials: Credentials,
    client: HttpClient,
    host: String,
    place: String,
}

impl fmt::Debug for S3Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Anchor({})", self.place)
    }
}

/// A version of an object, and where to go on listing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    /// Key and version id of the first that is no delete marker.
    newest: Option<(String, String)>,
    /// Key and version marker of the next page.
    next: Option<(String, String)>,
}

/// Pages of a listing at most: a hundred thousand delete markers in front of the newest checkpoint are no accident.
const PAGES: usize = 100;

impl S3Anchor {
    /// An object store; is asked only when it is used.
    ///
    /// # Errors
    /// If the authorities cannot be read, or the endpoint is no URL of a host.
    pub fn new(config: S3Config) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let client = HttpClient::new(config.timeout, config.ca_file.as_deref())?;
        let (scheme, host) = config.endpoint.trim_end_matches('/').split_once("://").ok_or("endpoint: not a URL")?;
        if host.is_empty() || host.contains('/') || !matches!(scheme, "http" | "https") {
            return Err("endpoint: must be scheme and host only".into());
        }
        // A port that goes without saying is not part of the host header.
        let default = if scheme == "https" { ":443" } else { ":80" };
        let host = host.strip_suffix(default).unwrap_or(host).to_owned();
        let credentials = Credentials {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            region: config.region.clone(),
        };
        let place = format!("{}/{}/{}", config.endpoint.trim_end_matches('/'), config.bucket, config.prefix);
        Ok(Self { config, credentials, client, host, place })
    }

    fn send(
        &self,
        method: &str,
        key: Option<&str>,
        query: &[(&str, &str)],
        headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Result<Answer, PlaceError> {
        let failed =
            |failure: Box<dyn std::error::Error + Send + Sync>| PlaceError::caused(&self.place, "no answer", failure);
        let bucket = encode(&self.config.bucket, false);
        let path = key.map_or_else(|| format!("/{bucket}"), |key| format!("/{bucket}/{}", encode(key, true)));
        let unsigned = Unsigned { method, host: &self.host, path: &path, query, headers, body };
        let headers =
            sign(unsigned, &self.credentials, (self.config.clock)()).map_err(|failure| failed(failure.into()))?;
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let query = canonical_query(query);
        let question = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{path}{question}{query}", self.config.endpoint.trim_end_matches('/'));
        self.client.send(method, &url, &headers, body).map_err(|failure| failed(failure.into()))
    }

    fn refused(&self, answer: &Answer) -> PlaceError {
        PlaceError::new(&self.place, format!("answered {}: {}", answer.status, answer.excerpt()))
    }

    fn key(&self, size: TreeSize) -> String {
        format!("{}{:020}-{size}.checkpoint", self.config.prefix, u64::MAX - size.0)
    }

    fn find_newest(&self) -> Result<Option<(String, String)>, PlaceError> {
        let mut at: Option<(String, String)> = None;
        for _ in 0..PAGES {
            let mut query = vec![("versions", ""), ("prefix", self.config.prefix.as_str()), ("max-keys", "1000")];
            if let Some((key, version)) = &at {
                query.extend([("key-marker", key.as_str()), ("version-id-marker", version.as_str())]);
            }
            let answer = self.send("GET", None, &query, vec![], &[])?;
            if answer.status != 200 {
                return Err(self.refused(&answer));
            }
            let listing = parse(&answer.body)
                .map_err(|failure| PlaceError::caused(&self.place, "the listing cannot be read", failure))?;
            match (listing.newest, listing.next) {
                (Some(newest), _) => return Ok(Some(newest)),
                (None, None) => return Ok(None),
                (None, next) => at = next,
            }
        }
        Err(PlaceError::new(&self.place, "nothing but delete markers: somebody hides what is there"))
    }
}

/// Reads a `ListVersionsResult`.
fn parse(body: &[u8]) -> Result<Listing, Box<dyn std::error::Error + Send + Sync>> {
    let mut reader = Reader::from_str(std::str::from_utf8(body)?);
    let mut listing = Listing::default();
    let (mut path, mut text): (Vec<String>, String) = Default::default();
    let (mut key, mut version, mut truncated) = (None, None, false);
    let (mut next_key, mut next_version) = (None, None);
    let mut found_list = false;
    loop {
        match reader.read_event()? {
            Event::Start(start) => {
                path.push(start.local_name().as_ref().to_owned());
                text.clear();
                if path.len() == 2 {
                    (key, version) = (None, None);
                }
            }
            Event::Text(part) => text.push_str(&part),
            Event::GeneralRef(reference) => match reference.resolve_char_ref()? {
                Some(c) => text.push(c),
                None => {
                    let name: &str = &reference;
                    let known = [("amp", '&'), ("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\'')];
                    let (_, c) = known.into_iter().find(|(known, _)| *known == name).ok_or("an unknown entity")?;
                    text.push(c);
                }
            },
            Event::End(_) => {
                let names: Vec<&str> = path.iter().map(String::as_str).collect();
                match names.as_slice() {
                    ["ListVersionsResult"] => found_list = true,
                    [_, "IsTruncated"] => truncated = text == "true",
                    [_, "NextKeyMarker"] => next_key = Some(std::mem::take(&mut text)),
                    [_, "NextVersionIdMarker"] => next_version = Some(std::mem::take(&mut text)),
                    [_, "Version", "Key"] => key = Some(std::mem::take(&mut text)),
                    [_, "Version", "VersionId"] => version = Some(std::mem::take(&mut text)),
                    [_, "Version"] if listing.newest.is_none() => listing.newest = key.take().zip(version.take()),
                    _ => {}
                }
                path.pop();
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if !found_list {
        return Err("not a ListVersionsResult".into());
    }
    if truncated {
        listing.next = next_key.zip(next_version);
    }
    Ok(listing)
}

impl Anchor for S3Anchor {
    fn kind(&self) -> &'static str {
        "s3"
    }

    fn place(&self) -> &str {
        &self.place
    }

    fn keep(&self, size: TreeSize, checkpoint: &str) -> Result<(), PlaceError> {
        let body = checkpoint.as_bytes();
        // Object lock wants a checksum of what it locks.
        let mut headers = vec![
            ("content-type".to_owned(), "text/plain; charset=utf-8".to_owned()),
            ("x-amz-sdk-checksum-algorithm".to_owned(), "SHA256".to_owned()),
            ("x-amz-checksum-sha256".to_owned(), STANDARD.encode(sha256(body))),
        ];
        if let Some(retention) = self.config.retention {
            let mode = if retention.compliance { "COMPLIANCE" } else { "GOVERNANCE" };
            let until = (self.config.clock)().plus(Seconds(retention.days.saturating_mul(86_400)));
            headers.push(("x-amz-object-lock-mode".to_owned(), mode.to_owned()));
            headers.push(("x-amz-object-lock-retain-until-date".to_owned(), until.to_string()));
        }
        let answer = self.send("PUT", Some(&self.key(size)), &[], headers, body)?;
        if answer.status == 200 { Ok(()) } else { Err(self.refused(&answer)) }
    }

    fn newest(&self) -> Result<Option<String>, PlaceError> {
        let Some((key, version)) = self.find_newest()? else { return Ok(None) };
        let answer = self.send("GET", Some(&key), &[("versionId", &version)], vec![], &[])?;
        if answer.status != 200 {
            return Err(self.refused(&answer));
        }
        let text = String::from_utf8(answer.body);
        text.map(Some).map_err(|failure| PlaceError::caused(&self.place, format!("{key} is no text"), failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_and_delete_markers_are_seen_through() {
        let xml =
            br#"<?xml version="1.0"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <IsTruncated>false</IsTruncated>
            <DeleteMarker><Key>a-1</Key><VersionId>d</VersionId></DeleteMarker>
            <Version><Key>a&amp;1</Key><VersionId>v1</VersionId><Owner><ID>x</ID></Owner></Version>
            <Version><Key>a2</Key><VersionId>v2</VersionId></Version></ListVersionsResult>"#;
        assert_eq!(parse(xml).unwrap(), Listing { newest: Some(("a&1".into(), "v1".into())), next: None });
        let xml = b"<ListVersionsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>
            <NextVersionIdMarker>m</NextVersionIdMarker><DeleteMarker><Key>k</Key><VersionId>m</VersionId></DeleteMarker></ListVersionsResult>";
        assert_eq!(parse(xml).unwrap(), Listing { newest: None, next: Some(("k".into(), "m".into())) });
        assert_eq!(parse(b"<ListVersionsResult></ListVersionsResult>").unwrap(), Listing::default());
        assert!(parse(b"<Error><Code>AccessDenied</Code></Error>").is_err());
        assert!(parse(b"<ListVersionsResult><Version>").is_err());
    }
}
