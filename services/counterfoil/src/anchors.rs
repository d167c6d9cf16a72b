//! From the configuration of anchors to places that are compared with at start and kept up to date.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anchors::{
    Anchor, AnchorStatus, Cosigner, CosignerConfig, CosignerView, FileAnchor, Keeper, S3Anchor, S3Config, S3Retention,
    StampFiles, TsaAnchor, TsaConfig, WitnessClient, check_head, compare, stamps_in,
};
use api_audit::CosignedCheckpoints;
use audit_log::{LogHead, LogReader};
use evidence::StampFile;
use futures::future::join_all;
use parking_lot::Mutex;
use sealing::{VerifierKey, VerifierKeys};
use serde::Serialize;
use session_service::Clock;
use telemetry::Gauges;
use tracing::warn;

use crate::config::{Config, ConfigError, S3Mode, S3Section};
use crate::serve::MachineClock;
use crate::sinks::check_url;

type Failure = Box<dyn Error + Send + Sync>;

/// The places of the configuration, and how often each is kept up to date.
#[derive(Default)]
pub(crate) struct Places(Vec<(Arc<dyn Anchor>, Duration)>);

impl Places {
    /// The places of the configuration.
    ///
    /// # Errors
    /// If one is not configured as it must be.
    pub(crate) fn new(config: &Config) -> Result<Self, Failure> {
        let file = Arc::new(FileAnchor::new(config.anchor_file()));
        let mut places: Vec<(Arc<dyn Anchor>, Duration)> = vec![(file, Duration::from_secs(config.anchor.interval_s))];
        if let Some(section) = &config.anchors.s3 {
            let wrong =
                |failure: Failure| ConfigError::Value { key: "anchors.s3".into(), why: crate::causes(&*failure) };
            places.push((Arc::new(s3(section).map_err(wrong)?), Duration::from_secs(section.interval_s.max(1))));
        }
        if let Some(section) = &config.anchors.tsa {
            let wrong = |why: String| ConfigError::Value { key: "anchors.tsa".into(), why };
            let scheme = url::Url::parse(&section.url).map_err(|failure| wrong(failure.to_string()))?;
            if !matches!(scheme.scheme(), "http" | "https") {
                return Err(wrong("url: must be http or https".into()).into());
            }
            let anchor = TsaAnchor::new(TsaConfig {
                url: section.url.clone(),
                policy: section.policy.clone(),
                ca_file: section.ca_file.clone(),
                tls_ca_file: section.tls_ca_file.clone(),
                folder: config.stamps_folder(),
                timeout: Duration::from_secs(15),
            });
            let anchor = anchor.map_err(|failure| wrong(crate::causes(&*failure)))?;
            places.push((Arc::new(anchor), Duration::from_secs(section.interval_s.max(1))));
        }
        Ok(Self(places))
    }

    /// The file that is always kept; `None` only once the places were taken.
    pub(crate) fn file(&self) -> Option<Arc<dyn Anchor>> {
        self.0.first().map(|(anchor, _)| Arc::clone(anchor))
    }

    /// Compares the log with itself and with every place; answers where it ends. A place that cannot be asked now is compared with before
    /// anything is put there, unless it is a file: one that is there and cannot be read is no accident.
    ///
    /// # Errors
    /// If the log and a place contradict each other: the service must not start.
    pub(crate) async fn check(&self, log: &dyn LogReader, keys: &[VerifierKey]) -> Result<LogHead, Failure> {
        let mut kept = Vec::new();
        for (anchor, _) in &self.0 {
            let asked = Arc::clone(anchor);
            match tokio::task::spawn_blocking(move || asked.newest()).await? {
                Ok(None) => {}
                Ok(Some(outside)) => kept.push((anchor.place(), outside)),
                Err(failure) if anchor.kind() == "file" => return Err(failure.into()),
                Err(failure) => {
                    let failure = &failure as &dyn Error;
                    warn!(failure, "an anchor cannot be asked: the log will be compared with it as soon as it can");
                }
            }
        }
        // Only now: others append and keep meanwhile, and what they keep must not seem to be ahead of the log.
        let head = log.head().await?;
        check_head(log, &head, keys).await?;
        for (place, outside) in kept {
            compare(log, &head, &outside, place, keys).await?;
        }
        Ok(head)
    }
}

/// Checks that every anchor is configured as it must be: reads the files that it names, and connects to nothing.
///
/// # Errors
/// For the first that is not.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    Places::new(config)?;
    witnesses(config).map(drop)
}

fn witnesses(config: &Config) -> Result<Vec<WitnessClient>, Failure> {
    let section = &config.anchors;
    let mut witnesses = Vec::new();
    for (name, witness) in &section.witnesses {
        let wrong = |failure: Failure| ConfigError::Value {
            key: format!("anchors.witnesses.{name}"),
            why: crate::causes(&*failure),
        };
        check_url(&witness.url).map_err(wrong)?;
        let timeout = Duration::from_secs(10);
        let client = WitnessClient::new(&witness.url, &witness.vkey, timeout, witness.ca_file.as_deref());
        witnesses.push(client.map_err(wrong)?);
    }
    if section.quorum > witnesses.len() || (section.quorum == 0 && !witnesses.is_empty()) {
        let why = format!("must be from 1 to the number of witnesses, which is {}", witnesses.len());
        return Err(ConfigError::Value { key: "anchors.quorum".into(), why }.into());
    }
    Ok(witnesses)
}

/// The checkpoints that have time stamps, for evidence bundles.
pub(crate) fn stamps(config: &Config) -> Vec<StampFile> {
    let folder = config.stamps_folder();
    let found = stamps_in(&folder).unwrap_or_else(|failure| {
        warn!(folder = %folder.display(), failure = &failure as &dyn Error, "time stamps cannot be read");
        Vec::new()
    });
    let file =
        |found: StampFiles| StampFile { size: found.size, checkpoint: found.checkpoint, response: found.response };
    found.into_iter().map(file).collect()
}

fn secret(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|failure| format!("{}: {failure}", file.display()))?;
    Ok(text.trim().to_owned())
}

fn s3(section: &S3Section) -> Result<S3Anchor, Failure> {
    check_url(&section.endpoint)?;
    let clock = MachineClock::new();
    let retention = match section.mode {
        S3Mode::Bucket => None,
        S3Mode::Governance => Some(S3Retention { compliance: false, days: section.retention_days }),
        S3Mode::Compliance => Some(S3Retention { compliance: true, days: section.retention_days }),
    };
    S3Anchor::new(S3Config {
        endpoint: section.endpoint.clone(),
        region: section.region.clone(),
        bucket: section.bucket.clone(),
        prefix: section.prefix.clone(),
        access_key: secret(&section.access_key_file)?,
        secret_key: secret(&section.secret_key_file)?,
        retention,
        ca_file: section.ca_file.clone(),
        timeout: Duration::from_secs(15),
        clock: Arc::new(move || clock.wall()),
    })
}

/// The running anchors.
pub(crate) struct Running {
    keepers: Vec<Keeper>,
    cosigner: Option<Cosigner>,
}

/// Shows how the anchors are doing.
#[derive(Clone)]
pub(crate) struct AnchorsView {
    places: Vec<Arc<Mutex<AnchorStatus>>>,
    cosigner: Option<CosignerView>,
}

/// How the anchors are doing, for `readyz?verbose`.
#[derive(Debug, Serialize)]
pub(crate) struct AnchorsReadiness {
    /// Whether the log contradicts a checkpoint that is kept outside: then the node is not ready.
    pub(crate) contradicted: bool,
    places: Vec<PlaceReadiness>,
    #[serde(skip_serializing_if = "Option::is_none")]
    witnesses: Option<WitnessesReadiness>,
}

#[derive(Debug, Serialize)]
struct PlaceReadiness {
    kind: &'static str,
    place: String,
    /// Size of the newest checkpoint there.
    size: Option<u64>,
    /// Since it was last found or made so.
    age_seconds: Option<f64>,
    failure: Option<String>,
    contradicted: bool,
}

#[derive(Debug, Serialize)]
struct WitnessesReadiness {
    quorum: usize,
    /// Size of the newest checkpoint that has its quorum.
    cosigned_size: Option<u64>,
    each: Vec<WitnessReadiness>,
}

#[derive(Debug, Serialize)]
struct WitnessReadiness {
    name: String,
    size: Option<u64>,
    failure: Option<String>,
    contradicted: bool,
}

impl Running {
    /// Starts to keep the places up to date, and asks the witnesses.
    ///
    /// # Errors
    /// If a witness is not configured as it must be, or has seen another history.
    pub(crate) async fn start(
        places: Places,
        config: &Config,
        log: &Arc<dyn LogReader>,
        keys: &VerifierKeys,
    ) -> Result<Self, Failure> {
        let section = &config.anchors;
        let witnesses = witnesses(config)?;
        let cosigner = if witnesses.is_empty() {
            None
        } else {
            let settings = CosignerConfig {
                witnesses,
                quorum: section.quorum,
                pause: Duration::from_secs(section.witness_interval_s.max(1)),
                file: config.data_dir.join("cosigned"),
            };
            Some(Cosigner::start(settings, Arc::clone(log), keys.clone()).await?)
        };
        let keepers = places.0.into_iter();
        let keepers =
            keepers.map(|(anchor, pause)| Keeper::start(anchor, Arc::clone(log), keys.clone(), pause)).collect();
        Ok(Self { keepers, cosigner })
    }

    /// What shows how they are doing.
    pub(crate) fn view(&self) -> AnchorsView {
        AnchorsView {
            places: self.keepers.iter().map(Keeper::status).collect(),
            cosigner: self.cosigner.as_ref().map(Cosigner::view),
        }
    }

    /// Keeps the last checkpoint everywhere and ends.
    pub(crate) async fn close(self, limit: Duration) {
        let cosigner = async {
            if let Some(cosigner) = self.cosigner {
                cosigner.close(limit).await;
            }
        };
        let keepers = join_all(self.keepers.into_iter().map(|keeper| keeper.close(limit)));
        futures::future::join(keepers, cosigner).await;
    }
}

impl AnchorsView {
    /// How they are doing.
    pub(crate) fn readiness(&self) -> AnchorsReadiness {
        let place = |status: &Arc<Mutex<AnchorStatus>>| {
            let status = status.lock();
            PlaceReadiness {
                kind: status.kind,
                place: status.place.clone(),
                size: status.size.map(|size| size.0),
                age_seconds: status.at.map(|at| at.elapsed().as_secs_f64()),
                failure: status.failure.clone(),
                contradicted: status.contradicted,
            }
        };
        let places: Vec<PlaceReadiness> = self.places.iter().map(place).collect();
        let witnesses = self.cosigner.as_ref().map(|cosigner| WitnessesReadiness {
            quorum: cosigner.quorum(),
            cosigned_size: cosigner.newest().map(|cosigned| cosigned.size.0),
            each: cosigner
                .statuses()
                .into_iter()
                .map(|status| WitnessReadiness {
                    name: status.name,
                    size: status.size.map(|size| size.0),
                    failure: status.failure,
                    contradicted: status.contradicted,
                })
                .collect(),
        });
        let contradicted = places.iter().any(|place| place.contradicted)
            || witnesses.as_ref().is_some_and(|witnesses| witnesses.each.iter().any(|witness| witness.contradicted));
        AnchorsReadiness { contradicted, places, witnesses }
    }

    /// Shows how they are doing as gauges.
    pub(crate) fn show(&self, gauges: &Gauges<'_>) {
        let view = self.clone();
        gauges.gauges("anchor_size", "", "kind", move || {
            let places = view.readiness().places;
            places.iter().map(|place| (place.kind.to_owned(), place.size.unwrap_or_default() as f64)).collect()
        });
        let view = self.clone();
        gauges.gauges("anchor_up", "", "kind", move || {
            let places = view.readiness().places;
            let is_up = |place: &PlaceReadiness| f64::from(u8::from(place.failure.is_none()));
            places.iter().map(|place| (place.kind.to_owned(), is_up(place))).collect()
        });
        let view = self.clone();
        gauges.gauge("anchor_contradicted", "", move || f64::from(u8::from(view.readiness().contradicted)));
        if self.cosigner.is_some() {
            let view = self.clone();
            gauges.gauge("anchor_cosigned_size", "", move || {
                let newest = view.cosigner.as_ref().and_then(CosignerView::newest);
                newest.map_or(0.0, |cosigned| cosigned.size.0 as f64)
            });
        }
    }
}

impl CosignedCheckpoints for AnchorsView {
    fn newest(&self) -> Option<String> {
        self.cosigner.as_ref()?.newest().map(|cosigned| cosigned.text)
    }
}
