//! A service for the time of a command: it serves nobody, and what it has appended is kept outside the database before the command ends.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use anchors::{Anchor, keep_newest};
use audit_log::LogReader;
use sealing::VerifierKey;
use session_service::SessionService;
use session_view::{Budget, MemoryView};

use crate::config::Config;
use crate::serve::{Core, service_of};

type Failure = Box<dyn Error + Send + Sync>;

/// A service for the time of a command.
pub(crate) struct AtHand {
    service: Arc<SessionService>,
    log: Arc<dyn LogReader>,
    /// The other places are the running service's to keep: they cost an authority or a store something each time.
    file: Option<Arc<dyn Anchor>>,
    keys: Vec<VerifierKey>,
}

impl AtHand {
    /// Starts it.
    ///
    /// # Errors
    /// If the list of verifier keys is spoilt.
    pub(crate) fn start(core: Core, config: &Config) -> Result<Self, Failure> {
        let (log, file, keys) = (Arc::clone(&core.log), core.places.file(), core.keys.verifiers()?);
        let service = service_of(core, config, Arc::new(MemoryView::new(Budget::default())), false);
        Ok(Self { service, log, file, keys })
    }

    /// The service.
    pub(crate) const fn service(&self) -> &Arc<SessionService> {
        &self.service
    }

    /// Ends it and keeps the log's newest checkpoint: what a command recorded while no service runs must not be taken away unnoticed before
    /// the next one starts. That it cannot be kept is said and no more: what was recorded has happened.
    pub(crate) async fn close(self) {
        self.service.close().await;
        let Some(file) = &self.file else { return };
        if let Err(failure) = keep_newest(file, &*self.log, &self.keys).await {
            let why = crate::causes(&failure);
            // Nobody may be listening.
            let _nobody = writeln!(io::stderr(), "counterfoil: the checkpoint could not be kept outside: {why}");
        }
    }
}
