//! Each node sends to the others what it holds and they should, as often as somebody comes or goes, and once a second to make up for what was
//! lost on the way; and drops what it should not hold, once everybody who should has said that it has it.
//!
//! Nodes say of each slot a sum over what they hold of it, and states are sent of slots whose sums differ. Of slots that both hold the sums
//! differ for a moment whenever something changes, so those are sent if they have differed twice in a row.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::{AskError, Incarnation, Placement};
use futures::future::join_all;
use hashbrown::HashMap;
use session_model::{SLOTS, Slot};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use crate::message::{Question, Reply};
use crate::owning::{Owning, send};
use crate::store::ask;

/// Between two rounds, and while not everybody holds what it should.
const ROUND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(100);

/// What was found out about another member, by the placement of a digest.
#[derive(Default)]
struct Peer {
    digest: u64,
    /// It was told that it has been sent everything.
    told: bool,
    /// Slots that differed in the last round.
    differed: HashSet<Slot>,
}

/// Goes on for ever.
pub(crate) async fn rounds(owning: Arc<Owning>) {
    let mut placements = owning.cluster().placements();
    let mut peers: HashMap<Incarnation, Peer> = HashMap::new();
    let mut settled = false;
    loop {
        placements.mark_unchanged();
        let placement = owning.placement();
        peers.retain(|who, _| placement.members().contains(who));
        let done = round(&owning, &placement, &mut peers).await;
        let settles = done && owning.is_settled();
        if settles && !settled {
            let held = owning.replica.slot_sums().iter().filter(|sum| **sum != 0).count();
            info!(
                nodes = placement.members().len(),
                slots = held,
                "this node holds the transient sessions that it should"
            );
        }
        settled = settles;
        let pause = if settled { ROUND } else { SOON };
        // A new placement cuts it short; that there will be none for ever does not.
        if matches!(timeout(pause, placements.changed()).await, Ok(Err(_))) {
            sleep(pause).await;
        }
    }
}

/// One round with everybody. Says whether everybody has everything from this node.
async fn round(owning: &Owning, placement: &Placement, peers: &mut HashMap<Incarnation, Peer>) -> bool {
    let sums = owning.replica.slot_sums();
    let mut with = Vec::new();
    for who in placement.others() {
        let mut peer = peers.remove(&who).unwrap_or_default();
        if peer.digest != placement.digest() {
            peer = Peer { digest: placement.digest(), ..Peer::default() };
        }
        with.push((who, peer));
    }
    let sent = with.into_iter().map(async |(who, mut peer)| {
        let sent = hand_over(owning, placement, who, &sums, &mut peer).await;
        (who, peer, sent)
    });
    // By slot, how many members have all that this node holds of it.
    let (mut have, mut all) = (vec![0_usize; SLOTS], true);
    for (who, peer, sent) in join_all(sent).await {
        match sent {
            Ok(lacking) => {
                for (slot, have) in Slot::all().zip(have.iter_mut()) {
                    *have += usize::from(placement.is_held_by(slot, who) && !lacking.contains(&slot));
                }
            }
            Err(failure) => {
                debug!(%failure, %who, "a node could not be sent what it should hold");
                all = false;
            }
        }
        all &= peer.told;
        peers.insert(who, peer);
    }
    let strays = Slot::all().zip(&sums).zip(&have).filter(|((slot, sum), have)| {
        **sum != 0 && !placement.is_held_here(*slot) && **have == placement.holders(*slot).len()
    });
    let strays: Vec<(Slot, u64)> = strays.map(|((slot, sum), _)| (slot, *sum)).collect();
    if !strays.is_empty() {
        let sessions = owning.replica.drop_slots(&strays);
        debug!(slots = strays.len(), sessions, "dropped what others hold");
    }
    all
}

/// Sends one member what it lacks. Answers the slots of which it may lack something all the same.
async fn hand_over(
    owning: &Owning,
    placement: &Placement,
    who: Incarnation,
    sums: &[u64],
    peer: &mut Peer,
) -> Result<HashSet<Slot>, AskError> {
    let its = Slot::all().zip(sums).filter(|(slot, sum)| **sum != 0 && placement.is_held_by(*slot, who));
    let compare = Question::Compare { digest: placement.digest(), sums: its.map(|(slot, sum)| (slot, *sum)).collect() };
    let differing: HashSet<Slot> = match ask(owning.cluster(), who, &compare).await? {
        Reply::Differing { slots, sent } => {
            // It has seen members come and go, and come back, that this node has not.
            peer.told &= sent;
            slots.into_iter().collect()
        }
        // It will see the same members, or this node what it sees: soon.
        _ => return Err(AskError::Unanswered),
    };
    let at_once = |slot: &Slot| !peer.told || !placement.is_held_here(*slot) || peer.differed.contains(slot);
    let (now, later): (HashSet<Slot>, HashSet<Slot>) = differing.iter().copied().partition(at_once);
    if !now.is_empty() {
        send(owning, who, owning.replica.in_slots(|slot| now.contains(&slot))).await?;
    }
    peer.differed.clone_from(&later);
    if !peer.told {
        let sent = Question::Sent { digest: placement.digest() };
        peer.told = matches!(ask(owning.cluster(), who, &sent).await?, Reply::Taken);
    }
    Ok(later)
}
