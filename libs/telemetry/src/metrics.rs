//! Metrics, by OpenTelemetry, shown in the Prometheus text format.

use std::fmt;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder, Registry, TextEncoder};

/// Why metrics cannot be made or shown.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The exporter cannot be built.
    #[error("the metrics exporter cannot be built")]
    Exporter(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The text cannot be written.
    #[error("the metrics cannot be written")]
    Encode(#[from] prometheus::Error),
}

/// What the service counts.
pub struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
    meter: Meter,
    requests: Histogram<f64>,
    sessions_created: Counter<u64>,
    sessions_renewed: Counter<u64>,
    sessions_ended: Counter<u64>,
    validations: Counter<u64>,
    replays: Counter<u64>,
    refused: Counter<u64>,
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
    /// [`MetricsError::Exporter`].
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
        Ok(Self {
            requests: meter
                .f64_histogram("http.server.request.duration")
                .with_unit("s")
                .with_boundaries(DURATIONS.to_vec())
                .with_description("Time from the request's head to the answer's head")
                .build(),
            sessions_created: meter.u64_counter("sessions_created").build(),
            sessions_renewed: meter.u64_counter("sessions_renewed").build(),
            sessions_ended: meter.u64_counter("sessions_ended").build(),
            validations: meter.u64_counter("session_validate").build(),
            replays: meter.u64_counter("idempotency_replays").build(),
            refused: meter.u64_counter("auth_failures").build(),
            registry,
            provider,
            meter,
        })
    }

    /// A request was answered. `method` and `route` must come from closed sets.
    pub fn request(&self, method: &'static str, route: String, status: u16, seconds: f64) {
        self.requests.record(
            seconds,
            &[
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", route),
                KeyValue::new("http.response.status_code", i64::from(status)),
            ],
        );
    }

    /// A session began.
    pub fn session_created(&self) {
        self.sessions_created.add(1, &[]);
    }

    /// A token was rotated.
    pub fn session_renewed(&self) {
        self.sessions_renewed.add(1, &[]);
    }

    /// A session ended.
    pub fn session_ended(&self) {
        self.sessions_ended.add(1, &[]);
    }

    /// A token was validated, with this result.
    pub fn validated(&self, result: &'static str) {
        self.validations.add(1, &[KeyValue::new("result", result)]);
    }

    /// An answer was replayed under its idempotency key.
    pub fn replayed(&self) {
        self.replays.add(1, &[]);
    }

    /// A request was refused at the gate, for this reason.
    pub fn refused(&self, reason: &'static str) {
        self.refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// Shows a number that is read when somebody looks.
    pub fn gauge(&self, name: &'static str, unit: &'static str, read: impl Fn() -> f64 + Send + Sync + 'static) {
        let _lives_in_the_provider = self
            .meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_callback(move |gauge| gauge.observe(read(), &[]))
            .build();
    }

    /// Everything, in the Prometheus text format.
    ///
    /// # Errors
    /// [`MetricsError::Encode`].
    pub fn encode(&self) -> Result<Vec<u8>, MetricsError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
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
        metrics.request("GET", "/v1/sessions/{id}".to_owned(), 200, 0.001);
        metrics.validated("active");
        metrics.gauge("audit_log_size", "", || 7.0);
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        for line in [
            "session_validate_total{result=\"active\"} 1",
            "audit_log_size 7",
            "build_info{version=\"1.2.3\"} 1",
            "http_server_request_duration_seconds_count{",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
