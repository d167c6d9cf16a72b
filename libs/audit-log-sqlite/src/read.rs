//! Reading the log.

use std::collections::HashMap;

use async_trait::async_trait;
use audit_log::{LogHead, LogReader, ReadError, SealedEntry, StoredBatch, StoredEntry, decode_leaves, decode_sealed};
use futures::TryStreamExt;
use merkle_log::Frontier;
use session_model::{Digest, LeafIndex, SessionId, Timestamp, TreeSize, Version};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteExecutor};

use crate::SqliteLog;
use crate::open::{signed, unavailable, unsigned};

#[async_trait]
impl LogReader for SqliteLog {
    async fn head(&self) -> Result<LogHead, ReadError> {
        head(&self.readers).await
    }

    async fn batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        // From the batch that holds `from`: the last that begins at or before it.
        let mut rows = sqlx::query(
            "WITH start (first) AS (SELECT max(first) FROM batch WHERE first <= ?1)
             SELECT b.first, b.count, b.leaves, b.checkpoint, s.parts
             FROM start CROSS JOIN batch AS b LEFT JOIN sealed_batch AS s ON s.first = b.first
             WHERE b.first >= start.first AND b.first < start.first + ?2 AND b.first + b.count > ?1
             ORDER BY b.first",
        )
        .bind(signed(from.0))
        .bind(i64::from(u32::try_from(entries.max(1)).unwrap_or(u32::MAX)))
        .fetch(&self.readers);
        let mut found = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(unavailable)? {
            let (first, leaves, sealed) = opened(&row)?;
            found.push(StoredBatch { first, leaves, sealed, checkpoint: column(&row, "checkpoint")? });
        }
        Ok(found)
    }

    async fn entries(&self, indices: &[LeafIndex]) -> Result<Vec<Option<StoredEntry>>, ReadError> {
        // Every batch that holds one of them, once; of each only what was asked for is kept.
        let wanted: Vec<i64> = indices.iter().map(|index| signed(index.0)).collect();
        let wanted = serde_json::to_string(&wanted).map_err(|error| ReadError::Unavailable(Box::new(error)))?;
        let mut rows = sqlx::query(
            "WITH holder (first) AS
                 (SELECT DISTINCT (SELECT max(first) FROM batch WHERE first <= j.value) FROM json_each(?1) AS j)
             SELECT b.first, b.count, b.leaves, s.parts
             FROM holder CROSS JOIN batch AS b ON b.first = holder.first LEFT JOIN sealed_batch AS s ON s.first = b.first",
        )
        .bind(wanted)
        .fetch(&self.readers);
        let mut by_index: Vec<(u64, usize)> = indices.iter().enumerate().map(|(at, index)| (index.0, at)).collect();
        by_index.sort_unstable();
        let mut found: HashMap<usize, StoredEntry> = HashMap::new();
        while let Some(row) = rows.try_next().await.map_err(unavailable)? {
            let (first, leaves, sealed) = opened(&row)?;
            let tree_size = TreeSize(first.0 + leaves.len() as u64);
            let start = by_index.partition_point(|(index, _)| *index < first.0);
            for (index, at) in by_index.iter().skip(start).take_while(|(index, _)| *index < tree_size.0) {
                let place = usize::try_from(index - first.0).unwrap_or(usize::MAX);
                if let (Some(leaf), Some(sealed)) = (leaves.get(place), sealed.get(place)) {
                    let (leaf, sealed) = (leaf.clone(), sealed.clone());
                    found.insert(*at, StoredEntry { index: LeafIndex(*index), leaf, sealed, tree_size });
                }
            }
        }
        Ok((0..indices.len()).map(|at| found.remove(&at)).collect())
    }

    async fn sealed_batches(&self, from: LeafIndex, entries: usize) -> Result<Vec<StoredBatch>, ReadError> {
        // Batches of a page: they have some hundred entries each at most.
        const PAGE: i64 = 32;
        let (mut from, mut found, mut taken) = (signed(from.0), Vec::new(), 0);
        loop {
            let rows = sqlx::query(
                "SELECT b.first, b.count, b.leaves, b.checkpoint, s.parts
                 FROM sealed_batch AS s JOIN batch AS b ON b.first = s.first
                 WHERE s.first >= coalesce((SELECT max(first) FROM sealed_batch WHERE first <= ?1), 0) AND b.first + b.count > ?1
                 ORDER BY s.first LIMIT ?2",
            )
            .bind(from)
            .bind(PAGE)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
            let last = (rows.len() as u64) < PAGE.unsigned_abs();
            for row in &rows {
                let (first, leaves, sealed) = opened(row)?;
                from = signed(first.0 + leaves.len() as u64);
                // A batch without any sealed part may have a row all the same.
                if sealed.iter().any(Option::is_some) {
                    taken += leaves.len();
                    found.push(StoredBatch { first, leaves, sealed, checkpoint: column(row, "checkpoint")? });
                    if taken >= entries {
                        return Ok(found);
                    }
                }
            }
            if last {
                return Ok(found);
            }
        }
    }

    async fn session_entries(
        &self,
        id: SessionId,
        after: Version,
        limit: usize,
    ) -> Result<Vec<(Version, LeafIndex)>, ReadError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT version, leaf_index FROM session_entry
             WHERE session_id = ?1 AND version > ?2 ORDER BY version LIMIT ?3",
        )
        .bind(id.uuid().as_bytes().to_vec())
        .bind(signed(after.0))
        .bind(signed(limit as u64))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        rows.into_iter()
            .map(|(version, index)| Ok((Version(unsigned(version)?), LeafIndex(unsigned(index)?))))
            .collect()
    }

    async fn hashes(&self, level: u8, start: u64, count: u64) -> Result<Vec<Digest>, ReadError> {
        let found = match level {
            0 => self.leaf_hashes(start, count).await?,
            _ => self.nodes(level, start, count).await?,
        };
        if found.len() as u64 == count {
            Ok(found)
        } else {
            Err(ReadError::Corrupt(format!("no {count} hashes of level {level} from {start}")))
        }
    }
}

impl SqliteLog {
    async fn leaf_hashes(&self, start: u64, count: u64) -> Result<Vec<Digest>, ReadError> {
        let runs: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT first, hashes FROM leaf_hashes
             WHERE first >= (SELECT max(first) FROM leaf_hashes WHERE first <= ?1) AND first < ?2 ORDER BY first",
        )
        .bind(signed(start))
        .bind(signed(start.saturating_add(count)))
        .fetch_all(&self.readers)
        .await
        .map_err(unavailable)?;
        let mut found = Vec::new();
        for (first, hashes) in runs {
            let skip = usize::try_from(start.saturating_sub(unsigned(first)?)).unwrap_or(usize::MAX);
            let left = usize::try_from(count).unwrap_or(usize::MAX) - found.len();
            found.extend(hashes.as_chunks::<32>().0.iter().skip(skip).take(left).copied().map(Digest));
        }
        Ok(found)
    }

    async fn nodes(&self, level: u8, start: u64, count: u64) -> Result<Vec<Digest>, ReadError> {
        let hashes: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT hash FROM tree_node WHERE level = ?1 AND idx >= ?2 AND idx < ?3 ORDER BY idx")
                .bind(i64::from(level))
                .bind(signed(start))
                .bind(signed(start.saturating_add(count)))
                .fetch_all(&self.readers)
                .await
                .map_err(unavailable)?;
        hashes.iter().map(|hash| digest(hash)).collect()
    }
}

pub(crate) async fn head<'c>(database: impl SqliteExecutor<'c>) -> Result<LogHead, ReadError> {
    let row: (i64, i64, Vec<u8>, Option<String>) =
        sqlx::query_as("SELECT size, time_us, frontier, checkpoint FROM log_head")
            .fetch_one(database)
            .await
            .map_err(unavailable)?;
    let (size, time, frontier, checkpoint) = row;
    let frontier = Frontier::from_bytes(TreeSize(unsigned(size)?), &frontier)
        .map_err(|error| ReadError::Corrupt(error.to_string()))?;
    Ok(LogHead { frontier, time: Timestamp::from_micros(time), checkpoint })
}

pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, ReadError> {
    bytes.try_into().map(Digest).map_err(|_| ReadError::Corrupt(format!("a hash of {} bytes", bytes.len())))
}

pub(crate) fn column<'r, T>(row: &'r SqliteRow, name: &str) -> Result<T, ReadError>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(name).map_err(|error| ReadError::Corrupt(error.to_string()))
}

type Contents = (LeafIndex, Vec<Vec<u8>>, Vec<Option<SealedEntry>>);

/// The leaves and the sealed parts of a row with the columns `first`, `count`, `leaves` and `parts`.
fn opened(row: &SqliteRow) -> Result<Contents, ReadError> {
    let first = unsigned(column(row, "first")?)?;
    let count: i64 = column(row, "count")?;
    let malformed = |_| ReadError::Corrupt(format!("the batch at {first} is malformed"));
    let leaves = decode_leaves(column(row, "leaves")?).map_err(malformed)?;
    let sealed = match column::<Option<&[u8]>>(row, "parts")? {
        Some(parts) => decode_sealed(parts).map_err(malformed)?,
        None => vec![None; leaves.len()],
    };
    if i64::try_from(leaves.len()) != Ok(count) || sealed.len() != leaves.len() {
        return Err(ReadError::Corrupt(format!("the batch at {first} has not the {count} entries it should")));
    }
    Ok((LeafIndex(first), leaves, sealed))
}
