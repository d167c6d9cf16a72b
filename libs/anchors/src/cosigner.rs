//! The task that has checkpoints cosigned, until a quorum of witnesses has.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_log::{LogHead, LogReader, ReadError};
use futures::future::join_all;
use merkle_log::{AddCheckpoint, Plan, Verifier, good_lines};
use parking_lot::Mutex;
use sealing::VerifierKeys;
use session_model::TreeSize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::check::{open_signed, prove};
use crate::{Added, ContradictionError, PlaceError, WitnessClient, replace_file};

/// Whom to ask, and how many must agree.
#[derive(Debug)]
pub struct CosignerConfig {
    /// The witnesses.
    pub witnesses: Vec<WitnessClient>,
    /// How many of them a checkpoint needs.
    pub quorum: usize,
    /// Pause between two checkpoints.
    pub pause: Duration,
    /// File of the newest checkpoint that has its quorum.
    pub file: PathBuf,
}

/// A checkpoint with the lines of a quorum under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    /// Its size.
    pub size: TreeSize,
    /// The note: the log's signature lines, then the witnesses'.
    pub text: String,
}

/// How a witness is doing.
#[derive(Debug, Clone)]
pub struct WitnessStatus {
    /// Its name.
    pub name: String,
    /// Size it has cosigned last, as far as known.
    pub size: Option<TreeSize>,
    /// Why it did not cosign at the last turn, if so.
    pub failure: Option<String>,
    /// Whether it has seen another history than the log's.
    pub contradicted: bool,
}

/// Has checkpoints cosigned.
#[derive(Debug)]
pub struct Cosigner {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    config: CosignerConfig,
    keys: VerifierKeys,
    newest: Mutex<Option<Cosigned>>,
    statuses: Mutex<Vec<WitnessStatus>>,
}

/// Why a witness did not cosign.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the witness was not asked to the end")]
    Cancelled(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Contradiction(Box<ContradictionError>),
}

impl Cosigner {
    /// Asks every witness once, and then goes on asking.
    ///
    /// # Errors
    /// [`ContradictionError`] if one of them has seen another or a longer history than the log's. One that cannot be reached is asked again
    /// later.
    pub async fn start(
        config: CosignerConfig,
        log: Arc<dyn LogReader>,
        keys: impl Into<VerifierKeys>,
    ) -> Result<Self, ContradictionError> {
        let keys = keys.into();
        let status = |witness: &WitnessClient| WitnessStatus {
            name: witness.name().to_owned(),
            size: None,
            failure: None,
            contradicted: false,
        };
        let statuses = config.witnesses.iter().map(status).collect();
        let pause = config.pause;
        let shared = Arc::new(Shared { config, keys, newest: Mutex::new(None), statuses: Mutex::new(statuses) });
        shared.load();
        if let Some(contradiction) = shared.turn(&*log).await {
            return Err(contradiction);
        }
        let (stop, mut stopping) = watch::channel(false);
        let asking = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let is_last = tokio::select! {
                    _ = ticks.tick() => false,
                    _ = stopping.changed() => true,
                };
                if let Some(failure) = asking.turn(&*log).await {
                    error!(failure = &failure as &dyn Error, "THE LOG WAS TAMPERED WITH");
                }
                if is_last {
                    break;
                }
            }
        });
        Ok(Self { shared, stop, task })
    }

    /// What shows how the witnesses are doing, and the newest checkpoint that has its quorum.
    pub fn view(&self) -> CosignerView {
        CosignerView { shared: Arc::clone(&self.shared) }
    }

    /// Has the newest checkpoint cosigned and ends; gives up after `limit`.
    pub async fn close(mut self, limit: Duration) {
        // The task may have ended already.
        let _nobody_listens = self.stop.send(true);
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            warn!("the last checkpoint could not be cosigned in time");
            self.task.abort();
        }
    }
}

/// Shows how the witnesses are doing.
#[derive(Debug, Clone)]
pub struct CosignerView {
    shared: Arc<Shared>,
}

impl CosignerView {
    /// The newest checkpoint that has its quorum.
    pub fn newest(&self) -> Option<Cosigned> {
        self.shared.newest.lock().clone()
    }

    /// How each witness is doing.
    pub fn statuses(&self) -> Vec<WitnessStatus> {
        self.shared.statuses.lock().clone()
    }

    /// How many must agree.
    pub fn quorum(&self) -> usize {
        self.shared.config.quorum
    }
}

impl Shared {
    /// Takes up the newest checkpoint with its quorum from before, if it still has it: the witnesses may have changed.
    fn load(&self) {
        let Ok(text) = std::fs::read_to_string(&self.config.file) else { return };
        let Ok(head) = open_signed(&text, &self.keys.current()) else { return };
        if self.lines(&text).len() >= self.config.quorum {
            *self.newest.lock() = Some(Cosigned { size: head.size, text });
        }
    }

    /// The good lines of our witnesses under a checkpoint.
    fn lines(&self, text: &str) -> Vec<String> {
        let keys = self.config.witnesses.iter();
        let keys = keys.map(|witness| Box::new(witness.verifier().clone()) as Box<dyn Verifier>).collect();
        good_lines(text, keys).unwrap_or_default()
    }

    /// Has the newest checkpoint cosigned by as many as can be reached. Answers the first contradiction.
    async fn turn(&self, log: &dyn LogReader) -> Option<ContradictionError> {
        let head = match log.head().await {
            Ok(head) => head,
            Err(failure) => {
                warn!(failure = &failure as &dyn Error, "the log cannot be read: nothing is cosigned");
                return None;
            }
        };
        let checkpoint = head.checkpoint.clone()?;
        let known: Vec<Option<TreeSize>> = self.statuses.lock().iter().map(|status| status.size).collect();
        let asked = self.config.witnesses.iter().zip(known);
        let answers = join_all(asked.map(|(witness, known)| ask(log, witness, &head, &checkpoint, known))).await;
        let mut contradiction = None;
        let mut text = checkpoint;
        for (status, answer) in self.statuses.lock().iter_mut().zip(answers) {
            match answer {
                Ok(line) => {
                    text.push_str(&line);
                    status.size = Some(head.size());
                    status.failure = None;
                }
                Err(failure) => {
                    if status.failure.is_none() {
                        warn!(failure = &failure as &dyn Error, witness = status.name, "a witness did not cosign");
                    }
                    status.failure = Some(failure.to_string());
                    if let AskError::Contradiction(failure) = failure {
                        status.contradicted = true;
                        contradiction = contradiction.or(Some(*failure));
                    }
                }
            }
        }
        if self.lines(&text).len() >= self.config.quorum {
            self.keep(Cosigned { size: head.size(), text });
        }
        contradiction
    }

    fn keep(&self, cosigned: Cosigned) {
        if let Err(failure) = replace_file(&self.config.file, cosigned.text.as_bytes()) {
            warn!(failure = &failure as &dyn Error, "the cosigned checkpoint could not be written to its file");
        }
        *self.newest.lock() = Some(cosigned);
    }
}

/// Asks one witness, from what it has seen last; what that is it says itself.
async fn ask(
    log: &dyn LogReader,
    witness: &WitnessClient,
    head: &LogHead,
    checkpoint: &str,
    known: Option<TreeSize>,
) -> Result<String, AskError> {
    let place = || witness.place().to_owned();
    let mut old = known.unwrap_or(TreeSize(0));
    // Once from where it was left, once from where it says it is, and once more if another node was faster.
    for _ in 0..3 {
        if old > head.size() {
            let failure = ContradictionError::RolledBack { size: head.size(), anchored: old, place: place() };
            return Err(AskError::Contradiction(Box::new(failure)));
        }
        let proof = if old.0 == 0 || old == head.size() {
            Vec::new()
        } else {
            prove(log, &Plan::consistency(old, head.size())).await?
        };
        let request = AddCheckpoint { old, proof, checkpoint: checkpoint.to_owned() };
        let client = witness.clone();
        match tokio::task::spawn_blocking(move || client.add(&request)).await?? {
            Added::Cosigned(line) => return Ok(line),
            // Another node of this log may have had a newer checkpoint cosigned than the one read here.
            Added::At(size) if size > head.size() && log.head().await?.size() >= size => {
                return Err(PlaceError::new(witness.place(), "is ahead of what was asked for: asked again soon").into());
            }
            Added::At(size) => old = size,
            Added::Contradicts(_) => {
                let failure = ContradictionError::Rewritten { anchored: old, place: place() };
                return Err(AskError::Contradiction(Box::new(failure)));
            }
        }
    }
    Err(PlaceError::new(witness.place(), "says another size each time it is asked").into())
}
