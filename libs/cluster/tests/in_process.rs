//! The in-process network passes the conformance suite, in fair weather and in foul.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::in_process::{Network, Weather};
use cluster::{Incarnation, Transport};

struct Wires(Network);

#[async_trait]
impl Medium for Wires {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        self.0.join(incarnation)
    }
}

mod fair {
    use super::*;

    cluster::transport_conformance!(async { Wires(Network::new(1, Weather::FAIR)) });
}

mod foul {
    use super::*;

    cluster::transport_conformance!(async {
        let foul = Weather { loss: 0.1, repeat: 0.1, delay: Duration::from_millis(20) };
        Wires(Network::new(2, foul))
    });
}
