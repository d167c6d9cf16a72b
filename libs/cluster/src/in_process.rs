//! A network in this process that loses, repeats, reorders and cuts, by a seed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::{Audience, Capabilities, Incarnation, Received, SendError, Transport};

/// What the network does to a frame on its way to one node.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Share of frames that never arrive.
    pub loss: f64,
    /// Share of frames that arrive twice.
    pub repeat: f64,
    /// The longest that a frame takes: each takes a random part of it, so that they overtake one another.
    pub delay: Duration,
}

impl Weather {
    /// Nothing is lost, repeated or late.
    pub const FAIR: Self = Self { loss: 0.0, repeat: 0.0, delay: Duration::ZERO };
}

/// A network of nodes.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    random: SmallRng,
    weather: Weather,
    nodes: Vec<Node>,
    /// Directions that are cut: what the first sends does not reach the second.
    cuts: BTreeSet<(Incarnation, Incarnation)>,
    max_frame: usize,
    records: bool,
    /// Every frame that was sent, for tests that look at the wire.
    wire: Option<Vec<Vec<u8>>>,
}

struct Node {
    incarnation: Incarnation,
    inbox: mpsc::Sender<Received>,
}

/// Frames that wait for a node at most: beyond them it loses some, as a socket does.
const INBOX: usize = 65_536;

impl Network {
    /// A network whose whims come from a seed.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: SmallRng::seed_from_u64(seed),
            weather,
            nodes: Vec::new(),
            cuts: BTreeSet::new(),
            max_frame: 16_384,
            records: true,
            wire: None,
        })))
    }

    /// Plugs a node in.
    pub fn join(&self, incarnation: Incarnation) -> Arc<InProcess> {
        let (inbox, frames) = mpsc::channel(INBOX);
        self.0.lock().nodes.push(Node { incarnation, inbox });
        Arc::new(InProcess { network: self.clone(), me: incarnation, inbox: tokio::sync::Mutex::new(frames) })
    }

    /// Changes the weather.
    pub fn weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// Frames of at most so many bytes from now on.
    pub fn max_frame(&self, bytes: usize) {
        self.0.lock().max_frame = bytes;
    }

    /// What is committed is not worth sending from now on.
    pub fn without_records(&self) {
        self.0.lock().records = false;
    }

    /// Cuts the way from one node to another; the way back stays.
    pub fn cut(&self, from: Incarnation, to: Incarnation) {
        self.0.lock().cuts.insert((from, to));
    }

    /// Heals every cut.
    pub fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    /// Takes a node out without a word to anybody, as a crash of its machine does.
    pub fn unplug(&self, node: Incarnation) {
        self.0.lock().nodes.retain(|other| other.incarnation != node);
    }

    /// Keeps every frame from now on.
    pub fn listen(&self) {
        self.0.lock().wire = Some(Vec::new());
    }

    /// The frames kept since.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.0.lock().wire.clone().unwrap_or_default()
    }

    /// Puts bytes on the wire that no node sent.
    pub fn inject(&self, frame: &[u8]) {
        for node in &self.0.lock().nodes {
            let _full_inbox_loses = node.inbox.try_send(Received::Frame(frame.to_vec()));
        }
    }
}

/// A node's plug in the network.
pub struct InProcess {
    network: Network,
    me: Incarnation,
    inbox: tokio::sync::Mutex<mpsc::Receiver<Received>>,
}

#[async_trait]
impl Transport for InProcess {
    fn capabilities(&self) -> Capabilities {
        let state = self.network.0.lock();
        Capabilities {
            name: "in_process",
            max_frame: state.max_frame,
            addressed: true,
            records: state.records,
            encrypted_link: false,
            peer_authentication: false,
            tells_departures: true,
        }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        let mut guard = self.network.0.lock();
        let state = &mut *guard;
        if frame.len() > state.max_frame {
            return Err(SendError::TooLarge(frame.len()));
        }
        if let Some(wire) = &mut state.wire {
            wire.push(frame.to_vec());
        }
        for node in &state.nodes {
            let meant = match to {
                Audience::Everybody => node.incarnation != self.me,
                Audience::One(one) => node.incarnation == one,
            };
            if !meant || state.cuts.contains(&(self.me, node.incarnation)) {
                continue;
            }
            let times = if state.random.random_bool(state.weather.repeat) { 2 } else { 1 };
            for _ in 0..times {
                if state.random.random_bool(state.weather.loss) {
                    continue;
                }
                let delay = state.weather.delay.mul_f64(state.random.random());
                let (inbox, received) = (node.inbox.clone(), Received::Frame(frame.to_vec()));
                if delay.is_zero() {
                    let _full_inbox_loses = inbox.try_send(received);
                } else {
                    tokio::spawn(async move {
                        sleep(delay).await;
                        let _full_inbox_loses = inbox.try_send(received);
                    });
                }
            }
        }
        Ok(())
    }

    async fn receive(&self) -> Option<Received> {
        self.inbox.lock().await.recv().await
    }

    fn describe(&self) -> Vec<String> {
        vec![format!("{} nodes in this process", self.network.0.lock().nodes.len())]
    }

    async fn close(&self) {
        let mut state = self.network.0.lock();
        state.nodes.retain(|node| node.incarnation != self.me);
        for node in &state.nodes {
            let _full_inbox_loses = node.inbox.try_send(Received::Departed(self.me));
        }
    }
}
