//! Structured logs.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal unless `NO_COLOR` is set (<https://no-color.org>).
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("the log level is no filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody has set logs up before.
    #[error("logs are set up already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends logs of this level (`info`, or a filter such as `info,sqlx=warn`) to stderr.
///
/// # Errors
/// [`LogError`].
pub fn init_logs(level: &str, format: LogFormat, no_color: bool) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(level)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(LogError::Twice)
}
