//! From the configuration of sinks to running ones.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use audit_export::Format;
use audit_log::{DeliveryCursors, LogReader, LogStore};
use audit_sinks::{Pusher, PusherConfig, Sink, SinkStatus, SyslogConfig, SyslogSink, WebhookConfig, WebhookSink};
use futures::future::join_all;
use sealing::Ids;
use session_model::{LeafIndex, RealmName};
use session_service::Clock;
use telemetry::Gauges;

use crate::config::{Config, ConfigError, Sink as SinkSection, SinkFormat, SinkKind, SinkStart};
use crate::serve::MachineClock;

type Failure = Box<dyn Error + Send + Sync>;

/// How many times its timeout the lease of a sink lasts: a push waits three times at most (to connect, to send, for the answer), and the
/// lease is prolonged when a third of it has gone. A node that died is replaced after this.
const LEASE_TIMEOUTS: u32 = 5;

/// The running sinks.
pub(crate) struct Sinks {
    running: Vec<(String, Pusher)>,
}

impl Sinks {
    /// Starts every sink of the configuration.
    ///
    /// # Errors
    /// If one is not configured as it must be, or the log's store has no place for cursors yet.
    pub(crate) async fn start(
        config: &Config,
        log: &Arc<dyn LogStore>,
        cursors: Arc<dyn DeliveryCursors>,
    ) -> Result<Self, Failure> {
        let mut running = Vec::new();
        if config.sinks.is_empty() {
            return Ok(Self { running });
        }
        // Moves nothing; says so now if the schema is from before sinks.
        let lacking = |failure| {
            format!("sinks: the log's database has no place for cursors: run `counterfoil migrate`: {failure}")
        };
        let _nothing_moved =
            cursors.advance("", "", LeafIndex(0)).await.map_err(|failure| lacking(crate::causes(&failure)))?;
        let size = log.head().await?.size();
        // Another one for each process: a node that is started anew waits for its own old lease, and two of one name do not
        // take each other for themselves.
        let random: [u8; 8] = Ids.public()?;
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        for (name, section) in &config.sinks {
            let (sink, format, realms) = configured(config, name, section)?;
            let settings = PusherConfig {
                name: name.clone(),
                holder: format!("{}-{random}", config.node),
                format,
                realms,
                initial: match section.start {
                    SinkStart::Beginning => LeafIndex(0),
                    SinkStart::Now => LeafIndex(size.0),
                },
                batch: section.batch.max(1),
                pause: Duration::from_secs(1),
                lease: Duration::from_millis(section.timeout_ms) * LEASE_TIMEOUTS,
                back_off_max: Duration::from_secs(60),
            };
            let reader: Arc<dyn LogReader> = Arc::clone(log) as _;
            running.push((name.clone(), Pusher::start(settings, sink, reader, Arc::clone(&cursors))));
        }
        Ok(Self { running })
    }

    /// Shows how each is doing as gauges.
    pub(crate) fn show(&self, gauges: &Gauges<'_>) {
        if self.running.is_empty() {
            return;
        }
        let all: Vec<(String, Arc<SinkStatus>)> =
            self.running.iter().map(|(name, pusher)| (name.clone(), pusher.status())).collect();
        let gauge = |metric, read: fn(&SinkStatus) -> f64| {
            let all = all.clone();
            gauges.gauges(metric, "", "sink", move || {
                all.iter().map(|(name, status)| (name.clone(), read(status))).collect()
            });
        };
        gauge("sink_lag_entries", |status| status.lag() as f64);
        gauge("sink_delivered_entries", |status| status.pushed() as f64);
        gauge("sink_failed_pushes", |status| status.failures() as f64);
        gauge("sink_up", |status| f64::from(u8::from(!status.is_failing())));
        gauge("sink_leased", |status| f64::from(u8::from(status.holds())));
    }

    /// Delivers what is in the log by now, as far as that can be done within `limit`, and ends.
    pub(crate) async fn close(self, limit: Duration) {
        join_all(self.running.into_iter().map(|(_, pusher)| pusher.close(limit))).await;
    }
}

/// Checks that every sink is configured as it must be: reads the files that it names, and connects to nothing.
///
/// # Errors
/// For the first that is not.
pub(crate) fn check(config: &Config) -> Result<(), ConfigError> {
    config.sinks.iter().try_for_each(|(name, section)| configured(config, name, section).map(drop))
}

type Configured = (Arc<dyn Sink>, Format, Vec<RealmName>);

fn configured(config: &Config, name: &str, section: &SinkSection) -> Result<Configured, ConfigError> {
    let wrong = |why: String| ConfigError::Value { key: format!("sinks.{name}"), why };
    let (sink, format) = build(config, section).map_err(|failure| wrong(crate::causes(&*failure)))?;
    let realms: Result<Vec<RealmName>, _> = section.realms.iter().map(|realm| realm.parse()).collect();
    Ok((sink, format, realms.map_err(|_| wrong("realms: not the name of a realm".into()))?))
}

fn build(config: &Config, section: &SinkSection) -> Result<(Arc<dyn Sink>, Format), Failure> {
    if section.timeout_ms < 100 {
        return Err("timeout_ms must be at least 100".into());
    }
    for realm in &section.realms {
        if !config.realms.contains_key(realm) {
            return Err(format!("realms: the configuration has no realm {realm}").into());
        }
    }
    let format = match section.format {
        SinkFormat::Jsonl => Format::Jsonl,
        SinkFormat::Ocsf => Format::Ocsf,
        SinkFormat::Cef => Format::Cef,
    };
    let timeout = Duration::from_millis(section.timeout_ms);
    // What the other kind needs, and this one would not read, is a mistake.
    let only =
        |given: bool, key: &str| if given { Err(format!("{key} is not a key of this kind of sink")) } else { Ok(()) };
    let sink: Arc<dyn Sink> = match section.kind {
        SinkKind::Syslog => {
            only(section.url.is_some(), "url")?;
            only(section.secret_file.is_some(), "secret_file")?;
            let client = match (&section.client_certificate_file, &section.client_key_file) {
                (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
                (None, None) => None,
                _ => return Err("client_certificate_file and client_key_file belong together".into()),
            };
            Arc::new(SyslogSink::new(SyslogConfig {
                address: section.address.clone().ok_or("address is missing")?,
                ca_file: section.ca_file.clone(),
                client,
                enterprise_number: section.enterprise_number,
                confirm: section.confirm,
                timeout,
            })?)
        }
        SinkKind::Webhook => {
            only(section.address.is_some(), "address")?;
            only(section.client_certificate_file.is_some() || section.client_key_file.is_some(), "client_…_file")?;
            let url = section.url.clone().ok_or("url is missing")?;
            check_url(&url)?;
            let file = section.secret_file.as_ref().ok_or("secret_file is missing")?;
            let secret = std::fs::read(file).map_err(|failure| format!("{}: {failure}", file.display()))?;
            let secret = secret.trim_ascii().to_vec();
            if secret.len() < 32 {
                return Err(format!("{}: a secret of at least 32 bytes is needed", file.display()).into());
            }
            let clock = MachineClock::new();
            Arc::new(WebhookSink::new(WebhookConfig {
                url,
                media_type: format.media_type(),
                secret,
                ca_file: section.ca_file.clone(),
                timeout,
                clock: Arc::new(move || clock.wall()),
            })?)
        }
    };
    Ok((sink, format))
}

/// `https`, or `http` within the machine: what is sent is not for everybody's eyes.
pub(crate) fn check_url(text: &str) -> Result<(), Failure> {
    let url = url::Url::parse(text)?;
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        _ => Err(format!("{text}: must be https, or http to a loopback address").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_in_clear_is_for_this_machine_only() {
        for good in ["https://siem.example/in", "http://127.0.0.1:1/", "http://[::1]/x", "http://localhost/"] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in ["http://siem.example/", "ftp://localhost/", "siem", "http://127.0.0.1.example/"] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
