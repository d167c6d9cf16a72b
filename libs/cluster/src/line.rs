//! A line: frames of another cluster, carried within this one's.
//!
//! A process may keep more than one log. The nodes of each are a cluster of their own, with keys, members and standings of its own, and most media
//! would have to be opened once for each: a port, a group, a connection. A line spares that: it is a [`Transport`] whose frames are messages of
//! a cluster that is there already. They are sealed twice, inside for the log whose they are.

use std::sync::Arc;

use async_trait::async_trait;

use crate::cluster::Shared;
use crate::{Audience, Capabilities, Inbox, Message, Received, Room, SendError, Transport};

/// Tells the lines of a cluster apart: the same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineId(pub [u8; 8]);

/// Bytes that a frame is longer than on its own: kind and id.
const HEAD: usize = 1 + 8;

/// What may wait on a line: a burst that comes while the last is opened.
const ROOM: Room = Room { frames: 4_096, bytes: 16 << 20 };

/// One end of a line.
pub(crate) struct Line {
    id: LineId,
    base: Arc<Shared>,
    inbox: Arc<Inbox>,
}

impl Line {
    pub(crate) fn new(id: LineId, base: Arc<Shared>) -> (Self, Arc<Inbox>) {
        let inbox = Arc::new(Inbox::new(ROOM));
        (Self { id, base, inbox: Arc::clone(&inbox) }, inbox)
    }
}

#[async_trait]
impl Transport for Line {
    fn capabilities(&self) -> Capabilities {
        let base = self.base.capabilities();
        let max_frame = self.base.max_message().saturating_sub(HEAD);
        // Who leaves says so by a beat; one whose process has gone is missed after the lease.
        Capabilities { max_frame, tells_departures: false, ..base }
    }

    fn send(&self, to: Audience, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() + HEAD > self.base.max_message() {
            return Err(SendError::TooLarge(frame.len()));
        }
        self.base.try_send(to, &Message::Line(self.id, frame.to_vec()).encode())
    }

    async fn receive(&self) -> Option<Received> {
        self.inbox.take().await
    }

    fn describe(&self) -> Vec<String> {
        vec!["carried by the cluster of the first log".to_owned()]
    }

    async fn close(&self) {
        self.inbox.close();
    }
}
