//! Structured logs to stderr, and metrics in the Prometheus text format. Nothing is global: [`Metrics`] is handed to whoever
//! counts. No log line and no label ever holds a token, a key, a subject or an attribute value; labels come from closed
//! sets, so that no client can make series without end.

mod logs;
mod metrics;

pub use logs::{LogError, LogFormat, init_logs};
pub use metrics::{Gauges, Metrics, MetricsError};
