//! Metrics in the Prometheus text format.
//!
//! What is read when somebody looks (gauges) goes through OpenTelemetry. What is counted for each request goes to the same
//! registry directly: OpenTelemetry hashes its labels anew for each measurement, which was a visible part of validating a token.

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::core::Collector;
use prometheus::{Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

/// Why metrics cannot be made or shown.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The exporter cannot be built.
    #[error("the metrics exporter cannot be built")]
    Exporter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A metric cannot be registered, or the text cannot be written.
    #[error("the metrics cannot be made or written")]
    Prometheus(#[from] prometheus::Error),
}

/// What the service counts.
pub struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
    meter: Meter,
    requests: HistogramVec,
    sessions_created: IntCounter,
    sessions_renewed: IntCounter,
    sessions_ended: IntCounter,
    validations: IntCounterVec,
    replays: IntCounter,
    refused: IntCounterVec,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Seconds; the finest are a tenth of what validating a token should take.
const DURATIONS: [f64; 14] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

impl Metrics {
    /// Metrics with nothing counted yet.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn new(version: &'static str) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|failure| MetricsError::Exporter(failure.into()))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter("counterfoil");
        let _lives_in_the_provider = meter
            .u64_observable_gauge("build_info")
            .with_description("Always 1; the label says which program this is")
            .with_callback(move |gauge| gauge.observe(1, &[KeyValue::new("version", version)]))
            .build();
        let durations = HistogramOpts::new(
            "http_server_request_duration_seconds",
            "Time from the request's head to the answer's head",
        );
        let requests = HistogramVec::new(
            durations.buckets(DURATIONS.to_vec()),
            &["http_request_method", "http_route", "http_response_status_code"],
        )?;
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let counters = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        Ok(Self {
            requests: registered(&registry, requests)?,
            sessions_created: registered(&registry, counter("sessions_created_total", "Sessions begun")?)?,
            sessions_renewed: registered(&registry, counter("sessions_renewed_total", "Tokens rotated")?)?,
            sessions_ended: registered(&registry, counter("sessions_ended_total", "Sessions ended on request")?)?,
            validations: registered(
                &registry,
                counters("session_validate_total", "Tokens validated, by what they were worth", "result")?,
            )?,
            replays: registered(
                &registry,
                counter("idempotency_replays_total", "Answers replayed under their idempotency key")?,
            )?,
            refused: registered(&registry, counters("auth_failures_total", "Requests refused at the gate", "reason")?)?,
            registry,
            provider,
            meter,
        })
    }

    /// A request was answered. `method` and `route` must come from closed sets.
    pub fn request(&self, method: &'static str, route: &str, status: &str, seconds: f64) {
        self.requests.with_label_values(&[method, route, status]).observe(seconds);
    }

    /// A session began.
    pub fn session_created(&self) {
        self.sessions_created.inc();
    }

    /// A token was rotated.
    pub fn session_renewed(&self) {
        self.sessions_renewed.inc();
    }

    /// A session ended.
    pub fn session_ended(&self) {
        self.sessions_ended.inc();
    }

    /// A token was validated, with this result.
    pub fn validated(&self, result: &'static str) {
        self.validations.with_label_values(&[result]).inc();
    }

    /// An answer was replayed under its idempotency key.
    pub fn replayed(&self) {
        self.replays.inc();
    }

    /// A request was refused at the gate, for this reason.
    pub fn refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// What shows numbers that are read when somebody looks.
    pub const fn gauges(&self) -> Gauges<'_> {
        Gauges { meter: &self.meter, of: None }
    }

    /// The same where there is more than one of what they are about: each number has this label beside its own. Label values must come
    /// from a closed set.
    pub fn gauges_of(&self, label: &'static str, value: &str) -> Gauges<'_> {
        Gauges { meter: &self.meter, of: Some(KeyValue::new(label, value.to_owned())) }
    }

    /// Everything, in the Prometheus text format.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn encode(&self) -> Result<Vec<u8>, MetricsError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Shows numbers that are read when somebody looks, all with the same label or none.
#[derive(Clone)]
pub struct Gauges<'a> {
    meter: &'a Meter,
    of: Option<KeyValue>,
}

impl fmt::Debug for Gauges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gauges({:?})", self.of)
    }
}

impl Gauges<'_> {
    /// Shows a number.
    pub fn gauge(&self, name: &'static str, unit: &'static str, read: impl Fn() -> f64 + Send + Sync + 'static) {
        let labels: Vec<KeyValue> = self.of.iter().cloned().collect();
        let _lives_in_the_provider = self
            .meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_callback(move |gauge| gauge.observe(read(), &labels))
            .build();
    }

    /// Shows numbers, one for each value of a label. Label values must come from a closed set.
    pub fn gauges(
        &self,
        name: &'static str,
        unit: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(String, f64)> + Send + Sync + 'static,
    ) {
        let of = self.of.clone();
        let _lives_in_the_provider = self
            .meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_callback(move |gauge| {
                for (value, number) in read() {
                    let labels: Vec<KeyValue> = of.iter().cloned().chain([KeyValue::new(label, value)]).collect();
                    gauge.observe(number, &labels);
                }
            })
            .build();
    }

    /// Shows what somebody else counts, for each value of a label: numbers that never go down while the process lives. `_total` is put
    /// behind the name. Label values must come from a closed set.
    pub fn counts(
        &self,
        name: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) {
        let of = self.of.clone();
        let _lives_in_the_provider = self
            .meter
            .u64_observable_counter(name)
            .with_callback(move |counter| {
                for (value, number) in read() {
                    let labels: Vec<KeyValue> = of.iter().cloned().chain([KeyValue::new(label, value)]).collect();
                    counter.observe(number, &labels);
                }
            })
            .build();
    }
}

fn registered<T: Collector + Clone + 'static>(registry: &Registry, metric: T) -> Result<T, MetricsError> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Nothing is exported elsewhere, so a failing shutdown loses nothing.
        let _lost_nothing = self.provider.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::new("1.2.3").unwrap();
        metrics.request("GET", "/v1/sessions/{id}", "200", 0.001);
        metrics.validated("active");
        metrics.gauges().gauge("audit_log_size", "", || 7.0);
        metrics.gauges().gauges("sink_lag", "", "sink", || vec![("a".to_owned(), 1.0), ("b".to_owned(), 2.0)]);
        metrics.gauges().counts("reads", "reason", || vec![("stale", 4), ("absent", 0)]);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for line in [
            "session_validate_total{result=\"active\"} 1",
            "audit_log_size 7",
            "sink_lag{sink=\"b\"} 2",
            "# TYPE reads_total counter",
            "reads_total{reason=\"stale\"} 4",
            "reads_total{reason=\"absent\"} 0",
            "build_info{version=\"1.2.3\"} 1",
            "http_server_request_duration_seconds_count{",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn numbers_of_several_are_told_apart() {
        let metrics = Metrics::new("1.2.3").unwrap();
        for (shard, size) in [("first", 3.0), ("payments", 4.0)] {
            let gauges = metrics.gauges_of("shard", shard);
            gauges.gauge("audit_log_size", "", move || size);
            gauges.gauges("sink_lag", "", "sink", move || vec![("a".to_owned(), size + 0.5)]);
        }
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for line in [
            "audit_log_size{shard=\"first\"} 3",
            "audit_log_size{shard=\"payments\"} 4",
            "sink_lag{shard=\"first\",sink=\"a\"} 3.5",
            "sink_lag{shard=\"payments\",sink=\"a\"} 4.5",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
