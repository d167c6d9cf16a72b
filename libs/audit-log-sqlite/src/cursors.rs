//! How far what is pushed elsewhere has come.

use std::time::Duration;

use async_trait::async_trait;
use audit_log::{Advanced, Claimed, DeliveryCursors, ReadError};
use session_model::LeafIndex;

use crate::SqliteLog;
use crate::open::{signed, unavailable, unsigned};

/// Microseconds since 1970 by SQLite's clock. Two programs on one file are on one machine.
macro_rules! now_us {
    () => {
        "CAST((julianday('now') - 2440587.5) * 86400000000.0 AS INTEGER)"
    };
}

#[async_trait]
impl DeliveryCursors for SqliteLog {
    async fn claim(&self, sink: &str, holder: &str, initial: LeafIndex, lease: Duration) -> Result<Claimed, ReadError> {
        let sql = concat!(
            "INSERT INTO sink_cursor AS c (sink, next, holder, until_us) VALUES (?1, ?3, ?2, ",
            now_us!(),
            " + ?4) ON CONFLICT (sink) DO UPDATE SET holder = ?2, until_us = ",
            now_us!(),
            " + ?4 WHERE c.holder = ?2 OR c.until_us <= ",
            now_us!(),
            " RETURNING next"
        );
        let lease = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
        let mut writer = self.writer().await.map_err(unavailable)?;
        let next: Option<i64> = sqlx::query_scalar(sql)
            .bind(sink)
            .bind(holder)
            .bind(signed(initial.0))
            .bind(lease)
            .fetch_optional(writer.connection())
            .await
            .map_err(unavailable)?;
        writer.release();
        next.map_or(Ok(Claimed::Held), |next| Ok(Claimed::Yes(LeafIndex(unsigned(next)?))))
    }

    async fn advance(&self, sink: &str, holder: &str, next: LeafIndex) -> Result<Advanced, ReadError> {
        let mut writer = self.writer().await.map_err(unavailable)?;
        let moved = sqlx::query("UPDATE sink_cursor SET next = max(next, ?3) WHERE sink = ?1 AND holder = ?2")
            .bind(sink)
            .bind(holder)
            .bind(signed(next.0))
            .execute(writer.connection())
            .await
            .map_err(unavailable)?;
        writer.release();
        Ok(if moved.rows_affected() == 0 { Advanced::Lost } else { Advanced::Yes })
    }

    async fn release(&self, sink: &str, holder: &str) -> Result<(), ReadError> {
        let mut writer = self.writer().await.map_err(unavailable)?;
        sqlx::query("UPDATE sink_cursor SET until_us = 0 WHERE sink = ?1 AND holder = ?2")
            .bind(sink)
            .bind(holder)
            .execute(writer.connection())
            .await
            .map_err(unavailable)?;
        writer.release();
        Ok(())
    }
}
