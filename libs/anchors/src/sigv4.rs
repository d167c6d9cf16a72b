//! AWS Signature Version 4, as the S3 API asks for it: header authentication of a request whose whole body is known.

use std::fmt::Write as _;

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sha::sha256;
use openssl::sign::Signer;
use session_model::Timestamp;

/// Who signs, and for what.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) region: String,
}

/// A request to be signed. The path is encoded already; query parameters are not.
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a [(&'a str, &'a str)],
    /// Further headers, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: &'a [u8],
}

/// The headers to send, all but `host`, which the client sends by itself.
pub(crate) fn sign(
    request: Unsigned<'_>,
    by: &Credentials,
    now: Timestamp,
) -> Result<Vec<(String, String)>, ErrorStack> {
    let (date, time) = dates(now);
    let payload = hex(&sha256(request.body));
    let mut headers = request.headers;
    headers.push(("x-amz-content-sha256".into(), payload.clone()));
    headers.push(("x-amz-date".into(), time.clone()));
    let mut signed = headers.clone();
    signed.push(("host".into(), request.host.to_owned()));
    signed.sort();
    let names: Vec<&str> = signed.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let canonical =
        [request.method, request.path, &canonical_query(request.query), &lines, &names, &payload].join("\n");
    let scope = format!("{date}/{}/s3/aws4_request", by.region);
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
    let mut key = format!("AWS4{}", by.secret_key).into_bytes();
    for part in [date.as_str(), &by.region, "s3", "aws4_request"] {
        key = hmac(&key, part.as_bytes())?;
    }
    let signature = hex(&hmac(&key, to_sign.as_bytes())?);
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", by.access_key);
    headers.push(("authorization".into(), authorization));
    Ok(headers)
}

/// Parameters in the order of their names, encoded: for the signature and for the URL.
pub(crate) fn canonical_query(query: &[(&str, &str)]) -> String {
    let mut pairs: Vec<(String, String)> =
        query.iter().map(|(name, value)| (encode(name, false), encode(value, false))).collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Percent-encoding as SigV4 has it: everything but the unreserved characters of RFC 3986, and slashes in a path.
pub(crate) fn encode(text: &str, is_path: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            b'/' if is_path => encoded.push('/'),
            // Writing into a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

/// `20130524` and `20130524T000000Z`.
fn dates(now: Timestamp) -> (String, String) {
    // 2013-05-24T00:00:00.000000Z
    let text: String = now.to_string().chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
    let date = text.chars().take(8).collect();
    (date, format!("{text}Z"))
}

fn hmac(key: &[u8], message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(MessageDigest::sha256(), &key)?;
    signer.update(message)?;
    signer.sign_to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Signature Calculations for the Authorization Header" in the Amazon S3 API reference.
    #[test]
    fn the_examples_of_the_reference_come_out() {
        let by = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        };
        let now = Timestamp::parse("2013-05-24T00:00:00Z").unwrap();
        let signature = |path, query: &[(&str, &str)], headers| {
            let host = "examplebucket.s3.amazonaws.com";
            let headers = sign(Unsigned { method: "GET", host, path, query, headers, body: b"" }, &by, now).unwrap();
            let (_, authorization) = headers.iter().find(|(name, _)| name == "authorization").unwrap();
            authorization.rsplit_once("Signature=").unwrap().1.to_owned()
        };
        let range = vec![("range".to_owned(), "bytes=0-9".to_owned())];
        assert_eq!(
            signature("/test.txt", &[], range),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature("/", &[("lifecycle", "")], vec![]),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature("/", &[("prefix", "J"), ("max-keys", "2")], vec![]),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
    }
}
