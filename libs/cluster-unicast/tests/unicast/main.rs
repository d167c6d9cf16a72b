//! Connections over loopback: the rules of every transport, with and without TLS, who finds whom, and who is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop"
)]

mod certificates;
mod finding;
mod going;
mod strangers;
mod support;

use std::sync::Arc;

use async_trait::async_trait;
use cluster::conformance::Medium;
use cluster::{Incarnation, Transport};
use cluster_unicast::{UnicastConfig, UnicastError, UnicastTls, UnicastTransport};

use crate::support::{Authority, free_ports, life, plain, tls};

/// Three places in a cluster that is this test's own.
struct Loopback {
    ports: [String; 3],
    authority: Option<Authority>,
}

#[async_trait]
impl Medium for Loopback {
    async fn join(&self, incarnation: Incarnation) -> Arc<dyn Transport> {
        let listen = &self.ports[usize::from(incarnation.0[0]) - 1];
        let config = match &self.authority {
            None => plain(listen, &self.ports),
            Some(authority) => {
                let names = (1..=3).map(|n| life(n).to_string()).collect();
                let given = authority.valid(&incarnation.to_string());
                tls(listen, &self.ports, UnicastTls { allowed_names: Some(names), ..given })
            }
        };
        Arc::new(UnicastTransport::open(config, incarnation).await.unwrap())
    }
}

mod over_tcp {
    cluster::transport_conformance!(async { super::Loopback { ports: super::free_ports(), authority: None } });
}

mod over_tls {
    cluster::transport_conformance!(async {
        super::Loopback { ports: super::free_ports(), authority: Some(super::Authority::new()) }
    });
}

#[tokio::test]
async fn what_is_not_safe_is_refused() {
    let authority = Authority::new();
    let [a] = free_ports();
    let refused = async |config: UnicastConfig| match UnicastTransport::open(config, life(1)).await {
        Err(UnicastError::Configuration(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    };
    assert!(refused(UnicastConfig::new("test", vec![a.clone()])).await.contains("plaintext"));
    let both = UnicastConfig { plaintext: true, ..tls(&a, &[], authority.valid("one")) };
    assert!(refused(both).await.contains("exclude"));
    let anybody = UnicastTls { verify_host: false, ..authority.valid("one") };
    assert!(refused(tls(&a, &[], anybody)).await.contains("names"));
    let nobody = UnicastTls { allowed_names: Some(vec![]), ..authority.valid("one") };
    assert!(refused(tls(&a, &[], nobody)).await.contains("nobody"));
    assert!(refused(plain("tcp/127.0.0.1:1", &[])).await.contains("host:port"));
    assert!(refused(plain(&a, &["host".into()])).await.contains("host:port"));
    assert!(refused(UnicastConfig { cluster_id: "a/*".into(), ..plain(&a, &[]) }).await.contains("cluster id"));
}

#[tokio::test]
async fn an_address_in_use_is_said() {
    let [a] = free_ports();
    let _first = UnicastTransport::open(plain(&a, &[]), life(1)).await.unwrap();
    let second = UnicastTransport::open(plain(&a, &[]), life(2)).await;
    assert!(matches!(second, Err(UnicastError::Listen(at, _)) if at == a));
}
