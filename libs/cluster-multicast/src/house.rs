//! What a node does of itself: announces, joins again, counts what was dropped, watches its peers.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::{Incarnation, Received};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, warn};

use crate::MulticastError;
use crate::datagram::{HERE, Here};
use crate::drops::Drops;
use crate::interface::Place;
use crate::sockets::{Sockets, tried};
use crate::transport::Shared;
use crate::watch::{self, Reached};

/// How often drops are counted.
const TICK: Duration = Duration::from_millis(250);
/// Between two announcements.
const ANNOUNCE: Duration = Duration::from_secs(1);
/// Between two announcements at least, however many new nodes ask for one by being announced themselves.
const PAUSE: Duration = Duration::from_millis(20);

/// The listener that others watch.
pub(crate) fn listener(place: &Place) -> Result<(TcpListener, u16), MulticastError> {
    let listening = || {
        let listener = StdListener::bind(place.at(0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((TcpListener::from_std(listener)?, port))
    };
    listening().map_err(tried("the port to be watched at cannot be had"))
}

/// The datagram that announces a node.
pub(crate) fn announcement(incarnation: Incarnation, port: u16) -> Vec<u8> {
    [&[HERE], Here { incarnation, port }.encode().as_slice()].concat()
}

/// Does all of it, for ever. The node was announced just now.
pub(crate) async fn keep(shared: Arc<Shared>, sockets: Arc<Sockets>, here: Vec<u8>) {
    let mut drops = Drops::of(&sockets.descriptors(), shared.group.is_ipv4());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watches = JoinSet::new();
    let mut announced = Instant::now();
    loop {
        let news = tokio::select! {
            _ = ticks.tick() => false,
            () = shared.news.notified() => true,
        };
        if news {
            sleep_until(announced + PAUSE).await;
        }
        let now = Instant::now();
        if news || now.saturating_duration_since(announced) >= ANNOUNCE {
            // One that finds no room is followed by another.
            let _taken = shared.outbox.push(shared.group, here.clone());
            announced = now;
            join_again(&shared, &sockets);
        }
        let more = drops.more().await;
        if more > 0 {
            shared.counters.dropped.fetch_add(more, Ordering::Relaxed);
            shared.tell(Received::Lost);
        }
        let unwatched = {
            let mut peers = shared.peers.lock();
            peers.tick(now);
            peers.unwatched(now)
        };
        while watches.try_join_next().is_some() {}
        for (who, at) in unwatched {
            watches.spawn(watch_one(Arc::clone(&shared), who, at));
        }
    }
}

/// Whatever became of the interface meanwhile.
fn join_again(shared: &Shared, sockets: &Sockets) {
    let joined = Place::find(shared.config.interface.as_ref(), shared.config.group);
    let place = match joined {
        Ok(place) => place,
        Err(failure) => return shared.trouble("the interface has gone", &failure),
    };
    if let Err(failure) = sockets.join_again(shared.config.group, &place) {
        shared.trouble("the group cannot be joined", &failure);
    }
}

async fn watch_one(shared: Arc<Shared>, who: Incarnation, at: SocketAddr) {
    let stream = match watch::reach(who, at, shared.place.at(0)).await {
        Reached::It(stream) => stream,
        // It has gone before it was ever watched. Said of a node of the cluster this could be a forged announcement's doing.
        Reached::Nobody if shared.peers.lock().is_hearsay(who) => {
            shared.peers.lock().gone(who);
            return shared.tell(Received::Departed(who));
        }
        Reached::Nobody | Reached::Nothing => {
            debug!(%who, %at, "a node cannot be watched: its end is seen by its silence");
            return shared.peers.lock().not_watched(who, Instant::now());
        }
    };
    shared.peers.lock().watching(who);
    if watch::ended(stream).await {
        shared.peers.lock().gone(who);
        shared.tell(Received::Departed(who));
    } else {
        warn!(%who, %at, "the connection to a node broke, which says nothing of the node");
        shared.peers.lock().not_watched(who, Instant::now());
    }
}
