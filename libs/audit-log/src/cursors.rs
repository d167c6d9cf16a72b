//! How far what is pushed elsewhere has come: one cursor for each sink, and who may move it.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use session_model::LeafIndex;
use tokio::time::Instant;

use crate::ReadError;

/// Whether a sink is this holder's to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Claimed {
    /// It is; everything below this index was delivered.
    Yes(LeafIndex),
    /// Another holds it.
    Held,
}

/// Whether a cursor was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Advanced {
    /// It was, or stood there already.
    Yes,
    /// Nothing was done: the lease is another's by now, who will deliver again what was delivered since.
    Lost,
}

/// Cursors of sinks. Not evidence: a cursor that is lost or set back has entries delivered again, never left out.
///
/// *Exclusion:* of all holders that share the store one at a time has a sink's lease, by the store's clock. It ends by itself, so that the sink
/// of a holder that died goes on with another. A holder that stalls beyond its lease may deliver what the next one delivers too.
/// *Durability:* once [`DeliveryCursors::advance`] has answered `Yes`, the cursor survives a crash. *Order:* a cursor never goes back.
#[async_trait]
pub trait DeliveryCursors: Send + Sync + 'static {
    /// Takes or prolongs the lease of a sink. One that was never served begins at `initial`.
    ///
    /// # Errors
    /// [`ReadError`]; the lease is then not to be relied on.
    async fn claim(&self, sink: &str, holder: &str, initial: LeafIndex, lease: Duration) -> Result<Claimed, ReadError>;

    /// Notes that everything below `next` was delivered.
    ///
    /// # Errors
    /// [`ReadError`]; whether it was noted is then unknown, which a new claim tells.
    async fn advance(&self, sink: &str, holder: &str, next: LeafIndex) -> Result<Advanced, ReadError>;

    /// Gives the lease up, so that the next holder need not wait. Nothing happens if it is another's.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn release(&self, sink: &str, holder: &str) -> Result<(), ReadError>;
}

#[derive(Debug)]
struct Row {
    next: LeafIndex,
    holder: String,
    until: Instant,
}

/// Cursors in memory.
#[derive(Debug, Default)]
pub struct MemoryCursors {
    rows: Mutex<HashMap<String, Row>>,
}

#[async_trait]
impl DeliveryCursors for MemoryCursors {
    async fn claim(&self, sink: &str, holder: &str, initial: LeafIndex, lease: Duration) -> Result<Claimed, ReadError> {
        let (mut rows, now) = (self.rows.lock(), Instant::now());
        let row = rows.entry(sink.to_owned()).or_insert(Row { next: initial, holder: holder.to_owned(), until: now });
        if row.holder != holder && row.until > now {
            return Ok(Claimed::Held);
        }
        row.holder = holder.to_owned();
        row.until = now + lease;
        Ok(Claimed::Yes(row.next))
    }

    async fn advance(&self, sink: &str, holder: &str, next: LeafIndex) -> Result<Advanced, ReadError> {
        let mut rows = self.rows.lock();
        let Some(row) = rows.get_mut(sink).filter(|row| row.holder == holder) else { return Ok(Advanced::Lost) };
        row.next = row.next.max(next);
        Ok(Advanced::Yes)
    }

    async fn release(&self, sink: &str, holder: &str) -> Result<(), ReadError> {
        if let Some(row) = self.rows.lock().get_mut(sink).filter(|row| row.holder == holder) {
            row.until = Instant::now();
        }
        Ok(())
    }
}

/// What every store of cursors must pass. `cursors` must be fresh.
#[cfg(feature = "test-util")]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
pub async fn check_cursors(cursors: &dyn DeliveryCursors) {
    let (long, short) = (Duration::from_secs(60), Duration::from_millis(100));
    let at = LeafIndex;
    assert_eq!(cursors.claim("a", "one", at(7), long).await.unwrap(), Claimed::Yes(at(7)), "begins where it is told");
    assert_eq!(cursors.claim("a", "one", at(0), long).await.unwrap(), Claimed::Yes(at(7)), "and only once");
    assert_eq!(cursors.claim("a", "two", at(0), long).await.unwrap(), Claimed::Held);
    assert_eq!(cursors.claim("b", "two", at(0), long).await.unwrap(), Claimed::Yes(at(0)), "another sink is another's");
    assert_eq!(cursors.advance("a", "one", at(9)).await.unwrap(), Advanced::Yes);
    assert_eq!(cursors.advance("a", "one", at(8)).await.unwrap(), Advanced::Yes, "never goes back");
    assert_eq!(cursors.advance("a", "two", at(99)).await.unwrap(), Advanced::Lost);
    assert_eq!(cursors.advance("never claimed", "two", at(99)).await.unwrap(), Advanced::Lost);
    cursors.release("a", "two").await.unwrap();
    assert_eq!(cursors.claim("a", "two", at(0), long).await.unwrap(), Claimed::Held, "only the holder releases");
    cursors.release("a", "one").await.unwrap();
    assert_eq!(cursors.claim("a", "two", at(0), short).await.unwrap(), Claimed::Yes(at(9)));
    assert_eq!(cursors.advance("a", "one", at(99)).await.unwrap(), Advanced::Lost, "the lease is another's");
    tokio::time::sleep(short * 2).await;
    assert_eq!(cursors.claim("a", "three", at(0), long).await.unwrap(), Claimed::Yes(at(9)), "a lease ends by itself");
    assert_eq!(cursors.advance("a", "two", at(99)).await.unwrap(), Advanced::Lost);
}
