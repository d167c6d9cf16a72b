//! Syslog (RFC 5424) over TLS (RFC 5425).
//!
//! Syslog has no acknowledgement, and what a socket has taken is not what a receiver has read. So each push is a connection that is ended in
//! the way RFC 5425 section 4.4 asks for: we send `close_notify`, and the receiver answers with its own once it has read up to there. Only then
//! are the entries taken to have arrived. A receiver that dies in between answers nothing, or resets; all of them are then sent again.
//! What this cannot tell: whether the receiver's process then kept what it had read.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use openssl::ssl::{ErrorCode, ShutdownResult, SslConnector, SslFiletype, SslMethod, SslStream, SslVersion};
use session_model::Outcome;

use crate::{Delivery, PushError, Sink};

/// "log audit" (RFC 5424 table 1).
const FACILITY: u8 = 13;

/// A collector.
#[derive(Debug, Clone)]
pub struct SyslogConfig {
    /// `host:port`; RFC 5425 gives 6514. The host is also the name that its certificate must be for.
    pub address: String,
    /// PEM file of the authorities to trust; the system's if absent.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our certificate (chain) and its key, for receivers that ask for one (RFC 5425 section 4.2.1).
    pub client: Option<(PathBuf, PathBuf)>,
    /// Private enterprise number in the structured data's id. 32473 is the one for examples (RFC 5612).
    pub enterprise_number: u32,
    /// Whether the receiver must answer `close_notify`. Without it what was written counts as taken.
    pub confirm: bool,
    /// How long connecting, each write and the confirmation may take.
    pub timeout: Duration,
}

/// Pushes to a collector.
#[derive(Debug)]
pub struct SyslogSink {
    config: SyslogConfig,
    host: String,
    connector: SslConnector,
}

impl SyslogSink {
    /// A sink; connects only when it pushes.
    ///
    /// # Errors
    /// If the address has no port, or a file of the configuration cannot be used.
    pub fn new(config: SyslogConfig) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let (host, port) = config.address.rsplit_once(':').ok_or("must be host:port")?;
        port.parse::<u16>().map_err(|_| "must be host:port")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let mut builder = SslConnector::builder(SslMethod::tls_client())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        if let Some(file) = &config.ca_file {
            // The builder has loaded the system's: only the file's are to count.
            builder.set_cert_store(openssl::x509::store::X509StoreBuilder::new()?.build());
            builder.set_ca_file(file)?;
        }
        if let Some((chain, key)) = &config.client {
            builder.set_certificate_chain_file(chain)?;
            builder.set_private_key_file(key, SslFiletype::PEM)?;
        }
        Ok(Self { host, connector: builder.build(), config })
    }

    fn connect(&self) -> Result<SslStream<TcpStream>, PushError> {
        let failed = |failure: std::io::Error| PushError::Connection(self.config.address.clone(), failure.into());
        let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        for address in self.config.address.to_socket_addrs().map_err(failed)? {
            match TcpStream::connect_timeout(&address, self.config.timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(self.config.timeout)).map_err(failed)?;
                    stream.set_write_timeout(Some(self.config.timeout)).map_err(failed)?;
                    return self.connector.connect(&self.host, stream).map_err(|failure| {
                        PushError::Connection(self.config.address.clone(), failure.to_string().into())
                    });
                }
                Err(failure) => last = failure,
            }
        }
        Err(failed(last))
    }

    /// Ends the connection, and learns whether everything was read.
    fn confirm(&self, stream: &mut SslStream<TcpStream>) -> Result<(), PushError> {
        let broken = |failure: openssl::ssl::Error| PushError::Connection(self.config.address.clone(), failure.into());
        // Asked before ours is sent: an answer that is there already is no answer to it.
        stream
            .get_ref()
            .set_nonblocking(true)
            .map_err(|failure| PushError::Connection(self.config.address.clone(), failure.into()))?;
        let early = stream.ssl_read(&mut [0; 1]);
        stream
            .get_ref()
            .set_nonblocking(false)
            .map_err(|failure| PushError::Connection(self.config.address.clone(), failure.into()))?;
        match early {
            Err(failure) if failure.code() == ErrorCode::WANT_READ => {}
            Err(failure) if failure.code() == ErrorCode::ZERO_RETURN => {
                return Err(PushError::Unconfirmed("it closed the connection before it had been sent everything"));
            }
            Err(failure) => return Err(broken(failure)),
            // Nothing is ever to come from a receiver (RFC 5425); what does is not listened to.
            Ok(_) => {}
        }
        match stream.shutdown() {
            Ok(ShutdownResult::Received) => return Ok(()),
            Ok(ShutdownResult::Sent) => {}
            Err(failure) => return Err(broken(failure)),
        }
        let mut ignored = [0; 1_024];
        loop {
            match stream.ssl_read(&mut ignored) {
                Ok(_) => {}
                Err(failure) if failure.code() == ErrorCode::ZERO_RETURN => return Ok(()),
                Err(failure) if failure.code() == ErrorCode::WANT_READ => {
                    return Err(PushError::Unconfirmed("no close_notify in time (RFC 5425 section 4.4)"));
                }
                Err(failure) => return Err(broken(failure)),
            }
        }
    }
}

impl Sink for SyslogSink {
    fn push(&self, deliveries: &[Delivery]) -> Result<(), PushError> {
        let mut stream = self.connect()?;
        let mut frames = Vec::with_capacity(deliveries.len() * 1_024);
        for delivery in deliveries {
            let message = message(delivery, self.config.enterprise_number);
            // RFC 5425 section 4.3: the length in octets, a space, the message.
            frames.extend_from_slice(message.len().to_string().as_bytes());
            frames.push(b' ');
            frames.extend_from_slice(message.as_bytes());
        }
        let written = stream.write_all(&frames).and_then(|()| stream.flush());
        written.map_err(|failure| PushError::Connection(self.config.address.clone(), failure.into()))?;
        if self.config.confirm {
            self.confirm(&mut stream)
        } else {
            // What was written counts: whether the receiver hears of the end does not matter.
            let _unconfirmed = stream.shutdown();
            let _nothing_to_come = stream.get_mut().read(&mut []);
            Ok(())
        }
    }
}

/// `<PRI>1 TIME HOST APP PROCID MSGID [SD] MSG` (RFC 5424 section 6).
fn message(delivery: &Delivery, enterprise_number: u32) -> String {
    let severity: u8 = match (delivery.action, delivery.outcome) {
        ("session.token_reused" | "view.quarantined", _) => 4,
        (_, Outcome::Refused) => 5,
        (_, Outcome::Success) => 6,
    };
    let mut text = String::with_capacity(delivery.line.len() + 256);
    // Writing into a String cannot fail.
    let _infallible = write!(text, "<{}>1 {} ", FACILITY * 8 + severity, delivery.time);
    header(&delivery.node, 255, &mut text);
    text.push_str(" counterfoil - ");
    header(delivery.action, 32, &mut text);
    let _infallible = write!(text, " [counterfoil@{enterprise_number}");
    let parameters = [
        ("index", delivery.index.to_string()),
        ("leaf_hash", delivery.leaf_hash.to_string()),
        ("realm", delivery.realm.clone()),
    ];
    for (name, value) in &parameters {
        let _infallible = write!(text, " {name}=\"");
        for c in value.chars() {
            match c {
                '"' | '\\' | ']' => text.extend(['\\', c]),
                c if c.is_control() => text.push('?'),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push_str("] ");
    text.push_str(&delivery.line);
    text
}

/// A header field: visible ASCII only, `-` for none (RFC 5424 section 6.2).
fn header(value: &str, most: usize, text: &mut String) {
    let start = text.len();
    text.extend(value.chars().filter(|c| c.is_ascii_graphic()).take(most));
    if text.len() == start {
        text.push('-');
    }
}

#[cfg(test)]
mod tests {
    use session_model::{Digest, LeafIndex, Timestamp};

    use super::*;

    #[test]
    fn a_message_is_what_rfc_5424_says_and_nothing_breaks_out_of_its_place() {
        let mut delivery = Delivery {
            index: LeafIndex(7),
            leaf_hash: Digest([1; 32]),
            time: Timestamp::from_micros(1_700_000_000_000_000),
            action: "session.ended",
            outcome: Outcome::Success,
            realm: "default".into(),
            node: "node-1".into(),
            line: "{}".into(),
        };
        let hash = "01".repeat(32);
        assert_eq!(
            message(&delivery, 32_473),
            format!(
                "<110>1 2023-11-14T22:13:20.000000Z node-1 counterfoil - session.ended [counterfoil@32473 index=\"7\" \
                 leaf_hash=\"{hash}\" realm=\"default\"] {{}}"
            )
        );
        delivery.node = "a b\n]c".into();
        delivery.realm = "x\"] [y\\z\n".into();
        let text = message(&delivery, 32_473);
        assert!(text.contains(" ab]c counterfoil ") && text.contains("realm=\"x\\\"\\] [y\\\\z?\"] {}"), "{text}");
        delivery.node = " ".into();
        assert!(message(&delivery, 32_473).contains("Z - counterfoil"));
    }
}
