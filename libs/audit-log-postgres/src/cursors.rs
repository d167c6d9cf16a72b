//! How far what is pushed elsewhere has come, and which node pushes it.

use std::time::Duration;

use async_trait::async_trait;
use audit_log::{Advanced, Claimed, DeliveryCursors, ReadError};
use session_model::LeafIndex;

use crate::PostgresLog;
use crate::open::{signed, unavailable, unsigned};

#[async_trait]
impl DeliveryCursors for PostgresLog {
    async fn claim(&self, sink: &str, holder: &str, initial: LeafIndex, lease: Duration) -> Result<Claimed, ReadError> {
        let next: Option<i64> =
            sqlx::query_scalar("SELECT counterfoil.claim_sink($1, $2, $3, make_interval(secs => $4))")
                .bind(sink)
                .bind(holder)
                .bind(signed(initial.0))
                .bind(lease.as_secs_f64())
                .fetch_one(&self.readers)
                .await
                .map_err(unavailable)?;
        next.map_or(Ok(Claimed::Held), |next| Ok(Claimed::Yes(LeafIndex(unsigned(next)?))))
    }

    async fn advance(&self, sink: &str, holder: &str, next: LeafIndex) -> Result<Advanced, ReadError> {
        let moved: bool = sqlx::query_scalar("SELECT counterfoil.advance_sink($1, $2, $3)")
            .bind(sink)
            .bind(holder)
            .bind(signed(next.0))
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(if moved { Advanced::Yes } else { Advanced::Lost })
    }

    async fn release(&self, sink: &str, holder: &str) -> Result<(), ReadError> {
        sqlx::query("SELECT counterfoil.release_sink($1, $2)")
            .bind(sink)
            .bind(holder)
            .execute(&self.readers)
            .await
            .map_err(unavailable)?;
        Ok(())
    }
}
