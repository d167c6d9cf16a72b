//! Who connects to this node. Until somebody has shown who it is it costs little, and there are few of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::debug;

use crate::connection;
use crate::mesh::Mesh;
use crate::opening::{self, Failure};

/// Connections that have not shown yet who they are.
const STRANGERS: usize = 128;
/// Of these, from one address: many nodes may be behind one, and still it cannot keep the others out.
const OF_ONE_ADDRESS: usize = 16;

/// Strangers that are being looked at.
#[derive(Debug, Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until dropped.
struct Stranger {
    among: Arc<Strangers>,
    from: IpAddr,
}

impl Strangers {
    /// `None` if there are too many.
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Stranger> {
        let mut strangers = self.0.lock();
        let (all, of_it) = (strangers.values().sum::<usize>(), strangers.get(&from).copied().unwrap_or_default());
        if all >= STRANGERS || of_it >= OF_ONE_ADDRESS {
            return None;
        }
        strangers.insert(from, of_it + 1);
        Some(Stranger { among: Arc::clone(self), from })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut strangers = self.among.0.lock();
        if let Some(of_it) = strangers.get_mut(&self.from) {
            *of_it -= 1;
            if *of_it == 0 {
                strangers.remove(&self.from);
            }
        }
    }
}

/// Lets nodes in, for ever.
pub(crate) async fn keep(mesh: Arc<Mesh>, listener: TcpListener) {
    let strangers = Arc::<Strangers>::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match strangers.enter(from.ip().to_canonical()) {
                Some(stranger) => mesh.spawn(look_at(Arc::clone(&mesh), stream, stranger)),
                None => mesh
                    .refused(from.ip().to_canonical(), "too many connect at once and do not say who they are".into()),
            },
            // No descriptors, say: they may come back.
            Err(failure) => {
                debug!(failure = &failure as &dyn std::error::Error, "a connection was not taken");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn look_at(mesh: Arc<Mesh>, stream: TcpStream, stranger: Stranger) {
    let opened = opening::accept(&mesh, stream).await;
    let from = stranger.from;
    drop(stranger);
    match opened {
        Ok(opened) => connection::carry(mesh, opened).await,
        Err(Failure::Nothing) => {}
        Err(failure) if failure.is_itself() => {}
        Err(failure) => mesh.refused(from, said(&failure)),
    }
}

/// What is wrong with somebody who connected.
fn said(failure: &Failure) -> String {
    match failure {
        Failure::Slow => "it does not say who it is in time".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_few_and_one_address_cannot_be_all_of_them() {
        let strangers = Arc::<Strangers>::default();
        let from = |n: u8| IpAddr::from([10, 0, 0, n]);
        let of_one: Vec<_> = (0..50).filter_map(|_| strangers.enter(from(1))).collect();
        assert_eq!(of_one.len(), OF_ONE_ADDRESS);
        let all: Vec<_> = (2..200).filter_map(|n| strangers.enter(from(n))).collect();
        assert_eq!(all.len() + of_one.len(), STRANGERS);
        drop(of_one);
        assert!(strangers.enter(from(1)).is_some());
        drop(all);
        assert!(strangers.0.lock().is_empty());
    }
}
