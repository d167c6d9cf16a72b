//! The life of a connection: what one task does with it, both ways.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use crate::mesh::Mesh;
use crate::opening::{Opened, Stream};
use crate::roster::{Order, Place};
use crate::wire::{Malformed, Unit};

/// Bytes that are read at once, where the stream gives so many.
const AT_ONCE: usize = 128 << 10;
/// Signs of life in a lease.
const SIGNS: u32 = 4;
/// Known nodes are told again after so long, though nothing has changed: it keeps them in others' memory.
const TOLD_AGAIN: Duration = Duration::from_secs(5);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("both said goodbye")]
    Goodbye,
    #[error("the other side ended it")]
    Closed,
    #[error("nothing came for the lease")]
    Silent,
    #[error("{0}")]
    Cut(String),
    #[error("what came is none of ours: {0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Carries frames both ways until the connection ends.
pub(crate) async fn carry(mesh: Arc<Mesh>, opened: Opened) {
    let Opened { stream, peer, place, remote } = opened;
    let who = peer.incarnation;
    if place.is_first {
        info!(%remote, peer = %who, "a node of the cluster is connected");
    } else {
        debug!(%remote, peer = %who, "a further connection to a node of the cluster");
    }
    // One task has the stream: the halves only let it read and write by turns.
    let (reader, writer) = tokio::io::split(stream);
    // Whether the peer has said goodbye.
    let (parted, parting) = watch::channel(false);
    let mut cut = place.orders.clone();
    let cut = async {
        match cut.wait_for(|order| matches!(order, Order::Cut(_))).await.as_deref() {
            Ok(Order::Cut(why)) => End::Cut(why.clone()),
            _ => End::Closed,
        }
    };
    let end = tokio::select! {
        end = hear(&mesh, reader, &place, &parted) => end,
        end = speak(&mesh, writer, &place, parting, remote.ip()) => end.unwrap_or_else(End::from),
        end = cut => end,
    };
    drop(place);
    if mesh.roster.has(who, 0) {
        debug!(%remote, peer = %who, why = %end, "a connection to a node of the cluster has ended");
    } else {
        info!(%remote, peer = %who, why = %end, "a node of the cluster is not connected any more");
    }
}

/// Takes what comes, until nothing comes any more.
async fn hear(mesh: &Mesh, mut reader: ReadHalf<Box<dyn Stream>>, place: &Place, parted: &watch::Sender<bool>) -> End {
    let (mut came, mut counts) = (BytesMut::new(), false);
    loop {
        came.reserve(AT_ONCE);
        match timeout(mesh.config.lease, reader.read_buf(&mut came)).await {
            Err(_) => return End::Silent,
            Ok(Err(failure)) if failure.kind() == io::ErrorKind::UnexpectedEof => return End::Closed,
            Ok(Err(failure)) => return End::Io(failure),
            Ok(Ok(0)) => return End::Closed,
            Ok(Ok(_)) if !counts => {
                counts = true;
                mesh.roster.counts(place);
            }
            Ok(Ok(_)) => {}
        }
        loop {
            match Unit::decode(&mut came) {
                Ok(Some(Unit::Frame(frame))) => mesh.inbox.put(frame),
                Ok(Some(Unit::Known(nodes))) => mesh.learn(nodes),
                Ok(Some(Unit::Alive)) => {}
                Ok(Some(Unit::Bye { leaves })) => {
                    if leaves {
                        mesh.learned.lock().forget(place.peer);
                    }
                    mesh.roster.retires(place);
                    parted.send_replace(true);
                    // Nothing comes behind it. Our own goodbye ends the connection.
                    return std::future::pending().await;
                }
                Ok(None) => break,
                Err(failure) => return End::Malformed(failure),
            }
        }
    }
}

/// Says what there is to say, until there is no more.
async fn speak(
    mesh: &Mesh,
    mut writer: WriteHalf<Box<dyn Stream>>,
    place: &Place,
    parting: watch::Receiver<bool>,
    seen: std::net::IpAddr,
) -> Result<End, io::Error> {
    let (mut orders, mut changes) = (place.orders.clone(), mesh.roster.changes());
    changes.mark_changed();
    let (mut words, mut told) = (BytesMut::new(), Instant::now());
    // Before all else, so that who accepted knows that it was taken in.
    Unit::Alive.encode(&mut words);
    loop {
        if !words.is_empty() {
            writer.write_all(&words).await?;
            writer.flush().await?;
            words.clear();
        }
        let order = orders.borrow_and_update().clone();
        if matches!(order, Order::Retire | Order::Leave) {
            return part(mesh, &mut writer, place, parting, order == Order::Leave).await;
        }
        let now = Instant::now();
        tokio::select! {
            biased;
            // What is ordered is looked at above.
            _ = orders.changed() => {}
            _ = changes.changed() => {
                told = now;
                Unit::Known(mesh.roster.known_to(place.peer, seen)).encode(&mut words);
            }
            () = place.queue.take(&mut words), if order == Order::Carry => {}
            () = sleep_until(now + mesh.config.lease / SIGNS) => Unit::Alive.encode(&mut words),
        }
        if told.elapsed() > TOLD_AGAIN {
            changes.mark_changed();
        }
    }
}

/// Says goodbye, and waits for that of the peer, which may have more to say before.
async fn part(
    mesh: &Mesh,
    writer: &mut WriteHalf<Box<dyn Stream>>,
    place: &Place,
    mut parting: watch::Receiver<bool>,
    leaves: bool,
) -> Result<End, io::Error> {
    let mut words = BytesMut::new();
    // Who retires leaves the queue to the connection that goes on.
    while leaves && place.queue.take_now(&mut words) {
        writer.write_all(&words).await?;
        words.clear();
    }
    Unit::Bye { leaves }.encode(&mut words);
    writer.write_all(&words).await?;
    writer.flush().await?;
    let heard = timeout(mesh.config.lease, parting.wait_for(|parted| *parted)).await.is_ok_and(|heard| heard.is_ok());
    writer.shutdown().await?;
    Ok(if heard { End::Goodbye } else { End::Silent })
}
