//! An authority for tests: OpenSSL's own (`openssl ts -reply`), so that what is verified was made by somebody else's program.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

/// The policy that the authority stamps under if none is asked for.
pub const POLICY: &str = "1.2.3.4.1";

/// An authority with a root of its own.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").current_dir(folder).args(arguments).output().expect("openssl is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Authority {
    /// An authority whose certificate is for this extended key usage: `critical,timeStamping` is what it must be.
    pub fn new(usage: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let config = format!(
            "oid_section=oids\n[oids]\n[tsa]\ndefault_tsa=t\n[t]\nserial={serial}\ncrypto_device=builtin\nsigner_cert={at}/tsa.pem\n\
             signer_key={at}/tsa.key\nsigner_digest=sha256\ndefault_policy={POLICY}\nother_policies=1.2.3.4.2\ndigests=sha256\n\
             accuracy=secs:1\nclock_precision_digits=3\nordering=yes\ntsa_name=yes\ness_cert_id_chain=no\ness_cert_id_alg=sha256\n",
            serial = at.join("serial").display(),
            at = at.display()
        );
        std::fs::write(at.join("ts.cnf"), config).unwrap();
        std::fs::write(at.join("serial"), "01\n").unwrap();
        std::fs::write(at.join("ext"), format!("extendedKeyUsage={usage}\nkeyUsage=critical,digitalSignature\n"))
            .unwrap();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-sha256"];
        let root =
            ["req", "-x509", "-subj", "/CN=stamp root", "-days", "30", "-keyout", "root.key", "-out", "root.pem"];
        openssl(at, &[&root[..], &key[..]].concat());
        openssl(
            at,
            &[&["req", "-subj", "/O=test/CN=stamps", "-keyout", "tsa.key", "-out", "tsa.csr"], &key[..]].concat(),
        );
        let signed = ["x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial"];
        openssl(at, &[&signed[..], &["-days", "20", "-extfile", "ext", "-out", "tsa.pem"]].concat());
        Self { folder }
    }

    /// Its root, PEM.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Answers a request.
    pub fn reply(&self, request: &[u8]) -> Vec<u8> {
        let at = self.folder.path();
        std::fs::write(at.join("query"), request).unwrap();
        openssl(at, &["ts", "-reply", "-config", "ts.cnf", "-queryfile", "query", "-out", "answer"]);
        std::fs::read(at.join("answer")).unwrap()
    }

    /// Answers a request with the authority's key, but another certificate of the same root: one for this extended key usage. `openssl ts`
    /// refuses to, so the token is signed by `openssl cms`.
    pub fn reply_as(&self, request: &[u8], usage: &str) -> Vec<u8> {
        let at = self.folder.path();
        // First, so that it is good already at the time of the stamp.
        std::fs::write(at.join("other.ext"), format!("extendedKeyUsage={usage}\n")).unwrap();
        let signed = ["x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial"];
        openssl(at, &[&signed[..], &["-days", "20", "-extfile", "other.ext", "-out", "other.pem"]].concat());
        self.reply(request);
        openssl(at, &["ts", "-reply", "-in", "answer", "-token_out", "-out", "token"]);
        openssl(at, &["cms", "-verify", "-noverify", "-inform", "DER", "-in", "token", "-out", "info"]);
        let content =
            ["cms", "-sign", "-binary", "-nodetach", "-cades", "-econtent_type", "id-smime-ct-TSTInfo", "-in", "info"];
        let signer =
            ["-signer", "other.pem", "-inkey", "tsa.key", "-md", "sha256", "-outform", "DER", "-out", "signed"];
        openssl(at, &[&content[..], &signer[..]].concat());
        let token = std::fs::read(at.join("signed")).unwrap();
        // TimeStampResp: a status of 0, and the token.
        let length = u16::try_from(token.len() + 5).unwrap();
        [&[0x30, 0x82], &length.to_be_bytes()[..], &[0x30, 3, 2, 1, 0], &token].concat()
    }

    /// Verifies with `openssl ts -verify`, as an auditor would.
    pub fn verify(&self, response: &Path, message: &Path) -> String {
        let (response, message) = (response.display().to_string(), message.display().to_string());
        openssl(self.folder.path(), &["ts", "-verify", "-data", &message, "-in", &response, "-CAfile", "root.pem"])
    }

    /// Serves it by HTTP (RFC 3161 section 3.4) on a loopback port, for as long as the answer lives.
    pub fn serve(self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/tsr", listener.local_addr().unwrap());
        let (root, stopped) = (self.root(), Arc::new(AtomicBool::new(false)));
        let (answering, authority) = (Arc::clone(&stopped), Arc::new(self));
        let serving = Arc::clone(&authority);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if answering.load(Ordering::Relaxed) {
                    break;
                }
                // A client that has gone away hears nothing.
                let _gone = answer(&serving, stream);
            }
        });
        Server { url, root, authority, stopped }
    }
}

/// A running authority.
#[derive(Debug)]
pub struct Server {
    /// Where.
    pub url: String,
    /// Its root, PEM.
    pub root: PathBuf,
    /// The authority.
    pub authority: Arc<Authority>,
    stopped: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees it.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/tsr");
        let _gone = TcpStream::connect(address);
    }
}

fn answer(authority: &Authority, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut typed) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        typed |= line == "content-type: application/timestamp-query";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    if !typed {
        return stream
            .write_all(b"HTTP/1.1 415 Unsupported Media Type\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let answer = authority.reply(&body);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/timestamp-reply\r\nConnection: close";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n", answer.len())?;
    stream.write_all(&answer)
}
